"""Reading CSV and Parquet: what comes out equals the csv module's and pyarrow's own view, and each refusal names its place."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from datetime import date
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.data.tables.column import days, numbers, words
from quorate.data.tables.file import check_header, read_columns

NUMBER, WORDS, DATE = "number", "words", "date"


@pytest.fixture
def write(tmp_path):
    def to(text, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return to


def listed(table, name):
    codes, known = words(name, table[name])
    return [None if code < 0 else known[code] for code in codes.tolist()]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_byte_order_mark_and_quotes(write, end, mark):
    text = end.join(
        ["a,b,c", "1,x,2020-01-31", ' 2.5 ,"say ""hi"", you",', f',"two{end}lines",1969-12-31', "", "-1e3,,2000-02-29", ""]
    )
    table = read_columns(write(mark + text.encode()), {"a": NUMBER, "b": WORDS, "c": DATE})
    np.testing.assert_array_equal(numbers("a", table["a"]), [1, 2.5, math.nan, -1000])
    assert listed(table, "b") == ["x", 'say "hi", you', f"two{end}lines", None]
    expected = [(d - date(1970, 1, 1)).days for d in (date(2020, 1, 31), date(1969, 12, 31), date(2000, 2, 29))]
    np.testing.assert_array_equal(days("c", table["c"]), [expected[0], math.nan, *expected[1:]])


def test_delimiter_decimal_and_missing_words(write):
    path = write("n;w\n1,5;NA\n?;?\n-0,25;x,y\n")
    table = read_columns(path, {"n": NUMBER, "w": WORDS}, missing=["?"], delimiter=";", decimal=",")
    np.testing.assert_array_equal(numbers("n", table["n"]), [1.5, math.nan, -0.25])
    assert listed(table, "w") == ["NA", None, "x,y"]  # NA is a word unless it is said not to be


def test_types_come_from_the_declaration_alone(write):
    path = write("id,code\n001,1\n1,1.0\n")
    assert listed(read_columns(path, {"id": WORDS, "code": WORDS}), "id") == ["001", "1"]
    table = read_columns(path, {"id": NUMBER}, ["code"])
    assert table.column_names == ["id"]
    assert numbers("id", table["id"]).tolist() == [1, 1]


CELLS = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**12), 10**12))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(CELLS, TEXTS), min_size=1, max_size=12), delimiter=st.sampled_from(",;\t"))
def test_what_the_csv_module_writes_comes_back(tmp_path_factory, rows, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["n", "w"], *(("" if n is None else repr(n), w) for n, w in rows)])
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_bytes(text.getvalue().encode())
    table = read_columns(path, {"n": NUMBER, "w": WORDS}, delimiter=delimiter)
    np.testing.assert_array_equal(numbers("n", table["n"]), [math.nan if n is None else float(n) for n, _ in rows])
    assert listed(table, "w") == [w for _, w in rows]


def test_parquet_types(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {
        "int64": pa.array([2**40, None, -3]),
        "uint8": pa.array([1, None, 255], pa.uint8()),
        "half": pa.array(np.array([0.5, np.nan, -2], np.float16)),
        "decimal": pa.array([Decimal("1.25"), None, Decimal("-7.50")]),
        "coded": pa.array([0.5, None, 0.5]).dictionary_encode(),
        "text": pa.array(["1e2", None, " 3 "]),
        "none": pa.nulls(3),
    }
    expected = {
        "int64": [2.0**40, math.nan, -3],
        "uint8": [1, math.nan, 255],
        "half": [0.5, math.nan, -2],
        "decimal": [1.25, math.nan, -7.5],
        "coded": [0.5, math.nan, 0.5],
        "text": [100, math.nan, 3],
        "none": [math.nan] * 3,
    }
    pq.write_table(pa.table(columns), path)
    table = read_columns(path, dict.fromkeys(columns, NUMBER))
    for name, values in expected.items():
        np.testing.assert_array_equal(numbers(name, table[name]), values, err_msg=name)


def test_parquet_words_and_days(tmp_path):
    path = tmp_path / "t.data"
    columns = {
        "text": pa.array(["b", None, "a"]),
        "large": pa.array(["b", None, "a"], pa.large_string()),
        "codes": pa.array([7, None, -1]),
        "bool": pa.array([True, None, False]),
        "dictionary": pa.DictionaryArray.from_arrays(pa.array([2, None, 0]), pa.array(["a", "b", "b", "never"])),
        "coded ints": pa.array([7, None, -1]).dictionary_encode(),
        "none": pa.nulls(3),
    }
    dates = {"date32": pa.array([date(1970, 1, 2), None, date(1969, 1, 1)])}
    dates["date64"] = dates["date32"].cast(pa.date64())
    dates["iso"] = pa.array(["1970-01-02", None, "1969-01-01 "])
    table = pa.table(columns | dates)
    pq.write_table(pa.concat_tables([table, table]), path, row_group_size=2)  # dictionaries differ between row groups
    table = read_columns(path, dict.fromkeys(columns, WORDS) | dict.fromkeys(dates, DATE), format="parquet")
    said = {name: listed(table, name) for name in columns}
    assert said["codes"] == said["coded ints"] == ["7", None, "-1"] * 2
    assert said["text"] == said["large"] == said["dictionary"] == ["b", None, "a"] * 2
    assert said["bool"] == ["true", None, "false"] * 2
    assert said["none"] == [None] * 6
    assert words("dictionary", table["dictionary"]).words in (("a", "b"), ("b", "a"))  # only what occurs, once
    for name in dates:
        np.testing.assert_array_equal(days(name, table[name]), [1, math.nan, -365] * 2)


def test_a_dictionary_may_hold_its_missing_value_and_repeat_itself():
    coded = pa.DictionaryArray.from_arrays(pa.array([3, 1, 0, None, 2, 0]), pa.array(["a", None, "b", "a", "never"]))
    codes, known = words("w", coded)
    assert [None if code < 0 else known[code] for code in codes.tolist()] == ["a", None, "a", None, "b", "a"]
    assert sorted(known) == ["a", "b"]


def refused(call, *parts, error=ValueError):
    with pytest.raises(error) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


AB = {"a": NUMBER, "b": WORDS}
BAD = {
    "empty": ("", "t.csv is empty: expected a header line and rows"),
    "only lines": ("\n\n", "t.csv is empty"),
    "header only": ("a,b\r\n", "t.csv has no rows, only columns"),
    "double": ("a,b,a\n1,2,3\n", "must name every column once, got 'a' again (read with delimiter ','): rename it"),
    "ragged": ('a,b\n1,x\n"2","y\nz"\n3\n', "t.csv, line 5 has 1 cells, expected 2 as in the header"),
    "too wide": ("a,b\n1,x\n\n3,4,5\n", "t.csv, line 4 has 3 cells, expected 2"),
    "text": (
        'a,b\n1,"two\nlines"\n\n twelve ,x\n',
        "t.csv, line 5 (row 1): column 'a' must hold a number, got ' twelve ': correct",
    ),
    "underscore": ("a,b\n1,x\n1_0,x\n", "t.csv, line 3 (row 1): column 'a' must hold a number, got '1_0'"),
    "NA": ("a,b\n1,x\nNA,x\n", "got 'NA': correct it, or name it in missing= if it stands for none"),
    "semicolons": ("a;b\n1;x\n", "t.csv has no column 'a', got 'a;b' (read with delimiter ',')"),
    "absent": ("A,b\n1,x\n", "t.csv has no column 'a', got 'A', 'b' (read with delimiter ',')"),
    "undeclared": (
        "a,b,ages\n1,x,2\n",
        "the column 'ages' (1 in all), which isn't declared (read with delimiter ','); did you mean 'age'?",
    ),
    "open quote": (
        'a,b\n"1,x\n2,y\n',
        "t.csv, line 2 begins a row with a quoted cell that never ends, or goes on behind its closing quote: unexpected end",
    ),
    "open header": ('a,"b\n1,x\n', "t.csv, line 1 begins a row with a quoted cell that never ends"),
    "open quote, unused": ('a,b,age\n1,x,"two\nlines"\n\n2,y,"z\n3,w,z\n', "t.csv, line 5 begins a row with a quoted cell that"),
    "closed by another": ('a,b,age\n1,x,z\n2,y,"z\n3,w,z\n4,v,"z"\n', "t.csv, line 3 begins a row with a quoted cell that never"),
    "behind the quote": (
        'a,b\n1,"x" y\n',
        "line 2 begins a row with a quoted cell that never ends, or goes on behind its closing",
    ),
    "wrong delimiter": ('a;b\n1;x\n"2";y\n', "(read with delimiter ','): close the cell, and double the quotes inside"),
    "nan": (
        "a,b\n1,x\n NaN ,x\n",
        "t.csv, line 3 (row 1): column 'a' must hold a number, got ' NaN ': correct it, or name it in",
    ),
    "no other": ("a,b\n,x\n-nan,x\n", "t.csv, line 3 (row 1): column 'a' must hold a number, got '-nan'"),
    "latin-1": (b"a,b\n1,\xe9t\xe9\n", "t.csv must be UTF-8, got other bytes after line"),
    "utf-16": ("a,b\n1,x\n".encode("utf-16"), "t.csv must be UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_csv(write, case):
    text, message = BAD[case]
    refused(lambda: read_columns(write(text), AB, ["age"]), message)


def test_nan_is_missing_where_it_is_said_to_be_and_elsewhere_a_word(write):
    path = write("n,w\nnan,nan\n1,\nNaN,x\n")
    table = read_columns(path, {"n": NUMBER, "w": WORDS}, missing=["", "nan", "NaN"])
    np.testing.assert_array_equal(numbers("n", table["n"]), [math.nan, 1, math.nan])
    assert listed(read_columns(path, {"w": WORDS}, ["n"]), "w") == ["nan", None, "x"]
    np.testing.assert_array_equal(numbers("n", np.array([1, math.nan])), [1, math.nan])
    refused(lambda: numbers("n", pa.array(["1", None, "nan", "2"])), "column 'n' must hold a number, got 'nan'")


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_quote_inside_a_cell_and_long_cells_are_text(write, delimiter):
    long = "x" * 200_000 + "\n"
    rows = [["n", "w", "other"], ["1", '5" disk', f'"{long}"'], ["2", '"a ""b"" c"', f'"d{delimiter}e"']]
    path = write("\n".join(delimiter.join(row) for row in rows))
    limit = csv.field_size_limit()
    table = read_columns(path, {"n": NUMBER, "w": WORDS}, ["other"], delimiter=delimiter)
    assert (listed(table, "w"), csv.field_size_limit()) == (['5" disk', 'a "b" c'], limit)
    assert listed(read_columns(path, {"other": WORDS}, ["n", "w"], delimiter=delimiter), "other") == [long, f"d{delimiter}e"]


def test_thousands_of_columns_take_no_time():
    names = [f"c{i}" for i in range(20_000)]
    start = time.process_time()
    check_header("t", names, names[::2], names[1::2], "error")
    refused(lambda: check_header("t", [*names, "c7"], names, (), "error"), "must name every column once, got 'c7' again")
    refused(lambda: check_header("t", names, names[1:], (), "error"), "t has the column 'c0' (1 in all)")
    assert time.process_time() - start < 1


def test_the_first_bad_cell_of_many_rows_is_found(write):
    rows = ["2020-01-01"] * 5000
    rows[3217], rows[4000] = "2020-13-01", "x"
    path = write("d\n" + "\n".join(rows))
    refused(
        lambda: read_columns(path, {"d": DATE}),
        "line 3219 (row 3217): column 'd' must hold a day",
        "got '2020-13-01'",
    )
    comma = write("n;m\n1,5;1\n1.5;1\n")
    refused(
        lambda: read_columns(comma, {"n": NUMBER}, ["m"], delimiter=";", decimal=","), "line 3 (row 1): column 'n'", "got '1.5'"
    )


def test_a_time_of_day_is_refused_with_a_remedy(write, tmp_path):
    refused(
        lambda: read_columns(write("d\n2020-01-01 10:00\n"), {"d": DATE}), "got '2020-01-01 10:00': write days so, or give a time"
    )
    stamps = pa.array([0], pa.timestamp("s"))
    refused(lambda: days("d", stamps), "column 'd' is declared date, but holds timestamp[s]: give days (date32), or a number")
    pq.write_table(pa.table({"d": pa.array(["soon"])}), tmp_path / "t.parquet")
    refused(lambda: days("d", read_columns(tmp_path / "t.parquet", {"d": DATE})["d"]), "column 'd' must hold a day", "got 'soon'")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([0.5]), "must hold text, integers or booleans, but holds double: declare it number, or convert it"),
        (pa.array([[1]]), "must hold text, integers or booleans, but holds list"),
        (pa.array([b"x"]), "but holds binary"),
        (np.zeros((2, 2)), "must be one value per row, got shape (2, 2): pass a 1-D array"),
        ([1, "a"], "must hold values of one type"),
        ([2**70], "must hold values of one type"),
    ],
)
def test_refused_words(values, message):
    refused(lambda: words("w", values), "column 'w'", message)


@pytest.mark.parametrize("values", [pa.array([True]), pa.array([b"1"]), pa.array([date(2020, 1, 1)]), pa.array([[1.0]])])
def test_refused_numbers(values):
    refused(
        lambda: numbers("n", values), "column 'n' is declared number, but holds", ": declare another kind, or convert the column"
    )


def test_refused_files_and_settings(write, tmp_path):
    path = write("a,b\n1,x\n")
    refused(lambda: read_columns(tmp_path / "no.csv", AB), "expected a table, found no file at", error=FileNotFoundError)
    refused(
        lambda: read_columns(write("a,b\n1,x\n", "t.tsv"), AB),
        "t.tsv must be called .csv or .parquet: rename it, or pass format=",
    )
    refused(lambda: read_columns(path, AB, format="excel"), "format must be 'csv' or 'parquet', got 'excel'")
    refused(lambda: read_columns(path, AB, format="parquet"), "t.csv is not a readable Parquet file: ")
    refused(
        lambda: read_columns(path, AB, delimiter="||"), "delimiter must be one ASCII character, not a quote or line end, got '||'"
    )
    refused(lambda: read_columns(path, AB, decimal='"'), "decimal must be one ASCII character")
    refused(lambda: read_columns(path, AB, decimal=","), "delimiter and decimal must differ, got ',' for both")
    for odd in ("NA", 3, [None]):
        refused(lambda odd=odd: read_columns(path, AB, missing=odd), f"missing must be a sequence of words, got {odd!r}")
    refused(lambda: read_columns(path, AB, other="ingore"), "other must be 'error' or 'ignore', got 'ingore'")
    refused(lambda: read_columns({"a": [1]}, AB), "a table must be the path of a file, got dict: write it as .csv or .parquet")
    assert read_columns(write("a\tb\tc\n1\tx\t\n", "t.tsv"), AB, other="ignore", delimiter="\t", format="csv").num_rows == 1
    pq.write_table(pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.string())}), tmp_path / "e.parquet")
    refused(lambda: read_columns(tmp_path / "e.parquet", AB), "e.parquet has no rows, only columns")
    refused(
        lambda: read_columns(tmp_path / "e.parquet", {"a": NUMBER}),
        "e.parquet has the column 'b' (1 in all), which isn't declared",
    )
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "e.parquet").read_bytes()[:-9])
    refused(lambda: read_columns(tmp_path / "cut.parquet", AB), "cut.parquet is not a readable Parquet file: ")


def test_without_pyarrow_the_extra_is_named(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(
        lambda: read_columns(write("a,b\n1,x\n"), AB), 'which is not installed: pip install "quorate[tables]"', error=ImportError
    )
