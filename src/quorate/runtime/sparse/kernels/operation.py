"""What a layer becomes: code and the words it is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Operation(Protocol):
    """A layer on given layouts; any number of threads may use it.

    Attributes:
        name: of the layer.
        ir: a module whose ``void @run(ptr args, i64 part, i64 parts)`` does one part of the work.
        bytes: of weights and tables that it holds for itself.
    """

    name: str
    ir: str

    @property
    def bytes(self) -> int: ...

    def scratch(self, parts: int) -> int:
        """Bytes of memory it needs beside its arrays when run in so many parts; they begin at a cache line."""
        ...

    def words(self, at: Mapping[str, int], scratch: int, parts: int) -> list[int]:
        """The 64-bit words of a call.

        Args:
            at: {array: address of its buffer}.
            scratch: address of the scratch memory.
            parts: in how many parts the call will be run.
        """
        ...
