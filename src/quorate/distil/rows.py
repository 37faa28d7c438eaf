"""Large (N, L) arrays read by checked row blocks: what a game, its bounds and its search weights take their numbers from.

Shapes: an array (N, L) of float16, float32 or float64, in memory, mapped from a file, or anything with a shape that gives rows by slices;
or its row blocks (n, L) in order, N rows in all, from an iterable or a callable that returns one. A list or a tuple is an array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = ArrayLike | Iterable[NDArray] | Callable[[], Iterable[NDArray]]
"""An (N, L) array-like, or its row blocks."""

ENTRIES = 1 << 17
"""Entries of one block by default: 1 MiB in float64."""


def block_rows(outputs: int, block: int | None = None) -> int:
    """Rows of a block: ``block``, or by default as many as make :data:`ENTRIES`."""
    return whole("block", block) if block is not None else max(1, ENTRIES // outputs)


def whole(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int ≥ ``least``; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number ≥ {least}")
    return int(value)


def number(name: str, value: Any, least: float, most: float, expected: str) -> float:
    """``value`` as a float in [least, most]; ValueError that says what was ``expected`` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not least <= value <= most:
        raise ValueError(f"{name}={value!r}: expected {expected}")
    return float(value)


def sliced(values: Rows) -> Any | None:
    """The (N, L) array that can be read by slices, as often as one likes; None for row blocks that come once."""
    if isinstance(values, list | tuple):
        try:
            return np.asarray(values)
        except ValueError as error:
            raise ValueError("a list is not one rectangular (N, L) array: give an array, or row blocks by a generator") from error
    return values if hasattr(values, "shape") and hasattr(values, "__getitem__") else None


def blocks(name: str, values: Rows, shape: tuple[int, int], block: int) -> Iterator[tuple[slice, NDArray]]:
    """(rows, values (n, L)) in order, n ≤ block, each checked; nothing is held but the block.

    Raises:
        ValueError: another shape or dtype, NaN or infinities (the rows are named), too few or too many rows in the stream's end.
    """
    array = sliced(values)
    if array is not None:
        if tuple(array.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(array.shape)}: expected {shape}, (samples, outputs)")
        for start in range(0, shape[0], block):
            yield _checked(name, array[start : start + block], start, shape[1])
        return
    stream = values() if callable(values) else values
    if not isinstance(stream, Iterable) or isinstance(stream, str | bytes | dict):
        raise ValueError(f"{name} is {type(stream).__name__}: expected an array {shape}, or its row blocks (n, {shape[1]})")
    end = 0
    for given in stream:
        rows, array = _checked(name, given, end, shape[1])
        end = rows.stop
        if end > shape[0]:
            raise ValueError(f"{name} has more than {shape[0]} rows, block by block: expected {shape}, (samples, outputs)")
        for start in range(rows.start, end, block):
            part = array[start - rows.start : start - rows.start + block]
            yield slice(start, start + len(part)), part
    if end < shape[0]:
        raise ValueError(f"{name} has {end} rows, block by block: expected {shape}, (samples, outputs)")


def _checked(name: str, given: Any, start: int, outputs: int) -> tuple[slice, NDArray]:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, on another device, part of a graph
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} from row {start} on can't be read as an array ({reason}): give NumPy arrays") from error
    if array.ndim != 2 or array.shape[1] != outputs:
        raise ValueError(f"{name} from row {start} on is a block of shape {array.shape}: expected (rows, {outputs})")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(f"{name} has dtype {array.dtype}: expected float16, float32 or float64, convert it")
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(
            f"{name} has NaN or infinite values in rows {some(start + np.flatnonzero(~finite.all(1)))}: mend these rows"
        )
    return slice(start, start + len(array)), array


def some(rows: NDArray) -> str:
    """The first row numbers in words, and that there are more."""
    return ", ".join(str(row) for row in rows[:5].tolist()) + (", …" if len(rows) > 5 else "")
