"""Chunks of a sequence in, parts of any length out: what lies between a source that sends as it likes and stages that have spans.

Shapes: chunks (B, …, n) with B and … fixed and any n ≥ 1, steps last, of one framework and dtype; parts (B, …, count). Only the steps that
no part has taken yet are held, as copies: a source may fill one array again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.cascade.cascade import concat

_END = object()


@dataclass
class Feed:
    """Chunks in, parts of any length out; holds the steps between the two."""

    chunks: Iterator[Any]
    requested: int = 0
    held: list[Any] = field(default_factory=list)  # arrays of its own, nothing of them taken yet
    like: tuple[tuple[int, ...], str] | None = None

    def take(self, count: int) -> Any | None:
        """The next ``count`` steps of all rows; None where the sequence ends before. Asks for chunks only while steps are missing."""
        have = sum(piece.shape[-1] for piece in self.held)
        while have < count:
            chunk: Any = next(self.chunks, _END)
            if chunk is _END:
                return None
            self.held.append(self._own(chunk))
            del chunk  # it is the source's while the next one is waited for
            have += self.held[-1].shape[-1]
            self.requested += self.held[-1].shape[-1]
        *whole, last = self.held
        cut = last.shape[-1] - (have - count)
        self.held = [concat([last[..., cut:]], -1)] if have > count else []
        return concat([*whole, last[..., :cut]], -1) if whole else last[..., :cut]

    def _own(self, chunk: Any) -> Any:
        at = f"the chunk after {self.requested} steps"
        shape = tuple(getattr(chunk, "shape", ()))
        if len(shape) < 2 or 0 in shape:
            raise ValueError(
                f"{at} is {type(chunk).__name__} of shape {shape}: expected an array (rows, …, steps), at least 1 of each"
            )
        kind = str(chunk.dtype)
        if isinstance(chunk, np.ndarray) and chunk.dtype.kind not in "fiub":
            raise ValueError(f"{at} has dtype {kind}: expected real numbers, convert it")
        if self.like is None:
            self.like = shape[:-1], kind
        if (shape[:-1], kind) != self.like:
            sizes, first = self.like
            wanted = f"({', '.join(map(str, sizes))}, any number of steps)"
            raise ValueError(f"{at} has shape {shape} and dtype {kind}: expected {wanted} and {first}, as the first chunk")
        try:
            return concat([chunk], -1)
        except ValueError as error:
            raise ValueError(
                f"{at} is {type(chunk).__name__}: expected a NumPy array, a tensor, or an array of the Python array API"
            ) from error


def finite_rows(part: Any) -> NDArray[np.bool_]:
    """Which rows of a part (B, …) have finite values only (B,)."""
    if isinstance(part, np.ndarray):
        return np.asarray(np.isfinite(part).reshape(part.shape[0], -1).all(1))
    if hasattr(part, "isfinite"):
        finite = part.isfinite()
        return np.ones(part.shape[0], bool) if finite.all() else np.asarray(finite.flatten(1).all(1).cpu())
    space = part.__array_namespace__()
    finite = space.isfinite(part)
    return np.asarray([bool(space.all(finite[i])) for i in range(part.shape[0])])
