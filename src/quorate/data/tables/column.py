"""One column of a table as NumPy arrays: numbers, or codes into the words that occur. Types are converted, never told from values.

    declared            Arrow types that are read
    number              integers, floats, decimals; text that parses
    date                date32, date64; text such as 2020-01-31               as days since 1970-01-01
    other kinds         text, integers and booleans, also as dictionaries     as words

Shapes: numbers (N,) float64, NaN where missing; codes (N,) int64 into W different words, −1 where missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from quorate.data.split import name_rows


class Words(NamedTuple):
    """codes: (N,) int64 into words, −1 where missing. words: the W different ones, in no special order."""

    codes: np.ndarray
    words: tuple[str, ...]


class CellError(ValueError):
    """A value that can't be read: of column ``name``, expected ``what``, in ``row`` counted from 0 in the column given."""

    def __init__(self, name: str, what: str, text: str, remedy: str, row: int) -> None:
        super().__init__(f"column {name!r} must hold {what}, got {shown(text)}: {remedy}")
        self.name, self.what, self.text, self.remedy, self.row = name, what, text, remedy, row


def arrow(module: str = "pyarrow") -> Any:
    """pyarrow or one of its modules; ImportError naming the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError('tables need pyarrow, which is not installed: pip install "quorate[tables]"') from error


def as_column(name: str, values: Any) -> Any:
    """Values (N,) as an Arrow array (an Arrow column stays as it is); ValueError for values of mixed types or other shapes."""
    pa = arrow()
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if np.ndim(values) != 1:
        raise ValueError(f"column {name!r} must be one value per row, got shape {np.shape(values)}: pass a 1-D array")
    try:
        return pa.array(values, from_pandas=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise ValueError(f"column {name!r} must hold values of one type: {' '.join(str(error).split())}") from error


def numbers(name: str, values: Any) -> np.ndarray:
    """(N,) float64 of a column declared number; NaN counts as missing, but the text "nan" is no number.

    Raises CellError for text that is no number, ValueError for other types.
    """
    pa = arrow()
    plain = _decoded(as_column(name, values))
    types, kind = pa.types, plain.type
    if types.is_null(kind):
        return np.full(len(plain), np.nan)
    if _is_text(kind):
        plain = _parsed(name, plain, pa.float64(), "a number", "correct it, or name it in missing= if it stands for none")
    elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)):
        raise ValueError(f"column {name!r} is declared number, but holds {kind}: declare another kind, or convert the column")
    found = plain.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(found, np.float64)


def days(name: str, values: Any) -> np.ndarray:
    """(N,) float64 days since 1970-01-01 of a column declared date, NaN where missing.

    Raises CellError for text that is no ISO 8601 day, ValueError for other types, times of day among them.
    """
    pa = arrow()
    plain = _decoded(as_column(name, values))
    if pa.types.is_null(plain.type):
        return np.full(len(plain), np.nan)
    if _is_text(plain.type):
        remedy = "write days so, or give a time as a number (such as hours since a start)"
        plain = _parsed(name, plain, pa.date32(), "a day such as 2020-01-31", remedy)
    elif not pa.types.is_date(plain.type):
        raise ValueError(f"column {name!r} is declared date, but holds {plain.type}: give days (date32), or a number")
    return np.asarray(plain.cast(pa.date32()).cast(pa.int32()).cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def words(name: str, values: Any) -> Words:
    """The column as words: text as it stands, integers in decimal, booleans as true and false.

    Raises ValueError for other types: the text of a float has no one form.
    """
    pa = arrow()
    column = as_column(name, values)
    if pa.types.is_null(column.type):
        return Words(np.full(len(column), -1, np.int64), ())
    if not (pa.types.is_dictionary(column.type) and _is_text(column.type.value_type)):
        column = _decoded(column)
        kind = column.type
        if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise ValueError(
                f"column {name!r} must hold text, integers or booleans, but holds {kind}: declare it number, or convert it"
            )
        column = (column if pa.types.is_large_string(kind) else column.cast(pa.string())).dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    listed = column.dictionary.to_pylist()
    codes = column.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    if None in listed:  # a dictionary may hold its missing value itself
        codes = np.where(codes == listed.index(None), -1, codes)
    return _distinct(np.asarray(codes, np.int64), listed)


def bad_rows(rows: np.ndarray, bad: np.ndarray) -> str:
    """ "rows 3, 7 and 9 more": the numbers ``rows`` (N,) of those where ``bad`` (N,) is true."""
    return name_rows(rows[np.flatnonzero(bad)])


def shown(text: str) -> str:
    """A cell's text for a message of one line: quoted, at most 40 characters."""
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def _distinct(codes: np.ndarray, listed: list[str | None]) -> Words:
    """Every word once, and only words that occur."""
    numbered = {word: i for i, word in enumerate(dict.fromkeys(listed[c] for c in np.unique(codes) if c >= 0))}
    new = np.array([numbered.get(word, -1) for word in listed] + [-1], np.int64)  # the last entry is for code −1
    return Words(new[codes], tuple(str(word) for word in numbered))


def _is_text(kind: Any) -> bool:
    types = arrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _decoded(column: Any) -> Any:
    """The column without dictionary encoding."""
    return column.cast(column.type.value_type) if arrow().types.is_dictionary(column.type) else column


def _parsed(name: str, column: Any, kind: Any, what: str, remedy: str) -> Any:
    """Text, trimmed, as ``kind``; CellError at the first that can't be parsed or is NaN, found by halving."""
    pa, compute = arrow(), arrow("pyarrow.compute")
    trimmed = compute.utf8_trim_whitespace(column if not pa.types.is_string_view(column.type) else column.cast(pa.string()))

    def fails(start: int, stop: int) -> bool:
        try:
            parsed = trimmed.slice(start, stop - start).cast(kind)
        except pa.ArrowInvalid:
            return True
        return bool(pa.types.is_floating(kind) and compute.any(compute.is_nan(parsed)).as_py())

    if not fails(0, len(trimmed)):
        return trimmed.cast(kind)
    row = _first(fails, len(trimmed))
    raise CellError(name, what, column[row].as_py(), remedy, row)


def _first(fails: Callable[[int, int], bool], count: int) -> int:
    """The first index i for which ``fails(i, i + 1)``; one is known to exist in 0 … count − 1."""
    start, stop = 0, count
    while stop - start > 1:
        middle = (start + stop) // 2
        start, stop = (start, middle) if fails(start, middle) else (middle, stop)
    return start
