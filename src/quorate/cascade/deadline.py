"""Work done in steps under a deadline: at the deadline the last completed step is handed over, and what is under way is left to end.

    step      0 ───────●  1 ─────●  2 ──────●  3 ─────────────┆──●
    caller    waits ────────────────────────────────────────● gets step 2      deadline ┆, the end of step 3 is thrown away

The steps run in a worker thread, the caller sleeps until the deadline or until all is done; so a step that takes longer than it used to
costs the caller no time. A step is not begun when its own record (:class:`Pace`) says that it would not be ready. The first one is
always begun and waited for, since there is nothing to hand over without it.

Times are seconds of ``time.monotonic``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Generic, TypeVar

Done = TypeVar("Done")
WEIGHT = 0.25  # of a new time in the moving mean
PATIENCE = 0.98  # an expectation that keeps a step from being begun is multiplied by it


class Pace:
    """Expected seconds of each step: a moving mean of its seconds per row, apart for numbers of rows with as many binary digits.

    The first time at a number of rows is not taken: it holds warming up. Later ones are, with weight ``WEIGHT``. An expectation that
    keeps a step from being begun shrinks by the factor ``PATIENCE``, so that a disturbance cannot shut out a step for good: one that
    took twice the time left is tried again after 35 refusals, and measured anew.
    """

    def __init__(self) -> None:
        self._per_row: dict[tuple[int, int], float | None] = {}

    def expected(self, step: int, rows: int) -> float | None:
        """Seconds that the step takes for so many rows; None where it is not known."""
        per_row = self._per_row.get((step, rows.bit_length()))
        return None if per_row is None else per_row * rows

    def note_(self, step: int, rows: int, seconds: float) -> None:
        """Take the time of one run into account."""
        key, new = (step, rows.bit_length()), seconds / rows
        if key not in self._per_row:
            self._per_row[key] = None
            return
        old = self._per_row[key]
        self._per_row[key] = new if old is None else old + WEIGHT * (new - old)

    def admits_(self, step: int, rows: int, seconds: float) -> bool:
        """Whether the step would be ready in so many seconds; yes where that is not known."""
        expected = self.expected(step, rows)
        if expected is None or expected <= seconds:
            return True
        self._per_row[step, rows.bit_length()] = PATIENCE * expected / rows
        return False


class Relay(Generic[Done]):
    """What passes between the caller and the worker in one piece of work: the last completed step, errors, that time is up."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._changed = threading.Condition()
        self._last: Done | None = None
        self._late = self._up = self._ended = False
        self._error: BaseException | None = None

    def work(self, begin: Callable[[int, float], bool], step: Callable[[], Done | None], ended: Callable[[], None]) -> None:
        """In the worker: call ``step`` until it gives None, time is up, or ``begin(k, seconds left)`` says no; then ``ended``.

        An error in a step reaches the caller; where its result would have been thrown away, the log.
        """
        error: BaseException | None = None
        try:
            k = 0
            while k == 0 or (not self._up and begin(k, self.deadline - time.monotonic())):
                done = step()
                if done is None or not self._handed_over(done):
                    break
                k += 1
        except BaseException as raised:
            error = raised
        ended()
        with self._changed:
            if error is not None and self._last is not None and (self._up or time.monotonic() > self.deadline):
                logging.getLogger(__name__).error("a step that was not ready at the deadline failed", exc_info=error)
            else:
                self._error = error
            self._ended = True
            self._changed.notify()

    def _handed_over(self, done: Done) -> bool:
        """Put a completed step where the caller finds it, unless it comes too late and there is an earlier one."""
        with self._changed:
            late = self._up or time.monotonic() > self.deadline
            if late and self._last is not None:
                return False
            self._last, self._late = done, late
            if self._up:
                self._changed.notify()
            return not late

    def result(self) -> tuple[Done, bool]:
        """In the caller: the last step completed by the deadline, or the first one and True if that is ready only after it."""
        with self._changed:
            try:
                left = self.deadline - time.monotonic()
                self._changed.wait_for(lambda: self._ended, min(max(left, 0.0), threading.TIMEOUT_MAX))
                self._up = True
                self._changed.wait_for(lambda: self._ended or self._last is not None)
            finally:
                self._up = True  # also when the caller is interrupted: no further step is begun
            if self._error is not None:
                raise self._error
            assert self._last is not None
            return self._last, self._late


class Worker:
    """One thread that outlives the pieces of work, since frameworks keep thread pools for each thread that calls them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="quorate-anytime")

    def last(
        self,
        deadline: float,
        begin: Callable[[int, float], bool],
        step: Callable[[], Done | None],
        ended: Callable[[], None],
    ) -> tuple[Done, bool]:
        """The last step completed by the deadline, and whether it is late: see :class:`Relay`. ``ended`` is called once in any case."""
        relay: Relay[Done] = Relay(deadline)
        try:
            self._pool.submit(copy_context().run, relay.work, begin, step, ended)
        except BaseException:
            ended()
            raise
        return relay.result()
