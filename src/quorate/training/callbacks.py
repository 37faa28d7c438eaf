"""Lightning callbacks of a training: saved states and signals, the metrics files, progress."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from quorate.files import atomic, write_text
from quorate.training.imports import lightning

Callback: Any = lightning().Callback
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def same_signals() -> Iterator[None]:
    """Whatever answers Ctrl-C and SIGTERM before answers them afterwards; Lightning would leave a handler of its own behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: installed by other than Python, can't be put back
                signal.signal(number, handler)


class Interrupted(Exception):
    """A training was asked to stop (Ctrl-C, SIGTERM) and saved its state; ``signal`` is the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class SavedState(Callback):
    """Writes the state to resume from, atomically: at the ends of epochs, every so many seconds between, and when asked to stop.

    Ctrl-C and SIGTERM finish the step, save and raise :class:`Interrupted`; a second one raises KeyboardInterrupt at once. To be
    used inside :func:`same_signals`.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.asked: int | None = None
        self._last = time.monotonic()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Take over the signals, if this is the main thread."""
        self._last = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Save inside an epoch when it is time or asked for; after its last batch the epoch's end does it."""
        last = batch_idx + 1 >= trainer.num_training_batches
        if not last and (self.asked is not None or time.monotonic() - self._last >= self.seconds):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Save at an epoch's end: the last one always, others unless the last saved state is very fresh."""
        final = trainer.current_epoch + 1 >= trainer.max_epochs
        if final or self.asked is not None or time.monotonic() - self._last >= min(self.seconds, 2.0):
            self._save(trainer)

    def _save(self, trainer: Any) -> None:
        with atomic(self.path) as temporary:
            trainer.save_checkpoint(temporary)
        self._last = time.monotonic()
        self.stop_if_asked(trainer)

    def stop_if_asked(self, trainer: Any) -> None:
        """Raise :class:`Interrupted` if a signal came and has not been answered."""
        if self.asked is not None:
            name = signal.Signals(self.asked).name
            raise Interrupted(
                f"stopped by {name} at epoch {trainer.current_epoch}, step {trainer.global_step}; saved in {self.path.parent}: "
                "run the same command to go on",
                self.asked,
            )


class MetricsFile(Callback):
    """Keeps one row per epoch and writes them all to ``metrics.csv``, atomically. The rows are part of the saved state."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Add what the epoch came to."""
        self.rows += [dict(row) for row in self.of(pl_module)]
        if self.path is not None:
            names = list(self.rows[0])
            lines = [",".join(names), *(",".join(repr(row[name]) for name in names) for row in self.rows)]
            write_text(self.path, "\n".join(lines) + "\n")

    def of(self, pl_module: Any) -> list[dict[str, float]]:
        """The epoch's rows."""
        return [pl_module.row]

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after them."""
        self.rows = [dict(row) for row in state["rows"]]


class MembersFile(MetricsFile):
    """The same of ``members.csv``: one row per epoch and member."""

    def of(self, pl_module: Any) -> list[dict[str, float]]:
        """The epoch's rows, one per member."""
        return list(pl_module.member_rows)


class Progress(Callback):
    """A bar on a terminal; elsewhere a line about every tenth of the epochs."""

    def __init__(self, label: str, write: Callable[[str], None] | None = None) -> None:
        self.label = label
        self.write = write or (lambda text: print(text, file=sys.stderr, flush=True))
        self._stack = contextlib.ExitStack()
        self._bar: Any = None
        self._task: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, where a resumed run is."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if trainer.current_epoch or trainer.global_step:
            self.write(f"{self.label}: going on at epoch {trainer.current_epoch}, step {trainer.global_step}")
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
            self._bar = self._stack.enter_context(Progress(*columns, console=console))
            total = trainer.max_epochs * trainer.num_training_batches
            self._task = self._bar.add_task(
                self.label, total=total, completed=trainer.global_step, note=self._note(trainer, pl_module)
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Say how the epoch went."""
        done, every = trainer.current_epoch + 1, max(1, trainer.max_epochs // 10)
        if self._bar is not None:
            self._bar.update(self._task, note=self._note(trainer, pl_module))
        elif done % every == 0 or done == trainer.max_epochs:
            self.write(f"{self.label}: {self._note(trainer, pl_module)}")

    def _note(self, trainer: Any, pl_module: Any) -> str:
        row = pl_module.row
        name = "rmse" if "val_rmse" in row else "accuracy"
        figures = f", loss {row['train_loss']:.4f}, validation {name} {row[f'val_{name}']:.4f}" if row else ""
        return f"epoch {trainer.current_epoch + bool(row)}/{trainer.max_epochs}{figures}"

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Close the bar, which would hide the cursor for ever."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Close the bar."""
        self._stack.close()
        self._bar = None
