"""Proof by example that no member's values reach another member's.

Each member's parameters and statistics in turn are replaced by NaN, which every sum, product and maximum passes on, and the example
is run: a NaN among another member's channels, at any step, is a leak at that step. Evaluation mode; on a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from quorate.packed.ensemble import PackedEnsemble
from quorate.packed.members import parts
from quorate.packed.trace import WAY_OUT, where


class _Watch(fx.Interpreter):
    """Runs a packed network and notes the first step at which a member other than `poisoned` has a NaN."""

    def __init__(self, network: fx.GraphModule, members: int, wide: Collection[str], poisoned: int | None) -> None:
        super().__init__(network)
        self.members, self.wide, self.poisoned = members, wide, poisoned
        self.leak: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wide and self.leak is None and isinstance(value, Tensor):
            spoilt = value.isnan().unflatten(1, (self.members, -1)).flatten(2).any(2).any(0)
            if any(bad and m != self.poisoned for m, bad in enumerate(spoilt.tolist())):
                self.leak = n
        return value


@torch.no_grad()
def prove_isolation(ensemble: PackedEnsemble, wide: Collection[str], example: Tensor) -> None:
    """Run `example` with each member in turn poisoned.

    wide: names of the steps whose output holds the members' channels at dimension 1. example: a batch of raw inputs.
    Raises ValueError naming the first step at which a member reads another's values, or at which the example gives NaN.
    """
    names = [row.name for row in ensemble.explain()]
    trial = copy.deepcopy(ensemble.network).eval()
    clean = _Watch(trial, ensemble.members, wide, None)
    clean.run(example)
    if clean.leak:
        raise ValueError(
            f"example: expected numbers at every step, got NaN at {where(clean.leak)}; check the example and the model"
        )
    for m in range(ensemble.members):
        for tensor in parts(trial, names, m, ensemble.members):
            tensor.fill_(torch.nan)
        watch = _Watch(trial, ensemble.members, wide, m)
        watch.run(example)
        if watch.leak:
            raise ValueError(
                f"{where(watch.leak)}: expected members that do not see each other, but member {m} reaches another one there; "
                f"please report it, {WAY_OUT}"
            )
        mine = zip(*(parts(net, names, m, ensemble.members) for net in (trial, ensemble.network)), strict=True)
        for tensor, original in mine:
            tensor.copy_(original)
