"""Rows of Parquet files: columns, nested lists and tensors, from any row on, across row groups; what does not fit is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.cli.main import main
from quorate.cli.predicting.row_file import Reading
from quorate.cli.predicting.rows import open_rows
from quorate.cli.usage import UsageError
from quorate.runtime.program import Port

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

F32 = Port("x", "float32", (2, 3))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(columns: dict[str, Any], name: str = "t.parquet", group: int = 4) -> None:
    pq.write_table(pa.table(columns), name, row_group_size=group)


def read(port: Port, size: int = 3, start: int = 0, **reading: Any) -> tuple[np.ndarray, list[Any]]:
    chunks = list(open_rows("t.parquet", port, Reading(**reading)).chunks(size, start))
    return np.concatenate([x for c in chunks for x in c.runs()]), [i for c in chunks for i in c.ids.tolist()]


@pytest.mark.parametrize("how", ["fixed", "lists", "large", "tensor"])
def test_columns_of_lists_from_any_row_on(how: str) -> None:
    x = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
    if how == "tensor":
        kind = pa.fixed_shape_tensor(pa.float32(), (2, 3))
        column = pa.ExtensionArray.from_storage(kind, pa.array(x.reshape(10, 6).tolist(), pa.list_(pa.float32(), 6)))
    else:
        inner = {"fixed": pa.list_(pa.float32(), 3), "lists": pa.list_(pa.float32()), "large": pa.large_list(pa.float32())}[how]
        column = pa.array(x.tolist(), pa.list_(inner, 2) if how == "fixed" else pa.list_(inner))
    write({"x": column, "who": [f"r{k}" for k in range(10)], "n": pa.array(range(10), pa.int32())})
    for start in range(0, 10, 3):
        found, ids = read(F32, 3, start, array="x", ids="who")
        assert (found == x[start:]).all()
        assert found.dtype == np.float32
        assert ids == [f"r{k}" for k in range(start, 10)]
    assert read(F32, array="x", ids="n")[1] == list(range(10))
    assert open_rows("t.parquet", F32, Reading(array="x", ids="n")).text_ids is False


def test_columns_of_numbers_in_the_order_given() -> None:
    write({"b": [1.5, None, 3.0], "a.c": [4.0, 5.0, np.nan]})
    port = Port("x", "float64", (2,))
    for columns, order in ((("a.c", "b"), [1, 0]), (("b", "a.c"), [0, 1])):
        want = np.array([[1.5, 4], [np.nan, 5], [3, np.nan]])[:, order]
        np.testing.assert_array_equal(read(port, columns=columns)[0], want)
    assert read(Port("x", "float64", ()), columns=("b",))[0].shape == (3,)
    np.testing.assert_array_equal(
        read(Port("x", "float32", (1,)), columns=("a.c",), cast=True)[0], np.float32([[4], [5], [np.nan]])
    )


def test_no_rows() -> None:
    write({"x": pa.array([], pa.list_(pa.float32(), 2))})
    assert list(open_rows("t.parquet", Port("x", "float32", (2,)), Reading(array="x")).chunks(3)) == []


F2, I2 = Port("x", "float32", (2,)), Port("x", "int64", (2,))


@pytest.mark.parametrize(
    ("column", "port", "reading", "expected"),
    [
        (pa.array([1.0]), F2, {"columns": ("x",)}, r"column 'x', holds float64: the bundle takes rows of float32, .* --cast"),
        (pa.array([1.0], pa.float32()), F2, {"columns": ("x",)}, r"the row of --columns holds rows of shape \(1,\)"),
        (pa.array(["a"]), F2, {"columns": ("x",)}, r"holds string of shape \(\) in a row"),
        (pa.array([1], pa.int64()), F2, {"array": "x"}, r"holds int64 of shape \(\) in a row: .*nest its lists so"),
        (pa.array([[1.0, 2.0, 3.0]], pa.list_(pa.float32())), F2, {"array": "x"}, r"holds rows of shape \(3,\)"),
        (pa.array([[1.0, 2.0, 3.0]], pa.list_(pa.float32(), 3)), F2, {"array": "x"}, r"holds float of shape \(3,\) in a row"),
        (pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32())), F2, {"array": "x"}, "lists of different lengths from row 0 on"),
        (pa.array([[], []], pa.list_(pa.list_(pa.float32()))), F32, {"array": "x"}, "lists of different lengths"),
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)), F2, {"array": "x"}, "is null in row 1"),
        (pa.array([[1, 2], [3, None]], pa.list_(pa.int64(), 2)), I2, {"array": "x"}, "null in row 1, and int64 has no NaN"),
        (pa.array([2**40]), Port("x", "int32", ()), {"columns": ("x",), "cast": True}, "holds 1099511627776, which int32 can't hold"),
        (pa.array([1.0]), F2, {"array": "y"}, "t.parquet has 0 columns 'y'"),
        (pa.array([1.0], pa.float32()), Port("x", "float32", (1,)), {"columns": ("x",), "ids": "x"}, r"--ids x is float32 of shape \(1,\)"),
        (pa.array([None], pa.string()), Port("x", "float32", ()), {"columns": ("y",), "ids": "x"}, "t.parquet has no id in row 0"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(column: Any, port: Port, reading: dict[str, Any], expected: str) -> None:
    write({"x": column} | ({"y": pa.array([1.0], pa.float32())} if reading.get("columns") == ("y",) else {}))
    with pytest.raises(ValueError, match=expected) as caught:
        read(port, **reading)
    assert "\n" not in str(caught.value)


def test_permuted_tensors_damage_and_missing_options() -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=[1, 0])
    write({"x": pa.ExtensionArray.from_storage(kind, pa.array([[1.0] * 6], pa.list_(pa.float32(), 6)))})
    with pytest.raises(ValueError, match="axes are permuted"):
        read(F32, array="x")
    for given in ({}, {"array": "x", "columns": ("x",)}):
        with pytest.raises(UsageError, match="expected --array with a column of lists, or --columns"):
            read(F32, **given)
    Path("t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"t.parquet is not a readable .parquet file"):
        read(F32, array="x")


def test_a_damaged_group_is_named() -> None:
    write({"x": pa.array(np.random.default_rng(0).random(5000), pa.float64())}, group=5000)
    data = bytearray(Path("t.parquet").read_bytes())
    data[4:200] = b"\xff" * 196
    Path("t.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"t.parquet is not a readable .parquet file"):
        read(Port("x", "float64", ()), columns=("x",))


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (folder / "t.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match=r"quorate.tables."):
        open_rows("t.parquet", F2, Reading(array="x"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert main(["predict", "B", "--input", "x.npy", "--output", "o.parquet"]) == 1
    assert 'pip install "quorate[tables]"' in capsys.readouterr().err
