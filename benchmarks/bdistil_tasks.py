"""The data sets, teachers and students of bdistil_table.py.

A teacher is one network, trained on labels. Its settings and the students' were chosen on validation data of seed 100, which is not
reported. Test parts are never looked at before the table is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from quorate.data import Data, digits, npz_rows
from quorate.distil.cutting import Cut
from quorate.models import LeNet, ResNet
from tickets_tasks import cifar10, cnn, resnet18
from tickets_tasks import fashion_mnist as few_fashion_mnist


@dataclass(frozen=True)
class Task:
    """One data set.

    Attributes:
        network: of the teacher, from the data; students are cut from it. teacher: settings of its training.
        students: sizes, small to large. training: settings of each student's training.
        rules: of the distillation, beside a budget of half the teacher. loss: further settings of each kind of loss. note: for the table.
    """

    network: Callable[[Data], nn.Module]
    teacher: dict[str, Any]
    students: tuple[Cut, ...]
    training: dict[str, Any]
    note: str
    rules: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, dict[str, Any]] = field(default_factory=dict)


def load(name: str, path: Path | None, seed: int) -> Data:
    """The data set by the seed's partition."""
    if name == "digits":
        return digits(held_out=(8, 9), fractions=(0.25, 0.2, 0.1, 0.45), seed=seed)
    if path is None:
        raise ValueError(f"{name}: expected a path, give --path")
    if name == "fashion-mnist":
        return few_fashion_mnist(path, {}, seed)
    if name == "dsa19":
        columns: dict[str, Any] = {"groups": "subject", "fold": "subject", "test": [6, 7], "classes": "activities"}
        return npz_rows(path, layout="nlc", scale=["lo", "hi"], seed=seed, name="dsa19", **columns)
    if name == "cifar10":
        return cifar10(path, {}, seed)
    columns = {"groups": "speaker", "ungrouped": "", "fold": "split", "test": [1], "classes": "classes"}
    return npz_rows(path, layout="nhw", seed=seed, name="speech12", **columns)


def half_lenet(data: Data) -> nn.Module:
    """LeNet at half resolution."""
    channels, height, width = data.shape
    return nn.Sequential(
        nn.AvgPool2d(2), LeNet((channels, height // 2, width // 2), data.width, width=(16, 32), hidden=(128, 64))
    )


STUDENT: dict[str, Any] = {
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 0.004,
    "weight_decay": 0.0,
    "warmup_epochs": 1.0,
    "augment": False,
}
RULES: dict[str, Any] = {"rounds": 4, "candidates": 2, "breadth": 2, "lrs": (1.0,), "links": ("all",)}

TASKS = {
    "digits": Task(
        lambda data: LeNet(data.shape, data.width, width=(16, 32), hidden=(128, 64)),
        {"epochs": 60, "batch_size": 64, "lr": 0.05, "warmup_epochs": 1.0},
        (Cut(1.0, 0.25), Cut(1.0, 0.375), Cut(1.0, 0.5)),
        STUDENT | {"epochs": 240},
        "Digits: eight classes, a quarter of the rows to learn from; LeNet.",
        RULES,
    ),
    "fashion-mnist": Task(
        half_lenet,
        {"epochs": 30, "batch_size": 64, "lr": 0.05, "weight_decay": 5e-4, "warmup_epochs": 1.0},
        (Cut(1.0, 0.25), Cut(1.0, 0.375), Cut(1.0, 0.5)),
        STUDENT | {"epochs": 40},
        "Fashion-MNIST: 4,800 training rows, LeNet on images averaged to 14×14.",
        RULES,
    ),
    "dsa19": Task(
        cnn,
        {"epochs": 8, "batch_size": 64, "lr": 0.02, "weight_decay": 0.01, "warmup_epochs": 1.0, "label_smoothing": 0.1},
        (Cut(1.0, 0.25), Cut(1.0, 0.375)),
        STUDENT | {"epochs": 24},
        "Daily and Sports Activities: 19 activities, subjects 6 and 7 (from 0) unseen; CNN1d.",
        RULES,
    ),
    "speech12": Task(
        lambda data: ResNet(data.shape, data.width, 8),
        {"epochs": 12, "batch_size": 64, "lr": 0.05, "warmup_epochs": 1.0},
        (Cut(1.0, 0.5),),
        STUDENT | {"epochs": 8},
        "Speech commands: twelve words as log-mel spectrograms, speakers of the test part unseen; ResNet-8.",
        RULES,
    ),
    "cifar10": Task(  # for an accelerator
        resnet18,
        {
            "epochs": 100,
            "batch_size": 128,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "warmup_epochs": 1.0,
            "channels_last": True,
            "precision": "bf16-mixed",
        },
        (Cut(0.5, 0.25), Cut(0.5, 0.375), Cut(1.0, 0.375)),
        STUDENT | {"epochs": 60, "batch_size": 128, "augment": True, "precision": "bf16-mixed"},
        "CIFAR-10: all rows, ResNet-18, bf16.",
        RULES,
    ),
}
