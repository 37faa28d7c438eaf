"""What was found out about a network on a machine: kernels and forms by layer and layout, what runs dense, and what it took.

Written and read as JSON; a tuning belongs to one network (its content), one processor and one number of threads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quorate.runtime.sparse.choices import Choice

Layout = Literal["latency", "throughput"]
Engine = Literal["sparse", "dense"]
LAYOUTS: tuple[Layout, Layout] = ("latency", "throughput")
FORMAT = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of a layer for one job by one thread: as chosen, and dense in ONNX Runtime (None where that was not tried)."""

    seconds: float
    dense: float | None = None


@dataclass(frozen=True)
class Tuning:
    """Decisions of one network; empty ones leave everything to the rules.

    Attributes:
        engine: by layout, whether the network as a whole runs here or dense.
        dense: by layout, the layers that run dense in ONNX Runtime in the middle of the others.
        choices: by layout and layer.
        timings: by layout and layer.
        whole: by layout, seconds of a job by all threads: (sparse, dense).
        pad_from: with at least so many rows left over, a group is filled up with repeats instead of running them one by one.
        dense_from: batches of at least so many rows run dense as a whole; None for none.
    """

    engine: Mapping[Layout, Engine] = field(default_factory=dict)
    dense: Mapping[Layout, tuple[str, ...]] = field(default_factory=dict)
    choices: Mapping[Layout, Mapping[str, Choice]] = field(default_factory=dict)
    timings: Mapping[Layout, Mapping[str, Timing]] = field(default_factory=dict)
    whole: Mapping[Layout, tuple[float, float]] = field(default_factory=dict)
    pad_from: int | None = None
    dense_from: int | None = None

    def to_json(self) -> str:
        """As text."""
        return json.dumps(
            {
                "format": FORMAT,
                "engine": dict(self.engine),
                "dense": {key: list(names) for key, names in self.dense.items()},
                "choices": {key: {name: c.to_json() for name, c in by.items()} for key, by in self.choices.items()},
                "timings": {key: {name: [t.seconds, t.dense] for name, t in by.items()} for key, by in self.timings.items()},
                "whole": {key: list(pair) for key, pair in self.whole.items()},
                "pad_from": self.pad_from,
                "dense_from": self.dense_from,
            },
            sort_keys=True,
        )

    @staticmethod
    def from_json(text: str) -> Tuning:
        """Of :meth:`to_json`. Raises ValueError for anything else."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError("another format")
            rows = data["pad_from"], data["dense_from"]
            if any(count is not None and (type(count) is not int or count < 1) for count in rows):
                raise ValueError("numbers of rows")
            return Tuning(
                {_layout(key): _engine(value) for key, value in data["engine"].items()},
                {_layout(key): tuple(str(name) for name in names) for key, names in data["dense"].items()},
                {_layout(key): {name: Choice.from_json(c) for name, c in by.items()} for key, by in data["choices"].items()},
                {_layout(key): {name: _timing(t) for name, t in by.items()} for key, by in data["timings"].items()},
                {_layout(key): (float(pair[0]), float(pair[1])) for key, pair in data["whole"].items()},
                *rows,
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, IndexError, RecursionError, ArithmeticError, ValueError) as error:
            raise ValueError(f"no tuning of this version ({' '.join(str(error).split())[:100]}): tune anew") from error


def _layout(name: Any) -> Layout:
    for layout in LAYOUTS:
        if name == layout:
            return layout
    raise ValueError(f"layout {name!r}")


def _timing(pair: Any) -> Timing:
    return Timing(float(pair[0]), None if pair[1] is None else float(pair[1]))


def _engine(name: Any) -> Engine:
    if name == "sparse":
        return "sparse"
    if name == "dense":
        return "dense"
    raise ValueError(f"engine {name!r}")
