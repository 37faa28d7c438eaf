"""Lock: one that a copy or a pickle of its owner has anew, so that what counts under it can still be copied and sent to workers."""

from __future__ import annotations

import threading
from typing import Any


class Lock:
    """A ``threading.Lock`` for ``with``; copies are fresh, unlocked ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()
