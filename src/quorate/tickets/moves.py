"""The settings of sparse training that EDST and DST share, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor, nn

from quorate._validation import nearest
from quorate.tickets.growth import Gradient, Growth
from quorate.tickets.ledger import Ledger
from quorate.tickets.patterns import Pattern, Unstructured
from quorate.tickets.schedule import Decay, drop_rate
from quorate.tickets.sparse_training import Distribution, budgets
from quorate.tickets.weights import sparse_weights

Choice = Literal["accuracy", "nll", "last", "average"]


@dataclass(frozen=True)
class Moves:
    """How many weights are live, which, and how they move.

    Attributes:
        growth: :class:`Gradient` (RigL), :class:`Random` (SET), :class:`Static` (masks never move).
        pattern: the form that live weights take, :class:`Unstructured` or a structured one.
        every: optimiser steps between two moves (ΔT); at most a phase.
        rate: share of a layer's live weights that a move drops.
        decay: of the rate within each phase (:func:`drop_rate`).
        until: the share of each phase after which masks stand still; 1: they move to its end.
        distribution: of the density over layers, ``"erk"``, ``"uniform"`` or ``"mac_aware"``.
        dense: names of weights that stay dense.
        rescale: multiply the first weights by 1/√density of their layer (:class:`SparseTraining`).
        choose: which of a phase's networks is the ticket: that of the epoch with the best validation ``"accuracy"`` (of equal ones the
            lowest NLL) or ``"nll"``, of the ``"last"`` epoch, or the ``"average"`` of the last ``averaged`` epochs' weights.
        averaged: for ``"average"`` only, how many.

    Raises:
        ValueError: a value out of its range, or ``"average"`` of masks in a pattern.
    """

    growth: Growth = Gradient()  # noqa: RUF009 (frozen, without state)
    pattern: Pattern = Unstructured()  # noqa: RUF009
    every: int = 1000
    rate: float = 0.5
    decay: Decay = "constant"
    until: float = 1.0
    distribution: Distribution = "erk"
    dense: Sequence[str] = ()
    rescale: bool = True
    choose: Choice = "accuracy"
    averaged: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense", tuple(self.dense))
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every={self.every!r}: expected an integer of at least 1, optimiser steps between two moves")
        if not 0 < self.rate <= 1:
            raise ValueError(
                f"rate={self.rate!r}: expected a share of the live weights in (0, 1]; growth=Static() keeps masks as they are"
            )
        drop_rate(self.decay, self.rate, 0.0)
        if not 0 < self.until <= 1:
            raise ValueError(f"until={self.until!r}: expected a share of each phase in (0, 1]")
        if self.choose not in ("accuracy", "nll", "last", "average"):
            raise ValueError(f"choose={self.choose!r}: expected 'accuracy', 'nll', 'last' or 'average'")
        if not isinstance(self.averaged, int) or self.averaged < 1:
            raise ValueError(f"averaged={self.averaged!r}: expected at least 1 epoch")
        if self.choose == "average" and not isinstance(self.pattern, Unstructured):
            raise ValueError(
                f"choose='average' keeps the largest weights of a mean, which have no pattern: expected Unstructured(), not {self.pattern}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Moves:
        """Moves from names and values; an unknown name is a ValueError that names the nearest one."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown argument {name!r}{nearest(name, known)} (known: {', '.join(known)})")
        return cls(**values)

    def rate_at(self, step: int, first: int, end: int) -> float:
        """The drop rate after so many steps, in a phase from step ``first`` to ``end``; 0 from where masks stand still."""
        progress = (step - first) / (end - first)
        return 0.0 if progress >= self.until else drop_rate(self.decay, self.rate, progress / self.until)

    def check(self, network: nn.Module, density: float | Mapping[str, float], example: Tensor, phase: int) -> None:
        """A ValueError unless the network can be trained so, with a shortest phase of so many steps."""
        weights = sparse_weights(network, self.dense)
        ledger = Ledger.of_model(network, example, list(weights)) if self.distribution == "mac_aware" else None
        budgets(weights, density, self.distribution, self.pattern, ledger)
        if self.growth.batches > self.every:
            raise ValueError(f"growth={self.growth} averages over more steps than every={self.every}: expected batches ≤ every")
        if self.growth.moves and self.every >= phase:
            raise ValueError(
                f"every={self.every} steps between two moves of the masks are not within a phase, which has {phase}: expected every < "
                f"{phase}, longer phases, or growth=Static()"
            )
