"""The rows of input files: every kind read back exactly, cut into chunks from any row on; what does not fit is named."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from quorate.cli.predicting.row_file import Reading, as_ids, converted
from quorate.cli.predicting.rows import Rows, open_rows
from quorate.cli.usage import UsageError
from quorate.runtime.program import Port

pytestmark = pytest.mark.deciding

Write = Callable[[str, NDArray[Any]], None]
WRITERS: dict[str, Write] = {
    "x.npy": np.save,
    "fortran.npy": lambda path, x: np.save(path, np.asfortranarray(x)),
    "swapped.npy": lambda path, x: np.save(path, x.astype(x.dtype.newbyteorder())),
    "x.npz": lambda path, x: np.savez(path, x=x),
    "deflated.npz": lambda path, x: np.savez_compressed(path, x=x),
    "x.safetensors": lambda path, x: save_file({"x": x}, path),
}


def numbers(n: int, *shape: int, dtype: str = "float32", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 200, (n, *shape)).astype(dtype)


def port(x: NDArray[Any]) -> Port:
    return Port("x", x.dtype.name, x.shape[1:])


def joined(rows: Rows, size: int, start: int = 0) -> tuple[NDArray[Any], list[Any]]:
    chunks = list(rows.chunks(size, start))
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= size for chunk in chunks)
    parts = [x for chunk in chunks for x in chunk.runs()]
    return np.concatenate(parts), [name for chunk in chunks for name in chunk.ids.tolist()]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", list(WRITERS))
@pytest.mark.parametrize(
    ("shape", "dtype"), [((3,), "float32"), ((), "int64"), ((2, 3, 4), "uint8"), ((5,), "float16"), ((2,), "bool")]
)
def test_arrays_come_back_from_any_row_on(name: str, shape: tuple[int, ...], dtype: str) -> None:
    x = numbers(23, *shape, dtype=dtype)
    WRITERS[name](name, x)
    rows = open_rows(name, port(x), Reading())
    assert (rows.total, rows.text_ids, rows.row_bytes()) == (23, False, x[0].nbytes)
    for size in (1, 4, 23, 100):
        for start in {0, size, 2 * size} & set(range(23)):
            found, ids = joined(rows, size, start)
            assert found.dtype == x.dtype
            assert (found == x[start:]).all()
            assert ids == list(range(start, 23))
    assert list(rows.chunks(4, 23)) == []


@pytest.mark.parametrize("name", list(WRITERS))
def test_no_rows(name: str) -> None:
    x = numbers(0, 3)
    WRITERS[name](name, x)
    rows = open_rows(name, port(x), Reading())
    assert (rows.total, rows.row_bytes(), list(rows.chunks(4))) == (0, 0, [])


def test_files_of_a_folder_are_one_sequence() -> None:
    for name, n, seed in (("b.npy", 5, 0), ("a/z.npy", 1, 1), ("a/empty.npy", 0, 2), ("c.npy", 7, 3)):
        path = Path("in") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, numbers(n, 3, seed=seed))
    for extra in ("in/README.md", "in/.hidden.npy", "in/a/.part/x.npy"):
        Path(extra).parent.mkdir(exist_ok=True)
        Path(extra).write_text("no")
    whole = np.concatenate([numbers(1, 3, seed=1), numbers(5, 3), numbers(7, 3, seed=3)])
    rows = open_rows("in", port(whole), Reading())
    assert (rows.paths, rows.passed_over) == (("a/empty.npy", "a/z.npy", "b.npy", "c.npy"), ("README.md",))
    names = [f"{path}:{row}" for path, n in (("a/z.npy", 1), ("b.npy", 5), ("c.npy", 7)) for row in range(n)]
    for size in (1, 2, 3, 5, 13, 20):
        for start in range(0, 13, size):
            found, ids = joined(rows, size, start)
            assert (found == whole[start:]).all()
            assert ids == names[start:]


def test_nan_rows_are_found_and_named_across_files() -> None:
    Path("in").mkdir()
    for name in "ab":
        x = numbers(5, 3)
        x[4 if name == "a" else 0, 1] = np.inf if name == "a" else np.nan
        np.save(f"in/{name}.npy", x)
    (chunk,) = open_rows("in", port(x), Reading()).chunks(10)
    assert np.flatnonzero(~chunk.finite()).tolist() == [4, 5]
    assert chunk.shown(~chunk.finite()) == f"{Path('in/a.npy')}, row 4; {Path('in/b.npy')}, row 0"
    assert chunk.shown(np.ones(10, bool)).startswith(f"{Path('in/a.npy')}, rows 0, 1, 2, 3, 4; ")


@pytest.mark.parametrize(("kind", "ids"), [("npz", [7, -3, 2**62]), ("npz", ["é", "", "long one"]), ("safetensors", [1, 1, 5])])
def test_ids(kind: str, ids: list[Any]) -> None:
    x = numbers(3, 2)
    arrays = {"x": x, "who": np.array(ids)}
    np.savez("f.npz", **arrays) if kind == "npz" else save_file(arrays, "f.safetensors")  # type: ignore[func-returns-value]
    rows = open_rows(f"f.{kind}", port(x), Reading(ids="who"))
    assert rows.text_ids == isinstance(ids[0], str)
    assert joined(rows, 2)[1] == ids


def test_csv() -> None:
    Path("t.csv").write_text('\ufeffid,b,"a, x",c\nr1,1,2.5,\n\n"r ""2""", -3e0 ,1e-3,nan\nr3,4,5,inf\n', encoding="utf-8")
    rows = open_rows("t.csv", Port("x", "float32", (3,)), Reading(columns=("a, x", "b", "c"), ids="id"))
    want = np.array([[2.5, 1, np.nan], [1e-3, -3, np.nan], [5, 4, np.inf]], np.float32)
    for start in range(3):
        found, ids = joined(rows, 1, start)
        np.testing.assert_array_equal(found, want[start:])
        assert ids == ["r1", 'r "2"', "r3"][start:]
    assert rows.text_ids
    Path("t.csv").write_text("a;b\n1;0\n-128;1\n")
    found = joined(open_rows("t.csv", Port("x", "int8", (2,)), Reading(columns=("a", "b"), delimiter=";")), 5)[0]
    assert (found.dtype, found.tolist()) == (np.int8, [[1, 0], [-128, 1]])
    assert joined(open_rows("t.csv", Port("x", "bool", ()), Reading(columns=("b",), delimiter=";")), 5)[0].tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("a,b\n1,x\n", "float32", "t.csv, line 2, column 'b': 'x' is not a number that float32 holds"),
        ("a,b\n1,2\n3,1e39\n", "float32", "line 3, column 'b': '1e39' is not"),
        ("a,b\n1,2\n3.0,4\n", "int64", "line 3, column 'a': '3.0' is not a whole number that int64 holds"),
        ("a,b\n1,-1\n", "uint8", "line 2, column 'b': '-1' is not a whole number that uint8 holds"),
        ("a,b\n1,\n", "int32", "line 2, column 'b': '' is not"),
        ("a,b\n1,2\n", "bool", "line 2, column 'b': '2' is not 0 or 1"),
        ("a,b\n1,2,3\n", "float32", "t.csv, line 2, has 3 cells: expected 2 as in the header"),
        ("a,b,b\n1,2,3\n", "float32", "t.csv has 2 columns 'b'"),
        ("a,B\n1,2\n", "float32", "t.csv has 0 columns 'b'"),
        ("", "float32", "t.csv has 0 columns 'a'"),
        ('a,b\n1,"2\n', "float32", "t.csv is not a readable CSV file"),
        ("a,b\n1,\udcff\n", "float32", "t.csv is not a readable CSV file"),
    ],
)
def test_csv_that_does_not_fit(text: str, dtype: str, expected: str) -> None:
    Path("t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError) as caught:
        list(open_rows("t.csv", Port("x", dtype, (2,)), Reading(columns=("a", "b"))).chunks(8))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cast_is_exact_or_refused() -> None:
    to = {name: Port("x", name, (2,)) for name in ("float32", "float16", "int8", "uint8", "bool")}
    np.save("d.npy", np.array([[0.1, np.nan], [-2e38, np.inf]]))
    with pytest.raises(ValueError, match=r"d.npy holds float64: the bundle takes rows of float32, shape \(2,\); .* --cast"):
        open_rows("d.npy", to["float32"], Reading())
    want = np.array([[0.1, np.nan], [-2e38, np.inf]], np.float32)
    np.testing.assert_array_equal(joined(open_rows("d.npy", to["float32"], Reading(cast=True)), 9)[0], want)
    np.save("i.npy", np.array([[0, 200], [-1, 7]]))
    assert joined(open_rows("i.npy", to["float16"], Reading(cast=True)), 9)[0].tolist() == [[0, 200], [-1, 7]]
    for name, refused in (("int8", "200"), ("uint8", "-1")):
        with pytest.raises(ValueError, match=f"i.npy holds {refused}, which {name} can't hold"):
            joined(open_rows("i.npy", to[name], Reading(cast=True)), 9)
    for file, name in (("d.npy", "int8"), ("i.npy", "bool")):
        with pytest.raises(ValueError, match="does not round, store them"):
            open_rows(file, to[name], Reading(cast=True))
    with pytest.raises(ValueError, match="holds 100000, which float16 can't hold"):
        converted("f", np.array([[100000, 0]]), to["float16"])
    with pytest.raises(ValueError, match=r"holds 1e\+39, which float32 can't hold"):
        converted("f", np.array([[1e39, 0]]), to["float32"])
    assert converted("f", np.array([[True, False]]), to["uint8"]).tolist() == [[1, 0]]


def big_header(name: str) -> None:
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr(
            "x.npy",
            b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (10, 3), }".ljust(117) + b"\n1234",
        )


