"""A teacher taken apart by B-DISTIL beside what else its MACs could buy; every prefix, mean and standard deviation over seeds.

python benchmarks/bdistil_table.py digits|fashion-mnist|dsa19|speech12|cifar10 [--path P] [--seeds 0 1 2]
python benchmarks/bdistil_table.py …  --only METHOD …     # train these alone; the table is written once all are there, or with --write
python benchmarks/bdistil_table.py …  --smoke             # two epochs and two rounds, beside the runs: that it works, no result

Every method of a seed sees the same data and the same teacher; each seed has a partition, weights and batch order of its own. Figures are
of the test rows, which decide nothing. METHOD/prefixT is of the first T networks, or of the one network of their cost, for every T that
all seeds have; METHOD/full is of the last prefix of each seed. KL, agreement and errors are against the teacher; errors are of
row-centred logits, where a method has logits: the largest over rows and classes, and the mean. "training_macs" is what a prefix needs,
search included; "training_macs_all" of all networks that the method trained. The teacher's own training is in its column only.
right_to_wrong and wrong_to_right count the test rows that the step from the prefix before turned. "over" is the seed's difference to
another method's prefix of the same index. Finished runs under --out are read back, interrupted ones go on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import bdistil_methods as methods
from bdistil_methods import METHODS, Prefix, Result
from bdistil_seed import Seed
from bdistil_tasks import TASKS, Task, load
from quorate import metrics
from quorate.combination import log_softmax
from quorate.files import write_json
from record import commit, write
from tables import Figures, aggregate, summary, trained_at

SAME_SIZES = ("bdistil-potential", "kd-single", "kd-independent", "boosting", "joint")
POINT = 0.01


def figures(prefix: Prefix, labels: np.ndarray, g: np.ndarray, teacher_macs: float) -> Figures:
    """Of one prefix: N labels, the teacher's logits (N, C)."""
    found: Figures = {
        "accuracy": float((prefix.log_probs.argmax(1) == labels).mean()),
        "nll": -float(prefix.log_probs[np.arange(len(labels)), labels].mean()),
        "teacher_kl": metrics.fidelity_kl(g, prefix.log_probs),
        "teacher_agreement": metrics.fidelity_agreement(g, prefix.log_probs),
    }
    if prefix.logits is not None:
        error = metrics.fidelity_error(g, prefix.logits, centred=True)
        found |= {"max_error": float(error.max_error.max()), "mean_error": float(error.mean_error.mean())}
    found |= {
        "networks": prefix.networks,
        "macs": float(prefix.macs),
        "macs_share": prefix.macs / teacher_macs,
        "parameters": prefix.parameters,
        "training_macs": float(prefix.training_macs),
    }
    return found if prefix.carried is None else found | {"carried_bytes": prefix.carried}


def columns(name: str, result: Result, labels: np.ndarray, g: np.ndarray, teacher_macs: float) -> dict[str, Figures]:
    """Of all prefixes of a method, and of the last as ``full``."""
    each = [figures(prefix, labels, g, teacher_macs) for prefix in result.prefixes]
    steps = metrics.prefixes(np.stack([prefix.log_probs.argmax(1) for prefix in result.prefixes]), labels)
    for t in range(1, len(each)):
        each[t] |= {"right_to_wrong": int(steps.broken[t - 1]), "wrong_to_right": int(steps.mended[t - 1])}
    found = {f"{name}/prefix{t + 1}": one for t, one in enumerate(each)}
    peak = [prefix.carried for prefix in result.prefixes if prefix.carried is not None]
    full = {**each[-1], "training_macs_all": float(result.training_macs)}
    return found | {f"{name}/full": full | ({"carried_bytes_most": max(peak)} if peak else {})}


def compare_(found: dict[str, Figures]) -> None:
    """Add the differences to the teacher, to RESHED and to NO-RESHED; to the latter where prefixes have the same sizes."""
    for column, own in found.items():
        name, _, place = column.partition("/")
        others = {"teacher": found["teacher"]} if place else {}
        if name in SAME_SIZES:
            others |= {what.replace("-", "_"): found.get(f"{what}/{place}", {}) for what in ("reshed", "no-reshed")}
        for what, other in others.items():
            for key in ("accuracy", "nll"):
                if (mine := own.get(key)) is not None and (its := other.get(key)) is not None:
                    own[f"{key}_over_{what}"] = mine - its


