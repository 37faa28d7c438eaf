"""Conformal risk control: the specification's counts, the expectation simulated, and D̃ by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade.guarantee import Certificate, certify_deviation, crc_threshold, wider_max

pytestmark = pytest.mark.deciding


def table(n: int, *sums: int) -> np.ndarray:
    """Booleans (n, G) with these column sums."""
    return np.arange(n)[:, None] < np.array(sums)


def test_nine_of_199_are_allowed_and_ten_are_not() -> None:
    assert crc_threshold(table(199, 9), 0.05) == 0
    assert crc_threshold(table(199, 10), 0.05) is None
    assert crc_threshold(table(199, 30, 10, 9, 2), 0.05) == 2
    assert crc_threshold(table(99, 28), 0.29) == 0  # 29 ≤ .29 · 100, which rounds to less than 29
    assert crc_threshold(table(199, 9) * 2.0, 0.1, 2.0) == 0
    assert crc_threshold(table(199, 9) * 1.0, 0.05, 2.0) is None


def test_the_certificate() -> None:
    found = certify_deviation(table(199, 30, 9), 0.05)
    assert (found.kind, found.feasible, found.tau, found.errors, found.tested) == ("deviation", True, 1, 9, 2)
    assert found.bound == pytest.approx(0.05)
    assert found.observed == pytest.approx(9 / 199)
    assert found.needed == 0
    assert Certificate.from_dict(found.to_dict()) == found
    refused = certify_deviation(table(199, 10), 0.06 - 0.0051)
    assert (refused.feasible, refused.tau, refused.coverage) == (False, None, 0.0)
    assert refused.needed is not None
    n, mean = 199 + refused.needed, 10 / 199
    assert (n * mean + 1) / (n + 1) <= refused.target < ((n - 1) * mean + 1) / n
    assert certify_deviation(table(18, 0), 0.05).needed == 1
    assert certify_deviation(table(100, 50, 6), 0.05).needed is None


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=20), alpha=st.floats(0.05, 1))
def test_wider_max(rows: list[list[int]], alpha: float) -> None:
    d = np.array(rows)
    brute = np.array([[max(row[g:]) for g in range(4)] for row in rows])
    np.testing.assert_array_equal(wider_max(d), brute)
    np.testing.assert_array_equal(wider_max(brute), brute)
    found = crc_threshold(brute, alpha)
    allowed = [g for g in range(4) if all(brute[:, h].sum() + 1 <= alpha * (len(d) + 1) * (1 + 1e-12) for h in range(g, 4))]
    assert found == (allowed[0] if allowed else None)


def test_the_mean_over_draws_is_bounded() -> None:
    rng = np.random.default_rng(0)
    rates = np.linspace(0.4, 0.0, 41)  # a row with level v deviates where v < rate
    for n in (30, 120):
        chosen = [crc_threshold(rng.random((n, 1)) < rates, 0.1) for _ in range(2000)]
        mean = np.mean([rates[g] for g in chosen if g is not None])
        assert 0.08 < mean <= 0.1 + 2 * 0.05 / np.sqrt(2000)
        greedy = [int(((rng.random((n, 1)) < rates).mean(0) <= 0.1).argmax()) for _ in range(2000)]
        assert np.mean(rates[greedy]) > mean


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"grow with wider settings in 1 rows, first \[1\]"):
        crc_threshold([[1, 0], [0, 1]], 0.1)
    with pytest.raises(ValueError, match="alpha=0"):
        crc_threshold([[1, 0]], 0)
    with pytest.raises(ValueError, match="bound=inf"):
        certify_deviation([[1, 0]], 0.1, np.inf)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        crc_threshold([[2.0, 0.0]], 0.1)
    with pytest.raises(ValueError, match="NaN"):
        wider_max([[np.nan]])
    for shape in ((0, 3), (3,), (3, 0)):
        with pytest.raises(ValueError, match=r"shape \(n, G\)"):
            wider_max(np.zeros(shape))
