"""Sweeps: what they say they are worth is what they are worth, it never falls, and two stages are solved in one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade.cuts import Cut, Groups
from quorate.cascade.sweeps import Cuts, at_most, sweep, sweep_within

pytestmark = pytest.mark.deciding


def drawn(seed: int, n: int, count: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Groups]]:
    """Worths and fees in whole numbers, so that sums are exact."""
    rng = np.random.default_rng(seed)
    accept, reject = (rng.integers(-4, 5, (count, n)).astype(float) for _ in range(2))
    fee = rng.integers(0, 3, (count, n)).astype(float)
    return accept, reject, fee, [Groups.of(rng.integers(0, levels, n).astype(float)) for _ in range(count)]


def objective(cuts: list[Cut], accept: np.ndarray, reject: np.ndarray, fee: np.ndarray, groups: list[Groups]) -> float:
    """Row by row, stage by stage."""
    total = 0.0
    for n in range(accept.shape[1]):
        for k, (cut, group) in enumerate(zip(cuts, groups, strict=True)):
            total -= fee[k, n]
            g = group.group[n]
            if k < len(cuts) - 1 and cut.start <= g < cut.stop:
                continue
            total += accept[k, n] if g < cut.accept else reject[k, n]
            break
    return total


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4), st.booleans(), st.booleans())
def test_the_value_is_the_objective_and_never_falls(seed: int, n: int, count: int, forced: bool, single: bool) -> None:
    *sums, groups = drawn(seed, n, count, 5)
    last = -np.inf
    for most in (1, 2, 3, 6):
        found = sweep(*sums, groups, forced, single, sweeps=most)
        assert found.value == objective(list(found.cuts), *sums, groups) >= last
        last = found.value
        exit_at = found.stage(groups)
        for k, (window, group) in enumerate(zip(found.windows(groups), groups, strict=False)):
            cut = found.cuts[k]
            assert (window is None) == (cut.start >= cut.stop)
            assert not single or cut.stop == group.count
        assert exit_at.max() <= count - 1
        if forced:
            accepted = [cut.accept for cut in found.cuts]
            assert all((group.group[exit_at == k] < accepted[k]).all() for k, group in enumerate(groups))


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.integers(1, 10), st.booleans(), st.booleans())
def test_two_stages_are_solved_in_one_sweep(seed: int, n: int, forced: bool, single: bool) -> None:
    """Brute force over the first stage's cut; the last stage's threshold counts for the rows that come, so it is the best for all of
    them only where it is the best for each: as where the last exit's worth does not depend on the order."""
    accept, reject, fee, groups = drawn(seed, n, 2, 4)
    reject[1] = accept[1]
    found = sweep(accept, reject, fee, groups, forced, single, sweeps=1)
    count = groups[0].count
    ends = [count] if single else range(count + 1)
    cuts = itertools.product([count] if forced else range(count + 1), range(count + 1), ends)
    last = Cut(groups[1].count, 0, 0, 0.0)
    best = max(objective([Cut(t, i, j, 0.0), last], accept, reject, fee, groups) for t, i, j in cuts if i <= j)
    assert found.value == best


@given(st.integers(0, 10**6), st.integers(1, 10), st.integers(2, 3))
def test_no_single_cut_can_be_bettered_at_the_end(seed: int, n: int, count: int) -> None:
    *sums, groups = drawn(seed, n, count, 4)
    found = sweep(*sums, groups, sweeps=50)
    for k in range(count):
        g = groups[k].count
        for t, i, j in itertools.product(range(g + 1), repeat=3):
            if i <= j:
                other = [*found.cuts[:k], Cut(t, i, j, 0.0), *found.cuts[k + 1 :]]
                assert objective(other, *sums, groups) <= found.value


