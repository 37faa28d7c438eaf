"""Progress in lines and as a bar, and the remedies where Lightning can't be imported."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import rich.console
import rich.progress
import torch
from torch import nn

from quorate.data import digits
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP
from quorate.training import Interrupted, fit, imports

DATA = digits()


def quick(run: Path | None = None, stop: int = 0, **options: Any) -> None:
    torch.manual_seed(0)
    ensemble = DeepEnsemble([nn.Sequential(DATA.normalise(), MLP(DATA.shape, 8, (4,)))])
    steps = 0

    def count(module: nn.Module, *_: object) -> None:
        nonlocal steps
        steps += module.training
        if module.training and steps == stop:
            signal.raise_signal(signal.SIGTERM)

    ensemble.register_forward_hook(count)
    fit(ensemble, DATA, run=run, batch_size=100, accelerator="cpu", tensorboard=False, **options)


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    quick(epochs=25)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"training: epoch {e}/25" for e in [*range(2, 25, 2), 25]]
    assert all("loss " in line and "validation accuracy " in line for line in lines)


def test_a_resumed_run_says_where_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        quick(tmp_path / "mine", 9, epochs=2)
    quick(tmp_path / "mine", epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("mine: epoch 1/2, loss")
    assert lines[1] == "mine: going on at epoch 1, step 9"
    assert lines[2].startswith("mine: epoch 2/2, loss")
    quick(tmp_path / "named", epochs=1, label="other name")
    assert capsys.readouterr().err.startswith("other name: epoch 1/1")


def test_a_bar_on_a_terminal_that_is_closed_at_every_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = []

    class Noted(rich.progress.Progress):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            bars.append(self)

    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    monkeypatch.setattr(rich.progress, "Progress", Noted)
    with pytest.raises(Interrupted):
        quick(tmp_path / "run", 9, epochs=2)
    quick(tmp_path / "run", epochs=2)
    assert [bar.live.is_started for bar in bars] == [False, False]
    assert [(bar.tasks[0].completed, bar.tasks[0].total) for bar in bars] == [(8, 12), (12, 12)]
    assert bars[1].tasks[0].fields["note"].startswith("epoch 2/2, loss")
    assert "run" in capsys.readouterr().err


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    expected = r"torchmetrics can't be imported \(no module 'torchmetrics'\): pip install \"quorate\[train\]\"$"
    with pytest.raises(ImportError, match=expected):
        imports.torchmetrics()


def test_a_torchvision_that_does_not_fit_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist" if name == "lightning.pytorch" else "something else")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ImportError, match=r"lightning\.pytorch can't be imported because torchvision does not fit this PyTorch"):
        imports.lightning()
    with pytest.raises(RuntimeError, match="something else"):
        imports.torchmetrics()
