"""Reading a CSV or Parquet file into an Arrow table of the declared columns.

CSV: UTF-8 (a byte-order mark is passed over), one header line, quoted cells may hold delimiters, doubled quotes and line ends; empty lines
are passed over. A quote that is not closed makes one cell of all rows up to the next quote, unnoticed in a column that is not used: files
that hold a quote are first parsed strictly. Columns get the type that is declared; text that parses as something else stays text. Rows
are counted from 0 below the header, lines from 1.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from quorate._validation import nearest
from quorate.data.tables.column import CellError, arrow, days, numbers

Format = Literal["csv", "parquet"]
Content = Literal["number", "date", "words"]
MISSING = ("",)  # words of a CSV file that stand for no value
BLOCK = 1 << 24  # bytes of a CSV file that one thread parses; no row may be longer


def file_format(path: str | Path, format: Format | None = None) -> Format:
    """``format``, or by the file's name, .csv or .parquet; FileNotFoundError, ValueError for another name or format."""
    if not isinstance(path, str | PathLike):
        raise ValueError(f"a table must be the path of a file, got {type(path).__name__}: write it as .csv or .parquet first")
    path = Path(path)
    if format not in (None, "csv", "parquet"):
        raise ValueError(f"format must be 'csv' or 'parquet', got {format!r}")
    if not path.is_file():
        raise FileNotFoundError(f"expected a table, found no file at {path}: check the path")
    suffix = path.suffix.lower()
    if format is None and suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path} must be called .csv or .parquet: rename it, or pass format='csv' or 'parquet'")
    return format or ("csv" if suffix == ".csv" else "parquet")


def check_header(
    path: str | Path, header: Sequence[str], columns: Collection[str], ignored: Collection[str], other: str, hint: str = ""
) -> None:
    """ValueError for names that repeat, a column that is not there, or one that nobody declared (unless ``other`` is "ignore")."""
    there = Counter(header)
    again = [name for name, times in there.items() if times > 1]
    if again:
        raise ValueError(f"{path} must name every column once, got {again[0]!r} again{hint}: rename it")
    for name in columns:
        if name not in there:
            some = (", ".join(map(repr, header[:10])) or "none at all") + (", …" if len(header) > 10 else "")
            raise ValueError(f"{path} has no column {name!r}, got {some}{hint}{nearest(name, list(map(str, header)))}")
    known = {*columns, *ignored}
    extra = [name for name in header if name not in known]
    if extra and other == "error":
        close = nearest(extra[0], [name for name in ignored if name not in there])
        raise ValueError(
            f"{path} has the column {extra[0]!r} ({len(extra)} in all), which isn't declared{hint}{close}: declare its kind or "
            "'ignore', or pass other='ignore' for all"
        )


def read_columns(
    path: str | Path,
    columns: Mapping[str, Content],
    ignored: Collection[str] = (),
    other: Literal["error", "ignore"] = "error",
    missing: Sequence[str] = MISSING,
    delimiter: str = ",",
    decimal: str = ".",
    format: Format | None = None,
) -> Any:
    """The declared columns of a file as a `pyarrow.Table` with at least one row; numbers of a CSV are float64.

    columns: {name: what it holds}. ignored: columns that may be there too; others are an error, or ignored by ``other``.
    missing: words that stand for no value, CSV only. delimiter, decimal: one character each, CSV only.
    Raises FileNotFoundError; ValueError naming the file, and line, row, column and text, for whatever can't be read.
    """
    if other not in ("error", "ignore"):
        raise ValueError(f"other must be 'error' or 'ignore', got {other!r}")
    if file_format(path, format) == "parquet":
        return _read_parquet(path, columns, ignored, other)
    _check_dialect(missing, delimiter, decimal)
    return _read_csv(path, columns, ignored, other, missing, delimiter, decimal)


def _check_dialect(missing: Sequence[str], delimiter: str, decimal: str) -> None:
    for name, value in (("delimiter", delimiter), ("decimal", decimal)):
        if not isinstance(value, str) or len(value) != 1 or not value.isascii() or value in '"\r\n':
            raise ValueError(f"{name} must be one ASCII character, not a quote or line end, got {value!r}")
    if delimiter == decimal:
        raise ValueError(f"delimiter and decimal must differ, got {delimiter!r} for both")
    if isinstance(missing, str) or not isinstance(missing, Collection) or not all(isinstance(word, str) for word in missing):
        raise ValueError(f"missing must be a sequence of words, got {missing!r}: write missing=['', 'NA']")


