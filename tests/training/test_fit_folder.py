"""What a run folder holds, and what becomes of one that is damaged or asked to be another run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from quorate.data import digits
from quorate.ensemble import DeepEnsemble, collect
from quorate.models import LeNet
from quorate.training import Fitted, Interrupted, fit
from quorate.training.callbacks import SavedState

DATA = digits()


def make(dropout: float = 0.1, stride: int = 1) -> DeepEnsemble:
    torch.manual_seed(0)
    head = [nn.Conv2d(1, 8, 3, stride, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return DeepEnsemble([nn.Sequential(DATA.normalise(), *head, nn.Dropout(dropout), nn.Linear(32, 8))])


def run(ensemble: nn.Module, folder: Path, **options: Any) -> Fitted:
    chosen = {"epochs": 2, "batch_size": 100, "accelerator": "cpu", "progress": False, "tensorboard": False, **options}
    return fit(ensemble, DATA, run=folder, **chosen)


@pytest.mark.parametrize("other", [{"dropout": 0.9}, {"stride": 2}])
def test_another_structure_with_the_same_tensors_is_another_run(tmp_path: Path, other: dict) -> None:
    run(make(), tmp_path / "r")
    with pytest.raises(ValueError, match=r"ensemble\.structure: .* use the same settings to go on, or another folder"):
        run(make(**other), tmp_path / "r")


def test_a_finished_run_comes_back_in_its_memory_layout_and_with_its_bits(tmp_path: Path) -> None:
    def lenet() -> DeepEnsemble:
        torch.manual_seed(0)
        return DeepEnsemble([nn.Sequential(DATA.normalise(), LeNet(DATA.shape, 8))])

    first = run(lenet(), tmp_path / "r", channels_last=True)
    again = run(lenet(), tmp_path / "r", channels_last=True)
    weight = next(p for p in again.ensemble.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(collect(again.ensemble, DATA.test).values[0], first.outputs["test"].values[0])
    assert again.metrics == first.metrics


def test_the_recipe_is_kept_as_yaml(tmp_path: Path) -> None:
    recipe = {"data": {"class_path": "quorate.data.digits", "init_args": {"held_out": [8, 9]}}, "seed": 3}
    run(make(), tmp_path / "r", config=recipe)
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text(encoding="utf-8")) == recipe


def test_a_run_stopped_between_its_first_files_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("stopped here")

    module = importlib.import_module("quorate.training.fit")
    for first in ("write_json", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(module, first, fail)
            with pytest.raises(OSError, match="stopped here"):
                run(make(), tmp_path / first, config={"seed": 0})
        assert run(make(), tmp_path / first, config={"seed": 0}).facts["status"] == "finished"
        assert (tmp_path / first / "config.yaml").read_text() == "seed: 0\n"


@pytest.mark.parametrize("damage", [b"", b"garbage", "half"])
def test_a_damaged_state_is_named(tmp_path: Path, damage: bytes | str, monkeypatch: pytest.MonkeyPatch) -> None:
    save = SavedState._save

    def stop_after(self: SavedState, trainer: Any) -> None:
        self.asked = 2
        save(self, trainer)

    monkeypatch.setattr(SavedState, "_save", stop_after)
    with pytest.raises(Interrupted):
        run(make(), tmp_path / "r", checkpoint_seconds=0.001)
    monkeypatch.undo()
    state = tmp_path / "r" / "resume.ckpt"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"resume\.ckpt is not a readable saved state .*: delete it to begin the run anew"
    ) as caught:
        run(make(), tmp_path / "r")
    assert "\n" not in str(caught.value)
    torch.save({"other": 1}, state)
    with pytest.raises(ValueError, match=r"resume\.ckpt is a checkpoint of something else: delete it"):
        run(make(), tmp_path / "r")
    state.write_bytes(whole)
    assert run(make(), tmp_path / "r").facts["status"] == "finished"


@pytest.mark.parametrize("text", ["", "epoch,step\n0,x\n", "epoch,step\n0\n"])
def test_damaged_metrics_are_named(tmp_path: Path, text: str) -> None:
    run(make(), tmp_path / "r")
    (tmp_path / "r" / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged"):
        run(make(), tmp_path / "r")


def test_a_record_without_identity_is_another_run(tmp_path: Path) -> None:
    run(make(), tmp_path / "r")
    record = tmp_path / "r" / "run.json"
    record.write_text('{"format": "quorate-run/1", "status": "finished", "data": {"name": "d"}}')
    with pytest.raises(ValueError, match="holds another run"):
        run(make(), tmp_path / "r")
