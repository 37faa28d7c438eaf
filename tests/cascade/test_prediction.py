"""Predictions: what the summary figures mean."""

from __future__ import annotations

import numpy as np
import pytest

from quorate.cascade import Prediction

pytestmark = pytest.mark.deciding


def prediction(stage: list[int], macs: list[float], names: tuple[str, ...] = ("a", "b", "c")) -> Prediction:
    n = len(stage)
    return Prediction(np.zeros(n, int), None, np.zeros(n), np.ones(n, bool), np.array(stage, int), np.array(macs), names)


def test_reach_counts_all_that_came_so_far_or_further() -> None:
    p = prediction([0, 2, 1, 0, 2], [1, 6, 3, 1, 6])
    assert p.reach == (1.0, 0.6, 0.4)
    assert p.mean_macs == 17 / 5
    assert len(p) == 5


def test_a_stage_that_nobody_reached() -> None:
    assert prediction([0, 0], [2, 2]).reach == (1.0, 0.0, 0.0)


def test_no_rows() -> None:
    p = prediction([], [])
    assert (p.reach, p.mean_macs, len(p)) == ((0.0, 0.0, 0.0), 0.0, 0)


def test_predictions_compare_by_identity_since_arrays_have_no_one_answer() -> None:
    p, q = prediction([0, 1], [1, 2]), prediction([0, 1], [1, 2])
    assert p == p
    assert p != q
