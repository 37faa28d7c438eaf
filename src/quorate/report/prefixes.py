"""A table of the prefixes of a distilled ensemble: what each further student costs, and what it does to the predictions.

Source: Dennis et al. 2023 (arXiv 2302.10093). Quality is that of the stored test Outputs; how near a prefix is to the teacher was measured
when it was trained, on validation inputs, and stands in the record of the run.

    classification    accuracy, NLL, agreement with the teacher, rows turned from right to wrong and from wrong to right by the student
    regression        RMSE, NLL of Gaussian outputs, RMSE to the teacher's outputs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from quorate import metrics
from quorate.outputs import Outputs
from quorate.report.regression import predicted
from quorate.runs import Run

Row = dict[str, Any]


def prefix_rows(run: Run) -> list[Row]:
    """A dict per prefix of a finished distillation; none of another run.

    Its keys: ``prefix`` (1 …), ``student`` (text), ``macs`` (per input, of the prefix), ``share`` (of the teacher's MACs; None where
    they are not known) and the figures of the task, ``accuracy, nll, agreement, right_to_wrong, wrong_to_right`` (the last two None for
    the first prefix) or ``rmse, nll, teacher_rmse``.

    Raises:
        ValueError: an unfinished run, or stored outputs of another number of stages than the record has rounds.
    """
    if "distil" not in run.facts:
        return []
    about, test = run.facts["distil"], run.outputs("test")
    if test.stages != len(about["rounds"]):
        raise ValueError(
            f"run {run.path} has outputs of {test.stages} stages and a record of {len(about['rounds'])} rounds: one of the two is damaged, "
            "train the run anew"
        )
    figures, macs = _classification if test.kind == "logits" else _regression, about["teacher"]["macs"]
    return [
        {
            "prefix": t,
            "student": row["student"],
            "macs": row["macs"],
            "share": None if macs is None else row["macs"] / macs,
            **quality,
        }
        for t, (row, quality) in enumerate(zip(about["rounds"], figures(test, about["rounds"]), strict=True), 1)
    ]


def _classification(test: Outputs, rounds: Sequence[Row]) -> list[Row]:
    along, truth = metrics.prefixes(test), test.truth()
    return [
        {
            "accuracy": float(along.accuracy[t]),
            "nll": metrics.nll(test.probs(t + 1), truth),
            "agreement": row["agreement"],
            "right_to_wrong": int(along.broken[t - 1]) if t else None,
            "wrong_to_right": int(along.mended[t - 1]) if t else None,
        }
        for t, row in enumerate(rounds)
    ]


def _regression(test: Outputs, rounds: Sequence[Row]) -> list[Row]:
    found, truth = [], test.truth()
    for t, row in enumerate(rounds, 1):
        mean, variance = predicted(test, t)
        nll = None if variance is None else metrics.gaussian_nll(mean, variance, truth)
        found.append({"rmse": metrics.rmse(mean, truth), "nll": nll, "teacher_rmse": math.sqrt(row["mse"])})
    return found


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "prefix": ("students", str),
    "student": ("added last", str),
    "macs": ("MACs/input", lambda value: f"{value:,}"),
    "share": ("of the teacher's", lambda value: f"{100 * value:.1f} %"),
    "accuracy": ("accuracy", lambda value: f"{100 * value:.2f} %"),
    "rmse": ("RMSE", lambda value: f"{value:.4g}"),
    "nll": ("NLL", lambda value: f"{value:.4g}"),
    "agreement": ("as the teacher", lambda value: f"{100 * value:.2f} %"),
    "teacher_rmse": ("RMSE to the teacher", lambda value: f"{value:.4g}"),
    "right_to_wrong": ("right → wrong", str),
    "wrong_to_right": ("wrong → right", str),
}


def body(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """(the heads, the rows as text) of a table of one run's prefixes."""
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in found)]
    texts = [["–" if row.get(key) is None else COLUMNS[key][1](row[key]) for key in keys] for row in found]
    return [COLUMNS[key][0] for key in keys], texts


def note(found: Sequence[Row]) -> str:
    """What stands below the table."""
    if "agreement" in found[0]:
        turned = "Right → wrong, wrong → right: test rows that the student added last turns. " if len(found) > 1 else ""
        return f"{turned}As the teacher: share of validation inputs to which the plain mean of the students gives the teacher's class."
    return "RMSE to the teacher: of the plain mean of the students, on validation inputs."


def show(runs: Sequence[tuple[str, Run]]) -> None:
    """Print a table for each (name, run) that has students; where there is no terminal, wide enough that nothing is folded."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console = console if console.is_terminal else Console(width=180)
    try:
        for name, run in runs:
            if not (found := prefix_rows(run)):
                continue
            heads, texts = body(found)
            table = Table(title=Text(_title(name, run)), title_justify="left", caption=note(found), caption_justify="left")
            for head in heads:
                table.add_column(head, justify="left" if head == COLUMNS["student"][0] else "right", overflow="fold")
            for row in texts:
                table.add_row(*map(Text, row))
            console.print(table)
    except SystemExit as stop:  # what rich makes of a reader that left
        raise BrokenPipeError from stop


def markdown(runs: Sequence[tuple[str, Run]]) -> str:
    """The same as Markdown; empty where no run has students."""
    parts = []
    for name, run in runs:
        if found := prefix_rows(run):
            heads, texts = body(found)
            lines = [
                "| " + " | ".join(heads) + " |",
                "|---" * len(heads) + "|",
                *("| " + " | ".join(row) + " |" for row in texts),
            ]
            parts.append("\n".join([_title(name, run), "", *lines, "", note(found)]) + "\n")
    return "\n".join(parts)


def _title(name: str, run: Run) -> str:
    about = run.facts["distil"]
    weighted = ", fitted weights" if about["weights"] is not None else ""
    return f"{name}: prefixes{weighted}, {run.outputs('test').n} test rows"
