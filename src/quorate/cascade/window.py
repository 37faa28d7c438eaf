"""The paper's window for two stages, and the thresholds that go with it.

Source: Xia & Bouganis 2023 (arXiv 2303.08010), §3. τ is the first stage's operating point on validation data, q the share of
validation scores ≤ τ; the window is [quantile(q − width), quantile(q + width)], clamped to [0, 1], so that about 2·width of the
rows go on. Under shift τ stays and q and the quantiles are taken anew from the unlabelled stream
(:mod:`quorate.cascade.adjusting`).

Beyond the paper, each stage gets a τ of its own: averaging lowers 1 − max p, so one shared τ is mis-scaled. With the first i tie
groups accepted at the first exit and the first j at the second, both in order of uncertainty, the best pair (i, j) for the target is
found exactly by sorting and prefix sums in O(N log N). ``tau="shared"`` is the paper's single τ on the scores at exit.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade import target as targets
from quorate.cascade.exits import Exits
from quorate.cascade.policy import Policy
from quorate.cascade.temperature import fit_temperature
from quorate.cascade.uncertainty import measure
from quorate.metrics import risk_coverage, threshold_at_coverage, threshold_at_risk, threshold_at_tpr
from quorate.outputs import Outputs

Tau = Literal["own", "shared"]
Temperature = Literal["none", "fit"]


def quantile_window(uncertainty: ArrayLike, tau: float, width: float = 0.10) -> tuple[float, float]:
    """The paper's window around τ on scores (N,): quantiles (linear interpolation) at clamp(q ± width, 0, 1), q = share of scores ≤ τ.

    Raises:
        ValueError: no rows, scores that are not finite, a NaN τ, or a width outside (0, 1].
    """
    scores = np.asarray(uncertainty, np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"uncertainty of shape {scores.shape}: expected at least one finite number per row, shape (N,)")
    if not 0 < width <= 1:
        raise ValueError(f"width={width}: expected a share > 0 and ≤ 1 of the rows on each side of τ")
    if np.isnan(tau):
        raise ValueError("tau is NaN: expected a number, ±inf allowed")
    q = float((scores <= tau).mean())
    last = len(scores) - 1
    ranks = np.round(np.clip([q - width, q + width], 0, 1) * last, 9)  # (.7 − .1) · 1000 is rank 600, whatever floats make of it
    low, high = np.interp(ranks, np.arange(last + 1), np.sort(scores))
    return float(low), float(high)


def fitted(
    val: Outputs,
    *,
    target: str,
    uncertainty: str | None = None,
    width: float = 0.10,
    tau: Tau = "own",
    temperature: Temperature = "none",
) -> tuple[Policy, Exits]:
    """Fit the paper's two-stage window on validation Outputs; the policy, and what its exits say of these rows.

    Args:
        val: labelled Outputs of two stages (for ``fpr@tpr`` only a fitted temperature needs the labels). Merge more with
            ``Outputs.regroup``.
        target: see :mod:`quorate.cascade.target`; one with a threshold.
        uncertainty: default msp for ``coverage@risk`` and ``risk@coverage``, energy for ``fpr@tpr`` (msp for probabilities).
        width: the window's half width as a share of the rows.
        tau: ``"own"`` for a τ per stage (for ``fpr@tpr``, where errors play no part, it is the shared one), or ``"shared"``.
        temperature: ``"fit"`` gives each stage the T of least NLL of its joined prediction, before anything else is fitted
            (:mod:`quorate.cascade.temperature`); ``"none"`` leaves them at 1.

    Raises:
        ValueError: not two stages, a target without threshold, no labels, a risk that no threshold reaches, or a temperature to be
            fitted for an uncertainty on which it does not act.
    """
    goal = targets.parse(target)
    if goal.level is None:
        raise ValueError(
            f"target {target!r} has no threshold to put a window around: use coverage@risk, risk@coverage or fpr@tpr"
        )
    if val.stages != 2:
        remedy = (
            "give one more" if val.stages < 2 else f"merge with Outputs.regroup([1, {val.stages - 1}]), or take Outputs.prefix(2)"
        )
        raise ValueError(f"the window is fitted for two stages, these Outputs have {val.stages}: {remedy}")
    if tau not in ("own", "shared"):
        raise ValueError(f"tau={tau!r}: expected 'own' or 'shared'")
    name = uncertainty or ("energy" if goal.figure == "fpr" and val.kind == "logits" else "msp")
    warm = temperatures(val, name, temperature)
    policy = Policy.of(val, uncertainty=name, target=str(goal), temperatures=warm)
    exits = Exits.under(policy, val)
    first = exits.uncertainty[0]
    operating = threshold(first, None if goal.figure == "fpr" else exits.errors[0], goal)
    window = quantile_window(first, operating, width)
    exit_at = exits.stage([window])
    scores = exits.at_exit(exits.uncertainty, exit_at)
    if goal.figure == "fpr":
        taus = [threshold(scores, None, goal)] * 2
    else:
        errors = exits.at_exit(exits.errors, exit_at)
        taus = [threshold(scores, errors, goal)] * 2 if tau == "shared" else _own_taus(scores, errors, exit_at, goal, operating)
    policy = replace(policy, stages=(replace(policy.stages[0], window=window), policy.stages[1]))
    stages = [replace(s, tau=None if t == np.inf else float(t)) for s, t in zip(policy.stages, taus, strict=True)]
    if np.isfinite(operating):
        stages[0] = replace(stages[0], centre=operating, width=width)
    return replace(policy, stages=tuple(stages)), exits


def temperatures(val: Outputs, name: str, temperature: Temperature) -> list[float]:
    """Per stage the T of its joined prediction."""
    if temperature not in ("none", "fit"):
        raise ValueError(f"temperature={temperature!r}: expected 'none' or 'fit'")
    if temperature == "none":
        return [1.0] * val.stages
    if val.kind == "top1" or not measure(name, val.kind).scaled:
        raise ValueError(
            f"temperature='fit' does not act on {name} of {val.kind}: use msp, entropy or margin of every class's scores, or 'none'"
        )
    return [fit_temperature(val, stop) for stop in range(1, val.stages + 1)]


def threshold(scores: NDArray, errors: NDArray | None, goal: targets.Target) -> float:
    """The operating point of scores (N,) for a target with a level; without errors, or for ``fpr``, by coverage alone."""
    level = goal.level or 0.0
    if goal.figure == "fpr" or errors is None:  # midway between scores; +inf (tpr=1) would let every OOD input in
        middle = threshold_at_coverage(scores, level)
        return middle if np.isfinite(middle) else threshold_at_tpr(scores, level)
    if goal.figure == "risk":
        return threshold_at_coverage(scores, level)
    found = threshold_at_risk(scores, errors, level)
    if found is None:
        raise ValueError(_infeasible(risk_coverage(scores, errors).risk.min(), level))
    return found


def _infeasible(least: float, level: float) -> str:
    return f"no threshold reaches risk {level:g} on validation data, the least is {least:.4g}: allow more risk or give more data"


class _Exit(NamedTuple):
    """One exit's rows in order of uncertainty: what accepting the first 0, 1, … G tie groups means."""

    scores: NDArray  # (G,) distinct uncertainties
    accepted: NDArray[np.int64]  # (G+1,) rows accepted with the first g groups
    wrong: NDArray[np.int64]  # (G+1,) errors among them

    @classmethod
    def of(cls, scores: NDArray, errors: NDArray) -> _Exit:
        distinct, group = np.unique(scores, return_inverse=True)
        per_group = [np.bincount(group, minlength=len(distinct)), np.bincount(group[errors], minlength=len(distinct))]
        accepted, wrong = (np.append(0, np.cumsum(counts)) for counts in per_group)
        return cls(distinct, accepted, wrong)

    def tau(self, groups: int) -> float:
        """A threshold that accepts just the first groups: midway between data values, never on one if floats allow."""
        if groups == len(self.scores):
            return np.inf
        if groups == 0:
            return float(np.nextafter(self.scores[0], -np.inf))
        low, high = self.scores[groups - 1], self.scores[groups]
        middle = low + (high - low) / 2
        return float(middle if middle < high else low)


