"""The best target within a cost: the limit holds, the target is met where any threshold meets it, and simpler windows are no better."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade import solving
from quorate.cascade.cuts import Groups
from quorate.cascade.exits import Exits
from quorate.cascade.solving import Solved, preferred, solve, under_windows, within_cost
from quorate.cascade.target import parse
from quorate.cascade.task import Task, make_task
from quorate.cascade.window import quantile_window
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

MARGIN = 0.011  # of the figure that a search may lose against a scan of all simpler windows


def drawn(seed: int, n: int = 400, stages: int = 2, classes: int = 4, ood: bool = False) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    signal = np.eye(classes)[labels] * rng.uniform(0, 4, (n, 1)) * (not ood)
    values = [signal * (1 + 0.2 * k) + rng.normal(size=(n, classes)) for k in range(stages)]
    return Outputs(values, labels=labels, costs=[1.0, 2.0, 4.0][:stages])


def task_of(target: str, seed: int, stages: int = 2, n: int = 400, **options: Any) -> Task:
    goal = parse(target)
    inside = Exits.of(drawn(seed, n, stages), nll=goal.figure == "nll")
    outside = {"ood": Exits.of(drawn(seed + 100, n // 2, stages, ood=True))} if options.pop("ood", goal.figure == "fpr") else None
    return make_task(goal, inside, outside, **options)


def checked(task: Task, solved: Solved, limit: float = np.inf) -> None:
    """What a solution says of itself is so, row by row, and it meets what it says it meets."""
    exit_at = task.exits.stage(solved.windows)
    accepted = task.exits.accepted(exit_at, solved.taus)
    found = task.figures(exit_at, accepted)
    np.testing.assert_array_equal(exit_at, solved.exit_at)
    np.testing.assert_allclose(found, solved.figures, rtol=1e-12)
    assert found.cost <= limit * (1 + 1e-9)
    if task.goal.level is None:
        assert accepted.all()
        assert solved.feasible
        assert solved.taus == (None,) * task.exits.count
    elif task.goal.figure == "coverage":
        assert solved.feasible == (found.risk <= task.goal.level + 1e-12)
        if task.inside == task.exits.n and set(np.unique(task.loss)) <= {0, 1}:
            wrong, rows = int(task.exits.at_exit(task.loss, exit_at)[accepted].sum()), int(accepted.sum())
            assert not solved.feasible or Fraction(wrong, rows) <= Fraction(str(task.goal.level))
    else:
        assert round(found.coverage * task.inside) >= np.ceil(task.goal.level * task.inside - 1e-6)


def at_least_as_good(task: Task, solved: Solved, other: Solved, margin: float = MARGIN) -> bool:
    up = task.goal.figure in ("coverage", "accuracy")
    gap = (other.figures.figure - solved.figures.figure) * (1 if up else -1)
    return not other.feasible or (solved.feasible and gap <= margin)


@pytest.mark.parametrize("target", ["coverage@risk=0.05", "risk@coverage=0.7", "fpr@tpr=0.9", "accuracy", "nll"])
@pytest.mark.parametrize(("seed", "share"), [(1, 0.34), (1, 0.55), (2, 0.45), (3, 0.55), (1, 1.0)])
def test_two_stages_within_a_cost(target: str, seed: int, share: float) -> None:
    """No worse than any single threshold, which is scanned row by row, nor than the paper's windows of that cost."""
    task = task_of(target, seed)
    limit = 3.0 * share
    solved = within_cost(task, limit)
    checked(task, solved, limit)
    full, first = [Groups.of(u) for u in task.exits.uncertainty], Groups.of(task.exits.uncertainty[0], 200)
    scanned = [under_windows(task, [first.window(i, first.count)], full) for i in range(first.count + 1)]
    scanned += [
        under_windows(task, [quantile_window(task.exits.uncertainty[0], tau, (limit - 1) / 4)], full)
        for tau in np.quantile(task.exits.uncertainty[0], [0.3, 0.5, 0.7, 0.9])
    ]
    affordable = [one for one in scanned if one.figures.cost <= limit]
    exact = 1e-9 if task.forced else MARGIN
    assert len(affordable) > 0
    assert all(at_least_as_good(task, solved, one, exact) for one in affordable)
    single = within_cost(task, limit, single=True)
    checked(task, single, limit)
    assert single.windows[0] is None or single.windows[0][1] is None
    singles = [one for one in affordable if one.windows[0] is None or one.windows[0][1] is None]
    assert all(at_least_as_good(task, single, one, exact) for one in singles)


@pytest.mark.parametrize("target", ["coverage@risk=0.05", "accuracy"])
def test_three_stages_within_a_cost(target: str) -> None:
    task = task_of(target, 2, 3)
    last = None
    for limit in (1.0, 2.0, 4.0, 7.0):
        solved = within_cost(task, limit)
        checked(task, solved, limit)
        assert last is None or at_least_as_good(task, solved, last)  # more money buys no less
        last = solved
    assert last is not None
    assert at_least_as_good(task, last, under_windows(task, [(None, None)] * 2))
    again = within_cost(task, 4.0)
    same = within_cost(task, 4.0)
    assert again.windows == same.windows
    assert again.taus == same.taus


