"""Seconds and peak memory of plan() over large pools, and how far its beam search is from trying every chain.

python benchmarks/cascade_planner.py [--rows 100000] [--quick]

Pools of synthetic members with 10 classes, float32 logits and costs from 1 to 2^11, dearer ones less noisy; at most four stages, averaged
or replaced, fronts of ten plans, certified on half as many rows. Large: one call of plan(); the peak is that of the process beyond what it
held before. Required: 12 members × 100,000 rows ≤ 60 s. Gap: five members, 4,000 rows, chains of three, six pools per target, fronts of 24;
how much smaller the area under the beam's front is than under that of every chain, a front being the best figure to be had at each
cost, on the logarithm of cost and above the worst figure of both; 0 where it is larger. Required: ≤ 1 %.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from quorate.cascade.planner import plan
from quorate.outputs import Outputs
from record import commit, write

CLASSES, MEMBERS, POOLS = 10, 12, 6
ALLOWED, GAP = 60.0, 0.01
TARGETS = ("accuracy", "coverage@risk=0.05", "risk@coverage=0.8")
GAPS = ("accuracy", "coverage@risk=0.15")


def pool(seed: int, members: int, rows: int, steepness: float = 0.72) -> dict[str, Outputs]:
    """Members that share what is hard about a row and have noise of their own."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    signal = 4.0 * np.eye(CLASSES, dtype=np.float32)[labels] + 1.2 * rng.normal(size=(rows, CLASSES)).astype(np.float32)
    found = {}
    for m in range(members):
        noise = np.float32(2.4 * steepness**m * rng.uniform(0.85, 1.15))
        logits = signal + noise * rng.normal(size=(rows, CLASSES)).astype(np.float32)
        found[f"member{m}"] = Outputs([logits[None]], labels=labels, costs=[2.0**m])
    return found


def timed(rows: int, members: int, target: str) -> dict[str, Any]:
    """One call of plan on a large pool."""
    val, cal = pool(0, members, rows, 0.85), pool(1, members, rows // 2, 0.85)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    plans = plan(val, target, cal=cal)
    seconds = time.perf_counter() - began
    peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 0) * 1024
    return {"rows": rows, "members": members, "seconds": seconds, "peak_bytes": peak, "plans": len(plans)}


def gap(seed: int, target: str, rows: int) -> float:
    """The area that the beam's front lacks on one pool, as a share."""
    members = pool(100 + seed, 5, rows)
    every, beam = (plan(members, target, search=how, front=24, most=3) for how in ("exhaustive", "beam"))  # type: ignore[arg-type]
    sign = -1.0 if target.startswith("risk") else 1.0
    points = [np.array([(each.figures.cost, sign * each.figures.figure) for each in front]).T for front in (every, beam)]
    low, high = (float(np.log(end(np.concatenate([cost for cost, _ in points])))) for end in (np.min, np.max))
    floor = min(float(figure.min()) for _, figure in points)
    whole, part = (
        float((np.diff(np.append(np.clip(np.log(cost), low, high), high)) * (np.maximum.accumulate(figure) - floor)).sum())
        for cost, figure in points
    )
    return max(0.0, 1 - part / whole) if whole else 0.0


def verdicts(figures: dict[str, dict[str, Any]], required: bool) -> list[str]:
    """Whether what is required is met."""
    lines = []
    for target, each in figures["large"].items():
        if required:
            lines.append(
                f"{target}: {each['seconds']:.1f} s, ≤ {ALLOWED:g} s {'met' if each['seconds'] <= ALLOWED else 'NOT MET'}"
            )
    for target, each in figures["gap"].items():
        lines.append(f"{target}: gap at most {each['most']:.4f}, ≤ {GAP:g} {'met' if each['most'] <= GAP else 'NOT MET'}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write results/cascade-planner.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="four members, 1,500 rows, one pool: that it works, no result")
    chosen = parser.parse_args(argv)
    if chosen.rows < 1_000:
        parser.error(f"--rows {chosen.rows}: expected 1,000 or more")
    members, rows, pools = (4, 1_500, 1) if chosen.quick else (MEMBERS, chosen.rows, POOLS)
    figures: dict[str, dict[str, Any]] = {"large": {}, "gap": {}}
    for target in TARGETS[: 1 if chosen.quick else None]:
        figures["large"][target] = timed(rows, members, target)
        print(target, figures["large"][target], flush=True)
    for target in GAPS[: 1 if chosen.quick else None]:
        gaps = [gap(seed, target, 1_500 if chosen.quick else 4_000) for seed in range(pools)]
        figures["gap"][target] = {"median": float(np.median(gaps)), "most": max(gaps), "pools": pools}
        print(target, figures["gap"][target], flush=True)
    print("\n".join(verdicts(figures, not chosen.quick)))
    title, _, about = (__doc__ or "").split("\n\n", 2)
    name = "cascade-planner" + ("-quick" if chosen.quick else "")
    note = " ".join(f"{title} {about}".split())
    print("wrote", write(name, figures, commit=now, seeds=list(range(pools)), repeats=1, note=note))


if __name__ == "__main__":
    main()
