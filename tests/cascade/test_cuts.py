"""Cuts of one exit, against brute force over every (threshold, window), in whole numbers so that equal means equal."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade.cuts import Cut, Groups, best_cut, best_cut_within, midway, narrowest

pytestmark = pytest.mark.deciding

SUMS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=8)
SCORES = st.lists(
    st.one_of(
        st.integers(-3, 3).map(float),
        st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, -5e-324, 1.0, float(np.nextafter(1, 2)), float(np.nextafter(1, 0))]),
        st.floats(-1e300, 1e300),
    ),
    min_size=1,
    max_size=25,
)


def worth(accept: np.ndarray, rest: np.ndarray, t: int, i: int, j: int) -> float:
    """Of a cut, row group by row group: the window goes on, the others are accepted below t and rejected above."""
    return float(sum(rest[g] if i <= g < j else accept[g] if g < t else 0.0 for g in range(len(accept))))


def columns(sums: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(sums, np.float64)
    return table[:, 0], table[:, 1]


@settings(max_examples=300)
@given(SUMS, st.booleans(), st.booleans())
def test_the_best_cut_is_the_best_of_all(sums: list[tuple[int, int]], forced: bool, single: bool) -> None:
    accept, rest = columns(sums)
    count = len(accept)
    cut = best_cut(accept, rest, forced, single)
    best = max(
        worth(accept, rest, t, i, j)
        for t in ([count] if forced else range(count + 1))
        for i in range(count + 1)
        for j in ([count] if single else range(i, count + 1))
    )
    assert cut.value == best == worth(accept, rest, cut.accept, cut.start, cut.stop)
    assert 0 <= cut.start <= cut.stop <= count
    assert 0 <= cut.accept <= count
    if single:
        assert cut.stop == count
    if forced:  # only what goes on need not be accepted
        assert cut.accept == count or (cut.stop == count and cut.accept >= cut.start)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.integers(0, 3)), min_size=1, max_size=8),
    st.integers(0, 12),
    st.booleans(),
    st.booleans(),
)
def test_the_best_cut_within_a_cost_is_the_best_of_all(
    sums: list[tuple[int, int, int]], limit: int, forced: bool, single: bool
) -> None:
    accept, rest, cost = np.array(sums, np.float64).T
    count = len(accept)
    cut = best_cut_within(accept, rest, cost, float(limit), forced, single)
    best = max(
        worth(accept, rest, t, i, j)
        for t in ([count] if forced else range(count + 1))
        for i in range(count + 1)
        for j in ([count] if single else range(i, count + 1))
        if cost[i:j].sum() <= limit
    )
    assert cut.value == best == worth(accept, rest, cut.accept, cut.start, cut.stop)
    assert cost[cut.start : cut.stop].sum() <= limit
    assert cut.start <= cut.stop
    assert best_cut_within(accept, rest, cost, 1e9, forced, single).value == best_cut(accept, rest, forced, single).value


@given(st.integers(1, 6), st.booleans(), st.booleans())
def test_where_nothing_is_won_nobody_goes_on(count: int, forced: bool, single: bool) -> None:
    cut = best_cut(np.zeros(count), np.zeros(count), forced, single)
    assert cut.start == cut.stop
    assert cut.value == 0


def test_cuts_by_hand() -> None:
    accept, rest = np.array([3.0, 1, -1, -5]), np.array([2.5, 2, 1.5, -1])
    assert best_cut(accept, rest) == Cut(1, 1, 3, 6.5)  # accept, go on, go on, reject
    assert best_cut(accept, rest, forced=True) == Cut(4, 1, 4, 5.5)  # the last can't be rejected, so it goes on
    assert best_cut(accept, rest, single=True) == Cut(1, 1, 4, 5.5)
    hard = np.array([2.0, -3, -3]), np.array([1.0, -4, 4])
    assert best_cut(*hard) == Cut(1, 2, 3, 6.0)  # accepted, rejected below the window, on
    easy = np.array([2.0, 3, 3]), np.array([4.0, -4, 1])
    assert best_cut(*easy) == Cut(3, 0, 1, 10.0)  # on, accepted above the window


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=1, max_size=10), st.integers(-3, 8))
def test_the_narrowest_window_is_the_cheapest_of_all(sums: list[tuple[int, int]], least: int) -> None:
    cost, gain = columns(sums)
    paid = [
        cost[i:j].sum() for i in range(len(cost) + 1) for j in range(i, len(cost) + 1) if gain[i:j].sum() >= least
    ]  # (i = j is the empty one)
    found = narrowest(cost, gain, float(least))
    if not paid:
        assert found is None
        return
    assert found is not None
    start, stop = found
    assert gain[start:stop].sum() >= least
    assert cost[start:stop].sum() == min(paid)


def test_the_narrowest_window_by_hand() -> None:
    gain, cost = np.array([0.0, 2, -1, 3, 0]), np.array([1.0, 5, 1, 4, 1])
    assert narrowest(cost, gain, 0) == (0, 0) == narrowest(cost, gain, -2)
    assert narrowest(cost, gain, 3) == (3, 4)
    assert narrowest(cost, gain, 4) == (1, 4)  # through what is lost
    assert narrowest(cost, gain, 5) is None is narrowest(cost, np.zeros(5), 1)


@settings(max_examples=300)
@given(SCORES, st.data(), st.one_of(st.none(), st.integers(1, 6)))
def test_groups_windows_and_edges_hold_just_their_rows(scores: list[float], data: st.DataObject, most: int | None) -> None:
    u = np.array(scores)
    groups = Groups.of(u, most)
    assert groups.group.min() == 0
    assert groups.group.max() == groups.count - 1 == len(groups.edges)
    assert most is None or groups.count <= most
    order = np.argsort(u, kind="stable")
    assert (np.diff(groups.group[order]) >= 0).all()
    for value in np.unique(u):
        assert len(np.unique(groups.group[u == value])) == 1  # a tie is never parted, −0 and 0 neither
    start, stop = sorted(data.draw(st.tuples(st.integers(0, groups.count), st.integers(0, groups.count))))
    window = groups.window(start, stop)
    if start == stop:
        assert window is None
    else:
        low, high = window or (math.nan, math.nan)
        on = (u >= (-np.inf if low is None else low)) & (u <= (np.inf if high is None else high))
        np.testing.assert_array_equal(on, (groups.group >= start) & (groups.group < stop))
        assert (low is None) == (start == 0)
        assert (high is None) == (stop == groups.count)
    edge = groups.edge(start)
    np.testing.assert_array_equal(u <= (np.inf if edge is None else edge), groups.group < start)
    assert (edge is None) == (start == groups.count)
    np.testing.assert_array_equal(groups.sums(np.ones(len(u))), np.bincount(groups.group))
    mask = u > 0
    np.testing.assert_array_equal(groups.sums(np.ones(len(u)), mask), np.bincount(groups.group[mask], minlength=groups.count))


def test_thresholds_lie_strictly_between_the_data_where_floats_allow() -> None:
    one, next_one = 1.0, float(np.nextafter(1.0, 2))
    distinct = np.array([-1e308, -2.0, 1.0, 4.0, 1.7e308])
    edges = midway(distinct)
    assert ((edges > distinct[:-1]) & (edges < distinct[1:])).all()
    np.testing.assert_array_equal(midway(np.array([one, next_one])), [one])  # no float between: the lower one
    np.testing.assert_array_equal(midway(np.array([0.0, 5e-324])), [0.0])
    assert Groups.of(np.array([one, next_one])).window(1, 2) == (next_one, None)
    assert len(midway(np.array([3.0]))) == 0


@given(st.integers(1, 400), st.integers(1, 30))
def test_coarse_groups_are_of_about_equal_size(rows: int, most: int) -> None:
    groups = Groups.of(np.random.default_rng(rows).permutation(rows).astype(float), most)
    sizes = np.bincount(groups.group)
    assert groups.count == min(most, rows)
    assert sizes.max() - sizes.min() <= 2


def test_a_coarse_group_of_one_huge_tie() -> None:
    u = np.array([0.0] * 90 + [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    groups = Groups.of(u, 10)
    np.testing.assert_array_equal(np.bincount(groups.group)[0], 90)
    assert groups.count <= 10
    assert len(np.unique(groups.group[u > 0])) >= 1
