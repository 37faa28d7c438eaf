"""`quorate evaluate` on runs written by hand: the table, its files, and runs that do not belong together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quorate.cascade import Policy
from quorate.cascade.uncertainty import uncertainty
from quorate.cli.main import main
from quorate.files import write_json
from quorate.metrics import threshold_at_tpr
from quorate.outputs import Outputs
from quorate.runs import FORMAT

pytestmark = pytest.mark.deciding


def write_run(path: Path, seed: int = 0, classes: tuple[str, ...] = ("a", "b", "c"), rows: int = 60, first: int = 0) -> Path:
    members = 2
    facts = {
        "format": FORMAT,
        "status": "finished",
        "data": {"name": "d"},
        "parameters": 1234,
        "training_macs": 5e9,
        "identity": {},
    }
    write_json(path / "run.json", facts | {"latency": {"ms_per_1000": {"all": 1.5}, "how": "by hand"}})
    for part in ("validation", "calibration", "test", "ood-far"):
        rng = np.random.default_rng([seed, len(part)])
        labels = np.random.default_rng(len(part)).integers(0, len(classes), rows)
        signal = 0 if part == "ood-far" else 4 * np.eye(len(classes))[labels]
        values = [(signal + rng.normal(size=(1, rows, len(classes)))).astype(np.float32) for _ in range(members)]
        ids = np.arange(first, first + rows)
        known = None if part == "ood-far" else labels
        Outputs(values, labels=known, ids=ids, classes=classes, costs=[1e6] * members).save(
            path / "outputs" / f"{part}.safetensors"
        )
    return path


def test_table_of_runs_and_their_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / name, seed)) for seed, name in enumerate(("one", "two"))]
    validation = Outputs.load(tmp_path / "two" / "outputs" / "validation.safetensors")
    Policy.fit(validation, target="coverage@risk=0.01").save(tmp_path / "two" / "policies" / "cascade.json")
    assert main(["evaluate", *runs, "--format", "markdown", "--output", str(tmp_path / "x.json")]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "| | one | two | two cascade |"
    figures = json.loads((tmp_path / "x.json").read_text())
    test = Outputs.load(tmp_path / "one" / "outputs" / "test.safetensors")
    assert figures["one"]["accuracy"] == pytest.approx(1 - test.errors().mean())
    assert figures["one"]["macs"] == 2e6
    assert 1e6 <= figures["two cascade"]["macs"] < 2e6
    assert figures["two cascade"]["parameters"] == 1234
    assert "auroc:far" in figures["one"]
    assert figures["one"]["latency_ms"] == 1.5
    assert figures["two cascade"]["reach"] == pytest.approx((figures["two cascade"]["macs"] - 1e6) / 1e6)
    accepted = uncertainty(test, "energy") <= threshold_at_tpr(uncertainty(validation_of(tmp_path / "one"), "energy"), 0.95)
    assert figures["one"]["tpr_met"] == pytest.approx(accepted.mean())
    assert main(["evaluate", *runs]) == 0
    text = capsys.readouterr().out
    assert "coverage@1% risk" in text
    assert "Times: by hand." in " ".join(text.split())


def validation_of(run: Path) -> Outputs:
    return Outputs.load(run / "outputs" / "validation.safetensors")


def test_runs_of_one_name_are_told_by_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / folder / "net", seed)) for seed, folder in enumerate("ab")]
    assert main(["evaluate", *runs, "--format", "markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"| | {runs[0]} | {runs[1]} |"


def test_other_ood_rows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two")]
    file = runs[1] / "outputs" / "ood-far.safetensors"
    Outputs.load(file).rows(np.arange(50)).save(file)
    assert main(["evaluate", *map(str, runs)]) == 1
    assert "different row ids" in capsys.readouterr().err


def test_an_infinite_figure_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "one")
    file = run / "outputs" / "test.safetensors"
    stored = Outputs.load(file)
    sure = [1000 * np.eye(3, dtype=np.float32)[(stored.truth() + 1) % 3][None] for _ in range(2)]
    Outputs(sure, labels=stored.labels, ids=stored.ids, classes=stored.classes, costs=stored.costs).save(file)
    assert main(["evaluate", str(run), "--output", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["one"]["nll"] is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"classes": ("a", "b", "x")}, "different classes"),
        ({"first": 7}, "different row ids"),
        ({"rows": 50}, "different row ids"),
    ],
)
def test_runs_that_do_not_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict, expected: str) -> None:
    runs = [str(write_run(tmp_path / "one")), str(write_run(tmp_path / "two", **other))]
    assert main(["evaluate", *runs]) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_same_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(tmp_path / "one"))
    assert main(["evaluate", run, run]) == 1
    assert "give each run once" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "other", "unfinished", "json"])
def test_damaged_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    run = write_run(tmp_path / "one")
    file = run / "outputs" / "test.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "flip":
        file.write_bytes(b"\xff" * 9 + file.read_bytes()[9:])
    elif damage == "gone":
        file.unlink()
    elif damage == "other":
        write_json(run / "run.json", {"format": "something"})
    elif damage == "unfinished":
        write_json(run / "run.json", {"format": FORMAT, "status": "running"})
    else:
        (run / "run.json").write_text("{")
    assert main(["evaluate", str(run)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(run) in error


@pytest.mark.extras
def test_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "one")
    assert main(["evaluate", str(run), "--plots", str(tmp_path / "plots")]) == 0
    for name in ("risk-coverage.png", "cost-quality.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["c.csv", "c.csv/plots"])
def test_plots_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    run = write_run(tmp_path / "one")
    (tmp_path / "c.csv").write_text("kept")
    assert main(["evaluate", str(run), "--plots", str(tmp_path / place)]) == 1
    printed, said = capsys.readouterr()
    assert printed == ""  # said before the table
    assert f"plots need a folder, got {tmp_path / place}: {tmp_path / 'c.csv'} is a file" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("kind", ["values", "gaussian"])
def test_plots_of_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    run = write_run(tmp_path / "height")
    for part in ("validation", "calibration", "test"):
        values = np.ones((1, 9, 2 if kind == "gaussian" else 1), np.float32)
        Outputs([values], kind=kind, labels=np.arange(9.0), costs=[1.0]).save(run / "outputs" / f"{part}.safetensors")
    assert main(["evaluate", str(run), "--plots", str(tmp_path / "plots")]) == 1
    printed, said = capsys.readouterr()
    assert printed == ""
    assert "these plots show classifications, the runs are of a regression: leave out --plots" in said
    assert not (tmp_path / "plots").exists()
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--help"])
    assert "classifications: also write" in " ".join(capsys.readouterr().out.split())