def _own_taus(scores: NDArray, errors: NDArray, stage: NDArray, goal: targets.Target, operating: float) -> list[float]:
    """The pair of thresholds, one per exit, that is best for the target on these rows.

    Where τ of the operating point, which lies in the window, accepts the same rows of the first exit, it stays: then rows beyond the
    data on the window's far side are judged by it too. An exit without data falls back on it.
    """
    a, b = (_Exit.of(scores[stage == k], errors[stage == k]) for k in (0, 1))
    i, j = _most_rows(a, b, goal.level or 0.0) if goal.figure == "coverage" else _least_risk(a, b, goal.level or 0.0)
    keep = int(np.searchsorted(a.scores, operating, side="right")) == i
    return [operating if keep else a.tau(i), b.tau(j) if len(b.scores) else operating]


def _most_rows(a: _Exit, b: _Exit, risk: float) -> tuple[int, int]:
    """The pair that accepts most rows with wrong / accepted ≤ risk.

    In whole numbers, so that rounding can't break the target: with p/q the fraction nearest to the risk it is q·wrong ≤ p·accepted,
    or < where p/q is above the risk, since then no fraction of so few rows lies between them.
    """
    share = Fraction(risk).limit_denominator(10**9)
    least = int(float(share) > risk)
    slack_a, slack_b = (share.numerator * e.accepted - share.denominator * e.wrong for e in (a, b))
    best_after = np.maximum.accumulate(slack_b[::-1])[::-1]  # falls with j: the last j whose slack is still enough
    j = np.searchsorted(-best_after, slack_a - least, side="right") - 1
    total = np.where(j >= 0, a.accepted + b.accepted[np.maximum(j, 0)], 0)
    i = int(total.argmax())
    if total[i] == 0:
        risks = [(e.wrong[1:] / e.accepted[1:]).min() for e in (a, b) if len(e.scores)]
        raise ValueError(_infeasible(min(risks), risk))
    return i, int(j[i])


def _least_risk(a: _Exit, b: _Exit, coverage: float) -> tuple[int, int]:
    """The pair with the least wrong / accepted that accepts at least the share ``coverage`` of all rows.

    A ratio is lowered step by step (Dinkelbach 1967): with the best pair so far at w₀ of n₀, one that makes n₀·wrong − w₀·accepted
    negative is better; the most negative is the next, until there is none. A few rounds, in whole numbers.
    """
    i, j = len(a.scores), len(b.scores)
    need = max(1, int(np.ceil(coverage * (a.accepted[i] + b.accepted[j]) - 1e-6)))  # as quorate.metrics rounds a share
    first = np.searchsorted(b.accepted, need - a.accepted)  # the least j that is enough for each i
    enough = first <= j
    while True:
        wrong, rows = a.wrong[i] + b.wrong[j], a.accepted[i] + b.accepted[j]
        gain_a, gain_b = (rows * e.wrong - wrong * e.accepted for e in (a, b))
        best_after = np.minimum.accumulate(gain_b[::-1])[::-1]
        gain = np.where(enough, gain_a + best_after[np.minimum(first, len(gain_b) - 1)], 0)
        if gain.min() >= 0:
            return i, j
        i = int(gain.argmin())
        j = int(first[i] + gain_b[first[i] :].argmin())
