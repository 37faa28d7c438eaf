"""Stratified subsets: exact size, every class to within one row, the same for a row wherever it stands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.data.subset import stratified


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 2**64 - 1), st.data())
def test_quotas(labels: list[int], seed: int, data: st.DataObject) -> None:
    y, ids = np.array(labels), np.arange(100, 100 + len(labels))
    count = data.draw(st.integers(1, len(labels)))
    rows = stratified(y, ids, count, seed)
    assert len(rows) == count
    assert (np.diff(rows) > 0).all()
    assert (np.abs(np.bincount(y[rows], minlength=6) - np.bincount(y, minlength=6) * count / len(y)) < 1).all()
    order = np.array(data.draw(st.permutations(range(len(y)))))
    again = stratified(y[order], ids[order], count, seed)
    assert set(ids[order][again]) == set(ids[rows])


def test_seed_draws_anew() -> None:
    y, ids = np.zeros(1000, int), np.arange(1000)
    one, other = (set(stratified(y, ids, 100, seed)) for seed in (0, 1))
    assert 0 < len(one & other) < 30
    assert one == set(stratified(y, ids, 100))


@pytest.mark.parametrize("count", [0, 4, -1, True, 2.0])
def test_other_counts(count: int) -> None:
    with pytest.raises(ValueError, match=r"a subset must have 1 … 3 rows"):
        stratified(np.zeros(3, int), np.arange(3), count)


@pytest.mark.parametrize("labels", [np.zeros(3), np.zeros((3, 1), int), np.zeros(2, int)])
def test_other_labels(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="labels must be integers"):
        stratified(labels, np.arange(3), 1)
