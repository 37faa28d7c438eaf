"""Risk–coverage metrics against the specification's numbers, exact fractions and scikit-learn."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate import metrics

pytestmark = pytest.mark.deciding

RANKS = np.arange(1.0, 6.0)
ERRORS = np.array([0, 0, 1, 0, 1])
SCORES = st.sampled_from([-math.inf, -2.5, -1.0, 0.0, 0.125, 3.0, math.inf])  # few values: many ties
ROWS = st.lists(st.tuples(SCORES, st.integers(0, 3)), min_size=1, max_size=25)
BINARY = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=25)
SHARES = st.fractions(min_value=Fraction(1, 40), max_value=1, max_denominator=40)


def arrays(rows):
    uncertainty, errors = zip(*rows, strict=True)
    return np.array(uncertainty), np.array(errors)


def exact_points(uncertainty, errors):
    """[(k, e_k, threshold)] per distinct score, by counting in O(N²)."""
    points = []
    for threshold in sorted(set(uncertainty.tolist())):
        accepted = [int(e) for u, e in zip(uncertainty.tolist(), errors.tolist(), strict=True) if u <= threshold]
        points.append((len(accepted), sum(accepted), threshold))
    return points


def exact_rowwise(uncertainty, errors, value):
    """Mean over rows of value(k, e_k, n) at the end of each row's tied group."""
    n = len(uncertainty)
    total = Fraction(0)
    for u in uncertainty.tolist():
        accepted = [int(e) for v, e in zip(uncertainty.tolist(), errors.tolist(), strict=True) if v <= u]
        total += value(len(accepted), sum(accepted), n)
    return total / n


def exact_trapezoid(points, n):
    area, before = Fraction(0), (Fraction(0), Fraction(0))
    for k, e, _ in points:
        here = (Fraction(k, n), Fraction(e, k))
        area += (here[0] - before[0]) * (here[1] + before[1]) / 2
        before = here
    return area


# --- the specification's numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]])
def test_five_rows_worked_by_hand(order):
    u, e = RANKS[order], ERRORS[order]
    curve = metrics.risk_coverage(u, e)
    assert curve.coverage == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-12)
    assert curve.risk == pytest.approx([0, 0, 1 / 3, 1 / 4, 2 / 5], abs=1e-12)
    assert curve.threshold.tolist() == RANKS.tolist()
    assert metrics.aurc(u, e) == pytest.approx(59 / 300, abs=1e-12)
    assert metrics.aurc(u, e, form="trapezoid") == pytest.approx(47 / 300, abs=1e-12)
    assert metrics.augrc(u, e) == pytest.approx(0.16, abs=1e-12)
    assert metrics.risk_at_coverage(u, e, 0.8) == 0.25
    assert metrics.coverage_at_risk(u, e, 0.30) == 0.8
    assert metrics.coverage_at_risk(u, e, 0.30, rule="nearest") == 0.6
    # the best order has both errors last: risks 0, 0, 0, 1/4, 2/5
    assert metrics.excess_aurc(u, e) == pytest.approx(59 / 300 - 13 / 100, abs=1e-12)
    assert metrics.excess_aurc(u, e, "trapezoid") == pytest.approx(47 / 300 - 9 / 100, abs=1e-12)


def test_fifty_rows_reach_82_percent_at_5_percent_risk():
    ranks = np.arange(1, 51)
    errors = (ranks == 10) | (ranks >= 41)
    assert metrics.coverage_at_risk(ranks, errors, 0.05) == 0.82  # errors at ranks 10 and 41: 2/41 ≤ .05 < 3/42
    assert metrics.threshold_at_risk(ranks, errors, 0.05) == 41.5


def test_all_wrong_is_coverage_0_and_total_risk_below_target_is_coverage_1():
    u = np.array([0.3, 0.1, 0.2])
    assert metrics.coverage_at_risk(u, np.ones(3, bool), 0.05) == 0.0
    assert metrics.threshold_at_risk(u, np.ones(3, bool), 0.05) is None
    assert metrics.coverage_at_risk(u, np.array([False, False, True]), 0.4) == 1.0
    assert metrics.threshold_at_risk(u, np.array([False, False, True]), 0.4) == math.inf
    assert metrics.coverage_at_risk(u, np.zeros(3, bool), 0.0, rule="nearest") == 1.0  # all equally near
    assert metrics.aurc(u, np.zeros(3)) == metrics.augrc(u, np.zeros(3)) == metrics.excess_aurc(u, np.ones(3)) == 0.0


