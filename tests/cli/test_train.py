"""`quorate train`: recipes, overrides, errors of one line, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

import quorate
from quorate.cli.main import main
from quorate.outputs import Outputs
from quorate.runs import Run

RECIPES = Path(__file__).parents[2] / "recipes"


def quick(run: Path, *more: str) -> list[str]:
    return ["train", "--config", str(RECIPES / "digits-single.yaml"), "--fit.epochs", "2", "--run", str(run), *more]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error.strip()


def test_recipe_and_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "net"
    command = quick(
        run, "--model", "ResNet", "--model.depth", "8", "--model.width", "8", "--ensemble.kind", "packed", "--seed", "3"
    )
    assert main(command) == 0
    assert "accuracy" in capsys.readouterr().out
    facts = json.loads((run / "run.json").read_text())
    assert facts["seed"] == 3
    assert facts["identity"]["about"]["model"]["class_path"] == "quorate.models.ResNet"
    assert facts["identity"]["about"]["model"]["init_args"]["depth"] == 8
    assert Outputs.load(run / "outputs" / "test.safetensors").members == (4,)
    before = (run / "weights.safetensors").stat().st_mtime_ns
    assert main(command) == 0  # finished: read back, not trained again
    assert (run / "weights.safetensors").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(quick(tmp_path / "r", "--progress", "false")) == 0
    capsys.readouterr()
    assert main(quick(tmp_path / "r", "--progress", "false", "--fit.lr", "0.123")) == 1
    assert "settings.lr: 0.05 there, 0.123 now" in one_line(capsys)


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", str(RECIPES / "digits-deep.yaml"), "--run", "r", "--print_config"])
    assert stop.value.code == 0
    assert "epochs: 60" in capsys.readouterr().out


def test_own_model_by_class_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n\n\nclass Linear(nn.Sequential):\n"
        "    def __init__(self, shape: tuple[int, ...], classes: int, bias: bool = True) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes, bias))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(quick(tmp_path / "r", "--model", "own_networks.Linear", "--model.bias", "false", "--progress", "false")) == 0


def test_ctrl_c_in_the_middle_then_the_same_command(tmp_path: Path) -> None:
    options = ["--fit.epochs", "40", "--progress", "true"]

    def start(run: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "quorate", *quick(run, *options)]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread)

    first = start(tmp_path / "a")
    for _ in range(600):
        if (tmp_path / "a" / "metrics.csv").exists():
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, error = first.communicate(timeout=60)
    if first.returncode == 0:
        pytest.fail("the run ended before the signal: make it longer")
    assert first.returncode == 130
    assert error.splitlines()[-1].startswith("quorate train: stopped by SIGINT")
    assert "Traceback" not in error
    again = start(tmp_path / "a")
    whole = start(tmp_path / "b")
    assert again.communicate(timeout=120)[1].count("going on at") == 1
    whole.communicate(timeout=120)
    assert (again.returncode, whole.returncode) == (0, 0)
    for name in ("weights.safetensors", "metrics.csv", "outputs/test.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_run_can_be_made_again_from_its_folder(tmp_path: Path) -> None:
    command = quick(tmp_path / "a", "--model", "MLP", "--model.hidden", "[16]", "--data.seed", "4", "--progress", "false")
    assert main(command) == 0
    kept = str(tmp_path / "a" / "config.yaml")
    assert main(["train", "--config", kept, "--run", str(tmp_path / "b"), "--progress", "false"]) == 0
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (tmp_path / "b" / "weights.safetensors").read_bytes()


def test_a_model_that_is_an_ensemble_in_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--data", "digits", "--model", "MultiExitResNet", "--model.depth", "8", "--fit.epochs", "1"]
    assert main([*command, "--run", str(tmp_path / "exits")]) == 0
    outputs = Run(tmp_path / "exits").outputs("test")
    assert (outputs.combine, outputs.ordered, outputs.stages > 1) == ("last", True, True)
    row = (tmp_path / "exits" / "metrics.csv").read_text().splitlines()
    accuracy = float(dict(zip(row[0].split(","), row[1].split(","), strict=True))["val_accuracy"])
    assert accuracy == pytest.approx(1 - Run(tmp_path / "exits").outputs("validation").errors().mean())
    from quorate.cli.reload import reload

    again, data = reload(tmp_path / "exits")
    assert (quorate.collect(again, data.test).values[-1] == outputs.values[-1]).all()
    capsys.readouterr()
    assert main([*command, "--ensemble.kind", "deep", "--run", str(tmp_path / "deep")]) == 1
    assert "MultiExitResNet is an ensemble of classifiers in itself: expected ensemble.kind single" in capsys.readouterr().err
