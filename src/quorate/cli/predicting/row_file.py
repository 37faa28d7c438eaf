"""A file of rows: what every kind of input file gives, and the one place where its numbers are held against what the bundle takes.

Nothing is guessed. A row has the bundle's shape, and the bundle's dtype unless ``--cast`` was asked for; then, of numbers v,

    to a float     v rounded to the nearest; refused where a finite v becomes infinite
    to an integer  v itself, of integers and booleans in range; no float becomes an integer

The order of bytes in a file is no property of its numbers: it is always turned into the machine's own.

Shapes: rows (n, *shape); ids (n,) int64 or strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.program import Port

SHOWN = 5  # rows that an error names
IdKind = Literal["int", "text"]
Block = tuple[NDArray[Any], NDArray[Any] | None]
"""Rows (n, *shape) in the bundle's dtype, and their ids (n,) where the file gives them."""


@dataclass(frozen=True)
class Reading:
    """What the options say of the input files.

    Attributes:
        array: name of the array, or of the column of lists.
        columns: names of the columns that are a row's numbers, in this order.
        ids: name of the array or column of row ids.
        delimiter: between the cells of a CSV file.
        scale: pixels of image files are divided by it.
        cast: whether numbers of another dtype are converted.
    """

    array: str | None = None
    columns: tuple[str, ...] | None = None
    ids: str | None = None
    delimiter: str = ","
    scale: float | None = None
    cast: bool = False


class RowFile(Protocol):
    """A file of rows, or a folder of images.

    Attributes:
        name: for people.
        rows: how many.
        id_kind: of the ids in it; None where it has none.
    """

    name: str
    rows: int
    id_kind: IdKind | None

    def blocks(self, start: int, size: int) -> Iterator[Block]:
        """The rows from ``start`` on, at most ``size`` in a block, never more than a few blocks in memory. ValueError names the file."""
        ...

    def shown(self, rows: Sequence[int]) -> str:
        """Some of its rows, for an error."""
        ...


def shown_rows(name: str, rows: Sequence[int]) -> str:
    """``x.npy, rows 3, 7`` and how many more there are."""
    more = f", … ({len(rows)} in all)" if len(rows) > SHOWN else ""
    return f"{name}, row{'s' if len(rows) > 1 else ''} {', '.join(str(row) for row in rows[:SHOWN])}{more}"


def shown_shape(shape: Sequence[int | None]) -> str:
    """``(3, ?, ?)`` where a size is free."""
    sizes = ["?" if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def takes(port: Port) -> str:
    """What the bundle takes, in words."""
    return f"the bundle takes rows of {port.dtype}, shape {shown_shape(port.shape)}"


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in the machine's own order of bytes."""
    return dtype.newbyteorder("=")


def check_shape(where: str, shape: Sequence[int], port: Port) -> None:
    """ValueError unless a row of this shape is one of the bundle's."""
    if len(shape) != len(port.shape) or any(want not in (None, got) for want, got in zip(port.shape, shape, strict=True)):
        raise ValueError(f"{where} holds rows of shape {shown_shape(shape)}: {takes(port)}; reshape what is in it")


def check_dtype(where: str, dtype: np.dtype[Any], port: Port, cast: bool) -> None:
    """ValueError unless numbers of this dtype are the bundle's, or become them by a cast that was asked for."""
    have, want = native(dtype), np.dtype(port.dtype)
    if have == want:
        return
    possible = (have.kind in "biu" and want.kind in "iuf") or (have.kind == "f" and want.kind == "f")
    if not possible:
        raise ValueError(
            f"{where} holds {have}: {takes(port)}; --cast does not round, store them in the range that the network was trained on"
        )
    if not cast:
        raise ValueError(f"{where} holds {have}: {takes(port)}; store them so, or give --cast to have them converted")


def converted(where: str, values: NDArray[Any], port: Port) -> NDArray[Any]:
    """Values of a dtype that was checked, in the bundle's. ValueError for what it can't hold."""
    want = np.dtype(port.dtype)
    if native(values.dtype) == want:
        return values.astype(want, copy=False)
    with np.errstate(over="ignore"):
        found = values.astype(want)
    if want.kind == "f":
        wrong = np.isinf(found) & np.isfinite(values)
    else:
        limits = np.iinfo(want)
        wrong = (values < limits.min) | (values > limits.max)
    if wrong.any():
        raise ValueError(
            f"{where} holds {values[wrong].flat[0]}, which {want} can't hold: {takes(port)}; mend or scale the values"
        )
    return found


def check_id_dtype(where: str, name: str, dtype: np.dtype[Any], shape: Sequence[int], rows: int) -> IdKind:
    """Whether the ids are integers or text. ValueError for others, or another number of them."""
    if tuple(shape) != (rows,) or dtype.kind not in "iuU":
        raise ValueError(
            f"{where}: --ids {name} is {dtype} of shape {shown_shape(shape)}: expected an integer or text per row, shape ({rows},)"
        )
    return "text" if dtype.kind == "U" else "int"


def as_ids(where: str, ids: NDArray[Any]) -> NDArray[Any]:
    """Ids as int64 or strings. ValueError for integers that int64 can't hold."""
    if ids.dtype.kind == "U":
        return ids
    if native(ids.dtype) == np.uint64 and len(ids) and ids.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{where} has the id {ids.max()}: expected integers below 2**63, store them as text")
    return ids.astype(np.int64)


def reason(error: BaseException) -> str:
    """What a reader complains of, on one line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
