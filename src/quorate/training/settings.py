"""Settings of a training, checked when they are made; and the optimiser and learning rates that they mean."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from quorate._validation import check_known

WORDS: dict[type, str] = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "text",
    tuple: "a sequence of integers",
}
Inputs = Literal["shared", "own_augmentation", "own_order"]
OPTIONS = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "step", "constant"),
    "loss": ("sum", "mean"),
    "precision": ("32-true", "16-mixed", "bf16-mixed"),
    "averaging": ("none", "ema", "swa"),
    "inputs": ("shared", "own_augmentation", "own_order"),
}
LATER = ("inputs", "cycles", "averaging", "ema_decay", "swa_start", "swa_lr", "mixup", "cutmix")
"""Settings that runs made by an earlier version do not know: at their defaults they are what such a run did."""


@dataclass(frozen=True)
class Settings:
    """How an ensemble is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: rows per step, of each member.
        inputs: what the members see, ``"shared"`` (one batch for all), ``"own_augmentation"`` (the same rows, augmented and mixed for
            each member anew) or ``"own_order"`` (batches of its own, too, for each member); see :mod:`quorate.training.inputs`.
        optimizer: ``"sgd"`` (momentum) or ``"adamw"``.
        lr: peak learning rate.
        momentum: of SGD.
        nesterov: Nesterov momentum, for SGD only.
        weight_decay: on every parameter.
        schedule: ``"cosine"`` to 0, ``"step"``, or ``"constant"``, per step, after the warm-up.
        milestones: epochs after which ``"step"`` multiplies the learning rate by ``decay``; for ``"step"`` only.
        decay: factor of ``"step"``.
        warmup_epochs: epochs of linear warm-up from 0.
        cycles: ``"cosine"`` starts again from ``lr`` so many times, after equal numbers of epochs (Huang et al. 2017, arXiv 1704.00109,
            eq. 2); the warm-up is in the first. :class:`quorate.SnapshotEnsemble` has one per member.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        loss: over members, ``"sum"`` (exactly M independent trainings) or ``"mean"``.
        augment: apply the data set's augmentation.
        mixup: α ≥ 0 of mixup, 0 for none. cutmix: α of CutMix. With both, each batch gets one of them (:mod:`quorate.training.mixing`).
        averaging: of the weights, ``"none"``, ``"ema"`` or ``"swa"`` (:mod:`quorate.training.averaging`).
        ema_decay: share of the average that stays at a step; for ``"ema"`` only.
        swa_start: epochs before the weights are averaged, and trained at ``swa_lr``; for ``"swa"`` only, which needs it. The schedule
            is that of all epochs up to there.
        swa_lr: the constant learning rate from then on; for ``"swa"`` only, which needs it.
        channels_last: keep images and 2-D convolutions channels last in memory, which is often faster; the weights stay the same.
        seed: of batch order, augmentation, mixing and dropout.
        accelerator: as Lightning's Trainer takes it; ``"auto"`` takes a GPU if there is one.
        precision: ``"32-true"``, or the products in half precision: ``"16-mixed"`` (GPU), ``"bf16-mixed"``.
        checkpoint_seconds: most time between two saved states inside an epoch.
    """

    epochs: int = 20
    batch_size: int = 128
    inputs: Inputs = "shared"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: Sequence[int] = ()
    decay: float = 0.1
    warmup_epochs: float = 0.0
    cycles: int = 1
    label_smoothing: float = 0.0
    loss: Literal["sum", "mean"] = "sum"
    augment: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0
    averaging: Literal["none", "ema", "swa"] = "none"
    ema_decay: float = 0.999
    swa_start: int = 0
    swa_lr: float = 0.0
    channels_last: bool = False
    seed: int = 0
    accelerator: str = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name), type(field.default)))
        for name in ("epochs", "batch_size"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name, options in OPTIONS.items():
            _check(getattr(self, name) in options, name, getattr(self, name), f"one of {', '.join(options)}")
        _check(math.isfinite(self.lr) and self.lr > 0, "lr", self.lr, "a finite number > 0")
        _check(0 <= self.momentum < 1, "momentum", self.momentum, "0 ≤ momentum < 1")
        sgd = self.optimizer == "sgd" and self.momentum > 0
        _check(not self.nesterov or sgd, "nesterov", self.nesterov, "False, or optimizer='sgd' with a momentum > 0")
        _check(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0, "weight_decay", self.weight_decay, "a finite number ≥ 0"
        )
        _check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "0 ≤ label_smoothing < 1")
        _check(
            0 <= self.warmup_epochs < self.epochs,
            "warmup_epochs",
            self.warmup_epochs,
            f"0 … below epochs={self.epochs}, lower it with epochs",
        )
        _check(0 <= self.seed < 2**32, "seed", self.seed, "an integer in 0 … 2³² − 1")
        _check(self.checkpoint_seconds > 0, "checkpoint_seconds", self.checkpoint_seconds, "seconds > 0")
        _check(0 < self.decay <= 1, "decay", self.decay, "0 < decay ≤ 1")
        if self.schedule == "step":
            rising = all(a < b for a, b in pairwise((0, *self.milestones, self.epochs)))
            _check(rising and len(self.milestones) > 0, "milestones", self.milestones, f"rising epochs in 1 … {self.epochs - 1}")
        else:
            _check(
                not self.milestones, "milestones", self.milestones, f"none for schedule={self.schedule!r}, only 'step' has them"
            )
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            _check(math.isfinite(alpha) and alpha >= 0, name, alpha, "α of a Beta distribution, finite and > 0, or 0 for none")
        self._check_cycles()
        self._check_averaging()

    def _check_cycles(self) -> None:
        whole = self.cycles >= 1 and self.epochs % self.cycles == 0
        _check(whole, "cycles", self.cycles, f"at least 1, a divisor of epochs={self.epochs}")
        _check(
            self.cycles == 1 or (self.schedule == "cosine" and self.averaging != "swa"),
            "cycles",
            self.cycles,
            "1, or schedule='cosine' without averaging='swa', whose rate is constant",
        )
        first = self.epochs // self.cycles
        _check(self.warmup_epochs < first, "warmup_epochs", self.warmup_epochs, f"below {first}, the epochs of the first cycle")

    def _check_averaging(self) -> None:
        ema, swa = self.averaging == "ema", self.averaging == "swa"
        if not ema:
            self._check_unused("ema_decay", "ema")
        _check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 ≤ ema_decay < 1")
        if not swa:
            for name in ("swa_start", "swa_lr"):
                self._check_unused(name, "swa")
            return
        if not (1 <= self.swa_start < self.epochs and math.isfinite(self.swa_lr) and self.swa_lr > 0):
            raise ValueError(
                f"averaging='swa' needs swa_start, the epochs before it, in 1 … {self.epochs - 1}, and swa_lr, a finite rate > 0: "
                f"got swa_start={self.swa_start}, swa_lr={self.swa_lr}"
            )
        last = max([self.warmup_epochs, *self.milestones])
        _check(last <= self.swa_start, "swa_start", self.swa_start, f"at least {last:g}, where warm-up and milestones are over")

    def _check_unused(self, name: str, averaging: str) -> None:
        value = getattr(self, name)
        if value != Settings.__dataclass_fields__[name].default:
            raise ValueError(f"{name}={value} is for averaging={averaging!r}: set that too")

    def deciding(self) -> dict[str, Any]:
        """What decides a run's result, by name: all but how often its state is saved, and what is off and was once unknown."""
        default = {field.name: field.default for field in fields(self)}
        values = asdict(self).items()
        return {k: v for k, v in values if k != "checkpoint_seconds" and not (k in LATER and v == default[k])}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        """Settings from names and values; an unknown name is a ValueError that names the nearest one."""
        check_known("setting", values, [field.name for field in fields(cls)])
        return cls(**values)


