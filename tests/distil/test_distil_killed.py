"""Processes that are killed in the middle of a distillation, and what the same call makes of the folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import killed_distillation
from small_distillations import everything, own, quick

SCRIPT = Path(killed_distillation.__file__)


def killed(folder: Path, number: int, phase: str) -> tuple[int, str]:
    """The exit status, negative for the signal that killed it, and what was printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(number), phase],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    quick(students=own(), run=folder)
    return everything(folder)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["step2", "step6", "scores", "state", "log", "weights", "outputs", "record", "clear"])
def test_a_killed_process_leaves_what_goes_on(phase: str, whole: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert killed(folder, signal.SIGKILL, phase)[0] == -signal.SIGKILL
    quick(students=own(), run=folder)
    assert everything(folder) == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_asked_to_stop_says_what_is_saved(
    number: signal.Signals, whole: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for phase, saved in (("step2", "no round"), ("step6", "round 1")):
        status, said = killed(folder, number, phase)
        assert status == 128 + number
        assert f"stopped by {number.name}; {saved} saved in {folder}: run the same command" in said
    assert killed(folder, signal.SIGKILL, "outputs")[0] == -signal.SIGKILL
    quick(students=own(), run=folder)
    assert everything(folder) == whole