def test_sweeps_that_begin_somewhere_are_no_worse_than_there() -> None:
    for seed in range(30):
        *sums, groups = drawn(seed, 12, 3, 5)
        begin = [Cut(2, 1, 3, 0.0), Cut(1, 0, 2, 0.0), Cut(1, 0, 0, 0.0)]
        begin = [Cut(min(c.accept, g.count), c.start, min(c.stop, g.count), 0.0) for c, g in zip(begin, groups, strict=True)]
        kept = list(begin)
        assert sweep(*sums, groups, begin=begin).value >= objective(begin, *sums, groups)
        assert begin == kept  # the caller's list is the caller's


def test_everything_is_accepted_or_rejected_by_hand() -> None:
    groups = [Groups.of(np.array([0.0, 1, 2])), Groups.of(np.array([2.0, 1, 0]))]
    accept, reject, fee = np.array([[1.0, -2, -2], [1, 2, -3]]), np.zeros((2, 3)), np.array([[0.5] * 3, [1.0] * 3])
    found = sweep(accept, reject, fee, groups)
    assert found.value == 1 + 0 + 0 - 1.5  # the second row's 2 − 1 = 1 would need its rank at the last exit: 2 − 3 < 0 below it
    assert found.windows(groups) in ([None], [(0.5 + 2**-53, 1.5)])


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(2, 3), st.booleans(), st.booleans())
def test_what_fills_a_limit_keeps_it_and_is_worth_no_less(seed: int, limit: int, count: int, forced: bool, single: bool) -> None:
    accept, reject, fee, groups = drawn(seed, 12, count, 5)
    fee[0] = 0.0
    free = np.zeros_like(fee)
    nobody = [Cut(group.count if forced else 0, 0, 0, 0.0) for group in groups]
    if single:
        nobody = [cut._replace(start=group.count, stop=group.count) for cut, group in zip(nobody, groups, strict=True)]
    last = objective(nobody, accept, reject, free, groups)
    for most in (1, 2, 4):
        found = sweep_within(accept, reject, fee, groups, float(limit), nobody, forced, single, most)
        paid = float(np.take_along_axis(np.cumsum(fee, 0), found.stage(groups)[None], 0).sum())
        assert paid <= limit
        assert found.value == objective(list(found.cuts), accept, reject, free, groups) >= last
        last = found.value
    if count == 2:  # no cut of the first stage that keeps the limit is better
        g = groups[0].count
        for t, i, j in itertools.product(range(g + 1), repeat=3):
            if i <= j and (t == g or not forced) and (j == g or not single):
                other = [Cut(t, i, j, 0.0), found.cuts[1]]
                on = (groups[0].group >= i) & (groups[0].group < j)
                assert fee[1][on].sum() > limit or objective(other, accept, reject, free, groups) <= found.value


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.floats(0, 30), st.integers(1, 3))
def test_at_most_keeps_the_limit(seed: int, limit: float, count: int) -> None:
    accept, reject, fee, groups = drawn(seed, 12, count, 5)
    fee = fee + 1
    fee[0] = 0.0

    def solve(price: float) -> Cuts:
        return sweep(accept, reject, price * fee, groups)

    def spent(found: Cuts) -> float:
        exit_at = found.stage(groups)
        return float(np.take_along_axis(np.cumsum(fee, 0), exit_at[None], 0).sum())

    found = at_most(limit, solve, spent, 20.0)
    assert found is not None
    assert spent(found) <= limit


def test_at_most_takes_the_least_price_that_does() -> None:
    tried = []

    def solve(price: float) -> float:
        tried.append(price)
        return price

    found = at_most(2.0, solve, lambda price: 3.0 if price < 0.037 else 2.0, 10.0, rounds=40)
    assert found == pytest.approx(0.037, rel=1e-6)
    assert found >= 0.037
    assert max(tried) == 10.0
    assert at_most(2.0, solve, lambda _: 1.0, 10.0) == 0.0  # free of charge where that is enough
    assert at_most(2.0, solve, lambda _: 3.0, 10.0) is None
