"""A folder of 10,000 images: seconds until image_folder has returned, at the first start and at later ones.

python benchmarks/input_folder.py [--files 10000]

The images are noise, 64×64 RGB PNGs in 10 class folders, made for this in a temporary folder and brought to 32×32. Every start is a
process of its own: the first one reads all files and fills an empty cache, the later one lists the files and opens the cache. Seconds are
those of the call, and of the whole process with its imports; median of repeats. Files were written just before, so they come from the
system's file cache, not from the disk.

The requirement reads: a later start of 10,000 files takes at most 5 s.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from record import commit, write

SEED = 0
REPEATS = 3
CLASSES = 10
SIDE = 64
ALLOWED_S = 5.0

START = """
import sys, time
from quorate.data.images.folder import image_folder
begun = time.perf_counter()
data = image_folder(sys.argv[1], size=32, cache=sys.argv[2])
print(time.perf_counter() - begun, sum(map(len, data.splits().values())))
"""


def make(root: Path, files: int) -> None:
    """Noise images in class folders."""
    rng = np.random.default_rng(SEED)
    for label in range(CLASSES):
        (root / f"class{label}").mkdir(parents=True)
    for i in range(files):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"class{i % CLASSES}" / f"{i:06d}.png", compress_level=1)


def start(root: Path, cache: Path) -> tuple[float, float, int]:
    """(seconds of the call, seconds of the process, rows) of one start in a fresh process."""
    begun = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", START, str(root), str(cache)], capture_output=True, text=True, check=True)
    whole = time.perf_counter() - begun
    seconds, rows = said.stdout.split()
    return float(seconds), whole, int(rows)


def entry(calls: Sequence[float], processes: Sequence[float]) -> dict[str, Any]:
    """What is written down of one kind of start."""
    return {
        "seconds": statistics.median(calls),
        "least": min(calls),
        "most": max(calls),
        "process_seconds": statistics.median(processes),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="images in the folder")
    files = parser.parse_args(argv).files
    if files < 10 * CLASSES:
        parser.error(f"--files {files}: expected {10 * CLASSES} or more")
    found: dict[str, list[tuple[float, float]]] = {"first": [], "later": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        make(root, files)
        for repeat in range(REPEATS):
            for kind, taken in found.items():
                call, whole, rows = start(root, Path(folder) / f"cache{repeat}")
                if rows != files:
                    raise RuntimeError(f"{kind} start: expected {files} rows, got {rows}")
                taken.append((call, whole))
                print(f"{kind:5s} start of {files:,} files {call:8.3f} s   whole process {whole:8.3f} s", flush=True)
    figures = {kind: entry(*zip(*taken, strict=True)) for kind, taken in found.items()}
    figures["ratio"] = {"first_over_later": figures["first"]["seconds"] / figures["later"]["seconds"]}
    verdict = "met" if figures["later"]["most"] <= ALLOWED_S else "NOT MET"
    print(f"later start ≤ {ALLOWED_S:g} s: {verdict}; the slowest took {figures['later']['most']:.2f} s")
    title, _, details = (__doc__ or "").split("\n\n", 2)
    note = " ".join(f"{title} {details}".split())
    print("wrote", write("input-folder", {str(files): figures}, commit=now, seeds=[SEED], repeats=REPEATS, note=note))


if __name__ == "__main__":
    main()
