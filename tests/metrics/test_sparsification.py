"""Sparsification against counting in O(N²), and its identity with the excess AURC."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate import metrics

pytestmark = pytest.mark.deciding

SCORES = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf])
ROWS = st.lists(st.tuples(SCORES, st.integers(0, 9).map(lambda k: k / 4)), min_size=1, max_size=20)
MEASURES = {"mean": np.mean, "rms": lambda e: math.sqrt(np.mean(np.square(e)))}


def brute(uncertainty, errors, measure):
    """{rows that remain: (their error, the least error of as many)} per distinct uncertainty."""
    best = np.sort(errors)
    points = {}
    for threshold in sorted(set(uncertainty.tolist())):
        kept = errors[uncertainty <= threshold]
        points[len(kept)] = MEASURES[measure](kept), MEASURES[measure](best[: len(kept)])
    return points


@settings(deadline=None)
@given(ROWS, st.sampled_from(list(MEASURES)), st.booleans())
def test_curve_and_area_equal_counting(rows, measure, normalised):
    u, e = (np.array(column) for column in zip(*rows, strict=True))
    if not e.any():
        e[0] = 1.25
    n, points = len(u), brute(u, e, measure)
    unit = MEASURES[measure](e) if normalised else 1.0
    curve = metrics.sparsification(u, e, measure, normalised)
    assert curve.removed.tolist() == [(n - k) / n for k in reversed(points)]
    np.testing.assert_allclose(curve.error, [points[k][0] / unit for k in reversed(points)], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(curve.oracle, [points[k][1] / unit for k in reversed(points)], rtol=1e-12, atol=1e-14)
    area = np.mean(
        [points[min(end for end in points if end >= k)][0] - MEASURES[measure](np.sort(e)[:k]) for k in range(1, n + 1)]
    )
    assert metrics.ause(u, e, measure, normalised) == pytest.approx(area / unit, rel=1e-12, abs=1e-14)


@settings(deadline=None)
@given(ROWS)
def test_area_is_the_excess_aurc_over_the_mean_error(rows):
    u, e = (np.array(column) for column in zip(*rows, strict=True))
    excess = metrics.excess_aurc(u, e)
    assert metrics.ause(u, e, normalised=False) == pytest.approx(excess, abs=1e-14)
    if e.any():
        assert metrics.ause(u, e) == pytest.approx(excess / e.mean(), abs=1e-13)


def test_four_rows_by_hand():
    u, e = [3, 0, 2, 1], [8.0, 2.0, 0.0, 6.0]  # remaining by uncertainty: 2, 6, 0, 8
    curve = metrics.sparsification(u, e)
    assert curve.removed.tolist() == [0, 0.25, 0.5, 0.75]
    assert curve.error.tolist() == [1, 8 / 3 / 4, 1, 0.5]
    assert curve.oracle.tolist() == [1, 8 / 3 / 4, 0.25, 0]
    assert metrics.ause(u, e) == pytest.approx((0.75 + 0.5) / 4)
    assert metrics.ause(u, e, "rms", False) == pytest.approx((math.sqrt(20) - math.sqrt(2) + 2) / 4)


def test_best_order_single_row_and_constant_uncertainty():
    e = np.array([3.0, 1.0, 4.0, 1.5])
    assert metrics.ause(e, e) == metrics.ause(e**3, e, "rms") == 0.0
    assert metrics.ause([7.0], [0.2]) == 0.0
    curve = metrics.sparsification([7.0], [0.2])
    assert [curve.removed.tolist(), curve.error.tolist(), curve.oracle.tolist()] == [[0.0], [1.0], [1.0]]
    constant = metrics.sparsification(np.zeros(4), e)
    assert [constant.removed.tolist(), constant.error.tolist()] == [[0.0], [1.0]]
    random = np.mean([metrics.ause(order, e) for order in itertools.permutations(range(4))])
    assert metrics.ause(np.zeros(4), e) == pytest.approx(random, rel=1e-12)


def test_no_errors_at_all_and_huge_ones():
    assert metrics.ause([1, 2, 3], [0, 0, 0], normalised=False) == metrics.ause([1, 2, 3], [0, 0, 0], "rms", False) == 0.0
    assert metrics.ause([2, 1], [3e200, 4e200], "rms", False) == pytest.approx(0.5e200, rel=1e-12)


@pytest.mark.parametrize("function", [metrics.sparsification, metrics.ause])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([1, 2], [0, 0]), "errors: expected some above 0, got only 0, whose share can't be taken; pass normalised=False"),
        (([1, 2], [1, 2], "median"), "measure='median': expected one of 'mean', 'rms'; pass one of them"),
        (([1, math.nan], [1, 2]), "uncertainty: expected numbers that can be ordered, got NaN in row 1; find"),
        (([1, 2], [1, math.nan]), "got nan in row 1; correct these rows"),
        (([1, 2], [1, -2]), "got -2 in row 1; correct these rows"),
        (([1, 2], [1]), "errors: expected 2 entries, one per uncertainty, got 1; pass both"),
        (([], []), "uncertainty: expected shape (N,) with at least one row, got (0,); pass"),
    ],
)
def test_refusals(function, given, message):
    with pytest.raises(ValueError) as caught:
        function(*given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
