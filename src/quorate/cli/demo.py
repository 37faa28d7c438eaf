"""``quorate demo``: trains on real data, compares, decides early, and reports."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from quorate.cli.main import UsageError
from quorate.cli.parse import parse, parser

EPOCHS = {"digits": 60, "idx": 5}
ROUNDS = 5
TIMED = 2_000  # test inputs at most that are timed
FRACTIONS = (0.25, 0.2, 0.1, 0.45)  # of the digits: few to learn from, so that there are errors to select on, and many to test on


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
    started = time.perf_counter()
    ood = dict(entry.partition("=")[::2] for entry in chosen.ood)
    if not all(ood.values()) or len(ood) < len(chosen.ood):
        raise UsageError(f"--ood {' '.join(chosen.ood)}: expected NAME=FILE, each name once")
    data = _data(chosen.data, chosen.root, ood, chosen.held_out, chosen.seed)
    print(f"{data}", file=sys.stderr)
    epochs = EPOCHS[chosen.data] if chosen.epochs is None else chosen.epochs
    runs = _train(data, Path(chosen.out), epochs, chosen.members, chosen.seed)
    _report(runs, data, Path(chosen.out), started)
    return 0


def _data(kind: str, root: str | None, ood: dict[str, str], held_out: list[int] | None, seed: int) -> Any:
    from quorate.data import digits, idx

    if held_out is None:
        held_out = [] if ood else [8, 9]
    if kind == "digits":
        return digits(held_out=tuple(held_out), fractions=FRACTIONS, seed=seed)
    return idx(str(root), held_out=tuple(held_out) or None, ood=ood or None, seed=seed, name=Path(str(root)).resolve().name)


def _train(data: Any, out: Path, epochs: int, members: int, seed: int) -> dict[str, Any]:
    """Train the three ensembles, or read them back; → fitted ensembles by run name."""
    from quorate.cli.recipe import EnsembleChoice, build, factory
    from quorate.training import fit

    model = {"class_path": "quorate.models.LeNet", "init_args": {"width": [16, 32], "hidden": [128, 64]}}
    make = factory(str(model["class_path"]), model["init_args"], data)  # type: ignore[arg-type]
    choices = {
        "single": EnsembleChoice("single"),
        f"deep-{members}": EnsembleChoice("deep", members),
        f"packed-{members}": EnsembleChoice("packed", members, 2, 1),
    }
    fitted = {}
    for name, choice in choices.items():
        ensemble = build(choice, make, data, seed)
        fitted[name] = fit(
            ensemble,
            data,
            run=out / name,
            about={"model": model, "ensemble": vars(choice)},
            epochs=epochs,
            batch_size=64,
            lr=0.05,
            warmup_epochs=min(1.0, epochs / 4),
            channels_last=True,
            seed=seed,
        )
    return fitted


def _report(fitted: Mapping[str, Any], data: Any, out: Path, started: float) -> None:
    from quorate.files import write_json, write_text
    from quorate.report import columns, markdown, show
    from quorate.runs import Run

    deep = next(name for name in fitted if name.startswith("deep"))
    policies = _policies(fitted[deep], out / deep)
    times, mismatches = _measure(fitted, deep, policies, data)
    saved = []
    for name in fitted:
        record = Run(out / name)
        record.update(latency_ms=times[name])
        saved.append(record)
    found = columns(saved)
    show(found, f"{data.name}: {len(data.train)} training and {len(data.test)} test rows, one seed")
    timed = min(TIMED, len(data.test)) * len(policies)
    print(f"executed cascades agree with their simulation on all but {mismatches} of {timed} decisions")
    write_json(out / "results.json", {c.name: {k: None if v != v else v for k, v in c.figures.items()} for c in found})
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
    for name, target in (("cascade-selective", "coverage@risk=0.01"), ("cascade-ood", "fpr@tpr=0.95")):
        try:
            found[name] = Policy.fit(merged, target=target)
        except ValueError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        found[name].save(folder / "policies" / f"{name}.json")
    return found


def _measure(
    fitted: Mapping[str, Any], deep: str, policies: Mapping[str, Any], data: Any
) -> tuple[dict[str, dict[str, float]], int]:
    """Milliseconds per 1,000 test inputs of every column, executed in turn for several rounds; and rows where the executed
    cascades differ from their simulation."""
    import numpy as np

    from quorate.cascade import Cascade, Policy, simulate
    from quorate.ensemble import stages

    x = data.test.x[:TIMED]
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, result in fitted.items():
        cascade = Cascade(stages(result.ensemble), Policy.of(result.outputs["test"]))
        calls[name, "all"] = functools.partial(cascade.predict, x)
    for name, policy in policies.items():
        groups = [stage.name.count("+") + 1 for stage in policy.stages]
        cascade = Cascade(stages(fitted[deep].ensemble, groups=groups), policy)
        calls[deep, name] = functools.partial(cascade.predict, x)
    spent: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    mismatches = 0
    for turn in range(ROUNDS + 1):  # the first is warm-up
        for key, call in calls.items():
            begun = time.perf_counter()
            executed = call()
            if turn:
                spent[key].append(time.perf_counter() - begun)
            elif key[1] in policies:
                policy = policies[key[1]]
                stored = fitted[deep].outputs["test"].rows(np.arange(len(x))).grouped_as([stage.name for stage in policy.stages])
                simulated = simulate(policy, stored)
                mismatches += int(((executed.stage != simulated.stage) | (executed.label != simulated.label)).sum())
    times: dict[str, dict[str, float]] = {name: {} for name in fitted}
    for (name, column), seconds in spent.items():
        times[name][column] = float(np.median(seconds)) * 1e6 / len(x)
    return times, mismatches
