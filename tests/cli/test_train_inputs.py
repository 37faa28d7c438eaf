"""``quorate train --fit.inputs …``: it trains, is kept in the recipe, goes on and evaluates as ever; what is not possible is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from quorate.cli.main import main
from quorate.cli.reload import reload
from quorate.runs import Run

RECIPES = Path(__file__).parents[2] / "recipes"


def command(run: Path, inputs: str, *more: str) -> list[str]:
    quick = ["--model", "MLP", "--model.hidden", "[8]", "--fit.epochs", "2", "--progress", "false", "--ensemble.members", "2"]
    return ["train", "--config", str(RECIPES / "digits-deep.yaml"), *quick, "--run", str(run), "--fit.inputs", inputs, *more]


@pytest.mark.parametrize("inputs", ["own_augmentation", "own_order"])
def test_it_trains_and_evaluates(inputs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "own", inputs)) == 0
    assert main(command(tmp_path / "shared", "shared")) == 0
    capsys.readouterr()
    own, shared = Run(tmp_path / "own"), Run(tmp_path / "shared")
    assert own.facts["identity"]["settings"]["inputs"] == inputs
    assert "inputs" not in shared.facts["identity"]["settings"]
    first, second = (run.outputs("test").values for run in (own, shared))
    assert abs(first[0] - second[0]).max() < 1e-4  # member 0 sees what is shared
    assert abs(first[1] - second[1]).max() > 1e-2
    assert len((tmp_path / "own" / "members.csv").read_text().splitlines()) == 5
    assert main(["evaluate", str(tmp_path / "own"), str(tmp_path / "shared"), "--output", str(tmp_path / "t.json")]) == 0
    figures = json.loads((tmp_path / "t.json").read_text())
    assert figures["own"].keys() == figures["shared"].keys()
    again = tmp_path / "again"  # from the recipe that was kept
    assert main(["train", "--config", str(tmp_path / "own" / "config.yaml"), "--run", str(again), "--progress", "false"]) == 0
    assert (again / "weights.safetensors").read_bytes() == (tmp_path / "own" / "weights.safetensors").read_bytes()
    reload(tmp_path / "own")


@pytest.mark.parametrize(
    ("inputs", "more", "message"),
    [
        (
            "own_order",
            ["--ensemble.kind", "snapshot", "--fit.warmup_epochs", "0"],
            "inputs='own_order': SnapshotEnsemble trains one network, not its members",
        ),
        (
            "own_order",
            ["--ensemble.kind", "mc-dropout", "--model.dropout", "0.2"],
            "MCDropout trains one network, not its members",
        ),
        ("own_augmentation", ["--fit.augment", "false"], "augment=False and nothing is mixed, so all members would see the same"),
        ("own", [], "fit.inputs: expected one of 'shared', 'own_augmentation', 'own_order', got 'own'"),
    ],
)
def test_what_is_not_possible(
    inputs: str, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "r", inputs, *more)) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
    assert not (tmp_path / "r").exists()
