"""Early prediction: recurrent students of the parts of a sequence, beside their teacher stopped at the same step.

python benchmarks/bdistil_early.py dsa19 FILE.npz [--parts 5] [--seeds 0 1 2]

The teacher is an LSTM that reads whole sequences, trained on labels; its students have half its units, go on from each other's state and
each see one part. Figures of the test rows (people nobody was trained on), by the part after which one stops:

    students    mean logits of the students so far, which all aim at the teacher's outputs for the whole sequence
    weighted    the same by the non-negative weights of least squared error to the teacher on validation rows, whether or not
                cross-validation would take them
    last        the last student alone
    teacher     the teacher's own head on its state at that step

and of a cascade over the students (msp; the window holds the validation rows' less sure half, after every part but the last): accuracy,
and the share of the sequence that was asked for. MACs are of all steps so far, per input. No step is computed twice.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import quorate
from quorate.cascade import Policy, simulate
from quorate.cascade.uncertainty import uncertainty
from quorate.combination import log_softmax
from quorate.data import Data, npz_rows
from quorate.data.split import Split
from quorate.distil.combining import prefix_matrix, student_weights
from quorate.distil.distillation import distil
from quorate.distil.early import from_teacher
from quorate.models import RNN
from record import commit, write
from tables import Figures, aggregate, trained_at

TEACHER = {"epochs": 12, "batch_size": 64, "optimizer": "adamw", "lr": 0.003, "weight_decay": 0.01, "warmup_epochs": 1.0}
STUDENT = {**TEACHER, "weight_decay": 0.0}
DIRECT = 0.5  # share of the validation rows that leave after a part


class Stopped(nn.Module):
    """A recurrent teacher's head on its states at the given steps: x (B, C, L) → (K, B, classes)."""

    def __init__(self, network: nn.Sequential, steps: Sequence[int]) -> None:
        super().__init__()
        self.normalise, self.network, self.steps = network[0], network[1], tuple(steps)

    def forward(self, x: Tensor) -> Tensor:
        states = self.network.recurrent(self.normalise(x).transpose(1, 2))[0]
        return torch.stack([self.network.fc(states[:, step - 1]) for step in self.steps])


def load(path: Path, seed: int) -> Data:
    """Nineteen activities, people 6 and 7 unseen; ``seed`` says who validates and calibrates."""
    columns: dict[str, Any] = {"groups": "subject", "fold": "subject", "test": [6, 7], "classes": "activities"}
    return npz_rows(path, layout="nlc", scale=["lo", "hi"], seed=seed, name="dsa19", **columns)


def quality(log_p: np.ndarray, labels: np.ndarray) -> Figures:
    """Of log-probabilities (N, C)."""
    return {
        "accuracy": float((log_p.argmax(1) == labels).mean()),
        "nll": -float(log_p[np.arange(len(labels)), labels].mean()),
    }


@torch.no_grad()
def stopped(network: nn.Sequential, steps: Sequence[int], split: Split) -> np.ndarray:
    """The teacher's logits (K, N, C) at each step."""
    model = Stopped(network, steps).eval()
    parts = [model(split.batch(np.arange(i, min(i + 256, len(split))))[0]).numpy() for i in range(0, len(split), 256)]
    return np.concatenate(parts, axis=1)


def leaving_policy(validation: quorate.Outputs) -> Policy:
    """After every part but the last the surer half of the validation rows that are still there is decided."""
    windows: list[tuple[float, None]] = []
    there = np.ones(validation.n, bool)
    for stop in range(1, validation.stages):
        u = uncertainty(validation, "msp", stop)
        limit = float(np.quantile(u[there], DIRECT))
        windows.append((limit, None))
        there &= u >= limit
    return Policy.of(validation, windows, uncertainty="msp")


def results(path: Path, seed: int, parts: int, out: Path) -> dict[str, Figures]:
    """One seed's figures by column."""
    data = load(path, seed)
    torch.manual_seed(seed)
    network = nn.Sequential(data.normalise(), RNN(data.shape, data.width, hidden=64, dropout=0.2))
    fitted = quorate.fit(quorate.DeepEnsemble([network]), data, run=out / f"early-teacher-{seed}", seed=seed, **TEACHER)
    teacher = fitted.ensemble.members[0]
    example = data.train.batch(np.arange(1))[0]
    students = from_teacher(teacher, example, parts, width=0.5, normalise=data.normalise(), seed=seed)
    rules = {"rounds": parts, "patience": parts, "candidates": 2, "lrs": (1.0, 0.5), "budget": 10.0}
    done = distil(
        fitted.ensemble, students, data, run=out / f"early-students-{seed}", rules=rules, seed=seed, augment=False, **STUDENT
    )
    test, validation = done.outputs["test"], done.outputs["validation"]
    labels, steps = test.truth(), [student.span[1] for student in students]
    members = np.concatenate([np.asarray(v, np.float64) for v in test.values])
    held = np.concatenate([np.asarray(v, np.float64) for v in validation.values])
    fit_to = stopped(teacher, steps, data.validation)[-1]
    weights = student_weights(held, kind="logits", teacher=fit_to, seed=seed)
    ways = {
        "students": prefix_matrix(np.ones(parts)),
        "weighted": prefix_matrix(weights.fitted),
        "last": np.eye(parts),
    }
    cut = stopped(teacher, steps, data.test)
    found: dict[str, Figures] = {}
    for k, step in enumerate(steps):
        share: Figures = {"sequence": step / data.shape[1], "macs": float(sum(done.facts["stage_macs"][: k + 1]))}
        for name, matrix in ways.items():
            found[f"{name}/part{k + 1}"] = quality(log_softmax(np.tensordot(matrix[k], members, 1)), labels) | share
        macs: Figures = {"macs": fitted.facts["macs"] * step / data.shape[1]}
        found[f"teacher/part{k + 1}"] = quality(log_softmax(cut[k]), labels) | share | macs
    policy = leaving_policy(validation)
    prediction = simulate(policy, test)
    ends = np.asarray(steps) / data.shape[1]
    found["cascade"] = {
        "accuracy": float((prediction.label == labels).mean()),
        "sequence": float(ends[prediction.stage].mean()),
        "macs": prediction.mean_macs,
    }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not there yet, and write results/bdistil-early-dsa19.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["dsa19"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/bdistil"))
    chosen = parser.parse_args(argv)
    each, trained = [], set()
    for seed in chosen.seeds:
        trained.add(trained_at(chosen.out / chosen.name / f"early-students-{seed}", now))
        each.append(results(chosen.file, seed, chosen.parts, chosen.out / chosen.name))
        print(seed, json.dumps({name: round(figures["accuracy"] or 0.0, 4) for name, figures in each[-1].items()}), flush=True)
    path = write(
        f"bdistil-early-{chosen.name}",
        aggregate(each),
        commit=now,
        seeds=chosen.seeds,
        repeats=1,
        note=" ".join((__doc__ or "").split()),
        threads=torch.get_num_threads(),
        trained_at=trained,
    )
    print("wrote", path)


if __name__ == "__main__":
    main()
