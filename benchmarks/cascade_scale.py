"""Seconds and peak memory of fitting windows and of certification on 10⁴, 10⁵ and 10⁶ synthetic rows.

python benchmarks/cascade_scale.py [--rows 1000000] [--quick]

Two and three stages of 10-class logits, and two of top-1 labels with probabilities, about 20 % wrong. Policy.fit for coverage at 5 % risk
by each rule, its sequence of thresholds included; certify on arrays with 100 thresholds; certify_policy on Outputs. Seconds are the
median of the repeats; "per window" divides by the stages but the last. The peak is what Python and NumPy hold beyond the input, in a run
of its own (tracemalloc), as a multiple of one stage's float32 logits. Growth is the seconds at the most rows over those at a tenth of
them. Required at 10⁶ rows: ≤ 2 s per window, ≤ 2 s for a certification.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from deciding import REPEATS, SEED, measure
from quorate.cascade import Policy, simulate
from quorate.cascade.guarantee import certify, certify_policy
from quorate.outputs import Outputs
from record import commit, write

TARGET = "coverage@risk=0.05"
CLASSES, BUDGET, THRESHOLDS = 10, 0.6, 100
ALLOWED = 2.0  # seconds
LEAST_ROWS = 10_000
SIZES, QUICK = (100, 10, 1), (300, 600)
Kind = Literal["logits", "top1"]
CASES: tuple[tuple[Kind, int], ...] = (("logits", 2), ("logits", 3), ("top1", 2))


def make(rows: int, stages: int, kind: Kind, seed: int = SEED) -> Outputs:
    """Stages that agree mostly; each later one costs as much as the one before."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    signal = 3.0 * np.eye(CLASSES, dtype=np.float32)[labels] + rng.normal(size=(rows, CLASSES)).astype(np.float32)
    values: list[Any] = []
    for _ in range(stages):
        logits = signal + rng.normal(size=(rows, CLASSES)).astype(np.float32)
        if kind == "logits":
            values.append(logits[None])
        else:
            probs = np.exp(logits - logits.max(1, keepdims=True))
            values.append((logits.argmax(1), (probs / probs.sum(1, keepdims=True)).max(1)))
    return Outputs(values, kind=kind, labels=labels, costs=[1.0] * stages)


def calls(rows: int, stages: int, kind: Kind) -> dict[str, tuple[Callable[[], object], int]]:
    """What is measured by name: the call, and how many windows it fits (0: it certifies)."""
    val, cal = make(rows, stages, kind), make(rows, stages, kind, SEED + 1)
    fit = functools.partial(Policy.fit, val, target=TARGET)
    policy = fit()
    routed = simulate(policy, cal)
    errors = routed.label != cal.truth()
    taus = np.quantile(simulate(policy, val).uncertainty, np.linspace(0.3, 1.0, THRESHOLDS))
    windows = stages - 1
    return {
        "fit paper": (fit, windows),
        "fit optimal, paper's deviation": (functools.partial(fit, window="optimal"), windows),
        f"fit optimal, {100 * BUDGET:.0f} % of the cost": (functools.partial(fit, window="optimal", budget=BUDGET), windows),
        "certify": (functools.partial(certify, routed.uncertainty, errors, taus), 0),
        "certify_policy": (functools.partial(certify_policy, policy, cal), 0),
    }


def entry(call: Callable[[], object], windows: int, rows: int) -> dict[str, Any]:
    """What is written down of one call."""
    seconds, peak = measure(call)
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "least": min(seconds),
        "most": max(seconds),
        "per_window": median / windows if windows else None,
        "peak_bytes": peak,
        "peak_over_outputs": peak / (rows * CLASSES * np.dtype(np.float32).itemsize),
    }


def verdicts(figures: dict[str, dict[str, Any]]) -> list[str]:
    """What is required at the most rows, and how the seconds grow to there."""
    lines = []
    for place, by_rows in figures.items():
        before, most = sorted(by_rows, key=int)[-2:]
        last = by_rows[most]
        spent = last["seconds"] if last["per_window"] is None else last["per_window"]
        growth, verdict = last["seconds"] / by_rows[before]["seconds"], "met" if spent <= ALLOWED else "NOT MET"
        times = int(most) / int(before)
        lines.append(
            f"{place}: {spent:.2f} s at {int(most):,} rows, ≤ {ALLOWED:g} s {verdict}; × {growth:.1f} for × {times:g} the rows"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write results/cascade-scale.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="the largest of three sizes, each ten times the one before")
    parser.add_argument("--quick", action="store_true", help="600 rows at most, two stages: that it works, no result")
    chosen = parser.parse_args(argv)
    if chosen.rows < LEAST_ROWS:
        parser.error(f"--rows {chosen.rows}: expected {LEAST_ROWS} or more")
    sizes = QUICK if chosen.quick else tuple(chosen.rows // part for part in SIZES)
    figures: dict[str, dict[str, Any]] = {}
    for rows in sizes:
        for kind, stages in CASES[: 1 if chosen.quick else None]:
            for name, (call, windows) in calls(rows, stages, kind).items():
                place = f"{name}, {stages} stages, {kind}"
                found = figures.setdefault(place, {})[str(rows)] = entry(call, windows, rows)
                print(f"{rows:>9,} {place:50s} {found['seconds']:8.3f} s   peak {found['peak_bytes'] / 1e6:.0f} MB", flush=True)
    print("\n".join(verdicts(figures)))
    title, _, about = (__doc__ or "").split("\n\n", 2)
    name = "cascade-scale" + ("-quick" if chosen.quick else "")
    print("wrote", write(name, figures, commit=now, seeds=[SEED], repeats=REPEATS, note=" ".join(f"{title} {about}".split())))


if __name__ == "__main__":
    main()
