"""Metrics and two-stage windows on 10⁴ … 10⁶ rows × 10 classes: seconds, and peak memory as a multiple of what the call was given.

python benchmarks/deciding.py [--rows 1000000]

Seconds are the median of repeats. The peak is what Python and NumPy hold beyond the input while the call runs (tracemalloc), in a run of
its own. It is given as a multiple of the call's own input, the bytes of the arrays passed to it, and of one stage's float32 outputs
(rows × 10 × 4 bytes).

The requirement reads: peak ≤ 4 × the stored outputs given to the call, which are two stages for Policy.fit, simulate and uncertainty, and
one (N, 10) array for the metrics.
"""

from __future__ import annotations

import argparse
import functools
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quorate import metrics
from quorate.cascade import Policy, simulate
from quorate.cascade.uncertainty import uncertainty
from quorate.outputs import Outputs
from record import commit, write

SEED = 0
REPEATS = 3
CLASSES = 10
ALLOWED = 4  # × the stored outputs given
LEAST_ROWS = 10_000


def make(rows: int) -> Outputs:
    """Two members that agree mostly, 10 classes, about 20 % wrong."""
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, CLASSES, rows)
    signal = 3.0 * np.eye(CLASSES, dtype=np.float32)[labels]
    common = rng.normal(size=(rows, CLASSES)).astype(np.float32)
    stages = [(signal + common + rng.normal(size=(rows, CLASSES)).astype(np.float32))[None] for _ in range(2)]
    return Outputs(stages, labels=labels, costs=[1.0, 1.0])


def calls(outputs: Outputs) -> dict[str, functools.partial[Any]]:
    """What is measured, by name, with the arguments it is given."""
    probs = outputs.probs().astype(np.float32)
    members = np.concatenate([np.asarray(stage) for stage in outputs.values])
    labels, errors, u = outputs.truth(), outputs.errors(), uncertainty(outputs)
    half = len(u) // 2
    policy = Policy.fit(outputs, target="coverage@risk=0.05")
    on = functools.partial
    return {
        "accuracy": on(metrics.accuracy, probs, labels),
        "nll": on(metrics.nll, probs, labels),
        "brier": on(metrics.brier, probs, labels),
        "ece": on(metrics.ece, probs, labels),
        "adaptive_ece": on(metrics.adaptive_ece, probs, labels),
        "risk_coverage": on(metrics.risk_coverage, u, errors),
        "aurc": on(metrics.aurc, u, errors),
        "augrc": on(metrics.augrc, u, errors),
        "coverage_at_risk": on(metrics.coverage_at_risk, u, errors, 0.05),
        "auroc": on(metrics.auroc, u[:half], u[half:]),
        "aupr": on(metrics.aupr, u[:half], u[half:]),
        "fpr_at_tpr": on(metrics.fpr_at_tpr, u[:half], u[half:]),
        "scod_risk": on(metrics.scod_risk, u[:half], errors[:half], u[half:], id_coverage=0.8),
        "pairwise_disagreement": on(metrics.pairwise_disagreement, members),
        "uncertainty msp": on(uncertainty, outputs),
        "uncertainty energy": on(uncertainty, outputs, "energy"),
        "Policy.fit coverage@risk": on(Policy.fit, outputs, target="coverage@risk=0.05"),
        "Policy.fit risk@coverage": on(Policy.fit, outputs, target="risk@coverage=0.8"),
        "Policy.fit fpr@tpr": on(Policy.fit, outputs, target="fpr@tpr=0.95"),
        "simulate": on(simulate, policy, outputs),
    }


def given_bytes(call: functools.partial[Any]) -> int:
    """Bytes of the arrays passed to a call; of Outputs those they were made of, the values and the labels."""
    arrays: list[np.ndarray] = []
    for argument in (*call.args, *call.keywords.values()):
        if isinstance(argument, Outputs):
            arrays += [np.asarray(stage) for stage in argument.values] + [np.asarray(argument.truth())]
        elif isinstance(argument, np.ndarray):
            arrays.append(argument)
    return sum(array.nbytes for array in arrays)


def stored_outputs(call: functools.partial[Any]) -> int:
    """How many (N, 10) arrays of stored outputs the requirement grants a call: a stage of Outputs each, one for a metric."""
    return max(argument.stages if isinstance(argument, Outputs) else 1 for argument in call.args)


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
    try:
        call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return seconds, peak


def entry(call: functools.partial[Any], rows: int, seconds: Sequence[float], peak: int) -> dict[str, Any]:
    """What is written down of one call at one number of rows."""
    own, stage = given_bytes(call), rows * CLASSES * np.dtype(np.float32).itemsize
    return {
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "peak_bytes": peak,
        "own_input_bytes": own,
        "peak_over_own_input": peak / own,
        "peak_over_outputs": peak / stage,
        "stored_outputs": stored_outputs(call),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="the largest of three sizes, each ten times the one before")
    largest = parser.parse_args(argv).rows
    if largest < LEAST_ROWS:
        parser.error(f"--rows {largest}: expected {LEAST_ROWS} or more")
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for rows in (largest // 100, largest // 10, largest):
        for name, call in calls(make(rows)).items():
            found = entry(call, rows, *measure(call))
            figures.setdefault(name, {})[str(rows)] = found
            peaks = f"{found['peak_over_own_input']:.2f} × own input, {found['peak_over_outputs']:.2f} × one stage's outputs"
            print(f"{rows:>9,} {name:28s} {found['seconds']:8.4f} s   peak {peaks}", flush=True)
    over = {
        name: found[str(largest)]["peak_over_outputs"] / found[str(largest)]["stored_outputs"] for name, found in figures.items()
    }
    worst = max(over, key=over.__getitem__)
    verdict = "met" if over[worst] <= ALLOWED else "NOT MET"
    print(f"peak ≤ {ALLOWED} × the stored outputs given: {verdict}; the largest is {over[worst]:.2f} × ({worst})")
    title, _, details = (__doc__ or "").split("\n\n", 2)
    note = " ".join(f"{title} {details}".split())
    print("wrote", write("deciding", figures, commit=now, seeds=[SEED], repeats=REPEATS, note=note))


if __name__ == "__main__":
    main()
