"""Betting: the wealth's mean under the null in closed form, power beside the exact bound, and what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quorate.cascade.guarantee import bounded, clopper_pearson

pytestmark = pytest.mark.deciding


@pytest.mark.parametrize(("n", "mean"), [(1, 0.3), (7, 0.05), (40, 0.5), (200, 0.1)])
def test_the_wealth_has_mean_one_where_the_mean_is_as_tested(n: int, mean: float) -> None:
    bets = 0.5 ** np.arange(1 + math.floor(0.5 * math.log2(max(n / (2 * math.log(20)), 1))))
    k = np.arange(n + 1)
    factors = 1 + bets[:, None, None] * (mean - np.array([0.0, 1.0])) / (1 - mean)  # (bets, 1, right or wrong)
    wealth = (factors[..., 0] ** (n - k) * factors[..., 1] ** k).mean(0)
    assert stats.binom.pmf(k, n, mean) @ wealth == pytest.approx(1)
    found = [bounded.p_value(np.repeat([0.0, 1.0], [n - j, j]), mean) for j in k]
    np.testing.assert_allclose(found, np.minimum(1, 1 / np.maximum(wealth, 1e-300)), rtol=1e-9)
    for delta in (0.05, 0.3):
        assert stats.binom.pmf(k, n, mean)[np.array(found) <= delta].sum() <= delta


def test_the_null_is_rejected_seldom_and_a_false_one_often() -> None:
    rng = np.random.default_rng(0)
    costs = 4 * rng.beta(0.4, 3.6, (1500, 150))  # mean .4, in [0, 4]
    null = np.array([bounded.p_value(row, 0.4, 4.0) for row in costs])
    for delta in (0.01, 0.05, 0.2):
        assert (null <= delta).mean() <= delta + 2 * math.sqrt(delta / 1500)
    assert np.mean([bounded.p_value(row, 0.6, 4.0) <= 0.05 for row in costs[:300]]) > 0.8


def test_the_upper_bound_is_where_the_test_turns_and_near_the_exact_one() -> None:
    rng = np.random.default_rng(1)
    for costs, bound in ((rng.uniform(0, 2.5, 40), 3.0), (rng.binomial(1, 0.03, 2000).astype(float), 1.0), (np.zeros(59), 1.0)):
        upper = bounded.upper_bound(costs, 0.05, bound)
        assert bounded.p_value(costs, upper + 1e-9, bound) <= 0.05 < bounded.p_value(costs, upper - 1e-9, bound)
    errors = np.repeat([0.0, 1.0], [97_000, 3000])
    assert clopper_pearson(3000, 100_000) < bounded.upper_bound(errors) < 0.0319


def test_nothing_learnt_and_nothing_left_to_learn() -> None:
    assert bounded.p_value([], 0.3) == 1
    assert bounded.upper_bound([], 0.05, 2.0) == 2
    assert bounded.upper_bound([2.0, 2.0], 0.05, 2.0) == 2
    assert bounded.p_value([1.0, 1.0], 0.4) == 1
    assert bounded.p_value([0.0] * 500, 0.0) == 1
    assert bounded.p_value([1.0], 1.0) == 0
    assert bounded.p_value([], 1.0) == 1
    assert bounded.upper_bound([0.0], 0.05) <= 1


@settings(deadline=None, max_examples=40)
@given(
    costs=st.lists(st.integers(0, 8), min_size=1, max_size=60), mean=st.floats(0.01, 1.5), bound=st.sampled_from([1.0, 2.0, 8.0])
)
def test_prefixes_and_the_order_of_rows(costs: list[int], mean: float, bound: float) -> None:
    x = np.array(costs) / 8 * bound
    ends = np.array([len(x), 0, len(x) // 2])
    prefixes = bounded.prefix_p_values(x, ends, mean, bound)
    np.testing.assert_allclose(prefixes, [bounded.p_value(x[:end], mean, bound) for end in ends], rtol=1e-9)
    assert bounded.p_value(x[::-1], mean, bound) == pytest.approx(bounded.p_value(x, mean, bound), rel=1e-9)
    assert bounded.p_value(x * 3, mean * 3, bound * 3) == pytest.approx(bounded.p_value(x, mean, bound), rel=1e-6)


@pytest.mark.parametrize("costs", [[-0.1], [1.5], [math.nan], [[0.5]]])
def test_costs_are_refused(costs: list[float]) -> None:
    with pytest.raises(ValueError, match="one number from 0 to 1 per row"):
        bounded.p_value(costs, 0.5)


def test_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="the largest cost"):
        bounded.p_value([0.5], 0.5, math.inf)
    with pytest.raises(ValueError, match="mean is NaN"):
        bounded.p_value([0.5], math.nan)
    with pytest.raises(ValueError, match="probability of failure"):
        bounded.upper_bound([0.5], 0.0)
