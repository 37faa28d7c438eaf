"""Clopper–Pearson against SciPy's distributions and the specification's table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quorate.cascade.guarantee import clopper_pearson, lower, p_value, samples_needed
from quorate.cascade.guarantee.binomial import more_rows

pytestmark = pytest.mark.deciding


@pytest.mark.parametrize(("errors", "rows", "shown"), [(0, 58, False), (0, 59, True), (1, 92, False), (1, 93, True)])
def test_the_least_samples_for_five_per_cent(errors: int, rows: int, shown: bool) -> None:
    assert bool(p_value(errors, rows, 0.05) <= 0.05) == shown
    assert bool(clopper_pearson(errors, rows, 0.05) <= 0.05) == shown


def test_hand_worked_values() -> None:
    assert float(clopper_pearson(0, 58)) == pytest.approx(0.05034, abs=1e-5)
    assert float(p_value(0, 10, 0.2)) == pytest.approx(0.8**10, rel=1e-14)
    assert float(p_value(1, 3, 0.5)) == pytest.approx(0.5)
    assert float(lower(59, 59)) == pytest.approx(0.05 ** (1 / 59), rel=1e-12)
    assert float(p_value(0, 10**6, 1e-9)) == pytest.approx(math.exp(-1e-3), rel=1e-8)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 3000), share=st.floats(0, 1), risk=st.floats(0.001, 0.999), delta=st.floats(1e-6, 0.5))
def test_against_scipy(n: int, share: float, risk: float, delta: float) -> None:
    k = round(share * n)
    np.testing.assert_allclose(p_value(k, n, risk), stats.binom.cdf(k, n, risk), rtol=1e-8, atol=1e-300)
    interval = stats.binomtest(k, n).proportion_ci(1 - 2 * delta, "exact")
    np.testing.assert_allclose(clopper_pearson(k, n, delta), interval.high, rtol=1e-6)
    np.testing.assert_allclose(lower(k, n, delta), interval.low, rtol=1e-6, atol=1e-12)


def test_no_rows_teach_nothing_and_no_rate_exceeds_one() -> None:
    np.testing.assert_array_equal(p_value([0, 0, 5], [0, 5, 5], 1.0), [1, 0, 0])
    np.testing.assert_array_equal(p_value([0, 5], [0, 5], 0.3), [1, 1])
    assert float(clopper_pearson(0, 0)) == 1
    assert float(lower(0, 0)) == 0
    assert float(clopper_pearson(7, 7)) == 1
    assert float(p_value(0, 10, 0.0)) == 1


@settings(deadline=None, max_examples=60)
@given(risk=st.floats(0.002, 0.9), delta=st.floats(0.001, 0.5))
def test_samples_needed_is_the_least_number_without_errors(risk: float, delta: float) -> None:
    n = samples_needed(risk, delta)
    assert n is not None
    assert p_value(0, n, risk) <= delta * (1 + 1e-9)
    assert n == 1 or p_value(0, n - 1, risk) > delta * (1 - 1e-9)


def test_samples_needed() -> None:
    assert samples_needed(0.01) == 299
    assert samples_needed(0.05) == 59
    assert samples_needed(1.0) == 1
    assert samples_needed(0.05, 0.05, 0.05) is None
    assert samples_needed(0.0) is None
    assert samples_needed(0.05, 0.05, 0.05 - 1e-12) is None  # more rows than anybody has
    n = samples_needed(0.05, 0.01, 0.03)
    assert n is not None
    assert p_value(round(0.03 * n), n, 0.05) == pytest.approx(0.01, rel=0.3)
    assert more_rows(100, 29, 0.0, 0.05, 0.05) == 104  # 59 · 100 / 29, rounded up
    assert more_rows(100, 0, 0.0, 0.05, 0.05) == 59 * 101 - 100
    assert more_rows(100, 50, 0.06, 0.05, 0.05) is None
    assert more_rows(100, 100, 0.0, 0.05, 0.05) == 1


def test_the_bound_holds_as_often_as_it_says() -> None:
    for n, rate in ((30, 0.1), (200, 0.03)):
        k = np.arange(n + 1)
        mass = stats.binom.pmf(k, n, rate)
        for delta in (0.05, 0.2):
            assert mass[clopper_pearson(k, np.full(n + 1, n), delta) < rate].sum() <= delta
            assert mass[lower(k, np.full(n + 1, n), delta) > rate].sum() <= delta


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2), (0.5, 2), (1, 2.0)])
def test_counts_are_refused(k: float, n: float) -> None:
    for function in (clopper_pearson, lower):
        with pytest.raises(ValueError, match="whole numbers with 0 ≤ errors ≤ n"):
            function(k, n, 0.05)
    with pytest.raises(ValueError, match="whole numbers"):
        p_value(k, n, 0.05)


@pytest.mark.parametrize("delta", [0, 1, -0.1, math.nan, "x"])
def test_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="probability of failure"):
        clopper_pearson(0, 5, delta)


def test_risks_are_refused() -> None:
    with pytest.raises(ValueError, match="risk=nan"):
        p_value(0, 5, math.nan)
    with pytest.raises(ValueError, match=r"observed=-0\.1"):
        samples_needed(0.05, 0.05, -0.1)
