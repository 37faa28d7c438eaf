"""What shift does to saved runs: their figures by corruption and severity, from stored Outputs alone.

As in Ovadia et al. 2019 (arXiv 1906.02530) a figure at a severity is its mean over the corruptions, and thresholds and temperatures
are those of clean validation data. Risk met is that of all rows accepted under all corruptions, Σ c_i r_i / Σ c_i for coverages c_i
and risks r_i, so that a corruption under which nothing is accepted adds nothing.

Shapes: none; figures are floats by name, cells are figures by column, ``""`` for the whole ensemble and else a policy's name.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quorate.cascade.policy import Policy
from quorate.files import atomic
from quorate.outputs import Outputs
from quorate.report.figures import RISK, Figures, cascade_figures, ensemble_figures

SEVERITIES = (1, 2, 3, 4, 5)
TITLE_WIDTH = 110  # characters that fit over the plot
SHOWN = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE (15 bins)",
    "nll_tempered": "NLL, T fitted",
    "ece_tempered": "ECE, T fitted",
    "coverage_at_risk": f"coverage@{RISK:.0%} risk",
    "risk_met": "risk met",
    "reach": "rows sent on",
    "macs": "MACs/input",
}
PERCENT = ("accuracy", "coverage_at_risk", "risk_met", "reach")
Cell = dict[str, Figures]


@dataclass(frozen=True)
class Shift:
    """One ensemble or cascade under corruptions: the rows reported on, its figures on them clean, and by corruption and severity.

    ``left_out`` names the corruptions that were meant too, but have no figures here; ``kind`` is that of the inputs, where it was said.

    Raises:
        ValueError: no corruption, or one without all five severities.
    """

    name: str
    rows: int
    clean: Figures
    corrupted: Mapping[str, Mapping[int, Figures]]
    left_out: tuple[str, ...] = ()
    kind: str = ""

    def __post_init__(self) -> None:
        short = [name for name, by in self.corrupted.items() if tuple(sorted(by)) != SEVERITIES]
        if short or not self.corrupted:
            raise ValueError(f"{self.name}: {short[0] if short else 'no corruption'}: expected figures at severities 1 … 5")

    def at(self, severity: int) -> Figures:
        """The figures at a severity, over the corruptions; 0 is clean."""
        return over(by[severity] for by in self.corrupted.values()) if severity else over([self.clean])

    def mean(self) -> Figures:
        """The figures over all corruptions and severities 1 … 5."""
        return over(by[severity] for by in self.corrupted.values() for severity in SEVERITIES)


def shift_figures(validation: Outputs, outputs: Outputs, policies: Mapping[str, Policy]) -> Cell:
    """The figures of a whole ensemble and of each policy on (corrupted) Outputs; every threshold is one of ``validation``.

    Raises:
        ValueError: Outputs of a regression.
    """
    if outputs.kind in ("values", "gaussian"):
        raise ValueError(
            f"figures under corruptions are those of classifiers, these Outputs hold {outputs.kind!r} of a regression"
        )
    cascades = {name: cascade_figures(policy, validation, outputs, {}) for name, policy in policies.items()}
    return {"": ensemble_figures(validation, outputs, {}), **cascades}


def over(figures: Iterable[Figures]) -> Figures:
    """The mean of each figure that is shown; risk met over all rows accepted, NaN where there are none."""
    every = list(figures)
    found = {
        key: sum(each[key] for each in every) / len(every) for key in SHOWN if key != "risk_met" and all(key in f for f in every)
    }
    accepted = [(each["coverage_at_risk"], each["risk_met"]) for each in every if each["coverage_at_risk"] > 0]
    total = sum(coverage for coverage, _ in accepted)
    return found | {"risk_met": sum(coverage * risk for coverage, risk in accepted) / total if total else math.nan}


def comparable(found: Sequence[Shift]) -> list[Shift]:
    """The same, each over the corruptions that all have, so that means stand beside means of the same; the others are left out in all.

    Raises:
        ValueError: no corruption that all have.
    """
    common = [name for name in found[0].corrupted if all(name in each.corrupted for each in found)]
    every = [name for each in found for name in (*each.corrupted, *each.left_out)]
    left_out = tuple(name for name in dict.fromkeys(every) if name not in common)
    return [replace(each, corrupted={name: each.corrupted[name] for name in common}, left_out=left_out) for each in found]


def as_json(shift: Shift) -> dict[str, Any]:
    """All figures as JSON values: by severity, their mean, by corruption; what is not finite becomes None."""
    return {
        "rows": shift.rows,
        "corruptions": list(shift.corrupted),
        "left_out": list(shift.left_out),
        "severity": {str(s): _finite(shift.at(s)) for s in (0, *SEVERITIES)},
        "mean": _finite(shift.mean()),
        "corruption": {n: {str(s): _finite(by[s]) for s in SEVERITIES} for n, by in shift.corrupted.items()},
    }


def _finite(figures: Figures) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in figures.items()}


def rows(found: Sequence[Shift]) -> list[tuple[str, str, list[str]]]:
    """The table's body: (figure, severity, one text per column); a figure's name stands in its first line only.

    MACs are shown where a cascade is: only there they depend on the inputs.
    """
    by_severity = [[*(shift.at(s) for s in (0, *SEVERITIES)), shift.mean()] for shift in found]
    labels = ["0 (clean)", *map(str, SEVERITIES), "mean 1–5"]
    body = []
    for key, what in SHOWN.items():
        if any(key in figures[0] and (key != "macs" or "reach" in figures[0]) for figures in by_severity):
            for line, label in enumerate(labels):
                texts = [_text(key, figures[line].get(key)) for figures in by_severity]
                body.append(("" if line else what, label, texts))
    return body


def _text(key: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if key == "macs":
        return f"{value / 1e6:.4g} M" if value >= 1e6 else f"{value:.0f}"
    return f"{100 * value:.2f} %" if key in PERCENT else f"{value:.4g}"


def title(found: Sequence[Shift]) -> str:
    """What the table shows, in a line."""
    names, kind = list(found[0].corrupted), f"{found[0].kind} " * bool(found[0].kind)
    return f"{found[0].rows} test rows under {len(names)} {kind}corruption{'s' * (len(names) > 1)}: {', '.join(names)}"


NOTE = (
    "Figures at a severity are means over the corruptions; risk met is that of all rows accepted under them. Thresholds and "
    "temperatures come from clean validation data."
)


def note(found: Sequence[Shift]) -> str:
    """What stands below the table."""
    left_out = found[0].left_out
    return f"{NOTE} Left out, as they do not apply to the inputs of every run: {', '.join(left_out)}." if left_out else NOTE


def show(found: Sequence[Shift]) -> None:
    """Print the table; where there is no terminal, wide enough that nothing is folded."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=180)
    table = Table(title=title(found), title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("severity", no_wrap=True)
    for shift in found:
        table.add_column(shift.name, justify="right", overflow="fold")
    for what, label, texts in rows(found):
        table.add_row(what, label, *texts, end_section=label.startswith("mean"))
    try:
        console.print(table)
        console.print(note(found), style="dim")
    except SystemExit as stop:  # what rich makes of a reader that left
        raise BrokenPipeError from stop


def markdown(found: Sequence[Shift]) -> str:
    """Title, table and note as Markdown."""
    lines = ["| | severity | " + " | ".join(shift.name for shift in found) + " |", "|---" * (len(found) + 2) + "|"]
    lines += [f"| {what} | {label} | " + " | ".join(texts) + " |" for what, label, texts in rows(found)]
    return "\n".join([title(found), "", *lines, "", note(found)]) + "\n"


def plot(found: Sequence[Shift], folder: str | Path) -> Path:
    """Write ``shift.png``, accuracy and ECE (NLL where there is no ECE) by severity, into ``folder``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ImportError('plots need matplotlib: pip install "quorate[report]"') from error
    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=144, layout="constrained")
    second = "ece" if all("ece" in shift.clean for shift in found) else "nll"
    for axes, key, factor in zip(figure.subplots(1, 2), ("accuracy", second), (100, 1), strict=True):
        for shift in found:
            heights = [factor * shift.at(s).get(key, math.nan) for s in (0, *SEVERITIES)]
            axes.plot((0, *SEVERITIES), heights, marker="o", label=shift.name, clip_on=False, zorder=3)
        label = "accuracy (%)" if key == "accuracy" else SHOWN[key]
        axes.set(xlabel="severity (0: clean)", ylabel=f"{label}, mean over corruptions", xticks=(0, *SEVERITIES))
        axes.grid(alpha=0.3)
        if key == "ece":
            axes.set_ylim(bottom=0)
        elif key == "accuracy":
            axes.set_ylim(top=min(axes.get_ylim()[1], 100))
    figure.axes[0].legend(loc="lower left")
    figure.suptitle(textwrap.fill(title(found), TITLE_WIDTH), x=0.01, ha="left", fontsize=10)
    path = Path(folder) / "shift.png"
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
