"""Rows read one by one: all of one shape, and what becomes of those that cannot be read.

Shapes: every row (*shape), that of the first row that can be read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from quorate.data.listing import SHOWN
from quorate.data.store import Unreadable

T = TypeVar("T")


def one_shape(
    read: Callable[[T], np.ndarray], rows: Sequence[T], name: Callable[[T], str], remedy: str
) -> tuple[tuple[int, ...], Callable[[T], np.ndarray]]:
    """(the shape of the first readable row, a `read` that raises ValueError naming two rows where another shape comes).

    name: what a row is called in that error, which ends in `remedy`. Raises ValueError if no row can be read.
    """

    def tried(row: T) -> tuple[int, ...] | str:
        try:
            return read(row).shape
        except Unreadable as error:
            return str(error)

    reason = "there are none"
    for first in rows:
        shape = tried(first)
        if not isinstance(shape, str):
            return shape, _checked(read, shape, first, name, remedy)
        reason = f"{name(first)}: {shape}" if first == rows[0] else reason
    raise ValueError(f"none of {len(rows)} rows can be read ({reason}): check the source")


def _checked(
    read: Callable[[T], np.ndarray], shape: tuple[int, ...], first: T, name: Callable[[T], str], remedy: str
) -> Callable[[T], np.ndarray]:
    def checked(row: T) -> np.ndarray:
        x = read(row)
        if x.shape != shape:
            raise ValueError(
                f"all inputs must have one shape, got {shape} in {name(first)} and {x.shape} in {name(row)}: {remedy}"
            )
        return x

    return checked


def check_unreadable(unreadable: str) -> None:
    """ValueError unless "error" or "skip", what becomes of rows that cannot be read."""
    if unreadable not in ("error", "skip"):
        raise ValueError(f"unreadable must be 'error' or 'skip', got {unreadable!r}")


def readable_rows(
    where: str,
    count: int,
    bad: Mapping[int, str],
    unreadable: Literal["error", "skip"],
    what: str = "rows",
    name: Callable[[int], str] = "row {}".format,
) -> np.ndarray:
    """The rows of 0..count − 1 that are not in `bad` {row: reason}, ascending.

    Raises ValueError naming the first few bad rows, unless "skip": then a line on stderr does. ValueError if all are bad.
    what, name: what the rows, and a row, are called there.
    """
    if bad:
        some = ", ".join(f"{name(row)} ({bad[row]})" for row in sorted(bad)[:SHOWN])
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        said = f"{where}: {len(bad)} of {count} {what} cannot be read: {some}{more}"
        if unreadable == "error" or len(bad) == count:
            raise ValueError(f"{said}: mend or remove them, or leave them out by unreadable='skip' if others are readable")
        print(f"{said}: left out", file=sys.stderr)
    return np.setdiff1d(np.arange(count), sorted(bad))
