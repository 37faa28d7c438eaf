"""Rows that further stages mend and break: by hand, by loops, and from Outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate import metrics
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding


def test_worked_by_hand():
    labels = [0, 1, 2, 0, 1]
    said = [[0, 1, 0, 1, 2], [0, 2, 2, 2, 2], [0, 1, 2, 0, 0]]
    found = metrics.prefixes(said, labels)
    assert found.accuracy.tolist() == [2 / 5, 2 / 5, 4 / 5]
    assert found.mended.tolist() == [1, 2]
    assert found.broken.tolist() == [1, 0]
    assert found.changed.tolist() == [3, 3]
    assert found.ever.tolist() == [2 / 5, 3 / 5, 4 / 5]


@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 999))
def test_counts_by_loops_and_their_balance(stages, rows, seed):
    rng = np.random.default_rng(seed)
    said, labels = rng.integers(0, 3, (stages, rows)), rng.integers(0, 3, rows)
    found = metrics.prefixes(said.astype(np.uint8), labels)
    for k in range(1, stages):
        pairs = list(zip(said[k - 1] == labels, said[k] == labels, strict=True))
        assert found.mended[k - 1] == pairs.count((False, True))
        assert found.broken[k - 1] == pairs.count((True, False))
        assert found.changed[k - 1] == sum(a != b for a, b in zip(said[k - 1], said[k], strict=True))
    assert found.ever.tolist() == [
        np.mean([y in column for y, column in zip(labels, said[:k].T, strict=True)]) for k in range(1, stages + 1)
    ]
    np.testing.assert_allclose(rows * np.diff(found.accuracy), found.mended - found.broken, atol=1e-9)
    assert (found.accuracy.shape, found.mended.shape, found.mended.dtype) == ((stages,), (stages - 1,), np.int64)


@pytest.mark.parametrize("combine", ["probs", "logits", "last"])
def test_from_outputs(combine):
    rng = np.random.default_rng(3)
    outputs = Outputs(rng.normal(size=(4, 1, 50, 3)), labels=rng.integers(0, 3, 50), combine=combine)
    found = metrics.prefixes(outputs)
    expected = metrics.prefixes([outputs.predictions(k) for k in (1, 2, 3, 4)], outputs.labels)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert found.accuracy.tolist() == [metrics.accuracy(outputs.probs(k), outputs.labels) for k in (1, 2, 3, 4)]
    top = Outputs(
        [(np.array([0, 1]), np.array([0.5, 0.5])), (np.array([0, 0]), np.array([0.5, 0.5]))], kind="top1", labels=[0, 1]
    )
    assert metrics.prefixes(top).broken.tolist() == [1]


def test_bad_input_is_named_in_one_line():
    outputs = Outputs(np.zeros((2, 3, 2)), labels=[0, 1, 0])
    for args, message in [
        ((outputs, [0, 1, 0]), "labels: expected none beside Outputs"),
        ((Outputs(np.zeros((2, 3, 2))),), "no labels"),
        (([[0, 1]],), "labels: expected the true classes"),
        (([0, 1], [0, 1]), r"predictions: expected shape \(K, N\)"),
        ((np.zeros((0, 2), int), [0, 1]), r"predictions: expected shape \(K, N\)"),
        (([[0, 1]], [0, 1, 2]), r"labels: expected shape \(2,\)"),
        (([[0.0, 1.0]], [0, 1]), "predictions: expected integers"),
        (([[0, 1]], [0.0, 1.0]), "labels: expected integers"),
        (([[0, -1], [0, 1]], [0, 1]), "predictions: expected classes of at least 0, got negative ones in row 1"),
        (([[0, 1]], [-1, 1]), "labels: expected classes of at least 0, got negative ones in row 0"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            metrics.prefixes(*args)
        assert "\n" not in str(caught.value)
