"""A distillation that kills itself, run as ``python killed_distillation.py FOLDER SIGNAL PHASE``.

PHASE is where the signal comes: ``stepN`` in the N-th training step, ``scores``, ``state``, ``log`` before such a file of the second
round is written, ``weights`` before those of the finished ensemble, ``outputs`` before the second file of them, ``record`` before the
finished ``run.json``, ``clear`` before the state is deleted. Exits with 128 + the signal where the state was saved.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from quorate.distil import distillation
from quorate.distil.learner import StudentModule
from quorate.distil.state import Store
from quorate.outputs import Outputs
from quorate.training import Interrupted
from small_distillations import own, quick

PLACES: dict[str, tuple[Any, str, int]] = {
    "scores": (Store, "write_array", 6),  # teacher, teacher-held, scores-1, held-1, scores-2, held-2
    "state": (Store, "write", 2),
    "log": (Store, "write_log", 2),
    "weights": (distillation, "save_weights", 1),
    "outputs": (Outputs, "save", 2),
    "record": (distillation, "write_json", 2),
    "clear": (Store, "clear", 1),
}


def main(folder: str, number: int, phase: str) -> int:
    owner, name, call = (StudentModule, "training_step", int(phase[4:])) if phase.startswith("step") else PLACES[phase]
    plain, calls = getattr(owner, name), 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and number:
            os.kill(os.getpid(), number)
        return plain(*args, **options)

    setattr(owner, name, counted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that was started in the background ignores it
    try:
        quick(students=own(), run=Path(folder))
    except Interrupted as stop:
        print(stop)
        return 128 + stop.signal
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
