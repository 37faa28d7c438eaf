"""Rows in tables: ``.csv`` and ``.parquet``, read in pieces.

    --columns A B C   the numbers of a row (3,), in this order
    --array NAME      .parquet only: a column that holds a whole row: lists nested as deep as the bundle's shape, each level of its
                      size, or Arrow's fixed_shape_tensor of that shape

A CSV file has a header line and as many cells in each line; its text becomes the bundle's dtype: numbers as Python reads them, an empty
cell NaN, of integers whole numbers in range, of booleans 0 or 1. A Parquet column has a type, which must be the bundle's dtype (see
``row_file``); a null number is NaN, which only floats have. Ids of a CSV file are text.

Sources: RFC 4180 (CSV); https://parquet.apache.org/docs/file-format/ (row groups, which make it readable in pieces).
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate._optional import imported
from quorate._validation import nearest
from quorate.cli.predicting.row_file import (
    Block,
    IdKind,
    Reading,
    as_ids,
    check_dtype,
    check_id_dtype,
    check_shape,
    converted,
    reason,
    shown_rows,
    shown_shape,
    takes,
)
from quorate.cli.usage import UsageError
from quorate.runtime.program import Port


def _check_columns(where: str, header: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if header.count(name) != 1:
            some = f"{', '.join(header[:20])}{', …' if len(header) > 20 else ''}"
            raise ValueError(
                f"{where} has {header.count(name)} columns {name!r}{nearest(name, list(header))}: expected one; it has {some}"
            )


def _column_shape(where: str, columns: Sequence[str], port: Port) -> tuple[int, ...]:
    """The shape of a row made of columns: in row-major order where the bundle's rows have several axes. One may be a single number."""
    if len(port.shape) > 1:
        sizes = [size for size in port.shape if size is not None]
        if len(sizes) < len(port.shape) or math.prod(sizes) != len(columns):
            raise ValueError(
                f"{where}: --columns name {len(columns)} numbers a row: {takes(port)}; name as many, the last axis running fastest"
            )
        return tuple(sizes)
    shape = () if len(columns) == 1 and port.shape == () else (len(columns),)
    check_shape(f"{where}: the row of --columns", shape, port)
    return shape


