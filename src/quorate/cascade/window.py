"""The paper's window for two stages, and the thresholds that go with it.

Source: Xia & Bouganis 2023 (arXiv 2303.08010), §3. τ is the first stage's operating point on validation data, q the share of
validation scores ≤ τ; the window is [quantile(q − width), quantile(q + width)], clamped to [0, 1], so that about 2·width of the
rows go on. Under shift τ stays and q and the quantiles are taken anew from the unlabelled stream (:func:`adjust`).

Beyond the paper, each stage gets a τ of its own: averaging lowers 1 − max p, so one shared τ is mis-scaled. With i rows accepted at
the first exit and j at the second, both in order of uncertainty, the best pair (i, j) for the target is found by sorting and
prefix sums in O(N log N). ``tau="shared"`` is the paper's single τ on the scores at exit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade import target as targets
from quorate.cascade.cascade import simulate
from quorate.cascade.policy import Policy
from quorate.cascade.uncertainty import uncertainty as uncertainty_of
from quorate.metrics import risk_coverage, threshold_at_coverage, threshold_at_risk, threshold_at_tpr
from quorate.outputs import Outputs

Tau = Literal["own", "shared"]


def quantile_window(uncertainty: ArrayLike, tau: float, width: float = 0.10) -> tuple[float, float]:
    """The paper's window around τ on scores (N,): quantiles (linear interpolation) at clamp(q ± width, 0, 1), q = share of scores ≤ τ."""
    scores = np.asarray(uncertainty, np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"uncertainty of shape {scores.shape}: expected at least one finite number per row, shape (N,)")
    if not 0 < width <= 1:
        raise ValueError(f"width={width}: expected a share > 0 and ≤ 1 of the rows on each side of τ")
    q = float((scores <= tau).mean())
    low, high = np.quantile(scores, np.clip([q - width, q + width], 0, 1))
    return float(low), float(high)


def fit(val: Outputs, *, target: str, uncertainty: str | None = None, width: float = 0.10, tau: Tau = "own") -> Policy:
    """Fit the paper's two-stage window on validation Outputs.

    Args:
        val: labelled Outputs of two stages (labels are not needed for ``fpr@tpr``). Merge more with ``Outputs.regroup``.
        target: see :mod:`quorate.cascade.target`; one with a threshold.
        uncertainty: default msp for ``coverage@risk`` and ``risk@coverage``, energy for ``fpr@tpr`` (msp for probabilities).
        width: the window's half width as a share of the rows.
        tau: ``"own"`` for a τ per stage (for ``fpr@tpr``, where errors play no part, it is the shared one), or ``"shared"``.

    Raises:
        ValueError: not two stages, a target without threshold, no labels, or a risk that no threshold reaches.
    """
    goal = targets.parse(target)
    if goal.level is None:
        raise ValueError(
            f"target {target!r} has no threshold to put a window around: use coverage@risk, risk@coverage or fpr@tpr"
        )
    if val.stages != 2:
        raise ValueError(
            f"the window is fitted for two stages, these Outputs have {val.stages}: merge with Outputs.regroup, e.g. [1, {val.stages - 1}]"
        )
    if tau not in ("own", "shared"):
        raise ValueError(f"tau={tau!r}: expected 'own' or 'shared'")
    name = uncertainty or ("energy" if goal.figure == "fpr" and val.kind == "logits" else "msp")
    first = uncertainty_of(val, name, stop=1)
    operating = _threshold(first, None if goal.figure == "fpr" else val.errors(1), goal)
    window = quantile_window(first, operating, width)
    policy = Policy.of(val, [window], uncertainty=name, target=str(goal))
    routed = simulate(policy, val)
    if goal.figure == "fpr":
        taus = [_threshold(routed.uncertainty, None, goal)] * 2
    else:
        errors = routed.label != val.truth()
        if tau == "shared":
            taus = [_threshold(routed.uncertainty, errors, goal)] * 2
        else:
            taus = _own_taus(routed.uncertainty, errors, routed.stage, goal)
    stages = [replace(s, tau=None if t == np.inf else float(t)) for s, t in zip(policy.stages, taus, strict=True)]
    return replace(policy, stages=tuple(stages))


