"""Selective classification: what it costs to answer only where the uncertainty is low.

Rows are sorted by ascending uncertainty; e_k is the sum of errors among the k most certain of n.

    coverage(k) = k / n      risk(k) = e_k / k      (El-Yaniv & Wiener 2010, JMLR 11)

Rows of equal uncertainty are one point: they are accepted together, so nothing here depends on the order of rows.
Accept means ``uncertainty <= threshold``.

- AURC (1/n) Σ_k risk(k), excess AURC (Geifman et al. 2019, arXiv 1805.08206);
- AUGRC (1/n) Σ_k e_k / n (Traub et al. 2024, arXiv 2407.01032);
- coverage at a risk and risk at a coverage, as in Xia & Bouganis 2023 (arXiv 2303.08010).

Shapes: ``uncertainty`` (N,), higher = less sure, ±inf allowed; ``errors`` (N,) booleans (true = wrong) or
non-negative costs. Errors that are whole numbers are summed exactly. All arithmetic is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.metrics._checks import (
    Floats,
    check_choice,
    check_errors,
    check_number,
    check_scores,
    check_share,
)

Form = Literal["mean", "trapezoid"]
Rule = Literal["max", "nearest"]


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The risk–coverage curve, one point per distinct uncertainty, from the most certain on.

    coverage: (P,) share of rows accepted, rising to 1.
    risk: (P,) mean error of the rows accepted.
    threshold: (P,) the uncertainty up to which rows are accepted, rising.
    """

    coverage: Floats
    risk: Floats
    threshold: Floats


def risk_coverage(uncertainty: ArrayLike, errors: ArrayLike) -> RiskCoverage:
    """The risk–coverage curve; it has no point at coverage 0, where risk is undefined.

    Raises:
        ValueError: empty or unequal lengths, NaN uncertainty, errors that are negative or not finite.
    """
    points = _tie_points(uncertainty, errors)
    return RiskCoverage(points.coverage, points.risk, points.scores.astype(np.float64))


def aurc(uncertainty: ArrayLike, errors: ArrayLike, form: Form = "mean") -> float:
    """Area under the risk–coverage curve; lower is better.

    Args:
        uncertainty: (N,). errors: (N,).
        form: ``"mean"``: (1/n) Σ_k risk(k), where every row of a tied group takes the risk at the group's end.
            ``"trapezoid"``: the trapezoid rule over the tie points, starting from the point (0, 0).

    Raises:
        ValueError: as :func:`risk_coverage`; an unknown form.
    """
    check_choice("form", form, "mean", "trapezoid")
    return _area(_tie_points(uncertainty, errors), form)


def excess_aurc(uncertainty: ArrayLike, errors: ArrayLike, form: Form = "mean") -> float:
    """AURC minus that of the best order of the same errors: ascending, every row a point of its own.

    Never below 0 in the mean form, but for rounding. In the trapezoid form a score with ties can be: the chord across a tied group may
    run below the points it skips.

    Raises:
        ValueError: as :func:`aurc`.
    """
    check_choice("form", form, "mean", "trapezoid")
    points = _tie_points(uncertainty, errors)
    best = np.sort(check_errors("errors", errors, points.rows))
    ranks = np.arange(1, points.rows + 1)
    return _area(points, form) - _area(_TiePoints(ranks, ranks, np.cumsum(best)), form)


def augrc(uncertainty: ArrayLike, errors: ArrayLike) -> float:
    """Area under the generalised risk–coverage curve, (1/n) Σ_k e_k / n; lower is better.

    The mean cost of what is wrong *and* accepted, over all thresholds; every row of a tied group takes the e_k at the
    group's end.

    Raises:
        ValueError: as :func:`risk_coverage`.
    """
    points = _tie_points(uncertainty, errors)
    return float((points.sizes * points.errors).sum() / points.rows / points.rows)


def coverage_at_risk(uncertainty: ArrayLike, errors: ArrayLike, risk: float, rule: Rule = "max") -> float:
    """The largest coverage whose risk is at most ``risk``; 0 when no point is that good.

    Args:
        uncertainty: (N,). errors: (N,).
        risk: the target, in the unit of the errors; compared with e_k / k in float64 without slack.
        rule: ``"max"`` as above. ``"nearest"``, for comparison with published figures only: the coverage of the point
            whose risk is nearest to the target, the larger coverage among equals, *also where it exceeds the target*
            (the code of Xia & Bouganis 2023, which moreover passes over the 500 most certain rows).

    Raises:
        ValueError: as :func:`risk_coverage`; a negative or infinite target; an unknown rule.
    """
    check_choice("rule", rule, "max", "nearest")
    target = check_number("risk", risk, 0.0)
    points = _tie_points(uncertainty, errors)
    if rule == "nearest":
        gap = np.abs(points.risk - target)
        return float(points.coverage[np.flatnonzero(gap == gap.min())[-1]])
    index = _last_within(points, target)
    return 0.0 if index is None else float(points.coverage[index])


