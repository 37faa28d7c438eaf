"""Lightning trains a student: one round's loss on views of the transfer set, in as many instalments as the search asks for.

Source: Dennis et al. 2023 (arXiv 2302.10093), Algorithm 1, line "train". All randomness of a training (order, augmentation, dropout,
weights) is drawn from its own seed, so that it can be done again with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quorate.distil.stopping import Stopper
from quorate.distil.views import Past, Views
from quorate.training.callbacks import same_signals
from quorate.training.imports import lightning
from quorate.training.settings import Settings, lr_factor, make_optimizer
from quorate.training.trainer import quiet, root_device, trainer_of

BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(f, g, S), each (B, L) → the loss of a batch."""
UNUSED = ("inputs", "cycles", "averaging", "mixup", "cutmix", "label_smoothing", "loss")


def check_settings(settings: Settings) -> None:
    """A ValueError for settings of :func:`quorate.fit` that mean nothing where a student learns from a teacher."""
    plain = Settings()
    for name in UNUSED:
        if getattr(settings, name) != getattr(plain, name):
            raise ValueError(
                f"{name}={getattr(settings, name)!r} is not for students, who learn a teacher's outputs: leave it out "
                f"(it is {getattr(plain, name)!r})"
            )


class StudentModule(lightning().LightningModule):  # type: ignore[misc]
    """Trains one student against the past."""

    def __init__(self, student: nn.Module, past: Past, loss: BatchLoss, views: Views, settings: Settings) -> None:
        super().__init__()
        self.student, self.settings, self.views = student, settings, views
        self._outside = past, loss  # not a part of this module: it has modules of its own, which stay frozen
        self.optimizer = make_optimizer([p for p in student.parameters() if p.requires_grad], settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lr_factor(settings, len(views)))
        self.steps = 0

    def on_train_start(self) -> None:
        """The past moves where this is."""
        self._outside[0].to_(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """The round's loss of one batch of views."""
        past, loss = self._outside
        torch.manual_seed((self.settings.seed * 1_000_003 + self.steps) % 2**63)
        self.steps += 1
        x, rows = batch
        g, s, carry = past.of(x, rows, self.student.reads)  # type: ignore[arg-type]
        found = loss(self.student(x, carry)[0], g, s)
        if self.steps % 16 == 1 and not math.isfinite(float(found.detach())):
            raise ValueError(f"the loss of {self.student.name} became {float(found.detach())} at step {self.steps}: lower lr")
        return found

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimiser and its schedule, the same ones in every instalment."""
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}


def check_layout(student: nn.Module, settings: Settings) -> None:
    """A ValueError for channels last where PyTorch 2.13's CPU kernels write beyond their memory.

    That is the backward pass of a strided 1×1 convolution of fewer than 8 channels.
    """
    if root_device(settings).type != "cpu":
        return
    for name, module in student.named_modules():
        narrow = isinstance(module, nn.Conv2d) and module.in_channels < 8 and module.groups == 1
        if narrow and tuple(module.kernel_size) == (1, 1) and tuple(module.stride) != (1, 1):
            raise ValueError(
                f"channels_last=True: PyTorch's kernels for the CPU damage memory in {name!r}, a strided 1×1 convolution of "
                f"{module.in_channels} channels, expected at least 8: leave channels_last out for students this narrow"
            )


class Training:
    """A student in training, epochs at a time.

    Args:
        student: it is trained in place.
        past: teacher and earlier students.
        loss: of the round.
        views: of the transfer set.
        settings: of its whole training; the schedule is over ``settings.epochs``.
        stopper: asked after every step whether to stop.
        clip: largest norm of the gradient; None for no limit.
    """

    def __init__(
        self,
        student: nn.Module,
        past: Past,
        loss: BatchLoss,
        views: Views,
        settings: Settings,
        stopper: Stopper | None = None,
        clip: float | None = None,
    ) -> None:
        if settings.channels_last:
            check_layout(student, settings)
            student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module = StudentModule(student, past, loss, views, settings)
        self.settings, self.views, self.stopper, self.clip = settings, views, stopper, clip
        self.epochs = 0

    def advance_(self, epochs: int) -> None:
        """Train up to so many epochs in all. The student stays on the device that trained it.

        Raises:
            ValueError: a loss that is not finite.
            Interrupted: the stopper was asked.
        """
        more = epochs - self.epochs
        if more <= 0:
            return
        callbacks = [] if self.stopper is None else [_Asked(self.stopper)]
        trainer = trainer_of(self.settings, callbacks, None, more, self.clip)
        device = trainer.strategy.root_device
        with quiet(), same_signals(), torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            self.module.train()
            try:
                trainer.fit(self.module, self.views)
            except SystemExit as stop:  # what Lightning makes of a KeyboardInterrupt
                if isinstance(stop.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt from None
                raise
        self.module.to(device)  # Lightning has moved it to the CPU
        self.epochs = epochs


class _Asked(lightning().Callback):  # type: ignore[misc]
    """Stops a training when the stopper was asked."""

    def __init__(self, stopper: Stopper) -> None:
        self.stopper = stopper

    def on_train_start(self, *_: Any) -> None:
        """Lightning has put a handler of its own."""
        self.stopper.install_()

    def on_train_batch_end(self, *_: Any) -> None:
        """After every step."""
        self.stopper.check()
