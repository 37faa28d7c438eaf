"""Front: from the chains that a search found to plans on all rows, evenly along the Pareto front of cost and figure.

On the sample every chain gets windows at the prices around the one that it was found at. Of all these the ones that no other beats in both
cost and figure are a front, and places evenly along it say at which costs plans are made: with the chains to either side of that place,
their windows found anew for that cost, on more rows and cut finer, and their thresholds set on all rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from quorate.cascade.planner.committees import Committees, Point
from quorate.cascade.planner.search import at
from quorate.cascade.planner.space import Chain
from quorate.cascade.solving import Limits, Solved, under_windows, within_cost
from quorate.cascade.task import Task
from quorate.combination import Floats

AT_LIMIT = 6  # chains that are fitted at the limit of cost
ROWS = 10_000  # that windows of a plan are found on
TRIES = 3  # searches, each for a lower cost, until that on all rows keeps the limit


class Option(NamedTuple):
    """A chain at a point, what it comes to on the sample, and whether it meets the target."""

    chain: Chain
    point: Point
    cost: float
    figure: float
    feasible: bool


def options(table: Committees, found: Sequence[tuple[Point, Sequence[Chain]]], singles: Sequence[Chain]) -> list[Option]:
    """The chains found at their prices and up to a step to either side, and the single members."""
    points = _between([point for point, _ in found])
    wanted: dict[Chain, set[int]] = {chain: {0} for chain in singles}
    for k, (_, chains) in enumerate(found):
        for chain in chains:
            if len(chain.members) > 1:
                wanted.setdefault(chain, set()).update(range(max(2 * k - 2, 0), min(2 * k + 3, len(points))))
    result = []
    for chain, places in wanted.items():
        for place in sorted(places):
            solved = at(table, chain, points[place])
            result.append(Option(chain, points[place], solved.figures.cost, solved.figures.figure, solved.feasible))
    return result


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Which of several (cost, value) pairs no other beats: none costs no more and is worth more, or less and as much; by cost."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -values[i]))
    kept: list[int] = []
    for i in order:
        if not kept or values[i] > values[kept[-1]]:
            kept.append(i)
    return kept


def along(costs: Sequence[float] | Floats, values: Sequence[float]) -> Floats:
    """How far along a rising front each of its points is, in logarithm of cost and in value, as shares of their ranges."""
    top = max(costs)
    log = np.log(np.maximum(np.asarray(costs) / top, 1e-12)) if top > 0 else np.zeros(len(costs))
    steps = [np.abs(np.diff(a)) / (np.ptp(a) or 1.0) for a in (log, np.asarray(values, np.float64))]
    return np.concatenate([[0.0], np.cumsum(np.hypot(*steps))])


def thinned(costs: Sequence[float], values: Sequence[float], count: int, kept: Sequence[int] = ()) -> list[int]:
    """At most ``count`` points of a rising front: its ends, the ``kept`` ones, then always the one farthest along it from all these."""
    n = len(costs)
    if n <= count:
        return list(range(n))
    place = along(costs, values)
    chosen = dict.fromkeys(list(dict.fromkeys([n - 1, 0, *kept]))[:count])
    while len(chosen) < count:
        gap = np.abs(place[:, None] - place[list(chosen)]).min(1)
        gap[list(chosen)] = -1.0
        chosen[int(gap.argmax())] = None
    return sorted(chosen)


def aims(found: Sequence[Option], sign: float, limit: float, front: int) -> list[tuple[float, Chain]]:
    """(cost, chain) pairs to fit on all rows: places evenly along the front up to the limit, each with the chains to either side.

    ``sign`` is 1 where a large figure is good, else −1.
    """
    met = [option for option in found if option.feasible]
    ends = [met[i] for i in pareto([o.cost for o in met], [sign * o.figure for o in met])]
    costs = np.array([option.cost for option in ends])
    place = along(costs, [option.figure for option in ends])
    last = place[-1]
    if limit < costs[-1]:
        last = float(np.interp(np.log(limit), np.log(np.maximum(costs, 1e-300)), place))
    wanted: dict[tuple[float, Chain], None] = {}
    for spot in np.linspace(0.0, last, front):
        k = min(int(np.searchsorted(place, spot * (1 - 1e-12))), len(ends) - 1)
        below = max(k - 1, 0) if spot < place[k] * (1 - 1e-12) else k
        share = (spot - place[below]) / (place[k] - place[below]) if k > below else 0.0
        cost = (
            float(costs[below])
            if share == 0
            else float(costs[below] * (costs[k] / costs[below]) ** share if costs[below] else costs[k])
        )
        for option in (ends[below], ends[k]):
            wanted[min(cost, limit), option.chain] = None
    if limit < costs[-1]:
        for chain in _around(met, sign, limit):
            wanted[limit, chain] = None
    for option in ends:
        if len(option.chain.members) == 1 and option.cost <= limit * (1 + 1e-12):
            wanted[option.cost, option.chain] = None
    return list(wanted)


def _around(met: Sequence[Option], sign: float, limit: float) -> list[Chain]:
    """The chains that are best at a limit of cost, by what each comes to at the costs around it."""
    of_chain: dict[Chain, list[tuple[float, float]]] = {}
    for option in met:
        if len(option.chain.members) > 1:
            of_chain.setdefault(option.chain, []).append((option.cost, sign * option.figure))
    value = {}
    for chain, points in of_chain.items():
        costs, figures = np.array(sorted(points)).T
        if costs[0] <= limit:
            value[chain] = float(np.interp(limit, costs, np.maximum.accumulate(figures)))
    return sorted(value, key=lambda chain: (-value[chain], len(chain.members), chain))[:AT_LIMIT]


def refit(task: Task, cost: float, limit: float, limits: Limits | None, seed: int) -> Solved | None:
    """The best windows and thresholds of a chain at about a cost per row, never beyond the limit, on all rows.

    None where the chain can't be had for that cost.
    """
    least = task.exits.costs[0] * float(task.traffic.sum())
    if cost < least * (1 - 1e-12):
        return None
    if task.exits.n <= ROWS:
        return within_cost(task, cost, limits=limits, seed=seed)
    part = task.rows(np.random.default_rng(seed).choice(task.exits.n, ROWS, replace=False))
    aim = cost
    for _ in range(TRIES):
        solved = under_windows(task, within_cost(part, aim, limits=limits, seed=seed).windows, None, limits)
        if solved.figures.cost <= limit * (1 + 1e-9):
            return solved
        aim = max(least, aim - 1.5 * (solved.figures.cost - limit))
    return under_windows(task, (None,) * (task.exits.count - 1), None, limits)


def crossed(task: Task, limit: float, limits: Limits | None, seed: int) -> float:
    """What a chain is worth under a limit of cost on rows that its windows and thresholds were not found on, in units of the figure.

    Each half of the rows is judged by the other. Thresholds met on one half are not met exactly on the other; what a row more or less, or
    an error, is worth there is the local risk at which they stop.
    """
    n = task.exits.n
    order = np.random.default_rng(seed).permutation(n)[: 2 * ROWS]
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    total = 0.0
    for mine, theirs in (halves, halves[::-1]):
        solved = within_cost(task.rows(mine), limit, limits=limits, seed=seed)
        other = task.rows(theirs)
        exit_at = other.exits.stage(solved.windows)
        accepted = other.exits.accepted(exit_at, solved.taus)
        wrong = other.weight * other.exits.at_exit(other.loss, exit_at)
        if task.forced:
            total -= float(wrong.sum())
            continue
        slope = max(float(solved.steps.slope[max(solved.step, 1) - 1]), 1e-6)
        level = (task.goal.level or 0.0) if task.goal.figure == "coverage" else solved.figures.risk
        worth = slope * other.cover - wrong + (level * other.weight if task.ratio else 0.0)
        total += float(worth[accepted].sum()) / (slope if task.goal.figure == "coverage" else 1.0)
    return total / 2


def _between(points: Sequence[Point]) -> list[Point]:
    """The points and one between each two."""
    result = list(points[:1])
    for one, other in pairwise(points):
        middle = Point(math.sqrt(one.price * other.price), math.sqrt(one.slope * other.slope), (one.rho + other.rho) / 2)
        result += [middle, other]
    return result