def _read_parquet(path: str | Path, columns: Collection[str], ignored: Collection[str], other: str) -> Any:
    pa, parquet = arrow(), arrow("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            check_header(path, file.schema_arrow.names, columns, ignored, other)
            table = file.read(columns=list(columns)).select(list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {_one_line(error)}") from error
    return _with_rows(path, table)


def _read_csv(
    path: str | Path,
    columns: Mapping[str, Content],
    ignored: Collection[str],
    other: str,
    missing: Sequence[str],
    delimiter: str,
    decimal: str,
) -> Any:
    pa = arrow()
    _check_quotes(path, delimiter)
    header = next((cells for _, cells in _records(path, delimiter)), None)
    if header is None:
        raise ValueError(f"{path} is empty: expected a header line and rows")
    check_header(path, header, columns, ignored, other, f" (read with delimiter {delimiter!r})")
    text = pa.dictionary(pa.int32(), pa.string())
    types = {"number": pa.float64(), "date": pa.date32(), "words": text}

    def read(kinds: Mapping[str, Any]) -> Any:
        pacsv = arrow("pyarrow.csv")
        with open(path, "rb") as file:
            return pacsv.read_csv(
                file,
                read_options=pacsv.ReadOptions(block_size=BLOCK),
                parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    column_types=kinds,
                    include_columns=list(kinds),
                    null_values=list(missing),
                    strings_can_be_null=True,
                    decimal_point=decimal,
                ),
            )

    try:
        table = read({name: types[content] for name, content in columns.items()})
    except pa.ArrowInvalid as error:
        try:
            as_text = read(dict.fromkeys(columns, text))
        except pa.ArrowInvalid as again:
            _find_ragged(path, delimiter, len(header))
            raise ValueError(f"{path} is not readable as CSV: {_one_line(again)}: write it as plain UTF-8 text") from again
        _find_cell(path, as_text, columns, delimiter, decimal)
        raise ValueError(f"{path} is not readable as CSV: {_one_line(error)}") from error
    compute = arrow("pyarrow.compute")
    said = [name for name, content in columns.items() if content == "number" and compute.any(compute.is_nan(table[name])).as_py()]
    if said:  # NaN is written in the file, and is none of the words for no value
        _find_cell(path, read(dict.fromkeys(said, text)), {name: columns[name] for name in said}, delimiter, decimal)
    return _with_rows(path, table)


def _check_quotes(path: str | Path, delimiter: str) -> None:
    """ValueError naming the first line of a row in which a quoted cell never ends, or goes on behind its closing quote."""
    with open(path, "rb") as file:
        quoted = any(b'"' in block for block in iter(lambda: file.read(BLOCK), b""))
    if quoted:
        for _ in _records(path, delimiter, strict=True):
            pass


def _records(path: str | Path, delimiter: str, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """(line it starts on, cells) of each record, the header first; empty lines are passed over."""
    line = 1
    limit = csv.field_size_limit(BLOCK)  # a setting of the whole process
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=strict)
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8, got other bytes after line {line}: convert its encoding") from error
    except csv.Error as error:
        if not strict:
            raise ValueError(f"{path}, line {line} is not readable as CSV: {_one_line(error)}") from error
        raise ValueError(
            f"{path}, line {line} begins a row with a quoted cell that never ends, or goes on behind its closing quote: "
            f"{_one_line(error)} (read with delimiter {delimiter!r}): close the cell, and double the quotes inside"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _find_ragged(path: str | Path, delimiter: str, width: int) -> None:
    for line, cells in _records(path, delimiter):
        if len(cells) != width:
            raise ValueError(
                f"{path}, line {line} has {len(cells)} cells, expected {width} as in the header (read with delimiter {delimiter!r}): "
                "correct the line, or quote cells that hold a delimiter"
            )


def _find_cell(path: str | Path, table: Any, columns: Mapping[str, Content], delimiter: str, decimal: str) -> None:
    """Raise for the first cell of a declared number or date, column by column, that can't be parsed."""
    compute = arrow("pyarrow.compute")
    for name, content in columns.items():
        if content == "words":
            continue
        column = given = table[name].cast(arrow().string())
        if content == "number" and decimal != ".":  # a point is then none
            column = compute.replace_substring(compute.replace_substring(given, ".", "x"), decimal, ".")
        try:
            (numbers if content == "number" else days)(name, column)
        except CellError as found:
            error = CellError(name, found.what, given[found.row].as_py(), found.remedy, found.row)
            line = next(at for row, (at, _) in enumerate(_records(path, delimiter), -1) if row == error.row)
            raise ValueError(f"{path}, line {line} (row {error.row}): {error}") from found


def _with_rows(path: str | Path, table: Any) -> Any:
    if not table.num_rows:
        raise ValueError(f"{path} has no rows, only columns: expected at least one row")
    return table


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
