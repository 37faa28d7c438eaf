"""Whole groups on one side: a partition, near the shares, even over classes, the same everywhere."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.data import arrays
from quorate.data.grouping import group_partition

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 40), st.integers(1, 4), st.integers(0, 99), st.integers(1, 2**32 - 1))
def test_a_partition_of_whole_groups(count: int, classes: int, seed: int, draw: int) -> None:
    random = np.random.default_rng(draw)
    groups = np.concatenate([np.arange(count), random.integers(0, count, 5 * count)]) * 7 - 3
    labels = random.integers(0, classes, len(groups))
    parts = group_partition(labels, groups, SHARES, seed)
    assert list(parts) == list(SHARES)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(groups)))
    for one, other in itertools.combinations(parts.values(), 2):
        assert not set(groups[one]) & set(groups[other])
    assert all(len(rows) and (np.diff(rows) > 0).all() for rows in parts.values())
    again = group_partition(labels, groups, SHARES, seed)
    assert all((parts[name] == again[name]).all() for name in SHARES)


def test_shares_and_classes_are_near_where_groups_are_small() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 400, 8000)
    labels = random.integers(0, 4, 8000)
    for name, rows in group_partition(labels, groups, SHARES, 1).items():
        assert abs(len(rows) / 8000 - SHARES[name]) < 0.005
        np.testing.assert_allclose(np.bincount(labels[rows]) / np.bincount(labels), SHARES[name], atol=0.01)


def test_by_hand() -> None:
    """Group 0 brings six of class 0, group 1 four of class 1, groups 2 and 3 two of class 0 and of class 1."""
    groups = np.repeat([0, 1, 2, 3], [6, 4, 2, 2])
    labels = np.repeat([0, 1, 0, 1], [6, 4, 2, 2])
    parts = group_partition(labels, groups, {"a": 0.75, "b": 0.25})
    assert parts["a"].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
    ]  # a lacks 6 of class 0, then 4.5 of class 1, then nothing of either
    assert parts["b"].tolist() == [10, 11, 12, 13]


def test_the_last_groups_go_to_empty_parts_and_seeds_differ() -> None:
    groups = np.repeat(np.arange(6), 100)
    found = {
        tuple(sorted(set(groups[rows])))
        for seed in range(20)
        for rows in [group_partition(groups * 0, groups, SHARES, seed)["test"]]
    }
    assert len(found) > 3
    parts = group_partition(groups * 0, groups, {"train": 0.98, "validation": 0.01, "test": 0.01})
    assert [len(rows) for rows in parts.values()] == [400, 100, 100]


def test_a_sum_below_one_leaves_groups_out() -> None:
    groups = np.repeat(np.arange(10), 10)
    parts = group_partition(groups * 0, groups, {"a": 0.3, "b": 0.2})
    assert [len(rows) for rows in parts.values()] == [30, 20]


@pytest.mark.parametrize(
    ("labels", "groups", "shares", "said"),
    [
        ([0, 1], [0, 1], SHARES, r"3 parts \(train, validation, test\) need as many groups at least, got 2"),
        ([0, 1], [0], {"a": 1.0}, r"groups must be \(N,\) integers, one per row, got shape \(1,\)"),
        ([0.5, 1], [0, 1], {"a": 1.0}, "labels must be .* of float64"),
        ([], [], {"a": 1.0}, "labels must be"),
        ([0, 1], [0, 1], {"a": 0.9, "b": 0.9}, "sum to at most 1"),
    ],
)
def test_refuses(labels: Any, groups: Any, shares: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        group_partition(np.array(labels), np.array(groups), shares)


def test_arrays_keep_people_apart() -> None:
    random = np.random.default_rng(0)
    people = np.array([f"p{i}" for i in random.integers(0, 30, 300)])
    x, y = random.normal(size=(300, 4)), random.integers(0, 2, 300)
    data = arrays((x, y), groups=people, seed=2)
    sides = [set(people[split.ids]) for split in data.splits().values()]
    assert sum(map(len, sides)) == len(set(people))
    assert all(split.groups is not None for split in data.splits().values())
    other = arrays((x, y), groups=people, seed=3)
    assert set(data.test.ids) != set(other.test.ids)


X, LABELS = np.random.default_rng(0).normal(size=(300, 4)), np.arange(300) % 2


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (X[:, 0], r"groups of train must name each of the 300 rows' group, .* got shape \(300,\) of float"),
        (["a"] * 299, r"got shape \(299,\) of str"),
        ([None, *["a"] * 299], "of NoneType, str: fill in the missing ones"),
        ([float("nan"), *["a"] * 299], "of float, str"),
        ([1, *["a"] * 299], "of int, str"),
        ([True] * 300, "of bool"),
        ({"train": ["a"] * 300, "test": ["b"] * 5}, "groups must be given for all of train, got train, test"),
    ],
)
def test_groups_that_name_nobody(groups: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        arrays((X, LABELS), groups=groups)


def test_groups_of_given_parts() -> None:
    test = (X[:4], LABELS[:4])
    train = np.arange(300) // 10
    data = arrays((X, LABELS), test, groups={"train": train, "test": np.full(4, 99)})
    assert data.test.groups is not None
    assert not set(data.test.groups) & {
        g for part in (data.train, data.validation) if part.groups is not None for g in part.groups
    }
    with pytest.raises(ValueError, match=r"groups must be given for all of train, test, got train: .* pass \{part: groups\}"):
        arrays((X, LABELS), test, groups=train)
    with pytest.raises(ValueError, match=r"a group may be in one split only, got \[7\] in both train and test: move its rows"):
        arrays((X, LABELS), test, groups={"train": train, "test": np.full(4, 7)})
    with pytest.raises(ValueError, match="got both in different parts"):
        arrays((X, LABELS), test, groups={"train": train, "test": np.full(4, "x")})
