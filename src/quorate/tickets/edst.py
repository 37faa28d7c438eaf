"""EDST: one sparse training whose masks move gives M tickets.

Source: Liu et al. 2022 (arXiv 2106.14568), §3.2, algorithm 2. The run explores at a high learning rate, then refines M times at low ones;
at the end of every refinement a ticket is taken, and the run escapes from it: a large share of the live weights is dropped and regrown
at once and the learning rate jumps back up. Batch statistics and momentum go on over the escapes.

Shapes: x (B, …) → (M, B, C); in training (1, B, C), the one network's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from quorate.ensemble import DeepEnsemble, device_of
from quorate.tickets.choice import Candidate
from quorate.tickets.ensemble import Tickets
from quorate.tickets.fitting import check_settings, rows_of, sparse_training, training_inputs
from quorate.tickets.moves import Moves, check_share, checked_density
from quorate.tickets.schedule import Timeline, check_factors
from quorate.tickets.sparse_training import SparseTraining
from quorate.tickets.weights import sparse_weights
from quorate.training.loader import Loader
from quorate.training.regime import Regime
from quorate.training.settings import Settings


class EDST(Tickets):
    """An ensemble of tickets from one run: train it with ``quorate.fit(EDST(model, …), data, epochs=…, schedule="constant", …)``.

    The settings' learning rate is the peak; the timeline's factors are on it, after any warm-up. Before the training all members are the
    dense network that was given.

    Args:
        model: the network, x → (B, C). It is trained in place and becomes the last ticket; the others are copies.
        members: M.
        density: share of the weights of sparse layers that is live, in (0, 1]; or densities by weight name.
        exploration: epochs before the first refinement; None: a third of the run, and what M equal refinements leave of the rest.
        escape: share of the live weights that an escape drops and regrows.
        factors: on the learning rate, in equal parts of each refinement.
        kind: ``"logits"``, or ``"gaussian"`` for a network that gives (B, 2D) means and log-variances.
        **moves: fields of :class:`quorate.tickets.Moves`: growth, pattern, every, rate, decay, until, distribution, dense, rescale, choose,
            averaged.

    Raises:
        ValueError: fewer than one member, another kind, an impossible setting; from ``fit``, epochs that the phases don't fill, masks
            that would move less often than once a phase, a density too low for the network.
    """

    def __init__(
        self,
        model: nn.Module,
        members: int = 3,
        density: float | Mapping[str, float] = 0.2,
        *,
        exploration: int | None = None,
        escape: float = 0.8,
        factors: Sequence[float] = (0.1, 0.01),
        kind: Literal["logits", "gaussian"] = "logits",
        **moves: Any,
    ) -> None:
        if not isinstance(members, int) or isinstance(members, bool) or members < 1:
            raise ValueError(f"members={members!r}: expected an integer of at least 1, one per refinement")
        if exploration is not None and (not isinstance(exploration, int) or isinstance(exploration, bool) or exploration < 1):
            raise ValueError(
                f"exploration={exploration!r}: expected an integer of at least 1, epochs before the first refinement"
            )
        check_share("escape", escape, "of the live weights in (0, 1]")
        self_factors, self_density, self_moves = check_factors(factors), checked_density(density), Moves.of(moves)
        if not self_moves.growth.moves and members > 1:
            raise ValueError(
                "growth=Static() with several members: an escape moves masks, expected Gradient() or Random(); or DST"
            )
        all_live = {
            name: torch.ones_like(weight, dtype=torch.bool) for name, weight in sparse_weights(model, self_moves.dense).items()
        }
        super().__init__([*(copy.deepcopy(model) for _ in range(members - 1)), model], [all_live] * members, kind)
        self.density, self.moves, self.exploration = self_density, self_moves, exploration
        self.escape, self.factors = escape, self_factors

    @property
    def learner(self) -> nn.Module:
        """The network that is trained: the last member."""
        return self.members[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (M, B, C); in train mode the network's own (1, B, C)."""
        return DeepEnsemble([self.learner], self.kind)(x) if self.training else super().forward(x)

    def extra_repr(self) -> str:
        return (
            f"density={self.density}, exploration={self.exploration}, escape={self.escape}, factors={self.factors}, {self.moves}"
        )

    def regime(self, settings: Settings, loader: Loader) -> Regime:
        """How it is trained."""
        return EDSTRegime(self, settings, loader)


