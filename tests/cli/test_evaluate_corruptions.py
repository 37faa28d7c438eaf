"""`quorate evaluate --corruptions` on a trained run: figures, files, what is kept and gone on with, refusals."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quorate import collect
from quorate.cascade import Policy
from quorate.cli import shift
from quorate.cli.main import main
from quorate.cli.reload import reload
from quorate.data.corruptions import CORRUPTIONS, Corrupted
from quorate.data.subset import stratified
from quorate.files import read_json, write_json
from quorate.outputs import Outputs
from quorate.report.figures import cascade_figures, ensemble_figures
from quorate.runs import FORMAT

TWO = ["--corruptions", "contrast", "brightness", "--corruption_high", "16"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "net"
    command = ["train", "--data", "digits", "--model", "MLP", "--fit.epochs", "3", "--fit.lr", "0.05", "--progress", "false"]
    assert main([*command, "--ensemble.kind", "deep", "--ensemble.members", "2", "--run", str(path)]) == 0
    Policy.fit(Outputs.load(path / "outputs" / "validation.safetensors"), target="coverage@risk=0.2").save(
        path / "policies" / "c.json"
    )
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "net"))


def evaluated(run: Path, *options: str) -> dict:
    output = run.parent / "figures.json"
    assert main(["evaluate", str(run), *options, "--output", str(output)]) == 0
    return dict(json.loads(output.read_text()))


def numbers(figures: dict[str, float | None]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in figures.items()}


def test_figures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(run, *TWO, "--corruption_rows", "100", "--corruption_seed", "3")
    printed, said = capsys.readouterr()
    assert "100 test rows under 2 corruptions: contrast, brightness" in " ".join(printed.split())
    assert "10 of 10 pairs of corruption and severity to run" in said
    assert list(found) == ["net", "net c"]
    ensemble, data = reload(run)
    stored = {part: Outputs.load(run / "outputs" / f"{part}.safetensors") for part in ("validation", "test")}
    chosen = data.test.subset(stratified(data.test.y, data.test.ids, 100, 3))
    clean = ensemble_figures(stored["validation"], stored["test"].aligned(chosen.ids), {})
    assert found["net"]["corruptions"]["severity"]["0"]["accuracy"] == pytest.approx(clean["accuracy"])
    dimmed = collect(ensemble, Corrupted(chosen, "contrast", 4, 3, high=16))
    expected = ensemble_figures(stored["validation"], dimmed, {})
    assert numbers(found["net"]["corruptions"]["corruption"]["contrast"]["4"]) == pytest.approx(expected, nan_ok=True)
    policy = Policy.load(run / "policies" / "c.json")
    cascade = cascade_figures(policy, stored["validation"], dimmed, {})
    assert numbers(found["net c"]["corruptions"]["corruption"]["contrast"]["4"]) == pytest.approx(cascade, nan_ok=True)
    assert found["net"]["accuracy"] == pytest.approx(1 - stored["test"].errors().mean())  # the table beside is of all rows


def test_a_second_call_computes_nothing_and_needs_no_torch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TWO, "--corruption_rows", "60", "--format", "markdown"]
    first = evaluated(run, *options)
    printed = capsys.readouterr().out
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
from quorate.cli.main import main
raise SystemExit(main(["evaluate", {str(run)!r}, *{options!r}]))
"""
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert again.stdout == printed.split("wrote")[0]
    assert again.stderr == ""
    subset = evaluated(run, "--corruptions", "brightness", "--corruption_high", "16", "--corruption_rows", "60")
    assert subset["net"]["corruptions"]["corruption"] == {"brightness": first["net"]["corruptions"]["corruption"]["brightness"]}


def test_an_interrupted_one_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    figures = shift.shift_figures

    def stopped(*arguments: object) -> shift.Cell:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append("")
        return figures(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shift, "shift_figures", stopped)
    assert main(["evaluate", str(run), *TWO]) == 130
    assert "run the same command to go on" in capsys.readouterr().err
    kept = read_json(run / "corruptions.json", "figures")
    assert [sum(len(by) for by in entry["cells"].values()) for entry in kept["entries"]] == [3]  # and the clean figures
    calls.clear()
    monkeypatch.setattr(shift, "shift_figures", lambda *a: calls.append("") or figures(*a))
    found = evaluated(run, *TWO)
    assert len(calls) == 8
    assert "7 of 10 pairs" in capsys.readouterr().err
    shutil.rmtree(run / "policies")  # other columns: anew
    assert list(evaluated(run, *TWO)) == ["net"]
    assert capsys.readouterr().err.count("corruptions.json holds figures of other policies: it is made anew") == 1
    assert evaluated(run, *TWO)["net"]["corruptions"] == found["net"]["corruptions"]