def _typed(name: str, value: Any, kind: type) -> object:
    """The value as the type that its setting's default has (NumPy's numbers become Python's); ValueError for another type."""
    if kind is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_typed(name, part, int) for part in value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        _check(isinstance(value, number) and not isinstance(value, bool), name, value, WORDS[kind])
        return kind(value)
    _check(isinstance(value, kind), name, value, WORDS[kind])
    return value


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


def cycle_steps(settings: Settings, steps_per_epoch: int) -> int:
    """Steps of one cycle of the learning rate: all of them where there is one cycle."""
    return settings.epochs // settings.cycles * steps_per_epoch


def lr_factor(settings: Settings, steps_per_epoch: int) -> Callable[[int], float]:
    """Step number → factor on the peak learning rate: linear warm-up, then the schedule over what is left of the (first) cycle.

    With SWA the constant rate takes over where it starts.
    """
    period = cycle_steps(settings, steps_per_epoch)
    warm = round(settings.warmup_epochs * steps_per_epoch)
    swa = settings.swa_start * steps_per_epoch if settings.averaging == "swa" else math.inf

    def factor(step: int) -> float:
        if step >= swa:
            return settings.swa_lr / settings.lr
        if step < warm:
            return (step + 1) / (warm + 1)
        if settings.schedule == "constant":
            return 1.0
        if settings.schedule == "step":
            return float(settings.decay ** sum(step >= m * steps_per_epoch for m in settings.milestones))
        cycle = min(step // period, settings.cycles - 1)  # the step after the last still belongs to the last cycle
        rise = warm if cycle == 0 else 0
        return 0.5 * (1.0 + math.cos(math.pi * (step - cycle * period - rise) / max(period - rise, 1)))

    return factor
