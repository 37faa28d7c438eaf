"""The options of ``quorate train`` for ``--ensemble.kind edst`` and ``dst``: what the two classes take, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from quorate.tickets import NM, Blocks, ConstantFanIn, Gradient, Growth, Moves, Pattern, Random, Static, Unstructured

_OF_GROWTH = {"gradient": ("batches",)}
_OF_PATTERN = {"fan_in": ("ablate",), "nm": ("n", "m"), "blocks": ("rows", "columns")}
_OF_EDST = ("exploration", "escape", "factors")


@dataclass(frozen=True)
class TicketsChoice:
    """How tickets are trained.

    Attributes:
        density: share of the weights of sparse layers that is live, in (0, 1].
        distribution: of the density over layers.
        growth: which weights come to life: of the largest ``"gradient"`` (RigL), at ``"random"`` (SET), or none (``"static"``).
        batches: of growth gradient, over how many steps it is averaged.
        pattern: the form of the live weights: any, constant ``"fan_in"`` (SRigL), N:M, or blocks.
        ablate: of pattern fan_in, neurons with a smaller share of salient weights are switched off.
        n: of pattern nm, live weights per group.
        m: of pattern nm, inputs per group.
        rows: of pattern blocks, outputs per block.
        columns: of pattern blocks, inputs per block.
        every: optimiser steps between two moves of the masks.
        rate: share of the live weights that a move drops.
        decay: of the rate within each phase.
        until: share of each phase after which masks stand still.
        dense: names of weights that stay dense, such as 1.features.conv1.weight.
        choose: which network of a phase is its ticket: best validation accuracy or NLL, the last, or an average of the last.
        averaged: of choose average, how many epochs.
        rescale: multiply the first weights by 1/√density of their layer.
        exploration: of edst, epochs before the first refinement; null: what equal refinements leave of a third of the run or more.
        escape: of edst, share of the live weights that an escape drops and regrows.
        factors: of edst, on the learning rate in equal parts of each refinement.

    Raises:
        ValueError: a value that the training refuses, or an option of a growth, a pattern or a choice that is not the one chosen.
    """

    density: float = 0.2
    distribution: Literal["erk", "uniform", "mac_aware"] = "erk"
    growth: Literal["gradient", "random", "static"] = "gradient"
    batches: int = 1
    pattern: Literal["unstructured", "fan_in", "nm", "blocks"] = "unstructured"
    ablate: float = 0.3
    n: int = 2
    m: int = 4
    rows: int = 4
    columns: int = 4
    every: int = 1000
    rate: float = 0.5
    decay: Literal["constant", "cosine", "rigl"] = "constant"
    until: float = 1.0
    dense: Sequence[str] = ()
    choose: Literal["accuracy", "nll", "last", "average"] = "accuracy"
    averaged: int = 5
    rescale: bool = True
    exploration: int | None = None
    escape: float = 0.8
    factors: Sequence[float] = (0.1, 0.01)

    def __post_init__(self) -> None:
        for name in ("dense", "factors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._refuse_unused("growth", self.growth, _OF_GROWTH)
        self._refuse_unused("pattern", self.pattern, _OF_PATTERN)
        self._refuse_unused("choose", self.choose, {"average": ("averaged",)})
        self.moves()

    def _refuse_unused(self, option: str, value: str, owners: Mapping[str, tuple[str, ...]]) -> None:
        given = self.given()
        for owner, names in owners.items():
            if owner != value and (unused := [name for name in names if name in given]):
                raise ValueError(
                    f"ensemble.tickets.{unused[0]}={given[unused[0]]!r} is of {option} {owner}, got {option} {value}: leave it out, or "
                    f"set {option} too"
                )

    def given(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        return {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) != field.default}

    def check_kind(self, kind: str) -> None:
        """A ValueError where options are given that such an ensemble has not."""
        given = self.given()
        if kind not in ("edst", "dst") and given:
            name = next(iter(given))
            raise ValueError(
                f"ensemble.tickets.{name}={given[name]!r} is of ensemble.kind edst or dst, got kind {kind}: leave it out"
            )
        if kind == "dst" and (name := next((name for name in _OF_EDST if name in given), "")):
            raise ValueError(f"ensemble.tickets.{name}={given[name]!r} is of ensemble.kind edst, got kind dst: leave it out")

    def moves(self) -> dict[str, Any]:
        """The arguments that EDST and DST share, checked."""
        grown: dict[str, Callable[[], Growth]] = {
            "gradient": lambda: Gradient(self.batches), "random": Random, "static": Static
        }  # fmt: skip
        formed: dict[str, Callable[[], Pattern]] = {
            "unstructured": Unstructured,
            "fan_in": lambda: ConstantFanIn(self.ablate),
            "nm": lambda: NM(self.n, self.m),
            "blocks": lambda: Blocks(self.rows, self.columns),
        }
        plain = ("every", "rate", "decay", "until", "distribution", "dense", "rescale", "choose", "averaged")
        arguments = {"growth": grown[self.growth](), "pattern": formed[self.pattern]()}
        arguments |= {name: getattr(self, name) for name in plain}
        Moves.of(arguments)
        return arguments

    def timeline(self) -> dict[str, Any]:
        """The arguments that only EDST has."""
        return {name: getattr(self, name) for name in _OF_EDST}
