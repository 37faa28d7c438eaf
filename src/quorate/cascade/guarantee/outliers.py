"""Guarantees where some inputs are out of distribution (OOD): enough of the in-distribution (ID) rows kept, few OOD rows let in.

**TPR and FPR** (:func:`certify_fpr`). The TPR rises with τ, so the least τ whose lower Clopper–Pearson bound reaches the target can be
trusted without correction: that it has too small a TPR takes the largest such threshold to pass too, which happens with probability
≤ δ. With thresholds taken from the ID scores themselves the same holds, as an order statistic: TPR(u₍ₖ₎) is at least a Beta(k, n + 1 − k)
variable. τ is then fixed for the OOD rows, whose share accepted has an exact upper bound. δ goes half to the TPR, half to the S sets.

**SCOD** (:func:`certify_scod`), with the share α of ID rows in the mix fixed and β the cost of an accepted OOD row. The risk is an
average of the ID rows' own risk R and β, with w the share of OOD among what is accepted, a and q the shares of ID and OOD accepted:

    risk = (1 − w) R + w β     w = (1 − α) q / (α a + (1 − α) q)

so risk ≤ max(R⁺, (1 − w⁺) R⁺ + w⁺ β), with R⁺, q⁺ upper bounds and a⁻ a lower one, each at δ / 3, and w⁺ = w(a⁻, q⁺). A threshold
passes if this is at most the target; thresholds are tested as a fixed sequence. The risk is that of :func:`quorate.metrics.scod_risk`.

A single threshold keeps its figures in the certificate whether it passes or not; a search that finds none has none.

Shapes: ID uncertainty (N,), OOD (N′,) per set, higher = less sure; accept means ≤ τ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade.guarantee import binomial, bounded
from quorate.cascade.guarantee.binomial import MOST_ROWS, check_delta, more_rows
from quorate.cascade.guarantee.certificate import Certificate, Part
from quorate.cascade.guarantee.selective import Rows, as_thresholds, check_risk
from quorate.combination import Floats

ASSUMPTION = (
    "the ID and OOD calibration rows are independent draws from the ID and OOD inputs that will come, and the thresholds, their order "
    "and the models were chosen on other rows"
)


def certify_fpr(
    id_uncertainty: ArrayLike,
    ood: Mapping[str, ArrayLike] | None = None,
    thresholds: Sequence[float | None] | NDArray | None = None,
    tpr: float = 0.95,
    delta: float = 0.05,
) -> Certificate:
    """The least threshold that surely keeps the share ``tpr`` of ID inputs, and how many OOD inputs it lets in at most; kind "fpr".

    Args:
        id_uncertainty: (N,). ood: name → (N′,) of each OOD set; without any, all of δ is the TPR's.
        thresholds: in any order, from other rows; None: anywhere, τ is put midway between two ID scores (on the last where all count).
        tpr: the share of ID inputs to accept. delta: the allowed probability that any of the claims is wrong.

    Raises:
        ValueError: no rows, NaN, a TPR outside (0, 1] or a δ outside (0, 1).
    """
    check_delta(delta)
    if not (isinstance(tpr, int | float) and 0 < tpr <= 1):
        raise ValueError(f"tpr={tpr!r}: expected a share > 0 and ≤ 1, such as 0.95")
    inside = np.sort(_scores("id_uncertainty", id_uncertainty))
    sets = {name: _scores(f"ood[{name!r}]", scores) for name, scores in (ood or {}).items()}
    n, level = len(inside), delta / 2 if sets else delta
    if thresholds is None:
        last = np.append(inside[1:] > inside[:-1], True)  # the end of each tie
        following = np.append(inside[1:], inside[-1])
        middle = np.clip(inside / 2 + following / 2, inside, following)
        taus, accepted = np.where(middle < following, middle, inside)[last], np.flatnonzero(last) + 1
    else:
        taus = np.sort(as_thresholds(thresholds))
        accepted = np.searchsorted(inside, taus, side="right")
    passed = np.flatnonzero(binomial.p_value(n - accepted, np.full(len(taus), n), 1 - tpr) <= level)
    needed = 0 if len(passed) else more_rows(n, n, 1 - accepted[-1] / n, 1 - tpr, level)
    if not len(passed) and len(taus) > 1:
        return _searched("fpr", tpr, delta, "single", n, len(taus), needed, _unseen(sets))
    at = int(passed[0]) if len(passed) else 0
    tau, kept, bound = float(taus[at]), int(accepted[at]), float(binomial.lower(accepted[at], n, level))
    parts = outliers(sets, tau, delta / 2)
    return _searched("fpr", tpr, delta, "single", n, len(taus), needed, parts, tau, kept, n - kept, kept / n, bound)


def outliers(sets: Mapping[str, Floats], tau: float, delta: float) -> tuple[Part, ...]:
    """Per OOD set the share accepted at τ, with upper bounds that together hold at level 1 − δ."""
    parts = []
    for name, scores in sets.items():
        count = int((scores <= tau).sum())
        bound = float(binomial.clopper_pearson(count, len(scores), delta / len(sets)))
        parts.append(Part(name, len(scores), count, risk=count / len(scores), bound=bound))
    return tuple(parts)


class _Mix(NamedTuple):
    """A mix: the share of ID, and the cost of an accepted OOD row."""

    alpha: float
    beta: float

    def risk(self, own: float, inside: float, outside: float) -> float:
        """Of what is accepted, where ID rows have risk ``own`` and these shares are accepted."""
        weight = (1 - self.alpha) * outside
        share = weight / (self.alpha * inside + weight) if weight else 0.0
        return (1 - share) * own + share * self.beta

    def bound(self, own: float, kept: tuple[int, int], let_in: tuple[int, int], delta: float) -> float:
        """Upper bound from one of R at δ / 3 and the (accepted, rows) of ID and OOD."""
        a = float(binomial.lower(*kept, delta / 3))
        q = float(binomial.clopper_pearson(*let_in, delta / 3))
        return max(own, self.risk(own, a, q))


def certify_scod(
    id_uncertainty: ArrayLike,
    id_errors: ArrayLike,
    ood_uncertainty: ArrayLike,
    thresholds: Sequence[float | None] | NDArray,
    risk: float = 0.05,
    *,
    beta: float = 1.0,
    alpha: float,
    delta: float = 0.05,
    costs_bound: float | None = None,
) -> Certificate:
    """The last threshold of a fixed sequence with a certified risk of the accepted in a mix of ID and OOD inputs; kind "scod".

    Args:
        id_uncertainty: (N,). id_errors: (N,) booleans or costs. ood_uncertainty: (N′,).
        thresholds: in test order, from other rows; None = +∞.
        risk: the target. beta: cost of an accepted OOD row. alpha: share of ID in the mix that will come, not in the samples.
        delta: the allowed probability of a wrong claim. costs_bound: the largest cost of an ID row; needed where errors are not 0/1.

    Raises:
        ValueError: as ``certify``; a β that is negative or infinite, an α outside (0, 1].
    """
    check_delta(delta)
    rows, taus = Rows.of(id_uncertainty, id_errors, costs_bound), as_thresholds(thresholds)
    outside = np.sort(_scores("ood_uncertainty", ood_uncertainty))
    target, mix = check_risk("risk", risk), _Mix(alpha, check_risk("beta", beta))
    if not (isinstance(alpha, int | float) and 0 < alpha <= 1):
        raise ValueError(f"alpha={alpha!r}: expected the share of ID inputs in the mix, > 0 and ≤ 1")
    order = np.lexsort((rows.cost, rows.u))
    kept = np.searchsorted(rows.u[order], taus, side="right")
    spent = np.append(0.0, np.cumsum(rows.cost[order]))[kept]
    let_in = np.searchsorted(outside, taus, side="right")
    n, m, best, bounds = len(rows.u), len(outside), -1, []
    for g in range(len(taus)):
        if rows.binary:
            own = float(binomial.clopper_pearson(int(spent[g]), int(kept[g]), delta / 3))
        else:
            own = bounded.upper_bound(rows.cost[order][: kept[g]], delta / 3, rows.most)
        bounds.append(mix.bound(own, (int(kept[g]), n), (int(let_in[g]), m), delta))
        if not kept[g] or bounds[g] > target:
            break
        best = g
    needed: int | None = 0
    if best < 0:
        seen = float(spent[0]) / int(kept[0]) if kept[0] else 0.0

        def enough(size: int) -> bool:
            """Whether the first threshold would pass on ``size`` ID rows like these, with OOD rows in proportion."""
            inside, others = round(int(kept[0]) * size / n), round(m * size / n)
            wrong = min(inside, round(seen / rows.most * inside))
            own = float(binomial.clopper_pearson(wrong, inside, delta / 3)) * rows.most
            return mix.bound(own, (inside, size), (round(int(let_in[0]) * size / n), others), delta) <= target

        possible = kept[0] and mix.risk(seen, int(kept[0]) / n, int(let_in[0]) / m) < target and seen < target
        needed = _more(enough, n) if possible else None
        if len(taus) > 1 or not kept[0]:
            none = _searched("scod", target, delta, "fixed-sequence", n, len(taus), needed, _unseen({"OOD": outside}))
            return replace(none, alpha=alpha, beta=beta)
    at = max(best, 0)
    tau, count, cost = float(taus[at]), int(kept[at]), float(spent[at])
    observed, parts = mix.risk(cost / count, count / n, int(let_in[at]) / m), outliers({"OOD": outside}, tau, delta / 3)
    found = _searched(
        "scod", target, delta, "fixed-sequence", n, len(taus), needed, parts, tau, count, cost, observed, bounds[at]
    )  # fmt: skip
    return replace(found, alpha=alpha, beta=beta)


def _more(enough: Callable[[int], bool], rows: int) -> int | None:
    """How many more rows than ``rows`` would do, within a hundredth; None if no number does."""
    low, high = rows, 2 * rows
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST_ROWS:
            return None
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high - rows


def _unseen(sets: Mapping[str, Floats]) -> tuple[Part, ...]:
    return tuple(Part(name, len(scores), 0) for name, scores in sets.items())


def _searched(
    kind: str,
    target: float,
    delta: float,
    method: str,
    rows: int,
    tested: int,
    needed: int | None,
    parts: tuple[Part, ...],
    tau: float | None = None,
    accepted: int = 0,
    errors: float = 0.0,
    observed: float | None = None,
    bound: float | None = None,
) -> Certificate:
    return Certificate(
        kind=kind,
        feasible=needed == 0,
        target=target,
        delta=delta,
        method=method,
        rows=rows,
        tau=None if needed != 0 or tau is None or np.isinf(tau) else tau,
        coverage=accepted / rows,
        accepted=accepted,
        errors=errors,
        observed=observed,
        bound=bound,
        tested=tested,
        needed=needed,
        assumption=ASSUMPTION,
        outliers=parts,
    )


def _scores(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "fiu" or np.isnan(array).any():
        raise ValueError(
            f"{name} of shape {array.shape}, {array.dtype}: expected at least one number per row and no NaN, shape (N,)"
        )
    return array.astype(np.float64)
