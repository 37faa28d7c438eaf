"""Window cascades over networks trained on Fashion-MNIST, beside single, wider and full ones: quality against MACs and wall-clock.

python benchmarks/cascade_fashion.py RUNS [--seeds 0 1 2] [--time] [--quick]

RUNS has the run folders deep-S (four LeNets), wide1.5-S and wide4-S (one LeNet of about 1.5 and 4 times the MACs) of every seed S:

    F="--data.root FASHION_MNIST --data.fractions [0.7,0.15,0.15] --seed S --data.seed S"
    O="--data.ood {kmnist: KMNIST.npz, notmnist: NOTMNIST.npz}"
    quorate train --config recipes/fashion-mnist-deep.yaml $F "$O" --run RUNS/deep-S
    quorate train --config recipes/fashion-mnist-single.yaml $F "$O" --model.init_args.width [20,38] --model.init_args.hidden [160,80] \
        --run RUNS/wide1.5-S
    quorate train --config recipes/fashion-mnist-single.yaml $F "$O" --model.init_args.width [34,66] --model.init_args.hidden [264,128] \
        --run RUNS/wide4-S

Columns: the first member; the wider networks; all four members; then cascades [1, 3] with the paper's ± 10 % window, the optimal
window of the same deviation from the full ensemble, the optimal one and the best single threshold of the paper's cost, and three stages
[1, 1, 2] of that cost. Thresholds and windows are of validation rows, OOD thresholds and windows of the first half of each OOD set; figures
of test rows and the second halves, mean ± standard deviation over the seeds. MACs and time are those of the policy for coverage at 2 %
risk. FPR is read with the energy, all else with 1 − max p. SCOD: ID and OOD 1 : 1, an accepted OOD row costs as much as an error; ID
coverage .8 on validation rows. Time (--time): test images in batches of 256, one thread, all columns in turn, median of the rounds.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cascade_pools as pools
from quorate.cascade import Policy, simulate
from quorate.cascade.exits import Exits
from quorate.cascade.fitting import policy_of
from quorate.cascade.solving import under_windows
from quorate.cascade.target import parse
from quorate.cascade.task import make_task
from quorate.outputs import Outputs
from record import commit, write
from tables import Figures, aggregate

RISK, COVERAGE, TPR, ALPHA = 0.02, 0.8, 0.95, 0.5
ROUNDS, BATCH, TIMED = 15, 256, 2_000


class Column(NamedTuple):
    """A run, how its members are grouped into stages (() for the first one alone), and how the windows come about."""

    run: str
    groups: tuple[int, ...]
    rule: str


COLUMNS = {
    "single": Column("deep", (), "none"),
    "wide1.5": Column("wide1.5", (1,), "none"),
    "wide4": Column("wide4", (1,), "none"),
    "ensemble": Column("deep", (4,), "none"),
    "paper [1, 3]": Column("deep", (1, 3), "paper"),
    "optimal [1, 3], paper's deviation": Column("deep", (1, 3), "optimal"),
    "optimal [1, 3], paper's cost": Column("deep", (1, 3), "budget"),
    "one threshold [1, 3], paper's cost": Column("deep", (1, 3), "single"),
    "optimal [1, 1, 2], paper's cost": Column("deep", (1, 1, 2), "budget"),
}
TARGETS = {
    "coverage": f"coverage@risk={RISK}", "risk": f"risk@coverage={COVERAGE}", "fpr": f"fpr@tpr={TPR}", "scod": f"risk@coverage={COVERAGE}",
}  # fmt: skip
Sets = Mapping[str, Outputs]


def grouped(outputs: Outputs, groups: Sequence[int]) -> Outputs:
    """The column's stages."""
    return outputs.regroup(groups) if groups else outputs.prefix(1)


def fit(val: Outputs, ood: Sets, what: str, rule: str, limit: float | None) -> Policy:
    """A column's policy for one of :data:`TARGETS`; ``limit`` is the cost of the rules that have one."""
    uncertainty = "energy" if what == "fpr" else "msp"
    alpha = ALPHA if what == "scod" else None
    outside = ood if what in ("fpr", "scod") else {}
    if rule == "none":
        goal, stage = parse(TARGETS[what]), val.names[0]
        found = {name: Exits.of(each, uncertainty=uncertainty) for name, each in outside.items()}
        task = make_task(goal, Exits.of(val, uncertainty=uncertainty), found, alpha=alpha)
        return policy_of(
            under_windows(task, ()), task, names=[stage], joins=["mean"], temperatures=[1.0], costs=task.exits.costs, kinds=[None],
            uncertainty=uncertainty, kind=val.kind, combine=val.combine, rows=None,
        )  # fmt: skip
    window: Any = "optimal" if rule == "budget" else rule
    return Policy.fit(
        val, target=TARGETS[what], window=window, uncertainty=uncertainty, ood=outside or None, alpha=alpha,
        max_cost=limit if rule in ("budget", "single") else None,
    )  # fmt: skip


def policies(parts: Mapping[str, pools.Parts], ood: Mapping[str, Sets]) -> dict[str, dict[str, Policy]]:
    """Every column's policy for every target, from validation rows."""
    found: dict[str, dict[str, Policy]] = {name: {} for name in COLUMNS}
    for what in TARGETS:
        limit = None
        for name, (run, groups, rule) in COLUMNS.items():
            val = grouped(parts[run].validation, groups)
            found[name][what] = fit(val, {key: grouped(each, groups) for key, each in ood[run].items()}, what, rule, limit)
            if rule == "paper":
                limit = spent(found[name][what], val, {key: grouped(each, groups) for key, each in ood[run].items()}, what)
    return found


