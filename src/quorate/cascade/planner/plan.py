"""Plan: members, order, joins, windows and thresholds for a target from stored Outputs of a pool, as a Pareto front of cost and figure.

Sources: Xia & Bouganis 2023 (arXiv 2303.08010) for windows; Wang et al. 2022 (arXiv 2012.01988) for committees; Chen, Zaharia & Zou 2020
(arXiv 2006.07512) for the choice among priced services. Validation rows choose everything; calibration rows only certify the short
list, every plan at an equal share of δ (Bonferroni), so that all certificates hold together with probability ≥ 1 − δ and any plan may be
taken after a look at all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade import target as targets
from quorate.cascade.choosing import check_terms, cost_limit, share_of
from quorate.cascade.exits import Exits
from quorate.cascade.fitting import Aim as Terms
from quorate.cascade.fitting import policy_of
from quorate.cascade.guarantee.certificate import Certificate
from quorate.cascade.guarantee.policies import certify_policy
from quorate.cascade.planner.committees import Aim, Committees
from quorate.cascade.planner.front import Option, aims, crossed, options, pareto, refit, thinned
from quorate.cascade.planner.heldout import HeldOut
from quorate.cascade.planner.pool import Pool, check_like, read_pool
from quorate.cascade.planner.search import PRICES, Search
from quorate.cascade.planner.space import Chain, Space
from quorate.cascade.policy import Join, Policy
from quorate.cascade.solving import Solved
from quorate.cascade.task import Figures, Task
from quorate.cascade.temperature import fit_temperature
from quorate.cascade.uncertainty import measure
from quorate.outputs import Outputs

SAMPLE = 10_000  # rows that chains are compared on
FLOATS = 40_000_000  # scores that may be held at once; with more classes fewer rows
SCREENED = 8_000_000  # chains × rows of an exhaustive search's first pass
EXHAUSTIVE = 6  # members up to which every chain is tried
MOST_CHAINS = 20_000  # and chains

Joins = Literal["mean", "replace", "both"]
Pools = Mapping[str, Mapping[str, Outputs]]


@dataclass(frozen=True, eq=False)
class Plan:
    """One way to spend: a policy with what it comes to on validation rows, which chose it, and its certificate.

    Attributes:
        policy: over the stages of :func:`quorate.cascade.planner.join_pool`.
        figures: target's figure, coverage, risk and cost per row on validation rows, before certification moves thresholds.
        reach: (K,) the share of the traffic that reaches each stage.
        cost_share: the cost as a share of what all members of the pool cost together.
        delta: with which probability, at most, any certificate of the list is wrong; None without certificates. Each one's own δ is
            this by the number of plans.
    """

    policy: Policy
    figures: Figures
    reach: tuple[float, ...]
    cost_share: float
    delta: float | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """The members' names in order."""
        return tuple(stage.name for stage in self.policy.stages)

    @property
    def certificate(self) -> Certificate | None:
        """What calibration rows vouch for."""
        return None if self.policy.certificate is None else Certificate.from_dict(self.policy.certificate)


