"""What :meth:`quorate.Policy.fit` was asked for, checked; then fitted on validation Outputs and certified on calibration Outputs."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from quorate.cascade import target as targets
from quorate.cascade import window as paper
from quorate.cascade.fitting import Aim, Rule, fit, nested
from quorate.cascade.guarantee.policies import certify_deviation_policy, certify_policy
from quorate.cascade.policy import Policy
from quorate.outputs import Outputs


class How(NamedTuple):
    """The rule and its options."""

    rule: Rule
    uncertainty: str | None
    tau: paper.Tau
    temperature: paper.Temperature
    conformal: float | None


def cost_limit(costs: tuple[float, ...] | None, budget: float | None, max_cost: float | None) -> float | None:
    """The most that a row may cost on average, from a share of all costs or an amount. ValueError for both, or one out of range."""
    if costs is not None and not np.isfinite(sum(costs)):
        raise ValueError("the costs are too large to be added up: give them in a larger unit")
    if budget is None and max_cost is None:
        return None
    if budget is not None and max_cost is not None:
        raise ValueError("budget and max_cost: expected one of them, a share of all costs or an amount in their unit")
    for name, value in (("budget", budget), ("max_cost", max_cost)):
        if value is not None and not _number(value):
            raise ValueError(f"{name}={value!r}: expected a number")
    if costs is None:
        raise ValueError("a limit of cost needs the stages' costs: give costs= when the Outputs are made")
    if max_cost is not None:
        if not max_cost > 0:
            raise ValueError(f"max_cost={max_cost}: expected a number > 0 in the unit of the costs")
        return float(max_cost)
    assert budget is not None
    if not 0 < budget <= 1:
        raise ValueError(
            f"budget={budget}: expected a share in (0, 1] of what all stages cost together; an amount in their unit is max_cost"
        )
    return float(budget * sum(costs))


def aim_of(val: Outputs, target: str, *, budget: float | None, max_cost: float | None, **options: Any) -> Aim:
    """The aim, with its limit of cost in the unit of the costs. ValueErrors of :func:`cost_limit` and :func:`check_terms`."""
    _check_outputs({"val": val} | _named("ood", options.get("ood")), val)
    aim = Aim(targets.parse(target), limit=cost_limit(val.costs, budget, max_cost), **options)
    check_terms(val, aim)
    return aim


def check_terms(val: Outputs, aim: Aim) -> None:
    """A ValueError for limits, OOD rows, costs of errors, β or α that are out of range or play no part."""
    if aim.limits and aim.goal.figure == "fpr":
        raise ValueError(f"target {aim.goal} knows no errors: leave limits out")
    if aim.limits and aim.goal.level is None:
        raise ValueError(
            f"target {aim.goal} accepts everything, limits per class play no part: leave them out, or take coverage@risk"
        )
    if aim.ood and aim.goal.level is None:
        raise ValueError(f"target {aim.goal} accepts everything, OOD rows play no part: leave ood out")
    if aim.error_costs is not None and aim.goal.level is None and aim.limit is None and aim.rows is None:
        raise ValueError(
            f"error_costs play no part in windows for {aim.goal} without a limit of cost: give a budget, or leave them out"
        )
    width = val.values[0].shape[-1] if not isinstance(val.values[0], tuple) else None
    if aim.limits is not None and not isinstance(aim.limits, Mapping):
        raise ValueError(f"limits is {type(aim.limits).__name__}: expected a dict from class numbers to their largest risk")
    for said, limit in (aim.limits or {}).items():
        whole = isinstance(said, int | np.integer) and not isinstance(said, bool)
        known = whole and said >= 0 and (width is None or said < width)
        if not known or not _number(limit) or not limit >= 0:
            raise ValueError(f"limits={{{said!r}: {limit!r}}}: expected class numbers of these Outputs, each with a risk ≥ 0")
    if isinstance(aim.seed, bool) or not isinstance(aim.seed, int | np.integer) or aim.seed < 0:
        raise ValueError(f"seed={aim.seed!r}, expected an integer ≥ 0")
    scod = bool(aim.ood) and aim.goal.figure != "fpr"
    if not scod and (aim.beta != 1.0 or aim.alpha is not None):
        raise ValueError(
            f"beta={aim.beta}, alpha={aim.alpha} play no part without OOD rows under a selective target: give ood, or leave them out"
        )


def choose(val: Outputs, aim: Aim, how: How, cal: Outputs | None, cal_ood: Mapping[str, Outputs] | None) -> Policy:
    """The fitted policy, with a certificate where calibration Outputs are given. ValueErrors as :meth:`quorate.Policy.fit`."""
    if cal_ood and cal is None:
        raise ValueError("cal_ood without cal: give the calibration Outputs of the in-distribution rows too")
    _check_outputs({} if cal is None else {"cal": cal} | _named("cal_ood", cal_ood), val)
    if cal is val:
        raise ValueError("cal are the validation rows, which choose: give others, rows that chose nothing")
    if cal_ood and not aim.ood and aim.goal.figure != "fpr":
        raise ValueError("cal_ood without ood: the thresholds would know nothing of OOD rows, give both or none")
    if how.conformal is not None:
        return _conformal(val, aim, how, cal)
    if how.rule == "random" and cal is not None:
        raise ValueError("window='random' is a baseline and gets no certificate: leave cal out")
    policy = fit(val, aim, how.rule, how.uncertainty, how.tau, how.temperature)
    if cal is None or aim.goal.figure == "nll":
        return policy
    if aim.ood and aim.goal.figure != "fpr" and not cal_ood:
        raise ValueError("OOD rows are part of the risk: give cal_ood, OOD rows for the calibration, too")
    terms: dict[str, Any] = {"costs": aim.error_costs, "limits": aim.limits, "cal_ood": cal_ood}
    if aim.ood and aim.goal.figure == "risk":
        return policy  # the fixed thresholds' risk in a mix has no certificate of its own
    return certify_policy(policy, cal, delta=aim.delta, beta=aim.beta, alpha=share_of(val, aim.ood, aim.alpha), **terms)


def share_of(val: Outputs, ood: Mapping[str, Outputs] | None, alpha: float | None) -> float | None:
    """The share of ID rows in the mix that a policy was chosen for, which is the one it is certified for: that of validation rows."""
    if alpha is not None or not ood:
        return alpha
    return val.n / (val.n + sum(part.n for part in ood.values()))


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real)


def _named(what: str, sets: Any) -> dict[str, Any]:
    if sets is not None and not isinstance(sets, Mapping):
        raise ValueError(f"{what} is {type(sets).__name__}: expected a dict from names of OOD sets to Outputs")
    return {f"{what}[{name!r}]": part for name, part in (sets or {}).items()}


def _check_outputs(parts: Mapping[str, Any], val: Any) -> None:
    """A ValueError unless all are Outputs over the classes of the validation Outputs."""
    for name, part in parts.items():
        if not isinstance(part, Outputs):
            raise ValueError(f"{name} is {type(part).__name__}: expected Outputs")
        for key in ("width", "classes"):
            here, there = getattr(part, key), getattr(val, key)
            if here != there:
                raise ValueError(
                    f"{name} has {key}={here!r}, val {there!r}: give outputs of the same models over the same classes"
                )


def _conformal(val: Outputs, aim: Aim, how: How, cal: Outputs | None) -> Policy:
    if how.rule != "optimal" or aim.deviation is not None or aim.limit is not None:
        raise ValueError(
            "conformal: it chooses among optimal windows, give window='optimal' and no deviation, budget or max_cost"
        )
    if how.tau != "own":
        raise ValueError(f"tau={how.tau!r}: optimal windows have a τ of every stage's own, leave it out")
    if cal is None:
        raise ValueError("conformal control needs calibration rows: give cal")
    family = nested(val, aim, how.uncertainty, how.temperature)
    return certify_deviation_policy(family, cal, how.conformal or 0.0)
