"""Trainings of tickets that kill themselves: run by test_tickets_killed.py, with the server of ``tests/training/killed_training.py``.

``network`` is a name of ``build``, perhaps with a file, ``"edst:resume.ckpt:4"``: the process is killed when that file is to be moved to
its place for the 4th time, with the new content beside it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "training")]

import killed_training  # noqa: E402
from torch import nn  # noqa: E402

from quorate.data import Data  # noqa: E402
from quorate.models import MLP  # noqa: E402
from quorate.tickets import DST, EDST, Gradient, Random  # noqa: E402


def build(name: str, data: Data) -> nn.Module:
    """``"edst"``: two tickets after an epoch's exploration; ``"average"``: the same, averaged; ``"dst"``: two."""
    kind, _, place = name.partition(":")
    if place:
        kill_at(*place.split(":"))
    models = [nn.Sequential(data.normalise(), MLP(data.shape, 8, (16,), dropout=0.3, norm=True)) for _ in range(2)]
    if kind == "dst":
        return DST(models, 0.4, growth=Random(), every=5)
    choice = {"choose": "average", "averaged": 2} if kind == "average" else {}
    return EDST(models[0], 2, 0.4, exploration=1, growth=Gradient(2), every=4, **choice)  # type: ignore[arg-type]


def kill_at(file: str, times: str) -> None:
    """Kill this process at a file's move to its place."""
    move, moved = Path.replace, 0

    def replace(path: Path, target: Path) -> Path:
        nonlocal moved
        moved += target.name == file
        if target.name == file and moved == int(times):
            os.kill(os.getpid(), signal.SIGKILL)
        return move(path, target)

    Path.replace = replace  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    killed_training.build = build
    killed_training.main()
