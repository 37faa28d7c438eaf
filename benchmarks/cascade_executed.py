"""What a window cascade gains in wall-clock time when it is executed, beside what it saves in MACs.

python benchmarks/cascade_executed.py [RUNS] [--batches 1 64 256] [--rounds 15] [--quick]

Networks: the four LeNets of RUNS/deep-S (the least S; without RUNS they are left out) as stages [1, 3] with the paper's ± 10 % window for
coverage at 2 % risk on Fashion-MNIST test images, and as [1, 1, 2] with optimal windows of the same cost; an untrained pair ResNet-14 →
ResNet-20 on random images, whose window is put at the quantiles .4 and .6 of its own uncertainties: whether it is right plays no part in
time. channels_last, one thread.

Against each cascade runs the full ensemble through the same stages, in turn, for several rounds; a gain is the median over the
rounds of full ÷ cascade, MAC gain full ÷ cascade of the rows that ran. "stream": one call on all rows, from whose batches the rows that
go on are gathered into full batches of the next stage. "request": a call per batch, as a server without a queue would. At batch 1 both
go through the rows one by one. Overhead: full ensemble through the executor − the bare stage modules under no_grad, per batch and stage.
Required: gain ≥ .9 × the MAC gain at batch 64 and 256, ≥ .85 × at batch 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import cascade_pools as pools
import quorate
from anytime_overhead import bare
from quorate.cascade import Cascade, Policy, simulate
from quorate.cascade.uncertainty import uncertainty
from quorate.cost.interleaving import interleaved, quartiles, ratio
from quorate.ensemble import stages
from quorate.models import ResNet
from quorate.outputs import Outputs
from record import commit, write

REQUIRED = {1: 0.85, 64: 0.9, 256: 0.9}
ROWS = {1: 200, 64: 2048, 256: 4096}  # that one timed call goes through
IMAGE = (3, 32, 32)
SEED = 0


class Case(NamedTuple):
    """An ensemble, its stages' sizes, the policy, and rows to run it on."""

    ensemble: nn.Module
    groups: list[int]
    policy: Policy
    x: Tensor


def resnets(rows: int) -> dict[str, Case]:
    """The untrained pair."""
    torch.manual_seed(SEED)
    ensemble = quorate.DeepEnsemble([ResNet(IMAGE, 10, depth=depth, width=8) for depth in (14, 20)]).eval()
    x = torch.randn(rows, *IMAGE, generator=torch.Generator().manual_seed(SEED))
    staged = stages(ensemble, x[:1])
    with torch.no_grad():
        values = [torch.cat([stage.module(part, {})[0] for part in x.split(256)], 1).numpy() for stage in staged]
    outputs = Outputs(values, costs=[float(stage.macs or 0) for stage in staged], names=[stage.name for stage in staged])
    low, high = np.quantile(uncertainty(outputs, stop=1), [0.4, 0.6]).tolist()
    return {"ResNet-14 → ResNet-20": Case(ensemble, [1, 1], Policy.of(outputs, [(low, high)]), x)}


def lenets(folder: Path, rows: int) -> dict[str, Case]:
    """The trained LeNets of the least seed."""
    from quorate.cli.reload import reload

    run = next(iter(pools.runs(folder).values()))["deep"]
    ensemble, data = reload(run.path)
    val = run.outputs("validation")
    paper = Policy.fit(val.regroup([1, 3]), target="coverage@risk=0.02")
    cost = simulate(paper, val.regroup([1, 3])).mean_macs
    three = Policy.fit(val.regroup([1, 1, 2]), target="coverage@risk=0.02", window="optimal", max_cost=cost)
    x = torch.tensor(np.asarray(data.test.x[:rows]))
    return {"LeNet [1, 3]": Case(ensemble, [1, 3], paper, x), "LeNet [1, 1, 2]": Case(ensemble, [1, 1, 2], three, x)}


