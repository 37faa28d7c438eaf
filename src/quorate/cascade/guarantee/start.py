"""Where a fixed sequence of thresholds begins: chosen on validation rows, for the size of the calibration sample that will test it.

A sequence stops at its first failure, so one that begins where too few rows are accepted to show anything certifies nothing, and one
that begins too far gives up certainty for nothing. Here the whole test is played in advance: calibration samples are drawn from what
validation saw, every start runs on each, and the one with the largest mean certified coverage is taken.

Each play draws its own probabilities of a row's cell (between which thresholds, labelled what, right or wrong) from Gamma(count), the
Bayesian bootstrap (Rubin 1981, Annals of Statistics 9), then a multinomial sample. One wrong row more than was seen stands before the
surest: few right rows are no proof of a small risk, and thresholds fitted on these rows flatter them.

Shapes: as in :mod:`quorate.cascade.guarantee.selective`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade.guarantee import binomial
from quorate.cascade.guarantee.selective import Rows, as_thresholds, check_risk, class_masks
from quorate.combination import Floats

PLAYS = 300


def start(
    uncertainty: ArrayLike,
    errors: ArrayLike,
    thresholds: Sequence[float | None] | NDArray,
    risk: float = 0.05,
    delta: float = 0.05,
    rows: int | None = None,
    *,
    costs_bound: float | None = None,
    limits: Mapping[int, float] | None = None,
    predicted: ArrayLike | None = None,
    seed: int = 0,
) -> int:
    """The index of the threshold with which the sequence should begin: ``certify(…, thresholds[start(…):], …)``.

    Args:
        uncertainty, errors: (N,) of *validation* rows.
        thresholds: rising, None = +∞.
        rows: how many calibration rows will test the sequence; default: as many as there are here.
        risk, delta, costs_bound, limits, predicted: as in ``certify``. A cost counts as cost / costs_bound of a wrong row, which has
            the same mean and no less variance.
        seed: of the plays; the same arguments give the same index.

    Raises:
        ValueError: as ``certify``; thresholds that fall; a number of rows that is not a whole number ≥ 1.
    """
    binomial.check_delta(delta)
    taus, seen = as_thresholds(thresholds), Rows.of(uncertainty, errors, costs_bound)
    count = len(seen.u) if rows is None else rows
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"rows={rows!r}: expected how many calibration rows will test the sequence, a whole number ≥ 1")
    if (np.diff(taus) < 0).any():
        raise ValueError("thresholds fall: expected them rising, so that each accepts all that the one before accepts")
    masks = class_masks(limits, predicted, len(seen.u))
    group = np.zeros(len(seen.u), np.int64)
    for number, (_, mask, _) in enumerate(masks, 1):
        group[mask] = number
    cells = _cells(seen, np.searchsorted(taus, seen.u), group, len(taus), len(masks) + 1)
    targets = [check_risk("risk", risk) / seen.most, *(limit / seen.most for _, _, limit in masks)]
    return _best(cells, targets, delta, int(count), np.random.default_rng(seed))


def _cells(seen: Rows, bin_of: NDArray[np.int64], group: NDArray[np.int64], taus: int, groups: int) -> Floats:
    """How many rows (groups, G+1, 2) have each first accepting threshold (G: none), right and wrong; fractions for costs."""
    share = seen.cost / seen.most
    at = group * (taus + 1) + bin_of
    counts = [np.bincount(at, weights, groups * (taus + 1)) for weights in (1 - share, share)]
    cells = np.stack(counts, -1).reshape(groups, taus + 1, 2)
    cells[:, 0, 1] += 1  # the one wrong row more, in every group: each is judged by itself
    return cells


def _best(cells: Floats, targets: list[float], delta: float, rows: int, rng: np.random.Generator) -> int:
    thresholds = cells.shape[1] - 1
    certified = np.zeros(thresholds)
    index = np.arange(thresholds)
    for _ in range(PLAYS):
        weights = rng.standard_gamma(cells)
        drawn = rng.multinomial(rows, (weights / weights.sum()).ravel()).reshape(cells.shape)
        right, wrong = np.moveaxis(drawn[:, :-1].cumsum(1), -1, 0)
        right[0], wrong[0] = right.sum(0), wrong.sum(0)
        p = np.max([binomial.p_value(e, r + e, target) for e, r, target in zip(wrong, right, targets, strict=True)], axis=0)
        failed = p > delta
        first_failure = np.minimum.accumulate(np.where(failed, index, thresholds)[::-1])[::-1]
        accepted = np.append(0, right[0] + wrong[0])
        certified += np.where(failed, 0, accepted[first_failure])
    return int(certified.argmax())
