"""What sparse_runtime.py runs: networks with random weights, masks and norms, exported sparse and dense, and what is required of them.

    wrn28-10   WideResNet on (3, 32, 32), ERK          densities .1 and .2, and three tickets at .1 in one call
    resnet18   CIFAR stem, (3, 32, 32), uniform        density .1; .5 and 1, where nothing gains
    resnet50   ImageNet stem, (3, 224, 224), uniform   density .1
    mlp        784-1024-1024-10, uniform               density .1; 1

Time depends on where weights are live, not on what they are, so nothing is trained. Live weights are scaled by density^−½ and norms have
random statistics, so that activations stay of one size. Dense is the same network with all weights live. Exports and what the masked
network gives in float64 are kept in a folder, each made once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import quorate
from quorate.export import programs
from quorate.files import atomic
from quorate.models import MLP, ResNet, WideResNet
from quorate.runtime.sparse.machine.host import here
from quorate.tickets import Tickets, counts, erk, uniform
from quorate.tickets.masks import draw
from quorate.tickets.weights import sparse_weights
from runtime_cases import IMAGE, SEED, rows

Densities = Callable[[Mapping[str, tuple[int, ...]], float], dict[str, float]]


class Variant(NamedTuple):
    """A network at a density; 1 leaves all weights live. Tickets of one network have other seeds."""

    name: str
    density: float
    seed: int = SEED


class Case(NamedTuple):
    """A network and what is measured of it.

    Attributes:
        make: the network, in small where that is asked for.
        shape: of a row, (in earnest, in small).
        rule: densities by weight.
        densities: that have to be faster than dense.
        kept: those of which nothing is required but that they are not slower.
        batches: to be timed.
        tickets: how many are run in one call, at the first density and the batch of 16.
    """

    make: Callable[[bool], nn.Module]
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    rule: Densities
    densities: tuple[float, ...] = (0.1,)
    kept: tuple[float, ...] = ()
    batches: tuple[int, ...] = (1, 16)
    tickets: int = 1

    def variants(self) -> list[Variant]:
        """All that is exported: by density, and the other tickets."""
        found = [Variant(f"density {density:g}", density) for density in (*self.densities, *self.kept)]
        return found + [Variant(f"ticket {m}", self.densities[0], SEED + m - 1) for m in range(2, self.tickets + 1)]


def _wrn(quick: bool) -> nn.Module:
    return WideResNet(IMAGE, 10, depth=10, width=1) if quick else WideResNet(IMAGE, 10, depth=28, width=10)


def _resnet18(quick: bool) -> nn.Module:
    return ResNet(IMAGE, 10, depth=8 if quick else 18)


def _resnet50(quick: bool) -> nn.Module:
    return ResNet(IMAGE, 10, depth=8) if quick else ResNet((3, 224, 224), 1000, depth=50, stem="imagenet")


def _mlp(quick: bool) -> nn.Module:
    return MLP((784,), 10, hidden=(32, 32) if quick else (1024, 1024))


CASES = {
    "wrn28-10": Case(_wrn, (IMAGE, IMAGE), erk, (0.1, 0.2), batches=(1, 16, 64), tickets=3),
    "resnet18": Case(_resnet18, (IMAGE, IMAGE), uniform, kept=(0.5, 1.0)),
    "resnet50": Case(_resnet50, ((3, 224, 224), IMAGE), uniform, batches=(1,)),
    "mlp": Case(_mlp, ((784,), (784,)), uniform, kept=(1.0,)),
}
TICKETS = "tickets in one call"
ERROR = 1e-5  # of a row's largest number
NEVER_SLOWER = 1 / 1.05
REQUIRED = {
    "wrn28-10": {
        ("density 0.1", 1): 2.0, ("density 0.1", 16): 2.7, ("density 0.1", 64): 2.7, ("density 0.2", 1): 1.25,
        ("density 0.2", 16): 1.5, ("density 0.2", 64): 1.5, (TICKETS, 16): 1.0,
    },
    "resnet18": {("density 0.1", 1): 2.2},
    "resnet50": {("density 0.1", 1): 2.2},
    "mlp": {("density 0.1", 1): 4.0},
}  # fmt: skip


def case_of(name: str, quick: bool) -> Case:
    """A case; in small with less of everything."""
    case = CASES[name]
    return case._replace(densities=case.densities[:1], batches=case.batches[:2], tickets=min(2, case.tickets)) if quick else case


def required(name: str, call: str, batch: int) -> float:
    """Dense time ÷ sparse time, at least; where the task names none, not slower."""
    return REQUIRED[name].get((call, batch), NEVER_SLOWER)


def dense(case: Case, quick: bool, seed: int = SEED) -> nn.Module:
    """The network with random weights and norms, all of them live."""
    torch.manual_seed(seed)
    module = case.make(quick).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.1)
    return module


def sparse(case: Case, variant: Variant, quick: bool) -> nn.Module:
    """The same as a ticket; itself at density 1."""
    module = dense(case, quick, variant.seed)
    if variant.density == 1:
        return quorate.DeepEnsemble([module])
    weights, rng = sparse_weights(module), np.random.default_rng(variant.seed)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    live = counts(shapes, case.rule(shapes, variant.density))
    masks = {name: draw(shapes[name], live[name], rng) for name in shapes}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masks[name] * (math.prod(shapes[name]) / live[name]) ** 0.5)
    return Tickets([module], [masks])


def prepare(name: str, folder: Path, quick: bool) -> None:
    """Every program of a network, and what it should give, in a folder; what is there stays."""
    case = case_of(name, quick)
    shape = case.shape[quick]
    for variant in case.variants():
        if not (folder / f"{variant.name}.npy").exists():
            print(f"{name}: exporting {variant.name}", file=sys.stderr, flush=True)
            module = sparse(case, variant, quick)
            _save(programs(module, rows(8, shape))[0], folder / variant.name)
            x = torch.from_numpy(rows(here().lanes + 1, shape)).double()
            with torch.inference_mode():
                expected = module.double()(x).numpy()
            with atomic(folder / f"{variant.name}.npy") as path, path.open("wb") as file:
                np.save(file, expected)
    if not (folder / "dense.onnx").exists():
        _save(programs(quorate.DeepEnsemble([dense(case, quick)]), rows(8, shape))[0], folder / "dense")


def _save(program: Any, place: Path) -> None:
    """The weights first: where there is a graph everything is there."""
    arrays = {}
    for name, weight in program.sparse.items():
        arrays |= {f"{name}:values": weight.values, f"{name}:mask": np.packbits(weight.mask), f"{name}:shape": weight.mask.shape}
    with atomic(place.with_name(place.name + ".npz")) as path, path.open("wb") as file:
        np.savez(file, **arrays)
    with atomic(place.with_name(place.name + ".onnx")) as path:
        path.write_bytes(program.onnx)
