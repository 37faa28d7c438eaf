"""A finished run's ensemble and data again: the same outputs; what is refused where the folder or the data are not those any more."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from quorate import collect
from quorate.cli.main import main
from quorate.cli.reload import reload
from quorate.files import read_json, write_json
from quorate.outputs import Outputs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=draw.integers(0, 256, (60, 4, 4)).astype(np.uint8), y=np.arange(60) % 2)
    data = ["--data", "npz_rows", "--data.path", str(tmp_path / "x.npz"), "--data.layout", "nhw"]
    short = ["--fit.epochs", "1", "--fit.warmup_epochs", "0", "--progress", "false", "--run", str(tmp_path / "run")]
    assert main(["train", *data, "--model", "MLP", "--model.hidden", "[8]", "--ensemble.kind", "deep", *short]) == 0
    return tmp_path / "run"


def test_the_same_ensemble_and_data(run: Path) -> None:
    ensemble, data = reload(run)
    assert not any(part.training for part in ensemble.modules())
    stored, again = Outputs.load(run / "outputs" / "test.safetensors"), collect(ensemble, data.test)
    assert len(again.values) == 4
    for one, other in zip(stored.values, again.values, strict=True):
        np.testing.assert_array_equal(one, other)


def test_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    recipe = run / "config.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace(str(tmp_path / "x.npz"), "x.npz"))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    expected = r"^the recipe of run .*run names 'x.npz' relative to the folder it was trained from: run it from there \(expected"
    with pytest.raises(FileNotFoundError, match=expected):
        reload(run)
    monkeypatch.chdir(tmp_path)
    reload(run)
    (tmp_path / "x.npz").unlink()
    recipe.write_text(text)
    with pytest.raises(FileNotFoundError, match=r"^expected an \.npz file"):
        reload(run)


@pytest.mark.parametrize("column", ["x", "y"])
def test_data_that_have_changed_since(run: Path, column: str) -> None:
    with np.load(run.parent / "x.npz") as file:
        columns = dict(file)
    first = columns[column].reshape(-1)  # a view: one pixel, one label
    first[0] = 1 - first[0] if column == "y" else first[0] ^ 1
    np.savez(run.parent / "x.npz", **columns)
    with pytest.raises(
        ValueError, match=r"the data of .*config.yaml are not those that run .*run was trained on: they have changed"
    ):
        reload(run)


def test_what_cannot_be_made_again(run: Path) -> None:
    facts = read_json(run / "run.json", "facts")
    write_json(run / "run.json", facts | {"status": "running"})
    with pytest.raises(ValueError, match="is not finished: run its training command again"):
        reload(run)
    write_json(run / "run.json", facts)
    recipe = run / "config.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("MLP", "MPL"))
    with pytest.raises(ValueError, match=r"the recipe .*config.yaml can't be used any more: quorate.models has no model 'MPL'"):
        reload(run)
    recipe.unlink()
    with pytest.raises(ValueError, match=r"has no config\.yaml to make its model from"):
        reload(run)
    recipe.write_text(text)
    shutil.rmtree(run)
    with pytest.raises(FileNotFoundError):
        reload(run)
