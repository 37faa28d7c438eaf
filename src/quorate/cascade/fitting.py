"""Fitting a policy on validation Outputs: which window rule, which thresholds, which sequence to certify; ``Policy.fit``.

=============  ======================================================================================================
window         who goes on
=============  =====================================================================================================================
``paper``      the quantiles at ± ``width`` around the operating point (Xia & Bouganis 2023, arXiv 2303.08010, §3), at every stage but
               the last
``optimal``    the fewest rows for a bounded ``deviation`` from the full ensemble, which needs no labels but those of the target; or
               the best target within a ``budget``. With neither, the deviation that the paper's window has
``single``     the same among single-threshold cascades: all that is less sure than so much (Wang et al. 2022, arXiv 2012.01988)
``agreement``  the same, by how many members vote against the winner; by default whoever is not unanimous (cf. Kolawole et al. 2024,
               arXiv 2407.02348); the first stage needs two members
``random``     rows drawn at random: what a window has to beat
=============  =====================================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade import target as targets
from quorate.cascade import window as paper
from quorate.cascade.cuts import Groups
from quorate.cascade.deviation import Imitation, deviations, imitate
from quorate.cascade.exits import Exits
from quorate.cascade.guarantee.start import start
from quorate.cascade.ladder import Taus, on_sequence
from quorate.cascade.policy import Join, Policy, StagePolicy, Window
from quorate.cascade.solving import Limits, Solved, under_windows, within_cost
from quorate.cascade.task import Task, make_task
from quorate.combination import Combine, Kind
from quorate.outputs import Outputs

Rule = Literal["paper", "optimal", "single", "agreement", "random"]
RULES: tuple[Rule, ...] = ("paper", "optimal", "single", "agreement", "random")
VECTORS = 100  # of thresholds in a sequence
CAUTION = (
    0.95  # the start is looked for at this share of the risk: validation rows, which chose the windows, show too little of it
)


@dataclass(frozen=True, eq=False)
class Aim:
    """What a policy is fitted for, beside the validation Outputs: see :meth:`quorate.Policy.fit`."""

    goal: targets.Target
    width: float = 0.10
    deviation: float | None = None
    limit: float | None = None
    ood: Mapping[str, Outputs] | None = None
    error_costs: ArrayLike | None = None
    limits: Limits | None = None
    beta: float = 1.0
    alpha: float | None = None
    delta: float = 0.05
    rows: int | None = None
    seed: int = 0

    def task(self, exits: Exits, outside: Mapping[str, Exits]) -> Task:
        return make_task(self.goal, exits, outside, self.error_costs, self.beta, self.alpha)


def fit(val: Outputs, aim: Aim, rule: Rule, uncertainty: str | None, tau: paper.Tau, temperature: paper.Temperature) -> Policy:
    """A policy of one of the rules above. ValueErrors as :meth:`quorate.Policy.fit`."""
    _check(val, aim, rule)
    if rule == "paper" and val.stages == 2 and not (aim.ood or aim.limits or aim.error_costs is not None):
        policy, exits = paper.fitted(
            val, target=str(aim.goal), uncertainty=uncertainty, width=aim.width, tau=tau, temperature=temperature
        )
        return _sequenced(policy, exits, {}, aim)
    if tau != "own":
        raise ValueError(f"tau={tau!r}: only the paper's window of two stages, without costs, limits or OOD rows, has a shared τ")
    default = "energy" if aim.goal.figure == "fpr" and val.kind == "logits" else "msp"
    name = uncertainty or ("variation_ratio" if rule == "agreement" else default)
    warm = paper.temperatures(val, name, temperature)
    blank = Policy.of(val, uncertainty=name, target=str(aim.goal), temperatures=warm)
    nll = aim.goal.figure == "nll"
    exits = Exits.under(blank, val, nll)
    outside = {key: Exits.under(blank, outputs) for key, outputs in (aim.ood or {}).items()}
    if rule == "paper":
        return _paper(blank, exits, outside, aim)
    if rule == "random":
        return _random(blank, exits, outside, aim)
    single = rule in ("single", "agreement")
    if aim.limit is not None:
        task = aim.task(exits, outside)
        solved = within_cost(task, aim.limit, single, aim.limits, aim.seed)
        return _solved(blank, solved, task, aim)
    if rule == "agreement" and aim.deviation is None:
        windows = [_disagreeing(exits.uncertainty[k]) for k in range(exits.count - 1)]
        task = aim.task(exits, outside)
        return _solved(blank, under_windows(task, windows, None, aim.limits), task, aim)
    return _imitating(blank, exits, outside, aim, single)


def policy_of(
    solved: Solved,
    task: Task,
    *,
    names: Sequence[str],
    joins: Sequence[Join],
    temperatures: Sequence[float],
    costs: Sequence[float],
    kinds: Sequence[Literal["logits", "probs"] | None],
    uncertainty: str,
    kind: Kind,
    combine: Combine,
    rows: int | None = None,
    delta: float = 0.05,
    limits: Limits | None = None,
) -> Policy:
    """A solution as a policy, with the sequence of thresholds that a calibration sample of ``rows`` will test.

    Raises:
        ValueError: no threshold reaches the target (the least risk is named), or what :class:`Policy` refuses.
    """
    windows = [*solved.windows, None]
    stages = tuple(
        StagePolicy(name, join, temperature, window, tau, cost, kind=own)
        for name, join, temperature, window, tau, cost, own in zip(
            names, joins, temperatures, windows, solved.taus, costs, kinds, strict=True
        )
    )
    blank = Policy(stages, uncertainty, kind, combine, str(task.goal))
    return _solved(blank, solved, task, Aim(task.goal, rows=rows, delta=delta, limits=limits))


def nested(
    val: Outputs, aim: Aim, uncertainty: str | None = None, temperature: paper.Temperature = "none", count: int = 40
) -> list[Policy]:
    """Policies with windows from none to all, each holding the ones before, for conformal control of the deviation.

    The windows are the cheapest on validation rows for falling shares that deviate, made to hold each other; thresholds are the same
    in all.
    """
    default = "energy" if aim.goal.figure == "fpr" and val.kind == "logits" else "msp"
    name = uncertainty or default
    blank = Policy.of(val, uncertainty=name, target=str(aim.goal), temperatures=paper.temperatures(val, name, temperature))
    exits = Exits.under(blank, val)
    outside = {key: Exits.under(blank, outputs) for key, outputs in (aim.ood or {}).items()}
    full = _full_tau(exits, outside, aim)
    labels = aim.goal.figure != "fpr"
    none = imitate(exits, full, 1.0, labels)
    shares = none.deviation * np.linspace(1.0, 0.0, count) ** 2
    found = [imitate(exits, full, float(share), labels) for share in shares]
    begun = next((each for each in found if any(window is not None for window in each.windows)), found[0])
    family: list[Policy] = []
    held: list[Window | None] = [None] * (exits.count - 1)
    for each in [*found, Imitation(((None, None),) * (exits.count - 1), begun.taus, 0.0, 0.0)]:
        held = [_hull(one, other) for one, other in zip(held, each.windows, strict=True)]
        policy = _placed(blank, held, begun.taus)
        if not family or policy != family[-1]:
            family.append(policy)
    return family


# --- the rules ---


def _check(val: Outputs, aim: Aim, rule: Rule) -> None:
    if rule not in RULES:
        raise ValueError(f"window={rule!r}: expected one of {', '.join(RULES)}")
    if val.stages < 2:
        raise ValueError("the Outputs have 1 stage: a window is between stages, give one more")
    if rule == "agreement" and not isinstance(val.values[0], tuple) and len(val.values[0]) < 2:
        raise ValueError(
            f"window='agreement' counts votes, the first stage {val.names[0]!r} has 1 member: put two in it (Outputs.grouped_as), or "
            "take 'single'"
        )
    if aim.deviation is not None and aim.limit is not None:
        raise ValueError(
            "deviation and a limit of cost: expected one of them, either as the full ensemble or as good as a cost allows"
        )
    if aim.deviation is not None and not 0 <= aim.deviation <= 1:
        raise ValueError(f"deviation={aim.deviation}: expected a share of the rows in [0, 1]")
    if rule == "paper" and (aim.deviation is not None or aim.limit is not None):
        raise ValueError("the paper's window has a width and no deviation or budget: take window='optimal', or give width alone")
    if aim.limit is not None and val.costs is None:
        raise ValueError("a budget needs the stages' costs: give costs= when the Outputs are made")
    if not 0 < aim.width <= 1:
        raise ValueError(f"width={aim.width}: expected a share > 0 and ≤ 1 of the rows on each side of τ")


def _paper(blank: Policy, exits: Exits, outside: Mapping[str, Exits], aim: Aim) -> Policy:
    windows, centres = _quantile_windows(exits, outside, aim)
    task = aim.task(exits, outside) if aim.goal.figure != "fpr" or outside else None
    if task is None:
        raise ValueError(f"target {aim.goal} over {exits.count} stages needs OOD rows to set a τ for every stage: give ood")
    policy = _solved(blank, under_windows(task, windows, None, aim.limits), task, aim)
    stages = [
        replace(stage, centre=centre, width=aim.width) if np.isfinite(centre) else stage
        for stage, centre in zip(policy.stages, centres, strict=False)
    ]
    return replace(policy, stages=(*stages, policy.stages[-1]))


def _quantile_windows(exits: Exits, outside: Mapping[str, Exits], aim: Aim) -> tuple[list[Window | None], list[float]]:
    """The paper's window after every stage but the last, around that stage's own operating point, among the rows that reach it."""
    if aim.goal.level is None:
        raise ValueError(
            f"target {str(aim.goal)!r} has no threshold to put a window around: use coverage@risk, risk@coverage or fpr@tpr, or "
            "window='optimal' within a budget"
        )
    windows: list[Window | None] = []
    centres = []
    for k in range(exits.count - 1):
        centre = _operating(exits, outside, aim, k)
        reached = exits.stage([*windows, *[None] * (exits.count - 1 - k)]) == k
        window = paper.quantile_window(exits.uncertainty[k, reached], centre, aim.width) if reached.any() else None
        windows.append(window)
        centres.append(centre)
    return windows, centres


def _operating(exits: Exits, outside: Mapping[str, Exits], aim: Aim, k: int) -> float:
    """The threshold of exit k if all rows left there; +inf where it accepts all."""
    if aim.goal.level is None:
        return np.inf
    if aim.goal.figure == "fpr":
        return paper.threshold(exits.uncertainty[k], None, aim.goal)
    alone = Exits((exits.names[k],), exits.uncertainty[k : k + 1], exits.label[k : k + 1], (exits.costs[k],), exits.truth)
    others = {
        key: Exits(alone.names, part.uncertainty[k : k + 1], part.label[k : k + 1], alone.costs) for key, part in outside.items()
    }
    found = under_windows(aim.task(alone, others), [], None, aim.limits)
    _check_feasible(found, aim)
    return np.inf if found.taus[0] is None else found.taus[0]


def _full_tau(exits: Exits, outside: Mapping[str, Exits], aim: Aim) -> float | None:
    operating = _operating(exits, outside, aim, exits.count - 1)
    return None if operating == np.inf else operating


def _imitating(blank: Policy, exits: Exits, outside: Mapping[str, Exits], aim: Aim, single: bool) -> Policy:
    """Windows by deviation from the full ensemble."""
    full = _full_tau(exits, outside, aim)
    labels = aim.goal.figure != "fpr"
    first = _operating_or_none(exits, outside, aim)
    allowed = aim.deviation
    if allowed is None:
        windows, centres = _quantile_windows(exits, outside, aim)
        taus = [*(None if c == np.inf else c for c in centres), full]
        allowed = float(deviations(exits, exits.stage(windows), taus, labels).mean())
    found = imitate(exits, full, allowed, labels, single, first)
    return _sequenced(_placed(blank, found.windows, found.taus), exits, outside, aim)


def _operating_or_none(exits: Exits, outside: Mapping[str, Exits], aim: Aim) -> float | None:
    try:
        operating = _operating(exits, outside, aim, 0)
    except ValueError:
        return None  # the first stage alone can't reach the target; the full ensemble can
    return None if operating == np.inf else operating


def _random(blank: Policy, exits: Exits, outside: Mapping[str, Exits], aim: Aim) -> Policy:
    """The same share of the rows goes on from every stage, drawn at random: by cost, by deviation, or as many as the paper's window."""
    spent, count, rates = np.asarray(exits.costs), exits.count, np.linspace(0, 1, 10_001)
    taus = [_operating(exits, outside, aim, k) for k in range(count)]
    if aim.limit is not None:
        if aim.limit < spent[0] * (1 - 1e-12):
            raise ValueError(f"a cost of {aim.limit:g} per row is less than {spent[0]:g}, what the first stage alone costs")
        paid = (rates[:, None] ** np.arange(count) * spent).sum(1)
        rate = float(rates[np.flatnonzero(paid <= aim.limit * (1 + 1e-12))[-1]])
    elif aim.deviation is not None:
        limits = [None if tau == np.inf else tau for tau in taus]
        labels = aim.goal.figure != "fpr"
        each = [deviations(exits, np.full(exits.n, k), limits, labels).mean() for k in range(count - 1)]
        expected = (rates[:, None] ** np.arange(count - 1) * (1 - rates[:, None]) * each).sum(1)
        rate = float(rates[np.flatnonzero(expected <= aim.deviation + 1e-12)[0]])
    else:
        rate = min(2 * aim.width, 1.0)
    placed = _placed(blank, [None] * (count - 1), [None if tau == np.inf else tau for tau in taus])
    sent = (replace(stage, rate=rate, seed=aim.seed) for stage in placed.stages[:-1])
    return replace(placed, stages=(*sent, placed.stages[-1]))


