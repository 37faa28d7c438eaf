"""`quorate train` with the kinds of ensemble made from one network, and with options of the training; refusals of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("torch")

from quorate.cli.main import main
from quorate.outputs import Outputs

RECIPES = Path(__file__).parents[2] / "recipes"


def quick(run: Path, *more: str) -> list[str]:
    model = ["--model", "MLP", "--model.hidden", "[16]", "--model.dropout", "0.2"]
    short = ["--fit.epochs", "4", "--fit.warmup_epochs", "0.5", "--progress", "false", "--run", str(run)]
    return ["train", "--config", str(RECIPES / "digits-single.yaml"), *model, *short, *more]


@pytest.mark.parametrize(
    ("kind", "options", "cycles"), [("snapshot", [], 2), ("snapshot", ["--fit.cycles", "2"], 2), ("mc-dropout", [], 1)]
)
def test_kinds(kind: str, options: list[str], cycles: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = quick(tmp_path / "a", "--ensemble.kind", kind, "--ensemble.members", "2", *options)
    assert main(command) == 0
    assert "NLL, T fitted" in capsys.readouterr().out
    assert Outputs.load(tmp_path / "a" / "outputs" / "test.safetensors").members == (1, 1)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["identity"]["settings"].get("cycles", 1) == cycles
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["fit"]["cycles"] == cycles
    before = (tmp_path / "a" / "weights.safetensors").stat().st_mtime_ns
    assert main(command) == 0  # read back
    assert (tmp_path / "a" / "weights.safetensors").stat().st_mtime_ns == before
    again = ["train", "--config", str(tmp_path / "a" / "config.yaml"), "--run", str(tmp_path / "b"), "--progress", "false"]
    assert main(again) == 0
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (tmp_path / "b" / "weights.safetensors").read_bytes()


def test_options_of_the_training(tmp_path: Path) -> None:
    swa = ["--fit.averaging", "swa", "--fit.swa_start", "2", "--fit.swa_lr", "0.02", "--fit.mixup", "0.2", "--fit.cutmix", "1"]
    assert main(quick(tmp_path / "a", *swa)) == 0
    settings = json.loads((tmp_path / "a" / "run.json").read_text())["identity"]["settings"]
    assert {name: settings[name] for name in ("averaging", "swa_start", "swa_lr", "mixup", "cutmix")} == {
        "averaging": "swa",
        "swa_start": 2,
        "swa_lr": 0.02,
        "mixup": 0.2,
        "cutmix": 1.0,
    }
    assert "ema_decay" not in settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ensemble.kind", "snapshot", "--ensemble.members", "3"], "cycles=3: expected at least 1, a divisor of epochs=4"),
        (["--ensemble.kind", "snapshot", "--fit.cycles", "2"], "cycles=2: SnapshotEnsemble takes a member at each cycle's end"),
        (["--ensemble.kind", "mc-dropout", "--model.dropout", "0"], "Sequential has no dropout module with p > 0"),
        (["--fit.averaging", "swa"], "swa_start, the epochs before it, in 1 … 3"),
        (["--ensemble.kind", "dropout"], "'dropout'"),
    ],
)
def test_refusals(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(quick(tmp_path / "r", *options)) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r" / "run.json").exists()
