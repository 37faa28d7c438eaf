"""The planner over 14 real networks on ImageNet: accuracy, and coverage at 5 % risk, against GMACs, beside what it has to beat.

python benchmarks/cascade_imagenet.py DIR [--splits 20] [--processes 1] [--quick]

DIR has imagenet_val_top1_14models.npz and model_costs.csv: top-1 class and its probability of 14 networks on the 50,000 validation images,
and GMACs. Split at random into 10,000 rows for validation, 15,000 for calibration and 25,000 for the test, once per seed. At every limit
of mean GMACs per image the best on validation rows is taken of: single networks, all pairs with one threshold, all pairs with the
paper's ± 10 % window (for coverage: it needs a threshold), and the planner under that limit. Figures are of test rows, mean ± standard
deviation over the splits. "coverage" and "risk" are under the thresholds that validation rows chose for 5 %, "exceeded" is the share of
splits whose test risk is above 5 %; "read" is the coverage at the threshold that an oracle would read off the test rows; certified: under
the thresholds that calibration rows vouch for with δ = .05, 0 where they vouch for none.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cascade_pools as pools
import cascade_rivals as rivals
from quorate.cascade import Policy
from quorate.cascade.planner import plan
from quorate.cascade.target import Target, parse
from quorate.outputs import Outputs
from record import commit, write
from tables import Figures, aggregate

LIMITS = {  # GMACs per image; 2.01, 4.26 and 20.77 are three of the networks'
    "accuracy": (0.4, 0.65, 1.2, 2.01, 3.6),
    "coverage@risk=0.05": (0.65, 1.2, 2.01, 4.3, 20.8),
}
YARDSTICKS = {
    ("accuracy", 0.65): 0.800, ("accuracy", 1.2): 0.817, ("accuracy", 3.6): 0.822,
    ("coverage", 2.01): 0.559, ("coverage", 4.3): 0.593, ("coverage", 20.8): 0.630,
}  # fmt: skip
SPLITS = 20


def policies(parts: pools.Parts, goal: Target, limits: Sequence[float], options: dict[str, Any]) -> dict[str, Policy]:
    """ "way|limit" → the best policy on validation rows that costs at most so much there; those that there are."""
    val, rows = parts.validation, parts.calibration.n
    ways = {"single": rivals.singles(val, goal), "one-threshold": rivals.one_threshold(val, goal)}
    if goal.level is not None:
        ways["paper"] = rivals.paper_window(val, goal)
    found = {}
    for way, choices in ways.items():
        for limit in limits:
            choice = rivals.within(choices, limit)
            policy = None if choice is None else rivals.as_policy(val, choice, goal, rows)
            if policy is not None:
                found[f"{way}|{limit:g}"] = policy
    for limit in limits:
        found[f"planner|{limit:g}"] = plan(pools.pool(val), str(goal), max_cost=limit, front=2, **options)[-1].policy
    return found


def columns(outputs: Outputs, seed: int, count: int | None, options: dict[str, Any]) -> dict[str, Figures]:
    """One split's test figures by "figure|way|limit"; of the first ``count`` limits, if that is given."""
    parts = pools.split(outputs, seed)
    found = {}
    for target, limits in LIMITS.items():
        goal = parse(target)
        for place, policy in policies(parts, goal, limits[:count], options).items():
            found[f"{goal.figure}|{place}"] = rivals.tested(policy, parts.calibration, parts.test, goal)
            found[f"{goal.figure}|{place}"]["stages"] = float(len(policy.stages))
    return found


def verdicts(table: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Whether the planner's means over the splits beat the yardsticks."""
    lines = []
    for (figure, limit), least in YARDSTICKS.items():
        entry = table.get(f"{figure}|planner|{limit:g}", {}).get(figure)
        if entry is not None and entry["mean"] is not None:
            verdict = "met" if entry["mean"] > least else "NOT MET"
            lines.append(f"planner, {figure} at {limit:g} GMACs: {entry['mean']:.4f}, more than {least:.3f} {verdict}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Plan on every split, print, write results/cascade-imagenet.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--processes", type=int, default=1, help="splits that are worked on at once")
    parser.add_argument("--quick", action="store_true", help="one split, pairs only, two limits: that it works, no result")
    chosen = parser.parse_args(argv)
    if chosen.splits < 1 or chosen.processes < 1:
        parser.error("--splits and --processes: expected 1 or more")
    count, splits = (2, 1) if chosen.quick else (None, chosen.splits)
    work = functools.partial(columns, pools.imagenet(chosen.folder), count=count, options={"most": 2} if chosen.quick else {})
    found = []
    with ProcessPoolExecutor(chosen.processes, get_context("spawn")) as executor:
        for seed, table in enumerate(executor.map(work, range(splits))):
            found.append(table)
            for place, figures in table.items():
                told = ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if value is not None)
                print(f"split {seed} {place}: {told}", flush=True)
    table = aggregate(found)
    print("\n".join(verdicts(table)))
    title, _, about = (__doc__ or "").split("\n\n", 2)
    note = " ".join(f"{title} {about} {rivals.__doc__}".split())
    name = "cascade-imagenet" + ("-quick" if chosen.quick else "")
    print("wrote", write(name, table, commit=now, seeds=list(range(splits)), repeats=1, note=note))


if __name__ == "__main__":
    main()