def negative(name: str) -> None:
    """Of −3 rows."""
    Path(name).write_bytes(
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 3), }".ljust(117) + b"\n"
    )


def damaged(name: str) -> None:
    np.savez("sound.npz", x=numbers(1000, 3))
    data = bytearray(Path("sound.npz").read_bytes())
    data[5000] ^= 1
    Path(name).write_bytes(data)


@pytest.mark.parametrize(
    ("name", "write", "reading", "expected"),
    [
        ("x.npy", lambda p: np.save(p, numbers(2, 4)), {}, r"x.npy holds rows of shape \(4,\): the bundle takes .*, shape \(3,\)"),
        ("x.npy", lambda p: np.save(p, np.float32(1)), {}, "holds a single value"),
        ("x.npy", lambda p: np.save(p, np.array([{}]), allow_pickle=True), {}, "never unpickled"),
        ("x.npy", lambda p: Path(p).write_bytes(b"\x93NUMPY\x03\x00" + bytes(99)), {}, "npy version 3.0, which is for tables"),
        ("x.npy", lambda p: Path(p).write_bytes(b""), {}, "x.npy is not a readable .npy file"),
        ("x.npy", lambda p: Path(p).write_bytes(b"\x93NUMPY\x01\x00" + b"\xff" * 20), {}, "x.npy is not a readable .npy file"),
        ("x.npy", negative, {}, r"x.npy is not a readable .npy file .its shape is \(-3, 3\)"),
        ("x.npz", lambda p: Path(p).write_bytes(b"PK"), {}, "x.npz is not a readable .npz file"),
        ("x.npz", lambda p: np.savez(p, a=numbers(2, 3), b=numbers(2, 3)), {}, r"x.npz holds 2 arrays \(a, b\): name the rows' by --array"),
        ("x.npz", lambda p: np.savez(p, xs=numbers(2, 3)), {"array": "x"}, "has no array 'x' .*did you mean 'xs'"),
        ("x.npz", lambda p: np.savez(p, x=numbers(2, 3), i=numbers(3)), {"ids": "i"}, r"--ids i is float32 of shape \(3,\)"),
        ("x.npz", lambda p: np.savez(p, x=numbers(2, 3), i=np.arange(3)), {"ids": "i"}, r"integer or text per row, shape \(2,\)"),
        ("x.npz", lambda p: np.savez(p, x=np.asfortranarray(numbers(4, 3))), {}, "in Fortran's order"),
        ("x.npz", big_header, {}, "x.npz is not a readable .npz file .it ends before its last row"),
        ("x.npz", damaged, {}, "x.npz is not a readable .npz file .Bad CRC-32"),
        ("x.safetensors", lambda p: Path(p).write_bytes(b"\x08" + b"\0" * 7 + b"{"), {}, "x.safetensors is not a readable"),
        ("x.safetensors", lambda p: save_file({"x": numbers(2, 3), "y": numbers(1)}, p), {}, "holds 2 arrays"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(name: str, write: Callable[[str], None], reading: dict[str, Any], expected: str) -> None:
    write(name)
    with pytest.raises(ValueError, match=expected) as caught:
        list(open_rows(name, Port("x", "float32", (3,)), Reading(**reading)).chunks(100))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "reading", "expected"),
    [
        (["x.npy"], Reading(array="x"), "--array is for .npz, .safetensors, .parquet files, x.npy is .npy"),
        (["x.npy"], Reading(ids="x"), "--ids x: a .npy file .x.npy. has one array without a name"),
        (["x.npz"], Reading(columns=("x",)), "--columns is for .csv, .parquet files"),
        (["x.npy"], Reading(scale=2.0), "--scale is for image files"),
        (["x.pkl"], Reading(), "x.pkl: expected a folder, or one of .npy"),
        (["x.csv"], Reading(), "x.csv: which columns are a row's numbers is never guessed, give --columns"),
        (["x.csv"], Reading(columns=("a",), cast=True), "--cast: the text in a .csv file"),
        (["in/x.npy", "in/y.csv"], Reading(), r"in holds files of several kinds \(x.npy, y.csv\)"),
        (["in/x.txt"], Reading(), r"in holds none of .npy.*\(1 other files\)"),
        (["in/a.npz", "in/b.npz"], Reading(array="x", ids="i"), "--ids i is text in some files and integers in others"),
    ],
)
def test_options_and_folders_that_do_not_fit(names: Sequence[str], reading: Reading, expected: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".npz":
            np.savez(path, x=numbers(1, 3), i=np.array([1]) if "a" in path.stem else np.array(["t"]))
        else:
            np.save(path, numbers(1, 3)) if path.suffix == ".npy" else path.write_text("a,b,c\n1,2,3\n")
    with pytest.raises((ValueError, UsageError, FileNotFoundError), match=expected):
        open_rows("in" if "/" in names[0] else names[0], Port("x", "float32", (3,)), reading)


def test_columns_fill_rows_of_several_axes_in_order() -> None:
    Path("t.csv").write_text("a,b,c,d,e,f\n1,2,3,4,5,6\n7,8,9,10,11,12\n")
    port, names = Port("x", "float32", (1, 2, 3)), tuple("abcdef")
    (chunk,) = open_rows("t.csv", port, Reading(columns=names)).chunks(10)
    np.testing.assert_array_equal(np.concatenate(list(chunk.runs())), np.arange(1, 13, dtype=np.float32).reshape(2, 1, 2, 3))
    with pytest.raises(ValueError, match=r"--columns name 5 numbers a row: the bundle takes .* shape \(1, 2, 3\); name as many"):
        open_rows("t.csv", port, Reading(columns=names[:5]))
    with pytest.raises(ValueError, match=r"--columns name 6 numbers a row: .*\(\?, 6\)"):
        open_rows("t.csv", Port("x", "float32", (None, 6)), Reading(columns=names))
    with pytest.raises(ValueError, match=r"holds rows of shape \(1,\): .*shape \(2,\)"):
        open_rows("t.csv", Port("x", "float32", (2,)), Reading(columns=("a",)))


def test_folders_met_twice_pipes_and_missing_rows() -> None:
    Path("in/deep").mkdir(parents=True)
    np.save("in/x.npy", numbers(4, 3))
    Path("in/deep/loop").symlink_to(Path("in").resolve())
    with pytest.raises(ValueError, match="are one folder, joined by a link"):
        open_rows("in", Port("x", "float32", (3,)), Reading())
    Path("in/deep/loop").unlink()
    os.mkfifo("in/pipe.npy")
    with pytest.raises(ValueError, match=r"pipe.npy is no regular file"):
        open_rows("in", Port("x", "float32", (3,)), Reading())
    Path("in/pipe.npy").unlink()
    rows = open_rows("in", Port("x", "float32", (3,)), Reading())
    rows.check_unchanged()
    np.save("in/x.npy", numbers(3, 3))
    with pytest.raises(ValueError, match="it changed while it was read"):
        list(rows.chunks(2))
    with pytest.raises(ValueError, match="in changed while it was read: run the command again with --restart"):
        rows.check_unchanged()


def test_free_sizes_make_runs_of_one_shape() -> None:
    Path("in").mkdir()
    for k, width in enumerate((3, 3, 5, 3)):
        np.save(f"in/{k}.npy", numbers(2, 2, width))
    rows = open_rows("in", Port("x", "float32", (2, None)), Reading())
    assert [[x.shape for x in chunk.runs()] for chunk in rows.chunks(5)] == [[(4, 2, 3), (1, 2, 5)], [(1, 2, 5), (2, 2, 3)]]


def test_ids_that_int64_does_not_hold() -> None:
    with pytest.raises(ValueError, match="expected integers below 2"):
        as_ids("f", np.array([2**63], np.uint64))
    assert as_ids("f", np.array([7], np.uint64)).dtype == np.int64


def test_memory_is_that_of_chunks() -> None:
    x = np.zeros((40_000, 100), np.float32)  # 16 MB
    for name in ("x.npz", "deflated.npz", "x.npy", "x.safetensors"):
        WRITERS[name](name, x)
    del x
    for name in ("x.npz", "deflated.npz", "x.npy", "x.safetensors"):
        rows = open_rows(name, Port("x", "float32", (100,)), Reading())
        tracemalloc.start()
        assert sum(len(chunk) for chunk in rows.chunks(1000, 5000)) == 35_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * 2**20, name
