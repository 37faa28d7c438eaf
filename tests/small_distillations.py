"""Distillations that take a second: few rows of the digits, networks of a few units."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from quorate.data import Data, arrays, digits
from quorate.distil import Distillation, distil, distillation
from quorate.distil.progressive import Loop
from quorate.models import MLP

DATA = digits(fractions=(0.1, 0.08, 0.05, 0.05))  # 144 rows to distil on: 2 steps of 64 an epoch
QUICK = {
    "epochs": 2,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 0.02,
    "accelerator": "cpu",
    "augment": False,
    "progress": False,
}
RULES = {"rounds": 3, "candidates": 1, "budget": 9.0, "joint": True, "held_out": "report", "links": ("none", "all")}
"""One edge, of the transfer set alone: such small students have one."""


def mlp(*widths: int, seed: int = 0, norm: bool = False, dropout: float = 0.0, data: Data = DATA) -> nn.Module:
    """A perceptron in eval mode, of the data's width."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(data.normalise(), MLP(data.shape, data.width, widths, dropout=dropout, norm=norm)).eval()


def taught() -> nn.Module:
    """A teacher: its outputs are larger than an untrained network's."""
    teacher = mlp(24, 24, seed=7)
    with torch.no_grad():
        list(teacher.parameters())[-2].mul_(6)
    return teacher


def quick(teacher: Any = None, students: Any = None, data: Data = DATA, **options: Any) -> Distillation:
    """A distillation into perceptrons of 6 units, on the CPU, silent; options are those of ``distil``."""
    chosen = {**QUICK, **options, "rules": {**RULES, **options.pop("rules", {})}}
    return distil(taught() if teacher is None else teacher, [mlp(6)] if students is None else students, data, **chosen)


def looped(*args: Any, **options: Any) -> tuple[Distillation, Loop]:
    """The same, with what its rounds worked on."""
    seen: list[Loop] = []
    finish = distillation._finished

    def finished(loop: Loop, *rest: Any) -> Distillation:
        seen.append(loop)
        return finish(loop, *rest)

    with mock.patch.object(distillation, "_finished", finished):
        found = quick(*args, **options)
    return found, seen[0]


class Own(nn.Module):
    """A student as a user writes it, with batch statistics; the second and later ones read the hidden units of the one before."""

    def __init__(self, place: int, width: int = 6, data: Data = DATA) -> None:
        super().__init__()
        self.name, self.writes = f"own{place + 1}", (f"hidden{place + 1}",)
        self.reads = (f"hidden{place}",) if place else ()
        inputs = int(np.prod(data.shape))
        self.first = nn.Sequential(data.normalise(), nn.Flatten(), nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU())
        self.last = nn.Linear(width, data.width if data.classes else len(data.targets))

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = sum((carry[name] for name in self.reads), self.first(x))
        return self.last(h), {self.writes[0]: h}


def own(count: int = 3, data: Data = DATA) -> list[nn.Module]:
    """One student per round, accepted whatever its edge."""
    return [Own(place, data=data) for place in range(count)]


def sums(count: int = 60, outputs: int = 2, seed: int = 0) -> Data:
    """A regression: targets that are sums of squares."""
    x = np.random.default_rng(seed).normal(size=(4 * count, 5)).astype(np.float32)
    y = np.stack([np.square(x[:, : k + 2]).sum(1) for k in range(outputs)], 1)
    cuts = [slice(k * count, (k + 1) * count) for k in range(4)]
    train, test, validation, calibration = ((x[c], y[c]) for c in cuts)
    return arrays(train, test, validation, calibration, targets=[f"t{k}" for k in range(outputs)], name="sums")


def tensors(module: nn.Module) -> str:
    """A hash of every parameter and buffer."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def everything(folder: Path) -> dict[str, Any]:
    """What of a finished run has to be the same after any interruption: all but versions and machine."""
    files = ["weights.safetensors", "rounds.jsonl", *(f"outputs/{p.name}" for p in sorted((folder / "outputs").iterdir()))]
    facts = json.loads((folder / "run.json").read_text())
    return {name: (folder / name).read_bytes() for name in files} | {
        "facts": {key: value for key, value in facts.items() if key not in ("versions", "machine")},
        "left": sorted(p.name for p in folder.iterdir()),
    }