def test_two_of_three_stages_are_cascades_of_three_too() -> None:
    task = task_of("accuracy", 3, 3)
    assert at_least_as_good(task, within_cost(task, 2.0), within_cost(task_of("accuracy", 3, 2), 2.0))


@pytest.mark.parametrize("rows", [150, 300])
def test_a_search_on_part_of_the_rows_keeps_the_limit_on_all(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "SEARCHED", rows)
    monkeypatch.setattr(solving, "BINS", 64)
    for ood in (False, True):
        task = task_of("coverage@risk=0.1", 4, 2, 1200, ood=ood)
        for seed in (0, 1):
            checked(task, within_cost(task, 1.7, seed=seed), 1.7)
    one, same = within_cost(task, 1.7, seed=5), within_cost(task, 1.7, seed=5)
    assert one.windows == same.windows


@pytest.mark.parametrize(("beta", "alpha"), [(1.0, None), (0.5, 0.8), (3.0, 0.3)])
def test_scod_within_a_cost(beta: float, alpha: float | None) -> None:
    task = task_of("coverage@risk=0.2", 5, 2, ood=True, beta=beta, alpha=alpha)
    solved = within_cost(task, 1.8)
    checked(task, solved, 1.8)
    first = under_windows(task, [None])
    assert at_least_as_good(task, solved, first, 0.0)


def test_limits_per_class_hold() -> None:
    goal, limits = "coverage@risk=0.1", {0: 0.02, 2: 0.05}
    task = task_of(goal, 6)
    free, held = within_cost(task, 1.8), within_cost(task, 1.8, limits=limits)
    checked(task, held, 1.8)
    assert held.feasible
    assert held.figures.coverage <= free.figures.coverage + MARGIN
    accepted = task.exits.accepted(held.exit_at, held.taus)
    label, loss = (task.exits.at_exit(values, held.exit_at) for values in (task.exits.label, task.loss))
    for said, limit in limits.items():
        here = accepted & (label == said)
        assert loss[here].sum() <= limit * here.sum() + 1e-9


def test_a_target_that_cannot_be_met_is_infeasible_and_says_the_least_risk() -> None:
    out = drawn(7)
    exits = Exits.of(out)
    wrong = Exits(exits.names, exits.uncertainty, np.stack([(out.truth() + 1) % 4] * 2), exits.costs, out.truth())
    solved = within_cost(make_task(parse("coverage@risk=0.05"), wrong), 2.0)
    assert not solved.feasible
    assert solved.figures.risk == 1.0
    right = Exits(exits.names, exits.uncertainty, np.stack([out.truth()] * 2), exits.costs, out.truth())
    solved = within_cost(make_task(parse("coverage@risk=0.0"), right), 2.0)
    assert solved.feasible
    assert solved.figures == pytest.approx((1, 1, 0, 1))
    assert solved.taus == (None, None)


def test_a_cost_below_the_first_stage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a cost of 0\.5 per row is less than 1, what the first stage alone costs: allow"):
        within_cost(task_of("accuracy", 8), 0.5)
    assert within_cost(task_of("accuracy", 8), 1.0).windows == (None,)


def test_stages_that_cost_nothing() -> None:
    exits = Exits.of(drawn(9, 100))
    task = make_task(parse("accuracy"), Exits(exits.names, exits.uncertainty, exits.label, (0.0, 0.0), exits.truth))
    solved = within_cost(task, 0.0)
    assert solved.figures.cost == 0
    assert at_least_as_good(task, solved, under_windows(task, [(None, None)]), 0.0)


def test_what_is_preferred() -> None:
    task = task_of("coverage@risk=0.1", 10, n=100)
    one, other = under_windows(task, [None]), under_windows(task, [(None, None)])
    assert preferred(task, one, other) != preferred(task, other, one)
    assert not preferred(task, one, one)
    assert preferred(task, one, other) == (one.figures.coverage > other.figures.coverage)
    hard = make_task(parse("coverage@risk=0.0"), Exits.of(drawn(10, 100)))
    infeasible = Solved(one.windows, one.taus, one.figures, False, None, one.exit_at, one.steps, one.step)
    assert preferred(hard, one, infeasible)
    assert not preferred(hard, infeasible, one)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from(["coverage@risk=0.2", "risk@coverage=0.5", "accuracy"]))
def test_few_rows_and_ties(seed: int, n: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    exits = Exits(("a", "b"), rng.integers(0, 2, (2, n)) / 1.0, rng.integers(0, 2, (2, n)), (1.0, 1.0), truth)
    task = make_task(parse(target), exits)
    checked(task, solve(task, [Groups.of(u) for u in exits.uncertainty], 0.1, 0.5))
    checked(task, under_windows(task, [(0.5, None)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solving, "SLOPES", 2)
        checked(task, within_cost(task, 1.5), 1.5)
