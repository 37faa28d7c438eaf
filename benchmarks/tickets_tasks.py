"""The tasks of tickets_table.py: data, network, settings that all methods share. Two are sized for an hour of one core, CIFAR-10 for a GPU.

Fashion-MNIST: 4,800 of the 60,000 training rows, ResNet-14 on images averaged to 14×14. Daily and Sports Activities: windows of 45 sensors,
two subjects unseen, four of the 19 activities held out as OOD data; the network and settings of recipes/dsa19-*.yaml, trained for longer.
CIFAR-10: ResNet-18 in bf16 on all rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from quorate.data import Augmentation, Data, Split, idx, npz, npz_rows
from quorate.data.held_out import hold_out, kept_classes
from quorate.data.idx import FASHION_MNIST_CLASSES
from quorate.data.subset import stratified
from quorate.models import CNN1d, ResNet

OOD_ROWS = 2000
HELD_OUT = (3, 8, 13, 18)  # of the 19 activities: lying, walking, cross trainer, basketball


@dataclass(frozen=True)
class Task:
    """What all methods have in common.

    Attributes:
        kind: of the inputs, by which corruptions are chosen.
        network: one member without normalisation, its weights drawn from torch's random state.
        settings: of :class:`quorate.training.Settings`.
        every: optimiser steps between two moves of the masks.
        note: what was trained on what, for the reader.
    """

    kind: Literal["image", "sequence"]
    network: Callable[[Data], nn.Module]
    settings: Mapping[str, Any]
    every: int
    note: str


def fashion_mnist(root: Path, ood: Mapping[str, str], seed: int) -> Data:
    """4,800 training rows, and 1,200 each for validation and calibration, drawn by ``seed``; of each OOD set 2,000 rows."""
    fractions = (0.08, 0.02, 0.02)
    data = idx(root, ood=ood, fractions=fractions, seed=seed, classes=FASHION_MNIST_CLASSES, flip=True, name="fashion-mnist")
    few = {name: split.subset(stratified(np.zeros(len(split), int), split.ids, OOD_ROWS)) for name, split in data.ood.items()}
    return dataclasses.replace(data, ood=few)


def dsa19(path: Path, seed: int) -> Data:
    """Fifteen activities; the test subjects' rows of the other four are the OOD set. ``seed`` says who validates and calibrates."""
    columns: dict[str, Any] = {"groups": "subject", "fold": "subject", "test": [6, 7], "classes": "activities"}
    whole = npz_rows(path, layout="nlc", scale=["lo", "hi"], seed=seed, name="dsa19", **columns)
    kept = kept_classes(HELD_OUT, len(whole.classes))

    def part(split: Split) -> Split:
        rows, labels, _ = hold_out(np.asarray(split.y), kept)
        inside = split.subset(rows)
        return Split(inside.x, labels, inside.ids, inside.groups)

    others = whole.test.subset(hold_out(np.asarray(whole.test.y), kept)[2])
    parts = [part(split) for split in whole.splits().values()]
    return Data.build("dsa19", *parts, {"held_out": Split(others.x, None, others.ids)}, [whole.classes[c] for c in kept])


def cifar10(path: Path, ood: Mapping[str, str], seed: int) -> Data:
    """All rows; validation and calibration rows are cut off the training rows by ``seed``."""
    return npz(path, layout="nhwc", ood=ood, seed=seed, augmentation=Augmentation(pad=4, flip=True), name="cifar10")


def resnet(data: Data) -> nn.Module:
    """ResNet-14 at half resolution."""
    channels, height, width = data.shape
    return nn.Sequential(nn.AvgPool2d(2), ResNet((channels, height // 2, width // 2), data.width, 14))


def resnet18(data: Data) -> nn.Module:
    """ResNet-18 with the CIFAR stem."""
    return ResNet(data.shape, data.width, 18)


def cnn(data: Data) -> nn.Module:
    """The network of recipes/dsa19-*.yaml."""
    return CNN1d(data.shape, data.width, width=(32, 64, 64), dropout=0.5)


TASKS = {
    "fashion-mnist": Task(
        "image",
        resnet,
        {"batch_size": 64, "lr": 0.1, "weight_decay": 5e-4, "warmup_epochs": 1.0, "channels_last": True},
        50,
        "Fashion-MNIST: 4,800 training rows, ResNet-14 on images averaged to 14×14.",
    ),
    "cifar10": Task(
        "image",
        resnet18,
        {
            "batch_size": 128,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "warmup_epochs": 1.0,
            "channels_last": True,
            "precision": "bf16-mixed",
        },
        200,
        "CIFAR-10: all rows, ResNet-18, bf16.",
    ),
    "dsa19": Task(
        "sequence",
        cnn,
        {"batch_size": 64, "lr": 0.02, "weight_decay": 0.01, "warmup_epochs": 1.0, "label_smoothing": 0.1},
        50,
        "Daily and Sports Activities: 15 activities, subjects 6 and 7 (from 0) unseen, the other four activities as OOD data; CNN1d.",
    ),
}
