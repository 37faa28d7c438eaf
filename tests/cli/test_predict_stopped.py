"""`quorate predict` stopped at any moment and run again: the same bytes, or a refusal of what would not give them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from predicted_bundles import ask, cascade, reference, stopping
from quorate.cascade.drift import Watch
from quorate.cli import predict
from quorate.runtime.runtime import Runtime
from tiny_bundles import rows

pytestmark = pytest.mark.deciding


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cascade(tmp_path / "B")
    np.save("x.npy", rows(50))
    return tmp_path


@pytest.mark.parametrize("ending", ["npz", "csv"])
@pytest.mark.parametrize("every_s", [0.0, 60.0])
def test_stopped_and_run_again_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ending: str, every_s: float
) -> None:
    options = ("--chunk", "8", "--probs")
    assert ask(*options, output=f"whole.{ending}") == 0
    monkeypatch.setattr(predict, "SAVE_S", every_s)
    for error, status in ((KeyboardInterrupt(), 130), (ValueError("stage broke"), 1)):
        with monkeypatch.context() as patch:
            patch.setattr(Runtime, "predict", stopping(2, error))
            assert ask(*options, output=f"o.{ending}") == status
        assert not Path(f"o.{ending}").exists()
    assert "between x.npy, rows 32, 39: stage broke" in capsys.readouterr().err
    assert sum(1 for _ in Path(f".o.{ending}.parts").glob("*.safetensors")) == (4 if every_s == 0 else 2)
    assert ask(*options, output=f"o.{ending}") == 0
    assert "holds 32 finished rows, going on" in capsys.readouterr().err
    assert Path(f"o.{ending}").read_bytes() == Path(f"whole.{ending}").read_bytes()
    assert not Path(f".o.{ending}.parts").exists()


def test_another_request_is_refused_on_finished_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "predict", stopping(3, KeyboardInterrupt()))
        assert ask("--chunk", "8") == 130
    capsys.readouterr()
    assert ask("--chunk", "9", "--probs") == 1
    said = capsys.readouterr().err
    assert "finished rows of another request (chunk: 8 there, 9 now; probs: false there, true now)" in said
    assert "--restart" in said
    os.utime("x.npy", ns=(1, 1))
    assert ask("--chunk", "8") == 1
    assert "(input: " in capsys.readouterr().err
    cascade(folder / "B", seed=5)
    assert ask("--chunk", "8", "--restart") == 0
    assert (np.load("o.npz")["label"] == reference(rows(50), 5)["label"]).all()


def test_killed_between_the_last_two_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The output is in place, its parts are not yet removed."""
    with monkeypatch.context() as patch:
        patch.setattr(predict.Parts, "clear_", Mock(side_effect=KeyboardInterrupt))
        assert ask() == 130
    written = Path("o.npz").read_bytes()
    assert ask() == 0
    assert "o.npz is complete already" in capsys.readouterr().err
    assert Path("o.npz").read_bytes() == written
    assert not Path(".o.npz.parts").exists()


def test_the_input_must_not_change(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plain = Runtime.predict

    def touching(self: Runtime, x: Any) -> Any:
        os.utime("x.npy", ns=(5, 5))
        return plain(self, x)

    monkeypatch.setattr(Runtime, "predict", touching)
    assert ask() == 1
    assert "x.npy changed while it was read: run the command again with --restart" in capsys.readouterr().err


def test_drift_is_told_also_of_rows_from_before_an_interruption(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def watched(passed: int) -> None:
        cascade(folder / "B", watch=Watch.of_counts(["a"], [1000], [passed]).to_dict())

    np.save("x.npy", rows(600))
    rate = (reference(rows(600))["exit_stage"] == "b").mean()
    watched(round(1000 * rate))
    assert ask() == 0
    assert "no drift alarm" in capsys.readouterr().err
    watched(990)
    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "predict", stopping(59, KeyboardInterrupt()))
        assert ask("--chunk", "10", output="d.npz") == 130
    assert ask("--chunk", "10", output="d.npz") == 0
    assert f"DRIFT at a: {100 * rate:.1f} % go on, 9" in capsys.readouterr().err


SLOWED = """
import sys, time
from quorate.cli import predict
from quorate.cli.main import main
from quorate.runtime.runtime import Runtime
plain = Runtime.predict
predict.SAVE_S = 0.0
def slow(self, x):
    time.sleep({seconds})
    return plain(self, x)
Runtime.predict = slow
sys.exit(main(sys.argv[1:]))
"""
COMMAND = ["predict", "B", "--input", "x.npy", "--output", "o.npz", "--chunk", "2", "--threads", "1"]


def start(seconds: float = 0.05) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SLOWED.format(seconds=seconds), *COMMAND], stderr=subprocess.PIPE, text=True)


def when_some_are_finished(process: subprocess.Popen[str], count: int = 2) -> None:
    until = time.monotonic() + 60
    while len(list(Path(".o.npz.parts").glob("*.safetensors"))) < count:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_real_signal_in_the_middle(number: signal.Signals, status: int) -> None:
    with start() as process:
        when_some_are_finished(process)
        assert ask("--chunk", "2") == 1  # another process holds it
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == status
    assert ("run the same command to go on" in said) == (status > 0)
    assert not Path("o.npz").exists()
    request = json.loads(Path(".o.npz.parts/request.json").read_text())
    assert request["request"]["chunk"] == 2
    assert ask("--chunk", "2") == 0
    assert ask("--chunk", "2", output="whole.npz") == 0
    assert Path("o.npz").read_bytes() == Path("whole.npz").read_bytes()


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        finished = len(list(Path(".o.npz.parts").glob("*.safetensors")))
        with start(0.01) as process:
            until = time.monotonic() + 60
            while process.poll() is None and len(list(Path(".o.npz.parts").glob("*.safetensors"))) <= finished:
                assert time.monotonic() < until
                time.sleep(0.005)
            time.sleep(0.1 * rng.random())
            process.kill()
            process.communicate()
        if Path("o.npz").exists() and not Path(".o.npz.parts").exists():
            break
    assert ask("--chunk", "2", output="whole.npz") == 0
    assert Path("o.npz").read_bytes() == Path("whole.npz").read_bytes()
    assert sorted(str(path) for path in folder.rglob(".*")) == []
