"""Diversity of members against closed forms, loops over pairs and SciPy."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate import metrics
from quorate.metrics import _checks

pytestmark = pytest.mark.deciding

SHAPES = st.tuples(st.integers(2, 5), st.integers(1, 9), st.integers(2, 4), st.integers(0, 999))


def members(shape, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.6), shape[:-1])


def test_disagreement_and_oracle_worked_by_hand():
    votes = np.array([[0, 1, 2, 0], [0, 1, 1, 1], [0, 2, 0, 1]])  # pairs apart: 0, 2, 3, 2 of 3
    probs = np.eye(3)[votes]
    assert metrics.pairwise_disagreement(probs) == pytest.approx(7 / 12, abs=1e-15)
    assert metrics.oracle_accuracy(probs, [0, 2, 2, 2]) == 0.75
    assert metrics.oracle_accuracy(probs, [1, 0, 2, 0]) == 0.5
    assert metrics.pairwise_disagreement(probs[:1].repeat(3, 0)) == 0.0
    assert metrics.pairwise_kl(probs) == math.inf
    assert metrics.pairwise_kl(probs[:1].repeat(3, 0)) == 0.0


def test_kl_of_two_bernoullis():
    probs = np.array([[[0.5, 0.5]], [[0.9, 0.1]]])
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    backward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert metrics.pairwise_kl(probs) == pytest.approx((forward + backward) / 2, rel=1e-14)


@settings(deadline=None)
@given(SHAPES)
def test_equal_scipy(drawn):
    *shape, seed = drawn
    probs = members(tuple(shape), seed)
    pairs = list(permutations(range(shape[0]), 2))
    expected = np.mean([scipy.stats.entropy(probs[i], probs[j], axis=-1) for i, j in pairs])
    assert metrics.pairwise_kl(probs) == pytest.approx(expected, rel=1e-10)
    votes = probs.argmax(-1)
    assert metrics.pairwise_disagreement(probs) == pytest.approx(scipy.spatial.distance.pdist(votes, "hamming").mean(), abs=1e-12)
    assert metrics.pairwise_disagreement(np.log(probs)) == metrics.pairwise_disagreement(probs)
    labels = np.random.default_rng(seed).integers(0, shape[2], shape[1])
    assert metrics.oracle_accuracy(probs, labels) == np.mean([any(v == y) for v, y in zip(votes.T, labels, strict=True)])
    assert metrics.oracle_accuracy(probs[:1], labels) == metrics.accuracy(probs[0], labels)


def test_a_class_that_no_member_expects_adds_nothing():
    inner = members((3, 20, 4), 1)
    probs = np.concatenate([inner, np.zeros((3, 20, 1))], axis=-1)
    assert metrics.pairwise_kl(probs) == pytest.approx(metrics.pairwise_kl(inner), rel=1e-12)
    probs[1, 7] = [0.1, 0.2, 0.3, 0.3, 0.1]
    assert metrics.pairwise_kl(probs) == math.inf


def test_kl_of_nearly_equal_members_does_not_cancel():
    base = members((1, 50, 6), 2) * 0.9 + 0.1 / 6
    shift = 1e-9 * np.array([1, -1, 1, -1, 1, -1])
    probs = np.concatenate([base, base + shift, base - shift])
    pairs = list(permutations(range(3), 2))
    # Σ p log(p/q) loses all digits here; KL + KL reversed = Σ (p − q) log1p((p − q) / q) does not
    terms = [(probs[i] - probs[j]) * np.log1p((probs[i] - probs[j]) / probs[j]) / 2 for i, j in pairs]
    expected = np.mean([t.sum(-1) for t in terms])
    assert metrics.pairwise_kl(probs) == pytest.approx(expected, rel=1e-5)


def test_kl_of_equal_members_is_exactly_0():
    for count in range(2, 40):
        assert metrics.pairwise_kl(np.repeat(members((1, 50, 6), count), count, axis=0)) == 0.0


def test_blocks_members_and_rows_in_another_order_change_nothing(monkeypatch):
    probs, labels = members((4, 61, 3), 3).astype(np.float32), np.arange(61) % 3
    rng = np.random.default_rng(0)
    rows = rng.permutation(61)
    whole = metrics.pairwise_disagreement(probs), metrics.pairwise_kl(probs), metrics.oracle_accuracy(probs, labels)
    monkeypatch.setattr(_checks, "BLOCK", 60)  # 5 rows of 4 members and 3 classes
    mixed = probs[rng.permutation(4)][:, rows]
    again = metrics.pairwise_disagreement(mixed), metrics.pairwise_kl(mixed), metrics.oracle_accuracy(mixed, labels[rows])
    assert again == pytest.approx(whole, rel=1e-12)
