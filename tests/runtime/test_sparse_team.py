"""Threads that work together: errors and interrupts in any part, processes that fork or end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from quorate.runtime.sparse.sparse import SparseNetwork
from quorate.runtime.sparse.team import Table, Team
from quorate.runtime.sparse.tuning import Tuning
from sparse_networks import residual

SPARSE = Tuning(engine={"latency": "sparse", "throughput": "sparse"})


def taken(threads: int) -> Team:
    team = Team(threads)
    assert team.take()
    return team


def test_only_one_has_the_threads() -> None:
    team = taken(2)
    assert not team.take()
    team.leave()
    assert team.take()
    assert not Team(1).take()


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_in_one_part_waits_for_the_others(bad: int) -> None:
    team, over, released = taken(3), [], []

    def work(part: int) -> None:
        if part == bad:
            raise OSError(part)
        time.sleep(0.05)
        over.append(part)

    with pytest.raises(OSError, match=str(bad)):
        team.together(work, 3, lambda: released.append(1))
    left = len(over)
    time.sleep(0.1)
    assert len(over) == left, "nobody works any more"
    assert released
    team.together(over.append, 3)
    assert {0, 1, 2} <= set(over)


def test_a_shared_work_stops_at_an_error() -> None:
    team, done = taken(2), []

    def work(k: int) -> None:
        if k == 3:
            raise KeyError(k)
        time.sleep(0.01)
        done.append(k)

    with pytest.raises(KeyError):
        team.share(work, 1000)
    assert len(done) < 10
    done.clear()
    team.share(done.append, 100)
    assert sorted(done) == list(range(100))


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, which it does not where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_waits_for_the_others() -> None:
    """What they write to is still there when they do."""
    team, over = taken(2), []

    def work(part: int) -> None:
        if part:
            time.sleep(0.2)
            over.append(part)
        else:
            time.sleep(0.05)  # the other one has begun
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        team.together(work, 2)
    assert over == [1]


def test_a_part_that_never_begins_is_not_waited_for() -> None:
    """An interrupt before this thread's part, when the others are at the barrier already."""
    network = SparseNetwork(residual(0.5, channels=64, side=32), threads=3, tuning=SPARSE)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    want, caught = network(x), list[BaseException]()
    table = next(run for run in network.spaces("latency")._free[3][0]._runs if isinstance(run, tuple))[0]
    assert isinstance(table, Table)
    function: Any = table._function

    def interrupted(at: int, part: int, parts: int) -> None:
        if part == 0:
            time.sleep(0.05)
            raise KeyboardInterrupt
        function(at, part, parts)

    def call() -> None:
        try:
            network(x)
        except BaseException as error:
            caught.append(error)

    table._function = interrupted  # type: ignore[assignment]
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the others wait for ever"
    assert isinstance(caught[0], KeyboardInterrupt)
    assert network.spaces("latency")._free[3] == [], "nobody gets memory that was left in the middle"
    assert np.array_equal(network(x), want)


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:  # noqa: ARG001
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    team = Team(4)
    assert not team.take()
    monkeypatch.undo()
    assert team.take(), "nothing was kept"


ENDING = """
import atexit, os, sys, threading
import numpy as np
sys.path.insert(0, sys.argv[1])
from sparse_networks import residual
from quorate.runtime.sparse.sparse import SparseNetwork, team
from quorate.runtime.sparse.tuning import Tuning

engine = {"latency": "sparse", "throughput": "sparse"}
network = SparseNetwork(residual(0.5, channels=64, side=32), threads=2, tuning=Tuning(engine=engine))
x = np.ones((1, 3, 32, 32), np.float32)
want = network(x)
assert network.spaces("latency").large

def same(who):
    assert np.array_equal(network(x), want)
    print(who, flush=True)

if hasattr(os, "fork"):
    assert team(2).take()  # as another thread might just have
    child = os.fork()
    if child == 0:
        assert team(2).take(), "the child has threads of its own"
        team(2).leave()
        same("child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    team(2).leave()
else:
    print("child")

def late():
    threading.main_thread().join()
    same("late")

threading.Thread(target=late).start()
atexit.register(same, "exit")
"""


def test_a_child_and_the_end_of_a_process() -> None:
    here = __file__.rsplit("runtime", 1)[0]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ENDING, here], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["child", "late", "exit"]
