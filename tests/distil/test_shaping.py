"""Search weights against their definition, the robust bound against sorting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quorate.distil.game import Game
from quorate.distil.shaping import RobustBound, SearchWeights, robust_bound

SCORES = np.float32([[3, 0.5], [-1, 0], [0.25, -9], [8, 2], [-7, 0.125]])


def game(joint=False, block=2, eta=0.5):
    return Game.of(SCORES.copy(), 3, eta, joint=joint, block=block)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("block", [1, 2, None])
@pytest.mark.parametrize(("cap", "uniform"), [(None, 0.0), (1.25, 0.0), (None, 0.3), (0.5, 0.2), (100.0, 1.0)])
def test_weights_are_as_defined(joint, block, cap, uniform):
    made = SearchWeights(game(joint, block), cap=cap, uniform=uniform)
    u = 0.5 * SCORES.astype(np.float64)
    if cap is not None:
        u = np.clip(u, -cap, cap)
    axis = None if joint else 0
    total, entries = (2 * np.cosh(u)).sum(axis=axis), 10 if joint else 5
    expected = [(1 - uniform) * np.exp(s * u) / total + uniform / (2 * entries) for s in (-1, 1)]
    for found, right in zip(made.weights(), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-13)
    for found, right in zip(made.weights([4, 0], np.float32), expected, strict=True):
        np.testing.assert_array_equal(found, right[[4, 0]].astype(np.float32))
    parts = list(made.weight_blocks(np.float32))
    for which in (0, 1):
        np.testing.assert_allclose(np.concatenate([part[1 + which] for part in parts]), expected[which], rtol=1e-6)
        assert parts[0][1 + which].dtype == np.float32
    w = expected[0] + expected[1]
    np.testing.assert_allclose(w.sum(axis=axis), 1, rtol=1e-13)
    size = made.effective_samples()
    np.testing.assert_allclose(size, np.atleast_1d(1 / (w**2).sum(axis=axis)), rtol=1e-12)
    assert ((size >= 1) & (size <= entries * (1 + 1e-12))).all()


def test_defaults_are_the_games_own_weights():
    own = game()
    for found, right in zip(SearchWeights(own).weights(), own.weights(), strict=True):
        np.testing.assert_array_equal(found, right)


def test_shaping_leaves_the_game_alone():
    own, other = game(), game()
    SearchWeights(own, cap=0.1, uniform=0.9).effective_samples()
    list(SearchWeights(own, cap=0.1).weight_blocks())
    np.testing.assert_array_equal(own.scores, SCORES)
    np.testing.assert_array_equal(own.log_normaliser, other.log_normaliser)
    np.testing.assert_array_equal(own.certificate().bound, other.certificate().bound)


def test_effective_sample_size_by_hand():
    one = Game.of(np.float32([[0], [0], [0], [400]]), 1, 1.0)
    assert SearchWeights(one).effective_samples() == pytest.approx([1.0])
    assert SearchWeights(one, uniform=1.0).effective_samples() == pytest.approx([4.0], rel=1e-14)
    assert SearchWeights(Game(7, 2, 1.0)).effective_samples() == pytest.approx([7.0, 7.0], rel=1e-14)
    assert SearchWeights(Game(7, 2, 1.0, joint=True)).effective_samples() == pytest.approx([14.0], rel=1e-14)
    half = SearchWeights(one, uniform=0.5).effective_samples()  # w = (1/8, 1/8, 1/8, 5/8)
    assert half == pytest.approx([64 / 28], rel=1e-14)


def test_weights_of_a_round_that_is_over_are_refused():
    own = game()
    made = SearchWeights(own, cap=1.0)
    own.update(np.ones((5, 2)))
    for call in (made.weights, made.effective_samples, lambda: next(made.weight_blocks())):
        with pytest.raises(ValueError, match="these weights are of round 3, the game is in round 4: make new ones"):
            call()


@settings(deadline=None, max_examples=80)
@given(st.data(), st.integers(1, 40), st.integers(1, 4), st.sampled_from([0.001, 0.1, 0.5, 0.75, 0.999, 1.0]))
def test_robust_bound_is_the_order_statistic(data, n, outputs, quantile):
    elements = st.one_of(st.floats(-(2.0**127), 2.0**127, width=32), st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45]))
    d = data.draw(arrays(np.float32, (n, outputs), elements=elements))
    size = np.sort(np.abs(d).ravel())
    found = robust_bound(d, quantile)
    assert found.value == size[max(math.ceil(quantile * d.size - 1e-6), 1) - 1]
    assert found.value == np.quantile(size.astype(np.float64), quantile, method="inverted_cdf")
    assert found.clipped == (np.abs(d) > found.value).mean()
    assert found.clipped <= 1 - quantile + 1e-12
    assert found.largest == size[-1]


def test_robust_bound_by_hand():
    d = np.arange(-500.0, 500.0).reshape(250, 4)  # |d|: 0, 1, 1, …, 499, 499, 500
    assert robust_bound(d) == RobustBound(499.0, 0.001, 500.0)
    assert robust_bound(d, 0.5) == RobustBound(250.0, 0.499, 500.0)
    assert robust_bound(d, 1.0) == RobustBound(500.0, 0.0, 500.0)
    assert robust_bound(np.zeros((3, 2))) == RobustBound(0.0, 0.0, 0.0)
    assert robust_bound(np.arange(1.0, 31).reshape(30, 1), 0.1).value == 3  # 0.1 · 30 is 3.0000000000000004
    assert robust_bound([[0.5], [-2.0]], 0.5).value == 0.5
    big = np.arange(300_000, dtype=np.float32).reshape(-1, 3)  # more than one block
    assert robust_bound(big, 0.9).value == 269_999


def test_robust_bound_reads_a_mapped_file(tmp_path):
    d = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float16)
    np.save(tmp_path / "d.npy", d)
    assert robust_bound(np.load(tmp_path / "d.npy", mmap_mode="r"), 0.9) == robust_bound(d.astype(np.float64), 0.9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SearchWeights(game(), cap=0), "cap=0: expected a number from 1e-100 to 1e100, or None"),
        (lambda: SearchWeights(game(), cap=math.nan), "cap=nan: expected"),
        (lambda: SearchWeights(game(), uniform=1.01), "uniform=1.01: expected a share from 0 to 1"),
        (lambda: SearchWeights(game(), uniform=-0.1), "uniform=-0.1: expected a share"),
        (lambda: SearchWeights(game(), uniform="all"), "uniform='all': expected a share"),
        (lambda: SearchWeights(game()).weights(dtype=np.float16), "dtype=.*: expected float32 or float64"),
        (lambda: next(SearchWeights(game()).weight_blocks(int)), "dtype=.*: expected float32 or float64"),
        (lambda: SearchWeights(game()).weights([5]), r"rows 5 … 5 are asked for: expected rows 0 … 4"),
        (lambda: robust_bound(iter([np.ones((2, 2))])), r"d is list_iterator: expected an array \(samples, outputs\)"),
        (lambda: robust_bound(np.ones(3)), r"d is an array of shape \(3,\): expected an array \(samples, outputs\)"),
        (lambda: robust_bound(np.ones((0, 3))), r"d is an array of shape \(0, 3\): expected .* that is not empty"),
        (lambda: robust_bound(np.ones((2, 3)), 0.0), "quantile=0.0: expected a number above 0, at most 1"),
        (lambda: robust_bound(np.ones((2, 3)), 1.1), "quantile=1.1: expected"),
        (lambda: robust_bound(np.float32([[1], [np.inf]])), "d has NaN or infinite values in rows 1: mend these rows"),
        (lambda: robust_bound(np.array([[1.0], [1e39]])), r"d has values beyond float32 in rows 1: scale or clip the outputs"),
        (lambda: robust_bound(np.ones((2, 1), int)), "d has dtype int64: expected float16"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
