"""Selective risk, certified: of the accepted rows at most a share ``risk`` is wrong, with probability ≥ 1 − δ over the calibration draw.

Source: Geifman & El-Yaniv 2017 (arXiv 1705.08500), §3, with Learn-then-Test (arXiv 2110.01052) in place of their binary search. For each
threshold τ the hypothesis is "the risk at τ exceeds the target". Given how many calibration rows are accepted, m, the wrong ones among
them are Bin(m, risk at τ): the p-value is exact (:mod:`.binomial`). Costs other than 0/1 take the betting p-value of their mean
(:mod:`.bounded`). The risk is not monotone in τ, so many thresholds need a test for several hypotheses (:mod:`.testing`).

Limits per class, "of the accepted rows labelled c at most r_c wrong", come on top: "the target or some limit is broken" is a union of
hypotheses, rejected iff every p-value is at most δ, without correction (Berger 1982, Technometrics 24).

Shapes: uncertainty (N,), higher = less sure; errors (N,) booleans or costs ≥ 0; predicted (N,) classes; thresholds (G,), None = +∞.
Rows of equal uncertainty are accepted together: nothing depends on the order of rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade.guarantee import binomial, bounded
from quorate.cascade.guarantee.binomial import check_delta, more_rows
from quorate.cascade.guarantee.certificate import Certificate, Part
from quorate.cascade.guarantee.testing import TESTS
from quorate.combination import Floats

ASSUMPTION = (
    "the calibration rows are independent draws from what will come, and the thresholds, their order and the models were chosen on "
    "other rows"
)


def certify(
    uncertainty: ArrayLike,
    errors: ArrayLike,
    thresholds: Sequence[float | None] | NDArray,
    risk: float = 0.05,
    delta: float = 0.05,
    method: Literal["fixed-sequence", "bonferroni"] = "fixed-sequence",
    *,
    costs_bound: float | None = None,
    limits: Mapping[int, float] | None = None,
    predicted: ArrayLike | None = None,
) -> Certificate:
    """The threshold that can be trusted with the target, if the calibration rows carry one; a certificate of kind "selective risk".

    Args:
        uncertainty, errors: (N,) of calibration rows, which chose nothing.
        thresholds: in test order, from other rows; where to begin is :func:`quorate.cascade.guarantee.start`'s question.
        risk: the target: the largest mean cost of the accepted rows; 1 (or ``costs_bound``) where only ``limits`` matter.
        delta: the allowed probability of a wrong claim.
        method: ``"fixed-sequence"``: test in the given order until the first that fails, the last that passed is τ.
            ``"bonferroni"``: each at δ / G, τ is the one that accepts most rows.
        costs_bound: the largest cost a row can have; needed where errors are not 0/1.
        limits: class → the largest mean cost of the accepted rows *labelled* so; needs ``predicted``.
        predicted: (N,) the classes the rows are labelled with.

    Raises:
        ValueError: arrays that don't fit together, NaN, costs beyond their bound, no thresholds, or levels that are not allowed.
    """
    if method not in ("fixed-sequence", "bonferroni"):
        raise ValueError(f"method={method!r}: expected 'fixed-sequence' or 'bonferroni'")
    check_delta(delta)
    taus, rows = as_thresholds(thresholds), Rows.of(uncertainty, errors, costs_bound)
    total, classes, p = gather(rows, taus, check_risk("risk", risk), limits, predicted)
    passed = TESTS[method](p, delta)
    level = delta if method == "fixed-sequence" else delta / len(taus)
    if passed.any():
        at = int(passed.sum()) - 1 if method == "fixed-sequence" else int(np.where(passed, total.accepted, -1).argmax())
        needed: int | None = 0
    else:
        at, considered = None, range(1 if method == "fixed-sequence" else len(taus))
        needed = min(
            (n for n in (_needed(len(rows.u), (total, *classes), g, level) for g in considered) if n is not None), default=None
        )
    accepted, spent = (0, 0.0) if at is None else (int(total.accepted[at]), float(total.spent[at]))
    return Certificate(
        kind="selective risk",
        feasible=at is not None,
        target=total.risk,
        delta=delta,
        method=method,
        rows=len(rows.u),
        tau=None if at is None or np.isinf(taus[at]) else float(taus[at]),
        coverage=accepted / len(rows.u),
        accepted=accepted,
        errors=spent,
        observed=None if at is None else spent / accepted,
        bound=None if at is None else total.bound(at, level),
        tested=len(taus),
        needed=needed,
        assumption=ASSUMPTION,
        classes=tuple(evidence.part(at, level) for evidence in classes),
    )


def certify_one(
    accepted: ArrayLike,
    errors: ArrayLike,
    risk: float | None = None,
    delta: float = 0.05,
    *,
    costs_bound: float | None = None,
    limits: Mapping[int, float] | None = None,
    predicted: ArrayLike | None = None,
) -> Certificate:
    """One rule of acceptance, fixed beforehand: its risk with an upper bound, and whether the target holds; kind "risk".

    Args:
        accepted: (N,) booleans, by a rule that these rows did not choose.
        risk: the target; None to report the bound alone, which is feasible as soon as any row is accepted.
        errors, delta, costs_bound, limits, predicted: as in :func:`certify`.

    Raises:
        ValueError: as :func:`certify`.
    """
    check_delta(delta)
    mask = np.asarray(accepted)
    if mask.ndim != 1 or mask.dtype != bool:
        raise ValueError(f"accepted of shape {mask.shape}, {mask.dtype}: expected booleans, one per row, shape (N,)")
    rows, tau = Rows.of(np.where(mask, 0.0, 1.0), errors, costs_bound), np.zeros(1)
    total, classes, p = gather(rows, tau, math.inf if risk is None else check_risk("risk", risk), limits, predicted)
    feasible = bool(p[0] <= delta)
    count, spent = int(total.accepted[0]), float(total.spent[0])
    return Certificate(
        kind="risk",
        feasible=feasible,
        target=risk,
        delta=delta,
        method="single",
        rows=len(rows.u),
        tau=None,
        coverage=count / len(rows.u),
        accepted=count,
        errors=spent,
        observed=spent / count if count else None,
        bound=total.bound(0, delta) if count else None,
        tested=1,
        needed=0 if feasible else _needed(len(rows.u), (total, *classes), 0, delta),
        assumption=ASSUMPTION,
        classes=tuple(evidence.part(0, delta) for evidence in classes),
    )


@dataclass(frozen=True, eq=False)
class Rows:
    """Checked rows: uncertainty (N,) float64, cost (N,) float64 in [0, most], and whether all costs are 0 or 1."""

    u: Floats
    cost: Floats
    most: float
    binary: bool

    @classmethod
    def of(cls, uncertainty: ArrayLike, errors: ArrayLike, costs_bound: float | None) -> Rows:
        u, given = np.asarray(uncertainty), np.asarray(errors)
        if u.ndim != 1 or not u.size or u.dtype.kind not in "fiu" or np.isnan(u).any():
            raise ValueError(
                f"uncertainty of shape {u.shape}, {u.dtype}: expected at least one number per row and no NaN, shape (N,)"
            )
        if given.shape != u.shape or given.dtype.kind not in "bfiu" or not (np.isfinite(given) & (given >= 0)).all():
            raise ValueError(
                f"errors of shape {given.shape}, {given.dtype}: expected {u.shape[0]} booleans (true = wrong) or finite costs ≥ 0"
            )
        cost = given.astype(np.float64)
        binary = bool(((cost == 0) | (cost == 1)).all())
        if costs_bound is None:
            if not binary:
                raise ValueError(
                    f"errors go up to {cost.max():g}, not 0 and 1 alone: give costs_bound, the largest cost a row can have"
                )
            return cls(u.astype(np.float64), cost, 1.0, True)
        most = check_risk("costs_bound", costs_bound)
        if not most > 0 or cost.max() > most:
            raise ValueError(
                f"costs_bound={costs_bound}, errors go up to {cost.max():g}: expected the largest cost a row can have, > 0"
            )
        return cls(u.astype(np.float64), cost, most, binary and most == 1)

    def only(self, mask: NDArray[np.bool_]) -> Rows:
        return Rows(self.u[mask], self.cost[mask], self.most, self.binary)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Against "the mean cost of the accepted exceeds ``risk``", per threshold (G,): how many are accepted, what they cost, the p-value."""

    name: str
    rows: Rows
    taus: Floats
    risk: float
    accepted: NDArray[np.int64]
    spent: Floats
    p: Floats

    @classmethod
    def of(cls, rows: Rows, taus: Floats, risk: float, name: str) -> Evidence:
        order = (
            np.argsort(rows.u) if rows.binary else np.lexsort((rows.cost, rows.u))
        )  # costs too: rounding of sums, not order, of ties
        cost = rows.cost[order]
        accepted = np.searchsorted(rows.u[order], taus, side="right")
        spent = np.append(0.0, np.cumsum(cost))[accepted]
        if rows.binary:
            p = binomial.p_value(spent.astype(np.int64), accepted, risk)
        else:
            p = bounded.prefix_p_values(cost, accepted, risk, rows.most)
        return cls(name, rows, taus, risk, accepted, spent, p)

    def bound(self, at: int, delta: float) -> float:
        """Upper confidence bound of the mean cost at one threshold."""
        if self.rows.binary:
            return float(binomial.clopper_pearson(int(self.spent[at]), int(self.accepted[at]), delta))
        return bounded.upper_bound(self.rows.cost[self.rows.u <= self.taus[at]], delta, self.rows.most)

    def part(self, at: int | None, delta: float) -> Part:
        if at is None:
            return Part(self.name, len(self.rows.u), 0, 0.0, target=self.risk)
        count, spent = int(self.accepted[at]), float(self.spent[at])
        risk = spent / count if count else None
        return Part(self.name, len(self.rows.u), count, spent, risk, self.bound(at, delta), self.risk)


