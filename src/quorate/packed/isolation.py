"""Proof by example that no member's values reach another member's.

Each member's parameters and statistics in turn are replaced by NaN, which every sum, product and maximum passes on, and the example
is run: a NaN among another member's values, at any step, is a leak at that step. Evaluation mode; on a copy. Members with an
input of their own are proved likewise, by NaN in one member's input.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from quorate.packed.ensemble import PackedEnsemble
from quorate.packed.members import parts
from quorate.packed.trace import WAY_OUT, where

Places = Mapping[str, tuple[str, int]]  # of each step: where its members lie, and at which axis


class _Watch(fx.Interpreter):
    """Runs a packed network and notes the first step at which a member other than `poisoned` has a NaN."""

    def __init__(self, network: fx.GraphModule, members: int, places: Places, poisoned: int | None) -> None:
        super().__init__(network)
        self.members, self.places, self.poisoned = members, places, poisoned
        self.leak: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.places and self.leak is None and isinstance(value, Tensor):
            axis = self.places[n.name][1]
            spoilt = value.isnan().unflatten(axis, (self.members, -1)).movedim(axis, 0).flatten(1).any(1)
            if any(bad and m != self.poisoned for m, bad in enumerate(spoilt.tolist())):
                self.leak = n
        return value


def _leaks(network: nn.Module, members: int, places: Places, poisoned: int | None, example: Tensor) -> str | None:
    """Where a member other than `poisoned` has a NaN."""
    if isinstance(network, fx.GraphModule):
        watch = _Watch(network, members, places, poisoned)
        watch.run(example.clone())
        return where(watch.leak) if watch.leak else None
    output = network(example.clone())
    spoilt = output.isnan().unflatten(0, (members, -1)).flatten(1).any(1).tolist()
    return "the output" if any(bad and m != poisoned for m, bad in enumerate(spoilt)) else None


@torch.no_grad()
def prove_isolation(
    network: nn.Module, members: int, names: list[str], places: Places, example: Tensor, training: bool = False
) -> None:
    """Run `example` with each member in turn poisoned, in evaluation mode, or in training mode and then in evaluation mode.

    names: the packed layers and bare parameters. places: where the members lie at each step. example: a batch of raw inputs.
    Raises ValueError naming the first step at which a member reads another's values, or at which the example gives NaN.
    """
    trial = copy.deepcopy(network).train(training)
    if place := _leaks(trial, members, places, None, example):
        raise ValueError(f"example: expected numbers at every step, got NaN at {place}; check the example and the model")
    for m in range(members):
        if training:  # buffers of no packed layer change in training
            trial = copy.deepcopy(network).train()
        originals = [tensor.clone() for tensor in parts(trial, names, m)]
        for tensor in parts(trial, names, m):
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        place = _leaks(trial, members, places, m, example)
        if training and not place:
            place = _leaks(trial.eval(), members, places, m, example)
        if place:
            raise ValueError(
                f"{place}: expected members that do not see each other, but member {m} reaches another one there; "
                f"keep the module whole with skip=[…], {WAY_OUT}"
            )
        for tensor, original in zip(parts(trial, names, m), originals, strict=True):
            tensor.copy_(original)


@torch.no_grad()
def prove_inputs_apart(ensemble: PackedEnsemble, example: Tensor) -> None:
    """Run members with inputs of their own, one of them NaN. Raises ValueError if another's output has one."""
    if not example.is_floating_point():
        return
    trial = copy.deepcopy(ensemble).eval()
    for m in range(ensemble.members):
        inputs = example.expand(ensemble.members, *example.shape).clone()
        inputs[m] = torch.nan
        rows = trial.each(inputs).isnan().flatten(1).any(1).tolist()
        if any(bad and i != m for i, bad in enumerate(rows)):
            raise ValueError(
                f"members with inputs of their own: expected that they do not see each other, but member {m}'s input reaches "
                f"another one; {WAY_OUT}"
            )
