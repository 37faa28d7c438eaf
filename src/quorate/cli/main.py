"""``quorate COMMAND …``: finds the command, and turns what goes wrong into one line and an exit status.

0 = done, 1 = the request can't be met (one line says why), 2 = wrong arguments, 128 + n = stopped by signal n with everything saved.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import quorate
from quorate._validation import nearest
from quorate.cli.usage import UsageError

__all__ = ["COMMANDS", "UsageError", "main"]

COMMANDS = {
    "demo": "train, compare, decide early and report, on the built-in digits or on idx files",
    "train": "train an ensemble by a recipe and the options given; the same command goes on after an interruption",
    "evaluate": "print the table of saved runs, or certify deployed policies again on fresh rows",
    "plan": "find the best cascades over any models by cost, from their stored outputs, and write a certified policy",
    "export": "write finished runs or ONNX files and a policy as a bundle, which runs without PyTorch",
    "inspect": "show what a bundle is and how it decides, and verify it",
    "tune": "find the fastest kernels for a bundle's tickets on this machine",
    "predict": "answer every row of files by a bundle; the same command goes on after an interruption",
}


STOPPED = {
    "export": "stopped; nothing was written, a bundle that was there is as it was: run the same command again",
    "inspect": "stopped",
    "tune": "stopped; stages that were finished are kept",
}


class _Terminated(KeyboardInterrupt):
    """SIGTERM outside of a training, which handles it itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: no second complaint at exit
        return 0


def _main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if name == "--version":
        print(f"quorate {quorate.__version__}")
        return 0
    if name not in COMMANDS:
        return _fail("quorate", f"unknown command {name!r}{nearest(name, list(COMMANDS))} (commands: {', '.join(COMMANDS)})", 2)
    prefix = f"quorate {name}"
    try:
        with _working_folder_first(), _terminable():
            status: int = importlib.import_module(f"quorate.cli.{name}").run(arguments[1:])
        return status
    except UsageError as error:
        return _fail(prefix, f"{error} (see {prefix} --help)", 2)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        return _fail(prefix, _reason(error), 1)
    except KeyboardInterrupt as error:
        status = 128 + (signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT)
        return _fail(prefix, STOPPED.get(name, "stopped; what was saved is still there: run the same command to go on"), status)
    except Exception as error:
        number = getattr(error, "signal", None)  # quorate.training.Interrupted, which is not imported for its name alone
        if number is None:
            raise
        return _fail(prefix, str(error), 128 + int(number))


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """Class paths start in the working folder, as with ``python -m``; a console script's search path has its own folder there."""
    before = list(sys.path)
    if "" not in before[:1]:
        sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, unless the caller has a handler of its own or this is no main thread."""

    def stop(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _reason(error: BaseException) -> str:
    if missing := quorate.missing_extra(error):
        return f"needs {missing}"
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {text}"
    return text or type(error).__name__


def _fail(prefix: str, text: str, status: int) -> int:
    if os.environ.get("QUORATE_TRACEBACK") and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    print(f"{prefix}: {' '.join(text.split())}", file=sys.stderr)
    return status


def _help() -> str:
    lines = [f"  {name:10s}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: quorate COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "quorate COMMAND --help tells the options. Errors are one line; QUORATE_TRACEBACK=1 shows where they come from.",
        ]
    )
