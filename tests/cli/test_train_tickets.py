"""`quorate train --ensemble.kind edst` and `dst`: every option arrives, refusals are one line, an interrupted run ends the same."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")

import torch

from quorate import collect
from quorate.cli.main import main
from quorate.cli.recipe import EnsembleChoice, build, factory
from quorate.cli.reload import reload
from quorate.cli.tickets import TicketsChoice
from quorate.data import digits
from quorate.outputs import Outputs
from quorate.runs import Run
from quorate.tickets import DST, EDST, NM, Blocks, ConstantFanIn, Gradient, Random, Static, Unstructured
from quorate.tickets.edst import EDSTRegime

RECIPES = Path(__file__).parents[2] / "recipes"
FEW = ["--ensemble.members", "2", "--ensemble.tickets.every", "3"]


def command(run: Path, kind: str, *more: str, config: str = "digits-single") -> list[str]:
    model = ["--model", "MLP", "--model.hidden", "[16]"]
    short = ["--fit.epochs", "7", "--fit.warmup_epochs", "0.5", "--progress", "false", "--run", str(run)]
    return ["train", "--config", str(RECIPES / f"{config}.yaml"), *model, *short, "--ensemble.kind", kind, *more]


def kept(folder: Path) -> dict[str, bytes]:
    """What a run came to, without what differs in time."""
    names = [*folder.glob("*.safetensors"), *folder.glob("tickets/*"), *folder.glob("outputs/*")]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in names}
    found |= {name: (folder / name).read_bytes() for name in ("metrics.csv", "members.csv")}
    facts = json.loads((folder / "run.json").read_text())
    return found | {name: json.dumps(facts[name]).encode() for name in ("ledger", "tickets", "macs")}


def test_edst_is_trained_evaluated_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "a"
    options = ["--ensemble.tickets.density", "0.3", "--ensemble.tickets.growth", "random", "--ensemble.tickets.factors", "[0.2]"]
    assert main(command(run, "edst", *FEW, *options)) == 0
    shown = capsys.readouterr().out
    assert all(row in shown for row in ("NLL, T fitted", "training ÷ dense", "weights ever live", "mask overlap"))
    facts = Run(run).facts
    assert facts["identity"]["settings"]["schedule"] == "constant"  # said nowhere, so EDST's
    assert facts["identity"]["about"]["ensemble"]["tickets"]["density"] == 0.3
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    assert recipe["fit"]["schedule"] == "constant"
    assert (recipe["ensemble"]["tickets"]["growth"], recipe["ensemble"]["tickets"]["factors"]) == ("random", [0.2])
    ensemble, data = reload(run)
    assert isinstance(ensemble, EDST)
    assert (ensemble.density, ensemble.moves.growth, ensemble.factors) == (0.3, Random(), (0.2,))
    assert (collect(ensemble, data.test).values[0] == Run(run).outputs("test").values[0]).all()
    lives = [sum(int(mask.sum()) for mask in masks.values()) for masks in ensemble.ticket_masks]
    assert lives[0] == lives[1] == round(0.3 * sum(mask.numel() for mask in ensemble.ticket_masks[0].values()))
    before = kept(run)
    assert main(command(run, "edst", *FEW, *options)) == 0  # read back
    assert main(["train", "--config", str(run / "config.yaml"), "--run", str(tmp_path / "b"), "--progress", "false"]) == 0
    assert kept(run) == before == kept(tmp_path / "b")
    capsys.readouterr()
    assert main(command(run, "edst", *FEW, *options, "--ensemble.tickets.density", "0.2")) == 1
    error = capsys.readouterr().err
    assert "tickets.density: 0.3 there, 0.2 now" in error
    assert error.count("\n") == 1


def test_dst_beside_a_dense_run_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "dst", "dst", *FEW, "--fit.inputs", "own_order")) == 0
    assert main(command(tmp_path / "deep", "deep", "--ensemble.members", "2")) == 0
    capsys.readouterr()
    assert Run(tmp_path / "dst").facts["identity"]["settings"]["schedule"] == "cosine"
    runs = [str(tmp_path / "dst"), str(tmp_path / "deep")]
    assert main(["evaluate", *runs, "--output", str(tmp_path / "t.json")]) == 0
    assert "Sparse networks: parameters are the live ones" in " ".join(capsys.readouterr().out.split())
    figures = json.loads((tmp_path / "t.json").read_text())
    sparse, dense = figures["dst"], figures["deep"]
    assert sparse.keys() - dense.keys() == {
        "training_ratio", "inference_ratio", "live_parameters", "live_ratio", "exploration_rate", "overlap",
    }  # fmt: skip
    assert sparse["parameters"] == sparse["live_parameters"] < dense["parameters"]
    assert sparse["live_ratio"] == pytest.approx(2 * sparse["parameters"] / dense["parameters"])
    assert sparse["inference_ratio"] == pytest.approx(2 * sparse["macs"] / dense["macs"])
    assert sparse["training_ratio"] == pytest.approx(2 * sparse["training_macs"] / dense["training_macs"])
    assert main(["evaluate", runs[1]]) == 0
    assert "÷ dense" not in capsys.readouterr().out


def test_interrupted_in_a_refinement_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EDSTRegime, "after_step_", lambda _, step: signal.raise_signal(signal.SIGINT) if step == 30 else None)
    assert main(command(tmp_path / "a", "edst", *FEW)) == 130  # 7 steps an epoch: exploration to 21, refinements to 35 and 49
    monkeypatch.undo()
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "running"
    assert main(command(tmp_path / "a", "edst", *FEW)) == 0
    assert main(command(tmp_path / "b", "edst", *FEW)) == 0
    assert kept(tmp_path / "a") == kept(tmp_path / "b")
    assert Outputs.load(tmp_path / "a" / "outputs" / "test.safetensors").members == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["edst", *FEW, "--fit.schedule", "cosine"], "schedule='cosine': EDST's timeline has rates of its own on lr"),
        (["edst", *FEW, "--fit.epochs", "2"], "epochs"),
        (
            ["edst", *FEW, "--ensemble.tickets.every", "21"],
            "every=21 steps between two moves of the masks are not within a phase",
        ),
        (["edst", *FEW, "--ensemble.tickets.exploration", "0"], "exploration=0"),
        (["edst", *FEW, "--ensemble.tickets.growth", "static"], "growth=Static() with several members"),
        (["edst", *FEW, "--fit.averaging", "ema"], "averaging='ema' averages weights over different masks"),
        (["dst", *FEW, "--ensemble.tickets.density", "0"], "density"),
        (["dst", *FEW, "--ensemble.tickets.density", "0.001"], "density"),
        (["dst", *FEW, "--ensemble.tickets.rate", "2"], "rate=2"),
        (["dst", *FEW, "--ensemble.tickets.pattern", "nm", "--ensemble.tickets.n", "4"], "NM(n=4, m=4)"),
        (["dst", *FEW, "--ensemble.tickets.dense", "[1.head]"], "no parameter is called '1.head'"),
        (
            ["dst", *FEW, "--ensemble.tickets.batches", "2", "--ensemble.tickets.growth", "random"],
            "ensemble.tickets.batches=2 is of growth gradient, got growth random: leave it out, or set growth too",
        ),
        (["dst", *FEW, "--ensemble.tickets.ablate", "0.1"], "ensemble.tickets.ablate=0.1 is of pattern fan_in, got pattern unst"),
        (["dst", *FEW, "--ensemble.tickets.averaged", "2"], "ensemble.tickets.averaged=2 is of choose average, got choose acc"),
        (["dst", *FEW, "--ensemble.tickets.escape", "0.5"], "ensemble.tickets.escape=0.5 is of ensemble.kind edst, got kind dst"),
        (
            ["deep", "--ensemble.tickets.density", "0.1"],
            "ensemble.tickets.density=0.1 is of ensemble.kind edst or dst, got kind deep: leave it out",
        ),
        (
            ["edst", *FEW, "--ensemble.tickets.growth", "rigl"],
            "ensemble.tickets.growth: expected one of 'gradient', 'random', 'st",
        ),
        (
            ["edst", *FEW, "--ensemble.tickets.densty", "1"],
            "unknown option '--ensemble.tickets.densty'; did you mean '--ensemble.",
        ),
        (["edst", *FEW, "--ensemble.tickets.density", "x"], "ensemble.tickets.density: expected float, got 'x'"),
    ],
)
def test_refusals(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "r", *options)) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "r" / "run.json").exists()


@pytest.mark.parametrize(
    ("tickets", "message"),
    [
        ("3", "r.yaml: ensemble.tickets must be a mapping of options, got 3: write tickets: {name: value}"),
        ("null", "r.yaml: ensemble.tickets must be a mapping of options, got None: write tickets: {name: value}"),
        ("{densty: 0.1}", "unknown key 'ensemble.tickets.densty'; did you mean 'ensemble.tickets.density'?"),
        ("{factors: 0.1}", "ensemble.tickets.factors: expected"),
    ],
)
def test_refusals_of_recipes(tickets: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(f"data: {{class_path: quorate.data.digits}}\nensemble: {{tickets: {tickets}}}\n")
    options = ["--model", "MLP", "--run", str(tmp_path / "r"), "--progress", "false"]
    assert main(["train", "--config", str(tmp_path / "r.yaml"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("given", "name", "made"),
    [
        ({}, "growth", Gradient(1)),
        ({"batches": 3}, "growth", Gradient(3)),
        ({"growth": "random"}, "growth", Random()),
        ({"growth": "static"}, "growth", Static()),
        ({}, "pattern", Unstructured()),
        ({"pattern": "fan_in", "ablate": 0.1}, "pattern", ConstantFanIn(0.1)),
        ({"pattern": "nm", "n": 1, "m": 8}, "pattern", NM(1, 8)),
        ({"pattern": "blocks", "rows": 2, "columns": 8}, "pattern", Blocks(2, 8)),
        ({"every": 7}, "every", 7),
        ({"rate": 0.3}, "rate", 0.3),
        ({"decay": "rigl"}, "decay", "rigl"),
        ({"until": 0.75}, "until", 0.75),
        ({"distribution": "uniform"}, "distribution", "uniform"),
        ({"dense": ["1.layers.head.weight"]}, "dense", ("1.layers.head.weight",)),
        ({"rescale": False}, "rescale", False),
        ({"choose": "average", "averaged": 3}, "choose", "average"),
        ({"choose": "average", "averaged": 3}, "averaged", 3),
    ],
)
def test_every_option_arrives(given: dict[str, Any], name: str, made: object) -> None:
    data = digits()
    choice = EnsembleChoice.of({"kind": "dst", "members": 2, "tickets": {"density": 0.25} | given})
    ensemble = build(choice, factory("quorate.models.MLP", {"hidden": [16]}, data), data, 0)
    assert isinstance(ensemble, DST)
    assert (getattr(ensemble.moves, name), ensemble.density) == (made, 0.25)


def test_options_of_edst_arrive_and_its_network_is_that_of_seed_and_member() -> None:
    data, own = digits(), {"exploration": 4, "escape": 0.5, "factors": [0.3, 0.2, 0.1]}
    make = factory("quorate.models.MLP", {"hidden": [16]}, data)
    edst = build(EnsembleChoice.of({"kind": "edst", "members": 3, "tickets": own}), make, data, 2)
    assert isinstance(edst, EDST)
    assert (len(edst.members), edst.exploration, edst.escape, edst.factors) == (3, 4, 0.5, (0.3, 0.2, 0.1))
    dst = build(EnsembleChoice.of({"kind": "dst", "members": 2}), make, data, 2)
    deep = build(EnsembleChoice("deep", 2), make, data, 2)
    for name, tensor in deep.state_dict().items():
        assert torch.equal(dst.state_dict()[name], tensor)
    for name, tensor in deep.members[0].state_dict().items():
        assert torch.equal(edst.learner.state_dict()[name], tensor)


def test_identities_and_recipes_of_other_kinds_are_as_they_were() -> None:
    old = {"kind": "deep", "members": 4, "alpha": 2, "gamma": 1}  # a recipe from before
    choice = EnsembleChoice.of(old)
    assert choice == EnsembleChoice("deep")
    assert choice.facts({**old, "tune": False, "backends": None, "tickets": {}}) == old
    assert TicketsChoice().given() == {}
    fit = {"cycles": 1, "schedule": "cosine"}
    assert choice.settings(fit, ()) == fit
    assert EnsembleChoice("edst").settings(fit, ()) == {"cycles": 1, "schedule": "constant"}
    assert EnsembleChoice("edst").settings(fit, ("schedule",)) == fit
    assert EnsembleChoice("dst").settings(fit, ()) == fit
    assert EnsembleChoice("snapshot", 3).settings(fit, ()) == {"cycles": 3, "schedule": "cosine"}
