"""`quorate train` and models of the user's: found in the working folder, blamed by name, described by `--model.help`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from quorate.cli.main import main

OWN = """from torch import nn


class Net(nn.Module):
    'Linear.'

    def __init__(self, shape, classes: int, bias: bool = True):
        super().__init__()
        self.linear = nn.Linear(64, classes, bias)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Raises(Net):
    def __init__(self, shape, classes):
        raise KeyError("oops")


class Unpacks(Net):
    def forward(self, x):
        rows, features = x.shape


class Misses(Net):
    def forward(self, x):
        return {}["oops"]
"""
SLOW = """import time
from pathlib import Path

from quorate.data import Data


def data() -> Data:
    Path("reading").touch()
    time.sleep(60)
"""
CONSOLE = "import sys; from quorate.cli.main import main; sys.exit(main())"  # with -P, as a console script: no working folder


def train(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", CONSOLE, "train", "--run", "r", "--progress", "false", "--fit.epochs", "1", *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=env)


@pytest.mark.slow
def test_a_model_in_the_working_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(OWN)
    process = train(tmp_path, "--data", "digits", "--model", "my_net.Net")
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")


@pytest.mark.slow
def test_sigterm_while_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "slow_data.py").write_text(SLOW)
    process = train(tmp_path, "--data", "slow_data.data", "--model", "MLP")
    for _ in range(600):
        if (tmp_path / "reading").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    expected = "quorate train: stopped; what was saved is still there: run the same command to go on\n"
    assert (process.returncode, error) == (143, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Raises", "KeyError: 'oops' (blamed_net.py, line 17)"),
        ("Unpacks", "ValueError: too many values to unpack (expected 2) (blamed_net.py, line 22)"),
        ("Misses", "KeyError: 'oops' (blamed_net.py, line 27)"),
    ],
)
def test_a_model_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, expected: str
) -> None:
    (tmp_path / "blamed_net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    before, handler = list(sys.path), signal.getsignal(signal.SIGTERM)
    command = ["train", "--data", "digits", "--model", f"blamed_net.{name}", "--run", "r", "--progress", "false"]
    assert main(command) == 1
    assert capsys.readouterr().err == f"quorate train: model 'blamed_net.{name}' failed: {expected}\n"
    assert (sys.path, signal.getsignal(signal.SIGTERM)) == (before, handler)
    monkeypatch.setenv("QUORATE_TRACEBACK", "1")
    assert main(command) == 1
    assert 'blamed_net.py", line' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data.help", "image_folder"], ["--data.root: str | Path (required)", "--data.nested: bool = False", "class folders"]),
        (["--data.help=image_folder"], ["--data.root: str | Path (required)"]),
        (["--data", "image_folder", "--data.help"], ["--data.root: str | Path (required)"]),
        (["--data=image_folder", "--data.help"], ["--data.root: str | Path (required)"]),
        (["--data.help"], ["quorate.data has: audio_folder, ", "--data.help NAME"]),
        (["--model.help", "MLP"], ["--model.dropout: float = 0.0"]),
        (["--model.help", "helped_net.Net"], ["--model.bias: bool = True\n\nLinear."]),
        (["--help"], ["--data.help [NAME]", "--model.help [NAME]"]),
    ],
)
@pytest.mark.filterwarnings(r"ignore:\s*Hit failing import")  # other tests make classes that say they are timm's
def test_help_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], expected: list[str]
) -> None:
    (tmp_path / "helped_net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train", *options])
    printed = capsys.readouterr().out
    assert not stop.value.code
    assert all(part in printed for part in expected), printed
    if "--model.help" in options:
        assert "--model.shape" not in printed
