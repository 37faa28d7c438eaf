"""Sparsification: does the error fall when the most uncertain rows are left out, and how far from the best order?

The share f of rows with the highest uncertainty is removed; what remains has the error s(f) (Ilg et al. 2018, arXiv
1802.07095, the sparsification plots). The oracle removes the rows with the largest errors. Divided by s(0), both begin at 1.

    s(f) / s(0) = risk(coverage 1 − f) / risk(1)          AUSE = ∫₀¹ (s(f) − oracle(f)) / s(0) df

so s is the risk–coverage curve of :mod:`quorate.metrics.selective` read from the right, and AUSE is the excess AURC over
the mean error. The integral is the mean over the n numbers of rows that can remain, as ``aurc(form="mean")``; a removed
share of 1 leaves nothing, and is no point. Rows of equal uncertainty are one point: they are removed together. Constant
uncertainty has s = s(0) throughout, which is what a random order has on average.

Shapes: uncertainty (N,), higher = less sure, ±inf allowed; errors (N,), costs of at least 0, such as |y − μ|.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.metrics._checks import Floats, check_choice, check_errors, check_scores
from quorate.metrics.selective import risk_coverage

Measure = Literal["mean", "rms"]


@dataclass(frozen=True, eq=False)
class Sparsification:
    """A sparsification curve, one point per distinct uncertainty, from nothing removed on.

    removed: (P,) share of rows removed, rising from 0; below 1.
    error: (P,) error of the rows that remain, in units of the error of all (or of the errors, if not normalised).
    oracle: (P,) the least error that as many rows can have.
    """

    removed: Floats
    error: Floats
    oracle: Floats


def sparsification(
    uncertainty: ArrayLike, errors: ArrayLike, measure: Measure = "mean", normalised: bool = True
) -> Sparsification:
    """The sparsification curve of an uncertainty, and the oracle's at the same shares.

    Args:
        uncertainty: (N,). errors: (N,), at least 0.
        measure: ``"mean"`` of the errors that remain (MAE of absolute errors), or ``"rms"``, the root of their mean square
            (RMSE of absolute errors).
        normalised: divide by the error of all rows, so that both curves begin at 1.

    Raises:
        ValueError: empty or unequal lengths, NaN uncertainty, errors that are negative or not finite; an unknown measure;
            normalised although all errors are 0.
    """
    scores, costs, scale = _checked(uncertainty, errors, measure, normalised)
    remaining, risk = _curve(scores, costs)
    error, oracle = (_measured(r, measure) / scale for r in (risk, _best(costs)[remaining - 1]))
    return Sparsification((scores.size - remaining[::-1]) / scores.size, error[::-1], oracle[::-1])


def ause(uncertainty: ArrayLike, errors: ArrayLike, measure: Measure = "mean", normalised: bool = True) -> float:
    """Area under the sparsification error, (1/n) Σ_k (s_k − oracle_k), k rows remaining; lower is better.

    With the defaults it equals ``excess_aurc(uncertainty, errors) / mean(errors)``. It is 0 for the oracle's order with
    every row a point of its own; for a random order it is on average 1 minus the area under the oracle's curve.

    Raises:
        ValueError: as :func:`sparsification`.
    """
    scores, costs, scale = _checked(uncertainty, errors, measure, normalised)
    remaining, risk = _curve(scores, costs)
    per_row = risk[np.searchsorted(remaining, np.arange(1, scores.size + 1))]
    return float((_measured(per_row, measure) - _measured(_best(costs), measure)).mean() / scale)


def _checked(
    uncertainty: ArrayLike, errors: ArrayLike, measure: str, normalised: bool
) -> tuple[NDArray[np.floating], Floats, float]:
    """Checked uncertainty (N,), errors (N,), for ``"rms"`` as squared shares of the largest, and the curves' divisor."""
    check_choice("measure", measure, "mean", "rms")
    scores = check_scores("uncertainty", uncertainty)
    costs = check_errors("errors", errors, scores.size)
    if not costs.any() and normalised:
        raise ValueError("errors: expected some above 0, got only 0, whose share can't be taken; pass normalised=False")
    largest = float(costs.max()) or 1.0
    if measure == "rms":
        costs = np.square(costs / largest)  # a square of its own could overflow
    if normalised:
        return scores, costs, float(_measured(costs.mean(), measure))
    return scores, costs, 1 / largest if measure == "rms" else 1.0


def _curve(scores: NDArray[np.floating], costs: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Per distinct score, ascending: how many rows remain up to it (P,) and their mean cost (P,)."""
    curve = risk_coverage(scores, costs)
    return np.rint(curve.coverage * scores.size).astype(np.int64), curve.risk


def _best(costs: Floats) -> Floats:
    """(N,) mean of the k smallest costs, for k = 1 … N."""
    return np.asarray(np.cumsum(np.sort(costs)) / np.arange(1, costs.size + 1))


def _measured(risk: ArrayLike, measure: str) -> Floats:
    return np.asarray(np.sqrt(risk) if measure == "rms" else risk)
