"""kill -9 while tickets are trained, and the same call again: the bytes of a run that was never killed.

6 steps in each of 5 epochs: an exploration of one, two refinements of two, an escape after step 18. DST has 3 epochs.
"""

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

Train = Callable[..., int]
OPTIONS: dict[str, Any] = {"schedule": "constant", "epochs": 5, "warmup_epochs": 0.5}


@pytest.fixture(scope="module")
def train() -> Iterator[Train]:
    """Trains in a process of its own, which a signal may end in a step → its exit status."""
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("killed_tickets.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(folder: Path, network: str, number: int = 0, step: int = 0, **settings: Any) -> int:
            options = {**OPTIONS, **({"epochs": 3} if network.startswith("dst") else {}), **settings}
            asked = {"folder": str(folder), "network": network, "signal": number, "step": step, "settings": options}
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            return int(json.loads(server.stdout.readline())[0])

        yield ask
        server.stdin.close()


def everything(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions, byte by byte."""
    facts = Run(folder).facts
    files = [folder / "metrics.csv", folder / "members.csv", *(folder / "tickets").iterdir(), *(folder / "outputs").iterdir()]
    return {path.name: path.read_bytes() for path in files} | {"facts": repr([facts["ledger"], facts["tickets"]]).encode()}


def check(folder: Path, whole: dict[str, bytes]) -> None:
    """The same bytes, and nothing left over."""
    assert everything(folder) == whole
    assert Run(folder).finished
    assert not [path for path in folder.rglob("*") if path.name == "resume.ckpt" or path.suffix == ".part"]


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """Runs that were never killed, by network."""
    done: dict[str, dict[str, bytes]] = {}

    def ask(network: str) -> dict[str, bytes]:
        if network not in done:
            folder = tmp_path_factory.mktemp("whole") / network
            assert train(folder, network) == 0
            done[network] = everything(folder)
        return done[network]

    return ask


@pytest.mark.slow
def test_in_a_refinement_and_around_an_escape(train: Train, whole: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    saved = 0
    for step in (15, 4, 1, 2):  # steps 15, 18, 18 again and 19
        assert train(folder, "edst", signal.SIGKILL, step) == -signal.SIGKILL
        saved += step - 1
        assert torch.load(folder / "resume.ckpt", weights_only=True)["global_step"] == saved
    assert train(folder, "edst") == 0
    check(folder, whole("edst"))


@pytest.mark.parametrize("network", ["edst:resume.ckpt:18", "average:member1.safetensors:1", "dst:run.json:2"])
def test_as_a_file_is_moved_to_its_place(network: str, train: Train, whole: Any, tmp_path: Path) -> None:
    """A saved state, after the escape; the second ticket; and the record that says that the run is finished."""
    folder, (kind, file, _) = tmp_path / "run", network.split(":")
    assert train(folder, network) == -signal.SIGKILL
    assert not Run(folder).finished
    assert list(folder.rglob(f".{file}.*.part"))
    assert torch.load(folder / "resume.ckpt", weights_only=True)["global_step"] == {"edst": 17, "average": 30, "dst": 18}[kind]
    assert train(folder, kind) == 0
    check(folder, whole(kind))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    ("network", "step"), [(n, s) for n, last in (("edst", 30), ("average", 30), ("dst", 18)) for s in range(1, last + 1)]
)
def test_at_every_step(number: signal.Signals, network: str, step: int, train: Train, whole: Any, tmp_path: Path) -> None:
    assert train(tmp_path / "run", network, number, step) in (-number, 128 + number)
    assert train(tmp_path / "run", network) == 0
    check(tmp_path / "run", whole(network))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["edst", "average", "dst"])
@pytest.mark.parametrize(
    "file", [*(f"resume.ckpt:{n}" for n in range(1, 31)), "metrics.csv:3", "member0.safetensors:1", "ood-held_out.safetensors:1"]
)
def test_at_every_move_of_a_file(file: str, network: str, train: Train, whole: Any, tmp_path: Path) -> None:
    killed = train(tmp_path / "run", f"{network}:{file}")
    assert killed == -signal.SIGKILL or (network == "dst" and file.startswith("resume") and killed == 0)
    assert train(tmp_path / "run", network) == 0
    check(tmp_path / "run", whole(network))


@pytest.mark.slow
@pytest.mark.parametrize("milliseconds", [90, 210, 330])
def test_killed_again_and_again_wherever_it_is(milliseconds: int, train: Train, whole: Any, tmp_path: Path) -> None:
    for patience in range(60):
        status = train(tmp_path / "run", "edst", signal.SIGALRM, milliseconds + 25 * patience)
        assert status in (0, -signal.SIGALRM)
        if status == 0:
            break
    check(tmp_path / "run", whole("edst"))