def adjust(policy: Policy, outputs: Outputs, width: float = 0.10) -> Policy:
    """The policy with its window taken anew around the first stage's τ on unlabelled Outputs under shift; τ stays (paper, §3)."""
    if len(policy.stages) != 2:
        raise ValueError(f"the window is adjusted for two stages, this policy has {len(policy.stages)}")
    first, last = policy.stages
    if first.tau is None:
        raise ValueError("the policy accepts everything (tau is None), there is no τ to put a window around")
    stage = outputs.prefix(1)
    if stage.names != (first.name,):
        raise ValueError(
            f"the policy's first stage is {first.name!r}, these Outputs begin with {stage.names[0]!r}: give the same pool"
        )
    scores = uncertainty_of(stage, policy.uncertainty, temperature=first.temperature)
    return replace(policy, stages=(replace(first, window=quantile_window(scores, first.tau, width)), last))


def _threshold(scores: NDArray, errors: NDArray | None, goal: targets.Target) -> float:
    level = goal.level or 0.0
    if goal.figure == "fpr" or errors is None:
        return threshold_at_tpr(scores, level)
    if goal.figure == "risk":
        return threshold_at_coverage(scores, level)
    found = threshold_at_risk(scores, errors, level)
    if found is None:
        raise ValueError(_infeasible(risk_coverage(scores, errors).risk.min(), level))
    return found


def _infeasible(least: float, level: float) -> str:
    return f"no threshold reaches risk {level:g} on validation data, the least is {least:.4g}: allow more risk or give more data"


class _Exit(NamedTuple):
    """One exit's rows in order of uncertainty: what accepting the first 0, 1, … tie groups means."""

    scores: NDArray  # (G,) distinct uncertainties
    accepted: NDArray  # (G+1,) rows accepted with the first g groups
    wrong: NDArray  # (G+1,) errors among them

    @classmethod
    def of(cls, scores: NDArray, errors: NDArray) -> _Exit:
        order = np.argsort(scores, kind="stable")
        ranked, cumulated = scores[order], np.cumsum(errors[order], dtype=np.float64)
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, np.int64)
        return cls(ranked[ends], np.append(0, ends + 1), np.append(0.0, cumulated[ends]))

    def tau(self, groups: int) -> float:
        """A threshold that accepts just the first groups: midway between data values, never on one if floats allow."""
        if groups == len(self.scores):
            return np.inf
        if groups == 0:
            return float(np.nextafter(self.scores[0], -np.inf))
        low, high = self.scores[groups - 1], self.scores[groups]
        middle = low + (high - low) / 2
        return float(middle if middle < high else low)


def _own_taus(scores: NDArray, errors: NDArray, stage: NDArray, goal: targets.Target) -> list[float]:
    """The pair of thresholds, one per exit, that is best for the target on these rows."""
    level, n = goal.level or 0.0, len(scores)
    a, b = (_Exit.of(scores[stage == k], errors[stage == k]) for k in (0, 1))
    if goal.figure == "coverage":  # most rows with errors ≤ risk · rows: slack(i) + slack(j) ≥ 0
        slack_a, slack_b = level * a.accepted - a.wrong, level * b.accepted - b.wrong
        best_after = np.maximum.accumulate(slack_b[::-1])[::-1]  # falls with j: the last j whose slack is still enough
        j = np.searchsorted(-best_after, slack_a + 1e-9, side="right") - 1
        total = np.where(j >= 0, a.accepted + b.accepted[np.maximum(j, 0)], 0)
        i = int(total.argmax())
        if total[i] == 0:
            raise ValueError(_infeasible(_least_risk(a, b), level))
    else:  # fewest wrong among the accepted with at least ⌈coverage · n⌉ of them
        need = int(np.ceil(level * n - 1e-9))
        j = np.searchsorted(b.accepted, need - a.accepted)
        enough = j < len(b.accepted)
        j = np.minimum(j, len(b.accepted) - 1)
        risk = np.where(enough, (a.wrong + b.wrong[j]) / np.maximum(a.accepted + b.accepted[j], 1), np.inf)
        i = int(risk.argmin())
    return [a.tau(i), b.tau(int(j[i]))]


def _least_risk(a: _Exit, b: _Exit) -> float:
    return min(float((e.wrong[1:] / e.accepted[1:]).min()) for e in (a, b) if len(e.scores))
