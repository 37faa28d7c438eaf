"""One table of saved runs: a column per run and per policy in it, a row per figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from quorate.cascade.policy import Policy
from quorate.cascade.temperature import HIGH, LOW
from quorate.report.figures import RISK, TPR, Figures, cascade_figures, ensemble_figures
from quorate.report.ledger import ledger_figures
from quorate.report.regression import LEVEL, regression_figures
from quorate.runs import Run


class Column(NamedTuple):
    """One ensemble or cascade: its name and its figures."""

    name: str
    figures: Figures


def columns(runs: Sequence[Run]) -> list[Column]:
    """The columns of finished runs, all on the same test rows.

    Raises:
        ValueError: runs whose names, classes, row ids, labels or OOD sets differ, or that are not finished.
    """
    first = runs[0]
    if len({run.path.resolve() for run in runs}) != len(runs):
        raise ValueError(f"runs {', '.join(str(run.path) for run in runs)}: give each run once")
    names = [run.name for run in runs]
    if len(set(names)) != len(names):
        names = [str(run.path) for run in runs]
    found = []
    for title, run in zip(names, runs, strict=True):
        for part in ("validation", "test"):
            first.outputs(part).check_same_rows(run.outputs(part), str(first.path), str(run.path))
        if run.ood != first.ood:
            raise ValueError(
                f"{first.path} has OOD sets {list(first.ood)}, {run.path} has {list(run.ood)}: compare runs on one data set"
            )
        ood = {name: run.outputs(f"ood-{name}") for name in run.ood}
        for name, outputs in ood.items():
            first.outputs(f"ood-{name}").check_same_rows(outputs, f"OOD set {name} of {first.path}", f"of {run.path}")
        validation, test = run.outputs("validation"), run.outputs("test")
        costs = {name: float(run.facts[name]) for name in ("parameters", "training_macs") if name in run.facts}
        times = run.facts.get("latency", {}).get("ms_per_1000", {})
        regression = test.kind in ("gaussian", "values")
        whole = regression_figures(test, ood) if regression else ensemble_figures(validation, test, ood)
        found.append(Column(title, whole | costs | ledger_figures(run.facts) | _time(times, "all")))
        for name, path in run.policies.items():
            figures = cascade_figures(Policy.load(path), validation, test, ood)
            ledger = ledger_figures(run.facts, figures["macs"])
            found.append(Column(f"{title} {name}", figures | costs | ledger | _time(times, name)))
    return found


def as_json(found: Sequence[Column]) -> dict[str, dict[str, float | None]]:
    """The figures by column as JSON values; what is not finite becomes None."""
    return {c.name: {k: v if math.isfinite(v) else None for k, v in c.figures.items()} for c in found}


def times_of(runs: Sequence[Run]) -> str:
    """How the runs' times were measured, in a line; empty where none were."""
    told = {run.facts["latency"]["how"] for run in runs if "latency" in run.facts}
    return " ".join(f"Times: {how}." for how in sorted(told))


def _time(times: dict[str, float], name: str) -> Figures:
    return {"latency_ms": float(times[name])} if name in times else {}


def rows(found: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """The table's body: (label, one text per column)."""
    sets = [key.removeprefix("auroc:") for key in found[0].figures if key.startswith("auroc:")]
    wanted: list[tuple[str, str, Any]] = [
        ("accuracy", "accuracy", _percent),
        ("RMSE", "rmse", _fixed),
        ("NLL", "nll", _fixed),
        ("ECE (15 bins)", "ece", _fixed),
        ("NLL, T fitted", "nll_tempered", _fixed),
        ("ECE, T fitted", "ece_tempered", _fixed),
        ("  temperature", "temperature", _temperature),
        ("CRPS", "crps", _fixed),
        (f"inside {LEVEL:.0%} interval", "interval_coverage", _percent),
        ("  its width", "interval_width", _fixed),
        ("AUSE (share of RMSE)", "ause", _fixed),
        ("AURC × 1000", "aurc", _mille),
        (f"coverage@{RISK:.0%} risk", "coverage_at_risk", _percent),
        ("  risk met", "risk_met", _percent),
        ("  rows sent on", "reach", _percent),
        *((f"AUROC {name}", f"auroc:{name}", _percent) for name in sets),
        *((f"FPR@{100 * TPR:g} {name}", f"fpr:{name}", _percent) for name in sets),
        *([("  TPR met", "tpr_met", _percent)] if sets else []),
        ("parameters", "parameters", _count),
        ("  parameters ÷ dense", "live_ratio", _fixed),
        ("MACs/input", "macs", _count),
        ("  MACs ÷ dense", "inference_ratio", _fixed),
        ("training MACs", "training_macs", _count),
        ("  training ÷ dense", "training_ratio", _fixed),
        ("weights ever live", "exploration_rate", _percent),
        ("mask overlap", "overlap", _fixed),
        ("ms/1,000 inputs", "latency_ms", _fixed),
    ]
    return [
        (label, [form(column.figures.get(key)) for column in found])
        for label, key, form in wanted
        if any(key in column.figures for column in found)
    ]


def render(found: Sequence[Column], title: str) -> Any:
    """The table for a terminal (a rich ``Table``)."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for column in found:
        table.add_column(column.name, justify="right", overflow="fold")
    for label, cells in rows(found):
        table.add_row(label, *cells)
    return table


def show(found: Sequence[Column], title: str, note: str = "") -> None:
    """Print the table; where there is no terminal, wide enough that nothing is folded."""
    from rich.console import Console

    console = Console()
    console = console if console.is_terminal else Console(width=180)
    try:
        console.print(render(found, title))
        general = REGRESSION if "rmse" in found[0].figures else NOTE
        sparse = TICKETS if any("training_ratio" in column.figures for column in found) else ""
        console.print(" ".join(filter(None, [general, sparse, note])), style="dim")
    except SystemExit as stop:  # what rich makes of a reader that left
        raise BrokenPipeError from stop


def markdown(found: Sequence[Column]) -> str:
    """The table as Markdown."""
    lines = ["| | " + " | ".join(column.name for column in found) + " |", "|---" * (len(found) + 1) + "|"]
    lines += [f"| {label.strip()} | " + " | ".join(cells) + " |" for label, cells in rows(found)]
    return "\n".join(lines) + "\n"


NOTE = (
    "Every threshold and temperature comes from validation data; risk and TPR met are what it gave on test data. OOD inputs are told by "
    "energy, in cascades by their policy's own uncertainty. Training MACs: forward and backward, 3 × forward."
)

REGRESSION = (
    "The members' mixture as one Gaussian; nothing is fitted. RMSE, CRPS and width in the unit of the targets. AUSE: by predicted entropy. "
    "Training MACs: forward and backward, 3 × forward."
)

TICKETS = (
    "Sparse networks: parameters are the live ones; MACs are those of kernels that skip dead weights, which training itself does not; "
    "÷ dense: to one dense network, trained for as many epochs as one run; mask overlap: Jaccard, mean over pairs of tickets."
)


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.2f} %"


def _fixed(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _temperature(value: float | None) -> str:
    bound = {LOW: "≤ ", HIGH: "≥ "}.get(value or 0.0, "")
    return bound + _fixed(value)


def _mille(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{1000 * value:.3f}"


def _count(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
