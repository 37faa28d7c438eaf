"""Reports of saved runs: one honest table, and plots. Needs arrays only; plots need matplotlib."""

from quorate.report import prefixes
from quorate.report.figures import cascade_figures, ensemble_figures
from quorate.report.plots import plot
from quorate.report.table import Column, as_json, columns, markdown, render, show, times_of

__all__ = [
    "Column",
    "as_json",
    "cascade_figures",
    "columns",
    "ensemble_figures",
    "markdown",
    "plot",
    "prefixes",
    "render",
    "show",
    "times_of",
]
