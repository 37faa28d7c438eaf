"""Answers as files: exact values and types in every format, and bytes that do not depend on how the rows were cut into parts."""

from __future__ import annotations

import csv
import itertools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.cascade.prediction import Prediction
from quorate.cascade.step import Step
from quorate.cli.predicting import answers
from quorate.cli.predicting.answers import ENDINGS, Layout, classified, regressed, with_skipped, write

pytestmark = pytest.mark.deciding

Arrays = dict[str, Any]


def layout(**changed: Any) -> Layout:
    asked: Arrays = {
        "stages": ("a", "b"),
        "kind": "logits",
        "names": ("cat", 'a "d", og'),
        "text_ids": True,
        "probs": True,
        "width": 2,
    }
    return Layout.of(**(asked | changed))


def table(n: int = 11, text: bool = True) -> Arrays:
    rng = np.random.default_rng(0)
    probs = rng.random((n, 2))
    ids = np.arange(n) * 10**12 - 5
    found = {
        "id": np.array([f"r,{k}\né" * (1 + k % 3) for k in range(n)]) if text else ids,
        "label": probs.argmax(1), "probability": probs.max(1), "uncertainty": rng.normal(size=n) * 1e-9, "accepted": rng.random(n) < 0.5,
        "stage": rng.integers(0, 2, n), "macs": rng.integers(0, 2**40, n).astype(float), "probs": probs,
    }  # fmt: skip
    for name, value in {
        "label": -1,
        "stage": -1,
        "probability": np.nan,
        "uncertainty": np.nan,
        "accepted": False,
        "macs": 0.0,
    }.items():
        found[name][3] = value
    found["probs"][3] = np.nan
    return found


