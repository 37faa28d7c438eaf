"""The table of `quorate demo` over several seeds: mean and standard deviation of every figure.

python benchmarks/tables.py --digits [--seeds 5]
python benchmarks/tables.py --idx DIR --ood kmnist=FILE notmnist=FILE [--seeds 3]

Every seed has splits (digits), weights, batch order and augmentation of its own. Finished runs under --out are read back, so that an
interrupted benchmark goes on; the times are measured anew. Beside each seed's folder stands the commit at which it was first made. A
figure that a seed does not have (a column without a cascade, a risk without accepted rows) counts for that seed in no mean: n says
how many do.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from quorate.cli.main import main as quorate
from quorate.files import read_json, write_text
from record import commit, write

TIMED = 5  # rounds of `quorate demo`, of which it takes the median
Figures = dict[str, float | None]


def trained_at(folder: Path, now: str) -> str:
    """The commit at which a seed's folder was first made: ``now`` if this is when; ``unknown`` if it was not written down."""
    written = folder.with_name(f"{folder.name}.commit")  # beside it: the demo wants a folder of its own
    if not folder.exists() or not any(folder.iterdir()):
        write_text(written, now + "\n")
    return written.read_text(encoding="utf-8").strip() if written.exists() else "unknown"


def merged(orders: Iterable[Iterable[str]]) -> list[str]:
    """All names, each once, those that not every order has behind their predecessor."""
    found: list[str] = []
    for order in orders:
        at = 0
        for name in order:
            if name not in found:
                found.insert(at, name)
            at = found.index(name) + 1
    return found


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation (n − 1; None for one) and number n of the values present; ``seeds`` how many there could be."""
    present = [value for value in values if value is not None]
    return {
        "mean": math.fsum(present) / len(present) if present else None,
        "sd": statistics.stdev(present) if len(present) > 1 else None,
        "n": len(present),
        "seeds": len(values),
    }


def aggregate(found: Sequence[dict[str, Figures]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Per column and figure the :func:`summary` over the seeds' results."""
    columns: dict[str, dict[str, dict[str, Any]]] = {}
    for column in merged(found):
        seeds = [results.get(column, {}) for results in found]
        columns[column] = {name: summary([value(figures, name) for figures in seeds]) for name in merged(seeds)}
    return columns


def value(figures: Figures, name: str) -> float | None:
    """One seed's figure; None where it has none. Without coverage nothing is accepted, and there is no risk to be met."""
    if name == "risk_met" and figures.get("coverage_at_risk") == 0:
        return None
    found = figures.get(name)
    return None if found is None or math.isnan(found) else found


def gather(name: str, arguments: list[str], seeds: int, out: Path, now: str) -> None:
    """Run the demo for every seed and write results/table-NAME.json; ``now`` is the commit that runs."""
    found: list[dict[str, Figures]] = []
    trained = []
    for seed in range(seeds):
        folder = out / f"{name}-{seed}"
        trained.append(trained_at(folder, now))
        status = quorate(["demo", *arguments, "--seed", str(seed), "--out", str(folder)])
        if status:
            print(f"table {name}: quorate demo failed for seed {seed}, nothing was written", file=sys.stderr)
            sys.exit(status)
        found.append(read_json(folder / "results.json", "the results of quorate demo"))
    command = " ".join(re.sub(r"[^\s=]*/", "", argument) for argument in arguments)  # no folders of this machine
    path = write(
        f"table-{name}",
        aggregate(found),
        commit=now,
        seeds=list(range(seeds)),
        repeats=TIMED,
        note=f"{(__doc__ or '').splitlines()[0]} Command: `quorate demo {command}`, by `benchmarks/tables.py`.",
        threads=torch.get_num_threads(),
        trained_at=trained,
    )
    print("wrote", path)


def main(argv: Sequence[str] | None = None) -> None:
    """Gather what is asked for."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--idx", type=Path, metavar="DIR", help="folder of the four Fashion-MNIST files")
    parser.add_argument("--ood", nargs="+", default=[], metavar="NAME=FILE", help="OOD sets for --idx")
    parser.add_argument("--seeds", type=int, default=None, help="how many (default: 5 for --digits, 3 for --idx)")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"))
    chosen = parser.parse_args(argv)
    if not chosen.digits and chosen.idx is None:
        parser.error("nothing to gather: give --digits, --idx DIR, or both")
    if chosen.ood and chosen.idx is None:
        parser.error("--ood is for --idx DIR")
    if chosen.seeds is not None and chosen.seeds < 1:
        parser.error(f"--seeds {chosen.seeds}: expected 1 or more")
    if chosen.digits:
        gather("digits", ["--data", "digits"], chosen.seeds or 5, chosen.out, now)
    if chosen.idx is not None:
        ood = ["--ood", *chosen.ood] if chosen.ood else []
        gather("fashion-mnist", ["--data", "idx", "--root", str(chosen.idx), *ood], chosen.seeds or 3, chosen.out, now)


if __name__ == "__main__":
    main()
