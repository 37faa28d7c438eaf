"""What a planner has to beat: the best single model, the best pair with one threshold, the best pair with the paper's window.

Each is found on validation rows by trying everything, for every limit of cost. "One threshold": whoever is less sure than t goes on
to the second model (Wang et al. 2022, arXiv 2012.01988), t at the quantiles of the first one's uncertainty, over all ordered pairs. For
coverage at a risk the pairs are compared under one τ for both exits. "Paper": the quantiles at ± .10 around the first model's operating
point (Xia & Bouganis 2023, arXiv 2303.08010, §3); a target without a threshold has none. What is chosen then gets a τ per exit and a
sequence of thresholds as any other policy, so that windows and models alone are compared.

Shapes: uncertainty and errors (K, N) of K models on their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quorate.cascade import Policy, Prediction, quantile_window, simulate
from quorate.cascade.exits import Exits
from quorate.cascade.fitting import policy_of
from quorate.cascade.guarantee import certify_policy
from quorate.cascade.ladder import on_sequence
from quorate.cascade.policy import Window
from quorate.cascade.solving import under_windows
from quorate.cascade.target import Target
from quorate.cascade.task import make_task
from quorate.metrics import threshold_at_risk
from quorate.outputs import Outputs
from tables import Figures

THRESHOLDS = 100
WIDTH = 0.10


class Choice(NamedTuple):
    """Models in order, the windows between them, and what they come to on validation rows."""

    models: tuple[str, ...]
    windows: tuple[Window | None, ...]
    cost: float
    figure: float


def within(choices: Sequence[Choice], limit: float) -> Choice | None:
    """The best of those that cost at most so much; of equal ones the cheaper."""
    affordable = [choice for choice in choices if choice.cost <= limit * (1 + 1e-12)]
    return max(affordable, key=lambda choice: (choice.figure, -choice.cost), default=None)


def figure(uncertainty: NDArray, errors: NDArray, goal: Target) -> float:
    """The target's figure of scores (N,) and errors (N,): accuracy, or the coverage at a risk."""
    if goal.level is None:
        return float(1 - errors.mean())
    order = np.argsort(uncertainty)
    wrong = np.cumsum(errors[order])
    enough = np.flatnonzero(wrong <= goal.level * np.arange(1, len(wrong) + 1))
    return float(enough[-1] + 1) / len(wrong) if len(enough) else 0.0


def singles(val: Outputs, goal: Target) -> list[Choice]:
    """Every model alone."""
    u, errors, costs = alone(val)
    return [Choice((name,), (), costs[k], figure(u[k], errors[k], goal)) for k, name in enumerate(val.names)]


def one_threshold(val: Outputs, goal: Target, count: int = THRESHOLDS) -> list[Choice]:
    """Every ordered pair with every threshold."""
    u, errors, costs = alone(val)
    found = []
    for a, b in permutations(range(len(costs)), 2):
        lows = np.unique(np.quantile(u[a], np.linspace(0, 1, count)))
        for low in lows.tolist():
            on = u[a] >= low
            value = figure(np.where(on, u[b], u[a]), np.where(on, errors[b], errors[a]), goal)
            found.append(Choice((val.names[a], val.names[b]), ((low, None),), costs[a] + float(on.mean()) * costs[b], value))
    return found


def paper_window(val: Outputs, goal: Target, width: float = WIDTH) -> list[Choice]:
    """Every ordered pair with the paper's window; pairs whose first model can't reach the risk alone have none."""
    u, errors, costs = alone(val)
    found = []
    for a in range(len(costs)):
        tau = None if goal.level is None else threshold_at_risk(u[a], errors[a], goal.level)
        if tau is None:
            continue
        window = quantile_window(u[a], tau, width)
        on = (u[a] >= window[0]) & (u[a] <= window[1])
        for b in range(len(costs)):
            if a != b:
                value = figure(np.where(on, u[b], u[a]), np.where(on, errors[b], errors[a]), goal)
                cost = costs[a] + float(on.mean()) * costs[b]
                found.append(Choice((val.names[a], val.names[b]), (window,), cost, value))
    return found


def alone(val: Outputs) -> tuple[NDArray, NDArray, list[float]]:
    """Uncertainty (K, N) and errors (K, N) of every stage on its own, and costs."""
    exits = Exits.of(val, joins=["replace"] * val.stages)
    return exits.uncertainty, exits.errors, list(exits.costs)


def as_policy(val: Outputs, choice: Choice, goal: Target, rows: int) -> Policy | None:
    """A choice with thresholds from validation rows, and a sequence to be tested by ``rows`` others; None if the risk is out of reach."""
    task = make_task(goal, Exits.of(val, choice.models))
    solved = under_windows(task, choice.windows)
    if not solved.feasible:
        return None
    count = len(choice.models)
    return policy_of(
        solved, task, names=choice.models, joins=["replace"] * count, temperatures=[1.0] * count, costs=task.exits.costs,
        kinds=[None] * count, uncertainty="msp", kind=val.kind, combine=val.combine, rows=rows,
    )  # fmt: skip


def tested(policy: Policy, calibration: Outputs, test: Outputs, goal: Target) -> Figures:
    """A policy's figures on test rows; of a selective target as it stands and certified. A risk without accepted rows is None."""
    found = simulate(policy, test)
    errors = found.label != test.truth()
    figures: Figures = {"cost": found.mean_macs, "accuracy": float(1 - errors.mean())}
    if goal.level is None:
        return figures
    figures |= _selected("", errors, found.accepted, goal.level) | {"read": _read(policy, found, errors, goal.level)}
    certified = certify_policy(policy, calibration)
    feasible = bool(certified.certificate and certified.certificate["feasible"])
    accepted = simulate(certified, test).accepted if feasible else np.zeros(test.n, bool)
    return figures | {"certified": float(feasible)} | _selected("certified_", errors, accepted, goal.level)


def _read(policy: Policy, found: Prediction, errors: NDArray[np.bool_], level: float) -> float:
    """The largest coverage of the policy's sequence whose risk is at most ``level`` on the test rows themselves: an oracle's threshold."""
    if policy.sequence is None:
        return 0.0
    place = on_sequence(policy.sequence, found.uncertainty, found.stage)
    steps = len(policy.sequence)
    accepted = np.cumsum(np.bincount(place, minlength=steps + 1)[:steps])
    wrong = np.cumsum(np.bincount(place, errors, steps + 1)[:steps])
    return float(accepted[wrong <= level * accepted].max(initial=0)) / len(errors)


def _selected(prefix: str, errors: NDArray[np.bool_], accepted: NDArray[np.bool_], level: float) -> Figures:
    risk = float(errors[accepted].mean()) if accepted.any() else None
    return {
        f"{prefix}coverage": float(accepted.mean()),
        f"{prefix}risk": risk,
        f"{prefix}exceeded": float(risk is not None and risk > level),
    }