def cut(whole: Arrays, *at: int) -> list[Any]:
    ends = [0, *at, len(whole["id"])]
    return [{k: v[a:b] for k, v in whole.items()}.__getitem__ for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("text", [True, False])
def test_npz(tmp_path: Path, text: bool) -> None:
    whole = table(text=text)
    write(tmp_path / "o.npz", ".npz", cut(whole, 4, 5), layout(text_ids=text))
    found = np.load(tmp_path / "o.npz", allow_pickle=False)
    for name in ("id", "label", "probability", "uncertainty", "accepted", "macs", "probs"):
        np.testing.assert_array_equal(found[name], whole[name])
        assert found[name].dtype.kind == whole[name].dtype.kind
    assert found["exit_stage"].tolist() == [["a", "b", ""][k] for k in whole["stage"]]
    assert found["class"].tolist() == [["cat", 'a "d", og', ""][k] for k in whole["label"]]
    with zipfile.ZipFile(tmp_path / "o.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_csv(tmp_path: Path) -> None:
    whole = table()
    write(tmp_path / "o.csv", ".csv", cut(whole, 4), layout())
    with (tmp_path / "o.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == [
        "id", "label", "class", "probability", "uncertainty", "accepted", "exit_stage", "macs", "probs.cat", 'probs.a "d", og',
    ]  # fmt: skip
    assert rows[4] == [whole["id"][3], "-1", "", "", "", "false", "", "0.0", "", ""]
    assert [row[0] for row in rows[1:]] == whole["id"].tolist()
    assert [float(row[4] or "nan") for row in rows[1:]] == pytest.approx(whole["uncertainty"].tolist(), rel=0, abs=0, nan_ok=True)
    assert float(rows[1][9]) == whole["probs"][0, 1]


@pytest.mark.extras
def test_parquet(tmp_path: Path) -> None:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    whole = table()
    write(tmp_path / "o.parquet", ".parquet", cut(whole, 4), layout())
    found = pq.read_table(tmp_path / "o.parquet")
    types = [pa.string(), pa.int64(), pa.string(), pa.float64(), pa.float64(), pa.bool_(), pa.string(), pa.float64()]
    assert found.schema.types == [*types, pa.list_(pa.float64(), 2)]
    rows = found.to_pylist()
    for name in ("id", "label", "accepted", "macs"):
        assert [row[name] for row in rows] == whole[name].tolist()
    assert rows[3] == {
        "id": whole["id"][3], "label": -1, "class": "", "probability": None, "uncertainty": None, "accepted": False, "exit_stage": "",
        "macs": 0.0, "probs": [None, None],
    }  # fmt: skip
    assert [row["probs"] for row in rows if row["label"] >= 0] == np.delete(whole["probs"], 3, 0).tolist()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("group", [3, 1000])
@pytest.mark.extras
def test_bytes_do_not_depend_on_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, group: int) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(answers, "GROUP_ROWS", group)
    found = set()
    for k, at in enumerate(([], [1], [3, 6], list(range(1, 11)))):
        write(tmp_path / f"{k}{ending}", ending, cut(table(), *at), layout())
        found.add((tmp_path / f"{k}{ending}").read_bytes())
    assert len(found) == 1


@pytest.mark.extras
def test_parquet_groups_are_bounded_by_rows_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(answers, "GROUP_ROWS", 4)

    def groups(name: str) -> list[int]:
        write(tmp_path / name, ".parquet", cut(table(), 5), layout())
        about = pq.read_metadata(tmp_path / name)
        return [about.row_group(k).num_rows for k in range(about.num_row_groups)]

    assert groups("a.parquet") == [4, 4, 3]
    monkeypatch.setattr(answers, "GROUP_BYTES", 3 * (64 + 8 * 2))
    assert groups("b.parquet") == [3, 3, 3, 2]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("width", [0, 2])
@pytest.mark.extras
def test_no_rows(tmp_path: Path, ending: str, width: int) -> None:
    path = tmp_path / f"o{ending}"
    if ending == ".parquet":
        pq = pytest.importorskip("pyarrow.parquet")
    write(path, ending, [], layout(width=width, names=None))
    if ending == ".npz":
        assert {name: values.shape for name, values in np.load(path).items()}["probs"] == (0, width)
    elif ending == ".csv":
        assert path.read_text().startswith("id,label,probability")
        assert path.read_text().count("\n") == 1
    else:
        assert pq.read_table(path).num_rows == 0


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.extras
def test_a_part_that_was_skipped_as_a_whole_tells_no_width(tmp_path: Path, ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    whole = table()
    first = {name: array[3:4] for name, array in whole.items()}
    wide = cut(first | {"probs": first["probs"]})
    narrow = cut(first | {"probs": np.zeros((1, 0))})
    write(tmp_path / f"a{ending}", ending, [*wide, *cut(whole)], layout())
    write(tmp_path / f"b{ending}", ending, [*narrow, *cut(whole)], layout())
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_predictions_and_skipped_rows() -> None:
    probs = np.array([[0.2, 0.8], [0.7, 0.3]])
    prediction = Prediction(
        np.array([0, 0]), probs, np.array([0.1, 0.2]), np.array([True, False]), np.array([1, 0]), np.array([5.0, 2.0]), ("a", "b")
    )
    found = classified(prediction, True)
    assert found["probability"].tolist() == [
        0.2,
        0.7,
    ]  # of the label, which a tie or a temperature may set apart from the largest
    assert "probs" not in classified(prediction, False)
    whole = with_skipped(found, np.array([False, True, True, False]), layout())
    assert whole["label"].tolist() == [-1, 0, 0, -1]
    assert whole["stage"].tolist() == [-1, 1, 0, -1]
    assert whole["macs"].tolist() == [0, 5, 2, 0]
    assert whole["accepted"].tolist() == [False, True, False, False]
    np.testing.assert_array_equal(whole["probs"], [[np.nan] * 2, *probs, [np.nan] * 2])
    none = with_skipped({}, np.zeros(3, bool), layout(width=0))
    assert {name: array.shape for name, array in none.items()}["probs"] == (3, 0)
    top1 = Prediction(np.array([0]), None, np.zeros(1), np.ones(1, bool), np.zeros(1, np.int64), np.zeros(1), ("a",))
    with pytest.raises(ValueError, match="these predictions have no probabilities"):
        classified(top1, False)


@pytest.mark.parametrize(
    ("kind", "names", "width", "header"),
    [
        ("values", None, 1, "id,value,exit_stage,macs"),
        ("values", ("mm",), 1, "id,value.mm,exit_stage,macs"),
        ("gaussian", ("mm", "kg"), 2, "id,value.mm,value.kg,variance.mm,variance.kg,exit_stage,macs"),
        ("gaussian", None, 2, "id,value.0,value.1,variance.0,variance.1,exit_stage,macs"),
    ],
)
def test_regression(tmp_path: Path, kind: str, names: Any, width: int, header: str) -> None:
    values = np.arange(3.0 * width).reshape(3, width) / 7
    step = Step(1, "b", None, None, None, values, values + 1 if kind == "gaussian" else None, None, 0.1)
    found = regressed(step) | {"id": np.arange(3)}
    shape = layout(kind=kind, names=names, width=width, text_ids=False)
    write(tmp_path / "o.csv", ".csv", cut(found), shape)
    rows = (tmp_path / "o.csv").read_text().splitlines()
    assert rows[0] == header
    assert rows[1].endswith(",b,")
    assert [float(cell) for cell in rows[3].split(",")[1 : 1 + width]] == values[2].tolist()
    assert regressed(Step(0, "a", None, None, None, values, None, 4.5, 0.1))["macs"].tolist() == [4.5] * 3
