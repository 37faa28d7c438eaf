"""Exact resume: processes that are killed anywhere and started again end with the bits of one that never was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quorate.runs import Run

STEPS = 18  # 3 epochs of 6
PLACES = {"first step": 1, "an epoch's last step": 12, "last step of all": STEPS}
Train = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def train() -> Iterator[Train]:
    """Trains in a process of its own that a signal ends in a step → its exit status and what it said."""
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("killed_training.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(folder: Path, number: int = 0, step: int = 0, network: str = "mlp", **settings: Any) -> tuple[int, str]:
            asked = {"folder": str(folder), "network": network, "signal": number, "step": step, "settings": settings}
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            status, said = json.loads(server.stdout.readline())
            return status, said

        yield ask
        server.stdin.close()


def everything(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions, byte by byte."""
    names = ["weights.safetensors", "metrics.csv", "members.csv", *(f"outputs/{p.name}" for p in (folder / "outputs").iterdir())]
    return {name: (folder / name).read_bytes() for name in names}


def check_finished(folder: Path, whole: dict[str, bytes]) -> None:
    """The same bytes as the whole run's, and nothing left over: no state, no half files, no pickles, no archives."""
    assert everything(folder) == whole
    assert Run(folder).finished
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert not [p for p in files if p.name == "resume.ckpt" or p.suffix == ".part"]
    assert not [p for p in files if p.read_bytes()[:2] == b"PK" or p.read_bytes()[:1] == b"\x80"]


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(folder) == (0, "")
    assert len((folder / "metrics.csv").read_text().splitlines()) == 4
    return everything(folder)


@pytest.mark.slow
def test_the_same_training_twice_gives_the_same_bytes(train: Train, whole: dict[str, bytes], tmp_path: Path) -> None:
    train(tmp_path / "run")
    check_finished(tmp_path / "run", whole)


@pytest.mark.parametrize("place", PLACES)
def test_killed(place: str, train: Train, whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(folder, signal.SIGKILL, PLACES[place]) == (-signal.SIGKILL, "")
    assert not Run(folder).finished
    if PLACES[place] > 1:
        assert torch.load(folder / "resume.ckpt", weights_only=True)["global_step"] == PLACES[place] - 1
    assert train(folder) == (0, "")
    check_finished(folder, whole)


def test_asked_to_stop(train: Train, whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    status, said = train(folder, signal.SIGTERM, 9)
    assert status == 128 + signal.SIGTERM
    assert said == f"stopped by SIGTERM at epoch 1, step 9; saved in {folder}: run the same command to go on"
    assert torch.load(folder / "resume.ckpt", weights_only=True)["global_step"] == 9
    train(folder)
    check_finished(folder, whole)


def test_killed_with_convolutions_channels_last(train: Train, tmp_path: Path) -> None:
    options: dict[str, Any] = {"network": "packed", "channels_last": True, "epochs": 2}
    assert train(tmp_path / "whole", **options) == (0, "")
    folder = tmp_path / "run"
    assert train(folder, signal.SIGKILL, 9, **options) == (-signal.SIGKILL, "")
    assert torch.load(folder / "resume.ckpt", weights_only=True)["global_step"] == 8  # inside the second epoch of 6
    assert train(folder, signal.SIGTERM, 2, **options)[0] == 128 + signal.SIGTERM  # the tenth step
    assert train(folder, **options) == (0, "")
    check_finished(folder, everything(tmp_path / "whole"))


OPTIONS: dict[str, dict[str, Any]] = {
    "ema": {"averaging": "ema", "ema_decay": 0.9},
    "swa": {"averaging": "swa", "swa_start": 1, "swa_lr": 0.05},
    "snapshots": {"network": "snapshot", "cycles": 3, "warmup_epochs": 0.5},
    "mixing": {"mixup": 0.4, "cutmix": 1.0},
    "mc-dropout": {"network": "mc-dropout"},
    "own augmentation": {"inputs": "own_augmentation"},
    "own order": {"inputs": "own_order", "mixup": 0.4},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_killed_with_options(name: str, train: Train, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert train(tmp_path / "whole", **OPTIONS[name]) == (0, "")
    folder = tmp_path / "run"
    assert train(folder, signal.SIGKILL, 9, **OPTIONS[name])[0] == -signal.SIGKILL  # inside the second epoch of 6
    assert train(folder, signal.SIGTERM, 5, **OPTIONS[name])[0] == 128 + signal.SIGTERM  # inside the third, or at its start
    assert train(folder, **OPTIONS[name]) == (0, "")
    check_finished(folder, everything(tmp_path / "whole"))
    assert everything(folder)["weights.safetensors"] != whole["weights.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ema", "swa", "snapshots"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("step", [1, 5, 6, 7, 12, 13, STEPS])
def test_around_the_ends_of_epochs_with_options(
    number: signal.Signals, step: int, name: str, train: Train, tmp_path: Path
) -> None:
    train(tmp_path / "whole", **OPTIONS[name])
    assert train(tmp_path / "run", number, step, **OPTIONS[name])[0] in (-number, 128 + number)
    train(tmp_path / "run", **OPTIONS[name])
    check_finished(tmp_path / "run", everything(tmp_path / "whole"))


@pytest.mark.slow
def test_killed_with_the_other_optimiser_and_schedule(train: Train, tmp_path: Path) -> None:
    settings = {
        "optimizer": "adamw",
        "lr": 0.01,
        "schedule": "step",
        "milestones": [1, 2],
        "loss": "mean",
        "label_smoothing": 0.1,
    }
    train(tmp_path / "whole", **settings)
    train(tmp_path / "run", signal.SIGKILL, 8, **settings)
    train(tmp_path / "run", **settings)
    check_finished(tmp_path / "run", everything(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_at_every_step(number: signal.Signals, step: int, train: Train, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert train(tmp_path / "run", number, step)[0] in (-number, 128 + number)
    train(tmp_path / "run")
    check_finished(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("one", "two"), [(1, 1), (3, 2), (6, 6), (7, 5), (12, 3), (5, 13), (18, 1)])
def test_twice(
    first: signal.Signals, second: signal.Signals, one: int, two: int, train: Train, whole: dict[str, bytes], tmp_path: Path
) -> None:
    train(tmp_path / "run", first, one)
    train(tmp_path / "run", second, two)  # counted from where it goes on; perhaps never reached
    train(tmp_path / "run")
    check_finished(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("milliseconds", [60, 130, 170, 220, 310])
def test_killed_again_and_again_wherever_it_is(milliseconds: int, train: Train, whole: dict[str, bytes], tmp_path: Path) -> None:
    for patience in range(40):
        status, _ = train(tmp_path / "run", signal.SIGALRM, milliseconds + 15 * patience)
        assert status in (0, -signal.SIGALRM)
        if status == 0:
            break
    check_finished(tmp_path / "run", whole)
