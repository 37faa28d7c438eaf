"""A distillation that is stopped goes on to the same bits; one that is not the same is refused."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quorate import runs
from quorate.data import Split
from quorate.distil import Cut, Distillation, Pool, distillation
from quorate.distil.learner import StudentModule
from quorate.distil.state import Store
from quorate.training import Interrupted
from small_distillations import DATA, Own, everything, looped, mlp, own, quick, tensors

PARTS = {"mlp": [(6,)], "grown": [(4,), (6,)]}
GROWN = {"attempts": 2, "edge": 0.02, "held_out": "edge", "joint": False, "rounds": 3}
"""Rules under which searches fail: another attempt, then a larger class."""


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Python's own handler of SIGINT, which a process that was started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def asked(kind: str, folder: Path | None, **options: Any) -> Distillation:
    rules = {**(GROWN if kind == "grown" else {}), **options.pop("rules", {})}
    students = options.pop("students", [mlp(*widths, norm=True, dropout=0.2) for widths in PARTS[kind]])
    return quick(options.pop("teacher", None), students, run=folder, rules=rules, **options)


@pytest.fixture(scope="module", params=list(PARTS))
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], int]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    steps = 0
    plain = StudentModule.training_step

    def counted(self: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        return plain(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudentModule, "training_step", counted)
        asked(request.param, folder)
    return request.param, everything(folder), steps


def at_step(number: int, act: Callable[[], Any]) -> pytest.MonkeyPatch:
    """Do something in a training step of the next call."""
    patch, steps, plain = pytest.MonkeyPatch(), 0, StudentModule.training_step

    def counted(self: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == number:
            act()
        return plain(self, *args)

    patch.setattr(StudentModule, "training_step", counted)
    return patch


def stopped(kind: str, folder: Path, step: int, act: Callable[[], Any], error: type[BaseException]) -> str:
    patch = at_step(step, act)
    try:
        with pytest.raises(error) as stop:
            asked(kind, folder)
    finally:
        patch.undo()
    return str(stop.value)


def test_interrupted_twice_it_comes_to_the_same(uninterrupted: tuple[str, dict[str, Any], int], tmp_path: Path) -> None:
    kind, whole, steps = uninterrupted
    folder = tmp_path / "run"
    said = stopped(kind, folder, 2, lambda: signal.raise_signal(signal.SIGTERM), Interrupted)
    assert said == f"stopped by SIGTERM; no round saved in {folder}: run the same command to go on with the round"
    assert not (folder / "distil" / "state.json").exists()
    assert (folder / "distil" / "teacher.npy").exists()  # is not asked again
    said = stopped(kind, folder, steps - 2, lambda: signal.raise_signal(signal.SIGINT), Interrupted)  # in the last search
    assert "stopped by SIGINT; round" in said
    found = asked(kind, folder)
    assert everything(folder) == whole
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [line for line in lines if "outcome" not in line] == found.rounds
    if kind == "grown":
        failed = [(line["round"], line["level"], line["attempt"]) for line in lines if "outcome" in line]
        assert len(failed) > 2  # a search after each of these was gone on with
        assert failed == sorted(failed)


@pytest.mark.slow
def test_a_kill_at_any_write_leaves_what_goes_on(uninterrupted: tuple[str, dict[str, Any], int], tmp_path: Path) -> None:
    """Every write of the state in turn is the last one."""
    kind, whole, _ = uninterrupted

    class Killed(BaseException):
        pass

    writes = 0
    for point in range(1, 60):
        folder = tmp_path / str(point)
        seen = 0

        def killed(path: Path, point: int = point) -> None:
            nonlocal seen
            seen += 1
            if seen == point:
                raise Killed(path.name)

        with pytest.MonkeyPatch.context() as patch:
            for name in ("write", "write_log", "clear"):
                plain = getattr(Store, name)
                patch.setattr(Store, name, lambda self, *a, plain=plain: (killed(self.folder), plain(self, *a))[1])
            plain_array = Store.write_array
            patch.setattr(
                Store, "write_array", lambda self, name, v, plain=plain_array: (killed(self.folder), plain(self, name, v))[1]
            )
            patch.setattr(distillation, "save_weights", lambda *a, plain=distillation.save_weights: (killed(a[1]), plain(*a))[1])
            try:
                asked(kind, folder)
            except Killed:
                writes += 1
            else:
                break
        if point % (3 if kind == "mlp" else 5):  # not all: each is a distillation
            continue
        asked(kind, folder)
        assert everything(folder) == {**whole, "left": whole["left"]}
    assert writes > 8


def test_files_of_a_round_that_state_does_not_name_are_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asked("mlp", tmp_path / "whole")
    steps = 2 * 2 + 1
    stopped("mlp", folder, steps, lambda: signal.raise_signal(signal.SIGTERM), Interrupted)
    inside = folder / "distil"
    assert sorted(p.name for p in inside.iterdir()) == [
        "held-1.npy", "scores-1.npy", "state.json", "student-1.safetensors", "teacher-held.npy", "teacher.npy",
    ]  # fmt: skip
    np.save(inside / "scores-2.npy", np.ones((len(DATA.train), 8), np.float32))
    (inside / "student-2.safetensors").write_bytes(b"half")
    (inside / ".held-2.npy.0f.part").write_bytes(b"half")
    (folder / "outputs").mkdir()
    (folder / "outputs" / ".test.safetensors.0f.part").write_bytes(b"half")
    asked("mlp", folder)
    assert everything(folder) == everything(tmp_path / "whole")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "half"
    stopped("mlp", folder, 5, lambda: signal.raise_signal(signal.SIGTERM), Interrupted)
    return folder


def other(split: Split, order: np.ndarray) -> Split:
    return Split(split.x[order], None, split.ids[order])


ORDER = np.random.default_rng(0).permutation(len(DATA.train))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"teacher": mlp(24, 24, seed=8)}, r"teacher\.tensors"),
        ({"students": [mlp(7, norm=True)]}, r"students\.made"),
        ({"students": [Cut(width=0.5)]}, r"students\.names"),
        (
            {"students": lambda: Pool.listed([mlp(6, norm=True, dropout=0.2)], DATA.train.batch([0])[0], links=("none",))},
            r"students\.links",
        ),
        ({"rules": {"rounds": 5}}, r"rules\.rounds: 3 there, 5 now"),
        ({"loss": {"kind": "barrier"}}, r"loss\.kind: 'potential' there, 'barrier' now"),
        ({"lr": 0.3}, r"settings\.lr: 0\.02 there, 0\.3 now"),
        ({"augment": True}, r"augmentation"),
        ({"transfer": other(DATA.train, np.arange(len(DATA.train)))}, "transfer: None there"),
        ({"transfer": other(DATA.train, ORDER)}, "transfer: None there"),
        ({"about": {"note": "another"}}, r"about\.note"),
    ],
    ids=["teacher", "sizes", "kind", "pool", "rules", "loss", "settings", "augmentation", "transfer", "order", "about"],
)
def test_something_else_is_refused_by_name(half: Path, options: dict[str, Any], named: str) -> None:
    state = (half / "distil" / "state.json").read_bytes()
    if callable(options.get("students")):
        options = {"students": options["students"]()}
    with pytest.raises(ValueError, match=f"{half} holds another run .*{named}") as refusal:
        asked("mlp", half, **options)
    assert "\n" not in str(refusal.value)
    assert (half / "distil" / "state.json").read_bytes() == state


def test_transfer_rows_in_another_order_are_refused(tmp_path: Path) -> None:
    first, again = (other(DATA.train, order) for order in (np.arange(len(DATA.train)), ORDER))
    patch = at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        asked("mlp", tmp_path / "run", transfer=first)
    patch.undo()
    with pytest.raises(ValueError, match=r"holds another run \(transfer: '[0-9a-f]{64}' there, '[0-9a-f]{64}' now\)"):
        asked("mlp", tmp_path / "run", transfer=again)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("state.json", b"{", "not readable as JSON"),
        ("state.json", b"[]", "is no state of a distillation: delete the run folder"),
        ("state.json", b'{"format": "quorate-distillation/1", "rounds": []}', "is no state of a distillation"),
        ("student-1.safetensors", b"x", "can't be read"),
        ("scores-1.npy", b"x", "can't be read"),
        ("scores-1.npy", np.zeros((3, 8), np.float32), r"holds float32 \(3, 8\), expected float32 \(144, 8\)"),
        ("scores-1.npy", np.ones((144, 8), np.float32), "scores are not those of round 1"),
        ("teacher.npy", np.zeros((144, 8), np.float64), "holds float64"),
    ],
)
def test_a_damaged_file_is_named(half: Path, file: str, content: bytes | np.ndarray, said: str) -> None:
    path = half / "distil" / file
    kept = path.read_bytes()
    try:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content)
        with pytest.raises(ValueError, match=said) as refusal:
            asked("mlp", half)
        assert "\n" not in str(refusal.value)
    finally:
        path.write_bytes(kept)


def test_the_folder_is_one_processs(half: Path) -> None:
    with runs.Lock(half), pytest.raises(BlockingIOError, match="in use by another process"):
        asked("mlp", half)


def test_a_finished_run_is_read_back_without_training(tmp_path: Path) -> None:
    first = quick(students=own(2), run=tmp_path / "run", rules={"combine": "validated"}, config={"a": 1})
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    (tmp_path / "run" / "distil").mkdir()  # left by a kill at the very end
    (tmp_path / "run" / "distil" / "state.json").write_text("{}")
    patch = at_step(1, lambda: pytest.fail("it trains"))
    again = quick(students=own(2), run=tmp_path / "run", rules={"combine": "validated"}, config={"a": 1})
    patch.undo()
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert tensors(again.ensemble) == tensors(first.ensemble)
    assert (again.rounds, again.stopped, again.ensemble.weights) == (first.rounds, first.stopped, first.ensemble.weights)
    for name, stored in first.outputs.items():
        assert np.array_equal(stored.values[0], again.outputs[name].values[0])
    assert len(first.rounds) == 2
    assert again.combination is not None
    assert first.combination is not None
    for name, value in vars(first.combination).items():
        np.testing.assert_array_equal(getattr(again.combination, name), value)
    x = DATA.test.batch(np.arange(9))[0]
    assert torch.equal(first.ensemble(x), again.ensemble(x))
    assert not again.ensemble.training


def test_memory_layout_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    class Seen(Own):
        def __init__(self, place: int) -> None:
            super().__init__(place)
            self.first = nn.Sequential(
                DATA.normalise(), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten()
            )
            self.last = nn.Linear(96, 8)

    options: dict[str, Any] = {"students": [Seen(0), Seen(1)], "channels_last": True, "rules": {"rounds": 2, "budget": 99.0}}
    whole, _ = looped(run=tmp_path / "whole", **options)
    patch = at_step(6, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        quick(run=tmp_path / "run", **options)
    patch.undo()
    quick(run=tmp_path / "run", **options)
    assert len(whole.rounds) == 2
    assert everything(tmp_path / "run") == everything(tmp_path / "whole")


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    stopped("mlp", tmp_path / "run", 5, twice, KeyboardInterrupt)
    assert json.loads((tmp_path / "run" / "distil" / "state.json").read_text())["rounds"]
    patch = at_step(2, lambda: signal.raise_signal(signal.SIGINT))  # nothing is kept: at once
    try:
        with pytest.raises(KeyboardInterrupt):
            asked("mlp", None)
    finally:
        patch.undo()


@pytest.mark.parametrize("where", ["teacher", "outputs", "end"])
def test_a_signal_outside_a_training_is_not_lost(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    name = {"teacher": "quorate.distil.teacher.Teacher.outputs", "outputs": "quorate.distil.distillation.collect",
            "end": "quorate.distil.state.Store.clear"}[where]  # fmt: skip
    with monkeypatch.context() as patch:
        *path, last = name.split(".")
        owner: Any = distillation if path[-1] == "distillation" else None
        if owner is None:
            from quorate.distil import Teacher

            owner = Teacher if where == "teacher" else Store
        plain = getattr(owner, last)

        def signalled(*args: Any, **options: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return plain(*args, **options)

        patch.setattr(owner, last, signalled)
        with pytest.raises(KeyboardInterrupt if where == "end" else Interrupted):
            asked("mlp", folder, rules={"rounds": 1})
    assert json.loads((folder / "run.json").read_text())["status"] == ("finished" if where == "end" else "running")
    assert asked("mlp", folder, rules={"rounds": 1}).facts["status"] == "finished"


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    found: list[Distillation] = []
    thread = threading.Thread(target=lambda: found.append(asked("mlp", tmp_path / "run", rules={"rounds": 1})))
    thread.start()
    thread.join()
    assert found[0].stopped == "1 rounds are the limit"