def gather(
    rows: Rows, taus: Floats, risk: float, limits: Mapping[int, float] | None, predicted: ArrayLike | None
) -> tuple[Evidence, list[Evidence], Floats]:
    """The evidence on all rows and on each class with a limit, and the p-values (G,) against "the target or some limit is broken"."""
    total = Evidence.of(rows, taus, risk, "all")
    classes = [
        Evidence.of(rows.only(mask), taus, limit, name) for name, mask, limit in class_masks(limits, predicted, len(rows.u))
    ]
    return total, classes, np.maximum.reduce([evidence.p for evidence in (total, *classes)])


def _needed(rows: int, parts: Sequence[Evidence], at: int, delta: float) -> int | None:
    """How many more rows would make every p-value at one threshold ≤ δ; all-or-nothing costs of the same mean stand for others."""
    counts = []
    for part in parts:
        if part.p[at] <= delta:
            continue
        accepted, most = int(part.accepted[at]), part.rows.most
        share = float(part.spent[at]) / accepted / most if accepted else 0.0
        counts.append(more_rows(rows, accepted, share, part.risk / most, delta))
    return None if None in counts else max((count for count in counts if count is not None), default=0)


def as_thresholds(thresholds: Sequence[float | None] | NDArray) -> Floats:
    """Thresholds (G,) as float64, None as +∞; ValueError for none at all, NaN or −∞."""
    try:
        taus = np.array([np.inf if t is None else t for t in thresholds], np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"thresholds is {type(thresholds).__name__} ({error}): expected a list of numbers, None for +∞"
        ) from error
    if taus.ndim != 1 or not len(taus) or np.isnan(taus).any() or (taus == -np.inf).any():
        raise ValueError(
            f"thresholds of shape {taus.shape}: expected at least one number, None or +inf for no threshold, shape (G,)"
        )
    return taus


def check_risk(name: str, value: float) -> float:
    """A finite number ≥ 0 as a float."""
    if not isinstance(value, int | float | np.number) or isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value!r}: expected a finite number ≥ 0, in the unit of the errors")
    return float(value)


def class_masks(
    limits: Mapping[int, float] | None, predicted: ArrayLike | None, rows: int
) -> list[tuple[str, NDArray[np.bool_], float]]:
    """Per class with a limit: its number as text, the rows labelled so (N,), the limit."""
    if not limits:
        return []
    if not isinstance(limits, Mapping):
        raise ValueError(f"limits is {type(limits).__name__}: expected a dict from class numbers to their largest risk")
    label = np.asarray(predicted)
    if predicted is None or label.shape != (rows,) or label.dtype.kind not in "iu":
        raise ValueError(f"limits need predicted: expected {rows} class numbers, got {label.dtype} of shape {label.shape}")
    wrong = [key for key in limits if isinstance(key, bool) or not isinstance(key, int | np.integer) or key < 0]
    if wrong:
        raise ValueError(f"limits name {wrong}: expected class numbers ≥ 0")
    return [(str(int(key)), label == key, check_risk(f"limits[{key}]", limit)) for key, limit in limits.items()]
