"""A training that kills itself: ``python killed_training.py FOLDER SIGNAL STEP`` (signal 0: never). Run by test_resume.py."""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

from quorate.data import Augmentation, Data, digits
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP
from quorate.training import Interrupted, fit


def main(folder: str, number: int, at: int) -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = digits()
    data = Data.build("d", *data.splits().values(), data.ood, data.classes, Augmentation(pad=1))
    models = [nn.Sequential(data.normalise(), MLP(data.shape, 8, (16,), dropout=0.3, norm=True)) for _ in range(2)]
    ensemble = DeepEnsemble(models)
    steps = 0

    def count(module: nn.Module, *_: object) -> None:
        nonlocal steps
        steps += module.training
        if module.training and steps == at and number:
            os.kill(os.getpid(), number)

    ensemble.register_forward_hook(count)
    try:
        fit(
            ensemble,
            data,
            run=folder,
            epochs=3,
            batch_size=100,
            lr=0.1,
            warmup_epochs=1,
            checkpoint_seconds=0.001,
            progress=False,
        )
    except Interrupted as stop:
        print(stop)
        return 128 + stop.signal
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
