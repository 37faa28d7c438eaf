"""Deadlines: the last completed prefix at once, never a partial stage; what is not begun; errors; one prediction at a time.

Stages wait for events, and where times are decided on a clock of the test's own, so that no test depends on how fast it runs.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quorate.cascade import Anytime, deadline
from quorate.cascade import anytime as module
from quorate.cascade.deadline import PATIENCE, WEIGHT, Pace

pytestmark = pytest.mark.deciding
X = np.zeros((4, 2))
PATIENT = 60.0  # seconds that no test waits, unless something hangs


class Scripted:
    """A stage with one member that says the logits (k, 0); before it answers it does what it is told."""

    def __init__(self, k: int, does: Callable[[], object] = lambda: None) -> None:
        self.k, self.does, self.name, self.macs = k, does, f"f{k}", 1.0
        self.reads = self.writes = self.drops = ()
        self.calls = 0

    def __call__(self, x: Any, carry: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        self.calls += 1
        self.does()
        return np.tile([float(self.k), 0.0], (1, len(x), 1)), {}


class Clock:
    """A clock that stands still unless a stage moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for place in (module, deadline):
            monkeypatch.setattr(place, "time", SimpleNamespace(monotonic=lambda: self.now))

    def takes(self, seconds: float) -> Callable[[], None]:
        def does() -> None:
            self.now += seconds

        return does


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def raises(error: BaseException) -> Callable[[], None]:
    def does() -> None:
        raise error

    return does


# --- time is up ------------------------------------------------------------------------------------------------------


def test_the_last_completed_prefix_at_once_while_the_stage_under_way_ends_on_its_own() -> None:
    release, ended = threading.Event(), threading.Event()

    def slow() -> None:
        assert release.wait(PATIENT)
        ended.set()

    stages = [Scripted(0), Scripted(1), Scripted(2, slow), Scripted(3)]
    made = Anytime(stages, combine="logits")
    step = made.predict(X, seconds=0.2)
    assert (step.stage, step.name, step.macs, step.late) == (1, "f1", 2.0, False)
    np.testing.assert_array_equal(step.probs, made_alone(stages[:2]).probs)
    assert not ended.is_set()  # the answer did not wait for it
    later: list[Any] = []
    follower = threading.Thread(target=lambda: later.append(made.predict(X, stages=1)))
    follower.start()
    follower.join(0.05)
    assert follower.is_alive()  # the next prediction waits for the stage under way
    assert stages[0].calls == 1
    release.set()
    follower.join(PATIENT)
    assert ended.is_set()
    assert [stage.calls for stage in stages] == [2, 1, 1, 0]  # no stage was begun after the deadline
    assert later[0].stage == 0


def made_alone(stages: list[Scripted]) -> Any:
    return Anytime([Scripted(stage.k) for stage in stages], combine="logits").predict(X)


def test_all_stages_where_there_is_time_and_the_same_answer_bit_for_bit() -> None:
    stages = [Scripted(k) for k in range(4)]
    made = Anytime(stages, temperatures=[1, 2, 3, 4])
    for limit in ({"seconds": PATIENT}, {"deadline": time.monotonic() + PATIENT}, {"seconds": 1e300}):
        step, plain = made.predict(X, **limit), made.predict(X)
        for name in ("label", "probs", "uncertainty"):
            np.testing.assert_array_equal(getattr(step, name), getattr(plain, name))
        assert (step.stage, step.macs, step.late) == (3, 4.0, False)


def test_the_first_stage_is_always_waited_for_and_then_late(clock: Clock) -> None:
    made = Anytime([Scripted(0, clock.takes(2)), Scripted(1)])
    assert (made.predict(X, seconds=2.5).stage, made.predict(X, seconds=2.5).late) == (1, False)
    step = made.predict(X, seconds=1)
    assert (step.stage, step.late) == (0, True)
    step = made.predict(X, deadline=clock.now - 50)
    assert (step.stage, step.late, step.seconds) == (0, True, 2.0)
    assert made.stages[1].calls == 2  # type: ignore[attr-defined]


def test_a_late_first_stage_wakes_a_caller_whose_time_has_run_out() -> None:
    started, release = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        assert release.wait(PATIENT)

    made = Anytime([Scripted(0, slow), Scripted(1)])
    found: list[Any] = []
    caller = threading.Thread(target=lambda: found.append(made.predict(X, seconds=0.01)))
    caller.start()
    assert started.wait(PATIENT)
    caller.join(0.1)
    assert caller.is_alive()
    release.set()
    caller.join(PATIENT)
    assert (found[0].stage, found[0].late) == (0, True)


def test_a_stage_that_ends_after_the_deadline_is_thrown_away(clock: Clock) -> None:
    made = Anytime([Scripted(0, clock.takes(1)), Scripted(1, clock.takes(5)), Scripted(2)])
    step = made.predict(X, seconds=3)
    assert (step.stage, step.late, step.seconds) == (0, False, 1.0)
    assert [stage.calls for stage in made.stages] == [1, 1, 0]  # type: ignore[attr-defined]


# --- what is begun ---------------------------------------------------------------------------------------------------


