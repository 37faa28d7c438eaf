"""Stages at lower precision with a refitted policy: what changes in quality, bytes and time. Four LeNets on Fashion-MNIST as [1, 3].

python benchmarks/runtime_precision.py RUNS [--seeds 0 1 2] [--rounds 15] [--quick]

RUNS has the run folders deep-S that cascade_fashion.py tells how to train; their recipes name the data. The policy is the paper's
window for coverage at 2 % risk. quorate.export.refit.lowered makes all stages' programs int8, fp16 or bf16, finds scales on 512 validation
rows, and fits windows and thresholds anew on validation rows, at no more mean cost. Figures of test rows by ONNX Runtime, mean ± standard
deviation over the seeds: accuracy, NLL and ECE (15 bins) at exit, coverage and risk at the policy's threshold, labels as fp32 gives them,
MACs per row, bytes of all programs. Milliseconds per 1,000 rows in batches of 1 and of 256, one thread, all precisions in turn, median of
the rounds, mean ± standard deviation over the seeds as the rest; "÷ fp32" is the median of the rounds' ratios. A precision that is refused
has the reason instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quorate.cascade import Cascade, Policy, simulate
from quorate.cli.reload import reload
from quorate.cost.interleaving import interleaved, quartiles, ratio
from quorate.ensemble import stages
from quorate.export import programs
from quorate.export.precision import LOWER
from quorate.export.refit import lowered
from quorate.runs import Run
from quorate.runtime import OnnxStage, Program
from quorate.runtime.collecting import collect
from quorate.runtime.measuring import figures
from quorate.runtime.session import open_session
from record import commit, write
from tables import Figures, aggregate

GROUPS = (1, 3)
TARGET = "coverage@risk=0.02"
PLAIN = "fp32"
TIMED = {1: 200, 256: 2048}  # rows in a timed call, by batch
SHOWN = ("accuracy", "nll", "ece", "coverage", "risk", "macs")
Labelled = tuple[NDArray[Any], NDArray[Any]]


def trained(folder: Path, seeds: Sequence[int] | None) -> dict[int, Path]:
    """The finished runs deep-S, by seed; of every seed that there is, by default.

    Raises:
        ValueError: none, or a seed asked for that is not there or not finished.
    """
    there = {
        int(path.name.rpartition("-")[2]): path
        for path in sorted(folder.glob("deep-*"))
        if path.name.rpartition("-")[2].isdigit()
    }
    found = {seed: path for seed, path in there.items() if (seeds is None or seed in seeds) and Run(path).finished}
    absent = [f"deep-{seed}" for seed in seeds or [] if seed not in found]
    if absent or not found:
        raise ValueError(
            f"{folder} has no finished runs {', '.join(absent) or 'deep-SEED'}: train them first, as cascade_fashion.py tells"
        )
    return dict(sorted(found.items()))


def rows(split: Any, most: int | None) -> Labelled:
    """(raw inputs, labels) of a split's first rows."""
    return np.ascontiguousarray(split.x[:most]), np.asarray(split.y[:most])


def versions(
    ensemble: nn.Module, val: Labelled, test: Labelled, *, target: str = TARGET, groups: Sequence[int] = GROUPS
) -> tuple[dict[str, tuple[Sequence[Program], Policy]], dict[str, Figures], dict[str, str]]:
    """(programs and policy, figures of test rows, why refused), each by precision."""
    parts = stages(ensemble, torch.tensor(val[0][:1]), groups)
    policy = Policy.fit(collect(parts, *val, kind="logits"), target=target)
    made = programs(ensemble, val[0][:8], names=[stage.name for stage in policy.stages])
    kinds: dict[str, tuple[Sequence[Program], Policy]] = {PLAIN: (made, policy)}
    found, refused = {PLAIN: measured(made, policy, test)}, dict[str, str]()
    for precision in LOWER:
        try:
            low = lowered(made, policy, precision, x=val[0], labels=val[1], test=test)
        except ValueError as error:
            refused[precision] = str(error)
            continue
        kinds[precision] = low.programs, low.policy
        after = low.change["test"]["after"]
        found[precision] = {name: after[name] for name in SHOWN if after[name] is not None}
        found[precision] |= {"agreement": low.change["test"]["agreement"], "bytes": size(low.programs)}
    return kinds, found, refused