class CsvFile:
    """A ``.csv`` file. Its lines are counted, and held against the header, when it is opened."""

    id_kind: IdKind | None

    def __init__(self, path: Path, name: str, port: Port, reading: Reading) -> None:
        self.path, self.name, self.port, self.reading = path, name, port, reading
        if reading.array is not None:
            raise UsageError(f"--array {reading.array}: a .csv file ({name}) has columns, give --columns")
        if reading.columns is None:
            raise UsageError(f"{name}: which columns are a row's numbers is never guessed, give --columns in their order")
        if reading.cast:
            raise UsageError(f"--cast: the text in a .csv file ({name}) has no type to be cast from, leave it out")
        lines = self._lines()
        header = next(lines, (0, []))[1]
        _check_columns(name, header, [*reading.columns, *([] if reading.ids is None else [reading.ids])])
        self.shape = _column_shape(name, reading.columns, port)
        self.at = [header.index(column) for column in reading.columns]
        self.id_at = None if reading.ids is None else header.index(reading.ids)
        self.id_kind = None if reading.ids is None else "text"
        self.rows = sum(1 for _ in self._checked(lines, len(header)))

    def blocks(self, start: int, size: int) -> Iterator[Block]:
        """See :class:`quorate.cli.predicting.row_file.RowFile`."""
        lines = self._lines()
        header = next(lines, (0, []))[1]
        rows = itertools.islice(self._checked(lines, len(header)), start, None)
        while piece := list(itertools.islice(rows, size)):
            x = self._numbers(piece).reshape(len(piece), *self.shape)
            yield x, None if self.id_at is None else np.array([cells[self.id_at] for _, cells in piece])

    def shown(self, rows: Sequence[int]) -> str:
        """See :class:`quorate.cli.predicting.row_file.RowFile`."""
        return shown_rows(self.name, rows)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """(number of its last line, cells) of each record, without empty lines."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                records = csv.reader(file, delimiter=self.reading.delimiter, strict=True)
                yield from ((records.line_num, cells) for cells in records if cells)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{self.name} is not a readable CSV file ({reason(error)}): expected UTF-8 text separated by {self.reading.delimiter!r}"
            ) from error

    def _checked(self, lines: Iterator[tuple[int, list[str]]], width: int) -> Iterator[tuple[int, list[str]]]:
        for line, cells in lines:
            if len(cells) != width:
                raise ValueError(
                    f"{self.name}, line {line}, has {len(cells)} cells: expected {width} as in the header; mend the line"
                )
            yield line, cells

    def _numbers(self, rows: Sequence[tuple[int, list[str]]]) -> NDArray[Any]:
        """(n, columns) in the bundle's dtype."""
        want = np.dtype(self.port.dtype)
        parse: Any = _real if want.kind == "f" else int
        try:
            values = [[parse(cells[at]) for at in self.at] for _, cells in rows]
            with np.errstate(over="ignore"):
                found = np.array(values, np.float64 if want.kind == "f" else object).astype(want)
            if want.kind == "f":
                fine = not (np.isinf(found) & np.isfinite(np.array(values))).any()
            else:
                low, high = (0, 1) if want.kind == "b" else (np.iinfo(want).min, np.iinfo(want).max)
                fine = all(low <= value <= high for row in values for value in row)
        except (ValueError, OverflowError):
            fine = False
        if fine:
            return found
        raise self._wrong(rows, parse, want)

    def _wrong(self, rows: Sequence[tuple[int, list[str]]], parse: Any, want: np.dtype[Any]) -> ValueError:
        """The error for the first cell that is no such number."""
        for line, cells in rows:
            for at, column in zip(self.at, self.reading.columns or (), strict=True):
                try:
                    converted("", np.array([parse(cells[at])]), Port("", "uint8" if want.kind == "b" else want.name, ()))
                    fine = want.kind != "b" or parse(cells[at]) in (0, 1)
                except (ValueError, OverflowError):
                    fine = False
                if not fine:
                    expected = {"f": "a number", "b": "0 or 1"}.get(want.kind, "a whole number")
                    return ValueError(
                        f"{self.name}, line {line}, column {column!r}: {cells[at]!r} is not {expected} that {want} holds; mend the cell"
                    )
        raise AssertionError("a cell was refused before")


def _real(text: str) -> float:
    return float(text) if text.strip() else math.nan