def risk_at_coverage(uncertainty: ArrayLike, errors: ArrayLike, coverage: float) -> float:
    """The risk at the least k with k/n ≥ ``coverage``; a tied group goes in whole.

    k is found in whole rows: 0.8 of 5 rows is 4, 0.7 of 10 is 7 (a millionth of a row is taken for rounding).

    Raises:
        ValueError: as :func:`risk_coverage`; coverage outside (0, 1].
    """
    points = _tie_points(uncertainty, errors)
    wanted = check_share("coverage", coverage, points.rows)
    return float(points.risk[np.searchsorted(points.accepted, wanted)])


def threshold_at_risk(uncertainty: ArrayLike, errors: ArrayLike, risk: float) -> float | None:
    """The τ to deploy for :func:`coverage_at_risk`: accepting ``uncertainty <= τ`` realises that coverage.

    τ lies midway to the next larger score of the data, so rounding can't flip a row; +inf when all rows are accepted;
    ``None`` when no point has a risk of at most ``risk``. It is a number of the scores' own precision: comparing in
    float64 or in theirs is the same. Between neighbouring floats, where nothing fits, τ is the lower one.

    Raises:
        ValueError: as :func:`coverage_at_risk`.
    """
    target = check_number("risk", risk, 0.0)
    points = _tie_points(uncertainty, errors)
    index = _last_within(points, target)
    return None if index is None else _midway(points.scores, index)


def threshold_at_coverage(uncertainty: ArrayLike, coverage: float) -> float:
    """The τ to deploy that accepts at least the share ``coverage`` of rows: see :func:`threshold_at_risk`.

    Raises:
        ValueError: empty or NaN uncertainty; coverage outside (0, 1].
    """
    scores = check_scores("uncertainty", uncertainty)
    wanted = check_share("coverage", coverage, scores.size)
    distinct, sizes = np.unique(scores, return_counts=True)
    return _midway(distinct, int(np.searchsorted(np.cumsum(sizes), wanted)))


class _TiePoints(NamedTuple):
    """Per distinct score: the score, how many rows are accepted up to it, the sum of their errors. All (P,)."""

    scores: NDArray[Any]
    accepted: NDArray[np.int64]
    errors: Floats

    @property
    def rows(self) -> int:
        return int(self.accepted[-1])

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.diff(self.accepted, prepend=0)

    @property
    def coverage(self) -> Floats:
        return np.asarray(self.accepted / self.rows)

    @property
    def risk(self) -> Floats:
        return np.asarray(self.errors / self.accepted)


def _tie_points(uncertainty: ArrayLike, errors: ArrayLike) -> _TiePoints:
    scores = check_scores("uncertainty", uncertainty)
    costs = check_errors("errors", errors, scores.size)
    order = np.lexsort((costs, scores))  # costs too, so that sums don't depend on the order of tied rows
    scores = scores[order]
    ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), scores.size - 1)
    return _TiePoints(scores[ends], ends + 1, np.cumsum(costs[order])[ends])


def _area(points: _TiePoints, form: Form) -> float:
    if form == "mean":
        return float((points.sizes * points.risk).sum() / points.rows)
    return float(np.trapezoid(np.append(0.0, points.risk), np.append(0.0, points.coverage)))


def _last_within(points: _TiePoints, target: float) -> int | None:
    """The point of largest coverage whose risk is at most the target."""
    within = np.flatnonzero(points.risk <= target)
    return int(within[-1]) if within.size else None


def _midway(distinct: NDArray[Any], index: int) -> float:
    """A threshold that accepts ascending ``distinct`` (P,) up to ``index``, in the array's precision."""
    if index == distinct.size - 1:
        return math.inf
    limit = float(np.finfo(distinct.dtype).max)
    low, high = (min(max(float(score), -limit), limit) for score in distinct[index : index + 2])
    middle = float(distinct.dtype.type(low / 2 + high / 2))
    return middle if distinct[index] <= middle < distinct[index + 1] else float(distinct[index])