class EDSTRegime(Regime):
    """The timeline of an EDST run."""

    ensemble: EDST

    def __init__(self, ensemble: EDST, settings: Settings, loader: Loader) -> None:
        super().__init__(ensemble)
        check_settings(ensemble, settings)
        if settings.schedule != "constant":
            raise ValueError(
                f"schedule={settings.schedule!r}: EDST's timeline has rates of its own on lr, the peak: expected schedule='constant'"
            )
        if settings.precision == "16-mixed" and ensemble.moves.growth.batches and len(ensemble.members) > 1:
            raise ValueError(
                "precision='16-mixed' leaves out steps, perhaps the one whose gradient an escape needs: EDST with Gradient() expects "
                "'bf16-mixed' or '32-true', or growth=Random()"
            )
        self.settings, self.loader, self.steps = settings, loader, len(loader)
        self.timeline = Timeline(settings.epochs, len(ensemble.members), ensemble.exploration, ensemble.factors)
        if settings.warmup_epochs > self.timeline.ends[0]:
            raise ValueError(
                f"warmup_epochs={settings.warmup_epochs}: expected at most the exploration's {self.timeline.ends[0]}"
            )
        self.example = loader.split.batch(np.arange(1))[0]
        shortest = min(self.timeline.ends[0], self.timeline.refinement) * self.steps
        example = self.example.to(device_of(ensemble))
        ensemble.moves.check(ensemble.learner, ensemble.density, example, shortest, self.timeline.refinement)
        self.candidate = Candidate(ensemble.moves.choose, ensemble.moves.averaged)
        self.taken: list[dict[str, Any]] = []
        self.sparse: SparseTraining | None = None

    def lr_factor(self, step: int) -> float:
        """The timeline's."""
        return self.timeline.lr_factor(Fraction(step, self.steps))

    def _rate(self, step: int) -> float:
        """The drop rate after so many steps, by the phase of the last of them."""
        _, first, end = self.timeline.phase((step - 1) // self.steps)
        return self.ensemble.moves.rate_at(step, first * self.steps, end * self.steps)

    def begin_(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None) -> None:
        """Mask the network."""
        self.sparse = sparse_training(
            self.ensemble.learner,
            optimizer,
            self.ensemble.density,
            self.ensemble.moves,
            rate=self._rate,
            example=self.example.to(device_of(self.ensemble)),
            rows=rows_of(self.loader),
            seed=self.settings.seed,
            state=None if state is None else state["sparse"],
        )
        if state is None:
            self.sparse.gather_at = frozenset(end * self.steps for end in self.timeline.ends[1:-1])
        else:
            self.candidate.load_state_dict(state["candidate"], device_of(self.ensemble))
            self.taken = [dict(each) for each in state["taken"]]
            self.ensemble.about[: len(self.taken)] = [dict(each) for each in self.taken]

    def evaluated(self, step: int) -> nn.Module:
        """The tickets taken before the last step, and the network as it is."""
        member, _, _ = self.timeline.phase((step - 1) // self.steps)
        return DeepEnsemble([*self.ensemble.members[: max(member, 0)], self.learner], self.ensemble.kind)

    @torch.no_grad()
    def after_validation_(self, step: int, members: list[dict[str, float]]) -> None:
        """Take the network in as a candidate; at a refinement's end take the ticket, and escape."""
        assert self.sparse is not None
        epoch = step // self.steps
        member, _, end = self.timeline.phase(epoch - 1)
        if member < 0:
            return
        self.candidate.add_(self.learner, self.sparse.masks, members[-1], epoch, end - epoch)
        if epoch == end and member < len(self.ensemble.members) - 1:
            self._take_(member)
            self.sparse.move_(self.ensemble.escape)

    def _take_(self, member: int) -> None:
        """Put the phase's ticket in the member's place."""
        place = self.ensemble.members[member]
        spare = copy.deepcopy(place) if self.candidate.choose == "average" else place
        state, masks = self.candidate.taken(spare, lambda: training_inputs(self.loader, device_of(self.ensemble)))
        self.ensemble.set_ticket_(member, state, masks)
        self.ensemble.about[member] = self.candidate.facts()
        self.taken.append(self.candidate.facts())
        self.candidate.clear_()

    def finish_(self) -> None:
        """Take the last ticket."""
        self._take_(len(self.ensemble.members) - 1)

    def stop_(self) -> None:
        """Take the hooks off."""
        if self.sparse is not None:
            self.sparse.remove()

    def facts(self) -> dict[str, Any]:
        """The ledger, and the epochs of the tickets."""
        assert self.sparse is not None
        assert self.sparse.ledger is not None
        found = self.sparse.ledger.facts(self.ensemble.ticket_masks, self.sparse.ever)
        return {
            "parameters": found["live_parameters"]["total"],
            "training_macs": found["training_macs"],
            "ledger": found | {"moves": self.sparse.moves},
            "tickets": self.taken,
        }

    def state_dict(self) -> dict[str, Any]:
        """Masks, counters, and what is kept of the phase."""
        assert self.sparse is not None
        return {"sparse": self.sparse.state_dict(), "candidate": self.candidate.state_dict(), "taken": self.taken}