class ParquetFile:
    """A ``.parquet`` file; groups of rows that are not needed are not read."""

    id_kind: IdKind | None

    def __init__(self, path: Path, name: str, port: Port, reading: Reading) -> None:
        self.path, self.name, self.port, self.reading = path, name, port, reading
        if (reading.array is None) == (reading.columns is None):
            given = "neither was given" if reading.array is None else "both were given"
            raise UsageError(f"{name}: expected --array with a column of lists, or --columns with columns of numbers; {given}")
        self.arrow = imported("pyarrow", "quorate[tables]")
        with self._opened() as file:
            schema, self.rows = file.schema_arrow, int(file.metadata.num_rows)
        wanted = list(reading.columns or [str(reading.array)])
        ids = [] if reading.ids is None else [reading.ids]
        _check_columns(name, schema.names, [*wanted, *ids])
        self.wanted = list(dict.fromkeys([*wanted, *ids]))
        for column in wanted:
            self._check_type(f"{name}, column {column!r},", schema.field(column).type, () if reading.columns else port.shape)
        if reading.columns is not None:
            self.shape = _column_shape(name, reading.columns, port)
        self.id_kind = None
        if reading.ids is not None:
            kind = schema.field(reading.ids).type
            text = self.arrow.types.is_string(kind) or self.arrow.types.is_large_string(kind)
            dtype = np.dtype("U") if text else self._dtype(kind) or np.dtype(object)
            self.id_kind = check_id_dtype(name, reading.ids, dtype, (self.rows,), self.rows)

    def blocks(self, start: int, size: int) -> Iterator[Block]:
        """See :class:`quorate.cli.predicting.row_file.RowFile`."""
        with self._opened() as file:
            counts = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
            first = 0
            while first < len(counts) and start >= counts[first]:
                start -= counts[first]
                first += 1
            if first == len(counts):
                return
            at = sum(counts[:first])
            for batch in file.iter_batches(size, row_groups=list(range(first, len(counts))), columns=self.wanted):
                skipped = min(start, batch.num_rows)
                start, at = start - skipped, at + skipped
                if skipped < batch.num_rows:
                    yield self._block(batch.slice(skipped), at)
                    at += batch.num_rows - skipped

    def shown(self, rows: Sequence[int]) -> str:
        """See :class:`quorate.cli.predicting.row_file.RowFile`."""
        return shown_rows(self.name, rows)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        parquet = imported("pyarrow.parquet", "quorate[tables]")
        try:
            with parquet.ParquetFile(self.path) as file:
                yield file
        except FileNotFoundError:
            raise
        except (self.arrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.name} is not a readable .parquet file ({reason(error)}): write it anew") from error

    def _block(self, batch: Any, at: int) -> Block:
        if self.reading.columns is None:
            where = f"{self.name}, column {self.reading.array!r},"
            x = self._nested(where, batch.column(self.reading.array), at)
        else:
            parts = [self._flat(f"{self.name}, column {name!r},", batch.column(name), at) for name in self.reading.columns]
            x = np.stack(parts, 1).reshape(batch.num_rows, *self.shape)
        if self.reading.ids is None:
            return x, None
        ids = batch.column(self.reading.ids)
        if ids.null_count:
            raise ValueError(f"{self.name} has no id in row {at + self._null(ids)}: give every row one")
        found = ids.to_numpy(zero_copy_only=False)
        return x, as_ids(self.name, np.array(found.tolist(), str) if self.id_kind == "text" else found)

    def _nested(self, where: str, column: Any, at: int) -> NDArray[Any]:
        """(n, *shape) of a column of lists, or of tensors."""
        rows, sizes, types = len(column), [], self.arrow.types
        if column.null_count:
            raise ValueError(
                f"{where} is null in row {at + self._null(column)}: give every row its numbers, or leave it out of the file"
            )
        if isinstance(column.type, self.arrow.FixedShapeTensorType):
            sizes, column = list(column.type.shape), column.storage.flatten()
        while types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
            lengths = imported("pyarrow.compute").list_value_length(column).to_numpy(zero_copy_only=False)
            if column.null_count or len(np.unique(lengths)) != 1:
                raise ValueError(
                    f"{where} has lists of different lengths from row {at} on: {takes(self.port)}; give all rows one shape"
                )
            sizes.append(int(lengths[0]))
            column = column.flatten()
        check_shape(where, sizes, self.port)
        return self._flat(where, column, at, math.prod(sizes)).reshape(rows, *sizes)

    def _flat(self, where: str, column: Any, at: int, per_row: int = 1) -> NDArray[Any]:
        """The numbers of a column in the bundle's dtype, null ones as NaN."""
        if column.null_count and not self.arrow.types.is_floating(column.type):
            row = at + self._null(column) // per_row
            raise ValueError(
                f"{where} has a null in row {row}, and {column.type} has no NaN: mend the row, or leave it out of the file"
            )
        return converted(where, column.to_numpy(zero_copy_only=False), self.port)

    def _null(self, column: Any) -> int:
        return int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])

    def _check_type(self, where: str, kind: Any, shape: Sequence[int | None]) -> None:
        """ValueError unless a column of this Arrow type can be a row of this shape."""
        types, sizes = self.arrow.types, []
        if isinstance(kind, self.arrow.FixedShapeTensorType):
            if kind.permutation is not None and list(kind.permutation) != sorted(kind.permutation):
                raise ValueError(f"{where} holds tensors whose axes are permuted: store them in row-major order")
            sizes, kind = list(kind.shape), kind.value_type
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            sizes.append(kind.list_size if types.is_fixed_size_list(kind) else None)
            kind = kind.value_type
        dtype = self._dtype(kind)
        fits = len(sizes) == len(shape) and all(
            None in (want, got) or want == got for want, got in zip(shape, sizes, strict=True)
        )
        if dtype is None or not fits:
            held = f"{kind} of shape {shown_shape(sizes)} in a row"
            raise ValueError(
                f"{where} holds {held}: {takes(self.port)}" + ("" if fits else "; nest its lists so, or store such rows as .npy")
            )
        check_dtype(where, dtype, self.port, self.reading.cast)

    def _dtype(self, kind: Any) -> np.dtype[Any] | None:
        types = self.arrow.types
        numeric = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        return np.dtype(kind.to_pandas_dtype()) if numeric else None
