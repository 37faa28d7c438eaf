"""Where a fixed sequence of thresholds begins: chosen on validation rows, for the size of the calibration sample that will test it.

A sequence stops at its first failure, so one that begins where too few rows are accepted to show anything certifies nothing, and one
that begins too far gives up certainty for nothing. Here the whole test is played in advance: calibration samples are drawn from what
validation saw, every start runs on each, and the one with the largest mean certified coverage is taken.

Each play draws its own probabilities of a row's cell (between which thresholds, right or wrong) from Gamma(count), the
Bayesian bootstrap (Rubin 1981, Annals of Statistics 9), then a multinomial sample. One wrong row more than was seen stands before the
surest: few right rows are no proof of a small risk, and thresholds fitted on these rows flatter them.
Classes with limits are drawn by themselves.

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
    subsets = [
        (np.ones(len(seen.u), bool), check_risk("risk", risk)),
        *((mask, limit) for _, mask, limit in class_masks(limits, predicted, len(seen.u))),
    ]
    first = np.searchsorted(taus, seen.u)
    cells = [_cells(seen, np.where(mask, first, len(taus)), len(taus)) for mask, _ in subsets]
    targets = [limit / seen.most for _, limit in subsets]
    return _best(cells, targets, delta, int(count), np.random.default_rng(seed))


def _cells(seen: Rows, first: NDArray[np.int64], taus: int) -> Floats:
    """How many rows (G+1, 2) each threshold is the first to accept (G: none is), right and wrong; fractions for costs."""
    share = seen.cost / seen.most
    cells = np.stack([np.bincount(first, weights, taus + 1) for weights in (1 - share, share)], -1)
    cells[0, 1] += 1  # the one wrong row more
    return np.asarray(cells, np.float64)


def _best(cells: list[Floats], targets: list[float], delta: float, rows: int, rng: np.random.Generator) -> int:
    thresholds = len(cells[0]) - 1
    certified, index = np.zeros(thresholds), np.arange(thresholds)
    for _ in range(PLAYS):
        failed = np.zeros(thresholds, bool)
        accepted = np.zeros(thresholds + 1, np.int64)
        for j, (counts, target) in enumerate(zip(cells, targets, strict=True)):  # all rows, then those of each class with a limit
            weights = rng.standard_gamma(counts)
            drawn = rng.multinomial(rows, (weights / weights.sum()).ravel()).reshape(counts.shape)
            right, wrong = drawn[:-1].cumsum(0).T
            failed |= binomial.p_value(wrong, right + wrong, target) > delta
            if j == 0:
                accepted[1:] = right + wrong
        first_failure = np.minimum.accumulate(np.where(failed, index, thresholds)[::-1])[::-1]
        certified += np.where(failed, 0, accepted[first_failure])
    return int(certified.argmax())
