"""A batch as jobs, and who does them.

    B rows = G groups of V images side by side + singles      every group and every single is a job that runs a plan by itself

Jobs go to threads whole as long as there are as many as threads, groups first, of several networks together: tickets before anything
else. Of what is left each is run by all threads, layer by layer. What ONNX Runtime runs in between has all threads for itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.planning import Plan, Workspace
from quorate.runtime.sparse.team import Team

SMALL = 6_000_000
"""Live multiply-adds of a batch below which one thread is as fast as several, which have to be woken and to wait for each other."""


class Spaces:
    """A plan and the workspaces that are free."""

    def __init__(self, plan: Plan, macs: int) -> None:
        self.plan, self.macs = plan, macs * plan.inner
        self.large = self.macs >= SMALL
        self._free: dict[int, list[Workspace]] = {}

    def run(self, given: Mapping[str, NDArray[Any]], results: Mapping[str, NDArray[Any]], team: Team | None, parts: int) -> None:
        """One job in so many parts; the memory is another one's at any time. After an error it is nobody's: a thread may still use it."""
        free = self._free.setdefault(parts, [])
        try:
            space = free.pop()
        except IndexError:
            space = Workspace(self.plan, parts)
        space.run(given, results, team)
        free.append(space)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one network: ``groups`` of ``lanes`` rows (the last one may be filled up), then single ones.

    Attributes:
        given: arrays (B, *shape), contiguous.
        results: arrays (B, *shape) to write to, contiguous.
        grouped, single: by layout; None where there are no such rows.
    """

    given: Mapping[str, NDArray[Any]]
    results: Mapping[str, NDArray[Any]]
    rows: int
    groups: int
    lanes: int
    grouped: Spaces | None
    single: Spaces | None

    def jobs(self) -> list[tuple[Batch, int, int]]:
        """(itself, first row, rows) of each job."""
        grouped = [(self, k * self.lanes, self.lanes) for k in range(self.groups)]
        return grouped + [(self, row, 1) for row in range(self.groups * self.lanes, self.rows)]

    def run(self, start: int, count: int, team: Team | None, parts: int) -> None:
        """One of its jobs."""
        spaces = self._spaces(count)
        parts = parts if spaces.large else 1
        stop = start + count
        if stop <= self.rows:
            given = {name: array[start:stop] for name, array in self.given.items()}
            spaces.run(given, {name: array[start:stop] for name, array in self.results.items()}, team, parts)
            return
        given = {name: _filled(array[start:], count) for name, array in self.given.items()}
        results = {name: np.empty((count, *array.shape[1:]), array.dtype) for name, array in self.results.items()}
        spaces.run(given, results, team, parts)
        for name, array in self.results.items():
            array[start:] = results[name][: self.rows - start]

    def alone(self, count: int) -> bool:
        """Whether a job of so many rows wants all threads for itself."""
        return self._spaces(count).plan.foreign

    def macs(self, count: int) -> float:
        """Live multiply-adds of a job of so many rows; without end where ONNX Runtime runs some of it, which wants threads anyway."""
        return math.inf if self.alone(count) else self._spaces(count).macs

    def _spaces(self, count: int) -> Spaces:
        spaces = self.single if count == 1 else self.grouped
        assert spaces is not None
        return spaces


def _filled(array: NDArray[Any], count: int) -> NDArray[Any]:
    """Repeats of the last row behind the others."""
    return np.concatenate([array, np.repeat(array[-1:], count - len(array), 0)])


def execute(batches: Sequence[Batch], team: Team) -> None:
    """All jobs of all batches."""
    jobs = [job for batch in batches for job in batch.jobs()]
    if sum(batch.macs(count) for batch, _, count in jobs) < SMALL or not team.take():
        for batch, start, count in jobs:
            batch.run(start, count, None, 1)
        return
    try:
        apart = [job for job in jobs if job[0].alone(job[2])]
        groups = [job for job in jobs if job[2] > 1 and not job[0].alone(job[2])]
        singles = [job for job in jobs if job[2] == 1 and not job[0].alone(job[2])]
        for kind in (groups, singles):
            shared = len(kind) // team.threads * team.threads

            def one(k: int, kind: list[tuple[Batch, int, int]] = kind) -> None:
                batch, start, count = kind[k]
                batch.run(start, count, None, 1)

            if shared:
                team.share(one, shared)
            apart += kind[shared:]
        for batch, start, count in apart:
            batch.run(start, count, team, team.threads)
    finally:
        team.leave()