@pytest.mark.parametrize(
    ("coverage", "n", "k"),
    [
        *[(0.8, 5, 4), (0.81, 5, 5), (1e-9, 5, 1), (1.0, 5, 5)],
        *[(0.7, 10, 7), (0.1 * 3, 10, 3), (1 - 0.7, 10, 3), (1 - 0.9, 10, 1), (0.8000004, 10, 9)],
        *[(0.29, 100, 29), (0.57, 1_000_000, 570_000)],
    ],
)
def test_coverage_is_counted_in_whole_rows(coverage, n, k):
    ranks = np.arange(n)
    errors = np.arange(n) + 1  # risk(k) = (k + 1) / 2 tells k
    assert metrics.risk_at_coverage(ranks, errors, coverage) == (k + 1) / 2
    expected = math.inf if k == n else k - 0.5
    assert metrics.threshold_at_coverage(ranks, coverage) == expected


@pytest.mark.parametrize("k", [1, 3, 7, 20, 41, 60])
def test_a_risk_of_exactly_the_target_is_within_it(k):
    for wrong in range(k + 1):
        errors = np.arange(k) < wrong
        target = float(Fraction(wrong, k))
        assert metrics.coverage_at_risk(np.zeros(k), errors, target) == 1.0
        assert metrics.threshold_at_risk(np.zeros(k), errors, target) == math.inf
        if wrong:
            assert metrics.coverage_at_risk(np.zeros(k), errors, math.nextafter(target, 0)) == 0.0
            assert metrics.threshold_at_risk(np.zeros(k), errors, math.nextafter(target, 0)) is None


# --- brute force -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(ROWS)
def test_curve_and_areas_equal_exact_fractions(rows):
    u, e = arrays(rows)
    n, points = len(u), exact_points(u, e)
    curve = metrics.risk_coverage(u, e)
    assert curve.coverage.tolist() == [k / n for k, _, _ in points]
    assert curve.risk.tolist() == [s / k for k, s, _ in points]
    assert curve.threshold.tolist() == [t for _, _, t in points]

    mean = exact_rowwise(u, e, lambda k, s, _: Fraction(s, k))
    assert metrics.aurc(u, e) == pytest.approx(float(mean), abs=1e-12)
    trapezoid = exact_trapezoid(points, n)
    assert metrics.aurc(u, e, "trapezoid") == pytest.approx(float(trapezoid), abs=1e-12)
    assert metrics.augrc(u, e) == pytest.approx(float(exact_rowwise(u, e, lambda _, s, n: Fraction(s, n))), abs=1e-12)

    ranks, best = np.arange(n), np.sort(e)
    best_mean = exact_rowwise(ranks, best, lambda k, s, _: Fraction(s, k))
    assert metrics.excess_aurc(u, e) == pytest.approx(float(mean - best_mean), abs=1e-12)
    assert mean >= best_mean
    best_trapezoid = exact_trapezoid(exact_points(ranks, best), n)
    assert metrics.excess_aurc(u, e, "trapezoid") == pytest.approx(float(trapezoid - best_trapezoid), abs=1e-12)


@settings(deadline=None)
@given(BINARY, SHARES)
def test_operating_points_equal_exact_search(rows, target):
    u, e = arrays(rows)
    n, points = len(u), exact_points(u, e)
    within = [Fraction(k, n) for k, s, _ in points if Fraction(s, k) <= target]
    assert metrics.coverage_at_risk(u, e, float(target)) == float(max(within, default=Fraction(0)))
    near = min(abs(Fraction(s, k) - target) for k, s, _ in points)
    nearest = [k / n for k, s, _ in points if float(abs(Fraction(s, k) - target)) == pytest.approx(float(near), abs=1e-15)]
    assert metrics.coverage_at_risk(u, e, float(target), rule="nearest") in nearest

    at_coverage = next(Fraction(s, k) for k, s, _ in points if Fraction(k, n) >= target)
    assert metrics.risk_at_coverage(u, e, float(target)) == float(at_coverage)


@settings(deadline=None)
@given(BINARY, SHARES)
def test_thresholds_realise_the_coverage_they_stand_for(rows, target):
    u, e = arrays(rows)
    tau = metrics.threshold_at_risk(u, e, float(target))
    coverage = metrics.coverage_at_risk(u, e, float(target))
    if tau is None:
        assert coverage == 0
    else:
        assert np.mean(u <= tau) == coverage
        assert tau == math.inf or tau not in u
        assert (tau == math.inf) == (coverage == 1)
    tau = metrics.threshold_at_coverage(u, float(target))
    k = min(k for k, _, _ in exact_points(u, e) if Fraction(k, len(u)) >= target)
    assert np.count_nonzero(u <= tau) == k


