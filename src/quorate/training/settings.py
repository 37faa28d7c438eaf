"""Settings of a training, checked when they are made; and the optimiser and learning rates that they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn

from quorate.runs import nearest


@dataclass(frozen=True)
class Settings:
    """How an ensemble is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: rows per step; all members see the same batch.
        optimizer: ``"sgd"`` (momentum) or ``"adamw"``.
        lr: peak learning rate.
        momentum: of SGD.
        nesterov: Nesterov momentum for SGD.
        weight_decay: on every parameter.
        schedule: ``"cosine"`` to 0, ``"step"``, or ``"constant"``, per step, after the warm-up.
        milestones: epochs after which ``"step"`` multiplies the learning rate by ``decay``.
        decay: factor of ``"step"``.
        warmup_epochs: epochs of linear warm-up from 0.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        loss: over members, ``"sum"`` (exactly M independent trainings) or ``"mean"``.
        augment: apply the data set's augmentation.
        seed: of batch order, augmentation and dropout.
        accelerator, devices, precision: as Lightning's Trainer takes them.
        checkpoint_seconds: most time between two saved states inside an epoch.
    """

    epochs: int = 20
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: Sequence[int] = ()
    decay: float = 0.1
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    loss: Literal["sum", "mean"] = "sum"
    augment: bool = True
    seed: int = 0
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(int(m) for m in self.milestones))
        for name in ("epochs", "batch_size", "devices"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name, options in (
            ("optimizer", ("sgd", "adamw")),
            ("schedule", ("cosine", "step", "constant")),
            ("loss", ("sum", "mean")),
        ):
            _check(getattr(self, name) in options, name, getattr(self, name), f"one of {', '.join(options)}")
        _check(math.isfinite(self.lr) and self.lr > 0, "lr", self.lr, "a number > 0")
        _check(0 <= self.momentum < 1, "momentum", self.momentum, "0 ≤ momentum < 1")
        _check(not self.nesterov or self.momentum > 0, "nesterov", self.nesterov, "False, or a momentum > 0")
        _check(math.isfinite(self.weight_decay) and self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number ≥ 0")
        _check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "0 ≤ label_smoothing < 1")
        _check(0 <= self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, f"0 … below epochs={self.epochs}")
        _check(self.seed >= 0, "seed", self.seed, "an integer ≥ 0")
        _check(self.checkpoint_seconds > 0, "checkpoint_seconds", self.checkpoint_seconds, "seconds > 0")
        _check(0 < self.decay <= 1, "decay", self.decay, "0 < decay ≤ 1")
        rising = all(a < b for a, b in zip((0, *self.milestones), (*self.milestones, self.epochs), strict=True))
        _check(
            self.schedule != "step" or (rising and len(self.milestones) > 0),
            "milestones",
            self.milestones,
            f"rising epochs in 1 … {self.epochs - 1}",
        )

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        """Settings from names and values; an unknown name is a ValueError that names the nearest one."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown setting {name!r}{nearest(name, known)} (known: {', '.join(known)})")
        return cls(**values)


def _check(good: bool, name: str, value: object, expected: str) -> None:
    if not good:
        raise ValueError(f"{name}={value!r}: expected {expected}")


def make_optimizer(parameters: Iterable[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """The optimiser that the settings name."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, nesterov=settings.nesterov
    )


def lr_factor(settings: Settings, steps_per_epoch: int) -> Callable[[int], float]:
    """Step number → factor on the peak learning rate: linear warm-up, then the schedule over what is left."""
    total = settings.epochs * steps_per_epoch
    warm = round(settings.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        if settings.schedule == "constant":
            return 1.0
        if settings.schedule == "step":
            return float(settings.decay ** sum(step >= m * steps_per_epoch for m in settings.milestones))
        return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))

    return factor
