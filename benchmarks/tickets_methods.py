"""The methods of tickets_table.py, and how each trains: epochs, optimiser and first weights are those of the dense networks.

In epochs E of the dense run: SWA averages the last quarter; a static sparse ensemble and a DST ensemble train every member for E; EDST
explores for 0.45 E and refines three times for 0.5 E, 1.95 E in all, which stays within 0.65 of the dense run's MACs. EDST's learning-rate
factors and the moves' cosine were chosen on validation data of Fashion-MNIST with a seed that is not reported.

EDST and DST take each ticket from its best validation epoch; the dense networks and the static ensemble are those of the last epoch. SWA's
passes for batch statistics are in no count of MACs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import quorate
from quorate.cli.recipe import EnsembleChoice, build
from quorate.data import Data
from quorate.training.fit import Fitted
from tickets_tasks import Task

MEMBERS, EPOCHS = 3, 20
SWA_FROM = 15
EXPLORATION, REFINEMENT = 9, 10
FACTORS = (0.3, 0.03)
MOVES: dict[str, Any] = {"decay": "cosine", "until": 0.75}


@dataclass(frozen=True)
class Method:
    """``ensemble`` makes what is trained from M dense networks; ``settings`` changes those of the task."""

    ensemble: Callable[[Task, list[nn.Module]], nn.Module]
    settings: Callable[[Task], dict[str, Any]] = lambda _: {}


def deep(_: Task, networks: list[nn.Module]) -> nn.Module:
    """The dense ensemble."""
    return quorate.DeepEnsemble(networks)


def first(_: Task, networks: list[nn.Module]) -> nn.Module:
    """One dense network."""
    return quorate.DeepEnsemble(networks[:1])


def swa(task: Task) -> dict[str, Any]:
    """Averaged over the ends of the last epochs, at a fifth of the peak rate."""
    return {"averaging": "swa", "swa_start": SWA_FROM, "swa_lr": task.settings["lr"] / 5}


def edst(density: float) -> Method:
    """One sparse run of 1.95 E epochs, M tickets."""

    def ensemble(task: Task, networks: list[nn.Module]) -> nn.Module:
        return quorate.tickets.EDST(
            networks[0], MEMBERS, density, exploration=EXPLORATION, factors=FACTORS, every=task.every, **MOVES
        )

    return Method(ensemble, lambda _: {"epochs": EXPLORATION + MEMBERS * REFINEMENT, "schedule": "constant"})


def dst(task: Task, networks: list[nn.Module]) -> nn.Module:
    """M sparse runs."""
    return quorate.tickets.DST(networks, 0.2, every=task.every, **MOVES)


def static(_: Task, networks: list[nn.Module]) -> nn.Module:
    """M sparse runs with the masks that were drawn first."""
    return quorate.tickets.DST(networks, 0.2, growth=quorate.tickets.Static(), choose="last")


METHODS: dict[str, Method] = {
    "deep": Method(deep),
    "swa": Method(first, swa),
    "static": Method(static),
    "edst-0.2": edst(0.2),
    "edst-0.1": edst(0.1),
    "dst": Method(dst),
}


def fit(task: Task, method: Method, data: Data, seed: int, run: Path) -> Fitted:
    """Train, go on, or read back."""
    dense = build(EnsembleChoice("deep", MEMBERS), partial(task.network, data), data, seed)
    assert isinstance(dense, quorate.DeepEnsemble)
    ensemble = method.ensemble(task, list(dense.members))
    settings = {**task.settings, "epochs": EPOCHS, "seed": seed, **method.settings(task)}
    ensemble.to("cuda" if torch.cuda.is_available() else "cpu")  # where the corrupted rows are evaluated, too
    return quorate.fit(ensemble, data, run=run, **settings)
