"""What the cascade_*.py benchmarks decide over: stored outputs of real models, and how their rows are split at random."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quorate.outputs import Outputs
from quorate.runs import Run

SHARES = (0.2, 0.3, 0.5)  # validation, calibration, test
FASHION = ("deep", "wide1.5", "wide4")  # run folders NAME-SEED
OOD = ("kmnist", "notmnist")


class Parts(NamedTuple):
    """Validation chooses, calibration certifies, test reports."""

    validation: Outputs
    calibration: Outputs
    test: Outputs


def imagenet(folder: Path) -> Outputs:
    """Top-1 class and probability of networks on ImageNet's validation images; a stage per network, costs in GMACs.

    ``folder`` has imagenet_val_top1_14models.npz (models, pred, conf, label) and model_costs.csv (model, gmacs, …). Networks whose
    GMACs are not known are left out.
    """
    with (folder / "model_costs.csv").open(encoding="utf-8", newline="") as file:
        gmacs = {row["model"]: float(row["gmacs"]) for row in csv.DictReader(file) if row["gmacs"]}
    with np.load(folder / "imagenet_val_top1_14models.npz") as stored:
        names = [str(name) for name in stored["models"]]
        pred, conf, label = stored["pred"].astype(np.int64), stored["conf"], stored["label"].astype(np.int64)
    at = [k for k, name in enumerate(names) if name in gmacs]
    return Outputs(
        [(pred[k], conf[k]) for k in at], kind="top1", labels=label, names=[names[k] for k in at], costs=[gmacs[names[k]] for k in at]
    )  # fmt: skip


def frugal(file: Path) -> Outputs:
    """Label and confidence of priced services on spoken commands (FrugalML's data); costs in US dollars per 10,000 calls."""
    with np.load(file) as stored:
        pred, conf, label = stored["pred"].astype(np.int64), stored["conf"].astype(np.float32), stored["label"].astype(np.int64)
        names, costs = [str(name) for name in stored["models"]], stored["cost_per_10k"].tolist()
    return Outputs([*zip(pred, conf, strict=True)], kind="top1", labels=label, names=names, costs=costs)


def split(outputs: Outputs, seed: int) -> Parts:
    """The rows at random into validation, calibration and test, in :data:`SHARES`."""
    order = np.random.default_rng(seed).permutation(outputs.n)
    ends = np.round(np.cumsum(SHARES[:2]) * outputs.n).astype(int)
    return Parts(*(outputs.rows(np.sort(part)) for part in np.split(order, ends)))


def chain(outputs: Outputs, names: Sequence[str]) -> Outputs:
    """Some of the stages in a given order, as Outputs of their own."""
    at = [outputs.names.index(name) for name in names]
    return Outputs(
        [outputs.values[k] for k in at], kind=outputs.kind, combine=outputs.combine, labels=outputs.labels, ids=outputs.ids,
        classes=outputs.classes, names=names, costs=None if outputs.costs is None else [outputs.costs[k] for k in at],
    )  # fmt: skip


def pool(outputs: Outputs) -> dict[str, Outputs]:
    """Every stage as a member of a pool."""
    return {name: chain(outputs, [name]) for name in outputs.names}


def runs(folder: Path, seeds: Sequence[int] | None = None) -> dict[int, dict[str, Run]]:
    """Per seed the run folders ``deep-SEED``, ``wide1.5-SEED``, ``wide4-SEED``; by default of every seed that has all three, finished.

    Raises:
        ValueError: no such seed, or a seed asked for that lacks one.
    """
    there = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("deep-*") if path.name.rpartition("-")[2].isdigit())
    found = {}
    for seed in there if seeds is None else seeds:
        paths = {name: folder / f"{name}-{seed}" for name in FASHION}
        if all(path.is_dir() for path in paths.values()):
            each = {name: Run(path) for name, path in paths.items()}
            if all(run.finished for run in each.values()):
                found[seed] = each
        if seeds is not None and seed not in found:
            raise ValueError(f"{folder} has no finished runs {', '.join(path.name for path in paths.values())}: train them first")
    if not found:
        raise ValueError(
            f"{folder} has no seed with finished runs {', '.join(f'{name}-SEED' for name in FASHION)}: train them first"
        )
    return found


def parts(run: Run) -> Parts:
    """The stored outputs of a run."""
    return Parts(*(run.outputs(name) for name in Parts._fields))


def outside(run: Run) -> tuple[dict[str, Outputs], dict[str, Outputs]]:
    """OOD sets of a run: the first half of each for validation, the second half for the test."""
    sets = {name: run.outputs(f"ood-{name}") for name in run.ood}
    halves = {name: np.arange(each.n) < each.n // 2 for name, each in sets.items()}
    return {n: o.rows(halves[n]) for n, o in sets.items()}, {n: o.rows(~halves[n]) for n, o in sets.items()}