def spent(policy: Policy, inside: Outputs, outside: Sets, what: str) -> float:
    """Mean MACs per input, of the mix of ID and OOD rows for SCOD."""
    cost = simulate(policy, inside).mean_macs
    if what != "scod":
        return cost
    other = np.concatenate([simulate(policy, each).macs for each in outside.values()]).mean()
    return float(ALPHA * cost + (1 - ALPHA) * other)


def figures(found: Mapping[str, Policy], test: Outputs, ood: Sets) -> Figures:
    """A column's figures on test rows."""
    result: Figures = {}
    for what, policy in found.items():
        routed = simulate(policy, test)
        wrong, accepted = routed.label != test.truth(), routed.accepted
        share, bad = float(accepted.mean()), float((wrong & accepted).mean())
        risk = bad / share if share else None
        let_in = {name: float(simulate(policy, each).accepted.mean()) for name, each in ood.items()}
        if what == "coverage":
            macs = routed.mean_macs
            result |= {"accuracy": float(1 - wrong.mean()), "coverage_at_risk": share, "risk_met": risk, "macs": macs}
        elif what == "risk":
            result |= {"risk_at_coverage": risk, "coverage_met": share, "risk_macs": routed.mean_macs}
        elif what == "fpr":
            result |= {f"fpr:{name}": value for name, value in let_in.items()}
            result |= {"tpr_met": share, "fpr_macs": routed.mean_macs}
        else:
            rows = sum(each.n for each in ood.values())
            outside = sum(let_in[name] * each.n for name, each in ood.items()) / rows
            weight = ALPHA * share + (1 - ALPHA) * outside
            result["scod_risk"] = (ALPHA * bad + (1 - ALPHA) * outside) / weight if weight else None
            result |= {"scod_coverage_met": share, "scod_macs": spent(policy, test, ood, what)}
    return result


def times(folders: Mapping[str, Path], found: Mapping[str, Mapping[str, Policy]], rounds: int) -> dict[str, float]:
    """Milliseconds per 1,000 test images of every column, executed in turn."""
    import torch

    from quorate.cli.reload import reload

    ensembles = {}
    for name, folder in folders.items():
        ensembles[name], data = reload(folder)
        ensembles[name].to(memory_format=torch.channels_last)
    x = data.test.x[:TIMED]
    return executed(ensembles, {name: each["coverage"] for name, each in found.items()}, x, rounds)


def executed(ensembles: Mapping[str, Any], found: Mapping[str, Policy], x: Any, rounds: int) -> dict[str, float]:
    """Milliseconds per 1,000 rows of x by column."""
    from quorate.cascade import Cascade
    from quorate.cost.interleaving import interleaved, quartiles
    from quorate.ensemble import stages

    calls: dict[str, Callable[[], object]] = {}
    for name, (run, groups, _) in COLUMNS.items():
        staged = stages(ensembles[run], groups=groups) if groups else stages(ensembles[run])[:1]
        calls[name] = functools.partial(Cascade(staged, found[name], BATCH).predict, x)
    measured = interleaved(calls, rounds)
    return {name: quartiles(each)[1] * 1000 / len(x) for name, each in measured.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, test, time if asked, print, write results/cascade-fashion.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUNS")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: every seed that has all its runs")
    parser.add_argument("--time", action="store_true", help="run the networks too")
    parser.add_argument("--quick", action="store_true", help="one seed, every fifth row: that it works, no result")
    chosen = parser.parse_args(argv)
    if chosen.time:
        import torch

        torch.set_num_threads(1)
    found = []
    there = pools.runs(chosen.folder, chosen.seeds)
    seeds = list(there)[: 1 if chosen.quick else None]
    for seed in seeds:
        parts = {name: pools.parts(run) for name, run in there[seed].items()}
        halves = {name: pools.outside(run) for name, run in there[seed].items()}
        if chosen.quick:
            parts = {name: pools.Parts(*(each.rows(np.arange(0, each.n, 5)) for each in part)) for name, part in parts.items()}
        fitted = policies(parts, {name: half[0] for name, half in halves.items()})
        columns = {}
        for name, (run, groups, _) in COLUMNS.items():
            ood = {key: grouped(each, groups) for key, each in halves[run][1].items()}
            columns[name] = figures(fitted[name], grouped(parts[run].test, groups), ood)
        if chosen.time:
            folders = {name: run.path for name, run in there[seed].items()}
            for name, milliseconds in times(folders, fitted, 2 if chosen.quick else ROUNDS).items():
                columns[name]["latency_ms"] = milliseconds
        for name, each in columns.items():
            print(f"seed {seed} {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in each.items() if v is not None), flush=True)
        found.append(columns)
    title, _, about = (__doc__ or "").split("\n\n", 2)
    note = " ".join(f"{title} {about}".split())
    path = write(
        "cascade-fashion" + ("-quick" if chosen.quick else ""), aggregate(found), commit=now, seeds=seeds,
        repeats=ROUNDS if chosen.time else 1, note=note, threads=1 if chosen.time else None,
    )  # fmt: skip
    print("wrote", path)


if __name__ == "__main__":
    main()
