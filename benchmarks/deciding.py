"""Metrics and two-stage windows on 10⁴ … 10⁶ rows × 10 classes: seconds, and peak memory as a multiple of the input.

python benchmarks/deciding.py [--rows 1000000]

The input is two stages of float32 logits. Seconds are the median of repeats; the peak is what Python and NumPy hold beyond the input
while the call runs (tracemalloc), in a run of its own.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from quorate import metrics
from quorate.cascade import Policy, simulate
from quorate.cascade.uncertainty import uncertainty
from quorate.outputs import Outputs
from record import write

SEED = 0
REPEATS = 3


def make(rows: int) -> Outputs:
    """Two members that agree mostly, 10 classes, about 20 % wrong."""
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, 10, rows)
    signal = 3.0 * np.eye(10, dtype=np.float32)[labels]
    common = rng.normal(size=(rows, 10)).astype(np.float32)
    stages = [(signal + common + rng.normal(size=(rows, 10)).astype(np.float32))[None] for _ in range(2)]
    return Outputs(stages, labels=labels, costs=[1.0, 1.0])


def calls(outputs: Outputs) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    probs = outputs.probs().astype(np.float32)
    members = np.concatenate([np.asarray(stage) for stage in outputs.values])
    labels, errors, u = outputs.truth(), outputs.errors(), uncertainty(outputs)
    half = len(u) // 2
    policy = Policy.fit(outputs, target="coverage@risk=0.05")
    return {
        "accuracy": lambda: metrics.accuracy(probs, labels),
        "nll": lambda: metrics.nll(probs, labels),
        "brier": lambda: metrics.brier(probs, labels),
        "ece": lambda: metrics.ece(probs, labels),
        "adaptive_ece": lambda: metrics.adaptive_ece(probs, labels),
        "risk_coverage": lambda: metrics.risk_coverage(u, errors),
        "aurc": lambda: metrics.aurc(u, errors),
        "augrc": lambda: metrics.augrc(u, errors),
        "coverage_at_risk": lambda: metrics.coverage_at_risk(u, errors, 0.05),
        "auroc": lambda: metrics.auroc(u[:half], u[half:]),
        "aupr": lambda: metrics.aupr(u[:half], u[half:]),
        "fpr_at_tpr": lambda: metrics.fpr_at_tpr(u[:half], u[half:]),
        "scod_risk": lambda: metrics.scod_risk(u[:half], errors[:half], u[half:], id_coverage=0.8),
        "pairwise_disagreement": lambda: metrics.pairwise_disagreement(members),
        "uncertainty msp": lambda: uncertainty(outputs),
        "uncertainty energy": lambda: uncertainty(outputs, "energy"),
        "Policy.fit coverage@risk": lambda: Policy.fit(outputs, target="coverage@risk=0.05"),
        "Policy.fit risk@coverage": lambda: Policy.fit(outputs, target="risk@coverage=0.8"),
        "Policy.fit fpr@tpr": lambda: Policy.fit(outputs, target="fpr@tpr=0.95"),
        "simulate": lambda: simulate(policy, outputs),
    }


def measure(call: Callable[[], object]) -> tuple[list[float], int]:
    """Seconds of every repeat, and the peak in bytes."""
    call()
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    gc.collect()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    largest = parser.parse_args().rows
    figures: dict[str, dict[str, object]] = {}
    for rows in (largest // 100, largest // 10, largest):
        outputs = make(rows)
        size = sum(np.asarray(stage).nbytes for stage in outputs.values)
        for name, call in calls(outputs).items():
            seconds, peak = measure(call)
            entry = {
                "seconds": statistics.median(seconds),
                "least": min(seconds),
                "most": max(seconds),
                "peak_over_input": peak / size,
            }
            figures.setdefault(name, {})[str(rows)] = entry
            print(f"{rows:>9,} {name:28s} {entry['seconds']:8.4f} s   peak {entry['peak_over_input']:.2f} × input", flush=True)
    worst = max(f[str(largest)]["peak_over_input"] for f in figures.values())  # type: ignore[index]
    print(f"largest peak: {worst:.2f} × the input")
    print("wrote", write("deciding", figures, [SEED], REPEATS, (__doc__ or "").splitlines()[0]))


if __name__ == "__main__":
    main()
