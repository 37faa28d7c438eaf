"""Accuracy and calibration against closed forms, scikit-learn and row-by-row loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate import metrics
from quorate.metrics import _checks

pytestmark = pytest.mark.deciding


def sample(seed, rows=200, classes=4, dtype=np.float64):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(classes, 0.7), rows)
    labels = np.where(rng.random(rows) < 0.6, probs.argmax(1), rng.integers(0, classes, rows))
    return probs.astype(dtype), labels


def two_columns(top, right):
    """Probabilities whose top is ``top`` (≥ .5, class 0), and labels that make it right or wrong."""
    top = np.asarray(top, float)
    return np.stack([top, 1 - top], 1), np.where(right, 0, 1)


def loop_ece(groups, top, right):
    """Σ_b |b|/N · |acc − mean top| over lists of row numbers."""
    gaps = [len(g) * abs(sum(right[i] for i in g) / len(g) - sum(top[i] for i in g) / len(g)) for g in groups if g]
    return sum(gaps) / len(top)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 7])
def test_against_scikit_learn(dtype, classes):
    probs, labels = sample(classes, classes=classes, dtype=dtype)
    exact = probs.astype(np.float64)
    exact /= exact.sum(1, keepdims=True)
    names = list(range(classes))
    tolerance = {"rel": 1e-12 if dtype == np.float64 else 1e-6}
    assert metrics.accuracy(probs, labels) == sklearn.metrics.accuracy_score(labels, probs.argmax(1))
    assert metrics.nll(probs, labels) == pytest.approx(sklearn.metrics.log_loss(labels, exact, labels=names), **tolerance)
    expected = np.mean(np.sum((exact - np.eye(classes)[labels]) ** 2, axis=1))
    assert metrics.brier(probs, labels) == pytest.approx(expected, **tolerance)
    recall = sklearn.metrics.recall_score(labels, probs.argmax(1), average=None, labels=names)
    assert metrics.per_class_accuracy(probs, labels) == pytest.approx(recall, rel=1e-12)


def test_brier_of_two_classes_is_twice_the_binary_score():
    probs, labels = sample(5, classes=2)
    assert metrics.brier(probs, labels) == pytest.approx(2 * sklearn.metrics.brier_score_loss(labels, probs[:, 1]), rel=1e-12)


def test_closed_forms():
    probs, labels = np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]), np.array([0, 0])
    assert metrics.accuracy(probs, labels) == 0.5
    assert metrics.nll(probs, labels) == pytest.approx((math.log(2) + math.log(5)) / 2, rel=1e-15)
    assert metrics.brier(probs, labels) == pytest.approx((0.375 + 0.64 + 0.04 + 0.36) / 2, rel=1e-15)
    assert metrics.brier([[0.0, 1.0]], [0]) == 2.0
    assert metrics.brier([[1.0, 0.0]], [0]) == 0.0
    assert metrics.accuracy([[0.5, 0.5]], [0]) == 1.0  # the lowest class among equals
    assert metrics.accuracy([[0.5, 0.5]], [1]) == 0.0
    accuracy = metrics.per_class_accuracy(probs, labels)
    assert accuracy[0] == 0.5
    assert np.isnan(accuracy[1:]).all()
    uniform = np.full((8, 8), 1 / 8)
    assert metrics.nll(uniform, np.arange(8)) == pytest.approx(math.log(8), rel=1e-15)


def test_nll_is_exact_at_zero_and_finite_from_log_probs():
    sure = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert metrics.nll(sure, [0, 1]) == math.inf
    assert str(metrics.nll(sure, [0, 0])) == "0.0"  # not -0.0
    log_probs = np.array([[0.0, -2000.0], [-1e5, 0.0]], np.float32)
    assert metrics.nll(labels=[1, 0], log_probs=log_probs) == 51_000.0
    assert metrics.nll(labels=[0], log_probs=[[0.0, -math.inf]]) == 0.0
    assert metrics.nll(labels=[1], log_probs=[[0.0, -math.inf]]) == math.inf
    probs, labels = sample(1)
    assert metrics.nll(labels=labels, log_probs=np.log(probs)) == pytest.approx(metrics.nll(probs, labels), rel=1e-14)


def test_width_bins_are_open_below_and_closed_above():
    probs, labels = two_columns([0.6, 0.7, 0.7000001, 0.8, 1.0], [1, 0, 1, 1, 0])
    diagram = metrics.reliability(probs, labels, bins=10)
    assert diagram.count.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 0, 1]  # .6 in (.5, .6], .7 in (.6, .7], .8 in (.7, .8]
    assert np.isnan(diagram.probability[[0, 4, 8]]).all()
    assert np.isnan(diagram.accuracy[[0, 4, 8]]).all()
    assert diagram.accuracy[[5, 6, 7, 9]].tolist() == [1, 0, 1, 0]
    assert diagram.probability[7] == pytest.approx(0.75000005, rel=1e-12)
    expected = (0.4 + 0.7 + 2 * (1 - 0.75000005) + 1.0) / 5
    assert metrics.ece(probs, labels, bins=10) == pytest.approx(expected, rel=1e-12)
    slightly_over = np.array([[1.0004, 0.0], [0.5, 0.5]])
    assert metrics.reliability(slightly_over, [0, 0], bins=4).count.tolist() == [0, 1, 0, 1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.5, 0.55, 0.6, 0.75, 0.9, 1.0]), st.booleans()), min_size=1), st.integers(1, 20))
def test_ece_equals_a_loop_over_bins(rows, bins):
    top, right = map(list, zip(*rows, strict=True))
    probs, labels = two_columns(top, right)
    right = [label == row.argmax() for row, label in zip(probs, labels, strict=True)]
    groups = [[i for i, p in enumerate(top) if lo / bins < p <= (lo + 1) / bins] for lo in range(bins)]
    assert metrics.ece(probs, labels, bins) == pytest.approx(loop_ece(groups, top, right), abs=1e-12)
    diagram = metrics.reliability(probs, labels, bins)
    assert diagram.count.tolist() == [len(g) for g in groups]

    n, order = len(top), sorted(top)
    masses = [[] for _ in range(bins)]
    for i, p in enumerate(top):
        first, last = order.index(p), order.index(p) + order.count(p) - 1
        masses[int((first + last + 1) * bins // (2 * n))].append(i)
    assert metrics.adaptive_ece(probs, labels, bins) == pytest.approx(loop_ece(masses, top, right), abs=1e-12)
    diagram = metrics.reliability(probs, labels, bins, scheme="mass")
    assert diagram.count.tolist() == [len(g) for g in masses if g]
    assert np.all(np.diff(diagram.probability) > 0)


@pytest.mark.parametrize(("rows", "bins"), [(30, 15), (31, 15), (7, 10), (100, 7)])
def test_mass_bins_are_equal_without_ties(rows, bins):
    probs, labels = two_columns(np.linspace(0.5001, 0.9999, rows), np.arange(rows) % 3 > 0)
    count = metrics.reliability(probs, labels, bins, "mass").count
    assert count.size == min(rows, bins)
    assert count.max() - count.min() <= 1
    assert metrics.ece(probs, labels, bins, scheme="mass") == metrics.adaptive_ece(probs, labels, bins)


def test_saturated_rows_share_one_bin():
    top = np.append(np.linspace(0.5, 0.99, 50), np.ones(50))
    probs, labels = two_columns(top, np.ones(100, bool))
    diagram = metrics.reliability(probs, labels, 10, "mass")
    assert diagram.count.tolist() == [10, 10, 10, 10, 10, 50]
    assert diagram.probability[-1] == 1.0


def test_reliability_agrees_with_scikit_learn():
    probs, labels = sample(2, rows=500)
    diagram = metrics.reliability(probs, labels, bins=12)
    filled = diagram.count > 0
    share, mean = sklearn.calibration.calibration_curve(probs.argmax(1) == labels, probs.max(1), n_bins=12)
    assert diagram.accuracy[filled] == pytest.approx(share, rel=1e-12)
    assert diagram.probability[filled] == pytest.approx(mean, rel=1e-12)


def test_calibrated_by_construction_and_one_bin():
    probs, labels = two_columns(np.full(10, 0.7), np.arange(10) < 7)
    assert metrics.ece(probs, labels) == pytest.approx(0, abs=1e-12)
    assert metrics.adaptive_ece(probs, labels) == pytest.approx(0, abs=1e-12)
    probs, labels = sample(9)
    gap = abs(metrics.accuracy(probs, labels) - probs.max(1).mean())
    assert metrics.ece(probs, labels, bins=1) == pytest.approx(gap, rel=1e-12)


def test_order_of_rows_and_cutting_into_blocks_change_nothing(monkeypatch):
    probs, labels = sample(4, rows=101, dtype=np.float32)
    functions = [metrics.accuracy, metrics.nll, metrics.brier, metrics.ece, metrics.adaptive_ece]
    whole = [f(probs, labels) for f in functions]
    order = np.random.default_rng(0).permutation(101)
    assert [f(probs[order], labels[order]) for f in functions] == pytest.approx(whole, rel=1e-12)
    monkeypatch.setattr(_checks, "BLOCK", 28)  # 7 rows of 4 classes
    assert [f(probs, labels) for f in functions] == pytest.approx(whole, rel=1e-12)
    assert np.array_equal(metrics.per_class_accuracy(probs[order], labels[order]), metrics.per_class_accuracy(probs, labels))


def test_inputs_are_left_alone_and_integers_are_probabilities_too():
    probs, labels = sample(6)
    kept = probs.copy()
    metrics.brier(probs, labels), metrics.nll(probs, labels), metrics.nll(labels=labels, log_probs=np.log(probs))
    assert np.array_equal(probs, kept)
    assert metrics.accuracy(np.eye(3, dtype=int), np.array([0, 1, 1], np.uint8)) == 2 / 3
    assert metrics.nll(np.eye(3, dtype=int), [0, 1, 2]) == 0.0