def plan(
    pool: Mapping[str, Outputs],
    target: str,
    *,
    budget: float | None = None,
    max_cost: float | None = None,
    cal: Mapping[str, Outputs] | None = None,
    ood: Pools | None = None,
    cal_ood: Pools | None = None,
    uncertainty: str | None = None,
    delta: float = 0.05,
    beta: float = 1.0,
    alpha: float | None = None,
    error_costs: ArrayLike | None = None,
    limits: Mapping[int, float] | None = None,
    joins: Joins = "both",
    most: int = 4,
    search: Literal["auto", "exhaustive", "beam"] = "auto",
    beam: int = 6,
    front: int = 10,
    temperature: Literal["none", "fit"] = "none",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Plan]:
    """Plans for a target, by rising cost, each better than all cheaper ones.

    Args:
        pool: names → validation Outputs on the same rows (matched by ids), labelled (but for ``fpr@tpr``), with costs in one unit. Several
            stages in one Outputs are several members ``name/stage``.
        target: see :mod:`quorate.cascade.target`.
        budget: mean cost per row at most, as a share in (0, 1] of what all members together cost.
        max_cost: the same in the unit of the costs.
        cal: the same pool on calibration rows, used to certify the plans and for nothing else (no certificates for ``nll``, nor for
            ``risk@coverage`` in a mix with OOD rows).
        ood: OOD set → the pool on it; needed for ``fpr@tpr``, makes selective targets SCOD. cal_ood: for the certificates.
        uncertainty: default energy for ``fpr@tpr`` of logits, else msp.
        delta: the probability that any certificate of the list is wrong, at most.
        beta, alpha: of SCOD, see :func:`quorate.cascade.task.make_task`.
        error_costs: (C,) per true class or (C, C) per (true, said), instead of 1 per error.
        limits: class → most risk among the rows accepted with this label, for selective targets; thresholds keep them, chains are
            searched without.
        joins: how later members join: averaged with the earlier (``"mean"``), in their stead (``"replace"``; the only way where
            ``combine="last"``), or whichever is better.
        most: stages at most. front: plans at most.
        search: ``"exhaustive"``: every chain; ``"beam"``: the best ``beam`` chains are made longer, then local search; ``"auto"``:
            every chain up to 6 members and 20,000 chains.
        temperature: ``"fit"`` gives every stage the T of least NLL of its committee.
        seed: of the sample of at most 10,000 rows that chains are compared on.
        progress: called with (done, total).

    Returns:
        At least one plan.

    Raises:
        ValueError: pools that don't go together, both or bad limits of cost, one below the cheapest member's (named), a target that no
            plan meets (the least risk is named), arguments out of range or without effect.
    """
    members = read_pool(pool, "pool", costs=True)
    goal = targets.parse(target)
    _check(goal, members, joins, most, search, beam, front, temperature, limits, delta)
    default = "energy" if goal.figure == "fpr" and members.outputs.kind == "logits" else "msp"
    aim = Aim(goal, uncertainty or default, error_costs, beta, alpha, limits, temperature == "fit")
    if aim.temperature and (members.outputs.kind == "top1" or not measure(aim.uncertainty, members.outputs.kind).scaled):
        raise ValueError(
            f"temperature='fit' does not act on {aim.uncertainty} of {members.outputs.kind}: use msp, entropy or margin of every class's "
            "scores, or 'none'"
        )
    outside = _outside("ood", ood, members)
    judged = None if cal is None else _like("cal", cal, members)
    judged_outside = _outside("cal_ood", cal_ood, members)
    _check_calibration(goal, judged, outside, judged_outside, limits)
    mix: dict[str, Any] = {"ood": outside, "beta": beta, "alpha": alpha}
    check_terms(members.outputs, Terms(goal, error_costs=error_costs, limits=limits, rows=members.outputs.n, seed=seed, **mix))
    limit = _limit(members, budget, max_cost)
    space = Space(members.costs, members.after, _joins(members, joins), most, limit)
    exhaustive = search == "exhaustive" or (search == "auto" and len(members.names) <= EXHAUSTIVE and space.size() <= MOST_CHAINS)
    total = PRICES + front

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, total)

    table = _table(members, outside, aim, SAMPLE, seed)
    small = max(1000, SCREENED // space.size())
    screen = _table(members, outside, aim, small, seed) if exhaustive and small < SAMPLE else None
    found = Search(table, HeldOut(table, seed), space, limit, beam)
    found.run(exhaustive, screen, tell)
    shortlist = _fitted(members, outside, aim, options(table, found.found, space.singles()), limit, front, seed, tell)
    share = delta / len(shortlist)
    plans = []
    for chain, temperatures, task, solved in shortlist:
        policy = _policy(members, chain, temperatures, task, solved, aim, None if judged is None else judged.n, share)
        certified = judged is not None and goal.figure != "nll" and not (outside and goal.figure == "risk")
        if certified and judged is not None:
            terms: dict[str, Any] = {"costs": error_costs, "limits": limits, "cal_ood": judged_outside or None}
            shown = share_of(members.outputs, outside, alpha)
            policy = certify_policy(policy, judged, delta=share, beta=beta, alpha=shown, **terms)
        traffic = [float(task.traffic[solved.exit_at >= k].sum() / task.traffic.sum()) for k in range(len(chain.members))]
        spent = solved.figures.cost / (sum(members.costs) or 1.0)
        plans.append(Plan(policy, solved.figures, tuple(traffic), spent, delta if certified else None))
    tell(total)
    return plans


Fit = tuple[Chain, list[float], Task, Solved]


def _fitted(
    pool: Pool, outside: Mapping[str, Outputs], aim: Aim, found: list[Option], limit: float, front: int, seed: int,
    tell: Callable[[int], None],
) -> list[Fit]:  # fmt: skip
    """The short list on all rows."""
    if not any(option.feasible for option in found):
        found = [option._replace(feasible=True) for option in found]  # all rows may still do what the sample can't
    sign = 1.0 if aim.goal.figure in ("coverage", "accuracy") else -1.0
    wanted = sorted(aims(found, sign, limit, front), key=lambda each: (each[1], each[0]))
    fits: list[Fit] = []
    at_limit: list[tuple[float, Fit]] = []
    for done, (cost, chain) in enumerate(wanted):
        tell(PRICES + done * front // len(wanted))
        if not done or wanted[done - 1][1] != chain:
            temperatures = _temperatures(pool, chain) if aim.temperature else [1.0] * len(chain.members)
            task = _task(pool, outside, aim, chain, temperatures)
        solved = refit(task, cost, limit, aim.limits, seed)
        if solved is not None and cost == limit and len(chain.members) > 1:
            at_limit.append((crossed(task, limit, aim.limits, seed), (chain, temperatures, task, solved)))
        elif solved is not None:
            fits.append((chain, temperatures, task, solved))
    fits += [fit for _, fit in sorted(at_limit, key=lambda each: (-each[0], len(each[1][0].members)))[:1]]
    met = [fit for fit in fits if fit[3].feasible]
    if not met:
        least = min(float(fit[3].steps.risk[1:].min()) for fit in fits)
        raise ValueError(
            f"no plan reaches {aim.goal} on validation data, the least risk is {least:.4g}: allow more risk or cost, or give more members"
        )
    costs, values = [fit[3].figures.cost for fit in met], [sign * fit[3].figures.figure for fit in met]
    met = [met[i] for i in pareto(costs, values)]
    costs, values = [fit[3].figures.cost for fit in met], [sign * fit[3].figures.figure for fit in met]
    return [met[i] for i in thinned(costs, values, front, [i for i, fit in enumerate(met) if len(fit[0].members) == 1])]


def _task(pool: Pool, outside: Mapping[str, Outputs], aim: Aim, chain: Chain, temperatures: Sequence[float]) -> Task:
    """The task of a chain on all rows."""

    def exits(outputs: Outputs, nll: bool) -> Exits:
        return Exits.of(outputs, [pool.names[m] for m in chain.members], aim.uncertainty, list(chain.joins), temperatures, nll)

    return aim.task(
        exits(pool.outputs, aim.goal.figure == "nll"), {name: exits(outputs, False) for name, outputs in outside.items()}
    )


def _temperatures(pool: Pool, chain: Chain) -> list[float]:
    return [fit_temperature(pool.chain(sorted(committee))) for committee in chain.committees()]


def _policy(
    pool: Pool, chain: Chain, temperatures: Sequence[float], task: Task, solved: Solved, aim: Aim, rows: int | None, delta: float
) -> Policy:
    return policy_of(
        solved, task, names=[pool.names[m] for m in chain.members], joins=list(chain.joins), temperatures=temperatures,
        costs=[pool.costs[m] for m in chain.members], kinds=[pool.kinds[m] for m in chain.members], uncertainty=aim.uncertainty,
        kind=pool.outputs.kind, combine=pool.outputs.combine, rows=rows, delta=delta, limits=aim.limits,
    )  # fmt: skip


# --- the rows that chains are compared on ---


def _table(pool: Pool, outside: Mapping[str, Outputs], aim: Aim, most: int, seed: int) -> Committees:
    """The pool's committees on a sample of its rows; the share of ID rows in the mix stays that of all rows."""
    width = len(pool.names) * (pool.outputs.width or 1)
    most = max(min(most, FLOATS // width), 1000)
    rng = np.random.default_rng(seed)
    alpha = aim.alpha
    if outside and aim.alpha is None and aim.goal.figure in ("coverage", "risk"):
        alpha = pool.outputs.n / (pool.outputs.n + sum(part.n for part in outside.values()))
    total = sum(part.n for part in outside.values())
    shares = {name: max(1, most * part.n // max(total, most)) for name, part in outside.items()}
    few = {name: part.rows(np.sort(rng.choice(part.n, shares[name], replace=False))) for name, part in outside.items()}
    terms = {**aim.__dict__, "alpha": alpha}
    return Committees(pool, stratified(pool.outputs.labels, pool.outputs.n, most, rng), few, Aim(**terms))


def stratified(labels: NDArray | None, rows: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most so many rows, drawn at random with every class's share kept; rising."""
    if rows <= most:
        return np.arange(rows)
    order = rng.permutation(rows)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[(np.arange(most) * (rows / most)).astype(np.int64)])


# --- arguments ---


def _check(
    goal: targets.Target, pool: Pool, joins: str, most: int, search: str, beam: int, front: int, temperature: str,
    limits: Mapping[int, float] | None, delta: float,
) -> None:  # fmt: skip
    for name, value, known in (
        ("joins", joins, ("mean", "replace", "both")), ("search", search, ("auto", "exhaustive", "beam")),
        ("temperature", temperature, ("none", "fit")),
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
    for name, number in (("most", most), ("beam", beam), ("front", front)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"{name}={number!r}: expected a whole number ≥ 1")
    if not (isinstance(delta, int | float) and 0 < delta < 1):
        raise ValueError(f"delta={delta}: expected a probability between 0 and 1, such as 0.05")
    if pool.outputs.n < 2:
        raise ValueError("the pool has 1 row: members are chosen on half of the rows and judged on the others, give more")
    if goal.figure != "fpr" and pool.outputs.labels is None:
        raise ValueError(f"target {goal} needs labelled Outputs: give labels= when they are made")
    if goal.figure == "nll" and pool.outputs.kind == "top1":
        raise ValueError("target nll needs scores of every class, the pool gives only the top one: use accuracy")
    if limits and (goal.level is None or goal.figure == "fpr"):
        raise ValueError(f"target {goal} rejects no errors: leave limits out, or take coverage@risk or risk@coverage")
    if joins == "mean" and pool.outputs.combine == "last":
        raise ValueError("joins='mean' with members of which only the last counts (top1, or combine='last'): use 'replace'")


def _joins(pool: Pool, joins: Joins) -> tuple[Join, ...]:
    if pool.outputs.combine == "last":
        return ("replace",)
    return ("mean", "replace") if joins == "both" else (joins,)


def _like(what: str, given: Mapping[str, Outputs], pool: Pool) -> Outputs:
    other = read_pool(given, what)
    check_like(what, other, pool)
    return other.outputs


def _outside(what: str, sets: Pools | None, pool: Pool) -> dict[str, Outputs]:
    return {name: _like(f"{what}[{name!r}]", part, pool) for name, part in (sets or {}).items()}


def _check_calibration(
    goal: targets.Target, cal: Outputs | None, outside: Mapping[str, Outputs], judged: Mapping[str, Outputs], limits: Any
) -> None:
    if judged and cal is None:
        raise ValueError("cal_ood without cal: give the pool on in-distribution calibration rows too")
    if goal.figure == "fpr" and not outside:
        raise ValueError(f"target {goal}: no OOD data to tell members apart by, give ood={{set: pool on it}}")
    if cal is not None and goal.figure not in ("nll", "fpr"):
        if cal.labels is None:
            raise ValueError("cal has no labels: errors are counted on it, give labels= when its Outputs are made")
        if goal.figure == "coverage" and bool(outside) != bool(judged):
            raise ValueError("ood and cal_ood: expected both or none, OOD rows are part of the risk that is certified")
        if limits and outside:
            raise ValueError("limits per class have no certificate in a mix with OOD rows: leave out limits, ood, or cal")


def _limit(pool: Pool, budget: float | None, max_cost: float | None) -> float:
    limit = cost_limit(pool.costs, budget, max_cost)
    if limit is None:
        return math.inf
    costs, name = min((cost, name) for cost, name, after in zip(pool.costs, pool.names, pool.after, strict=True) if after is None)
    if limit < costs * (1 - 1e-12):
        raise ValueError(
            f"a cost of {limit:g} per row is less than {costs:g}, what the cheapest member {name!r} costs: allow that at least"
        )
    return limit
