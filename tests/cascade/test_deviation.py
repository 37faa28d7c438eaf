"""Imitation of the full ensemble: two stages against brute force over every window and threshold; more stages keep what they promise."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade import Policy, quantile_window, simulate
from quorate.cascade.cuts import Groups
from quorate.cascade.deviation import deviations, imitate
from quorate.cascade.exits import Exits
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

SHARES = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 1.0])


def drawn(seed: int, n: int, count: int = 2, levels: int = 6) -> Exits:
    rng = np.random.default_rng(seed)
    u = np.clip(rng.integers(0, levels, n) + rng.integers(-1, 2, (count, n)), 0, None) / 4
    label = np.where(rng.random((count, n)) < 0.8, rng.integers(0, 3, n), rng.integers(0, 3, (count, n)))
    return Exits(tuple(f"s{k}" for k in range(count)), u, label, tuple(float(k + 1) for k in range(count)))


def outputs(seed: int, n: int = 80, stages: int = 2, **options: Any) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    signal = np.eye(3)[labels] * rng.uniform(0, 4, (n, 1))
    return Outputs([signal + rng.normal(size=(n, 3)) for _ in range(stages)], labels=labels, costs=[1.0] * stages, **options)


def by_hand(exits: Exits, exit_at: np.ndarray, taus: list[float | None], labels: bool) -> list[bool]:
    found = []
    for n, k in enumerate(exit_at):
        here, there = (tau is None or exits.uncertainty[e, n] <= tau for e, tau in ((k, taus[k]), (-1, taus[-1])))
        relabelled = labels and here and there and exits.label[k, n] != exits.label[-1, n]
        found.append(bool(here != there or relabelled))
    return found


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 4))
def test_a_deviation_is_its_definition(seed: int, labels: bool, count: int) -> None:
    rng = np.random.default_rng(seed)
    exits = drawn(seed, 20, count)
    exit_at = rng.integers(0, count, 20)
    taus = [None if rng.random() < 0.3 else float(rng.integers(0, 6) / 4) for _ in range(count)]
    np.testing.assert_array_equal(deviations(exits, exit_at, taus, labels), by_hand(exits, exit_at, taus, labels))


def test_a_deviation_is_what_simulation_shows() -> None:
    out = outputs(0, 200, 3)
    policy = Policy.of(out, [(0.05, 0.4), (0.1, None)], [0.3, 0.25, 0.2])
    whole = Policy.of(out, [(None, None)] * 2, [0.3, 0.25, 0.2])
    one, full = simulate(policy, out), simulate(whole, out)
    differ = (one.accepted != full.accepted) | (one.accepted & full.accepted & (one.label != full.label))
    np.testing.assert_array_equal(deviations(Exits.under(policy, out), one.stage, [0.3, 0.25, 0.2]), differ)
    assert 0 < differ.sum() < 200


@settings(max_examples=150)
@given(
    st.integers(0, 10**6),
    st.integers(1, 14),
    SHARES,
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, -1.0, 0.25, 0.6, 1.0, 9.0]),
)
def test_two_stages_are_the_best_of_all(seed: int, n: int, allowed: float, labels: bool, single: bool, tau: float | None) -> None:
    exits = drawn(seed, n)
    found = imitate(exits, tau, allowed, labels, single)
    exit_at = exits.stage(found.windows)
    differing = deviations(exits, exit_at, found.taus, labels)
    assert found.taus[-1] == tau
    assert found.deviation == differing.mean()
    assert differing.sum() <= allowed * n + 1e-9
    assert found.cost == exits.spent[exit_at].mean()
    group = Groups.of(exits.uncertainty[0])
    best = (np.inf, np.inf)
    for i, j in itertools.combinations_with_replacement(range(group.count + 1), 2):
        if single and j < group.count:
            continue
        at = exits.stage([group.window(i, j)])
        for t in range(group.count + 1):
            taus = [None if tau is None else group.edge(t), tau]
            wrong = int(deviations(exits, at, taus, labels).sum())
            if wrong <= allowed * n + 1e-9:
                best = min(best, (int(at.sum()), wrong))
    assert int(exit_at.sum()) == best[0]
    assert int(differing.sum()) == best[1]  # of the cheapest the one that deviates least


@settings(max_examples=60)
@given(st.integers(0, 10**6), SHARES, st.booleans(), st.booleans(), st.sampled_from([None, 0.5, 0.8]))
def test_three_stages_keep_the_share_and_cost_no_more_than_all(
    seed: int, allowed: float, labels: bool, single: bool, tau: float | None
) -> None:
    exits = drawn(seed, 24, 3)
    found = imitate(exits, tau, allowed, labels, single)
    exit_at = exits.stage(found.windows)
    differing = deviations(exits, exit_at, found.taus, labels)
    assert found.deviation == differing.mean() <= allowed + 1e-9
    assert found.cost == exits.spent[exit_at].mean() <= exits.spent[-1]
    if single:
        assert all(window is None or window[1] is None for window in found.windows)
    if tau is None:
        assert found.taus == (None,) * 3


def test_three_stages_gain_on_two_where_the_middle_one_helps() -> None:
    """Against brute force over all windows, at thresholds of their own: within a twentieth of the full cost of the best, on average."""
    lost = []
    for seed in range(12):
        exits = drawn(seed, 12, 3, levels=3)
        found = imitate(exits, 0.5, 0.1)
        groups = [Groups.of(u) for u in exits.uncertainty]
        options = [
            [(g.window(i, j), g.edge(t)) for i in range(g.count + 1) for j in range(i, g.count + 1) for t in range(g.count + 1)]
            for g in groups[:2]
        ]
        best = np.inf
        for (one, first), (other, second) in itertools.product(*(list(dict.fromkeys(each)) for each in options)):
            at = exits.stage([one, other])
            cost = exits.spent[at].mean()
            if cost < best and deviations(exits, at, [first, second, 0.5]).mean() <= 0.1:
                best = cost
        assert found.cost >= best - 1e-12
        lost.append((found.cost - best) / exits.spent[-1])
    assert np.mean(lost) <= 0.05, lost
    assert max(lost) <= 0.2, lost


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([None, 0.5]))
def test_two_stages_pass_fewer_rows_the_more_may_deviate(seed: int, single: bool, tau: float | None) -> None:
    exits = drawn(seed, 30)
    costs = [imitate(exits, tau, share, single=single).cost for share in (0, 0.03, 0.1, 0.2, 0.5, 1)]
    assert (np.diff(costs) <= 0).all()
    assert costs[-1] == 1.0


def test_a_threshold_that_decides_alike_stays() -> None:
    u = np.array([[0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.2, 0.6, 0.6]])
    exits = Exits(("a", "b"), u, np.array([[0] * 5, [0, 1, 1, 0, 0]]), (1.0, 1.0))
    free = imitate(exits, 0.5, 0.0)
    low, high = free.windows[0] or (None, None)
    assert low is not None
    assert high is not None
    assert 0.1 < low < 0.2
    assert 0.3 < high < 0.4
    assert free.taus[0] is not None
    assert low < free.taus[0] < high
    kept = imitate(exits, 0.5, 0.0, first=0.26)
    assert kept.taus == (0.26, 0.5)
    assert kept.windows == free.windows
    other = imitate(exits, 0.5, 0.0, first=0.45)  # would accept one that the full ensemble rejects
    assert other == free


def test_nothing_may_go_on_where_all_may_deviate_and_all_where_none_may() -> None:
    exits = drawn(7, 40)
    assert imitate(exits, 0.5, 1.0).windows == (None,)
    apart = Exits(("a", "b"), exits.uncertainty, np.array([[0] * 40, [1] * 40]), (1.0, 1.0))
    assert imitate(apart, None, 0.0).windows == ((None, None),)
    assert imitate(apart, None, 0.0, labels=False).windows == (None,)
    same = Exits(("a", "b"), exits.uncertainty[[0, 0]], exits.label[[0, 0]], (1.0, 1.0))
    assert imitate(same, 0.5, 0.0).windows == (None,)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"^one stage has no window: give two or more stages$"):
        imitate(drawn(0, 5, 1), 0.5, 0.1)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="expected a share of the rows in"):
            imitate(drawn(0, 5), 0.5, share)


@pytest.mark.parametrize("transform", [np.exp, np.arctan, lambda u: 3 * u - 7, lambda u: u**3])
@pytest.mark.parametrize("count", [2, 3])
def test_an_increasing_transform_changes_nobodys_way(transform: Any, count: int) -> None:
    for seed in range(15):
        exits = drawn(seed, 40, count)
        other = Exits(exits.names, transform(exits.uncertainty), exits.label, exits.costs)
        tau = 0.6  # between data values
        one, same = imitate(exits, tau, 0.1), imitate(other, float(transform(tau)), 0.1)
        np.testing.assert_array_equal(exits.stage(one.windows), other.stage(same.windows))
        assert one.deviation == same.deviation
        assert one.cost == same.cost


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([None, 0.5, 1.0]))
def test_a_wider_nested_window_costs_no_less_and_deviates_no_more(seed: int, labels: bool, tau: float | None) -> None:
    rng = np.random.default_rng(seed)
    exits = drawn(seed, 30)
    group = Groups.of(exits.uncertainty[0])
    i, j = sorted(rng.integers(0, group.count + 1, 2).tolist())
    lower, upper = int(rng.integers(0, i + 1)), int(rng.integers(j, group.count + 1))
    narrow, wide = exits.stage([group.window(i, j)]), exits.stage([group.window(lower, upper)])
    assert (wide >= narrow).all()
    taus = [float(rng.integers(0, 6) / 4), tau]
    assert not (deviations(exits, wide, taus, labels) & ~deviations(exits, narrow, taus, labels)).any()


def test_extreme_windows_are_the_full_ensemble_and_the_first_stage() -> None:
    out = outputs(3, 100, 3)
    full, first = simulate(Policy.of(out), out), simulate(Policy.of(out, [None, None]), out)
    np.testing.assert_array_equal(full.probs, out.probs())
    np.testing.assert_array_equal(full.macs, 3.0)
    np.testing.assert_array_equal(first.probs, out.probs(1))
    np.testing.assert_array_equal(first.macs, 1.0)


def test_quantile_windows_of_the_specification() -> None:
    scores = np.arange(1, 1001) / 1000
    for tau, count in ((0.7, 200), (0.05, 150)):
        low, high = quantile_window(scores, tau, 0.1)
        exits = Exits(("a", "b"), np.stack([scores, scores]), np.zeros((2, 1000), np.int64), (1.0, 1.0))
        assert exits.stage([(low, high)]).sum() == count
