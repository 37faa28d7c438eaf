"""Solving a task: windows and thresholds that are best for a target at a price of cost, or under a limit of cost.

A selective target is a ratio under a constraint; with its two multipliers it is a sum over rows, which sweeps maximise:

    accepting row n at exit k is worth   a · c(n) − w(n) · (ℓ_k(n) − ρ)

ρ is the risk (the target's, or the one met so far: Dinkelbach 1967), a the local risk at which acceptance stops. For each of a few values
of a the price is searched at which the cost meets its limit; then the ladder of the exits gives the thresholds that meet the target
under those windows, and the best of all is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from quorate.cascade.cuts import Cut, Groups
from quorate.cascade.ladder import Ladder, Taus, choose, first_step, ladder, within_limits
from quorate.cascade.policy import Window
from quorate.cascade.sweeps import Cuts, at_most, sweep, sweep_within
from quorate.cascade.task import Figures, Task
from quorate.combination import Floats

SLOPES = 9  # values of a that are tried
SEARCHED = 30_000  # rows that windows under a limit of cost are searched on, drawn evenly
BINS = 512  # groups of neighbours that they are cut between

Limits = Mapping[int, float]


@dataclass(frozen=True, eq=False)
class Solved:
    """Windows (K−1), thresholds (K), what they come to on the rows they were chosen on, and how they came about."""

    windows: tuple[Window | None, ...]
    taus: Taus
    figures: Figures
    feasible: bool
    cuts: Cuts | None
    exit_at: NDArray[np.int64]
    steps: Ladder
    step: int

    @property
    def rho(self) -> float | None:
        """The risk met, for a target that names none."""
        return None if np.isnan(self.figures.risk) else self.figures.risk


def under_windows(
    task: Task, windows: Sequence[Window | None], groups: Sequence[Groups] | None = None, limits: Limits | None = None
) -> Solved:
    """Thresholds, one per exit, that are best for the target under given windows; where none reaches it, those of least risk."""
    cut = [Groups.of(u) for u in task.exits.uncertainty] if groups is None else groups
    return _at(task, task.exits.stage(windows), tuple(windows), cut, None, limits)


def _at(
    task: Task,
    exit_at: NDArray[np.int64],
    windows: tuple[Window | None, ...],
    groups: Sequence[Groups],
    cuts: Cuts | None,
    limits: Limits | None,
    rho: float | None = None,
) -> Solved:
    level = task.goal.level
    rho = (level if task.goal.figure == "coverage" else 0.0) if rho is None else rho
    steps = ladder(task, exit_at, groups, rho or 0.0)
    allowed = within_limits(steps, task, exit_at, dict(limits)) if limits else None
    step = choose(steps, task, allowed)
    feasible = step is not None
    if step is None:
        step = 1 + int(steps.risk[1:].argmin())
    accepted = first_step(steps, exit_at) <= step
    return Solved(windows, steps.taus(step), task.figures(exit_at, accepted), feasible, cuts, exit_at, steps, step)


def solve(
    task: Task,
    groups: Sequence[Groups],
    price: float,
    slope: float,
    single: bool = False,
    begin: Sequence[Cut] | None = None,
    limits: Limits | None = None,
    rho: float | None = None,
) -> Solved:
    """The windows that are best for the task at a price of cost and a local risk, and the thresholds that then meet the target best.

    Args:
        task: on N rows.
        groups: K, their tie groups at every exit, or coarser ones.
        price: ≥ 0, of a unit of cost per row.
        slope: the multiplier a, see :func:`slopes`; plays no part where everything is accepted.
        single: single-threshold cascades only.
        begin: cuts of a neighbouring price to begin with.
        limits: {class: most risk among the rows accepted with this label}.
        rho: the risk ρ met so far; by default the target's.
    """
    level = task.goal.level if task.goal.figure == "coverage" else 0.0
    at = (level or 0.0) if rho is None else rho
    cuts = _cut(task, groups, price, slope, single, begin, at)
    return _at(task, cuts.stage(groups), tuple(cuts.windows(groups)), groups, cuts, limits, at)


def _cut(
    task: Task, groups: Sequence[Groups], price: float, slope: float, single: bool, begin: Sequence[Cut] | None, rho: float
) -> Cuts:
    return sweep(*_worths(task, price, slope, rho), groups, task.forced, single, begin)


def _worths(task: Task, price: float, slope: float, rho: float) -> tuple[Floats, Floats, Floats]:
    """What accepting and rejecting each row at each exit is worth, and what each stage costs for it (K, N)."""
    fee = np.multiply.outer(price * np.asarray(task.exits.costs), task.traffic)
    worth = -task.weight * task.loss
    if not task.forced:
        worth = worth + slope * task.cover + (rho * task.weight if task.ratio else 0.0)
    return worth, np.broadcast_to(np.zeros(1), worth.shape), fee


def slopes(task: Task, groups: Sequence[Groups], count: int = SLOPES, limits: Limits | None = None) -> Floats:
    """Multipliers a to try, rising: around the local risks at which the first stage alone and the last one stop accepting."""
    if task.forced:
        return np.zeros(1)
    found = []
    for k in (0, task.exits.count - 1):
        at = _at(task, np.full(task.exits.n, k), ((None, None),) * k + (None,) * (task.exits.count - 1 - k), groups, None, limits)
        found.append(at.steps.slope[max(at.step, 1) - 1])
    scale = float(np.max(np.abs(found))) or 1.0
    low, high = max(min(found), scale * 1e-2), scale
    return np.geomspace(low / 2, high * 2, count)


def highest_price(task: Task) -> float:
    """A price at which no row is worth sending on."""
    level = 1.0 + (task.goal.level or 0.0)
    worth = task.weight * (task.loss.max(0) + level) + task.cover * (1.0 + task.loss.max())
    fee = task.traffic * min((c for c in task.exits.costs[1:] if c > 0), default=1.0)
    paid = fee > 0
    return float((worth[paid] / fee[paid]).max()) * 2 if paid.any() else 1.0


def within_cost(task: Task, limit: float, single: bool = False, limits: Limits | None = None, seed: int = 0) -> Solved:
    """The best windows and thresholds whose cost per row is at most ``limit``, on all rows.

    Windows are searched on at most ``SEARCHED`` of them, cut between ``BINS`` groups per exit; then thresholds are set on all. Where
    the whole costs more than what it was searched on, the end of a window moves in.

    Raises:
        ValueError: a limit below the first stage's cost (the least is named).
    """
    least = task.exits.costs[0] * float(task.traffic.sum())
    if limit < least * (1 - 1e-12):
        raise ValueError(
            f"a cost of {limit:g} per row is less than {least:g}, what the first stage alone costs: allow that at least"
        )
    part = _part(task, seed)
    groups = [Groups.of(u, BINS) for u in part.exits.uncertainty]
    full = [Groups.of(u) for u in task.exits.uncertainty]
    windows = _searched(part, groups, limit, single, limits).windows
    best = under_windows(task, windows, full, limits)
    if best.figures.cost <= limit * (1 + 1e-9):
        return best
    best = under_windows(task, (None,) * (task.exits.count - 1), full, limits)
    for trimmed in _trimmed(task, groups, windows, limit, single):
        found = under_windows(task, trimmed, full, limits)
        if preferred(task, found, best):
            best = found
    return best


def _trimmed(
    task: Task, groups: Sequence[Groups], windows: Sequence[Window | None], limit: float, single: bool
) -> list[tuple[Window | None, ...]]:
    """Windows with one end moved in, as far as all rows need it to keep the limit of cost."""
    ends = [_ranks(group, window) for group, window in zip(groups, windows, strict=False)]
    kept = []
    for k, side in product(range(len(ends)), (0,) if single else (0, 1)):
        start, stop = ends[k]
        for step in (2**power for power in range(int(stop - start).bit_length() + 1)):
            moved = (min(start + step, stop), stop) if side == 0 else (start, max(stop - step, start))
            trimmed = tuple(groups[k].window(*moved) if j == k else window for j, window in enumerate(windows))
            if (task.traffic * task.exits.spent[task.exits.stage(trimmed)]).sum() <= limit:
                kept.append(trimmed)
                break
    return kept


def _searched(task: Task, groups: Sequence[Groups], limit: float, single: bool, limits: Limits | None) -> Solved:
    """The best of all slopes and of both shapes, moved on until nothing gets better."""
    best = under_windows(task, (None,) * (task.exits.count - 1), groups, limits)
    shapes = (True,) if single else (False, True)  # a single threshold is a window too; sweeps of either may end before the best
    for shape in shapes:
        for slope in slopes(task, groups, SLOPES, limits):
            for found in _cheapest(task, groups, limit, float(slope), shape, single, limits):
                if preferred(task, found, best):
                    best = found
    moved = under_windows(task, _climbed(task, groups, best.windows, limit, single, limits), groups, limits)
    return moved if preferred(task, moved, best) else best


def _climbed(
    task: Task, groups: Sequence[Groups], windows: Sequence[Window | None], limit: float, single: bool, limits: Limits | None
) -> tuple[Window | None, ...]:
    """Windows moved end by end, in steps of ranks that get finer, while the target gets better within the limit of cost.

    Prices alone find only what lies on the convex hull of cost and figure.
    """
    ends = [list(_ranks(group, window)) for group, window in zip(groups, windows, strict=False)]

    def solved(at: list[list[int]]) -> Solved:
        return under_windows(task, [g.window(*pair) for g, pair in zip(groups, at, strict=False)], groups, limits)

    best = solved(ends)
    for step in (BINS // 8, BINS // 32, BINS // 128):
        better = True
        while better:
            better = False
            for k, side, way in product(range(len(ends)), (0,) if single else (0, 1), (-step, step)):
                trial = [list(pair) for pair in ends]
                trial[k][side] = min(max(trial[k][side] + way, 0), groups[k].count)
                if trial[k] == ends[k] or trial[k][0] > trial[k][1]:
                    continue
                found = solved(trial)
                if found.figures.cost <= limit and preferred(task, found, best):
                    best, ends, better = found, trial, True
    return best.windows


def _ranks(group: Groups, window: Window | None) -> tuple[int, int]:
    """The [start, stop) of groups that a window holds; an empty one lies in the middle."""
    if window is None:
        return group.count // 2, group.count // 2
    low, high = window
    start = 0 if low is None else int(np.searchsorted(group.edges, low))
    stop = group.count if high is None else int(np.searchsorted(group.edges, high)) + 1
    return start, max(stop, start)


def preferred(task: Task, one: Solved, other: Solved) -> bool:
    """Whether a solution is better: one that meets the target over one that does not, then by figure, then by cost."""
    if one.feasible != other.feasible:
        return one.feasible
    if not one.feasible:
        return one.figures.risk < other.figures.risk
    if task.better(one.figures.figure, other.figures.figure):
        return True
    return one.figures.figure == other.figures.figure and one.figures.cost < other.figures.cost


def _cheapest(
    task: Task, groups: Sequence[Groups], limit: float, slope: float, shape: bool, single: bool, limits: Limits | None
) -> list[Solved]:
    """The solution at the least price that keeps the limit of cost, and what fills the limit from there; ``shape``: single thresholds."""
    free = solve(task, groups, 0.0, slope, shape, None, limits)
    if free.figures.cost <= limit:
        return [free]
    assert free.cuts is not None
    begin = free.cuts.cuts  # the solution without a price begins all others
    level = task.goal.level if task.goal.figure == "coverage" else free.rho
    spent = task.exits.spent

    def cost(found: Cuts) -> float:
        return float((task.traffic * spent[found.stage(groups)]).sum())

    cuts = at_most(limit, lambda price: _cut(task, groups, price, slope, shape, begin, level or 0.0), cost, highest_price(task))
    if cuts is None:
        return []
    worth, nothing, fee = _worths(task, 1.0, slope, level or 0.0)
    filled = sweep_within(worth, nothing, fee, groups, limit, cuts.cuts, task.forced, single)
    return [_at(task, c.stage(groups), tuple(c.windows(groups)), groups, c, limits, level) for c in (cuts, filled)]


def _part(task: Task, seed: int) -> Task:
    """A sample of the rows, ID and OOD alike."""
    if task.exits.n <= SEARCHED:
        return task
    rng = np.random.default_rng(seed)
    return task.rows(np.sort(rng.choice(task.exits.n, SEARCHED, replace=False)))
