"""The settings of sparse training that EDST and DST share, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from torch import Tensor, nn

from quorate._validation import check_known
from quorate.tickets.budget import Distribution, budgets
from quorate.tickets.density import check_density
from quorate.tickets.growth import Gradient, Growth
from quorate.tickets.ledger import Ledger
from quorate.tickets.patterns import Pattern, Unstructured
from quorate.tickets.schedule import Decay, drop_rate
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
            lowest NLL; so always in a regression) or ``"nll"``, of the ``"last"`` epoch, or the ``"average"`` of the last ``averaged``
            epochs' weights (Sup-tickets). Of epochs that are equal in all this it is the first.
        averaged: for ``"average"`` only, how many; at most the epochs of a phase.

    Raises:
        ValueError: a value out of its range, one that would not be looked at, or ``"average"`` of masks in a pattern.
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
        object.__setattr__(self, "dense", (self.dense,) if isinstance(self.dense, str) else tuple(self.dense))
        _check_kind("growth", self.growth, ("batches", "moves", "score"), "Gradient(), Random() or Static()")
        _check_kind("pattern", self.pattern, ("live", "draw", "move"), "Unstructured(), ConstantFanIn(), NM() or Blocks()")
        _check_whole("every", self.every, "optimiser steps between two moves")
        check_share("rate", self.rate, "of the live weights in (0, 1]; growth=Static() keeps masks as they are")
        drop_rate(self.decay, self.rate, 0.0)
        check_share("until", self.until, "of each phase in (0, 1]")
        if self.distribution not in get_args(Distribution):
            raise ValueError(f"distribution={self.distribution!r}: expected one of {', '.join(get_args(Distribution))}")
        if self.choose not in get_args(Choice):
            raise ValueError(f"choose={self.choose!r}: expected 'accuracy', 'nll', 'last' or 'average'")
        _check_whole("averaged", self.averaged, "epochs whose weights are averaged")
        if self.choose != "average" and self.averaged != Moves.averaged:
            raise ValueError(f"averaged={self.averaged} is for choose='average', not {self.choose!r}: set that too")
        if self.choose == "average" and not isinstance(self.pattern, Unstructured):
            raise ValueError(
                f"choose='average' keeps the largest weights of a mean, which have no pattern: expected Unstructured(), not {self.pattern}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Moves:
        """Moves from names and values; an unknown name is a ValueError that names the nearest one."""
        check_known("argument", values, [field.name for field in fields(cls)])
        return cls(**values)

    def rate_at(self, step: int, first: int, end: int) -> float:
        """The drop rate after so many steps, in a phase from step ``first`` to ``end``; 0 from where masks stand still."""
        progress = (step - first) / (end - first)
        return 0.0 if progress >= self.until else drop_rate(self.decay, self.rate, progress / self.until)

    def check(
        self, network: nn.Module, density: float | Mapping[str, float], example: Tensor, steps: int, tickets_of: int
    ) -> None:
        """A ValueError unless the network can be trained so.

        Args:
            network: which.
            density: of its sparse weights, or by name.
            example: a batch of inputs.
            steps: of the shortest phase.
            tickets_of: epochs of a phase that a ticket is taken from.
        """
        weights = sparse_weights(network, self.dense)
        ledger = Ledger.of_model(network, example, list(weights)) if self.distribution == "mac_aware" else None
        budgets(weights, density, self.distribution, self.pattern, ledger)
        if self.growth.batches > self.every:
            raise ValueError(f"growth={self.growth} averages over more steps than every={self.every}: expected batches ≤ every")
        moving = math.ceil(self.until * steps)
        if self.growth.moves and self.every >= moving:
            share = f"the {moving} that until={self.until} leaves of a phase's" if self.until < 1 else "a phase, which has"
            raise ValueError(
                f"every={self.every} steps between two moves of the masks are not within {share} {steps}: expected every < "
                f"{moving}, longer phases, or growth=Static()"
            )
        if self.choose == "average" and self.averaged > tickets_of:
            raise ValueError(
                f"averaged={self.averaged} epochs are not within a ticket's phase, which has {tickets_of}: expected averaged ≤ {tickets_of}"
            )


def checked_density(density: float | Mapping[str, float]) -> float | dict[str, float]:
    """The density as it is kept; ValueError unless it is one number in (0, 1], or numbers in [0, 1] by name."""
    if isinstance(density, Mapping):
        for name, value in density.items():
            if not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"density of {name!r} is {value!r}: expected a share of live weights in [0, 1]")
        return dict(density)
    if not _is_number(density):
        raise ValueError(f"density={density!r}: expected a number in (0, 1], or numbers by weight name")
    return check_density(density)


def check_share(name: str, value: float, of: str) -> None:
    """A ValueError unless the value is a number in (0, 1]."""
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: expected a share {of}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_whole(name: str, value: object, what: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected an integer of at least 1, {what}")


def _check_kind(name: str, value: object, parts: Sequence[str], expected: str) -> None:
    if isinstance(value, type) or not all(hasattr(value, part) for part in parts):
        got = value.__name__ + " itself" if isinstance(value, type) else repr(value)
        raise ValueError(f"{name}={got}: expected {expected}")
