"""Stages on arrays alone that can be streamed to, members from the running sum of a sequence; and a source that notes its requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


class Summing:
    """Members from the running sum of the sequence (B, C, L), carried on; notes the parts it got."""

    def __init__(self, name: str, span: Any, before: str | None = None, macs: float | None = None, members: int = 1) -> None:
        self.name, self.span, self.macs, self.members = name, span, macs, members
        self.reads = () if before is None else (f"{before}.sum",)
        self.writes, self.drops = (f"{name}.sum",), self.reads
        self.parts: list[np.ndarray] = []

    def __call__(self, x: Any, carry: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return self.arrived(x[..., self.span[0] : self.span[1]], carry)

    def arrived(self, part: Any, carry: Any) -> tuple[np.ndarray, dict[str, Any]]:
        assert set(carry) == set(self.reads)
        self.parts.append(np.array(part))
        total = np.zeros(part.shape[:-1]) + sum(carry[name] for name in self.reads)
        for t in range(part.shape[-1]):  # one by one, so that sums are rounded the same way however chunks are cut
            total = total + part[..., t]
        return np.stack([total / (m + 1) for m in range(self.members)]), {self.writes[0]: total}


def summing(*stops: int, **options: Any) -> list[Summing]:
    names = [f"part{k + 1}" for k in range(len(stops))]
    return [
        Summing(name, (start, stop), before, **options)
        for name, start, stop, before in zip(names, (0, *stops), stops, (None, *names), strict=False)
    ]


def sequences(seed: int = 0, rows: int = 6, length: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 3, length))


class Source:
    """Chunks of these lengths of x, one after the other; notes how many were requested."""

    def __init__(self, x: Any, sizes: list[int]) -> None:
        self.x, self.sizes, self.requested, self.calls = x, sizes, 0, 0

    def __iter__(self) -> Iterator[Any]:
        for size in self.sizes:
            self.calls += 1
            self.requested += size
            yield self.x[..., self.requested - size : self.requested]
