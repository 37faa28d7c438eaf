"""The game of B-DISTIL at 50,000 samples × 1000 outputs, S and d mapped from files: seconds, and peak memory beside S and d.

python benchmarks/bdistil_game.py [--samples 50000] [--outputs 1000] [--folder F]

Seconds are the median of repeats, all NumPy, one thread. The peak is what Python and NumPy hold while the call runs (tracemalloc), in a run
of its own; pages of mapped files, S and d, are not in it. Of the weights every row block is made in turn, and dropped. The update of a game
in a file writes a new file of S and flushes it to the disk; that of a game in memory reads d twice, once to check it. Before the
calls three rounds are played.

The requirement reads: update, edge and weights work on row blocks, at most 64 MB beside S and d, one update in at most 5 s.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.distil.game import Game
from quorate.distil.shaping import SearchWeights, robust_bound
from record import commit, write

SEED = 0
REPEATS = 3
ROUNDS = 3
ETA = 0.5
ALLOWED_MB = 64
ALLOWED_S = 5.0


def student(path: Path, samples: int, outputs: int, seed: int) -> NDArray[np.float32]:
    """A student's d = f − g, standard normal, written to a file block by block, then mapped."""
    rng = np.random.default_rng(seed)
    d = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(samples, outputs))
    for start in range(0, samples, 1000):
        d[start : start + 1000] = rng.standard_normal(d[start : start + 1000].shape, dtype=np.float32)
    d.flush()
    return np.load(path, mmap_mode="r")


def drain(blocks: Any) -> None:
    """Make every block and drop it."""
    for _ in blocks:
        pass


def calls(stored: Game, held: Game, d: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    joint = Game.of(held.scores.copy(), held.rounds, held.eta, joint=True)
    return {
        "update, S in a file": lambda: stored.update(d),
        "update, S in memory": lambda: held.update(d),
        "edge": lambda: stored.edge(d),
        "edge, joint": lambda: joint.edge(d),
        "all weight blocks": lambda: drain(stored.weight_blocks(np.float32)),
        "all search weight blocks": lambda: drain(SearchWeights(stored, cap=8.0, uniform=0.3).weight_blocks(np.float32)),
        "effective samples": lambda: SearchWeights(stored).effective_samples(),
        "certificate": stored.certificate,
        "robust bound": lambda: robust_bound(d),
    }


def measure(call: Callable[[], object]) -> dict[str, Any]:
    """Seconds of the repeats and the peak in bytes."""
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
    return {"seconds": statistics.median(seconds), "least": min(seconds), "most": max(seconds), "peak_bytes": peak}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--outputs", type=int, default=1000)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files lie while it runs, 4 × S; a temporary place by default"
    )
    given = parser.parse_args(argv)
    figures: dict[str, Any] = {"samples": given.samples, "outputs": given.outputs, "calls": {}}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        d = student(folder / "d.npy", given.samples, given.outputs, SEED)
        stored = Game.stored(folder / "scores.npy", given.samples, given.outputs, ETA)
        held = Game(given.samples, given.outputs, ETA)
        for game in (stored, held):
            for _ in range(ROUNDS):
                game.update(d)
        for label, call in calls(stored, held, d).items():
            found = measure(call)
            figures["calls"][label] = found
            print(f"{label:26s} {found['seconds']:7.3f} s   peak {found['peak_bytes'] / 1e6:7.2f} MB beside S and d", flush=True)
    peak = max(found["peak_bytes"] for found in figures["calls"].values()) / 1e6
    slowest = max(found["seconds"] for label, found in figures["calls"].items() if label.startswith("update"))
    for what, worst, allowed, unit in (("peak", peak, ALLOWED_MB, "MB"), ("update", slowest, ALLOWED_S, "s")):
        print(f"{what} ≤ {allowed} {unit}: {'met' if worst <= allowed else 'NOT MET'}, the largest is {worst:.2f} {unit}")
    title, _, details = (__doc__ or "").split("\n\n", 2)
    note = " ".join(f"{title} {details}".split())
    print("wrote", write("bdistil-game", figures, commit=now, seeds=[SEED], repeats=REPEATS, note=note))


if __name__ == "__main__":
    main()
