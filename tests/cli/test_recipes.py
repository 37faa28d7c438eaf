"""Every recipe is parsed, builds what it says, and asks for nothing that its method refuses; those of tickets keep the paper's schedule."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from quorate.cli.main import main
from quorate.cli.parse import plain
from quorate.cli.recipe import EnsembleChoice, arguments, factory
from quorate.cli.train import parse_recipe
from quorate.runs import Run
from quorate.tickets import Moves, Timeline
from quorate.training import Settings

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
SPARSE = [path for path in RECIPES if path.stem.removesuffix("-m7").endswith(("edst", "dst"))]
ROWS = {  # training rows, shape and classes of the data that the sparse recipes name
    "digits": (361, (1, 8, 8), 8),
    "fashion-mnist": (48_000, (1, 28, 28), 10),
    "cifar10": (40_000, (3, 32, 32), 10),
    "cifar100": (40_000, (3, 32, 32), 100),
    "imagenet": (1_229_920, (3, 224, 224), 1000),
}


def chosen(path: Path) -> tuple[Any, EnsembleChoice, Settings]:
    parsed = parse_recipe(["--config", str(path), "--run", "r"])
    return parsed, EnsembleChoice.of(plain(parsed.ensemble)), Settings.of(plain(parsed.fit) | {"seed": parsed.seed})


def data_of(path: Path) -> tuple[int, Any]:
    rows, shape, classes = next(ROWS[name] for name in sorted(ROWS, reverse=True) if path.stem.startswith(name))
    return rows, SimpleNamespace(shape=shape, width=classes)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_parsed(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    _, choice, settings = chosen(path)
    assert (choice.kind == "edst") <= (settings.schedule == "constant")


@pytest.mark.parametrize("path", SPARSE, ids=lambda path: path.stem)
def test_sparse_recipes_fit_their_networks_and_phases(path: Path) -> None:
    parsed, choice, settings = chosen(path)
    rows, data = data_of(path)
    with torch.device("meta"):
        network = nn.Sequential(nn.Identity(), factory(parsed.model.class_path, arguments(parsed.model), data)())
        example = torch.zeros(1, *data.shape)
    steps = -(-rows // settings.batch_size)
    epochs, phase = settings.epochs, settings.epochs * steps
    if choice.kind == "edst":
        timeline = Timeline(settings.epochs, choice.members, choice.tickets.exploration, choice.tickets.factors)
        epochs, phase = timeline.refinement, min(timeline.ends[0], timeline.refinement) * steps
        assert settings.warmup_epochs <= timeline.ends[0]
    Moves.of(choice.tickets.moves()).check(network, choice.tickets.density, example, phase, epochs)


@pytest.mark.parametrize(
    ("name", "members", "density", "ends"),
    [
        ("cifar10-edst", 3, 0.2, [150, 250, 350, 450]),
        ("cifar100-edst", 3, 0.2, [150, 250, 350, 450]),
        ("cifar10-edst-m7", 7, 0.1, [150, 250, 350, 450, 550, 650, 750, 850]),
        ("imagenet-resnet50-edst", 4, 0.2, [30, 100, 170, 240, 310]),
    ],
)
def test_schedules_of_the_paper(name: str, members: int, density: float, ends: list[int]) -> None:
    _, choice, settings = chosen(RECIPES[0].parent / f"{name}.yaml")
    timeline = Timeline(settings.epochs, choice.members, choice.tickets.exploration, choice.tickets.factors)
    assert (timeline.ends, choice.members, choice.tickets.density) == (ends, members, density)
    if name.startswith("cifar"):
        assert (settings.lr, settings.momentum, settings.weight_decay, settings.batch_size) == (0.1, 0.9, 5e-4, 128)
        assert (choice.tickets.every, choice.tickets.rate, choice.tickets.escape) == (1000, 0.5, 0.8)
        rates = [settings.lr * timeline.lr_factor(epoch) for epoch in (0, 149, 150, 199, 200, 249, 250)]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.01])
    else:
        assert (choice.tickets.every, settings.label_smoothing) == (4000, 0.1)


@pytest.mark.parametrize("classes", [10, 100])
def test_dst_schedules_of_the_paper(classes: int) -> None:
    _, choice, settings = chosen(RECIPES[0].parent / f"cifar{classes}-dst.yaml")
    assert (settings.epochs, settings.schedule, tuple(settings.milestones), settings.decay) == (250, "step", (125, 187), 0.1)
    assert (choice.members, choice.tickets.density, choice.tickets.every) == (3, 0.2, 1000)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ratio"), [("edst", 0.34), ("dst", 1.0)])
def test_those_on_digits_run(name: str, ratio: float, tmp_path: Path) -> None:
    recipe = str(RECIPES[0].parent / f"digits-{name}.yaml")
    assert main(["train", "--config", recipe, "--run", str(tmp_path / "r"), "--progress", "false"]) == 0
    run = Run(tmp_path / "r")
    assert run.facts["ledger"]["training_ratio"] == pytest.approx(ratio, abs=0.02)
    assert run.outputs("test").errors().mean() < 0.06
