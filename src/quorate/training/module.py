"""The Lightning module for any ensemble: member-first logits, the loss of the contract, ensemble metrics. It knows no method."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from quorate.combination import Combine
from quorate.ensemble import each, gaussian_loss, kind_of, member_loss
from quorate.ensemble.loss import Reduction
from quorate.training import mixing
from quorate.training.averaging import Averaging
from quorate.training.imports import lightning, torchmetrics
from quorate.training.loader import Loader
from quorate.training.member_metrics import GaussianMemberScores, MemberScores
from quorate.training.metrics import EnsembleAccuracy, EnsembleECE, EnsembleNLL, GaussianNLL, GaussianRMSE
from quorate.training.regime import Regime
from quorate.training.settings import Settings, lr_factor, make_optimizer


class EnsembleModule(lightning().LightningModule):  # type: ignore[misc]
    """Trains ``ensemble`` under ``settings`` on the batches of ``loader``, whose position is part of the saved state.

    Logs per epoch ``train_loss`` (mean over members and rows), ``val_nll``, ``val_accuracy``, ``val_ece`` (a regression: ``val_nll``,
    ``val_rmse``), and ``lr``, that of the next step; and from the same outputs each member's own loss and figures, ``train_loss_m0``,
    ``val_nll_m0``, …. Every step's randomness (dropout) is drawn from (seed, step) alone, so that a resumed run sees the same. Once
    weights are averaged, the figures of validation are those of the averages.

    What a method does to the ensemble meanwhile is its regime's (:mod:`quorate.training.regime`).

    Args:
        ensemble: a module by the contract of :mod:`quorate.ensemble`.
        settings: of the training.
        loader: of the training split, with the inputs that the settings ask for.
        members: M, as the ensemble has them in evaluation. Where it trains another number of them, no member has a training loss.
        regime: the ensemble's own; None: the plain one.

    Attributes:
        row: figures of the last epoch. member_rows: its figures by member, a list of M, or of fewer while an ensemble grows.
    """

    def __init__(
        self, ensemble: nn.Module, settings: Settings, loader: Loader, members: int, regime: Regime | None = None
    ) -> None:
        super().__init__()
        self.ensemble, self.settings, self.loader = ensemble, settings, loader
        self.regime = Regime(ensemble) if regime is None else regime
        self._regime_state: dict[str, Any] | None = None
        self._begun = False
        self.averaging = None if settings.averaging == "none" else Averaging(ensemble, settings, loader)
        combine: Combine = getattr(ensemble, "combine", "probs")
        self.kind = kind_of(ensemble)
        self.validation = torchmetrics().MetricCollection(
            {"val_nll": GaussianNLL(), "val_rmse": GaussianRMSE()}
            if self.kind == "gaussian"
            else {
                "val_nll": EnsembleNLL(combine),
                "val_accuracy": EnsembleAccuracy(combine),
                "val_ece": EnsembleECE(combine=combine),
            }
        )
        self.member_validation = (GaussianMemberScores if self.kind == "gaussian" else MemberScores)(members)
        self.register_buffer("loss_sum", torch.zeros((), dtype=torch.float64), persistent=False)
        self.register_buffer("member_loss_sum", torch.zeros(members, dtype=torch.float64), persistent=False)
        self.loss_rows, self.trained = 0, members
        self.row: dict[str, float] = {}
        self.member_rows: list[dict[str, float]] = []
        self._spent, self._started = 0.0, time.perf_counter()

    def forward(self, x: Tensor) -> Tensor:
        """The ensemble's logits (M, B, C)."""
        logits: Tensor = self.ensemble(x)
        return logits

    def seconds(self) -> float:
        """Time spent on the training so far, interruptions left out."""
        return self._spent + time.perf_counter() - self._started

    def on_train_start(self) -> None:
        """Let the regime begin, or go on."""
        self.begin_regime_(self.trainer.optimizers[0])

    def begin_regime_(self, optimizer: torch.optim.Optimizer) -> None:
        """The same, if it has not begun: Lightning starts no training of which nothing is left, though its end may be."""
        if not self._begun:
            self.regime.begin_(optimizer, self._regime_state)
        self._regime_state, self._begun = None, True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Seed this step's randomness."""
        torch.manual_seed((self.settings.seed * 1_000_003 + self.trainer.global_step) * 1_009 + self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss of one batch."""
        x, y = batch
        outputs, loss, losses = self._shared(x, y) if self.settings.inputs == "shared" else self._own(x, y)
        self.trained, rows = outputs.shape[:2]
        members = self.trained if self.settings.loss == "sum" else 1
        self.loss_sum += loss.detach().double() / members * rows
        self.loss_rows += rows
        if self.trained == len(self.member_loss_sum):
            self.member_loss_sum += losses.detach().double() * rows
        return loss

    def _shared(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (M, B, …) of one batch for all members, the loss, and the members' losses (M,), which have no gradient."""
        mixed, parts = mixing.mix(x, y, mixing.draw(self.settings, self.trainer.global_step, tuple(x.shape)))
        outputs = self(mixed)
        loss = torch.stack([share * self.loss(outputs, targets) for share, targets in parts]).sum()
        known = outputs.detach()
        return outputs, loss, torch.stack([share * self.loss(known, targets, "none") for share, targets in parts]).sum(0)

    def _own(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of a batch (M, B, …) for each member, whose targets are its own or shared."""
        step, shape = self.trainer.global_step, tuple(x.shape[1:])
        targets = y if self.settings.inputs == "own_order" else y.expand(len(x), *y.shape)
        draws = [mixing.draw(self.settings, step, shape, member) for member in range(len(x))]
        mixed, parts = mixing.mix_each(x, targets, draws)
        outputs = each(self.ensemble, mixed)
        terms = [(shares, self.loss(outputs, part, "none")) for shares, part in parts]
        losses = torch.stack([shares.to(term.dtype) * term for shares, term in terms]).sum(0)
        return outputs, losses.sum() if self.settings.loss == "sum" else losses.mean(), losses

    def loss(self, outputs: Tensor, y: Tensor, reduction: Reduction | None = None) -> Tensor:
        """The contract's loss of member-first outputs (M, B, …) against labels (B,) or (M, B), or targets (B, D) or (M, B, D).

        ``reduction`` is over members, by default that of the settings.
        """
        if self.kind == "gaussian":
            return gaussian_loss(outputs, y, reduction or self.settings.loss)
        return member_loss(outputs, y, self.settings.label_smoothing, reduction or self.settings.loss)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """A step, and what follows on it: the averages, and what the regime does."""
        super().optimizer_step(*args, **options)
        step = self.trainer.global_step + 1  # it counts this one when it is back
        if self.averaging is not None:
            self.averaging.after_step_(self.ensemble, step)
        self.regime.after_step_(step)

    def evaluated(self) -> nn.Module:
        """What the training has come to: the averages once there are any; else what the regime says."""
        if self.averaging is not None and self.averaging.begun:
            return self.averaging.ensemble
        return self.regime.evaluated(self.trainer.global_step)

    def on_validation_epoch_start(self) -> None:
        """Begin the metrics anew; stop if the epoch's loss is not finite."""
        self.validation.reset()
        self.member_validation.reset()
        self._check_finite(float(self.loss_sum), "training loss")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Add one validation batch to the metrics."""
        x, y = batch
        logits = self.evaluated()(x).float()
        self._check_finite(float(logits.abs().max()), "largest output on the validation split")
        self.validation.update(logits, y)
        self.member_validation.update(logits, y)

    def _check_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise ValueError(f"the {what} became {value} in epoch {self.current_epoch}: lower lr, or check the inputs")

    def on_validation_epoch_end(self) -> None:
        """Put the figures of the epoch, which ends with its validation, into ``row`` and log them."""
        when = {"epoch": self.current_epoch, "step": self.trainer.global_step}
        self.row = {
            **when,
            "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": float(self.loss_sum) / self.loss_rows,
            **{name: float(value) for name, value in self.validation.compute().items()},
        }
        members: list[dict[str, float]] = self.member_validation.compute()
        if self.trained == len(self.member_loss_sum):
            losses = (self.member_loss_sum / self.loss_rows).tolist()
            members = [{"train_loss": loss, **figures} for loss, figures in zip(losses, members, strict=False)]
        self.member_rows = [{**when, "member": m, **figures} for m, figures in enumerate(members)]
        self.log_dict({name: value for name, value in self.row.items() if name not in when})
        self.log_dict({f"{name}_m{m}": value for m, figures in enumerate(members) for name, value in figures.items()})
        self.loss_sum.zero_()
        self.member_loss_sum.zero_()
        self.loss_rows = 0
        if self.averaging is None:
            self.regime.after_validation_(self.trainer.global_step, members)

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimiser and per-step learning rates of the settings."""
        optimizer = make_optimizer(self.ensemble.parameters(), self.settings)
        factor = lr_factor(self.settings, len(self.loader))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step) * self.regime.lr_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the loader's position, the epoch's sums so far, and the time spent."""
        # Lightning restores a loader inside an epoch only; between two epochs it would start the first one's order again
        checkpoint["quorate"] = {
            "loss_sum": self.loss_sum.cpu(),
            "member_loss_sum": self.member_loss_sum.cpu(),
            "loss_rows": self.loss_rows,
            "loader": self.loader.state_dict(),
            "seconds": self.seconds(),
            "regime": self.regime.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        kept = checkpoint["quorate"]
        self.loss_sum.copy_(kept["loss_sum"])
        self.loss_rows = kept["loss_rows"]
        unknown = torch.full_like(self.member_loss_sum, math.nan if self.loss_rows else 0.0)  # an earlier version did not keep it
        self.member_loss_sum.copy_(kept.get("member_loss_sum", unknown))
        self.loader.load_state_dict(kept["loader"])
        self._regime_state = kept.get("regime")
        self._spent, self._started = kept["seconds"], time.perf_counter()
