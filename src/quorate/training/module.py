"""The Lightning module for any ensemble: member-first logits, the loss of the contract, ensemble metrics. It knows no method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quorate.combination import Combine
from quorate.ensemble import member_loss
from quorate.training.imports import lightning, torchmetrics
from quorate.training.loader import Loader
from quorate.training.metrics import EnsembleAccuracy, EnsembleECE, EnsembleNLL
from quorate.training.settings import Settings, lr_factor, make_optimizer


class EnsembleModule(lightning().LightningModule):  # type: ignore[misc]
    """Trains ``ensemble`` under ``settings`` on the batches of ``loader``, whose position is part of the saved state.

    Logs per epoch ``train_loss`` (mean over members and rows), ``val_nll``, ``val_accuracy``, ``val_ece``, ``lr``. Every step's
    randomness (dropout) is drawn from (seed, step) alone, so that a resumed run sees the same.
    """

    def __init__(self, ensemble: nn.Module, settings: Settings, loader: Loader) -> None:
        super().__init__()
        self.ensemble, self.settings, self.loader = ensemble, settings, loader
        combine: Combine = getattr(ensemble, "combine", "probs")
        self.validation = torchmetrics().MetricCollection(
            {
                "val_nll": EnsembleNLL(combine),
                "val_accuracy": EnsembleAccuracy(combine),
                "val_ece": EnsembleECE(combine=combine),
            }
        )
        self.register_buffer("loss_sum", torch.zeros((), dtype=torch.float64), persistent=False)
        self.loss_rows = 0
        self.row: dict[str, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The ensemble's logits (M, B, C)."""
        logits: Tensor = self.ensemble(x)
        return logits

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Seed this step's randomness."""
        torch.manual_seed((self.settings.seed * 1_000_003 + self.trainer.global_step) * 1_009 + self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss of one batch; stops at a loss that is not finite."""
        x, y = batch
        logits = self(x)
        loss = member_loss(logits, y, self.settings.label_smoothing, self.settings.loss)
        members = logits.shape[0] if self.settings.loss == "sum" else 1
        self.loss_sum += loss.detach().double() / members * len(y)
        self.loss_rows += len(y)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin the metrics anew."""
        self.validation.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Add one validation batch to the metrics."""
        x, y = batch
        self.validation.update(self(x).float(), y)

    def on_validation_epoch_end(self) -> None:
        """Put the figures of the epoch, which ends with its validation, into ``row`` and log them."""
        train_loss = float(self.loss_sum) / max(self.loss_rows, 1)
        if not torch.isfinite(torch.tensor(train_loss)):
            raise ValueError(
                f"the training loss became {train_loss} in epoch {self.current_epoch}: lower lr, or check the inputs"
            )
        self.row = {
            "epoch": self.current_epoch,
            "step": self.trainer.global_step,
            "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": train_loss,
            **{name: float(value) for name, value in self.validation.compute().items()},
        }
        self.log_dict({k: v for k, v in self.row.items() if k not in ("epoch", "step")})
        self.loss_sum.zero_()
        self.loss_rows = 0

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimiser and per-step learning rates of the settings."""
        optimizer = make_optimizer(self.ensemble.parameters(), self.settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(self.settings, len(self.loader)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the loader's position and the epoch's sums so far."""
        # Lightning restores a loader inside an epoch only; between two epochs it would start the first one's order again
        position = self.loader.state_dict()
        checkpoint["quorate"] = {"loss_sum": self.loss_sum.cpu(), "loss_rows": self.loss_rows, "loader": position}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        self.loss_sum.copy_(checkpoint["quorate"]["loss_sum"])
        self.loss_rows = checkpoint["quorate"]["loss_rows"]
        self.loader.load_state_dict(checkpoint["quorate"]["loader"])
