"""How an ensemble is trained, beyond the settings: what a method does to it while :func:`quorate.fit` runs.

An ensemble that is trained in a way of its own has a method ``regime(settings, loader) → Regime``; for all others nothing is done. ``fit``
knows no method: it calls the regime when training begins, after every step of the optimiser, after every validation and at the end,
and keeps its state with the rest, so that a run goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from quorate.training.loader import Loader
from quorate.training.settings import Settings


class Regime:
    """The plain training, in which nothing happens beside the steps; others derive from it and say what does.

    Args:
        ensemble: what is trained, a module by the contract of :mod:`quorate.ensemble`.

    A regime raises ValueError where it is made for settings or data that it can't work with, before anything is trained or written.
    """

    def __init__(self, ensemble: nn.Module) -> None:
        self.ensemble = ensemble

    @property
    def learner(self) -> nn.Module:
        """What a step trains, and costs: all of the ensemble, or the one network it is taken from."""
        learner: nn.Module = getattr(self.ensemble, "learner", self.ensemble)
        return learner

    def lr_factor(self, step: int) -> float:  # noqa: ARG002
        """A factor on the learning rate that the settings give to step number ``step`` = 0, 1, …."""
        return 1.0

    def begin_(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None) -> None:
        """Training begins, or goes on with what :meth:`state_dict` gave: ensemble and optimiser are on their device, with their states.

        A run that was stopped after its last step goes on with :meth:`finish_` alone.
        """

    def after_step_(self, step: int) -> None:
        """The optimiser has done so many steps."""

    def evaluated(self, step: int) -> nn.Module:  # noqa: ARG002
        """What is validated after so many steps: of an ensemble that grows, what there is so far."""
        return self.ensemble

    def after_validation_(self, step: int, members: list[dict[str, float]]) -> None:
        """The epoch ends, after so many steps, with these figures of the members that were validated; not of averaged weights."""

    def finish_(self) -> None:
        """Training is over: make the ensemble what it is to be."""

    def stop_(self) -> None:
        """Training has ended, finished or broken off: let go of ensemble and optimiser. It may never have begun."""

    def facts(self) -> dict[str, Any]:
        """More facts for ``run.json``, after :meth:`finish_`; they replace those of the same name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What is not part of the ensemble's or the optimiser's state: tensors, numbers, text, and lists and dicts of them."""
        return {}


def regime_of(ensemble: nn.Module, settings: Settings, loader: Loader) -> Regime:
    """The ensemble's own regime, or the plain one. ValueError as the regime's own."""
    own = getattr(ensemble, "regime", None)
    made = own(settings, loader) if callable(own) and not isinstance(own, nn.Module) else Regime(ensemble)
    if not isinstance(made, Regime):
        raise ValueError(f"{type(ensemble).__name__}.regime gave a {type(made).__name__}: expected a quorate.training.Regime")
    return made
