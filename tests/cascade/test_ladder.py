"""Ladders: every step's figures against those of its thresholds; sequences rise and end with all; levels are met in whole rows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade.cuts import Groups
from quorate.cascade.exits import Exits
from quorate.cascade.ladder import choose, first_step, ladder, on_sequence, within_limits
from quorate.cascade.target import parse
from quorate.cascade.task import Task, make_task

pytestmark = pytest.mark.deciding

TARGETS = ["coverage@risk=0.2", "coverage@risk=0.0", "risk@coverage=0.6", "fpr@tpr=0.8", "accuracy"]


def drawn(seed: int, n: int, count: int, levels: int = 6, labelled: bool = True) -> Exits:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    u = rng.integers(0, levels, (count, n)) / 8
    label = np.where(rng.random((count, n)) > u / 2, truth, (truth + 1) % 3)
    return Exits(tuple(f"s{k}" for k in range(count)), u, label, (1.0,) * count, truth if labelled else None)


@st.composite
def tasks(draw: st.DrawFn, targets: list[str] = TARGETS) -> tuple[Task, np.ndarray]:
    """A task, with or without OOD rows, and exits that may leave one without ID rows, or without any."""
    seed, count = draw(st.integers(0, 10**6)), draw(st.integers(1, 3))
    rng = np.random.default_rng(seed)
    goal = parse(draw(st.sampled_from(targets)))
    ood = goal.figure == "fpr" or (goal.level is not None and draw(st.booleans()))
    n, m = int(rng.integers(1, 25)), int(rng.integers(1, 15)) if ood else 0
    outside = {"ood": drawn(seed + 1, m, count, labelled=False)} if ood else None
    beta, alpha = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])), draw(st.sampled_from([None, 0.2, 0.9]))
    costs = draw(st.sampled_from([None, [1.0, 2.0, 0.0]])) if goal.figure != "fpr" else None
    task = make_task(goal, drawn(seed, n, count), outside, costs, beta, alpha)
    open_to = draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    exit_at = rng.choice(open_to, n + m)
    if ood and draw(st.booleans()):
        exit_at[n:] = rng.integers(0, count, m)  # OOD rows where no ID row is
    return task, exit_at


@settings(max_examples=300)
@given(tasks(), st.sampled_from([0.0, 0.1, 0.7]), st.sampled_from([None, 3]))
def test_every_step_has_the_figures_of_its_thresholds(made: tuple[Task, np.ndarray], rho: float, most: int | None) -> None:
    task, exit_at = made
    steps = ladder(task, exit_at, [Groups.of(u, most) for u in task.exits.uncertainty], rho)
    first = first_step(steps, exit_at)
    assert (np.diff(steps.accepted, axis=0) >= 0).all()
    assert (np.diff(steps.coverage) >= 0).all()
    assert not steps.accepted[0].any()
    assert steps.coverage[0] == 0
    for step in range(len(steps.coverage)):
        accepted = task.exits.accepted(exit_at, steps.taus(step))
        found = task.figures(exit_at, accepted)
        assert steps.coverage[step] == pytest.approx(found.coverage, abs=1e-12)
        assert steps.risk[step] == pytest.approx(np.nan_to_num(found.risk), abs=1e-12)
        np.testing.assert_array_equal(accepted, first <= step)
    assert steps.taus(len(steps.coverage) - 1) == (None,) * task.exits.count


@settings(max_examples=150)
@given(tasks(), st.integers(1, 12))
def test_a_sequence_rises_and_ends_with_all(made: tuple[Task, np.ndarray], most: int) -> None:
    task, exit_at = made
    steps = ladder(task, exit_at, [Groups.of(u) for u in task.exits.uncertainty])
    u = task.exits.at_exit(task.exits.uncertainty, exit_at)
    for begin in {1, max(1, len(steps.slope) // 2), len(steps.slope)}:
        vectors = steps.sequence(most, begin)
        limits = np.array([[np.inf if tau is None else tau for tau in taus] for taus in vectors])
        assert (limits[1:] >= limits[:-1]).all()
        assert len(set(vectors)) == len(vectors) <= most + 1
        assert vectors[-1] == (None,) * task.exits.count
        place = on_sequence(vectors, u, exit_at)
        for g, taus in enumerate(vectors):
            np.testing.assert_array_equal(task.exits.accepted(exit_at, taus), place <= g)
    whole = steps.sequence(10_000)
    covered = [task.figures(exit_at, task.exits.accepted(exit_at, taus)).coverage for taus in whole]
    assert (np.diff(covered) >= -1e-12).all()


def test_places_by_hand() -> None:
    sequence = ((0.1, None), (0.3, None), (0.3, None))
    u, exit_at = np.array([0.1, 0.1000001, 0.4, 9.0]), np.array([0, 0, 0, 1])
    np.testing.assert_array_equal(on_sequence(sequence, u, exit_at), [0, 1, 3, 0])  # a tie is accepted; three is none


def test_a_ladder_by_hand() -> None:
    """Exit 0: right, right, wrong; exit 1: right, wrong, right: its local risks 0, then ½ for the pooled pair."""
    u = np.array([[0.0, 1, 2, 9, 9, 9], [9.0, 9, 9, 0, 1, 2]])
    truth = np.zeros(6, np.int64)
    label = np.array([[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]])
    task = make_task(parse("coverage@risk=0.25"), Exits(("a", "b"), u, label, (1.0, 1.0), truth))
    exit_at = np.array([0, 0, 0, 1, 1, 1])
    steps = ladder(task, exit_at, [Groups.of(row) for row in u])
    np.testing.assert_allclose(steps.slope, [0, 0, 0, 0.5, 0.5, 1])
    np.testing.assert_array_equal(steps.accepted[:-1], [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [2, 4]])  # the last is open above
    np.testing.assert_allclose(steps.risk, [0, 0, 0, 0, 1 / 4, 1 / 5, 2 / 6])
    assert choose(steps, task) == 5
    assert steps.taus(3) == (1.5, 0.5)
    assert steps.taus(5) == (1.5, None)


def one_exit(wrong: list[int], u: list[float] | None = None) -> tuple[Exits, np.ndarray]:
    scores = np.arange(len(wrong), dtype=float) if u is None else np.array(u)
    return Exits(("a",), scores[None], np.array([wrong]), (1.0,), np.zeros(len(wrong), np.int64)), np.zeros(len(wrong), np.int64)


@pytest.mark.parametrize(
    ("rows", "coverage", "whole"),
    [(5, 0.8, 4), (5, 0.6, 3), (10, 0.7, 7), (10, 0.3, 3), (3, 1 / 3, 1), (7, 0.5, 4), (100, 0.29, 29)],
)
def test_a_coverage_is_met_in_whole_rows(rows: int, coverage: float, whole: int) -> None:
    exits, exit_at = one_exit([int(i % 3 == 2) for i in range(rows)])
    task = make_task(parse(f"risk@coverage={coverage!r}"), exits)
    steps = ladder(task, exit_at, [Groups.of(exits.uncertainty[0])])
    step = choose(steps, task)
    assert step is not None
    assert round(steps.coverage[step] * rows) == whole


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7]),
)
def test_one_exit_reaches_the_largest_coverage_at_a_risk(rows: list[tuple[int, int]], level: float) -> None:
    wrong, u = ([pair[i] for pair in rows] for i in (0, 1))
    exits, exit_at = one_exit(wrong, [float(x) for x in u])
    task = make_task(parse(f"coverage@risk={level!r}"), exits)
    steps = ladder(task, exit_at, [Groups.of(exits.uncertainty[0])])
    share, best = Fraction(level).limit_denominator(1000), 0
    for limit in set(u):
        kept = [w for w, x in rows if x <= limit]
        if sum(kept) <= share * len(kept):
            best = max(best, len(kept))
    step = choose(steps, task)
    assert (0 if step is None else round(steps.coverage[step] * len(rows))) == best


@pytest.mark.parametrize("n", [1000, 300_000])
def test_a_risk_just_met_is_met_whatever_rounding_makes_of_it(n: int) -> None:
    wrong = np.zeros(n, np.int64)
    wrong[-n // 20 :] = 1  # 5 % of all
    exits, exit_at = one_exit(wrong.tolist())
    task = make_task(parse("coverage@risk=0.05"), exits)
    steps = ladder(task, exit_at, [Groups.of(exits.uncertainty[0])])
    assert choose(steps, task) == n
    more = make_task(parse("coverage@risk=0.04999"), exits)
    step = choose(steps, more)
    assert step is not None
    assert step < n


@settings(max_examples=100)
@given(
    tasks(["coverage@risk=0.2", "risk@coverage=0.6"]),
    st.dictionaries(st.integers(0, 2), st.sampled_from([0.0, 0.1, 0.4]), min_size=1),
)
def test_limits_per_class_by_definition(made: tuple[Task, np.ndarray], limits: dict[int, float]) -> None:
    task, exit_at = made
    steps = ladder(task, exit_at, [Groups.of(u) for u in task.exits.uncertainty])
    allowed = within_limits(steps, task, exit_at, limits)
    label, loss = task.exits.at_exit(task.exits.label, exit_at), task.exits.at_exit(task.loss, exit_at)
    inside = np.arange(len(label)) < task.inside
    for step, ok in enumerate(allowed):
        accepted = task.exits.accepted(exit_at, steps.taus(step)) & inside
        each = [loss[accepted & (label == said)] for said in limits]
        assert ok == all(costs.sum() <= limit * len(costs) + 1e-9 for costs, limit in zip(each, limits.values(), strict=True))
    step = choose(steps, task, allowed)
    assert step is None or allowed[step]


def test_rows_stand_on_the_same_steps_after_an_increasing_transform() -> None:
    exits = drawn(3, 60, 2, levels=20)
    exit_at = np.random.default_rng(0).integers(0, 2, 60)
    found = []
    for u in (exits.uncertainty, exits.uncertainty**3 * 100 - 7, np.exp(exits.uncertainty)):
        task = make_task(parse("coverage@risk=0.1"), Exits(exits.names, u, exits.label, exits.costs, exits.truth))
        found.append(first_step(ladder(task, exit_at, [Groups.of(row) for row in u]), exit_at))
    np.testing.assert_array_equal(found[1:], [found[0]] * 2)
