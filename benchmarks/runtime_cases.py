"""What the runtime_*.py benchmarks run: ensembles with random weights, the bundles made of them, and processes of their own.

Time, memory and bytes don't depend on what weights were trained for, so nothing is trained: ResNet-18 with the CIFAR stem on
(3, 32, 32), 10 classes.

    single     one network                              packed     pack(network, members=4, alpha=2, gamma=1)
    pair       two networks, one after the other        cascade    the same, of which some rows see the first one alone
    tickets    three networks at density .1, ERK        students   B-DISTIL: three students of half the width, linked to earlier ones

The cascade's policy is Policy.fit's, the paper's window of ± 10 % of the rows around the threshold for risk at 80 % coverage, fitted on
other random rows with random labels: about a fifth of all rows go on. What they are is of no importance, how many is.
Inputs (B, 3, 32, 32) are drawn from N(0, 1).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import quorate
from quorate.cascade import Policy
from quorate.distil import ChainStudent, Cut, Distilled, cut
from quorate.distil.matching import feature_tap, joints
from quorate.ensemble import stages
from quorate.models import MLP, ResNet, WideResNet
from quorate.runtime import Manifest
from quorate.runtime.collecting import collect
from quorate.tickets import Tickets, counts, erk
from quorate.tickets.masks import draw
from quorate.tickets.weights import sparse_weights

IMAGE, VECTOR, CLASSES = (3, 32, 32), (64,), 10
SEED = 0
MEMBERS, ALPHA = 4, 2
DENSITY = 0.1
FITTED_ON, QUICK_ROWS = 1024, 64  # rows that the cascade's window is fitted on
HERE = Path(__file__).resolve().parent


class Case(NamedTuple):
    """An ensemble, its policy (None: every row sees all stages), the shape of a row."""

    ensemble: nn.Module
    policy: Policy | None = None
    shape: tuple[int, ...] = IMAGE


def rows(count: int, shape: Sequence[int] = IMAGE, seed: int = SEED) -> NDArray[np.float32]:
    """Random inputs (count, *shape)."""
    return np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)


def network(seed: int, quick: bool, wide: bool = False) -> nn.Module:
    """A network whose weights are drawn by ``seed``; ``wide``: WRN-28-10 instead of ResNet-18."""
    torch.manual_seed(seed)
    if wide:
        return (WideResNet(IMAGE, CLASSES, depth=10, width=1) if quick else WideResNet(IMAGE, CLASSES, depth=28, width=10)).eval()
    return (ResNet(IMAGE, CLASSES, depth=8) if quick else ResNet(IMAGE, CLASSES, depth=18)).eval()


def single(quick: bool, wide: bool = False) -> Case:
    """One network."""
    return Case(quorate.DeepEnsemble([network(SEED, quick, wide)]))


def packed(quick: bool) -> Case:
    """As many parameters and multiply-adds as the single network, about."""
    return Case(quorate.pack(network(SEED, quick), members=MEMBERS, alpha=ALPHA, gamma=1).eval())


def pair(quick: bool) -> Case:
    """Two networks, both for every row."""
    return Case(quorate.DeepEnsemble([network(SEED + m, quick) for m in range(2)]))


def cascade(quick: bool) -> Case:
    """The pair under the paper's window."""
    ensemble = pair(quick).ensemble
    count = QUICK_ROWS if quick else FITTED_ON
    x, labels = rows(count, seed=SEED + 1), np.random.default_rng(SEED + 1).integers(0, CLASSES, count)
    outputs = collect(stages(ensemble, torch.from_numpy(x[:1])), x, labels, kind="logits")
    return Case(ensemble, Policy.fit(outputs, target="risk@coverage=0.8", width=0.1))


def tickets(quick: bool, wide: bool = False, members: int = 3, density: float = DENSITY) -> Case:
    """Networks with random ERK masks."""
    networks, masks = [network(SEED + m, quick, wide) for m in range(members)], []
    for m, each in enumerate(networks):
        weights, rng = sparse_weights(each), np.random.default_rng(SEED + m)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        live = counts(shapes, erk(shapes, density))
        masks.append({name: draw(shapes[name], live[name], rng) for name in shapes})
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[-1][name])
    return Case(Tickets(networks, masks))


def students(quick: bool, count: int = 3) -> Case:
    """Students of the single network's form at half its width; each reads an activation of every earlier one."""
    teacher, x = network(SEED, quick), torch.from_numpy(rows(2))
    chains = [cut(teacher, x, Cut(width=0.5), seed=SEED + m) for m in range(count)]
    taps, features = [chain.boundaries for chain in chains], [feature_tap(chain) for chain in chains]
    made = [
        ChainStudent(chain, m, joints("all", taps[m], taps[:m], features[:m], features[m]) if m else (), None, taps)
        for m, chain in enumerate(chains)
    ]
    return Case(Distilled(made))


def mlps(quick: bool, members: int = 1) -> Case:  # noqa: ARG001
    """Networks so small that what is around them shows."""
    torch.manual_seed(SEED)
    return Case(quorate.DeepEnsemble([MLP(VECTOR, CLASSES, hidden=(128, 128)) for _ in range(members)]).eval(), None, VECTOR)


CASES: dict[str, Callable[[bool], Case]] = {
    "single": single,
    "packed": packed,
    "cascade": cascade,
    "pair": pair,
    "tickets": tickets,
    "students": students,
    "mlp": mlps,
    "mlp ×2": lambda quick: mlps(quick, 2),
}


def save(case: Case, folder: Path) -> Manifest:
    """The bundle of a case."""
    return quorate.save_bundle(case.ensemble, case.policy, folder, example=rows(8, case.shape), name=folder.name)


def programs(folder: Path) -> list[Path]:
    """The ONNX files of a bundle, in order."""
    told = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return [folder / stage["program"] for stage in told["stages"]]


def size_bytes(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def apart(script: str, arguments: Sequence[object], threads: int, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a script of this folder in a process of its own, and read what it prints: one JSON object. Its errors are seen here.

    Raises:
        CalledProcessError: it failed.
    """
    given = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    said = subprocess.run(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        env={**os.environ, **given, **(environment or {})}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(said.stdout)
    return found
