"""Partitions: disjoint, covering, stratified by exact largest remainders, and the same bits everywhere."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit

from quorate.data.partition import apportion, exact, least_rows, partition


def hamilton(n: int, shares: list[Fraction]) -> set[tuple[int, ...]]:
    """All outcomes of largest-remainder rounding of n rows: one for each way to settle equal remainders."""
    every = [*shares, 1 - sum(shares)]
    floors = [math.floor(s * n) for s in every]
    left = n - sum(floors)
    remainders = [s * n - f for s, f in zip(every, floors, strict=True)]
    outcomes = set()
    for mask in range(2 ** len(every)):
        chosen = [k for k in range(len(every)) if mask >> k & 1]
        rest = [r for k, r in enumerate(remainders) if k not in chosen]
        if len(chosen) == left and all(remainders[k] >= max(rest, default=0) for k in chosen):
            outcomes.add(tuple(f + (k in chosen) for k, f in enumerate(floors))[:-1])
    return outcomes


FRACTIONS = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(lambda w: [v / sum(w) for v in w])


@settings(deadline=None)
@given(st.integers(0, 60), FRACTIONS, st.sampled_from([1.0, 0.75, 0.1]))
def test_apportion_is_hamiltons_method(n: int, fractions: list[float], scale: float) -> None:
    shares = exact([f * scale for f in fractions])
    for owed in ([Fraction(0)] * len(shares), [Fraction(k, 7) for k in range(len(shares))]):
        assert tuple(apportion(n, shares, owed)) in hamilton(n, shares)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), FRACTIONS, st.sampled_from([1.0, 0.6]), st.integers(0, 99))
def test_parts(counts: list[int], fractions: list[float], scale: float, seed: int) -> None:
    fractions = [f * scale for f in fractions]
    shares = exact(fractions)
    sizes = {c: n for c, n in enumerate(counts) if n}
    assume(sizes and all(n * min(shares) >= 1 for n in sizes.values()))
    labels = np.random.default_rng(seed).permutation(np.repeat([7 * c - 3 for c in sizes], list(sizes.values())))
    parts = partition(labels, fractions, seed)
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < len(labels)
    if scale == 1.0:
        assert len(rows) == len(labels)
    for part, share in zip(parts, shares, strict=True):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
        assert abs(len(part) - share * len(labels)) < len(sizes)
        for c, n in sizes.items():
            assert abs((labels[part] == 7 * c - 3).sum() - share * n) < 1


def test_counts_as_scikit_learn_rounds_them() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 1000)
    train, test = partition(labels, [0.7, 0.3], seed=3)
    theirs = next(StratifiedShuffleSplit(1, train_size=0.7, test_size=0.3, random_state=0).split(labels, labels))
    for mine, other in zip((train, test), theirs, strict=True):
        assert abs(len(mine) - len(other)) <= 1
        assert np.abs(np.bincount(labels[mine]) - np.bincount(labels[other])).max() <= 1


def test_equal_remainders_are_shared_out() -> None:
    # 10 classes of 5 rows, halves: each class leaves one row over; alternating keeps the halves equal.
    labels = np.repeat(np.arange(10), 5)
    assert [len(p) for p in partition(labels, [0.5, 0.5])] == [25, 25]
    # 5 rows at 0.9 / 0.1 tie at 4.5 and 0.5: the part that has no row yet gets it.
    assert [len(p) for p in partition(np.zeros(5, int), [0.9, 0.1])] == [4, 1]


def test_decimals_mean_what_they_say() -> None:
    assert exact([0.1, 0.2, 0.7]) == [Fraction(1, 10), Fraction(2, 10), Fraction(7, 10)]
    assert exact([1 / 3, 1 / 3, 1 / 3]) == [Fraction(1, 3)] * 3
    assert exact([0.25]) == [Fraction(1, 4)]
    # 0.1 + 0.7 + 0.2 is above 1 in floats, 0.8·10 + 0.1·10 must not lose a row
    assert [len(p) for p in partition(np.zeros(10, int), [0.8, 0.1, 0.1])] == [8, 1, 1]


def test_names_seeds_and_row_identity() -> None:
    labels = np.arange(400) % 4
    named = partition(labels, {"a": 0.5, "b": 0.25}, seed=1)
    assert list(named) == ["a", "b"]
    for mine, other in zip(named.values(), partition(labels.astype(np.uint8), (0.5, 0.25), seed=1), strict=True):
        np.testing.assert_array_equal(mine, other)
    again = partition(labels, {"a": 0.5, "b": 0.25}, seed=2)
    assert len(np.intersect1d(named["a"], again["a"])) < 150  # 100 expected of 200
    # Which rows: a row's rank within its class depends on seed and row alone, so new labels elsewhere change nothing.
    relabelled = np.where(labels == 3, 9, labels)
    np.testing.assert_array_equal(partition(relabelled, [0.5, 0.25], seed=1)[0], named["a"])


def test_no_order_bias() -> None:
    # Early and late rows are equally likely to be chosen.
    hits = np.zeros(20)
    for seed in range(400):
        hits[partition(np.zeros(20, int), [0.25], seed)[0]] += 1
    assert hits.sum() == 400 * 5
    assert ((hits - 100) ** 2 / 75).sum() < 45  # chi-square, 19 degrees of freedom, p ≈ 1e-3


def test_golden() -> None:
    labels = (np.arange(997) * 7919 % 13) % 5
    parts = partition(labels, {"train": 0.45, "validation": 0.2, "calibration": 0.1, "test": 0.25}, seed=12345)
    assert [len(p) for p in parts.values()] == SIZES
    text = b"".join(p.astype("<i8").tobytes() for p in parts.values())
    assert hashlib.sha256(text).hexdigest() == GOLDEN_HASH


SIZES = [449, 200, 99, 249]
GOLDEN_HASH = "d52f9fa32b2178a55acec381ecffb6295a88a3e32a666c47cb7dec5487a4fc2d"


def test_too_few_rows_names_class_count_and_need() -> None:
    labels = np.array([0] * 50 + [4] * 6)
    with pytest.raises(ValueError, match=r"class 4 has 6 row\(s\) .*0\.8, 0\.1, 0\.1.* at least 7$") as caught:
        partition(labels, [0.8, 0.1, 0.1])
    assert "\n" not in str(caught.value)
    assert [len(p) for p in partition(np.zeros(7, int), [0.8, 0.1, 0.1])] == [5, 1, 1]


@settings(max_examples=50, deadline=None)
@given(FRACTIONS, st.integers(0, 30))
def test_least_rows_is_the_least(fractions: list[float], n: int) -> None:
    shares = exact(fractions)
    none = [Fraction(0)] * len(shares)
    assume(n < math.ceil(1 / min(shares)))  # from there on no part can be empty
    least = least_rows(n, shares)
    assert least > n
    assert 0 not in apportion(least, shares, none)
    assert all(0 in apportion(m, shares, none) for m in range(n + 1, least))


def test_tiny_fractions_answer_at_once() -> None:
    with pytest.raises(ValueError, match=r"at least 1000000000$"):
        partition(np.zeros(10, int), [0.9, 1e-9])


@pytest.mark.parametrize(
    ("labels", "fractions", "seed", "said"),
    [
        ([0, 1], [], 0, "at least one, got"),
        ([0, 1], [0.5, 0.0], 0, r"finite and positive.*\[0.5, 0.0\]"),
        ([0, 1], {"a": -0.1}, 0, "finite and positive"),
        ([0, 1], [math.nan], 0, "finite and positive"),
        ([0, 1], [math.inf], 0, "finite and positive"),
        ([0, 1], [0.6, 0.5], 0, "at most 1, got .* sum to 1.1"),
        ([0, 1], [0.5, 0.500001], 0, "at most 1"),
        ([], [1.0], 0, "at least one row"),
        ([0.5], [1.0], 0, "1-D integer array .* float64"),
        ([[1]], [1.0], 0, r"got shape \(1, 1\)"),
        ([0, 1], [1.0], -1, "seed must be an integer"),
    ],
)
def test_refuses(labels, fractions, seed: int, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        partition(np.array(labels), fractions, seed)
    assert "\n" not in str(caught.value)