def _disagreeing(uncertainty: NDArray[np.float64]) -> Window | None:
    some = uncertainty[uncertainty > 1e-9]
    return None if not len(some) else (float(some.min() / 2), None)


# --- thresholds and their sequence ---


def _placed(policy: Policy, windows: Sequence[Window | None], taus: Sequence[float | None]) -> Policy:
    stages = tuple(
        replace(stage, window=window, tau=tau) for stage, window, tau in zip(policy.stages, [*windows, None], taus, strict=True)
    )
    return replace(policy, stages=stages)


def _check_feasible(solved: Solved, aim: Aim) -> None:
    if not solved.feasible:
        held = f" with limits {dict(aim.limits)}" if aim.limits else ""
        least = float(solved.steps.risk[1:].min())
        raise ValueError(
            f"no threshold reaches {aim.goal}{held} on validation data, the least risk is {least:.4g}: allow more risk or give more data"
        )


def _solved(blank: Policy, solved: Solved, task: Task, aim: Aim) -> Policy:
    _check_feasible(solved, aim)
    policy = _placed(blank, solved.windows, solved.taus)
    if aim.goal.figure not in ("coverage", "fpr"):
        return policy
    return replace(policy, sequence=_rising(solved, task, aim))


def _sequenced(policy: Policy, exits: Exits, outside: Mapping[str, Exits], aim: Aim) -> Policy:
    if aim.goal.figure == "fpr" and not outside:
        return replace(policy, sequence=_opening(policy, exits))
    if aim.goal.figure not in ("coverage", "fpr"):
        return policy
    task = aim.task(exits, outside)
    solved = under_windows(task, [stage.window for stage in policy.stages[:-1]], None, aim.limits)
    return replace(policy, sequence=_rising(solved, task, aim))


