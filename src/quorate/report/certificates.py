"""Certificates in words, and a table of policies that were certified again on fresh rows.

What each kind claims, says :mod:`quorate.cascade.guarantee.certificate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quorate.cascade.guarantee import Certificate, Part
from quorate.report import grid
from quorate.report.grid import percent


class Checked(NamedTuple):
    """A policy's name and target, and its certificate on fresh rows."""

    name: str
    target: str
    certificate: Certificate


def claim(certificate: Certificate | None, figure: str | None = None) -> str:
    """What is certified, short; ``figure`` is that of the target: an ``accuracy`` is bounded from below, not its risk from above."""
    if certificate is None:
        return "–"
    if not certificate.feasible:
        more = certificate.needed
        return "infeasible" if more is None else f"infeasible, needs {more:,} more rows"
    target, bound = percent(certificate.target), percent(certificate.bound)
    if certificate.kind == "fpr":
        worst = max((part.bound for part in certificate.outliers if part.bound is not None), default=None)
        return f"TPR ≥ {target}" + ("" if worst is None else f", FPR ≤ {percent(worst)}")
    if certificate.kind in ("selective risk", "scod"):
        return f"{percent(certificate.coverage)} at risk ≤ {target}"
    if certificate.kind == "deviation":
        return f"deviation ≤ {target}"
    if figure == "accuracy" and certificate.bound is not None:
        return f"accuracy ≥ {percent(1 - certificate.bound)}"
    return f"risk ≤ {bound}"


def verdict(certificate: Certificate) -> str:
    """``holds``, ``does not hold``, or how many more rows would say."""
    if certificate.feasible:
        return "holds" if certificate.target is not None else "bound only"
    if certificate.needed is None:
        return "does not hold"
    return f"too few rows: about {certificate.needed:,} more would do"


HEADS = ("policy", "target", "risk met", "bound", "coverage", "rows", "confidence", "verdict")
EXITS = ("policy", "exit", "rows", "accepted", "risk", "bound")
NOTE = (
    "Bounds hold for one certification of each policy on these rows, which chose nothing of it: over the draw of such rows, with the "
    "probability in confidence; those of its exits together with as much again. They say nothing of one input, nor of inputs from "
    "elsewhere."
)


def body(found: Sequence[Checked]) -> list[list[str]]:
    """A row per policy."""
    return [_row(each) for each in found]


def exits(found: Sequence[Checked]) -> list[list[str]]:
    """A row per policy and exit, then per OOD set."""
    return [
        [each.name, label, f"{part.rows:,}", percent(_share(part)), percent(part.risk), percent(part.bound)]
        for each in found
        for label, part in [
            *((part.name, part) for part in each.certificate.exits),
            *((f"OOD {part.name}", part) for part in each.certificate.outliers),
        ]
    ]


def show(found: Sequence[Checked]) -> None:
    """Print both tables."""
    grid.show(HEADS, body(found), note=NOTE, left=("policy", "target", "verdict"))
    grid.show(EXITS, exits(found), left=("policy", "exit"))


def markdown(found: Sequence[Checked]) -> str:
    """Both as Markdown."""
    return grid.markdown(HEADS, body(found), note=NOTE) + "\n" + grid.markdown(EXITS, exits(found))


def _row(each: Checked) -> list[str]:
    certificate, delta = each.certificate, each.certificate.delta
    tpr = certificate.kind == "fpr"
    return [
        each.name,
        each.target,
        _at(certificate.observed, " TPR" * tpr),
        _at(certificate.bound, "", "≥ " if tpr else "≤ "),
        percent(certificate.coverage),
        f"{certificate.rows:,}",
        "–" if delta is None else f"{100 * (1 - delta):.4g} %",
        verdict(certificate),
    ]


def _at(value: float | None, unit: str = "", sign: str = "") -> str:
    return "–" if value is None else f"{sign}{percent(value)}{unit}"


def _share(part: Part) -> float | None:
    return part.accepted / part.rows if part.rows else None
