"""How a training ends early: signals, losses that are not finite, full disks, damaged and leftover files, machines that can't."""

from __future__ import annotations

import contextlib
import errno
import importlib
import resource
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.data import digits
from quorate.ensemble import DeepEnsemble
from quorate.files import read_json
from quorate.models import MLP
from quorate.training import Fitted, Interrupted, Settings, fit
from quorate.training.callbacks import SavedState
from quorate.training.trainer import check_machine


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Python's own handler of SIGINT, which a process that was started in the background, or by pytest-xdist, ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


training = importlib.import_module("quorate.training.fit")  # the package has a function of that name
DATA = digits()  # 650 rows: 6 steps of 100 in each of 2 epochs
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def deep() -> DeepEnsemble:
    torch.manual_seed(0)
    return DeepEnsemble(nn.Sequential(DATA.normalise(), MLP(DATA.shape, 8, (8,), dropout=0.3, norm=True)) for _ in range(2))


def quick(ensemble: nn.Module, run: Path | None = None, **options: Any) -> Fitted:
    chosen = {"epochs": 2, "batch_size": 100, "lr": 0.1, "accelerator": "cpu", "progress": False, "tensorboard": False, **options}
    return fit(ensemble, DATA, run=run, **chosen)


def when(step: int, act: Any) -> nn.Module:
    """An ensemble that acts during a training step."""
    ensemble, steps = deep(), 0

    def count(module: nn.Module, *_: object) -> None:
        nonlocal steps
        steps += module.training
        if module.training and steps == step:
            act()

    ensemble.register_forward_hook(count)
    return ensemble


def everything(folder: Path) -> dict[str, bytes]:
    """What has to be the same after any interruption."""
    names = ["weights.safetensors", "metrics.csv", "members.csv", *(f"outputs/{p.name}" for p in (folder / "outputs").iterdir())]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    quick(deep(), folder)
    return everything(folder)


