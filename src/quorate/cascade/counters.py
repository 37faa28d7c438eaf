"""Counters: what an executing cascade did, per stage, since it was made or they were last reset.

A row that reaches stage k is counted there once; it leaves there, or it goes on: rows_k = exits_k + rows_{k+1}. A chunk of rows is counted
when it is through; one in which a stage failed is not counted at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.cascade.lock import Lock


@dataclass(frozen=True)
class StageCounters:
    """One stage's numbers.

    Attributes:
        name: the stage's.
        rows: rows that reached it.
        calls: calls of it; their mean batch is rows / calls.
        exits: rows that left here, by its window or because the cost cap held them back.
        accepted: rows that left here and were accepted, U ≤ τ.
        capped: rows that would have gone on but for the cost cap; they are among the exits.
        seconds: wall-clock time in its calls.
        macs: cost of its rows, in MACs (or the one unit of the policy's costs).
    """

    name: str
    rows: int = 0
    calls: int = 0
    exits: int = 0
    accepted: int = 0
    capped: int = 0
    seconds: float = 0.0
    macs: float = 0.0

    @property
    def passed(self) -> int:
        """Rows that would go on by the policy, those that the cap held back included."""
        return self.rows - self.exits + self.capped


@dataclass(frozen=True)
class Counters:
    """A snapshot of all stages' counters, in order."""

    stages: tuple[StageCounters, ...]

    @property
    def rows(self) -> int:
        """Rows predicted."""
        return self.stages[0].rows

    @property
    def accepted(self) -> int:
        """Rows accepted."""
        return sum(stage.accepted for stage in self.stages)

    @property
    def capped(self) -> int:
        """Rows that the cost cap held back."""
        return sum(stage.capped for stage in self.stages)

    @property
    def mean_macs(self) -> float:
        """Mean cost per row; 0 for no rows."""
        return sum(stage.macs for stage in self.stages) / self.rows if self.rows else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"stages": [asdict(stage) for stage in self.stages]}


class Tally:
    """The counts of one chunk on its way through the stages."""

    def __init__(self, stages: int) -> None:
        self.rows, self.calls, self.exits, self.accepted, self.capped = ([0] * stages for _ in range(5))
        self.seconds = [0.0] * stages

    def called_(self, k: int, seconds: float) -> None:
        """One call of stage k."""
        self.calls[k] += 1
        self.seconds[k] += seconds

    def ended_(self, stage: NDArray[np.int64], accepted: NDArray[np.bool_]) -> None:
        """The chunk's rows, by their stage of exit (B,) and whether they were accepted (B,)."""
        count = len(self.rows)
        self.exits = np.bincount(stage, minlength=count).tolist()
        self.accepted = np.bincount(stage[accepted], minlength=count).tolist()
        left = len(stage)
        for k, exits in enumerate(self.exits):
            self.rows[k] = left
            left -= exits

    def passed(self) -> list[tuple[int, int]]:
        """Per stage but the last (rows that reached it, rows that would go on), up to the first at which the cap held rows back.

        Rows further on were then chosen by the cap: their rate is not the policy's.
        """
        found = []
        for k, rows in enumerate(self.rows[:-1]):
            found.append((rows, rows - self.exits[k] + self.capped[k]))
            if self.capped[k]:
                break
        return found


class Counting:
    """Totals over chunks; may be used by several threads."""

    def __init__(self, names: Sequence[str], costs: Sequence[float]) -> None:
        self._names, self._costs = tuple(names), tuple(costs)
        self._lock = Lock()
        self._total = Tally(len(self._names))

    def add_(self, chunk: Tally) -> None:
        """Count a chunk that is through."""
        with self._lock:
            for key, total in vars(self._total).items():
                more = getattr(chunk, key)
                for k, value in enumerate(more):
                    if value:
                        total[k] += value

    def one_(self, exit_: int, accepted: bool, seconds: Sequence[float]) -> None:
        """Count a row that is through, after a call of each stage that took so long."""
        with self._lock:
            total = self._total
            for k, took in enumerate(seconds):
                total.rows[k] += 1
                total.calls[k] += 1
                total.seconds[k] += took
            total.exits[exit_] += 1
            total.accepted[exit_] += accepted

    def reset_(self) -> None:
        """Start from zero."""
        with self._lock:
            self._total = Tally(len(self._names))

    def snapshot(self) -> Counters:
        """The numbers so far."""
        with self._lock:
            t = self._total
            return Counters(
                tuple(
                    StageCounters(
                        name, t.rows[k], t.calls[k], t.exits[k], t.accepted[k], t.capped[k], t.seconds[k], t.rows[k] * cost
                    )
                    for k, (name, cost) in enumerate(zip(self._names, self._costs, strict=True))
                )
            )
