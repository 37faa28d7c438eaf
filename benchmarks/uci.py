"""UCI regression sets, ten folds each: one network with a Gaussian output and a deep ensemble of five, beside the published figures.

python benchmarks/uci.py DIR [--sets concrete energy …] [--out runs/uci]

DIR has one .npz per set with x, y and fold (0 … 9). Every fold is a run of recipes/uci-deep.yaml with that fold as test part and its
number as seed; the other rows are cut 80 : 10 : 10 into train, validation and calibration. The network is that of the published experiment
(one hidden layer of 50 ReLU units, 40 epochs, 5 members), without its adversarial training; sets of more than 10,000 rows have batches of
256 in place of 32. The single network is the first member.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quorate.cli.main import main as quorate
from quorate.report.regression import regression_figures
from quorate.runs import Run
from record import HERE, commit, write
from tables import Figures, aggregate, trained_at

RECIPE = HERE.parent / "recipes" / "uci-deep.yaml"
SETS = ("airfoil", "bike", "concrete", "energy", "kin40k", "pol", "protein")
FOLDS = 10
LARGE = 10_000
# Lakshminarayanan et al. 2017 (arXiv 1612.01474), table 1, "Deep Ensembles": mean and standard error over 20 random splits, 90 % train.
PUBLISHED = {
    "concrete": {"rmse": {"mean": 6.03, "sd": 0.58}, "nll": {"mean": 3.06, "sd": 0.18}},
    "energy": {"rmse": {"mean": 2.09, "sd": 0.29}, "nll": {"mean": 1.38, "sd": 0.22}},
}


def fold_figures(name: str, file: Path, fold: int, folder: Path) -> dict[str, Figures]:
    """Train one fold, or read it back; the figures of its first member and of all."""
    rows = len(np.load(file)["y"])
    source = ["--data.path", str(file), "--data.test", f"[{fold}]", "--data.name", name]
    batch = ["--fit.batch_size", "256" if rows > LARGE else "32"]
    status = quorate(["train", "--config", str(RECIPE), *source, *batch, "--seed", str(fold), "--run", str(folder)])
    if status:
        sys.exit(status)
    test = Run(folder).outputs("test")
    whole: Figures = {**regression_figures(test, {})}
    alone: Figures = {**regression_figures(test.prefix(1), {})}
    return {f"{name} single": alone, f"{name} deep-{test.stages}": whole}


def main(argv: Sequence[str] | None = None) -> None:
    """Train every fold and write results/uci.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--out", type=Path, default=Path("runs/uci"))
    chosen = parser.parse_args(argv)
    columns, trained = {}, []
    for name in chosen.sets:
        found = []
        for fold in range(FOLDS):
            folder = chosen.out / f"{name}-{fold}"
            trained.append(trained_at(folder, now))
            found.append(fold_figures(name, chosen.root / f"{name}.npz", fold, folder))
        columns |= aggregate(found)
        if name in PUBLISHED:
            columns[f"{name} published"] = {key: {**value, "n": 20, "seeds": 20} for key, value in PUBLISHED[name].items()}
    note = " ".join((__doc__ or "").split("\n\n")[2].split())
    print("wrote", write("uci", columns, commit=now, seeds=list(range(FOLDS)), repeats=1, note=note, trained_at=trained))


if __name__ == "__main__":
    main()
