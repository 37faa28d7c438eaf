"""Other people's archives and CSV files: what is read, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(4, 3)), RNG.normal(size=(2, 4, 3)).astype(np.float32)
LABEL, PROB = RNG.integers(0, 3, (2, 4)), RNG.random((2, 4))
Y = np.array([0, 2, 1, 1])
IDS = np.array(["d", "a", "c", "b"])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=A, b=B, label=LABEL, prob=PROB, l0=LABEL[0], p0=PROB[0], y=Y, ids=IDS, objects=np.array([{}, 1]))
    return path


# --- NumPy archives --------------------------------------------------------------------------------------------------


def test_arrays_are_found_by_name_and_options_pass_through(archive: Path) -> None:
    options: dict[str, Any] = {
        "combine": "logits",
        "classes": ["x", "y", "z"],
        "costs": [1, 2],
        "ordered": True,
        "names": ["s", "t"],
    }
    outputs = Outputs.from_npz(archive, ["a", "b"], kind="logits", labels="y", ids="ids", **options)
    np.testing.assert_array_equal(outputs.values[0], A[None])
    np.testing.assert_array_equal(outputs.values[1], B)
    np.testing.assert_array_equal(outputs.labels, Y)
    np.testing.assert_array_equal(outputs.ids, IDS)
    assert {name: getattr(outputs, name) for name in options} == options | {
        "classes": ("x", "y", "z"), "costs": (1, 2), "names": ("s", "t"),
    }  # fmt: skip
    plain = Outputs.from_npz(str(archive), ["b"], kind="logits")
    assert plain.labels is None
    np.testing.assert_array_equal(plain.ids, np.arange(4))


def test_top1_pairs_are_one_stage_or_several_at_once(archive: Path) -> None:
    one = Outputs.from_npz(archive, [("l0", "p0")], kind="top1", labels="y")
    many = Outputs.from_npz(archive, [("label", "prob"), ["l0", "p0"]], kind="top1", labels="y")
    assert (one.stages, many.stages) == (1, 3)
    for outputs, k, wanted in ((one, 0, 0), (many, 0, 0), (many, 1, 1), (many, 2, 0)):
        np.testing.assert_array_equal(outputs.values[k][0], LABEL[wanted])
        np.testing.assert_array_equal(outputs.values[k][1], PROB[wanted])
    np.testing.assert_array_equal(many.errors(2), LABEL[1] != Y)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["a", "c"], {"kind": "logits"}, "has no array 'c': it holds a, b, label, prob, l0, p0, y, ids, objects"),
        (["a"], {"kind": "logits", "labels": "truth"}, "has no array 'truth'"),
        (["a"], {"kind": "logits", "ids": "id"}, "has no array 'id'"),
        ("a", {"kind": "logits"}, "values='a' for kind='logits': expected a list with the name of one array per stage"),
        ([("a", "b")], {"kind": "logits"}, "expected a list with the name of one array per stage"),
        ([3], {"kind": "logits"}, "expected a list with the name of one array per stage"),
        (["label"], {"kind": "top1"}, r"expected a list with a pair of names \(labels, probabilities\) per stage"),
        ([("label", "prob", "y")], {"kind": "top1"}, "expected a list with a pair of names"),
        ([("l0", "prob")], {"kind": "top1"}, r"stage0 of kind 'top1' has int64 labels \(4,\) and float64 probabilities \(2, 4\)"),
        (["objects"], {"kind": "logits"}, "is not a readable NumPy archive .Object arrays cannot be loaded.*numpy.savez"),
        (["a", "y"], {"kind": "logits"}, r"stage1 has shape \(4,\): expected \(members, rows, classes\)"),
        (["a"], {"kind": "logits", "labels": "a"}, "labels are float64 of shape"),
        ([], {"kind": "logits"}, "values is empty"),
    ],
)
def test_archive_errors_are_one_line(archive: Path, values: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Outputs.from_npz(archive, values, **options)
    assert "\n" not in str(caught.value)
    if "values=" not in message and "expected a list" not in message:
        assert str(caught.value).startswith(str(archive))


def test_missing_and_wrong_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError, match=rf"{path} does not exist: expected a NumPy archive \(.npz\)"):
        Outputs.from_npz(path, ["a"], kind="logits")
    np.save(tmp_path / "x.npy", A)
    contents = [b"", b"PK\x03\x04 not really", b"no archive", (tmp_path / "x.npy").read_bytes()]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"{path} is not a readable NumPy archive \(.*\): write it with numpy.savez"
        ) as caught:
            Outputs.from_npz(path, ["a"], kind="logits")
        assert "\n" not in str(caught.value)


def test_a_damaged_archive_is_a_value_error(archive: Path) -> None:
    whole = archive.read_bytes()
    rng = np.random.default_rng(0)
    complaints = []
    for turn in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = int(rng.integers(256))
        archive.write_bytes(damaged[: rng.integers(len(whole))] if turn % 10 == 0 else damaged)
        try:
            Outputs.from_npz(archive, ["a", "b"], kind="logits", labels="y", ids="ids")
        except ValueError as error:
            complaints.append(str(error))
    assert len(complaints) > 100
    assert all(text.startswith(str(archive)) and "\n" not in text for text in complaints)


# --- CSV -------------------------------------------------------------------------------------------------------------

TABLE = """\
id,a0,a1,truth,b0,b1,name,pick,sure
x1,0.25,0.75,1,1e-1,0.9,cat,cat,0.5
x2,1.0,0,0,.5,0.5,"dog, big",cat,1
x3,0.5,0.5,1,0.125,0.875,cat,"dog, big",0.25
"""


def csv(tmp_path: Path, text: str = TABLE, encoding: str = "utf-8") -> Path:
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("text", [TABLE, "\ufeff" + TABLE, TABLE.replace("\n", "\r\n"), TABLE.rstrip("\n")])
def test_columns_are_found_by_name(tmp_path: Path, text: str) -> None:
    path = csv(tmp_path, text)
    outputs = Outputs.from_csv(path, [["a0", "a1"], ["b1", "b0"]], kind="probs", labels="truth", ids="id", costs=[3, 4])
    np.testing.assert_array_equal(outputs.values[0], [[[0.25, 0.75], [1, 0], [0.5, 0.5]]])
    np.testing.assert_array_equal(outputs.values[1], [[[0.9, 0.1], [0.5, 0.5], [0.875, 0.125]]])
    np.testing.assert_array_equal(outputs.labels, [1, 0, 1])
    assert (outputs.ids.tolist(), outputs.costs, outputs.kind) == (["x1", "x2", "x3"], (3, 4), "probs")


def test_class_names_delimiters_and_regression(tmp_path: Path) -> None:
    path = csv(tmp_path)
    classes = ["dog, big", "cat"]
    named = Outputs.from_csv(path, [["pick", "sure"]], kind="top1", labels="name", classes=classes)
    np.testing.assert_array_equal(named.labels, [1, 0, 1])
    np.testing.assert_array_equal(named.values[0][0], [1, 1, 0])
    np.testing.assert_array_equal(named.values[0][1], [0.5, 1, 0.25])
    regression = Outputs.from_csv(path, [["b0"]], kind="values", labels="a0")
    np.testing.assert_array_equal(regression.labels, [[0.25], [1], [0.5]])
    tabs = csv(tmp_path, "a\tb\ty\n1,5\t2\t0\n".replace(",", "."))
    assert Outputs.from_csv(tabs, [["a", "b"]], kind="logits", labels="y", delimiter="\t").n == 1


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        ("", "", {"values": [["a0", "a2"]]}, r"{path} has 0 columns 'a2': expected one; its columns are \['id', 'a0'"),
        ("a1", "a0", {}, "{path} has 2 columns 'a0': expected one"),
        ("", "", {"labels": "y"}, "has 0 columns 'y'"),
        ("", "", {"ids": "key"}, "has 0 columns 'key'"),
        ("x3,0.5,", "x3,", {}, "{path}, line 4, has 8 fields: expected 9 as in the header"),
        ("x1,0.25", "x1,abc", {}, "{path}, line 2, column 'a0': 'abc' is not a number, mend the row"),
        ("x2,1.0", "x2,", {}, "line 3, column 'a0': '' is not a number"),
        ("x2,1.0", '"x\n2",abc', {}, "line 4, column 'a0': 'abc'"),
        ("x2,1.0,0,0", "x2,1.0,0,0.0", {}, "line 3, column 'truth': '0.0' is not an integer, mend the row"),
        ("x2,1.0,0,0", "x2,1.0,0," + "9" * 30, {}, "line 3, column 'truth': '9+' is not an integer"),
        (
            "",
            "",
            {"labels": "name", "classes": ["cat", "dog"]},
            "line 3, column 'name': 'dog, big' is not one of the classes cat, dog",
        ),
        ("x2,1.0", "x2,nan", {}, "{path}: stage0 has NaN or infinite values in rows 1: mend"),
        ("x2,1.0", "x2,3.0", {}, "{path}: stage0 is not probabilities in rows 1 "),
        ("x2", "x1", {}, "{path}: ids must differ"),
        (TABLE[TABLE.index("\n") :], "\n", {}, "{path}: the stages have 0 rows"),
        (TABLE, "", {}, "{path} has 0 columns 'a0'"),
        ("x2,", '"x2"y,', {}, "{path} is not a readable CSV file .*: expected UTF-8 text separated by ','"),
        ("x2,", "é,", {"encoding": "latin-1"}, "{path} is not a readable CSV file .*: expected UTF-8"),
        ("", "", {"values": ["a0", "a1"]}, "expected a list with the list of its columns per stage"),
        ("", "", {"values": "a0"}, "values='a0' for kind='probs': expected a list"),
        ("", "", {"values": [[]]}, "expected a list with the list of its columns per stage"),
        ("", "", {"values": [["pick"]], "kind": "top1"}, r"expected a list with the pair \(label column, probability column\)"),
        ("", "", {"delimiter": ";;"}, "delimiter=';;': expected one character"),
        ("", "", {"kind": "words"}, "kind='words': expected one of"),
    ],
)
def test_csv_errors_name_the_place_in_one_line(tmp_path: Path, old: str, new: str, options: dict[str, Any], message: str) -> None:
    given = {"values": [["a0", "a1"]], "kind": "probs", "labels": "truth", "ids": "id", "encoding": "utf-8"} | options
    path = csv(tmp_path, TABLE.replace(old, new) if old else TABLE, given.pop("encoding"))
    with pytest.raises(ValueError, match=message.replace("{path}", str(path))) as caught:
        Outputs.from_csv(path, **given)
    assert "\n" not in str(caught.value)


def test_a_missing_csv_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist: expected a CSV file"):
        Outputs.from_csv(tmp_path / "none.csv", [["a"]], kind="logits")
