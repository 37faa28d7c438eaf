"""Search: the chains that are best at each of a few prices of cost, all of them tried or a beam and local search.

At one price chains are compared by one number (:meth:`.committees.Committees.worth`), so the front is found price by price, from the
highest price to the lowest, each beginning with what the one before found:

    beam     all pairs; the best ``beam`` with one member more at any place; again, up to the longest; then from the best ones one step
             at a time (a member more, fewer or another, two swapped, another join) until no step is better
    all      every legal chain on a part of the sample, the best again on all of it

Of the best ones of every length one is taken on rows held out (:mod:`.heldout`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from quorate.cascade.planner.committees import Committees, Point
from quorate.cascade.planner.heldout import HeldOut
from quorate.cascade.planner.space import Chain, Space
from quorate.cascade.solving import Solved, solve
from quorate.combination import Floats

PRICES = 12  # at which chains are searched
TAKEN = 5  # chains per price that plans are made of
KEPT = 8  # chains per price and length that are judged on rows held out
CLIMBED = 2  # chains per price that local search starts from
LOCAL = 12.0  # by how much more rows in a window gain than rows do on average, at most
SMALLEST = 2e-3  # of the range of figures: the least gain for the cost of the whole pool that is looked at


@dataclass(eq=False)
class Worths:
    """What chains are worth at one point, each found once."""

    table: Committees
    point: Point
    known: dict[Chain, float] = field(default_factory=dict)

    def of(self, chain: Chain) -> float:
        """V of a chain."""
        if chain not in self.known:
            self.known[chain] = self.table.worth(chain, self.point)
        return self.known[chain]

    def best(self, chains: Iterable[Chain], count: int) -> list[Chain]:
        """The chains worth most, best first; short and early ones of equals."""
        return sorted(set(chains), key=lambda chain: (-self.of(chain), len(chain.members), chain))[:count]


@dataclass(eq=False)
class Search:
    """What a search goes by, and what it found: per price the point, the chain to take there and the next best, of falling price."""

    table: Committees
    heldout: HeldOut
    space: Space
    limit: float
    beam: int
    found: list[tuple[Point, list[Chain]]] = field(default_factory=list)

    def run(self, exhaustive: bool, screen: Committees | None, progress: Callable[[int], None]) -> None:
        """Search at every price, from the dearest; stops where the chain costs more than the limit. ``screen`` is a smaller sample."""
        prices = price_grid(self.table, self.space)
        singles = self.space.singles()
        everything = list(self.space.all()) if exhaustive else []
        cheapest = min(singles, key=lambda chain: self.space.costs[chain.members[0]])
        point = self._point(cheapest, Point(float(prices[0]), 0.3, 0.1))
        seeds = singles
        for done, price in enumerate(prices, 1):
            point = point._replace(price=float(price))
            worths = Worths(self.table, point)
            if exhaustive:
                rough = Worths(screen or self.table, point)
                seen = [chain for level in _by_length(everything) for chain in rough.best(level, 4 * KEPT)]
            else:
                seen = beamed(worths, self.space, seeds, self.beam)
            top = worths.best(seen, 1)[0]
            point, last = self._point(top, point), point
            if abs(point.slope - last.slope) > 0.1 * last.slope or abs(point.rho - last.rho) > 0.1 * last.rho:
                worths = Worths(self.table, point)  # the same chains by what the best of them found
            levels = [worths.best(level, KEPT) for level in _by_length([*seen, *seeds])]
            taken = self.heldout.choose([chain for level in levels for chain in level], point, TAKEN)
            self.found.append((point, taken))
            seeds = list(dict.fromkeys([*singles, *(chain for level in levels for chain in level)]))
            progress(done)
            if at(self.table, taken[0], point).figures.cost > self.limit:
                break
        progress(len(prices))

    def _point(self, chain: Chain, point: Point) -> Point:
        """The same price with the local risk and the risk that a chain has there."""
        task = self.table.base
        if task.forced:
            return point._replace(slope=1.0, rho=0.0)
        solved = at(self.table, chain, point)
        level = task.goal.level or 0.0
        rho = level if task.goal.figure == "coverage" else solved.figures.risk
        last = solved.step == len(solved.steps.coverage) - 1
        slope = float(solved.steps.slope[max(solved.step, 1) - 1])
        if task.goal.figure == "coverage" and last and solved.feasible:
            slope = max(slope, 10.0 * float(task.loss.max(initial=0.1)))  # everything is accepted: risk is no matter
        return point._replace(slope=max(slope, 1e-3), rho=0.0 if np.isnan(rho) else float(rho))


def beamed(worths: Worths, space: Space, seeds: list[Chain], beam: int) -> list[Chain]:
    """The best chains of every length, short to long, then local search from the best of all."""
    longest = space.most
    known = _by_length(seeds)
    level = known[0] if known else []
    kept = list(level)
    for length in range(2, longest + 1):
        known_here = [chain for chain in seeds if len(chain.members) == length]
        level = worths.best([*known_here, *(longer for chain in level for longer in space.longer(chain))], beam)
        kept += level
    tried: set[Chain] = set()
    top = worths.best(kept, CLIMBED)
    while ahead := [chain for chain in top if chain not in tried]:
        tried.update(ahead)
        near = [near for chain in ahead for near in space.near(chain)]
        kept = [chain for level in _by_length([*kept, *near]) for chain in worths.best(level, beam)]
        top = worths.best(kept, CLIMBED)
    return kept


def at(table: Committees, chain: Chain, point: Point) -> Solved:
    """A chain's windows and thresholds at a point, on the sample: the better of windows with two ends and with one."""
    task, groups, aim = table.task(chain), table.groups(chain), table.aim
    price = point.price * table.unit(point)
    best: Solved | None = None
    for single in (False, True):
        found = solve(task, groups, price, point.slope, single, None, aim.limits, point.rho)
        if best is None or lagrangian(table, found, point.price) > lagrangian(table, best, point.price):
            best = found
        if len(chain.members) == 1:
            break
    assert best is not None
    return best


