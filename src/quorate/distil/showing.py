"""Progress of a distillation that a person can follow: a status line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any


class Shown:
    """Says what happens. Silent if ``progress`` is False.

    On a terminal a bar shows the search of the round; what a round came to is a line that stays, there and elsewhere.
    """

    def __init__(self, label: str, progress: bool, write: Callable[[str], None] | None = None) -> None:
        self.label, self.progress = label, progress
        self._write = write
        self._stack = contextlib.ExitStack()
        self._bar: Any = None
        self._task: Any = None
        self._round = ""

    def __enter__(self) -> Shown:
        if self.progress and self._write is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            console = Console(stderr=True)
            if console.is_terminal:
                columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TimeElapsedColumn())
                self._bar = self._stack.enter_context(Progress(*columns, console=console, transient=True))
                self._task = self._bar.add_task(self.label, total=1.0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def line(self, text: str) -> None:
        """A line that stays."""
        if not self.progress:
            return
        if self._write is not None:
            self._write(f"{self.label}: {text}")
        elif self._bar is not None:
            self._bar.console.print(f"{self.label}: {text}", highlight=False, markup=False)
        else:
            print(f"{self.label}: {text}", file=sys.stderr, flush=True)

    def begins(self, what: str) -> None:
        """A round's search begins."""
        self._round = what
        self.say("", 0.0)
        if self._bar is None:
            self.line(what)

    def say(self, what: str, done: float) -> None:
        """What is being trained, and how much of the search is done."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self.label}: {self._round} · {what}", completed=done)

    def round(self, row: Mapping[str, Any]) -> None:
        """What an accepted round came to."""
        edge = "" if row["edge_mean"] is None else f", edge {row['edge_mean']:.3g} (held out {row['edge_held']:.3g})"
        close = f"agreement {row['agreement']:.1%}, " if "agreement" in row else ""
        right = f", validation accuracy {row['accuracy']:.4f}" if "accuracy" in row else ""
        share = "" if row["cost_share"] is None else f" = {row['cost_share']:.1%} of the teacher"
        self.line(
            f"round {row['round']}: {row['student']}; {row['trained']} tried{edge}; mean error {row['mean_error']:.3g}, largest "
            f"{row['max_error']:.3g} ≤ {row['certificate']:.3g} certified; {close}cost so far {row['macs']:,} MACs{share}{right}"
        )
