"""Threads: tables of calls, run by one thread or by several that wait for each other after every call.

A table is run by one call of machine code, outside Python's lock. With several parts every part goes through the whole table; after each
entry it counts itself in and waits until all have. Who waits spins, and yields the processor from time to time, so that parts make
progress wherever they are put. Only one table at a time is run by all threads: who comes meanwhile runs his alone, with the same
results bit for bit.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.kernels.planes import aligned
from quorate.runtime.sparse.machine.code import routine
from quorate.runtime.sparse.machine.emitting import SIGNATURE, Writer
from quorate.runtime.sparse.machine.host import Host, here

CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
SPINS = 256
"""Looks at the counter between two yields."""


def _table(host: Host) -> str:
    """The routine that runs a table: words are the table, its number of entries, the counter, the system's yield or 0."""
    w = Writer()
    if host.x86:
        w.lines.append("declare void @llvm.x86.sse2.pause()")
    w.lines.append(SIGNATURE.format(name="run"))
    w.label("entry")
    table, count, counter, give = w.word(0, "ptr"), w.word(1), w.word(2, "ptr"), w.word(3, "ptr")
    alone, no_yield = w("icmp eq i64 %parts, 1"), w(f"icmp eq ptr {give}, null")
    w.do(f"%any = icmp ne i64 {count}, 0")
    w.do("br i1 %any, label %call, label %end")
    w.label("call")
    w.do("%i = phi i64 [0, %entry], [%next, %done]")
    entry = w(f"getelementptr [2 x ptr], ptr {table}, i64 %i")
    function = w(f"load ptr, ptr {entry}, align 8")
    words = w(f"load ptr, ptr {w.step(entry, 8)}, align 8")
    w.do(f"call void {function}(ptr {words}, i64 %part, i64 %parts)")
    w.do("%next = add i64 %i, 1")
    w.do(f"br i1 {alone}, label %done, label %count")
    w.label("count")
    w.do(f"%old = atomicrmw add ptr {counter}, i64 1 acq_rel")
    w.do("%until = mul i64 %next, %parts")
    w.do("br label %wait")
    w.label("wait")
    w.do("%spin = phi i64 [1, %count], [%spun, %again]")
    w.do(f"%now = load atomic i64, ptr {counter} acquire, align 8")
    w.do("%all = icmp uge i64 %now, %until")
    w.do("br i1 %all, label %done, label %look")
    w.label("look")
    if host.x86:
        w.do("call void @llvm.x86.sse2.pause()")
    w.do(f"%turn = urem i64 %spin, {SPINS}")
    w.do("%long = icmp eq i64 %turn, 0")
    w.do(f"%stay = select i1 {no_yield}, i1 false, i1 %long")
    w.do("br i1 %stay, label %give, label %again")
    w.label("give")
    w.do(f"call void {give}()")
    w.do("br label %again")
    w.label("again")
    w.do("%spun = add i64 %spin, 1")
    w.do("br label %wait")
    w.label("done")
    w.do(f"%more = icmp ult i64 %next, {count}")
    w.do("br i1 %more, label %call, label %end")
    w.label("end")
    w.do("ret void")
    w.lines.append("}")
    return w.text()


