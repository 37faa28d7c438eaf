"""Dense and sparse ensembles beside each other: one network, SWA, deep ensemble, tickets; mean and standard deviation over seeds.

python benchmarks/tickets_table.py fashion-mnist --root DIR --ood NAME=FILE … [--seeds 0 1 2]
python benchmarks/tickets_table.py dsa19 FILE.npz [--seeds 0 1 2]
python benchmarks/tickets_table.py cifar10 FILE.npz --ood NAME=FILE …    # with a GPU
python benchmarks/tickets_table.py …  --only METHOD …     # train these alone; the table is written once all are there

Every method of a seed sees the same data; each seed has weights, batch order, augmentation and partition of its own, and the test part is
the data set's. The single network is the first member of the deep ensemble (members share batches, not gradients). Corrupted figures are
means over the corruptions at severity 3, on a stratified subset of the test rows. "over single" is the difference to the seed's single
network, so that its spread is that of the method and not of the split. Finished runs under --out are read back, interrupted ones go on.

MACs of sparse methods are those of kernels that skip dead weights, counted from the masks that the runs had. Training itself ran on dense
kernels, as its wall-clock time says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from quorate import metrics
from quorate.combination import softmax
from quorate.data import Data
from quorate.data.corruptions import Corrupted, corruptions_for
from quorate.data.subset import stratified
from quorate.ensemble import collect
from quorate.outputs import Outputs
from quorate.report import ensemble_figures
from quorate.training.fit import Fitted
from record import commit, write
from tables import aggregate, trained_at
from tickets_methods import METHODS, fit
from tickets_tasks import TASKS, Task, cifar10, dsa19, fashion_mnist

SEVERITY, CORRUPTED_ROWS = 3, 500
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Cost:
    """Of a run: multiply-adds of the whole training and of one input, scalars that are live, seconds of the training."""

    training_macs: float
    macs: float
    parameters: float
    train_seconds: float

    @classmethod
    def of(cls, fitted: Fitted, share: float = 1.0) -> Cost:
        """From the ledger where there is one; of a dense run ``share``, that of so many of its members."""
        facts, ledger = fitted.facts, fitted.facts.get("ledger")
        if ledger is None:
            dense = (facts[key] * share for key in ("training_macs", "macs", "parameters", "train_seconds"))
            return cls(*dense)
        return cls(
            ledger["training_macs"], ledger["inference_macs"]["total"], ledger["live_parameters"]["total"], facts["train_seconds"]
        )

    def figures(self, single: Cost) -> Figures:
        """As they are, and as ratios to the single network's."""
        mine, its = vars(self), vars(single)
        return {**mine, **{f"{key}_ratio": mine[key] / its[key] for key in ("training_macs", "macs", "parameters")}}


def corrupted(ensemble: nn.Module, data: Data, task: Task, folder: Path) -> dict[str, Outputs]:
    """Outputs on the corrupted test rows by corruption, from the run's folder as far as they are there."""
    rows = stratified(np.asarray(data.test.y), data.test.ids, min(CORRUPTED_ROWS, len(data.test)))
    split, found = data.test.subset(rows), {}
    for name in corruptions_for(data, task.kind):
        path = folder / "corrupted" / f"{name}-{SEVERITY}.safetensors"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            inputs = Corrupted(split, name, SEVERITY, mean=data.mean, std=data.std)
            collect(ensemble, inputs, classes=data.classes).save(path)
        found[name] = Outputs.load(path)
    return found


def quality(outputs: dict[str, Outputs], shifted: dict[str, Outputs], members: int | None = None) -> Figures:
    """The figures of the first ``members`` members (all by default), clean, corrupted, on OOD data, and how much they differ."""
    own = {name: each.prefix(members or each.stages) for name, each in outputs.items()}
    ood = {name.removeprefix("ood-"): each for name, each in own.items() if name.startswith("ood-")}
    found: Figures = {**ensemble_figures(own["validation"], own["test"], ood)}
    del found["macs"]  # it is the ledger's
    for key in ("accuracy", "nll", "ece"):
        each = [ensemble_figures(own["validation"], s.prefix(members or s.stages), {})[key] for s in shifted.values()]
        found[f"{key}_corrupted"] = float(np.mean(each))
    logits = np.concatenate([np.asarray(value) for value in own["test"].values])
    if len(logits) > 1:
        probs = softmax(logits)
        found |= {"disagreement": metrics.pairwise_disagreement(logits), "kl": metrics.pairwise_kl(probs)}
        found["member_accuracy"] = float((logits.argmax(-1) == own["test"].truth()).mean())
    return found