def lagrangian(table: Committees, solved: Solved, price: float) -> float:
    """Figure less price · cost, higher = better; below all others where the target is not met."""
    f = solved.figures
    if not solved.feasible:
        return -1e9 * (1 + (f.risk if np.isfinite(f.risk) else 1.0))
    sign = 1.0 if table.base.goal.figure in ("coverage", "accuracy") else -1.0
    return sign * f.figure - price * f.cost


def price_grid(table: Committees, space: Space, count: int = PRICES) -> Floats:
    """Falling prices: from where the cheapest member alone is best to where little is left to gain."""
    costs, figures = [], []
    for chain in space.singles():
        solved = at(table, chain, Point(0.0, 0.3, 0.1))
        costs.append(solved.figures.cost)
        figures.append(solved.figures.figure if solved.feasible else np.nan)
    known = np.array([f for f in figures if np.isfinite(f)])
    total = sum(space.costs) or 1.0
    spread = max(float(np.ptp(known)) if len(known) else 0.0, 0.01)
    cheapest = int(np.argmin(costs))
    steps = [
        abs(f - figures[cheapest]) / (c - costs[cheapest])
        for c, f in zip(costs, figures, strict=True)
        if c > costs[cheapest] and np.isfinite(f - figures[cheapest])
    ]
    highest = LOCAL * max([*steps, spread / total])
    return np.geomspace(highest, SMALLEST * spread / total, count)


def _by_length(chains: Iterable[Chain]) -> list[list[Chain]]:
    """The chains of every length that there are, short ones first."""
    found: dict[int, list[Chain]] = {}
    for chain in chains:
        found.setdefault(len(chain.members), []).append(chain)
    return [found[length] for length in sorted(found)]
