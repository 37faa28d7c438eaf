"""Ctrl-C and SIGTERM in the middle of a long distillation: the step is finished, what was saved stays, the same call goes on."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from quorate.training.callbacks import SIGNALS, Interrupted


class Stopper:
    """Takes over the signals inside a ``with`` block. A second signal is a KeyboardInterrupt at once.

    Args:
        folder: where the state is kept, for the message; None if nothing is, then signals are left alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.asked: int | None = None
        self.saved = "no round"
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if self.folder is not None and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.install_()
        return self

    def install_(self) -> None:
        """Answer the signals (again, where a library put handlers of its own)."""
        for number in self._before:
            signal.signal(number, self._ask)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # None: installed by other than Python, can't be put back
                signal.signal(number, handler)
        if (
            kind is None and self.asked is not None
        ):  # it came when there was nothing left to stop: not lost on what goes on from here
            signal.raise_signal(self.asked)

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number

    def check(self) -> None:
        """Raise :class:`quorate.training.Interrupted` if a signal came."""
        if self.asked is not None:
            name = signal.Signals(self.asked).name
            raise Interrupted(
                f"stopped by {name}; {self.saved} saved in {self.folder}: run the same command to go on with the round",
                self.asked,
            )
