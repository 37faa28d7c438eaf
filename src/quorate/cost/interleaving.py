"""Times of several calls taken in turn, so that what disturbs one disturbs all: the only ones whose ratios mean something.

    A B C  A B C  A B C  …        one time per call and round; a call too short to be timed alone is run `count` times in a row

A ratio is that of two times of one round; its median over the rounds hardly moves when the machine slows down for some of them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Times = dict[str, list[float]]
LEAST_MS = 1.0


def _nothing() -> None:
    """What to wait for on the CPU."""


def _timed(call: Callable[[], object], count: int, wait: Callable[[], None]) -> float:
    """Milliseconds of one call, of `count` in a row."""
    wait()
    begun = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return 1e3 * (time.perf_counter() - begun) / count


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    repeats: int = 7,
    warmup: int = 2,
    wait: Callable[[], None] = _nothing,
    least_ms: float = LEAST_MS,
) -> Times:
    """Wall-clock milliseconds of each call, one per round, with Python's garbage collector off.

    Args:
        calls: what to time, by name.
        repeats: rounds, at least 1.
        warmup: untimed rounds before, at least 1: they compile, allocate and fill caches. A further one tells how often a call is
            repeated within a round.
        wait: called before and after each time: `torch.cuda.synchronize` for work on a GPU.
        least_ms: a time is taken over at least about so long.

    Raises:
        ValueError: no calls, or a number out of range.
    """
    if not calls:
        raise ValueError("calls: expected at least one, got none; pass what to time by name")
    for name, value in (("repeats", repeats), ("warmup", warmup)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an int of at least 1, got {value!r}; pass a whole number")
    for call in calls.values():
        for _ in range(warmup):
            call()
    counts = {name: max(1, round(least_ms / max(_timed(call, 1, wait), 1e-6))) for name, call in calls.items()}
    times: Times = {name: [] for name in calls}
    collected = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, call in calls.items():
                times[name].append(_timed(call, counts[name], wait))
    finally:
        if collected:
            gc.enable()
    return times


def ratio(times: Mapping[str, Sequence[float]], name: str, base: str) -> tuple[float, float, float]:
    """(first quartile, median, third quartile) of the rounds' times of `name` over those of `base`.

    Raises ValueError for a name that was not timed.
    """
    for each in (name, base):
        if each not in times:
            raise ValueError(f"times: expected one of {', '.join(times)}, got {each!r}; name a call that was timed")
    return quartiles([a / b for a, b in zip(times[name], times[base], strict=True)])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile (linear interpolation); three times the value where there is one only."""
    if len(values) == 1:
        return (values[0],) * 3
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high
