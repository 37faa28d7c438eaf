"""The command line's front door: commands, exit statuses, one line per error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import quorate
from quorate import __version__
from quorate.cli.main import COMMANDS, main
from quorate.files import write_json
from quorate.outputs import Outputs
from quorate.runs import FORMAT

pytestmark = pytest.mark.deciding


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error.strip()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"quorate {__version__}\n"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert one_line(capsys) == f"quorate: unknown command 'trian'; did you mean 'train'? (commands: {', '.join(COMMANDS)})"


def test_missing_run_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "nowhere"]) == 1
    assert one_line(capsys) == "quorate evaluate: nowhere is not a folder: expected a run folder written by quorate train"


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        (["x", "--formt", "table"], 2, "unknown option '--formt'; did you mean '--format'? (see quorate evaluate --help)"),
        ([], 2, "the following arguments are required: runs (see quorate evaluate --help)"),
        (["x", "--format", "html"], 2, "format: expected one of 'table', 'markdown', got 'html' (see quorate evaluate --help)"),
        (["x", "--output", "x.txt"], 1, "--output x.txt: expected a name that ends in .json or .md"),
    ],
)
def test_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str], options: list[str], status: int, expected: str) -> None:
    assert main(["evaluate", *options]) == status
    assert one_line(capsys) == f"quorate evaluate: {expected}"


def test_traceback_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_TRACEBACK", "1")
    assert main(["evaluate", "nowhere"]) == 1
    assert "Traceback" in capsys.readouterr().err


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def test_as_a_module() -> None:
    done = run("-m", "quorate", "evalute")
    expected = f"quorate: unknown command 'evalute'; did you mean 'evaluate'? (commands: {', '.join(COMMANDS)})\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    done = run("-m", "quorate", "evaluate", "--formt", "table", "x")
    expected = "quorate evaluate: unknown option '--formt'; did you mean '--format'? (see quorate evaluate --help)\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert run("-m", "quorate", "--version").stdout == f"quorate {__version__}\n"


@pytest.mark.parametrize(
    ("absent", "command", "expected"),
    [
        ("torch", ["train", "--run", "r"], 'quorate train: needs torch, which is not installed: pip install "quorate[train]"\n'),
        ("torch", ["demo"], 'quorate demo: needs torch, which is not installed: pip install "quorate[train]"\n'),
        ("jsonargparse", ["evaluate", "x"], "quorate evaluate: No module named 'jsonargparse'\n"),
    ],
)
def test_a_missing_extra_is_named(absent: str, command: list[str], expected: str) -> None:
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
from quorate.cli.main import main
sys.exit(main({command!r}))
"""
    done = run("-c", code)
    assert (done.returncode, done.stderr) == (1, expected)


def test_missing_extra_is_about_missing_modules_only() -> None:
    assert quorate.missing_extra(ModuleNotFoundError("x", name="matplotlib.pyplot")) == (
        'matplotlib, which is not installed: pip install "quorate[report]"'
    )
    others = (ModuleNotFoundError("x", name="own"), ModuleNotFoundError("x"), ImportError("x", name="torch"), ValueError("torch"))
    assert [quorate.missing_extra(error) for error in others] == [None] * 4


def test_nobody_reads_the_output() -> None:
    command = f"{sys.executable} -m quorate --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_nobody_reads_the_table(tmp_path: Path) -> None:
    write_json(tmp_path / "r" / "run.json", {"format": FORMAT, "status": "finished", "data": {"name": "d"}})
    for part in ("validation", "test"):
        Outputs([np.eye(3)], labels=[0, 1, 2]).save(tmp_path / "r" / "outputs" / f"{part}.safetensors")
    command = f"{sys.executable} -m quorate evaluate {tmp_path / 'r'} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_an_abbreviated_option_is_not_taken_for_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "x", "--form", "markdown"]) == 2
    assert "did you mean '--format'?" in one_line(capsys)
