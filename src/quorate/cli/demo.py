"""``quorate demo``: trains on real data, compares, decides early, and reports."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from quorate.cli.parse import parse, parser
from quorate.cli.usage import UsageError

EPOCHS = {"digits": 60, "idx": 5}
ROUNDS = 5
BATCH = 256
TIMED = 2_000  # test inputs at most that are timed
FRACTIONS = [0.25, 0.2, 0.1, 0.45]  # of the digits: few to learn from, so that there are errors to select on, and many to test on
MODEL: dict[str, Any] = {"class_path": "quorate.models.LeNet", "init_args": {"width": [16, 32], "hidden": [128, 64]}}
POLICIES = {"cascade-selective": "coverage@risk=0.01", "cascade-ood": "fpr@tpr=0.95"}


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    using = parser(
        "demo",
        "Train a single network, a deep ensemble and a packed ensemble, put window cascades over the deep ensemble, and compare.",
    )
    using.add_argument(
        "--data", type=Literal["digits", "idx"], default="digits", help="scikit-learn's digits, or files in MNIST format"
    )
    using.add_argument("--root", type=str, default=None, help="folder of the idx files (train-images-idx3-ubyte[.gz] …)")
    using.add_argument(
        "--ood", nargs="+", default=[], metavar="NAME=FILE", help="OOD sets for idx: .npz files with images under key x"
    )
    using.add_argument(
        "--held_out", nargs="*", type=int, metavar="CLASS", help="classes held out as OOD (default: 8 9; none with --ood)"
    )
    using.add_argument("--out", type=str, default="quorate-demo", help="folder for runs, plots and results")
    using.add_argument("--epochs", type=int | None, default=None, help="default: 60 for digits, 5 for idx")
    using.add_argument("--members", type=int, default=4, help="members of the deep and the packed ensemble")
    using.add_argument("--seed", type=int, default=0, help="of everything random")
    chosen = parse(using, argv)
    if chosen.data == "idx" and chosen.root is None:
        raise UsageError("--data idx needs --root, the folder of the idx files")
    if chosen.data == "digits" and (chosen.root or chosen.ood):
        raise UsageError("--root and --ood are for --data idx")
    if chosen.members < 2:
        raise UsageError(f"--members {chosen.members}: a comparison needs at least 2")
    ood = dict(entry.partition("=")[::2] for entry in chosen.ood)
    if not all(ood.values()) or len(ood) < len(chosen.ood):
        raise UsageError(f"--ood {' '.join(chosen.ood)}: expected NAME=FILE, each name once")
    out = Path(chosen.out)
    if not chosen.out or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {chosen.out!r}: expected a folder, or a path where one can be made")
    if out.is_dir() and any(out.iterdir()) and not (out / "single").is_dir():
        raise UsageError(f"--out {out}: it is not empty and holds no demo, choose another folder")
    started = time.perf_counter()
    source = _source(chosen.data, chosen.root, ood, chosen.held_out, chosen.seed)
    data = getattr(import_module("quorate.data"), chosen.data)(**source["init_args"])
    print(f"{data}", file=sys.stderr)
    epochs = EPOCHS[chosen.data] if chosen.epochs is None else chosen.epochs
    fitted = _train(data, source, out, epochs, chosen.members, chosen.seed)
    _report(fitted, data, out, started)
    return 0


def _source(kind: str, root: str | None, ood: dict[str, str], held_out: list[int] | None, seed: int) -> dict[str, Any]:
    """Where the data comes from, as a recipe says it."""
    if held_out is None:
        held_out = [] if ood else [8, 9]
    if kind == "digits":
        return {"class_path": "quorate.data.digits", "init_args": {"held_out": held_out, "fractions": FRACTIONS, "seed": seed}}
    given = {"root": root, "held_out": held_out or None, "ood": ood or None, "seed": seed, "name": Path(str(root)).resolve().name}
    return {"class_path": "quorate.data.idx", "init_args": given}


def _train(data: Any, source: dict[str, Any], out: Path, epochs: int, members: int, seed: int) -> dict[str, Any]:
    """Train the three ensembles, or read them back; → fitted ensembles by run name."""
    import torch

    from quorate.cli.recipe import EnsembleChoice, build, factory
    from quorate.training import fit

    make = factory(MODEL["class_path"], MODEL["init_args"], data)
    choices = {
        "single": EnsembleChoice("single"),
        f"deep-{members}": EnsembleChoice("deep", members),
        f"packed-{members}": EnsembleChoice("packed", members, 2, 1),
    }
    settings: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": 64,
        "lr": 0.05,
        "warmup_epochs": min(1.0, epochs / 4),
        "channels_last": not torch.cuda.is_available(),  # measured faster on CPUs; not known to be on others
    }
    fitted = {}
    for name, choice in choices.items():
        about = {
            "model": MODEL,
            "ensemble": {key: value for key, value in vars(choice).items() if key not in ("tickets", "distil")},
        }
        recipe = {"data": source} | about | {"fit": settings, "seed": seed}
        ensemble = build(choice, make, data, seed)
        fitted[name] = fit(ensemble, data, run=out / name, about=about, config=recipe, seed=seed, **settings)
    return fitted


def _report(fitted: Mapping[str, Any], data: Any, out: Path, started: float) -> None:
    from quorate.files import write_json, write_text
    from quorate.report import as_json, columns, markdown, show, times_of
    from quorate.runs import Lock, Run

    with contextlib.ExitStack() as stack:
        for name in fitted:
            stack.enter_context(Lock(out / name))
        deep = next(name for name in fitted if name.startswith("deep"))
        policies = _policies(fitted[deep], out / deep)
        print(f"timing {len(fitted) + len(policies)} columns in turn", file=sys.stderr)
        latency, compared = _measure(fitted, deep, policies, data)
        saved = [Run(out / name) for name in fitted]
        for record in saved:
            record.update(latency=latency[record.path.name])
        found = columns(saved)
        show(found, f"{data.name}: {len(data.train)} training and {len(data.test)} test rows, one seed", times_of(saved))
        print(compared)
        write_json(out / "results.json", as_json(found))
        write_text(out / "results.md", markdown(found))
        written = [out / "results.json", out / "results.md", *_plots(saved, out)]
    print(
        f"wrote {', '.join(str(path) for path in written)} and the runs beside them, {time.perf_counter() - started:.0f} s in all"
    )


def _plots(saved: Sequence[Any], out: Path) -> list[Path]:
    from quorate.report import plot

    try:
        return plot(saved, out)
    except ImportError as error:
        print(f"no plots: {error}", file=sys.stderr)
        return []


def _policies(deep: Any, folder: Path) -> dict[str, Any]:
    """The paper's windows over the deep ensemble, first member → the others: for few errors, and for OOD inputs."""
    from quorate.cascade import Policy

    validation = deep.outputs["validation"]
    merged = validation.regroup([1, validation.stages - 1])
    found = {}
    for name, target in POLICIES.items():
        file = folder / "policies" / f"{name}.json"
        file.unlink(missing_ok=True)
        try:
            found[name] = Policy.fit(merged, target=target)
        except ValueError as error:
            print(f"{name} left out: {error}", file=sys.stderr)
            continue
        found[name].save(file)
    return found


