"""The table of `quorate demo` over several seeds: mean and standard deviation of every figure.

python benchmarks/tables.py --digits [--seeds 5]
python benchmarks/tables.py --idx DIR --ood kmnist=FILE notmnist=FILE [--seeds 3]

Every seed has splits (digits), weights, batch order and augmentation of its own. Finished runs under --out are read back, so that an
interrupted benchmark goes on; the times are measured anew.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from quorate.cli.main import main as quorate
from record import write


def gather(name: str, arguments: list[str], seeds: int, out: Path) -> None:
    """Run the demo for every seed and write results/table-NAME.json."""
    found: list[dict[str, dict[str, Any]]] = []
    for seed in range(seeds):
        folder = out / f"{name}-{seed}"
        status = quorate(["demo", *arguments, "--seed", str(seed), "--out", str(folder)])
        if status:
            sys.exit(status)
        found.append(json.loads((folder / "results.json").read_text()))
    if any(results.keys() != found[0].keys() for results in found):
        sys.exit(f"the seeds gave different columns: {[list(results) for results in found]}")
    columns: dict[str, dict[str, dict[str, float | None]]] = {}
    for column, first in found[0].items():
        columns[column] = {}
        for figure in first:
            values = [results[column][figure] for results in found if results[column][figure] is not None]
            spread = statistics.stdev(values) if len(values) > 1 else None
            columns[column][figure] = {"mean": math.fsum(values) / len(values), "sd": spread}
    note = (__doc__ or "").splitlines()[
        0
    ] + f" Command: quorate demo {' '.join(a if '/' not in a else a.split('/')[-1] for a in arguments)}"
    print("wrote", write(f"table-{name}", columns, list(range(seeds)), 5, note, torch.get_num_threads()))


def main() -> None:
    """Gather what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--idx", type=Path, help="folder of the four Fashion-MNIST files")
    parser.add_argument("--ood", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/tables"))
    chosen = parser.parse_args()
    if chosen.digits:
        gather("digits", ["--data", "digits"], chosen.seeds or 5, chosen.out)
    if chosen.idx is not None:
        ood = ["--ood", *chosen.ood] if chosen.ood else []
        gather("fashion-mnist", ["--data", "idx", "--root", str(chosen.idx), *ood], chosen.seeds or 3, chosen.out)


if __name__ == "__main__":
    main()