def test_a_stage_that_would_not_be_ready_is_not_begun(clock: Clock) -> None:
    made = Anytime([Scripted(0, clock.takes(1)), Scripted(1, clock.takes(5)), Scripted(2)])
    calls = lambda: [stage.calls for stage in made.stages]  # type: ignore[attr-defined]  # noqa: E731
    for count in (1, 2):  # the first run warms up and the second is taken, at any limit
        assert made.predict(X, seconds=3).stage == 0
        assert calls() == [count, count, 0]
    assert made.predict(X, seconds=3).stage == 0
    assert calls() == [3, 2, 0]  # known by now: one second of the first, five of the next
    assert made.predict(X, seconds=6.1).stage == 2
    assert calls() == [4, 3, 1]
    assert made.predict(np.zeros((64, 2)), seconds=3).stage == 0
    assert calls() == [5, 4, 1]  # of so many rows nothing is known
    assert made.predict(X).stage == 2
    assert calls() == [6, 5, 2]  # without a limit all are run


def test_times_count_where_every_answer_was_asked_for(clock: Clock) -> None:
    made = Anytime([Scripted(0, clock.takes(1)), Scripted(1, clock.takes(8))])
    for _ in range(3):  # members of a device that works on its own are not there yet when a stage returns
        made.predict(X)
    made.predict(X, seconds=100)
    assert [made._pace.expected(k, 4) for k in (0, 1)] == [None, None]
    assert [step.seconds for step in made.steps(X)] == [1.0, 9.0]
    assert [made._pace.expected(k, 4) for k in (0, 1)] == [1.0, 8.0]
    assert made._pace.expected(0, 7) == pytest.approx(7 / 4)  # as many binary digits
    assert made._pace.expected(0, 8) is None


def test_pace_is_a_moving_mean_that_forgets_a_disturbance() -> None:
    pace = Pace()
    pace.note_(0, 4, 1000.0)
    assert pace.expected(0, 4) is None
    assert pace.admits_(0, 4, -1.0)  # unknown: begun
    pace.note_(0, 4, 8.0)
    pace.note_(0, 5, 20.0)
    assert pace.expected(0, 4) == pytest.approx(4 * (2 + WEIGHT * (4 - 2)))
    assert pace.expected(1, 4) is None
    pace = Pace()
    for seconds in (1.0, 2.0):
        pace.note_(0, 1, seconds)
    assert pace.admits_(0, 1, 2.0)
    refusals = 0
    while not pace.admits_(0, 1, 1.0):
        refusals += 1
    assert refusals == int(np.ceil(np.log(0.5) / np.log(PATIENCE))) == 35


# --- errors, threads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{}, {"seconds": PATIENT}])
@pytest.mark.parametrize("at", [0, 2])
def test_errors_of_a_stage_reach_the_caller_and_do_no_lasting_harm(limit: dict[str, float], at: int) -> None:
    stages = [Scripted(k) for k in range(3)]
    made = Anytime(stages)
    for error in (OSError("the device is gone"), KeyboardInterrupt("stopped")):
        stages[at].does = raises(error)
        with pytest.raises(type(error), match=str(error)) as caught:
            made.predict(X, **limit)
        assert caught.value is error
    stages[at].does = lambda: None
    assert made.predict(X, **limit).stage == 2


def test_errors_of_a_late_first_stage_reach_the_caller(clock: Clock) -> None:
    def late() -> None:
        clock.now += 5
        raise OSError("late and wrong")

    with pytest.raises(OSError, match="late and wrong"):
        Anytime([Scripted(0, late)]).predict(X, seconds=1)


def test_an_error_after_the_deadline_is_thrown_away_with_its_result_but_logged(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def late() -> None:
        clock.now += 5
        raise OSError("too late to matter")

    made = Anytime([Scripted(0), Scripted(1, late)])
    with caplog.at_level(logging.ERROR, logger="quorate.cascade.deadline"):
        assert made.predict(X, seconds=1).stage == 0
        made.predict(X, stages=1)  # waits until the worker has ended
    assert "failed" in caplog.text
    assert "too late to matter" in caplog.text


def test_predictions_of_several_threads_come_one_after_the_other() -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        time.sleep(0.001)
        with guard:
            inside -= 1

    made = Anytime([Scripted(k, enter) for k in range(3)])
    limits: list[dict[str, Any]] = [{}, {"seconds": PATIENT}, {"stages": 2}, {"seconds": PATIENT}]
    found: list[int] = []
    threads = [threading.Thread(target=lambda limit=limit: found.append(made.predict(X, **limit).stage)) for limit in limits]
    threads.append(threading.Thread(target=lambda: found.append(list(made.steps(X))[-1].stage)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENT)
    assert sorted(found) == [1, 2, 2, 2, 2]
    assert most == 1


def test_stages_run_in_one_thread_of_their_own_only_under_a_time_limit_and_see_context_variables() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    where: list[int] = []
    seen: list[str] = []

    def note() -> None:
        where.append(threading.get_ident())
        seen.append(variable.get())

    made = Anytime([Scripted(0, note)])
    variable.set("the caller's")
    made.predict(X)
    list(made.steps(X))
    assert set(where) == {threading.get_ident()}
    for _ in range(3):
        made.predict(X, seconds=PATIENT)
    assert threading.get_ident() not in where[2:]
    assert len(set(where[2:])) == 1
    assert set(seen) == {"the caller's"}
    workers = [thread for thread in threading.enumerate() if thread.ident == where[-1]]
    del made
    gc.collect()
    workers[0].join(PATIENT)
    assert not workers[0].is_alive()  # the thread goes with its owner