def _measure(
    fitted: Mapping[str, Any], deep: str, policies: Mapping[str, Any], data: Any
) -> tuple[dict[str, dict[str, Any]], str]:
    """Milliseconds per 1,000 test inputs of every column, executed in turn for several rounds; and how the executed cascades compare
    with their simulation."""
    import numpy as np
    import torch

    from quorate.cascade import Cascade, Policy, simulate
    from quorate.ensemble import device_of, stages

    x = data.test.x[:TIMED]
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, result in fitted.items():
        cascade = Cascade(stages(result.ensemble), Policy.of(result.outputs["test"]), BATCH)
        calls[name, "all"] = functools.partial(cascade.predict, x)
    members = fitted[deep].outputs["test"].stages
    for name, policy in policies.items():
        cascade = Cascade(stages(fitted[deep].ensemble, groups=[1, members - 1]), policy, BATCH)
        calls[deep, name] = functools.partial(cascade.predict, x)
    spent: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    differing = 0
    for turn in range(ROUNDS + 1):  # the first is warm-up
        for key, call in calls.items():
            begun = time.perf_counter()
            executed = call()
            if turn:
                spent[key].append((time.perf_counter() - begun) * 1e6 / len(x))
            elif key[1] in policies:
                stored = fitted[deep].outputs["test"].rows(np.arange(len(x))).regroup([1, members - 1])
                simulated = simulate(policies[key[1]], stored)
                differing += int(((executed.stage != simulated.stage) | (executed.label != simulated.label)).sum())
    device = device_of(fitted[deep].ensemble)
    timed = f"median of {ROUNDS} rounds in turn over {len(x)} test inputs"
    how = f"{timed}, batch {BATCH}, on {device}, {torch.get_num_threads()} threads"
    latency: dict[str, dict[str, Any]] = {name: {"how": how, "ms_per_1000": {}, "least": {}, "most": {}} for name in fitted}
    for (name, column), times in spent.items():
        for kind, value in (("ms_per_1000", np.median(times)), ("least", min(times)), ("most", max(times))):
            latency[name][kind][column] = float(value)
    decisions = len(x) * len(policies)
    return latency, f"executed cascades agree with their simulation on all but {differing} of {decisions} decisions"