@pytest.mark.parametrize("step", [1, 4, 6, 7, 12], ids=["first", "inside", "end of an epoch", "start of an epoch", "last"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_the_same_call_goes_on(
    step: int, number: signal.Signals, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(
        Interrupted, match=rf"stopped by {number.name} at epoch {(step - 1) // 6}, step {step}; saved in .*go on"
    ) as stop:
        quick(when(step, lambda: signal.raise_signal(number)), tmp_path / "run")
    assert stop.value.signal == number
    assert [signal.getsignal(n) for n in SIGNALS] == before
    facts = read_json(tmp_path / "run" / "run.json", "")
    assert facts["status"] == "running"
    state = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)
    assert state["global_step"] == step
    fitted = quick(deep(), tmp_path / "run")
    assert everything(tmp_path / "run") == uninterrupted
    assert not (tmp_path / "run" / "resume.ckpt").exists()
    assert fitted.facts["train_seconds"] > state["quorate"]["seconds"] > 0


def test_interrupted_twice_and_resumed_in_the_same_process(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    for step in (3, 5):  # of what is left
        with pytest.raises(Interrupted):
            quick(when(step, lambda: signal.raise_signal(signal.SIGTERM)), tmp_path / "run")
    quick(deep(), tmp_path / "run")
    assert everything(tmp_path / "run") == uninterrupted


def test_the_other_optimiser_and_schedule_go_on_exactly_too(tmp_path: Path) -> None:
    settings = {"optimizer": "adamw", "lr": 0.01, "schedule": "step", "milestones": [1], "loss": "mean", "label_smoothing": 0.1}
    quick(deep(), tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        quick(when(8, lambda: signal.raise_signal(signal.SIGTERM)), tmp_path / "run", **settings)
    quick(deep(), tmp_path / "run", **settings)
    assert everything(tmp_path / "run") == everything(tmp_path / "whole")


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        quick(when(3, twice), tmp_path / "run")
    assert not (tmp_path / "run" / "resume.ckpt").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_without_a_folder_is_a_keyboard_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        quick(when(3, lambda: signal.raise_signal(signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_after_the_last_saved_state_is_not_lost(tmp_path: Path) -> None:
    saved = SavedState(tmp_path / "run" / "resume.ckpt", 60.0)
    trainer = SimpleNamespace(current_epoch=2, global_step=12)
    saved.stop_if_asked(trainer)
    saved.asked = int(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGTERM at epoch 2, step 12"):
        saved.stop_if_asked(trainer)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    thread = threading.Thread(target=quick, args=(deep(), tmp_path / "run"))
    thread.start()
    thread.join()
    assert everything(tmp_path / "run") == uninterrupted


class Failure(Exception):
    pass


def fail() -> None:
    raise Failure


def test_any_error_leaves_a_run_to_go_on_with(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    with pytest.raises(Failure):
        quick(when(9, fail), tmp_path / "run", checkpoint_seconds=1e-9)
    quick(deep(), tmp_path / "run", checkpoint_seconds=1e-9)
    assert everything(tmp_path / "run") == uninterrupted


def test_leftovers_of_killed_writes_are_swept_up(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    folder = tmp_path / "run"
    (folder / "outputs").mkdir(parents=True)
    (folder / "outputs" / ".test.safetensors.x7.part").write_bytes(b"half")
    with pytest.raises(ValueError, match="is not empty"):
        quick(deep(), folder)
    (folder / "outputs" / ".test.safetensors.x7.part").unlink()
    (folder / "outputs").rmdir()
    (folder / ".run.json.abc.part").write_bytes(b"{")  # killed in the very first write
    with pytest.raises(Failure):
        quick(when(2, fail), folder)
    (folder / ".resume.ckpt.abc.part").write_bytes(b"PK half an archive")
    (folder / "outputs").mkdir()
    (folder / "outputs" / ".test.safetensors.x7.part").write_bytes(b"half")
    quick(deep(), folder)
    assert everything(folder) == uninterrupted
    assert not [p for p in folder.rglob("*") if p.suffix == ".part"]


def test_a_loss_that_is_not_finite_stops_and_leaves_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"became (nan|inf) in epoch \d: lower lr, or check the inputs") as refusal:
        quick(DeepEnsemble([nn.Sequential(DATA.normalise(), MLP(DATA.shape, 8, (64, 64)))]), tmp_path / "run", lr=1e6, epochs=5)
    assert "\n" not in str(refusal.value)
    assert read_json(tmp_path / "run" / "run.json", "")["status"] == "running"
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_a_loss_that_is_nan_is_said_to_be() -> None:
    class Breaks(nn.Module):
        """NaN once it has trained; finite as long as nobody does."""

        def __init__(self, training_too: bool) -> None:
            super().__init__()
            self.layer, self.training_too, self.trained = nn.Linear(64, 8), training_too, False

        def forward(self, x: Tensor) -> Tensor:
            self.trained |= self.training
            broken = self.trained and (self.training_too or not self.training)
            return self.layer(x.flatten(1).float())[None] * (torch.nan if broken else 1.0)

    with pytest.raises(ValueError, match="the training loss became nan in epoch 0"):
        quick(Breaks(True))
    with pytest.raises(ValueError, match="the largest output on the validation split became nan in epoch 0"):
        quick(Breaks(False))


def test_about_must_be_json(tmp_path: Path) -> None:
    for about in ({"folder": tmp_path}, {"x": float("nan")}):
        with pytest.raises(ValueError, match=r"about=.* is not JSON .*: expected text, numbers, lists and dicts"):
            quick(deep(), tmp_path / "run", about=about)
    assert not (tmp_path / "run").exists()


def test_machines_that_can_not_do_what_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accelerator='abacus', precision='32-true': ") as refusal:
        quick(deep(), tmp_path / "run", accelerator="abacus")
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="precision='16-mixed' is not possible on cpu: expected 'bf16-mixed' or '32-true' there"):
        quick(deep(), tmp_path / "run", precision="16-mixed")
    with pytest.raises(ValueError, match="accelerator='auto' chose the Apple GPU, which has no float64: set accelerator='cpu'"):
        check_machine("32-true", torch.device("mps"), Settings())
    quick(deep(), tmp_path / "run", precision="bf16-mixed", epochs=1)  # the folder is still free for what is possible


def test_warnings_of_the_model_are_seen() -> None:
    with pytest.warns(UserWarning, match="look here"):
        quick(when(1, lambda: warnings.warn("look here", stacklevel=1)), epochs=1)


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As on a full disk, no file can grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_disk_that_is_full_while_training_is_one_line(
    tensorboard: bool, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    folder = tmp_path / "run"
    with (
        no_file_above(6000),
        pytest.raises(OSError, match=r"could not write .*resume\.ckpt: .*what was there before is unchanged") as full,
    ):
        quick(deep(), folder, checkpoint_seconds=1e-9, tensorboard=tensorboard)
    assert "\n" not in str(full.value)
    assert full.value.errno == errno.EFBIG
    assert sorted(p.name for p in folder.iterdir() if p.name != "tensorboard") == [".lock", "run.json"]
    quick(deep(), folder)
    assert everything(folder) == uninterrupted


@pytest.mark.parametrize(("size", "what"), [(3000, "weights"), (9000, "validation")])
def test_a_disk_that_is_full_at_the_end_keeps_the_trained_state(
    size: int, what: str, tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, save = tmp_path / "run", training.save_weights
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:
        patch.setattr(training, "save_weights", lambda *args: (stack.enter_context(no_file_above(size)), save(*args)))
        with pytest.raises(
            OSError, match=rf"could not write .*{what}\.safetensors: .*what was there before is unchanged"
        ) as full:
            quick(deep(), folder)
    assert "\n" not in str(full.value)
    assert read_json(folder / "run.json", "")["status"] == "running"
    assert torch.load(folder / "resume.ckpt", weights_only=True)["global_step"] == 12
    quick(when(1, fail), folder)  # nothing is left to train
    assert everything(folder) == uninterrupted
