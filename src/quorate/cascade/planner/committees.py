"""Committees: what every set of members says together, once, and from it the task and the worth of any chain.

What a chain says after a stage is its committee's joint output, so chains share it: with M members and at most K stages there are
Σ_{k ≤ K} M! / (k! (M − k)!) committees, far fewer than chains. They are kept for a sample of the rows.

A chain is scored by its Lagrangian: at a price λ of cost, and with the local risk a and the risk ρ that the best chain so far has there
(:mod:`quorate.cascade.solving`), what its windows are worth at best is

    V = max_windows Σ_n max(0, a c(n) − w(n) (ℓ(n) − ρ)) − λ Σ_n v(n) · cost(n)

A chain with a better figure at that price has the greater V, since V of the best chain is what its thresholds attain (weak duality): one
sweep per chain decides, without thresholds.

Shapes: N rows, in-distribution first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade.cascade import answer
from quorate.cascade.cuts import Groups
from quorate.cascade.exits import Exits
from quorate.cascade.planner.pool import Pool
from quorate.cascade.planner.space import Chain, Committee
from quorate.cascade.sweeps import sweep
from quorate.cascade.target import Target
from quorate.cascade.task import Task, make_task
from quorate.cascade.temperature import temperature_of
from quorate.cascade.uncertainty import fresh, score
from quorate.combination import Floats, LastTop1, Running
from quorate.outputs import Outputs

BINS = 256  # groups of neighbours that windows are cut between
SWEEPS = 2  # over a chain of three or more stages; two need one


@dataclass(frozen=True)
class Aim:
    """What plans are for: a target, the uncertainty, and the terms of :func:`quorate.cascade.task.make_task`."""

    goal: Target
    uncertainty: str
    error_costs: ArrayLike | None = None
    beta: float = 1.0
    alpha: float | None = None
    limits: Mapping[int, float] | None = None
    temperature: bool = False

    def task(self, inside: Exits, outside: Mapping[str, Exits]) -> Task:
        """The task of a chain's exits."""
        return make_task(self.goal, inside, outside, self.error_costs, self.beta, self.alpha)


class Point(NamedTuple):
    """Where on the front to look: a price of cost in units of the target's figure, the local risk a, the risk ρ."""

    price: float
    slope: float
    rho: float


@dataclass(frozen=True, eq=False)
class Said:
    """A committee's uncertainty, labels and losses (N,), the rows in groups of neighbours, weight · loss, and its temperature."""

    uncertainty: Floats
    label: NDArray[np.int64]
    loss: Floats
    groups: Groups
    weighted: Floats
    temperature: float


class Committees:
    """The committees of a pool on a sample of its rows."""

    def __init__(self, pool: Pool, rows: NDArray[np.int64], outside: Mapping[str, Outputs], aim: Aim) -> None:
        self.pool, self.aim = pool, aim
        self.outside = dict(outside)
        self.truth = None if pool.outputs.labels is None else pool.outputs.labels[rows]
        at = [pool.outputs.rows(rows), *self.outside.values()]
        self.states = [[self._state(outputs, member) for outputs in at] for member in range(len(pool.names))]
        self.found: dict[Committee, Said] = {}
        self.base = self._task(frozenset([0]))[0]

    def said(self, committee: Committee) -> Said:
        """What a committee says."""
        if committee not in self.found:
            task, temperature = self._task(committee)
            u, loss = task.exits.uncertainty[0], task.loss[0]
            self.found[committee] = Said(u, task.exits.label[0], loss, Groups.of(u, BINS), task.weight * loss, temperature)
        return self.found[committee]

    def task(self, chain: Chain) -> Task:
        """The task of a chain on the sample."""
        parts = [self.said(committee) for committee in chain.committees()]
        costs = tuple(self.pool.costs[m] for m in chain.members)
        names = tuple(self.pool.names[m] for m in chain.members)
        uncertainty, label = np.stack([part.uncertainty for part in parts]), np.stack([part.label for part in parts])
        exits = replace(self.base.exits, names=names, uncertainty=uncertainty, label=label, costs=costs, loss=None)
        return replace(self.base, exits=exits, loss=np.stack([part.loss for part in parts]))

    def groups(self, chain: Chain) -> list[Groups]:
        """The exits' rows in groups of neighbours."""
        return [self.said(committee).groups for committee in chain.committees()]

    def worth(self, chain: Chain, point: Point) -> float:
        """V of a chain, see the module; in units of the figure."""
        task, scale = self.base, self.unit(point)
        parts = [self.said(committee) for committee in chain.committees()]
        worth = -np.stack([part.weighted for part in parts])
        if not task.forced:
            worth += point.slope * task.cover + (point.rho * task.weight if task.ratio else 0.0)
        fee = np.multiply.outer(point.price * scale * np.array([self.pool.costs[m] for m in chain.members]), task.traffic)
        rejected = np.broadcast_to(np.zeros(1), worth.shape)
        count = len(parts)
        found = sweep(worth, rejected, fee, [part.groups for part in parts], task.forced, sweeps=1 if count <= 2 else SWEEPS)
        return found.value / scale

    def unit(self, point: Point) -> float:
        """How much worth a unit of the figure is: coverage is worth a; a risk counts on the coverage it is read at."""
        if self.aim.goal.figure == "coverage":
            return point.slope
        return self.aim.goal.level or 1.0 if self.aim.goal.figure == "risk" else 1.0

    def _state(self, outputs: Outputs, member: int) -> Any:
        state: Any = fresh(self.aim.uncertainty, outputs.kind, outputs.combine)
        state.add_(outputs.values[member], "replace")
        return state

    def _task(self, committee: Committee) -> tuple[Task, float]:
        states = [_together(parts) for parts in zip(*(self.states[m] for m in sorted(committee)), strict=True)]
        temperature = _temperature(states[0], self.truth) if self.aim.temperature else 1.0
        inside, *outside = (self._exits(state, temperature, k == 0) for k, state in enumerate(states))
        return self.aim.task(inside, dict(zip(self.outside, outside, strict=True))), temperature

    def _exits(self, state: Running | LastTop1, temperature: float, inside: bool) -> Exits:
        label, probs = answer(state, temperature)
        u = score(self.aim.uncertainty, state, temperature, probs)
        loss = None
        if self.aim.goal.figure == "nll" and probs is not None and self.truth is not None:
            with np.errstate(divide="ignore"):
                loss = -np.log(probs[np.arange(len(label)), self.truth])[None]
        return Exits(("committee",), u[None], label[None], (0.0,), self.truth if inside else None, loss)


def _together(states: tuple[Any, ...]) -> Any:
    """The members of several running combinations in one."""
    first = states[0]
    if len(states) == 1 or isinstance(first, LastTop1):
        return states[-1]
    joined = Running(first.kind, first.combine, first.tracks)
    joined.count = sum(state.count for state in states)
    joined.total = np.sum([state.total for state in states], 0)
    joined.tracked = {name: np.sum([state.tracked[name] for state in states], 0) for name in first.tracked}
    return joined


def _temperature(state: Running, truth: NDArray[np.int64] | None) -> float:
    assert truth is not None
    if state.combine == "logits":
        return temperature_of(state.logits(), truth)
    with np.errstate(divide="ignore"):
        return temperature_of(np.log(state.probs()), truth)
