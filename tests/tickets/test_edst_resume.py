"""Runs of EDST and DST that break off anywhere and go on: bit-equal to those that did not, by bytes of all files.

EDST explores for an epoch and refines twice for two, of 6 steps each: it takes a ticket and escapes after step 18.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quorate.runs import Run
from quorate.tickets import Gradient
from quorate.training import Interrupted
from tiny_tickets import dst, edst, quick

EDST_: dict[str, Any] = {"members": 2, "exploration": 1, "growth": Gradient(2)}
MAKE: dict[str, Callable[[], nn.Module]] = {
    "edst": lambda: edst(**EDST_, rate=0.4, decay="cosine"),
    "average": lambda: edst(**EDST_, choose="average", averaged=2),
    "dst": lambda: dst(growth=Gradient(2)),
}
EPOCHS = {"edst": 5, "average": 5, "dst": 3}


class Killed(BaseException):
    """Nothing answers it, as nothing answers a kill."""


def kill() -> None:
    raise Killed


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Python's own of SIGINT, which a process that was started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def train(name: str, folder: Path, step: int = 0, act: Callable[[], None] = kill, **settings: Any) -> Any:
    """Train, and act in a training step, counted from where the run goes on."""
    ensemble, steps = MAKE[name](), 0

    def count(module: nn.Module, *_: object) -> None:
        nonlocal steps
        steps += module.training
        if module.training and steps == step:
            act()

    ensemble.register_forward_hook(count)
    chosen = {"epochs": EPOCHS[name], "checkpoint_seconds": 1e-9, "warmup_epochs": 0.5, **settings}
    return quick(ensemble, folder, **chosen)


def everything(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions: masks and weights are in the tickets."""
    tables = {name: (folder / name).read_bytes() for name in ("metrics.csv", "members.csv")}
    facts = Run(folder).facts
    counted = {key: repr(facts[key]).encode() for key in ("ledger", "tickets", "training_macs", "parameters", "stage_macs")}
    files = [*(folder / "tickets").iterdir(), *(folder / "outputs").iterdir()]
    return tables | counted | {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """Runs that were never interrupted, nor saved in between, by name."""
    done: dict[str, dict[str, bytes]] = {}

    def ask(name: str) -> dict[str, bytes]:
        if name not in done:
            folder = tmp_path_factory.mktemp("whole") / name
            train(name, folder, checkpoint_seconds=1e9)
            done[name] = everything(folder)
        return done[name]

    return ask


def check(folder: Path, expected: dict[str, bytes]) -> None:
    assert everything(folder) == expected
    assert Run(folder).finished
    assert not (folder / "resume.ckpt").exists()
    assert not (folder / "weights.safetensors").exists()
    assert not [path for path in folder.rglob("*") if path.suffix == ".part"]


PLACES = [
    ("edst", 3, "in the exploration"),
    ("edst", 15, "in a refinement, gradients being gathered"),
    ("edst", 18, "in the step before an escape"),
    ("edst", 19, "in the step after it"),
    ("average", 28, "between two networks that are averaged"),
    ("dst", 12, "in an epoch's last step, at the end of which masks move"),
]


@pytest.mark.parametrize(("name", "step"), [(name, step) for name, step, _ in PLACES], ids=[place for *_, place in PLACES])
def test_killed(name: str, step: int, whole: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(name, tmp_path / "run", step)
    state = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)
    assert state["global_step"] == step - 1
    train(name, tmp_path / "run")
    check(tmp_path / "run", whole(name))


def test_ctrl_c_again_and_again(whole: Any, tmp_path: Path) -> None:
    """Before the escape, when it comes with the end of an epoch; after it; and in the last step of all."""
    folder = tmp_path / "run"
    for step, at in ((18, "epoch 2, step 18"), (2, "epoch 3, step 20"), (10, "epoch 4, step 30")):
        with pytest.raises(Interrupted, match=f"stopped by SIGINT at {at}; saved in .*: run the same command to go on"):
            train("edst", folder, step, ctrl_c)
        with pytest.raises(ValueError, match="is not finished"):
            Run(folder).outputs("test")
    train("edst", folder, 1)  # nothing is left to train, the end is
    check(folder, whole("edst"))


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.MonkeyPatch]:
    """Makes the process die as a file is about to be moved over another, at its n-th move."""
    move = Path.replace

    def at(name: str, times: int = 1) -> pytest.MonkeyPatch:
        left = times

        def replace(path: Path, target: Path) -> Path:
            nonlocal left
            left -= target.name == name
            if target.name == name and not left:
                raise Killed
            return move(path, target)

        monkeypatch.setattr(Path, "replace", replace)
        return monkeypatch

    return at


def test_between_the_two_writes_of_a_saved_state(dies: Any, whole: Any, tmp_path: Path) -> None:
    """The state after the escape is written, but not in its place: the run goes on from before it."""
    folder = tmp_path / "run"
    patch = dies("resume.ckpt", 18)
    with pytest.raises(Killed):
        train("edst", folder)
    patch.undo()
    state = torch.load(folder / "resume.ckpt", weights_only=True)
    assert state["global_step"] == 17
    assert state["quorate"]["regime"]["taken"] == []
    train("edst", folder)
    check(folder, whole("edst"))


@pytest.mark.parametrize(
    ("name", "file"), [("edst", "member0.safetensors"), ("average", "member1.safetensors"), ("dst", "test.safetensors")]
)
def test_while_what_it_came_to_is_written(name: str, file: str, dies: Any, whole: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    patch = dies(file)
    with pytest.raises(Killed):
        train(name, folder, checkpoint_seconds=1e9)
    patch.undo()
    assert Run(folder).facts["status"] == "running"
    leftover = folder / "tickets" / ".member1.safetensors.0123abcd.part"  # of a process that could not take it away
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"half")
    train(name, folder, 1, checkpoint_seconds=1e9)  # nothing is left to train
    check(folder, whole(name))


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train("edst", tmp_path / "run", 3)
    others = (edst(**EDST_), edst(**EDST_, rate=0.4, decay="cosine", escape=0.7))
    for other in others:
        with pytest.raises(ValueError, match=r"holds another run \(ensemble.structure: .*: use the same settings to go on"):
            quick(other, tmp_path / "run", epochs=5, warmup_epochs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("act", [kill, ctrl_c])
@pytest.mark.parametrize(("name", "step"), [(name, step) for name, epochs in EPOCHS.items() for step in range(1, epochs * 6 + 1)])
def test_at_every_step(name: str, step: int, act: Any, whole: Any, tmp_path: Path) -> None:
    with pytest.raises((Killed, Interrupted)):
        train(name, tmp_path / "run", step, act)
    train(name, tmp_path / "run")
    check(tmp_path / "run", whole(name))
