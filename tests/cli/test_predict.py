"""`quorate predict`: what it writes against a float64 reference, what it refuses, and what it says at the end."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predicted_bundles import CLASSES, FEATURES, NAMES, ask, cascade, reference, regression, stopping
from quorate.cli import predict
from quorate.runtime.runtime import Runtime
from tiny_bundles import rows

pytestmark = pytest.mark.deciding


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cascade(tmp_path / "B")
    np.save("x.npy", rows(50))
    return tmp_path


def test_npz_holds_what_the_cascade_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("--probs", "--batch_size", "16", "--chunk", "7") == 0
    found, want = np.load("o.npz"), reference(rows(50))
    assert found.files == ["id", "label", "class", "probability", "uncertainty", "accepted", "exit_stage", "macs", "probs"]
    for name, values in want.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, atol=1e-6)
        else:
            assert (found[name] == values).all()
    assert (found["id"] == np.arange(50)).all()
    assert (found["class"] == np.array(NAMES)[want["label"]]).all()
    assert [found[name].dtype for name in ("id", "label", "accepted", "macs")] == [np.int64, np.int64, bool, np.float64]
    assert 0 < want["accepted"].mean() < 1
    assert set(want["exit_stage"]) == {"a", "b"}
    share, mean = 100 * want["accepted"].mean(), want["macs"].mean()
    said = capsys.readouterr().err
    exits = 100 * (want["exit_stage"] == "a").mean()
    shares = f"accepted {share:.1f} %; exits a {exits:.1f} %, b {100 - exits:.1f} %; mean cost {mean:,.6g} MACs; "
    assert f"o.npz: 50 rows; {shares}" in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["B", "o.npz", "x.npy"]


def test_csv_says_the_same_and_reads_back_exactly() -> None:
    assert ask("--probs") == 0
    assert ask("--probs", output="o.csv") == 0
    found = np.load("o.npz")
    with open("o.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[-3:] == [f"probs.{name}" for name in NAMES]
    for name in ("probability", "uncertainty", "macs"):
        assert [float(row[name]) for row in table] == found[name].tolist()
    assert [row["accepted"] == "true" for row in table] == found["accepted"].tolist()
    assert {row["accepted"] for row in table} == {"true", "false"}
    assert [row["class"] for row in table] == found["class"].tolist()
    assert [[float(row[f"probs.{name}"]) for name in NAMES] for row in table] == found["probs"].tolist()


def test_without_class_names_and_probabilities(folder: Path) -> None:
    cascade(folder / "N", classes=None)
    assert ask(bundle="N", output="o.csv") == 0
    assert Path("o.csv").read_text().splitlines()[0] == "id,label,probability,uncertainty,accepted,exit_stage,macs"


@pytest.mark.parametrize(("kind", "targets", "macs"), [("gaussian", None, 12.0), ("values", ("mm", "kg"), None)])
def test_a_regression_gives_values_and_variances(folder: Path, kind: str, targets: Any, macs: float | None) -> None:
    weight = regression(folder / "R", kind, targets, macs)
    assert ask("--chunk", "9", bundle="R") == 0
    found, members = np.load("o.npz"), np.matmul(rows(50)[None].astype(float), weight)
    mean = members[..., :2].mean(0)
    np.testing.assert_allclose(found["value"], mean, atol=1e-5)
    if kind == "gaussian":
        variance = (np.exp(members[..., 2:]) + members[..., :2] ** 2).mean(0) - mean**2
        np.testing.assert_allclose(found["variance"], variance, rtol=1e-4)
        assert found["macs"].tolist() == [12.0] * 50
    else:
        assert np.isnan(found["macs"]).all()
    assert set(found["exit_stage"]) == {"only"}
    assert ask(bundle="R", output="o.csv") == 0
    columns = "value.0,value.1,variance.0,variance.1" if kind == "gaussian" else "value.mm,value.kg"
    assert Path("o.csv").read_text().splitlines()[0] == f"id,{columns},exit_stage,macs"
    if macs is None:
        assert Path("o.csv").read_text().splitlines()[1].endswith(",only,")


@pytest.mark.parametrize("chunk", ["1", "7", "50", "4096"])
def test_rows_of_nan_are_refused_or_skipped(capsys: pytest.CaptureFixture[str], chunk: str) -> None:
    x = rows(50)
    x[[7, 8], 2] = np.nan, np.inf
    np.save("x.npy", x)
    assert ask("--chunk", chunk) == 1
    said = capsys.readouterr().err
    assert "quorate predict: x.npy, row" in said
    assert "--on_nan skip" in said
    assert ask("--chunk", chunk, "--on_nan", "skip", "--probs", "--restart") == 0
    found, want = np.load("o.npz"), reference(rows(50))
    sound = np.delete(np.arange(50), [7, 8])
    assert (found["label"][sound] == want["label"][sound]).all()
    np.testing.assert_allclose(found["probs"][sound], want["probs"][sound], atol=1e-6)
    for name, value in {"label": -1, "class": "", "accepted": False, "exit_stage": "", "macs": 0}.items():
        assert found[name][[7, 8]].tolist() == [value] * 2
    assert np.isnan([found[name][[7, 8]] for name in ("probability", "uncertainty")]).all()
    assert np.isnan(found["probs"][[7, 8]]).all()
    assert "50 rows; 2 skipped" in capsys.readouterr().err


def test_no_rows_give_an_empty_result() -> None:
    np.save("x.npy", rows(50)[:0])
    assert ask("--probs") == 0
    assert {name: array.shape for name, array in np.load("o.npz").items()}["probs"] == (0, CLASSES)
    assert not Path(".o.npz.parts").exists()


def test_an_output_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    Path("o.npz").write_text("mine")
    assert ask() == 1
    assert "o.npz exists: give --overwrite" in capsys.readouterr().err
    assert Path("o.npz").read_text() == "mine"
    assert ask("--overwrite") == 0
    assert len(np.load("o.npz")["id"]) == 50


def test_a_folder_and_ids() -> None:
    Path("in/deep").mkdir(parents=True)
    np.savez("in/b.npz", x=rows(3), who=np.array(["p", "qq", "r"]))
    np.savez("in/deep/a.npz", x=rows(2, 1), who=np.array(["s", "tttt"]))
    assert ask("--array", "x", "--ids", "who", source="in") == 0
    found = np.load("o.npz")
    assert found["id"].tolist() == ["p", "qq", "r", "s", "tttt"]
    assert (found["label"] == reference(np.concatenate([rows(3), rows(2, 1)]))["label"]).all()
    assert ask("--array", "x", source="in", output="o.csv") == 0
    assert [line.split(",")[0] for line in Path("o.csv").read_text().splitlines()[1:]] == [
        "b.npz:0", "b.npz:1", "b.npz:2", "deep/a.npz:0", "deep/a.npz:1",
    ]  # fmt: skip


@pytest.mark.extras
def test_parquet_in_and_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x = rows(50)
    columns = {f"f{k}": x[:, k].astype(float) for k in range(FEATURES)}
    pq.write_table(pa.table({"key": [f"k{row}" for row in range(50)]} | columns), "t.parquet", row_group_size=11)
    asked = ("--columns", *columns, "--ids", "key", "--probs", "--chunk", "4")
    assert ask(*asked, source="t.parquet", output="o.parquet") == 1  # of float64
    assert ask(*asked, "--cast", source="t.parquet", output="whole.parquet") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "predict", stopping(5, KeyboardInterrupt()))
        assert ask(*asked, "--cast", source="t.parquet", output="o.parquet") == 130
    assert ask(*asked, "--cast", source="t.parquet", output="o.parquet") == 0
    assert Path("o.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    found, want = pq.read_table("o.parquet").to_pydict(), reference(x)
    assert found["id"] == [f"k{row}" for row in range(50)]
    assert found["label"] == want["label"].tolist()
    np.testing.assert_allclose(found["probs"], want["probs"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        (["--chunk", "0"], 2, "--chunk 0: expected at least 1"),
        (["--batch_size", "-1"], 2, "--batch_size -1: expected at least 1"),
        (["--threads", "0"], 2, "--threads 0: expected at least 1"),
        (["--output", "o.json"], 2, "--output o.json: expected a name that ends in .parquet, .csv, .npz"),
        (["--output", "d.npz"], 2, "--output d.npz is a folder"),
        (["--output", "x.npy/o.csv"], 2, "lies in the input x.npy"),
        (["--delimiter", ";;"], 2, "--delimiter ';;': expected one character"),
        (["--delimiter", ";"], 2, "--delimiter is for .csv files, x.npy is .npy"),
        (["--columns", "a", "a"], 2, "--columns has 'a' twice"),
        (["--on_nan", "drop"], 2, "on_nan: expected one of 'refuse', 'skip', got 'drop'"),
        (["--outptu", "o.csv"], 2, "did you mean '--output'?"),
        (["--input", "gone"], 1, "gone does not exist"),
        (["--providers", "Abacus"], 1, "provider 'Abacus': expected a list of"),
        (["--digest", "sha256:00"], 1, "expected sha256:00, it is another bundle"),
    ],
)
def test_wrong_arguments(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, expected: str
) -> None:
    Path("d.npz").mkdir()
    assert ask(*options) == status
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not list(folder.glob(".*.parts"))


def test_what_a_regression_and_no_bundle_have_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    regression(folder / "R", "values")
    assert ask("--probs", bundle="R") == 2
    assert "--probs: R is a regression" in capsys.readouterr().err
    assert ask(bundle="nowhere") == 1
    assert "nowhere" in capsys.readouterr().err


def test_default_chunks_keep_within_batches_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Runtime.predict
    monkeypatch.setattr(Runtime, "predict", lambda self, x: (sizes.append(len(x)), plain(self, x))[1])
    assert ask("--batch_size", "2") == 0
    assert sizes == [32, 18]
    monkeypatch.setattr(predict, "CHUNK_BYTES", 20 * (4 * FEATURES + 8 * (CLASSES + 8)))
    assert ask("--batch_size", "2", "--overwrite") == 0
    assert sizes[2:] == [20, 20, 10]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    monkeypatch.setattr(predict, "SPEAK_S", 0.0)
    assert ask("--chunk", "20") == 0
    said = capsys.readouterr().err
    assert ("predicting: 40 of 50 rows (80 %)\n" in said) != terminal
    assert "o.npz: 50 rows; " in said


def test_other_files_of_a_folder_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    np.save("in/x.npy", rows(3))
    Path("in/README.md").write_text("")
    assert ask(source="in") == 0
    assert "in: 1 files of other kinds are passed over, such as README.md\n" in capsys.readouterr().err