def results(seed: Seed, only: Sequence[str], now: str) -> tuple[dict[str, Figures], set[str]]:
    """One seed's figures by column, and the commits at which its runs were made."""
    trained = {trained_at(seed.run("teacher"), now)}
    facts, labels = seed.teacher.facts, seed.teacher.outputs["test"].truth()
    logits = seed.g_test.astype(np.float64)
    teacher = Prefix(log_softmax(logits), logits, 1, facts["macs"], facts["parameters"], facts["training_macs"])
    found = {"teacher": figures(teacher, labels, seed.g_test, facts["macs"])}
    for name in only:
        trained.add(trained_at(seed.run(name), now))
        for column, each in columns(name, METHODS[name](seed), labels, seed.g_test, facts["macs"]).items():
            found[column] = each
            told = {key: value if value is None else float(f"{value:.4g}") for key, value in each.items()}
            print(f"seed {seed.seed} {column}", json.dumps(told), flush=True)
    compare_(found)
    return found, trained


def in_all(found: Sequence[dict[str, Figures]]) -> list[dict[str, Figures]]:
    """The columns that all seeds have: seeds may differ in their numbers of students."""
    return [{column: own for column, own in each.items() if all(column in other for other in found)} for each in found]


def verdicts(found: Sequence[dict[str, Figures]]) -> list[str]:
    """What is expected of bdistil-potential, and whether the means over the seeds say so."""
    lines = []

    def verdict(what: str, column: str, key: str, least: float) -> None:
        mean = summary([each[column].get(key) for each in found])["mean"]
        if mean is not None:
            lines.append(f"{column}: {what}: {mean:+.4f}, {'met' if mean >= least else 'NOT MET'}")

    for column in in_all(found)[0]:
        if column.startswith("bdistil-potential/"):
            verdict("accuracy at least RESHED's", column, "accuracy_over_reshed", 0.0)
            verdict("accuracy within a point of NO-RESHED's", column, "accuracy_over_no_reshed", -POINT)
    if "bdistil-potential/full" in found[0]:
        verdict("accuracy within a point of the teacher's", "bdistil-potential/full", "accuracy_over_teacher", -POINT)
    return lines


def shortened(task: Task) -> Task:
    """Two epochs, two rounds, two candidates; one edge of a joint game and links at once, so that a second student is likely and linked."""
    brief = {"epochs": 2, "warmup_epochs": 0.0}
    rules = {**task.rules, "rounds": 2, "candidates": 2, "joint": True, "links": ("all",)}
    return replace(task, teacher={**task.teacher, **brief}, training={**task.training, **brief}, rules=rules)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not there yet, and write results/bdistil-NAME.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TASKS)
    parser.add_argument(
        "--path", type=Path, help="fashion-mnist: folder of the four idx files; dsa19, speech12, cifar10: the .npz"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/bdistil"))
    parser.add_argument("--write", action="store_true", help="write the table of --only, which says what it leaves out")
    parser.add_argument("--smoke", action="store_true")
    chosen = parser.parse_args(argv)
    if (chosen.path is None) != (chosen.name == "digits"):
        parser.error("expected digits, or another name with --path")
    task = shortened(TASKS[chosen.name]) if chosen.smoke else TASKS[chosen.name]
    folder = chosen.out / (f"{chosen.name}-smoke" if chosen.smoke else chosen.name)
    found, trained = [], set[str]()
    for number in chosen.seeds:
        seed = Seed(task, load(chosen.name, chosen.path, number), number, folder)
        each, commits = results(seed, [name for name in METHODS if name in chosen.only], now)
        found.append(each)
        trained |= commits
    left_out = [name for name in METHODS if name not in chosen.only]
    if left_out and not chosen.write:
        return
    print("\n".join(verdicts(found)))
    table = aggregate(in_all(found))
    if chosen.smoke:
        write_json(folder / "figures.json", table)
        return
    title, _, about = (__doc__ or "").split("\n\n", 2)
    without = f"Not trained here: {', '.join(left_out)}." if left_out else ""
    note = " ".join(f"{title} {task.note} {without} {about} {methods.__doc__}".split())
    path = write(
        f"bdistil-{chosen.name}",
        table,
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
