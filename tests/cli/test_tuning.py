"""Backends of packed layers are measured once, kept in the run's recipe, and used when it goes on or is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import yaml

from quorate.cli.main import main
from quorate.cli.reload import reload
from quorate.packed import PackedEnsemble, backends

QUICK = ["--fit.epochs", "1", "--fit.warmup_epochs", "0", "--progress", "false"]
COMMAND = ["train", "--data", "digits", "--model", "LeNet", "--ensemble.kind", "packed", *QUICK]


def train(run: Path, *more: str) -> int:
    return main([*COMMAND, "--run", str(run), *more])


@pytest.mark.slow
def test_what_was_measured_stays_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(tmp_path / "run", "--ensemble.tune", "true") == 0
    recipe = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    chosen = recipe["ensemble"]["backends"]
    ensemble, _ = reload(tmp_path / "run")
    assert isinstance(ensemble, PackedEnsemble)
    assert backends(ensemble) == chosen
    monkeypatch.setattr("quorate.packed.tune", lambda *_, **__: pytest.fail("measured again"))
    assert train(tmp_path / "run", "--ensemble.tune", "true") == 0


def test_backends_of_a_recipe_are_used_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = '{"1.features.conv2": "loop"}'
    assert train(tmp_path / "run", "--ensemble.backends", names) == 0
    ensemble, _ = reload(tmp_path / "run")
    assert isinstance(ensemble, PackedEnsemble)
    assert backends(ensemble)["1.features.conv2"] == "loop"
    assert train(tmp_path / "other", "--ensemble.backends", '{"1.features.conv3": "loop"}') == 1
    assert "got '1.features.conv3'; did you mean '1.features.conv" in capsys.readouterr().err


def test_other_kinds_have_nothing_to_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--ensemble.tune", "true", "--ensemble.kind", "deep") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ensemble.tune and ensemble.backends are of packed ensembles, got kind deep" in error
