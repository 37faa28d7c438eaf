"""Sparse against dense calls in turn, and results that are kept one by one.

Dense calls that take over 1.3 times the fastest's time at first are left out: only the fastest one counts. The others run in turn with
the sparse ones, each for a burst long enough that what the one before it left running (threads that wait busily) is of no weight.

    speedup = time of the fastest dense call ÷ time of the sparse one in the same round;  median and quartiles over the rounds
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import packed_speed as speed
from quorate.cost.interleaving import interleaved
from quorate.files import write_json
from quorate.runtime.sparse.trials import least
from runtime_speed import BURST_MS, against, spread

SLOWER = 1.3
Call = Callable[[], Any]
Counted = tuple[Call, int]
HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src" / "quorate"


def raced(
    ours: Mapping[str, Counted], dense: Mapping[str, Counted], required: Mapping[str, float | None], rounds: int, quick: bool
) -> dict[str, Any]:
    """Times and speedups.

    Args:
        ours: sparse calls, and how often each does the work, by name.
        dense: the others.
        required: least speedups by sparse call, None where nothing is asked.
        rounds: of times.
        quick: no bursts, nobody is left out.
    """
    first = {name: _first(call, quick) / count for name, (call, count) in dense.items()}
    best = min(first.values())
    racing = {name: each for name, each in dense.items() if quick or first[name] <= SLOWER * best}
    counted = {**ours, **racing}
    calls = {name: call for name, (call, _) in counted.items()}
    times = interleaved(calls, rounds, warmup=1, least_ms=0 if quick else BURST_MS)
    for name, (_, count) in counted.items():
        times[name] = [each / count for each in times[name]]
    fastest = speed.fastest(times, list(racing))
    return {
        "ms": {name: spread(each) for name, each in times.items()},
        "slower_ms": {name: 1e3 * first[name] for name in dense if name not in racing},
        "fastest": fastest,
        "speedup": {name: against(times, fastest, name) | {"required": required[name]} for name in ours},
    }


def _first(call: Call, quick: bool) -> float:
    """Seconds, the least of a burst, behind two calls that compile and allocate."""
    call()
    return least(call, budget=0 if quick else BURST_MS / 1e3, repeats=1)


def shown(place: str, found: dict[str, Any]) -> None:
    """For the terminal."""
    for name, each in found["ms"].items():
        print(f"{place} {name:34s} {each['median']:10.3f} ms  [{each['q1']:.3f}, {each['q3']:.3f}]")
    for name, gain in found["speedup"].items():
        asked = gain["required"]
        judged = "" if asked is None else f"   ≥ {asked:.2f}: {'met' if gain['median'] >= asked else 'NOT MET'}"
        spans = f"({gain['q1']:.2f}–{gain['q3']:.2f})"
        print(f"{place}, {name}: {gain['median']:.2f} × {spans} against {found['fastest']}{judged}", flush=True)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def sources(folder: Path = SOURCE, scripts: Path = HERE) -> str:
    """What the library and these scripts are, in 12 digits: results of other sources are not gone on with."""
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *scripts.glob("sparse_*.py")]):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


class Store:
    """Figures by place in a file; what is there is not measured again.

    Args:
        path: of the file, written anew with every figure.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """All figures there are."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def once(self, place: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A figure, measured if it is not there."""
        known = self.read()
        if place not in known:
            known[place] = measure()
            write_json(self.path, known)
        found: dict[str, Any] = known[place]
        return found
