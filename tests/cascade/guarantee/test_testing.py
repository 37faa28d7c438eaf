"""Several hypotheses at once: hand-worked tables, a published example, and the share of wrong rejections."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade.guarantee import bonferroni, fixed_sequence, holm

pytestmark = pytest.mark.deciding
METHODS = [fixed_sequence, bonferroni, holm]


def test_hand_worked() -> None:
    p = [0.01, 0.04, 0.03, 0.005]  # Holm: .005 ≤ .0125, .01 ≤ .0167, .03 > .025: stop
    np.testing.assert_array_equal(fixed_sequence(p, 0.035), [1, 0, 0, 0])
    np.testing.assert_array_equal(fixed_sequence(p, 0.05), [1, 1, 1, 1])
    np.testing.assert_array_equal(bonferroni(p, 0.05), [1, 0, 0, 1])
    np.testing.assert_array_equal(holm(p, 0.05), [1, 0, 0, 1])
    np.testing.assert_array_equal(holm([0.02, 0.04, 0.01], 0.05), [1, 1, 1])
    np.testing.assert_array_equal(bonferroni([0.02, 0.04, 0.01], 0.05), [0, 0, 1])
    assert not fixed_sequence([1.0, 0.0], 0.5).any()


@settings(deadline=None, max_examples=60)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12), delta=st.floats(0.01, 0.4))
def test_what_must_hold(p: list[float], delta: float) -> None:
    assert (holm(p, delta) >= bonferroni(p, delta)).all()
    for method in METHODS:
        assert (method(p, delta) <= method(p, delta * 2)).all()
        assert (np.array(p)[method(p, delta)] <= delta).all()
    shuffled = np.random.default_rng(0).permutation(len(p))
    np.testing.assert_array_equal(bonferroni(np.array(p)[shuffled], delta), bonferroni(p, delta)[shuffled])


def test_wrong_rejections_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(0)
    true = np.arange(10) >= 4  # four false hypotheses, whose p-values are small
    p = rng.random((4000, 10)) * np.where(true, 1, 0.02)
    for method in METHODS:
        wrong = np.mean([(method(row, 0.1) & true).any() for row in p])
        assert wrong <= 0.1 + 2 * np.sqrt(0.09 / 4000)
    assert np.mean([((row <= 0.1) & true).any() for row in p]) > 0.4


def test_bad_input() -> None:
    for method in METHODS:
        for p in ([], [0.5, np.nan], [1.5], [[0.5]]):
            with pytest.raises(ValueError, match="from 0 to 1, shape"):
                method(p, 0.05)
        with pytest.raises(ValueError, match="probability of failure"):
            method([0.5], 1.0)