@cache
def _yielding() -> int:
    """The address of the system's function that lets other threads run; 0 where none is known."""
    try:
        library = ctypes.windll.kernel32 if os.name == "nt" else ctypes.CDLL(None)  # type: ignore[attr-defined,unused-ignore]
        return ctypes.cast(library.SwitchToThread if os.name == "nt" else library.sched_yield, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


class Table:
    """Calls one after the other.

    Args:
        calls: (address of the code, its words) of each; the words' arrays are kept and may be changed between runs.
    """

    def __init__(self, calls: Sequence[tuple[int, NDArray[np.int64]]]) -> None:
        self._calls = list(calls)
        self._entries = np.array([[address, words.ctypes.data] for address, words in calls], np.int64).reshape(-1, 2)
        self._counter = aligned(8, np.int64)
        self._args = np.array([self._entries.ctypes.data, len(calls), self._counter.ctypes.data, _yielding()], np.int64)
        self._function = CALL(routine(_table(here()), here()).address)
        self._at = self._args.ctypes.data
        self.kept: object = None  # what else has to stay alive

    def singles(self) -> list[Table]:
        """Each call as a table."""
        return [Table([call]) for call in self._calls]

    def run(self, team: Team | None = None, parts: int = 1, kept: object = None) -> None:
        """Run it in so many parts, by a team where it is more than one; never by two callers at once. ``kept``: what has to stay alive."""
        if parts == 1 or team is None:
            self._function(self._at, 0, 1)
            return
        self._counter[0] = 0

        def one(part: int, kept: object = kept) -> None:  # noqa: ARG001
            self._function(self._at, part, parts)

        team.together(one, parts, self._release)

    def _release(self) -> None:
        """Nobody waits any more: what is computed is of no use, but all that is read and written stays inside its buffers."""
        self._counter[0] = 1 << 62


class _Work:
    """What is given to the threads at once. A part belongs to who takes it out of ``open``; it is ``left`` until it is over."""

    def __init__(self, run: Callable[[int], None], parts: int, release: Callable[[], None]) -> None:
        self.run, self.parts, self.release = run, range(1, parts), release
        self.open, self.left = set(self.parts), set(self.parts)
        self.errors: list[BaseException] = []
        self._over: SimpleQueue[None] = SimpleQueue()

    def do(self, part: int) -> None:
        """A part, in a thread of the team."""
        try:
            self.open.remove(part)
        except KeyError:
            return  # it was called off
        try:
            self.run(part)
        except BaseException as error:  # the caller raises it
            self.errors.append(error)
            self.release()
        finally:
            self.left.remove(part)
            self._over.put(None)

    def call_off(self) -> None:
        """What nobody has begun is not done, and nobody waits for it."""
        for part in self.parts:
            try:
                self.open.remove(part)
            except KeyError:
                continue
            self.left.remove(part)
        self.release()

    def wait(self) -> None:
        """Until nothing is left, whatever interrupts: threads that still ran would write to memory that others get."""
        interrupted: BaseException | None = None
        while self.left:
            try:
                self._over.get()
            except BaseException as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted


class Team:
    """Threads that are there when they are needed.

    Args:
        threads: how many work at once, with the one that calls.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def take(self) -> bool:
        """Whether the caller may use all threads now; then he has to :meth:`leave` them."""
        if self.threads < 2 or not self._busy.acquire(blocking=False):
            return False
        try:
            while len(self._queues) < self.threads - 1:
                queue: SimpleQueue[tuple[_Work, int]] = SimpleQueue()
                threading.Thread(target=_serve, args=(queue,), name="quorate-sparse", daemon=True).start()
                self._queues.append(queue)
        except BaseException as error:
            self._busy.release()
            if isinstance(error, RuntimeError):  # the system has no more threads, or the interpreter ends
                return False
            raise
        return True

    def leave(self) -> None:
        """Let others use them."""
        self._busy.release()

    def together(self, run: Callable[[int], None], parts: int, release: Callable[[], None] = lambda: None) -> None:
        """run(0) here and run(1) … run(parts − 1) in other threads, all at once; only by who has taken the team.

        It returns, or raises the first error, when all are over. ``release``: called where one of them fails or is never begun, so that
        those that wait for it go on.
        """
        work = _Work(run, parts, release)
        try:
            for part in range(1, parts):
                self._queues[part - 1].put((work, part))
            run(0)
        except BaseException:
            work.call_off()
            raise
        finally:
            work.wait()
        if work.errors:
            raise work.errors[0]

    def share(self, work: Callable[[int], None], count: int) -> None:
        """work(0) … work(count − 1), each once, by whichever thread is free, until one raises; only by who has taken the team."""
        following, failed = itertools.count(), threading.Event()

        def some(_: int) -> None:
            try:
                while not failed.is_set() and (k := next(following)) < count:
                    work(k)
            except BaseException:
                failed.set()
                raise

        self.together(some, min(self.threads, count))

    def _forget(self) -> None:
        """Begin anew; in the child of a fork, which has none of the threads."""
        self._busy = threading.Lock()
        self._queues: list[SimpleQueue[tuple[_Work, int]]] = []


def _serve(queue: SimpleQueue[tuple[_Work, int]]) -> None:
    """A thread of a team; it ends with the process."""
    while True:
        work, part = queue.get()
        work.do(part)
        del work  # or what it holds would live until there is more to do