def sessions(made: Sequence[Program]) -> list[OnnxStage]:
    """The programs as stages, on one thread."""
    return [OnnxStage(open_session(program.onnx, program.ports.stage, threads=1), program.ports) for program in made]


def measured(made: Sequence[Program], policy: Policy, test: Labelled) -> Figures:
    """Figures of test rows."""
    outputs = collect(sessions(made), *test, kind=policy.kind, combine=policy.combine)
    said = figures(simulate(policy, outputs), outputs.truth(), sum(stage.cost for stage in policy.stages))
    return {name: value for name in SHOWN if (value := said[name]) is not None} | {"agreement": 1.0, "bytes": size(made)}


def size(made: Sequence[Program]) -> float:
    """Bytes of all programs."""
    return float(sum(len(program.onnx) for program in made))


def times(kinds: Mapping[str, tuple[Sequence[Program], Policy]], x: NDArray[Any], rounds: int) -> dict[str, Figures]:
    """Milliseconds per 1,000 rows and their ratio to fp32's, by precision and batch."""
    found: dict[str, Figures] = {name: {} for name in kinds}
    for batch, count in TIMED.items():
        part = x[:count]

        def call(made: Sequence[Program], policy: Policy, batch: int = batch, part: NDArray[Any] = part) -> Callable[[], object]:
            cascade = Cascade(sessions(made), policy, batch)
            pieces = [part[start : start + batch] for start in range(0, len(part), batch)]
            return lambda: [cascade.predict(piece) for piece in pieces]

        taken = interleaved({name: call(*kind) for name, kind in kinds.items()}, rounds, least_ms=0)
        for name in kinds:
            found[name][f"ms:{batch}"] = quartiles(taken[name])[1] * 1000 / len(part)
            found[name][f"over:{batch}"] = ratio(taken, name, PLAIN)[1]
    return found


def show(found: Mapping[str, Mapping[str, Any]], refused: Mapping[str, str]) -> None:
    """For the terminal."""
    for name, each in found.items():
        told = ", ".join(f"{key} {entry['mean']:.5g}" for key, entry in each.items() if entry["mean"] is not None)
        print(f"{name}: {told}", flush=True)
    for name, why in refused.items():
        print(f"{name}: refused, {why}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Lower, measure, print, write results/runtime-precision.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUNS")
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one seed, few rows, two rounds: that it works, no result")
    asked = parser.parse_args(argv)
    if asked.rounds < 1:
        parser.error("--rounds: expected 1 or more")
    torch.set_num_threads(1)
    runs = trained(asked.folder, asked.seeds)
    seeds, most, rounds = (
        list(runs)[: 1 if asked.quick else None],
        600 if asked.quick else None,
        2 if asked.quick else asked.rounds,
    )
    each: list[dict[str, Figures]] = []
    refused: dict[str, str] = {}
    for seed in seeds:
        ensemble, data = reload(runs[seed])
        val, test = rows(data.validation, most), rows(data.test, most)
        kinds, found, why = versions(ensemble, val, test)
        taken = times(kinds, test[0], rounds)
        each.append({name: quality | taken[name] for name, quality in found.items()})
        refused |= why
    summed = aggregate(each)
    show(summed, refused)
    title, _, about = (__doc__ or "").split("\n\n", 2)
    path = write(
        "runtime-precision" + ("-quick" if asked.quick else ""), {"precisions": summed, "refused": refused}, commit=now, seeds=seeds,
        repeats=rounds, note=" ".join(f"{title} {about}".split()), threads=1,
    )  # fmt: skip
    print("wrote", path)


if __name__ == "__main__":
    main()
