"""DST: M sparse trainings whose masks move, each from a mask of its own, give M tickets.

Source: Liu et al. 2022 (arXiv 2106.14568), §3.1. The M networks are trained side by side: with the loss summed over members these are
exactly M independent runs, each with its own first mask, its own moves and, with ``inputs="own_order"``, its own order of the data.

Shapes: x (B, …) → (M, B, C).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from quorate.ensemble import device_of
from quorate.tickets.choice import Candidate
from quorate.tickets.ensemble import Tickets
from quorate.tickets.fitting import check_settings, rows_of, sparse_training, training_inputs
from quorate.tickets.moves import Moves, checked_density
from quorate.tickets.sparse_training import SparseTraining
from quorate.tickets.weights import sparse_weights
from quorate.training.loader import Loader
from quorate.training.regime import Regime
from quorate.training.settings import Settings


class DST(Tickets):
    """An ensemble of tickets from M runs: train it with ``quorate.fit(DST(models, …), data, epochs=…, …)``.

    ``growth=Static()`` gives the ensemble of networks with fixed random masks, the control. Before the training the members are the dense
    networks that were given.

    Args:
        models: M networks of one structure, x → (B, C), each with weights of its own. They are trained in place.
        density: share of the weights of sparse layers that is live, in (0, 1]; or densities by weight name, those of one network.
        kind: ``"logits"``, or ``"gaussian"`` for networks that give (B, 2D) means and log-variances.
        **moves: fields of :class:`quorate.tickets.Moves`.

    Raises:
        ValueError: no models, models of several structures, another kind, or an impossible setting; from ``fit``, masks that would never
            move, or a density too low for the network.
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        density: float | Mapping[str, float] = 0.2,
        *,
        kind: Literal["logits", "gaussian"] = "logits",
        **moves: Any,
    ) -> None:
        networks, self_moves, self_density = list(models), Moves.of(moves), checked_density(density)
        found = [sparse_weights(network, self_moves.dense) for network in networks]
        shapes = [{name: tuple(weight.shape) for name, weight in each.items()} for each in found]
        if any(each != shapes[0] for each in shapes):
            raise ValueError(
                "DST got networks of several structures: expected sparse weights of the same names and shapes in all of them"
            )
        all_live = [{name: torch.ones_like(weight, dtype=torch.bool) for name, weight in each.items()} for each in found]
        super().__init__(networks, all_live, kind)
        parameters = [parameter for network in networks for parameter in network.parameters()]
        if len({id(parameter) for parameter in parameters}) < len(parameters):
            raise ValueError(
                "DST got networks that share parameters: expected each to have its own, as of copy.deepcopy(network)"
            )
        self.density, self.moves = self_density, self_moves

    def extra_repr(self) -> str:
        return f"density={self.density}, {self.moves}"

    def regime(self, settings: Settings, loader: Loader) -> Regime:
        """How it is trained."""
        return DSTRegime(self, settings, loader)


class DSTRegime(Regime):
    """M sparse trainings under one optimiser."""

    ensemble: DST

    def __init__(self, ensemble: DST, settings: Settings, loader: Loader) -> None:
        super().__init__(ensemble)
        check_settings(ensemble, settings)
        if settings.loss != "sum":
            raise ValueError(f"loss={settings.loss!r}: DST's members are runs of their own, expected loss='sum'")
        self.settings, self.loader, self.total = settings, loader, settings.epochs * len(loader)
        self.example = loader.split.batch(np.arange(1))[0]
        example = self.example.to(device_of(ensemble))
        ensemble.moves.check(ensemble.members[0], ensemble.density, example, self.total, settings.epochs)
        self.candidates = [Candidate(ensemble.moves.choose, ensemble.moves.averaged) for _ in ensemble.members]
        self.sparse: list[SparseTraining] = []

    def _rate(self, step: int) -> float:
        return self.ensemble.moves.rate_at(step, 0, self.total)

    def begin_(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None) -> None:
        """Mask the networks."""
        for m, member in enumerate(self.ensemble.members):
            training = sparse_training(
                member,
                optimizer,
                self.ensemble.density,
                self.ensemble.moves,
                rate=self._rate,
                example=self.example.to(device_of(self.ensemble)),
                rows=rows_of(self.loader),
                seed=int(np.random.SeedSequence([self.settings.seed, m]).generate_state(1)[0]),
                state=None if state is None else state["sparse"][m],
            )
            self.sparse.append(training)
            if state is not None:
                self.candidates[m].load_state_dict(state["candidates"][m], device_of(member))

    def after_validation_(self, step: int, members: list[dict[str, float]]) -> None:
        """Take every network in as a candidate of its run."""
        epoch = step // len(self.loader)
        for m, candidate in enumerate(self.candidates):
            candidate.add_(self.ensemble.members[m], self.sparse[m].masks, members[m], epoch, self.settings.epochs - epoch)

    def finish_(self) -> None:
        """Take the tickets."""
        for m, candidate in enumerate(self.candidates):
            network = self.ensemble.members[m]
            state, masks = candidate.taken(network, lambda: training_inputs(self.loader, device_of(self.ensemble)))
            self.ensemble.set_ticket_(m, state, masks)
            self.ensemble.about[m] = candidate.facts()

    def stop_(self) -> None:
        """Take the hooks off."""
        for each in self.sparse:
            each.remove()

    def facts(self) -> dict[str, Any]:
        """The ledger of all runs together, to one dense run, and the epochs of the tickets."""
        ledgers = [each.ledger for each in self.sparse if each.ledger is not None]
        explored = [
            ledger.facts([each.masks], each.ever)["exploration_rate"] for ledger, each in zip(ledgers, self.sparse, strict=True)
        ]
        together = copy.deepcopy(ledgers[0])
        for other in ledgers[1:]:
            together.add_(other)
        found = together.facts(self.ensemble.ticket_masks, dense_rows=ledgers[0].rows)
        return {
            "parameters": found["live_parameters"]["total"],
            "training_macs": found["training_macs"],
            "ledger": found | {"exploration_rate": sum(explored) / len(explored), "moves": self.sparse[0].moves},
            "tickets": [candidate.facts() for candidate in self.candidates],
        }

    def state_dict(self) -> dict[str, Any]:
        """Masks, counters, and candidates."""
        return {
            "sparse": [each.state_dict() for each in self.sparse],
            "candidates": [each.state_dict() for each in self.candidates],
        }
