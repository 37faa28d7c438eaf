"""Optimal windows beside the paper's at the same deviation from the full ensemble, and what conformal control keeps of its decisions.

python benchmarks/cascade_windows.py [--runs RUNS] [--imagenet DIR] [--splits 20] [--quick]

Pairs: member → the other three of every deep-S in RUNS (Fashion-MNIST; see cascade_fashion.py), and pairs of networks of DIR
(see cascade_imagenet.py), of which the second one decides alone. A deviation is another decision, or another label where both accept,
than the full ensemble's under its τ. "paper": the ± 10 % window, τ of the first stage at its centre. "optimal": the fewest rows sent on
whose deviation on validation rows is no more than that; of labels both know what the target's threshold needs. Shares of rows sent on
and of rows that deviate, on validation and test rows, mean ± standard deviation over the random splits, or the seeds of the runs.
Required: optimal ≤ paper on validation rows, every time.

Conformal: the narrowest of nested windows, made on validation rows, whose deviation is controlled at α = .005 on calibration rows;
"kept" is the share of test rows with the full ensemble's decision. It holds on average over draws, so it is the mean over the splits that
has to be ≥ 99.5 %. For Fashion-MNIST the test rows are split at random, half to calibrate and half to test.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cascade_pools as pools
from quorate.cascade import Policy
from quorate.cascade.deviation import deviations
from quorate.cascade.exits import Exits
from quorate.outputs import Outputs
from record import commit, write
from tables import Figures, aggregate

ALPHA = 0.005
PAIRS = (
    ("timm_mobilenetv3_large_100", "timm_efficientnet_b3a"),
    ("timm_mixnet_m", "timm_efficientnet_b1"),
    ("timm_efficientnet_b1", "timm_gluon_senet154"),
    ("timm_resnet34", "timm_resnext50_32x4d"),
)
FASHION_TARGETS, IMAGENET_TARGETS = ("coverage@risk=0.02", "risk@coverage=0.8"), ("coverage@risk=0.05", "risk@coverage=0.8")
SPLITS = 20


def short(name: str) -> str:
    """A network's name without the library's."""
    return name.removeprefix("timm_").removeprefix("tv_")


def compared(val: Outputs, test: Outputs, target: str) -> tuple[Figures, Figures]:
    """(the paper's window, the optimal one): rows sent on and rows that deviate."""
    paper = Policy.fit(val, target=target)
    optimal = Policy.fit(val, target=target, window="optimal")
    full = optimal.stages[-1].tau
    found = []
    for policy, first in ((paper, paper.stages[0].centre), (optimal, optimal.stages[0].tau)):
        figures: Figures = {}
        for part, outputs in (("validation", val), ("test", test)):
            exits = Exits.under(policy, outputs)
            exit_at = exits.stage([stage.window for stage in policy.stages[:-1]])
            figures[f"{part}_passed"] = float((exit_at > 0).mean())
            figures[f"{part}_deviation"] = float(deviations(exits, exit_at, [first, full]).mean())
        found.append(figures)
    before, after = found
    for part in ("validation", "test"):
        passed, less = before[f"{part}_passed"], after[f"{part}_passed"]
        assert passed is not None
        assert less is not None
        after[f"{part}_saving"] = 1 - less / passed if passed else None
    after["no_more"] = float((after["validation_passed"] or 0.0) <= (before["validation_passed"] or 0.0))
    return before, after


def controlled(val: Outputs, calibration: Outputs, test: Outputs, target: str) -> Figures:
    """What conformal control keeps of the full ensemble's decisions on test rows."""
    policy = Policy.fit(val, target=target, window="optimal", conformal=ALPHA, cal=calibration)
    exits = Exits.under(policy, test)
    exit_at = exits.stage([stage.window for stage in policy.stages[:-1]])
    kept = 1 - float(deviations(exits, exit_at, [stage.tau for stage in policy.stages]).mean())
    return {"kept": kept, "test_passed": float((exit_at > 0).mean()), "cost": float(exits.spent[exit_at].mean())}


def fashion(folder: Path, splits: int, quick: bool) -> tuple[list[dict[str, Figures]], list[dict[str, Figures]]]:
    """Per seed the windows, per seed and split the control."""
    windows, control = [], []
    for run in [each["deep"] for each in pools.runs(folder).values()][: 1 if quick else None]:
        val, _, test = (each.regroup([1, each.stages - 1]) for each in pools.parts(run))
        windows.append(columns("Fashion-MNIST", val, test, FASHION_TARGETS))
        for seed in range(splits):
            half = np.random.default_rng(seed).permutation(test.n) < test.n // 2
            found = controlled(val, test.rows(half), test.rows(~half), FASHION_TARGETS[0])
            control.append({"Fashion-MNIST|conformal": found})
    return windows, control


def columns(name: str, val: Outputs, test: Outputs, targets: Sequence[str]) -> dict[str, Figures]:
    """Of every target, by "pair, target|way"."""
    found = {}
    for target in targets:
        for way, figures in zip(("paper", "optimal"), compared(val, test, target), strict=True):
            found[f"{name}, {target}|{way}"] = figures
    return found


def imagenet(folder: Path, splits: int) -> tuple[list[dict[str, Figures]], list[dict[str, Figures]]]:
    """Per split the windows and the control of every pair."""
    outputs = pools.imagenet(folder)
    windows: list[dict[str, Figures]] = []
    control: list[dict[str, Figures]] = []
    for seed in range(splits):
        windows.append({})
        control.append({})
        for pair in PAIRS:
            name = " → ".join(short(each) for each in pair)
            val, calibration, test = pools.split(pools.chain(outputs, pair), seed)
            windows[-1] |= columns(name, val, test, IMAGENET_TARGETS)
            control[-1][f"{name}|conformal"] = controlled(val, calibration, test, IMAGENET_TARGETS[0])
    return windows, control


def verdicts(table: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """What is required, and whether it is so."""
    lines = []
    for place, entry in table.items():
        if "no_more" in entry:
            lines.append(
                f"{place}: no more rows than the paper's, every time: {'met' if entry['no_more']['mean'] == 1 else 'NOT MET'}"
            )
        if "kept" in entry:
            kept = entry["kept"]["mean"]
            lines.append(
                f"{place}: kept {100 * kept:.3f} %, ≥ {100 * (1 - ALPHA):.1f} %: {'met' if kept >= 1 - ALPHA else 'NOT MET'}"
            )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, write results/cascade-windows.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, metavar="RUNS")
    parser.add_argument("--imagenet", type=Path, metavar="DIR")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--quick", action="store_true", help="one seed, two splits: that it works, no result")
    chosen = parser.parse_args(argv)
    if chosen.runs is None and chosen.imagenet is None:
        parser.error("nothing to compare: give --runs RUNS, --imagenet DIR, or both")
    if chosen.splits < 1:
        parser.error(f"--splits {chosen.splits}: expected 1 or more")
    splits = 2 if chosen.quick else chosen.splits
    table: dict[str, Any] = {}
    if chosen.runs:
        for found in fashion(chosen.runs, splits, chosen.quick):
            table |= aggregate(found)
    if chosen.imagenet:
        for found in imagenet(chosen.imagenet, splits):
            table |= aggregate(found)
    for place, figures in table.items():
        print(f"{place}: " + ", ".join(f"{key} {each['mean']:.4f}" for key, each in figures.items() if each["mean"] is not None))
    print("\n".join(verdicts(table)))
    title, _, about = (__doc__ or "").split("\n\n", 2)
    name = "cascade-windows" + ("-quick" if chosen.quick else "")
    print(
        "wrote", write(name, table, commit=now, seeds=list(range(splits)), repeats=1, note=" ".join(f"{title} {about}".split()))
    )


if __name__ == "__main__":
    main()
