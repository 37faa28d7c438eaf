"""What shift does: accuracy, calibration and risk on corrupted test inputs, by severity, mean and standard deviation over seeds.

python benchmarks/shift.py digits [--seeds 3]                     # trains `quorate demo`'s three ensembles
python benchmarks/shift.py NAME --runs RUN [RUN …] [--rows 1000]  # finished runs on images, one per seed

Thresholds come from clean validation data. A figure at a severity is its mean over the corruptions of `quorate evaluate --corruptions`;
severity 0 is clean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quorate.cli.main import main as quorate
from quorate.files import read_json
from record import commit, write
from tables import aggregate, trained_at

KEYS = ("accuracy", "nll", "ece", "coverage_at_risk", "risk_met")


def evaluated(runs: Sequence[Path], options: Sequence[str]) -> dict[str, Any]:
    """What the command writes, by column; exits where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shift.json"
        asked = ["--corruptions", "--corruption_kind", "image", *options, "--output", str(file)]
        status = quorate(["evaluate", *map(str, runs), *asked])
        if status:
            sys.exit(status)
        return dict(read_json(file, "the figures of quorate evaluate"))


def by_severity(columns: dict[str, Any], names: Sequence[str] | None) -> dict[str, dict[str, float | None]]:
    """{"column severity": figures}; ``names`` replaces the columns' names, which are those of the run folders."""
    found = {}
    for place, (column, figures) in enumerate(columns.items()):
        for severity, each in figures["corruptions"]["severity"].items():
            found[f"{column if names is None else names[place]}|{severity}"] = {key: each.get(key) for key in KEYS}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate every seed and write results/shift-NAME.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--runs", nargs="+", type=Path, default=[])
    parser.add_argument("--rows", type=int, default=None, help="test rows (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="for digits")
    parser.add_argument("--out", type=Path, default=Path("runs/shift"))
    chosen = parser.parse_args(argv)
    options = [] if chosen.rows is None else ["--corruption_rows", str(chosen.rows)]
    found, trained = [], []
    if chosen.name == "digits":
        for seed in range(chosen.seeds):
            folder = chosen.out / f"digits-{seed}"
            trained.append(trained_at(folder, now))
            if quorate(["demo", "--seed", str(seed), "--out", str(folder)]):
                sys.exit(1)
            runs = [folder / name for name in ("single", "deep-4", "packed-4")]
            found.append(by_severity(evaluated(runs, [*options, "--corruption_high", "16"]), None))
    else:
        for run in chosen.runs:
            trained.append(trained_at(run, now))
            found.append(by_severity(evaluated([run], options), ["deep-4"]))
    if not found:
        parser.error("nothing to evaluate: give --runs, or the name digits")
    rows = "all" if chosen.rows is None else f"{chosen.rows:,}"
    note = " ".join(f"{(__doc__ or '').splitlines()[0]} {(__doc__ or '').split(chr(10) * 2)[2]} Test rows: {rows}.".split())
    figures = aggregate(found)
    path = write(
        f"shift-{chosen.name}", figures, commit=now, seeds=list(range(len(found))), repeats=1, note=note, trained_at=trained
    )
    print("wrote", path)


if __name__ == "__main__":
    main()
