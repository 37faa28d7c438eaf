"""Calls timed in turn: their order, what counts as a round, and the ratios of rounds."""

from __future__ import annotations

import gc
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cost import interleaving
from quorate.cost.interleaving import interleaved, quartiles, ratio


class Clock:
    """A clock that stands still but for what the calls take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.log = 0.0, ""
        monkeypatch.setattr(interleaving.time, "perf_counter", lambda: self.now)

    def call(self, name: str, *seconds: float) -> None:
        self.now += seconds[min(self.log.count(name), len(seconds) - 1)]
        self.log += name


def test_takes_the_calls_in_turn_and_gives_each_its_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {"a": lambda: clock.call("a", 9, 9, 9, 0.002, 0.004, 0.003), "b": lambda: clock.call("b", 7, 7, 7, 0.001)}
    times = interleaved(calls, repeats=3, warmup=2)
    assert clock.log == "aabb" + "ab" + "ab" * 3  # warm-up, how long each takes, rounds
    assert times == {"a": pytest.approx([2.0, 4.0, 3.0]), "b": pytest.approx([1.0] * 3)}


def test_repeats_short_calls_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times = interleaved({"a": lambda: clock.call("a", 0.0002)}, repeats=2, warmup=1, least_ms=1.0)
    assert len(clock.log) == 1 + 1 + 2 * 5
    assert times["a"] == pytest.approx([0.2, 0.2])


def test_waits_before_and_after_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times = interleaved(
        {"a": lambda: None}, repeats=2, warmup=1, wait=lambda: clock.call("w", 0.05, 0.05, 0.05, 0.003), least_ms=1
    )
    assert len(clock.log) == 2 * (1 + 2)
    assert times["a"] == pytest.approx([3.0, 3.0])


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_meanwhile_and_is_as_before_afterwards(enabled: bool) -> None:
    seen = []

    def failing() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 6:
            raise ZeroDivisionError

    gc.enable() if enabled else gc.disable()
    try:
        interleaved({"a": failing}, repeats=1, warmup=1, least_ms=0)
        assert gc.isenabled() is enabled
        with pytest.raises(ZeroDivisionError):
            interleaved({"a": failing}, repeats=1, warmup=1, least_ms=0)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert seen == [enabled, enabled, False] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "^repeats: expected an int of at least 1, got 0; pass a whole number$"),
        ({"repeats": True}, "^repeats: expected an int of at least 1, got True"),
        ({"warmup": 1.5}, "^warmup: expected an int of at least 1, got 1.5"),
    ],
)
def test_numbers_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interleaved({"a": lambda: None}, **options)  # type: ignore[arg-type]


def test_no_calls() -> None:
    with pytest.raises(ValueError, match=r"^calls: expected at least one, got none; pass what to time by name$"):
        interleaved({})


def test_a_ratio_is_of_one_round() -> None:
    times = {"a": [1.0, 20.0, 4.0], "b": [2.0, 40.0, 2.0]}
    assert ratio(times, "a", "b") == (0.5, 0.5, 1.25)
    with pytest.raises(ValueError, match=r"^times: expected one of a, b, got 'c'; name a call that was timed$"):
        ratio(times, "a", "c")


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_quartiles(values: list[float]) -> None:
    found = quartiles(values)
    assert found == pytest.approx(tuple(np.percentile(values, (25, 50, 75))), abs=1e-6)
    assert found[1] == pytest.approx(statistics.median(values), abs=1e-6)