def _rising(solved: Solved, task: Task, aim: Aim) -> tuple[Taus, ...]:
    """Thresholds along the ladder, from where a test by so many calibration rows had best begin."""
    vectors = solved.steps.sequence(VECTORS)
    u, at = task.exits.at_exit(task.exits.uncertainty, solved.exit_at), solved.exit_at
    if aim.goal.figure == "fpr":
        return vectors
    if task.inside < task.exits.n:  # SCOD: from half of the coverage that was met on
        half = 0.5 * solved.figures.coverage
        steps = int(np.searchsorted(solved.steps.coverage, half))
        return solved.steps.sequence(VECTORS, max(steps, 1))
    place = on_sequence(vectors, u, at)
    loss = task.exits.at_exit(task.loss, at)
    most = float(loss.max())
    options: dict[str, Any] = {} if ((loss == 0) | (loss == 1)).all() else {"costs_bound": most}
    if aim.limits:
        options |= {"limits": aim.limits, "predicted": task.exits.at_exit(task.exits.label, at)}
    level = CAUTION * (aim.goal.level or 0.0)
    begin = start(place, loss, np.arange(len(vectors)), level, aim.delta, aim.rows, seed=aim.seed, **options)
    return vectors[begin:]


def _opening(policy: Policy, exits: Exits) -> tuple[Taus, ...]:
    """Without OOD rows: from the thresholds as they are to all accepted, every exit rejecting the same part of what it rejected."""
    exit_at = exits.stage([stage.window for stage in policy.stages[:-1]])
    accepted = exits.accepted(exit_at, [stage.tau for stage in policy.stages])
    vectors: list[Taus] = [tuple(stage.tau for stage in policy.stages)]
    for share in np.linspace(0, 1, VECTORS)[1:]:
        taus: list[float | None] = []
        for k, stage in enumerate(policy.stages):
            here = exit_at == k
            scores = np.sort(exits.uncertainty[k, here])
            kept = int(accepted[here].sum())
            rows = kept + int(np.ceil(share * (len(scores) - kept)))
            if stage.tau is None or share == 1 or rows >= len(scores):
                taus.append(None)
            else:
                group = Groups.of(scores)
                found = group.edge(int(group.group[rows - 1]) + 1) if rows else stage.tau
                taus.append(None if found is None else max(found, stage.tau))
        before = [np.inf if tau is None else tau for tau in vectors[-1]]
        now = [max(np.inf if tau is None else tau, limit) for tau, limit in zip(taus, before, strict=True)]
        vector = tuple(None if tau == np.inf else float(tau) for tau in now)
        if vector != vectors[-1]:
            vectors.append(vector)
    return tuple(vectors)


def _hull(one: Window | None, other: Window | None) -> Window | None:
    """The narrowest window that holds both."""
    if one is None or other is None:
        return one or other
    low = None if one[0] is None or other[0] is None else min(one[0], other[0])
    high = None if one[1] is None or other[1] is None else max(one[1], other[1])
    return low, high
