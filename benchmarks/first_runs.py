"""A first run on each real data set: one network and a deep ensemble of four, several seeds.

python benchmarks/first_runs.py cifar10 FILE.npz [--seeds 3] [--ood NAME=FILE …]
python benchmarks/first_runs.py dsa19 FILE.npz
python benchmarks/first_runs.py speech12 FILE.npz
python benchmarks/first_runs.py NAME FILE.npz --time          # seconds per epoch; with nothing else running

Trains recipes/NAME-deep.yaml; the single network is its first member (members share batches, not gradients). Every seed has weights, batch
order, augmentation and partition of its own; the test part is the data set's. Finished runs under --out are read back, an interrupted one
goes on. --time trains both recipes for --epochs epochs in a temporary folder and writes the seconds per epoch beside the epochs of
the recipe.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from quorate.cli.main import main as quorate
from quorate.files import read_json
from quorate.report import ensemble_figures
from quorate.runs import Run
from record import HERE, RESULTS, commit, write
from tables import aggregate, trained_at

RECIPES = HERE.parent / "recipes"
NAMES = ("cifar10", "dsa19", "speech12")
Figures = dict[str, float | None]


def train(name: str, kind: str, file: Path, seed: int, folder: Path, ood: Sequence[str], *more: str) -> Run:
    """Train a recipe, or go on with it, or read it back; exits where that fails."""
    outside = ["--data.ood", str(dict(entry.split("=", 1) for entry in ood))] if ood else []
    seeds = ["--seed", str(seed), "--data.seed", str(seed)]
    recipe = ["--config", str(RECIPES / f"{name}-{kind}.yaml"), "--data.path", str(file)]
    status = quorate(["train", *recipe, *outside, *seeds, "--run", str(folder), *more])
    if status:
        sys.exit(status)
    return Run(folder)


def figures(run: Run, members: int | None) -> Figures:
    """The figures of the first ``members`` members (all by default), with what they cost."""
    parts = {part: run.outputs(part).prefix(members or run.outputs(part).stages) for part in ("validation", "test")}
    ood = {name: run.outputs(f"ood-{name}").prefix(members or len(run.facts["stage_macs"])) for name in run.ood}
    share = sum(run.facts["stage_macs"][:members]) / run.facts["macs"]
    costs = {"parameters": run.facts["parameters"] * share, "training_macs": run.facts["training_macs"] * share}
    return {**ensemble_figures(parts["validation"], parts["test"], ood), **costs}


def gather(name: str, file: Path, seeds: int, ood: Sequence[str], out: Path, now: str) -> None:
    """Train the deep recipe for every seed and write results/first-NAME.json."""
    found, trained = [], []
    for seed in range(seeds):
        folder = out / f"{name}-{seed}"
        trained.append(trained_at(folder, now))
        run = train(name, "deep", file, seed, folder, ood)
        members = len(run.facts["stage_macs"])
        found.append({"single": figures(run, 1), f"deep-{members}": figures(run, None)})
    note = f"{(__doc__ or '').splitlines()[0]} Recipe: `recipes/{name}-deep.yaml`; the single network is the first member."
    path = write(
        f"first-{name}",
        aggregate(found),
        commit=now,
        seeds=list(range(seeds)),
        repeats=1,
        note=note,
        trained_at=trained,
    )
    print("wrote", path)


def clock(name: str, file: Path, epochs: int, now: str) -> None:
    """Seconds per epoch of both recipes, added to results/first-times.json."""
    times: dict[str, Any] = (
        read_json(RESULTS / "first-times.json", "times")["figures"] if (RESULTS / "first-times.json").exists() else {}
    )
    times[name] = {}
    for kind in ("single", "deep"):
        recipe = yaml.safe_load((RECIPES / f"{name}-{kind}.yaml").read_text(encoding="utf-8"))
        warmup = ["--fit.warmup_epochs", "0.5"]
        with tempfile.TemporaryDirectory() as folder:
            run = train(name, kind, file, 0, Path(folder) / "run", [], "--fit.epochs", str(epochs), *warmup)
        times[name][kind] = {
            "seconds_per_epoch": run.facts["train_seconds"] / epochs,
            "epochs": recipe["fit"]["epochs"],
            "commit": now,
        }
    note = f"Seconds per epoch, validation included, measured over {epochs} epoch(s) with nothing else running; epochs of the recipe."
    print("wrote", write("first-times", times, commit=now, seeds=[0], repeats=epochs, note=note, threads=torch.get_num_threads()))


def main(argv: Sequence[str] | None = None) -> None:
    """Gather, or take the time."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ood", nargs="+", default=[], metavar="NAME=FILE")
    parser.add_argument("--out", type=Path, default=Path("runs/first"))
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--epochs", type=int, default=2, help="for --time")
    chosen = parser.parse_args(argv)
    if chosen.seeds < 1 or chosen.epochs < 1:
        parser.error("--seeds and --epochs: expected 1 or more")
    if chosen.time:
        clock(chosen.name, chosen.file, chosen.epochs, now)
    else:
        gather(chosen.name, chosen.file, chosen.seeds, chosen.ood, chosen.out, now)


if __name__ == "__main__":
    main()
