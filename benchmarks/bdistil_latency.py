"""Milliseconds of every prefix of a distilled ensemble beside the teacher's, and beside the one network that costs as many MACs.

python benchmarks/bdistil_latency.py digits|fashion-mnist|dsa19|speech12|cifar10 [--path P] [--seeds 0] [--threads 1] [--batches 1 64]

It reads the runs that bdistil_table.py made: the teacher, bdistil-potential and no-reshed, and trains nothing. All calls of a seed and
batch are timed in turn in one run, in PyTorch without gradients and in ONNX Runtime; "over" are ratios of two times of one round, within
one engine. The batch is the first test rows. "staged" is quorate.cascade.Anytime on all stages, with its checks, combination and answer,
in PyTorch, and "students" the students' modules alone; the first over the second is the overhead of staged execution, of which at most
1.15 is required at batch 1 and 1.05 at batch 64. Peak memory is that of PyTorch's activations: the most bytes of tensors made by a call
that are alive at once, those that are carried included, weights, input and what an operator needs for itself not; weights are told apart,
4 bytes each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import record
from bdistil_engines import Call, alone, eager, eager_stages, exported, exported_stages, peak_activations
from bdistil_methods import no_reshed_name, no_reshed_network, sizes
from bdistil_seed import Seed
from bdistil_table import shortened
from bdistil_tasks import TASKS, load
from packed_speed import against, spread
from quorate import cost, runs, stages
from quorate.cascade.anytime import Anytime
from quorate.cost.interleaving import interleaved

ALLOWED = {1: 1.15, 64: 1.05}


class Networks:
    """What is timed, of one seed.

    Attributes:
        teacher: raw x → logits. ensemble: the distilled one, members its stages. equals: per prefix the network of equal cost.

    Raises:
        ValueError: a run that is missing or not finished.
    """

    def __init__(self, seed: Seed) -> None:
        finished(seed, "teacher")
        finished(seed, "bdistil-potential")
        self.teacher, self.ensemble = plain(seed.network), plain(seed.first.ensemble)
        self.stages: list[Any] = self.ensemble.stages()  # type: ignore[operator]
        if self.ensemble.combine != "logits":
            raise ValueError(
                f"the ensemble's stages give prefixes ({self.ensemble.combine}): expected students, rules combine='uniform'"
            )
        self.equals = []
        for size in sizes(seed):
            finished(seed, no_reshed_name(size))
            self.equals.append(plain(no_reshed_network(seed, size).ensemble.members[0]))  # type: ignore[index,union-attr]
        self.macs = list(accumulate(seed.first.facts["stage_macs"]))
        self.parameters = list(accumulate(cost.parameters(student) for student in seed.first.ensemble.students))
        self.seed = seed

    def prefixes(self) -> range:
        """1 … T."""
        return range(1, len(self.stages) + 1)


def finished(seed: Seed, name: str) -> None:
    """A ValueError unless the run is there and finished."""
    folder = seed.run(name)
    if not (folder / "run.json").exists() or not runs.Run(folder).finished:
        raise ValueError(
            f"{folder} holds no finished run: expected those of bdistil_table.py, make them first with the same --out"
        )


def plain(module: nn.Module) -> Any:
    """In eval mode, on the CPU, in the usual memory layout."""
    return module.eval().cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def calls(networks: Networks, x: Tensor, threads: int, onnx: bool) -> dict[str, Call]:
    """What is timed, by engine and name."""
    single = {"teacher": networks.teacher, **{f"no-reshed {t}": each for t, each in enumerate(networks.equals, 1)}}
    found = {f"eager, {name}": eager(each, x) for name, each in single.items()}
    found |= {f"eager, prefix {t}": eager_stages(networks.stages[:t], x) for t in networks.prefixes()}
    if onnx:
        found |= {f"onnxruntime, {name}": exported(each, x, threads) for name, each in single.items()}
        found |= {f"onnxruntime, prefix {t}": call for t, call in enumerate(exported_stages(networks.stages, x, threads), 1)}
    anytime = Anytime(stages(networks.ensemble), "logits", "logits")
    return found | {"staged": lambda: anytime.predict(x), "students": alone(networks.stages, x)}


def measure(networks: Networks, batch: int, threads: int, repeats: int, onnx: bool) -> dict[str, Any]:
    """Times, ratios, MACs and memory on one batch."""
    test = networks.seed.data.test
    x = test.batch(np.arange(batch) % len(test))[0]
    made = calls(networks, x, threads, onnx)
    times = interleaved(made, repeats=repeats)
    engines = ["eager", *(["onnxruntime"] if onnx else [])]
    pairs = [(f"{engine}, prefix {t}", f"{engine}, {base}") for engine in engines for t in networks.prefixes()
             for base in ("teacher", f"no-reshed {t}")]  # fmt: skip
    eagerly = [name for name in made if name.startswith("eager, ")]
    everything = [networks.teacher, networks.ensemble, *networks.equals]
    teacher_macs = networks.seed.guide.macs or 1
    return {
        "ms": {name: spread(values) for name, values in times.items()},
        "over": {f"{name} ÷ {base.partition(', ')[2]}": against(times, name, base) for name, base in pairs},
        "overhead": against(times, "staged", "students"),
        "macs_share": {f"prefix {t}": networks.macs[t - 1] / teacher_macs for t in networks.prefixes()},
        "activation_bytes": {
            name.removeprefix("eager, "): peak_activations(made[name], everything, x) for name in eagerly
        },
        "weight_bytes": {
            "teacher": 4 * cost.parameters(networks.teacher),
            **{f"no-reshed {t}": 4 * cost.parameters(each) for t, each in enumerate(networks.equals, 1)},
            **{f"prefix {t}": 4 * networks.parameters[t - 1] for t in networks.prefixes()},
        },
    }  # fmt: skip


def show(title: str, found: dict[str, Any], batch: int) -> None:
    """For the terminal."""
    for name, each in found["ms"].items():
        memory = found["activation_bytes"].get(name.removeprefix("eager, "))
        held = "" if memory is None else f"   {memory / 1e3:10.1f} kB of activations"
        print(f"{title} {name:28s} {each['median']:9.3f} ms  [{each['q1']:.3f}, {each['q3']:.3f}]{held}")
    for name, each in found["over"].items():
        print(f"{title} {name:44s} {each['median']:.3f} [{each['q1']:.3f}, {each['q3']:.3f}]")
    allowed = ALLOWED.get(batch)
    verdict = "" if allowed is None else f"   ≤ {allowed:.2f}: {'met' if found['overhead']['median'] <= allowed else 'NOT MET'}"
    print(f"{title} staged ÷ students {found['overhead']['median']:.3f}{verdict}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write results/bdistil-latency-NAME.json."""
    now = record.commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TASKS)
    parser.add_argument("--path", type=Path, help="as of bdistil_table.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--no-onnx", action="store_true", help="PyTorch alone")
    parser.add_argument("--out", type=Path, default=Path("runs/bdistil"), help="where bdistil_table.py keeps its runs")
    parser.add_argument("--smoke", action="store_true", help="of the runs of its --smoke; nothing is written")
    chosen = parser.parse_args(argv)
    if min(chosen.threads, chosen.repeats, *chosen.batches) < 1:
        parser.error("--threads, --repeats and --batches: expected 1 or more")
    if (chosen.path is None) != (chosen.name == "digits"):
        parser.error("expected digits, or another name with --path")
    torch.set_num_threads(chosen.threads)
    task = shortened(TASKS[chosen.name]) if chosen.smoke else TASKS[chosen.name]
    figures: dict[str, Any] = {}
    for number in chosen.seeds:
        folder = chosen.out / (f"{chosen.name}-smoke" if chosen.smoke else chosen.name)
        networks = Networks(Seed(task, load(chosen.name, chosen.path, number), number, folder, progress=False))
        for batch in chosen.batches:
            title = f"seed {number}, batch {batch}"
            figures[title] = measure(networks, batch, chosen.threads, chosen.repeats, not chosen.no_onnx)
            show(title, figures[title], batch)
    if chosen.smoke:
        return
    first, _, details = (__doc__ or "").split("\n\n", 2)
    note = " ".join(f"{first} {task.note} {details}".split())
    settings = {"seeds": chosen.seeds, "repeats": chosen.repeats, "threads": chosen.threads}
    print("wrote", record.write(f"bdistil-latency-{chosen.name}", figures, commit=now, note=note, **settings))


if __name__ == "__main__":
    main()
