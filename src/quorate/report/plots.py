"""Plots as PNG: risk against coverage, and quality against cost."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quorate.cascade.cascade import simulate
from quorate.cascade.policy import Policy
from quorate.files import atomic
from quorate.metrics import risk_coverage
from quorate.outputs import Outputs
from quorate.runs import Run

BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}  # of a label that a line crosses


def check(runs: Sequence[Run], folder: str | Path) -> None:
    """What can be known before anything is computed for the plots.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: runs of a regression, which has no such curves; a file where the folder should be.
    """
    if any(run.outputs("test").kind in ("values", "gaussian") for run in runs):
        raise ValueError("these plots show classifications, the runs are of a regression: leave out --plots")
    there = next((path for path in (Path(folder), *Path(folder).parents) if path.exists()), None)
    if there is not None and not there.is_dir():
        raise ValueError(f"plots need a folder, got {folder}: {there} is a file, choose another place")
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('plots need matplotlib: pip install "quorate[report]"')


def plot(runs: Sequence[Run], folder: str | Path) -> list[Path]:
    """Write ``risk-coverage.png`` and ``cost-quality.png`` of finished runs on one data set into ``folder``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: what ``check`` refuses.
    """
    check(runs, folder)
    import matplotlib

    matplotlib.use("Agg", force=False)
    folder = Path(folder)
    return [
        _draw(folder / "risk-coverage.png", _draw_risk, runs),
        _draw(folder / "cost-quality.png", _draw_cost, runs),
    ]


def _draw(path: Path, draw: Any, runs: Sequence[Run]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), dpi=144, layout="constrained")
    draw(figure.subplots(), runs)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _cascades(run: Run) -> Mapping[str, Policy]:
    return {f"{run.name} {name}": Policy.load(path) for name, path in run.policies.items()}


def _simulated(policy: Policy, outputs: Outputs) -> tuple[Any, np.ndarray]:
    merged = outputs.grouped_as([stage.name for stage in policy.stages])
    result = simulate(policy, merged)
    return result, result.label != merged.truth()


def _colours(runs: Sequence[Run]) -> dict[str, str]:
    """One colour per run, the same in both plots."""
    return {str(run.path): f"C{k}" for k, run in enumerate(runs)}


def _draw_risk(axes: Any, runs: Sequence[Run]) -> None:
    highest, first_error, colours = 0.0, 100.0, _colours(runs)
    for run in runs:
        test = run.outputs("test")
        shown = {run.name: Policy.of(test)} | {n: p for n, p in _cascades(run).items() if p.uncertainty == "msp"}
        for name, policy in shown.items():
            line = {"linestyle": "-" if name == run.name else "--", "color": colours[str(run.path)]}
            result, wrong = _simulated(policy, test)
            curve = risk_coverage(result.uncertainty, wrong)
            axes.plot(100 * curve.coverage, 100 * curve.risk, label=name, drawstyle="steps-post", **line)
            highest = max(highest, 100 * float(curve.risk[-1]))
            first_error = min(first_error, 100 * float(curve.coverage[curve.risk > 0].min(initial=1.0)))
    top = 1.25 * highest + 0.1
    axes.set(
        xlabel="coverage (% of test inputs accepted)",
        ylabel="risk (% wrong among the accepted)",
        xlim=(max(0, 10 * (first_error // 10) - 10), 100.5),
        ylim=(-0.04 * top, top),  # a run without errors stays visible
    )
    axes.set_title("Risk and coverage on test data, uncertainty 1 − max p", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")


def _draw_cost(axes: Any, runs: Sequence[Run]) -> None:
    colours, labels = _colours(runs), list[tuple[str, tuple[float, float], bool]]()
    for run in runs:
        test = run.outputs("test")
        points = []
        for stop in range(1, test.stages + 1):
            result, wrong = _simulated(Policy.of(test.prefix(stop)), test.prefix(stop))
            points.append((result.mean_macs / 1e6, 100 * float(1 - wrong.mean())))
        # a single network is drawn larger and below: it may be the first member of an ensemble
        style = {"marker": "o"} if test.stages > 1 else {"marker": "s", "markersize": 9, "zorder": 1.5, "linestyle": "none"}
        axes.plot(
            *zip(*points, strict=True),
            **style,
            color=colours[str(run.path)],
            label=f"{run.name}, members 1 … {test.stages}" if test.stages > 1 else run.name,
        )
        for k, (name, policy) in enumerate(_cascades(run).items()):
            result, wrong = _simulated(policy, test)
            x, y = result.mean_macs / 1e6, 100 * float(1 - wrong.mean())
            axes.plot([x], [y], marker="*", markersize=12, color=colours[str(run.path)], linestyle="none")
            labels.append((name, (x, y), bool(k % 2)))
    axes.set(xlabel="million MACs per input (mean on test data)", ylabel="test accuracy (%)")
    axes.set_ylim(top=min(axes.get_ylim()[1], 100))
    low, high = axes.get_ylim()
    for name, at, above in labels:
        room = at[1] < high - 0.06 * (high - low)  # else it would reach into the title
        offset = (8, -12) if not above else (8, 6) if room else (8, -24)
        axes.annotate(name, at, textcoords="offset points", xytext=offset, fontsize=8, bbox=BEHIND, zorder=4)
    for line in axes.lines:
        line.set(clip_on=False, zorder=line.get_zorder() + 1.2)  # at 100 % whole and over the frame, 2.5
    axes.set_title("Cost and quality on test data; stars are cascades", loc="left", fontsize=10, pad=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