def everyone(policy: Policy) -> Policy:
    """The same stages with every row sent on."""
    return replace(policy, stages=tuple(replace(s, window=(None, None)) for s in policy.stages[:-1]) + policy.stages[-1:])


def compare(case: Case, batch: int, rows: int, rounds: int) -> dict[str, Any]:
    """Gains by way to run, milliseconds per 1,000 rows, overhead."""
    x = case.x[:rows]
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    ensemble = case.ensemble.to(memory_format=torch.channels_last)
    staged = stages(ensemble, groups=case.groups)
    cascade, full = (Cascade(staged, policy, batch) for policy in (case.policy, everyone(case.policy)))
    modules = [stage.module for stage in staged]
    parts = x.split(batch)

    def requests(one: Cascade) -> Callable[[], object]:
        return lambda: [one.predict(part) for part in parts]

    calls: dict[str, Callable[[], object]] = {
        "request, cascade": requests(cascade),
        "request, full": requests(full),
        "bare": lambda: [bare(modules, part)() for part in parts],
    }
    if batch > 1:
        calls |= {"stream, cascade": lambda: cascade.predict(x), "stream, full": lambda: full.predict(x)}
    found = cascade.predict(x) if batch > 1 else None
    macs = np.concatenate([cascade.predict(part).macs for part in parts]) if found is None else found.macs
    saved = float(sum(cascade.costs) / macs.mean())
    times = interleaved(calls, rounds, least_ms=0 if rounds < 3 else 1)
    result: dict[str, Any] = {
        "rows": len(x),
        "mac_gain": saved,
        "ms_per_1000": {name: quartiles(each)[1] * 1000 / len(x) for name, each in times.items()},
        "overhead_us": 1e3 * (quartiles(times["request, full"])[1] - quartiles(times["bare"])[1]) / (len(parts) * len(staged)),
        "gain": {},
    }
    for way in ("stream", "request") if batch > 1 else ("request",):
        low, median, high = ratio(times, f"{way}, full", f"{way}, cascade")
        result["gain"][way] = {"median": median, "q1": low, "q3": high, "over_mac_gain": median / saved}
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, write results/cascade-executed.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUNS", nargs="?")
    parser.add_argument("--batches", type=int, nargs="+", default=list(REQUIRED))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="few rows, two rounds: that it works, no result")
    chosen = parser.parse_args(argv)
    if min(chosen.batches) < 1 or chosen.rounds < 1:
        parser.error("--batches and --rounds: expected 1 or more")
    torch.set_num_threads(1)
    most = 64 if chosen.quick else max(ROWS.values())
    cases = (lenets(chosen.folder, most) if chosen.folder else {}) | resnets(most)
    figures: dict[str, Any] = {}
    for name, case in cases.items():
        for batch in chosen.batches:
            rows = min(8 * batch if chosen.quick else ROWS.get(batch, 8 * batch), len(case.x))
            found = figures[f"{name}, batch {batch}"] = compare(case, batch, rows, 2 if chosen.quick else chosen.rounds)
            for way, gain in found["gain"].items():
                least = REQUIRED.get(batch)
                verdict = "" if least is None else f", ≥ {least} {'met' if gain['over_mac_gain'] >= least else 'NOT MET'}"
                print(
                    f"{name}, batch {batch}, {way}: {gain['median']:.2f} × ({gain['q1']:.2f}–{gain['q3']:.2f}), MACs "
                    f"{found['mac_gain']:.2f} ×: {gain['over_mac_gain']:.3f}{verdict}; overhead {found['overhead_us']:.0f} µs",
                    flush=True,
                )
    title, _, about = (__doc__ or "").split("\n\n", 2)
    path = write(
        "cascade-executed" + ("-quick" if chosen.quick else ""), figures, commit=now, seeds=[SEED],
        repeats=2 if chosen.quick else chosen.rounds, note=" ".join(f"{title} {about}".split()), threads=1,
    )  # fmt: skip
    print("wrote", path)


if __name__ == "__main__":
    main()
