"""Fronts: dominated points dropped, even places kept, costs to plan for within the limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade.planner.committees import Point
from quorate.cascade.planner.front import Option, aims, along, pareto, thinned
from quorate.cascade.planner.plan import stratified
from quorate.cascade.planner.space import Chain

pytestmark = pytest.mark.deciding
PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20)
AT = Point(0.1, 0.2, 0.3)


@settings(deadline=None)
@given(PAIRS)
def test_pareto_against_every_pair(points: list[tuple[int, int]]) -> None:
    kept = [points[i] for i in pareto(*zip(*points, strict=True))]
    brute = {(c, v) for c, v in points if not any((d <= c and w >= v) and (d, w) != (c, v) for d, w in points)}
    assert len(kept) == len(set(kept))
    assert set(kept) == brute
    assert kept == sorted(kept)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 5))
def test_thinned_keeps_ends_and_count(points: int, count: int, forced: int) -> None:
    costs = np.cumsum(np.arange(1, points + 1)).tolist()
    kept = thinned(costs, list(range(points)), count, [min(forced, points - 1)])
    assert kept == sorted(set(kept))
    assert len(kept) == min(points, count)
    assert points - 1 in kept
    assert count < 2 or 0 in kept
    assert count < 3 or min(forced, points - 1) in kept


def test_along_is_even_in_log_cost_and_value() -> None:
    assert along([1.0, 10.0, 100.0], [0.0, 0.5, 1.0]) == pytest.approx([0.0, 0.5**0.5, 2**0.5])
    assert along([3.0], [1.0]) == pytest.approx([0.0])
    assert along([0.0, 0.0], [0.0, 2.0]) == pytest.approx([0.0, 1.0])
    assert thinned([1.0, 2.0, 4.0, 8.0, 16.0], [0.0, 1.0, 2.0, 3.0, 4.0], 3) == [0, 2, 4]


def option(member: int, cost: float, figure: float, second: int | None = None, feasible: bool = True) -> Option:
    members = (member,) if second is None else (member, second)
    return Option(Chain(members, ("mean",) * len(members)), AT, cost, figure, feasible)


def test_costs_to_plan_for() -> None:
    found = [
        option(0, 1.0, 0.5),
        option(1, 4.0, 0.7),
        option(0, 2.0, 0.6, 1),
        option(2, 5.0, 0.65),
        option(1, 0.5, 0.9, 0, False),
    ]
    wanted = aims(found, 1.0, np.inf, 3)
    assert (1.0, found[0].chain) in wanted
    assert (4.0, found[1].chain) in wanted
    assert any(cost == pytest.approx(2.0) and chain == found[2].chain for cost, chain in wanted)
    assert all(chain.members != (2,) for _, chain in wanted)
    limited = aims(found, 1.0, 3.0, 4)
    assert max(cost for cost, _ in limited) == pytest.approx(3.0)
    assert {chain.members for cost, chain in limited if cost == pytest.approx(3.0)} == {(0, 1), (1,)}
    falling = aims([option(0, 1.0, 0.5), option(1, 2.0, 0.3), option(2, 3.0, 0.4)], -1.0, np.inf, 2)
    assert {chain.members for _, chain in falling} == {(0,), (1,)}


def test_the_sample_keeps_the_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [800, 150, 50])
    rows = stratified(labels, 1000, 100, np.random.default_rng(3))
    assert np.bincount(labels[rows]).tolist() == [80, 15, 5]
    assert len(set(rows.tolist())) == 100
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(stratified(None, 5, 9, np.random.default_rng(0)), np.arange(5))
    assert len(stratified(None, 50, 9, np.random.default_rng(0))) == 9