def over(figures: Figures, single: Figures) -> Figures:
    """The differences to the seed's single network that say whether a method is worth its cost."""
    keys = ("accuracy", "nll", "accuracy_corrupted", "nll_corrupted")
    return {f"{key}_over_single": (figures[key] or 0.0) - (single[key] or 0.0) for key in keys}


def results(
    task: Task, data: Data, seed: int, folder: Path, only: Sequence[str], now: str
) -> tuple[dict[str, Figures], set[str]]:
    """One seed's figures by method, and the commits at which its runs were trained."""
    found: dict[str, Figures] = {}
    trained, single = set(), None
    for name in only:
        run = folder / f"{name}-{seed}"
        trained.add(trained_at(run, now))
        fitted = fit(task, METHODS[name], data, seed, run)
        shifted = corrupted(fitted.ensemble, data, task, run)
        if name == "deep":
            single = Cost.of(fitted, 1 / fitted.outputs["test"].stages)
            found["single"] = quality(fitted.outputs, shifted, 1) | single.figures(single)
        found[name] = quality(fitted.outputs, shifted) | (
            vars(Cost.of(fitted)) if single is None else Cost.of(fitted).figures(single)
        )
        if single is not None:
            found[name] |= over(found[name], found["single"])
        print(run.name, json.dumps({k: round(v, 4) if v is not None else None for k, v in found[name].items()}), flush=True)
    return found, trained


def load(chosen: argparse.Namespace, ood: dict[str, str], seed: int) -> Data:
    """The data set that was asked for, by the seed's partition."""
    if chosen.name == "dsa19":
        return dsa19(chosen.file, seed)
    return cifar10(chosen.file, ood, seed) if chosen.name == "cifar10" else fashion_mnist(chosen.root, ood, seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not there yet, and write results/tickets-NAME.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TASKS)
    parser.add_argument("file", type=Path, nargs="?", help="dsa19, cifar10: the .npz")
    parser.add_argument("--root", type=Path, help="fashion-mnist: folder of the four idx files")
    parser.add_argument("--ood", nargs="+", default=[], metavar="NAME=FILE", help="fashion-mnist, cifar10: OOD sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/tickets"))
    chosen = parser.parse_args(argv)
    folder = chosen.name == "fashion-mnist"
    if folder != (chosen.root is not None) or folder == (chosen.file is not None):
        parser.error("expected dsa19 FILE.npz, cifar10 FILE.npz, or fashion-mnist --root DIR")
    if any("=" not in entry for entry in chosen.ood) or (chosen.ood and chosen.name == "dsa19"):
        parser.error("--ood: expected NAME=FILE …, of fashion-mnist or cifar10")
    outside = dict(entry.split("=", 1) for entry in chosen.ood)
    task, found, trained = TASKS[chosen.name], [], set()
    for seed in chosen.seeds:
        data = load(chosen, outside, seed)
        each, commits = results(task, data, seed, chosen.out / chosen.name, chosen.only, now)
        found.append(each)
        trained |= commits
    if len(chosen.only) < len(METHODS):
        return
    note = " ".join(f"{(__doc__ or '').splitlines()[0]} {task.note} {(__doc__ or '').split(chr(10) * 2, 2)[2]}".split())
    path = write(
        f"tickets-{chosen.name}",
        aggregate(found),
        commit=now,
        seeds=chosen.seeds,
        repeats=1,
        note=note,
        threads=torch.get_num_threads(),
        trained_at=trained,
    )
    print("wrote", path)


if __name__ == "__main__":
    main()
