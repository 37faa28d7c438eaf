"""Front: from the chains that a search found to plans on all rows, evenly along the Pareto front of cost and figure.

On the sample every chain gets windows at a few prices around those it was found at. Of all these the ones that no other beats in both cost
and figure are the front; evenly spaced ones among them say at which costs plans are made. There the windows of the chains that look
best are found anew, finer and on more rows, and thresholds on all rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quorate.cascade.cuts import Groups
from quorate.cascade.planner.committees import Committees, Point
from quorate.cascade.planner.search import at
from quorate.cascade.planner.space import Chain
from quorate.cascade.solving import Limits, Solved, preferred, solve, under_windows
from quorate.cascade.task import Task

ROWS = 20_000  # that windows of a plan are found on
FINE = 1024  # groups of neighbours that they are cut between
ROUNDS = 7  # of bisection of the price, from SPAN below to SPAN above the one on the sample
SPAN = 8.0
AROUND = (0.6, 1.0, 1.6)  # local risks that are tried, as multiples of that on the sample


class Option(NamedTuple):
    """A chain at a point, what it comes to on the sample, and whether it meets the target."""

    chain: Chain
    point: Point
    cost: float
    figure: float
    feasible: bool


def options(table: Committees, found: Sequence[tuple[Point, Chain]], singles: Sequence[Chain]) -> list[Option]:
    """The chains found at their prices and half a step to either side, and the single members."""
    points = _between([point for point, _ in found])
    wanted: dict[Chain, set[int]] = {chain: {0} for chain in singles}
    for k, (_, chain) in enumerate(found):
        if len(chain.members) > 1:
            wanted.setdefault(chain, set()).update(range(max(2 * k - 1, 0), min(2 * k + 2, len(points))))
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


def evenly(costs: Sequence[float], values: Sequence[float], count: int, forced: Sequence[int] = ()) -> list[int]:
    """At most ``count`` points of a rising front, evenly along it (logarithm of the cost, value), its ends and ``forced`` ones first."""
    n = len(costs)
    if n <= count:
        return list(range(n))
    if count == 1:
        return [n - 1]
    log = np.log(np.maximum(costs, 1e-300))
    steps = [np.abs(np.diff(a)) / (np.ptp(a) or 1.0) for a in (log, np.asarray(values, np.float64))]
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*steps))])
    chosen = dict.fromkeys([n - 1, 0, *forced][:count])
    while len(chosen) < count:  # the one farthest from all that are chosen
        gap = np.abs(along[:, None] - along[list(chosen)]).min(1)
        gap[list(chosen)] = -1.0
        chosen[int(gap.argmax())] = None
    return sorted(chosen)


def aims(table: Committees, found: Sequence[Option], limit: float, front: int) -> list[tuple[float, Option]]:
    """Costs to plan for, with the option that is best there; the limit among them where the front goes on beyond it."""
    sign = 1.0 if table.base.goal.figure in ("coverage", "accuracy") else -1.0
    met = [option for option in found if option.feasible]
    kept = [met[i] for i in pareto([o.cost for o in met], [sign * o.figure for o in met])]
    inside = [option for option in kept if option.cost <= limit * (1 + 1e-12)]
    beyond = [option for option in kept if option.cost > limit * (1 + 1e-12)][:1]
    ends = [(option.cost, option) for option in inside] + [(limit, option) for option in beyond]
    values = [sign * option.figure for _, option in ends]
    alone = [i for i, (_, option) in enumerate(ends) if len(option.chain.members) == 1]
    return [ends[i] for i in evenly([cost for cost, _ in ends], values, front, alone)]


def refit(task: Task, unit: float, point: Point, cost: float, limit: float, limits: Limits | None, seed: int) -> Solved:
    """The best windows and thresholds of a chain at about a cost per row, and never beyond the limit, on all rows."""
    full = [Groups.of(u) for u in task.exits.uncertainty]
    nobody = under_windows(task, (None,) * (task.exits.count - 1), full, limits)
    if task.exits.count == 1:
        return nobody
    part = task
    if task.exits.n > ROWS:
        part = task.rows(np.random.default_rng(seed).choice(task.exits.n, ROWS, replace=False))
    groups = [Groups.of(u, FINE) for u in part.exits.uncertainty]
    best = nobody
    for times in (1.0,) if task.forced else AROUND:
        for single in (False, True):
            aim = cost
            for _ in range(3):
                windows = _priced(part, groups, point._replace(price=point.price * unit, slope=point.slope * times), aim, single, limits)
                if windows is None:
                    break
                solved = under_windows(task, windows, full, limits)
                if solved.figures.cost <= cost * (1 + 1e-9) or (aim < cost and solved.figures.cost <= limit * (1 + 1e-9)):
                    best = solved if preferred(task, solved, best) else best
                    break
                aim -= 1.5 * (solved.figures.cost - cost)
    return best


def _priced(task: Task, groups: Sequence[Groups], point: Point, cost: float, single: bool, limits: Limits | None) -> tuple | None:
    """Windows of the lowest price around a point's at which the cost is at most so much."""
    low, high = point.price / SPAN, point.price * SPAN
    best: Solved | None = None
    for round_ in range(ROUNDS):
        price = point.price if round_ == 0 else math.sqrt(low * high)
        found = solve(task, groups, price, point.slope, single, None, limits, point.rho)
        if found.figures.cost <= cost * (1 + 1e-12):
            best, high = found, price
        else:
            low = price
    return None if best is None else best.windows


def _between(points: Sequence[Point]) -> list[Point]:
    """The points and one between each two."""
    result = list(points[:1])
    for one, other in zip(points[:-1], points[1:], strict=True):
        middle = Point(math.sqrt(one.price * other.price), math.sqrt(one.slope * other.slope), (one.rho + other.rho) / 2)
        result += [middle, other]
    return result
