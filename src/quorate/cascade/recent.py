"""Recent: the last so many uncertainties of each stage, for windows that follow the stream. Memory 8 bytes · size · stages.

Shapes: scores (B,) in, the last ``size`` of them out, oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quorate.cascade.lock import Lock
from quorate.combination import Floats


class Recent:
    """Rings of the last ``size`` uncertainties per stage; may be used by several threads.

    Raises:
        ValueError: a size that is not a whole number ≥ 1.
    """

    def __init__(self, stages: int, size: int) -> None:
        if type(size) is not int or size < 1:
            raise ValueError(
                f"memory={size!r}: expected how many uncertainties to keep per stage, a whole number ≥ 1, or None for none"
            )
        self.size = size
        self._rings = [np.empty(0) for _ in range(stages)]  # of full length from the first score on
        self._seen = [0] * stages
        self._lock = Lock()

    def add_(self, scores: Sequence[Sequence[Floats]]) -> None:
        """Per stage, arrays of scores in their order."""
        with self._lock:
            for k, arrays in enumerate(scores):
                for array in arrays:
                    self._put_(k, array)

    def _put_(self, k: int, array: Floats) -> None:
        if not len(self._rings[k]):
            self._rings[k] = np.empty(self.size)
        last = array[-self.size :]
        start = (self._seen[k] + len(array) - len(last)) % self.size
        head = min(len(last), self.size - start)
        self._rings[k][start : start + head] = last[:head]
        self._rings[k][: len(last) - head] = last[head:]
        self._seen[k] += len(array)

    def scores(self) -> list[Floats]:
        """Per stage the scores that are kept, oldest first (n,), n ≤ size."""
        with self._lock:
            return [
                ring[:seen].copy() if seen <= self.size else np.roll(ring, -(seen % self.size))
                for ring, seen in zip(self._rings, self._seen, strict=True)
            ]

    def forget_(self, start: int) -> None:
        """Drop the scores of stage ``start`` and all after it."""
        with self._lock:
            self._seen[start:] = [0] * len(self._seen[start:])