def test_all_that_apply(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: CORRUPTIONS["image"][name] for name in ("contrast", "brightness")}
    monkeypatch.setitem(CORRUPTIONS, "image", few)
    plots = run.parent / "plots"
    options = ["--corruptions", "--corruption_kind", "image", "--corruption_high", "16", "--corruption_rows", "50"]
    found = evaluated(run, *options, "--plots", str(plots))
    assert found["net"]["corruptions"]["corruptions"] == ["contrast", "brightness"]
    assert (plots / "shift.png").read_bytes().startswith(b"\x89PNG")
    assert "50 test rows under 2 image corruptions: contrast, brightness" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", str(run), *options, "--format", "markdown", "--output", str(plots / "x.md")]) == 0
    printed, said = capsys.readouterr()
    assert said == ""
    assert (plots / "x.md").read_text() == printed
    assert "| accuracy | 0 (clean) |" in printed


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": "x"}', '{"format": "quorate-corruptions/1"}'])
def test_a_damaged_file_is_made_anew(run: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    (run / "corruptions.json").write_text(damage)
    asked = ["--corruptions", "contrast", "--corruption_high", "16"]
    assert main(["evaluate", str(run), *asked, "--corruption_rows", "100000"]) == 1
    assert "made anew" not in capsys.readouterr().err  # nothing is
    assert (run / "corruptions.json").read_text() == damage
    evaluated(run, *asked, "--corruption_rows", "50")
    said = capsys.readouterr().err
    assert said.count("corruptions.json can't be used") == said.count("it is made anew") == 1


def test_every_choice_of_rows_seed_and_units_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--corruptions", "gaussian_noise", "--corruption_high", "16", "--corruption_rows", "60"]
    changes = [
        [],
        ["--corruption_seed", "1"],
        ["--corruption_high", "255"],
        ["--corruption_rows", "61"],
    ]
    found = []
    for change in changes:
        found.append(evaluated(run, *asked, *change)["net"]["corruptions"])
        assert "5 of 5 pairs of corruption and severity to run" in capsys.readouterr().err
    assert found[0]["severity"]["0"] == found[2]["severity"]["0"] != found[1]["severity"]["0"]  # the seed chooses the rows too
    assert all(found[0]["mean"] != other["mean"] for other in found[1:])
    for change, before in zip(changes, found, strict=True):
        assert evaluated(run, *asked, *change)["net"]["corruptions"] == before
        assert capsys.readouterr().err == ""
    choices = [entry["choice"] for entry in read_json(run / "corruptions.json", "figures")["entries"]]
    assert len(choices) == len(changes)
    assert choices[1] == {"rows": 60, "seed": 1, "high": 16.0, "decibel": None}


@pytest.mark.parametrize("part", ["validation", "test"])
def test_other_outputs_are_another_run(run: Path, capsys: pytest.CaptureFixture[str], part: str) -> None:
    asked = ["--corruptions", "contrast", "--corruption_high", "16", "--corruption_rows", "60"]
    evaluated(run, *asked)
    path = run / "outputs" / f"{part}.safetensors"
    stored = Outputs.load(path)
    changed = [value * np.float32(0.5) for value in stored.values]
    more = {"names": stored.names, "ids": stored.ids, "classes": stored.classes, "costs": stored.costs}
    Outputs(changed, labels=stored.labels, **more).save(path)
    evaluated(run, *asked)
    assert "corruptions.json holds figures of other outputs: it is made anew" in capsys.readouterr().err


def small(folder: Path, name: str, x: np.ndarray, layout: str, *model: str) -> Path:
    """A run on few rows of two classes."""
    np.savez(folder / f"{name}.npz", x=x, y=np.arange(len(x)) % 2)
    data = ["--data", "npz_rows", "--data.path", str(folder / f"{name}.npz"), "--data.layout", layout, "--data.name", "small"]
    short = ["--fit.epochs", "1", "--fit.warmup_epochs", "0", "--progress", "false", "--run", str(folder / name)]
    assert main(["train", *data, "--model", "MLP", "--model.hidden", "[8]", *model, *short]) == 0
    return folder / name


def test_runs_with_other_channels_share_the_corruptions_that_both_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: CORRUPTIONS["image"][name] for name in ("contrast", "brightness", "pixelate")}
    monkeypatch.setitem(CORRUPTIONS, "image", few)
    draw = np.random.default_rng(0)
    runs = [small(tmp_path, f"c{c}", draw.integers(0, 256, (80, c, 8, 8)).astype(np.uint8), "nchw") for c in (1, 2)]
    capsys.readouterr()
    asked = ["--corruptions", "--corruption_kind", "image", "--format", "markdown"]
    for command in (["evaluate", *map(str, runs), *asked], ["evaluate", *map(str, reversed(runs)), *asked]):
        assert main([*command, "--output", str(tmp_path / "f.json")]) == 0
        printed, _ = capsys.readouterr()
        assert "test rows under 2 image corruptions: contrast, pixelate" in printed
        assert printed.endswith("Left out, as they do not apply to the inputs of every run: brightness.\n")
        figures = json.loads((tmp_path / "f.json").read_text())
        for column in ("c1", "c2"):
            assert list(figures[column]["corruptions"]["corruption"]) == ["contrast", "pixelate"]
            assert figures[column]["corruptions"]["left_out"] == ["brightness"]
    assert main(["evaluate", str(runs[0]), *asked]) == 0
    assert "under 3 image corruptions: contrast, brightness, pixelate" in capsys.readouterr().out


