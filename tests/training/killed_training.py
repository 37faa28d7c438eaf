"""Trainings that kill themselves, one process each: run by test_resume.py as ``python killed_training.py``.

Reads lines of JSON, ``{"folder": …, "network": …, "signal": …, "step": …, "settings": {…}}``, and answers each with a line: the exit
status of a process forked for it (forked, since the imports take longer than the training), negative for the signal that killed it,
and what it printed. ``network`` is one that ``build`` knows. ``signal`` is raised in training step ``step``; 0: never. SIGALRM comes
``step`` milliseconds after the start instead, wherever the process then is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

import torch
import torch.utils.tensorboard  # so that no child need import it
from torch import nn

from quorate.baselines import MCDropout, SnapshotEnsemble
from quorate.data import Augmentation, Data, digits
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP, ResNet
from quorate.packed import pack
from quorate.training import Interrupted, fit

DATA = digits()


def build(network: str, data: Data) -> nn.Module:
    """``"mlp"``: a deep ensemble of two; ``"packed"``: two convolutional members in one network; ``"snapshot"``, ``"mc-dropout"``: three
    members from one network. All with batch statistics."""
    if network == "packed":
        return pack(nn.Sequential(data.normalise(), ResNet(data.shape, 8, depth=8, width=8)), members=2)
    models = [nn.Sequential(data.normalise(), MLP(data.shape, 8, (16,), dropout=0.3, norm=True)) for _ in range(2)]
    if network == "snapshot":
        return SnapshotEnsemble(models[0], 3)
    return MCDropout(models[0], 3) if network == "mc-dropout" else DeepEnsemble(models)


def train(folder: str, network: str, number: int, step: int, settings: dict[str, Any]) -> int:
    """Train three epochs of 6 steps each, with augmentation, batch statistics, a warm-up and, for the MLP, dropout."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = Data.build("d", *DATA.splits().values(), DATA.ood, DATA.classes, Augmentation(pad=1))
    ensemble = build(network, data)
    steps = 0

    def count(module: nn.Module, *_: object) -> None:
        nonlocal steps
        steps += module.training
        if module.training and steps == step and number not in (0, signal.SIGALRM):
            os.kill(os.getpid(), number)

    own = settings.get("inputs", "shared") != "shared"  # not through the ensemble's forward: through the first member's then
    (ensemble.members[0] if own else ensemble).register_forward_hook(count)
    options = {"epochs": 3, "batch_size": 100, "lr": 0.1, "warmup_epochs": 1, "checkpoint_seconds": 1e-3, "accelerator": "cpu"}
    if number == signal.SIGALRM:
        signal.setitimer(signal.ITIMER_REAL, step / 1000)
    try:
        fit(ensemble, data, run=folder, progress=False, **{**options, **settings})
    except Interrupted as stop:
        print(stop, end="")
        return 128 + stop.signal
    return 0


def main() -> None:
    """Answer each line with the end of a process of its own."""
    for line in sys.stdin:
        asked = json.loads(line)
        back, out = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(out, 1)
            code = 1
            try:
                code = train(asked["folder"], asked["network"], asked["signal"], asked["step"], asked["settings"])
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code)
        os.close(out)
        with os.fdopen(back) as said:
            text = said.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), text]), flush=True)
    os._exit(0)  # at once, without taking everything down


if __name__ == "__main__":
    main()
