"""The command line's front door: commands, exit statuses, one line per error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quorate import __version__
from quorate.cli.main import COMMANDS, main

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
    assert "did you mean 'train'?" in one_line(capsys)


def test_missing_run_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "nowhere"]) == 1
    assert one_line(capsys) == "quorate evaluate: nowhere is not a folder: expected a run folder written by quorate train"


def test_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "x", "--formt", "table"]) == 2
    assert "did you mean '--format'?" in one_line(capsys)
    assert main(["evaluate"]) == 2
    assert "runs" in one_line(capsys)
    assert main(["evaluate", "x", "--format", "html"]) == 2
    assert "format" in one_line(capsys)
    assert main(["evaluate", "x", "--output", "x.txt"]) == 1
    assert ".json or .md" in one_line(capsys)


def test_traceback_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_TRACEBACK", "1")
    assert main(["evaluate", "nowhere"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_installed_command() -> None:
    done = subprocess.run([sys.executable, "-m", "quorate.cli.main", "evalute"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"quorate: unknown command 'evalute'; did you mean 'evaluate'? (commands: {', '.join(COMMANDS)})\n"


def test_nobody_reads_the_output() -> None:
    command = f"{sys.executable} -m quorate.cli.main --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