@settings(deadline=None)
@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from([-65504.0, -1.0, -1e-7, 0.0, 1e-7, 0.1, 1.0, 1234.5]),
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.integers(1, 12),
)
def test_thresholds_between_neighbouring_floats_flip_no_row_in_either_precision(dtype, start, steps, share):
    ladder = [dtype(start)]
    for _ in range(5):
        ladder.append(np.nextafter(ladder[-1], dtype(np.inf)))
    u = np.array([ladder[step] for step in steps], dtype)
    k = min(k for k, _, _ in exact_points(u, np.zeros(len(u), int)) if k >= min(share, len(u)))
    tau = metrics.threshold_at_coverage(u, min(share, len(u)) / len(u))
    assert np.count_nonzero(u <= tau) == np.count_nonzero(u.astype(np.float64) <= np.float64(tau)) == k
    assert np.count_nonzero(u <= dtype(tau)) == k
    assert float(dtype(tau)) == tau


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_at_the_ends_of_the_floats(dtype):
    largest = np.finfo(dtype).max
    u = np.array([-np.inf, -largest, largest, np.inf], dtype)
    e = np.array([0, 0, 0, 1])
    taus = [metrics.threshold_at_coverage(u, c) for c in (0.25, 0.5, 0.75, 1.0)]
    assert [np.count_nonzero(u <= tau) for tau in taus] == [1, 2, 3, 4]
    assert taus[1] == 0.0
    assert taus[2] == float(largest)
    assert metrics.threshold_at_risk(np.array([-np.inf, np.inf], dtype), e[2:], 0.1) == 0.0
    assert metrics.threshold_at_coverage(np.array([0.5, 1.0], dtype) * largest, 0.5) == float(largest * dtype(0.75))
    assert metrics.threshold_at_risk(u, e, 0.1) == float(largest)  # finite: rows of +inf stay out


# --- properties ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_order_of_rows_and_increasing_transforms_change_nothing(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    u, e = arrays(rows)
    costs = e * 0.1  # sums of tenths are rounded: still bit-identical
    v, f = arrays(shuffled)
    for one, other in (
        ((u, costs), (v, f * 0.1)),
        ((u, costs), (np.arctan(u) * 3 + 7, costs)),
    ):
        for function in (metrics.aurc, metrics.augrc, metrics.excess_aurc):
            assert function(*one) == function(*other)
        for rule in ("max", "nearest"):
            assert metrics.coverage_at_risk(*one, 0.12, rule) == metrics.coverage_at_risk(*other, 0.12, rule)
        assert metrics.risk_at_coverage(*one, 0.6) == metrics.risk_at_coverage(*other, 0.6)


def test_areas_agree_with_scikit_learn_and_float_costs():
    rng = np.random.default_rng(3)
    u, costs = rng.normal(size=400), rng.gamma(0.5, size=400)
    curve = metrics.risk_coverage(u, costs)
    expected = sklearn.metrics.auc(np.append(0, curve.coverage), np.append(0, curve.risk))
    assert metrics.aurc(u, costs, "trapezoid") == pytest.approx(expected, rel=1e-12)
    order = np.argsort(u)
    running = np.cumsum(costs[order])
    assert metrics.aurc(u, costs) == pytest.approx(np.mean(running / np.arange(1, 401)), rel=1e-12)
    assert metrics.augrc(u, costs) == pytest.approx(np.mean(running) / 400, rel=1e-12)
    assert metrics.excess_aurc(np.sort(u), np.sort(costs)) == 0.0


def test_scores_of_any_real_dtype_and_plain_lists():
    expected = metrics.aurc(RANKS, ERRORS)
    for dtype in (np.float16, np.float32, np.uint8, np.int64, np.longdouble):
        assert metrics.aurc(RANKS.astype(dtype), ERRORS) == expected
    assert metrics.aurc([1, 2, 3, 4, 5], [False, False, True, False, True]) == expected
    assert metrics.threshold_at_coverage(np.array([1, 2, 3], np.uint8), 0.5) == 2.5


def test_trapezoid_chord_of_a_tied_group_may_run_below_the_best_order():
    tied, errors = np.zeros(2), np.ones(2)
    assert metrics.excess_aurc(tied, errors, "trapezoid") == pytest.approx(0.5 - 0.75)
    assert metrics.excess_aurc(tied, errors, "mean") == 0.0
