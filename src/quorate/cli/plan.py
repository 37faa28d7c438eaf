"""``quorate plan RUN_OR_OUTPUTS…``: the Pareto front of cascades over a pool of models, and the policy chosen from it.

Needs no PyTorch: outputs are read, those of run folders or of any other framework, or made by running ONNX files on raw inputs.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from quorate.cascade import target as targets
from quorate.cli.parse import parse, parser
from quorate.cli.usage import UsageError

if TYPE_CHECKING:
    from quorate.cascade.planner import Plan
    from quorate.cli.stored import Pool

SPEAK_S = 10.0  # between two lines of progress where there is no terminal


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    from quorate.cascade.planner import plan
    from quorate.cli.costs import read_costs
    from quorate.cli.fed import inputs
    from quorate.cli.sources import how
    from quorate.cli.stored import Parts, pool
    from quorate.files import write_json
    from quorate.report import plans as table

    chosen = _parse(argv)
    parts = Parts(
        chosen.calibration or (),
        chosen.split,
        chosen.ood or (),
        chosen.cal_ood or (),
        chosen.ood_split,
        chosen.seed,
    )
    costs = read_costs(chosen.costs, chosen.cost_columns)
    with running() as ran:
        found = pool(chosen.sources, how(chosen), parts, costs, inputs(chosen), ran)
    _say(_rows(found, chosen.target))
    _check(found, chosen.target)
    with _progress() as progress:
        plans = plan(
            found.validation,
            chosen.target,
            budget=chosen.budget,
            max_cost=chosen.max_cost,
            cal=found.calibration,
            ood=found.ood,
            cal_ood=found.cal_ood,
            uncertainty=chosen.uncertainty,
            delta=delta_of(chosen.confidence),
            beta=chosen.beta,
            alpha=chosen.alpha,
            joins=chosen.joins,
            most=chosen.most,
            search=chosen.search,
            front=chosen.front,
            temperature=chosen.temperature,
            seed=chosen.seed,
            progress=progress,
        )
    plans = [plain_names(each, found.alone) for each in plans]
    at = table.best(plans, chosen.target) if chosen.choose is None else chosen.choose - 1
    if not 0 <= at < len(plans):
        raise ValueError(f"--choose {chosen.choose}: expected 1 … {len(plans)}, the number of a plan on this front")
    about = (chosen.target, chosen.unit, at, chosen.confidence)
    if chosen.format == "markdown":
        print(table.markdown(plans, *about), end="")
    else:
        table.show(plans, *about)
    if chosen.report is not None:
        write_json(chosen.report, table.as_json(plans, *about))
    if chosen.output is not None:
        plans[at].policy.save(chosen.output)
        _say(f"wrote plan {at + 1} to {chosen.output}")
    return 0


def delta_of(confidence: float) -> float:
    """δ = 1 − confidence, without the last bits that the subtraction leaves."""
    if not 0 < confidence < 1:
        raise ValueError(f"--confidence {confidence:g}: expected a share > 0 and < 1, such as 0.95")
    return round(1 - confidence, 12)


def plain_names(plan: Plan, source: str | None) -> Plan:
    """A plan over the dependent stages of one source, whose stages are ``SOURCE/STAGE``, with the names that they have in it."""
    if source is None:
        return plan

    def bare(name: str) -> str:
        return name.removeprefix(f"{source}/")

    policy, certificate = plan.policy, plan.certificate
    if certificate is not None:
        certificate = replace(certificate, exits=tuple(replace(part, name=bare(part.name)) for part in certificate.exits))
    stages = tuple(replace(stage, name=bare(stage.name)) for stage in policy.stages)
    return replace(
        plan, policy=replace(policy, stages=stages, certificate=None if certificate is None else certificate.to_dict())
    )


def _check(found: Pool, target: str) -> None:
    """What the planner would refuse, in the words of the options."""
    for name, outputs in found.validation.items():
        if outputs.costs is None:
            raise ValueError(f"{name!r} has no costs: give --costs NAME=COST per member, or FILE.csv with --cost_columns")
    figure = targets.parse(target).figure
    if figure == "fpr" and not found.ood:
        raise ValueError(f"target {target} needs OOD rows to tell apart: give --ood NAME=FILE")
    if figure == "coverage" and found.ood and not found.cal_ood and found.calibration is not None:
        raise ValueError(f"target {target} with --ood is certified on OOD rows too: give --cal_ood or --ood_split")
    if found.cal_ood and found.calibration is None:
        raise ValueError("OOD rows to certify on, but no other calibration rows: give --split V C or --calibration")


def _parse(argv: Sequence[str]) -> Any:
    from quorate.cli.fed import add_inputs
    from quorate.cli.sources import add_reading

    using = parser("plan", "Print the best cascades over models whose outputs are stored, by cost, and write the chosen policy.")
    add = using.add_argument
    add(
        "sources", nargs="+", type=str, help="[NAME=]PATH: run folders, .safetensors of Outputs, .npz or .csv files, .onnx models"
    )
    add("--target", type=str, required=True, help="coverage@risk=R, risk@coverage=C, fpr@tpr=T, accuracy or nll")
    add("--confidence", type=float, default=0.95, help="of the certificates, all plans shown together")
    add("--budget", type=float | None, default=None, help="mean cost per input, as a share of the cost of all members together")
    add("--max_cost", type=float | None, default=None, help="mean cost per input, in the unit of the costs")
    add("--split", type=float, nargs="+", default=None, metavar="SHARE", help="of a file's rows, to choose on and to certify on")
    add("--calibration", type=str, nargs="+", default=None, metavar="FILE", help="rows to certify on, a file per source")
    add(
        "--ood",
        type=str,
        nargs="+",
        default=None,
        metavar="NAME[=FILE,…]",
        help="OOD rows: a file per source, or runs' own set NAME",
    )
    add("--cal_ood", type=str, nargs="+", default=None, metavar="NAME[=FILE,…]", help="the same, to certify on")
    add(
        "--ood_split",
        type=float,
        nargs="+",
        default=None,
        metavar="SHARE",
        help="of the rows of --ood, where no --cal_ood is given",
    )
    add("--beta", type=float, default=1.0, help="with OOD rows and a selective target: cost of an accepted OOD row")
    add("--alpha", type=float | None, default=None, help="the same: share of in-distribution rows (default: that of the rows)")
    add("--costs", type=str, nargs="+", default=None, metavar="NAME=COST", help="per row, one unit for all; or FILE.csv")
    add("--cost_columns", type=str, default=None, metavar="NAMES,COSTS", help="of --costs FILE.csv")
    add("--unit", type=str, default="", help="of the costs, for the table")
    add("--most", type=int, default=4, help="stages of a cascade at most")
    add("--joins", type=Literal["mean", "replace", "both"], default="both", help="whether a stage joins the ones before")
    add("--search", type=Literal["auto", "exhaustive", "beam"], default="auto", help="auto: exhaustive up to 6 members")
    add("--front", type=int, default=10, help="plans at most")
    add("--temperature", type=Literal["none", "fit"], default="none", help="fit: one per stage, on validation rows")
    add("--uncertainty", type=str | None, default=None, help="a measure by name (default: by the target)")
    add("--choose", type=int | None, default=None, help="write this plan (default: the best one that is certified)")
    add("--output", type=str, default=None, metavar="POLICY.json", help="write the chosen policy, with its certificate")
    add("--report", type=str, default=None, metavar="PLAN.json", help="also write the front")
    add("--format", type=Literal["table", "markdown"], default="table", help="how to print")
    add("--seed", type=int, default=0, help="of the splits and of the search")
    add_reading(using)
    add_inputs(using)
    chosen = parse(using, argv)
    targets.parse(chosen.target)
    delta_of(chosen.confidence)
    for option in ("output", "report"):
        if chosen[option] is not None and not chosen[option].endswith(".json"):
            raise UsageError(f"--{option} {chosen[option]}: expected a name that ends in .json")
    if chosen.choose is not None and chosen.choose < 1:
        raise UsageError(f"--choose {chosen.choose}: expected at least 1")
    return chosen


def _rows(found: Pool, target: str) -> str:
    """How many rows choose, and how many certify."""

    def count(members: Any) -> int:
        return int(next(iter(members.values())).n)

    text = f"{len(found.validation)} models" if found.alone is None else "stages of one model"
    text += f", {count(found.validation):,} validation rows"
    if found.calibration is None:
        return f"{text}; no calibration rows, so nothing is certified (--split V C or --calibration)"
    text += f", {count(found.calibration):,} calibration rows"
    return f"{text}; nll has no certificate, they are left alone" if target == "nll" else text


@contextlib.contextmanager
def running() -> Iterator[Callable[[str, int, int], None]]:
    """How far models are that are run on rows; told (model, rows done, rows in all)."""
    with _progress("running") as told:
        yield lambda name, done, total: told(done, total, f"running {name}")


@contextlib.contextmanager
def _progress(what: str = "planning") -> Iterator[Callable[..., None]]:
    """A bar on a terminal; elsewhere a line every ten seconds. Told (done, total), and another text where it changes."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total, text=what: bar.update(task, completed=done, total=total, description=text)
        return
    spoken = time.monotonic()

    def advance(done: int, total: int, text: str = what) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= SPEAK_S:
            _say(f"{text}: {100 * done // max(total, 1)} %")
            spoken = time.monotonic()

    yield advance


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
