"""Snapshot ensembles: one network trained once, in M cycles of the learning rate; its weights at each cycle's end are a member.

Source: Huang et al. 2017 (arXiv 1704.00109), §3, eq. 2. With lr₀ the peak rate and T steps in M cycles, step t = 0, 1, … is taken with

    lr(t) = ½ lr₀ (cos(π · (t mod T/M) / (T/M)) + 1)

Optimiser and momentum go on over the restarts. The last member is the network that is trained; the others are copies of it, taken at
the ends of the cycles before.

Shapes: x (B, …) → (M, B, C); in training (1, B, C), the network's alone.
"""

from __future__ import annotations

import copy
from typing import Literal

from torch import Tensor, nn

from quorate.ensemble import DeepEnsemble
from quorate.training.loader import Loader
from quorate.training.regime import Regime
from quorate.training.settings import Settings, cycle_steps


class SnapshotEnsemble(DeepEnsemble):
    """A deep ensemble whose members are snapshots of one training; each member is a stage.

    Train it with ``quorate.fit(ensemble, data, cycles=members, epochs=…)``, which takes the snapshots. Meanwhile those not yet taken have
    the weights that the network began with, and :meth:`so_far` is what is validated. It costs the training of one network and
    M forward passes, or fewer in a cascade.

    Args:
        model: the network, x → (B, C). It becomes the last member and is trained in place; the others are copies.
        members: M, how many snapshots.
        kind: ``"logits"``, or ``"gaussian"`` for a network that gives (B, 2D) means and log-variances.

    Raises:
        ValueError: fewer than one member, or another kind.
    """

    def __init__(self, model: nn.Module, members: int = 4, kind: Literal["logits", "gaussian"] = "logits") -> None:
        if not isinstance(members, int) or isinstance(members, bool) or members < 1:
            raise ValueError(f"members={members!r}: expected an integer of at least 1, one per cycle")
        super().__init__([*(copy.deepcopy(model) for _ in range(members - 1)), model], kind)

    @property
    def cycles(self) -> int:
        """Cycles of the learning rate, as the training's settings have to say it."""
        return len(self.members)

    @property
    def learner(self) -> nn.Module:
        """The network that is trained: the last member."""
        return self.members[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (M, B, C); in train mode the network's own (1, B, C)."""
        return DeepEnsemble([self.learner], self.kind)(x) if self.training else super().forward(x)

    def regime(self, settings: Settings, loader: Loader) -> Regime:
        """How it is trained. ValueError for another number of cycles than members, or averaged weights."""
        return Cycles(self, settings, loader)

    def so_far(self, cycles: int) -> DeepEnsemble:
        """The ensemble in the cycle after so many: their snapshots and the network as it is, not copied."""
        return DeepEnsemble([*self.members[: min(cycles, self.cycles - 1)], self.learner], self.kind)

    def end_cycle_(self, cycles: int) -> None:
        """Take the snapshot when so many cycles are over, 1 … M; the last one is the network itself."""
        if not 1 <= cycles <= self.cycles:
            raise ValueError(f"cycles={cycles}: expected 1 … {self.cycles} to be over, one per member")
        if cycles < self.cycles:
            self.members[cycles - 1].load_state_dict(self.learner.state_dict())


class Cycles(Regime):
    """Snapshots are taken at the ends of the learning rate's cycles."""

    ensemble: SnapshotEnsemble

    def __init__(self, ensemble: SnapshotEnsemble, settings: Settings, loader: Loader) -> None:
        super().__init__(ensemble)
        name = type(ensemble).__name__
        if settings.cycles != ensemble.cycles:
            raise ValueError(
                f"cycles={settings.cycles}: {name} takes a member at each cycle's end, expected cycles={ensemble.cycles}"
            )
        if settings.averaging != "none":
            raise ValueError(
                f"averaging={settings.averaging!r}: {name} keeps weights along the training itself, expected averaging='none'"
            )
        self.period = cycle_steps(settings, len(loader))

    def after_step_(self, step: int) -> None:
        """Take a snapshot where a cycle ends."""
        cycles, inside = divmod(step, self.period)
        if inside == 0:
            self.ensemble.end_cycle_(cycles)

    def evaluated(self, step: int) -> nn.Module:
        """The snapshots from before the last step's cycle, and the network."""
        return self.ensemble.so_far((step - 1) // self.period)