def test_sequences_are_corrupted_in_units_of_their_channels(tmp_path: Path) -> None:
    waves = np.random.default_rng(0).normal([2, -30], [1, 9], (80, 20, 2)).astype(np.float32)
    run = small(tmp_path, "waves", waves, "nlc")
    found = evaluated(run, "--corruptions", "gain", "sensor_noise")["waves"]["corruptions"]["corruption"]
    ensemble, data = reload(run)
    validation = Outputs.load(run / "outputs" / "validation.safetensors")
    for name in ("gain", "sensor_noise"):
        for severity in (2, 5):
            outputs = collect(ensemble, Corrupted(data.test, name, severity, mean=data.mean, std=data.std))
            expected = ensemble_figures(validation, outputs, {})
            assert numbers(found[name][str(severity)]) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("asked", [["fog"], ["--corruption_kind", "image"]])
def test_float_images_need_their_white(tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str]) -> None:
    run = small(tmp_path, "floats", np.random.default_rng(0).random((80, 3, 8, 8)).astype(np.float32), "nchw")
    capsys.readouterr()
    assert main(["evaluate", str(run), "--corruptions", *asked]) == 1
    assert "give high= (on the command line --corruption_high), 1.0 where they are in 0 … 1" in capsys.readouterr().err


def test_pictures_are_no_spectrograms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small(tmp_path, "rgb", np.random.default_rng(0).integers(0, 256, (80, 3, 16, 16)).astype(np.uint8), "nchw")
    capsys.readouterr()
    assert main(["evaluate", str(run), "--corruptions", "--corruption_kind", "log-mel"]) == 1
    printed, said = capsys.readouterr()
    assert "inputs of shape (3, 16, 16) are no log-mel inputs, (1, frames, mels): choose the kind that they are" in said
    assert printed == ""


def test_infinite_figures_come_back(tmp_path: Path) -> None:
    cell = {"": {"nll": float("inf"), "risk_met": float("nan"), "accuracy": 0.5}}
    kept = shift.Kept(tmp_path / "corruptions.json", {}, {}, {}, 5, cell, {"fog": {1: cell}})
    kept.save()
    back = shift._numbers(read_json(kept.path, "figures")["entries"][0]["cells"]["fog"]["1"])
    np.testing.assert_equal(back, cell)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--corruptions"], "needs --corruption_kind: image, sequence or log-mel"),
        ([*TWO, "--corruption_kind", "image"], "leave it out beside --corruptions contrast brightness"),
        (["--corruptions", "fog", "fog"], "give each name once"),
        (["--corruptions", "frog"], "unknown corruption 'frog'; did you mean 'fog'?"),
        (["--corruptions", "fog"], "--corruption_high"),
        (["--corruptions", "gain"], "gain needs sequence inputs"),
        (["--corruptions", "--corruption_kind", "sequence"], "are no sequence inputs"),
        ([*TWO, "--corruption_decibel", "3"], "--corruption_decibel 3: no corruption asked for (contrast, brightness) takes it"),
        (["--corruptions", "--corruption_kind", "image", "--corruption_decibel", "3"], "(of kind image) takes it: leave it out"),
        (["--corruptions", "--corruption_kind", "sequence", "--corruption_decibel", "3"], "(of kind sequence) takes it"),
        (["--corruptions", "gain", "--corruption_high", "1"], "--corruption_high 1: no corruption asked for (gain) takes it"),
        (["--corruptions", "band_drop", "--corruption_decibel", "3"], "(band_drop) takes it"),
        (["--corruptions", "--corruption_kind", "log-mel", "--corruption_high", "1"], "(of kind log-mel) takes it"),
        ([*TWO, "--corruption_rows", "0"], "expected at least 1"),
        ([*TWO, "--corruption_rows", "100000"], "a subset must have 1 … "),
        ([*TWO, "--corruption_seed", "-1"], "expected at least 0"),
        (["--corruption_rows", "5"], "--corruption_rows is for --corruptions"),
        (["--corruption_seed", "5"], "--corruption_seed is for --corruptions"),
    ],
)
def test_refusals(trained: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str) -> None:
    assert main(["evaluate", str(trained), *options]) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (trained / "corruptions.json").exists()


def test_regression_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "height"
    write_json(run / "run.json", {"format": FORMAT, "status": "finished", "data": {"name": "d"}, "identity": {}})
    values = Outputs([np.zeros((1, 9, 2))], kind="gaussian", labels=np.arange(9.0), costs=[1.0])
    for part in ("validation", "calibration", "test"):
        values.save(run / "outputs" / f"{part}.safetensors")
    assert main(["evaluate", str(run), "--corruptions", "gain"]) == 1
    assert f"run {run} predicts targets ('gaussian'): --corruptions reports on classifiers only" in capsys.readouterr().err
