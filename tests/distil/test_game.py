"""The game of B-DISTIL: hand-worked rounds, an experts' game in float64 that keeps every weight, and what must not change it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quorate.distil.game import Game

LN2 = math.log(2)
BLOCKS = [1, 2, 3, 7, None]


def experts(ds, eta, joint):
    """Multiplicative weights as the algorithm is written: K⁺, K⁻ after every round, with ln Z, over 2N (2NL) experts per game."""
    n, outputs = ds[0].shape
    axis = None if joint else 0
    plus = minus = np.full((n, outputs), 1 / (2 * n * (outputs if joint else 1)))
    log_z = []
    for d in ds:
        plus, minus = plus * np.exp(-eta * d), minus * np.exp(eta * d)
        z = np.atleast_1d((plus + minus).sum(axis=axis))
        plus, minus = plus / z, minus / z
        log_z.append(np.log(z))
    return plus, minus, log_z


def dyadic(rng, shape, scale=1.0):
    """Multiples of scale/64 up to 2·scale: their sums are exact in float32."""
    return rng.integers(-128, 129, shape) * (scale / 64)


def play(ds, eta=0.7, **options):
    game = Game(*ds[0].shape, eta, **options)
    for d in ds:
        game.update(d)
    return game


def test_one_sample_by_hand():
    game = Game(1, 1, LN2)
    assert [k.item() for k in game.weights()] == pytest.approx([0.5, 0.5], rel=1e-15)
    assert game.update(np.ones((1, 1))) == pytest.approx(math.log(1.25), rel=1e-14)
    assert [k.item() for k in game.weights()] == pytest.approx([0.2, 0.8], rel=1e-14)
    assert game.update(-np.ones((1, 1))) == pytest.approx(math.log(0.8), rel=1e-14)
    assert [k.item() for k in game.weights()] == pytest.approx([0.5, 0.5], rel=1e-14)
    assert game.rounds == 2
    assert sum(game.log_z).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_closed_form_is_the_experts_game(joint, block):
    rng = np.random.default_rng(1)
    ds = [dyadic(rng, (6, 4)) for _ in range(5)]
    eta = 0.7
    game = Game(6, 4, eta, joint=joint, block=block)
    for t, d in enumerate(ds, 1):
        before = experts(ds[: t - 1], eta, joint)[:2] if t > 1 else [np.full((6, 4), 1 / (48 if joint else 12))] * 2
        plus, minus, log_z = experts(ds[:t], eta, joint)
        axes = None if joint else 0
        np.testing.assert_allclose(game.edge(d), np.atleast_1d(((before[0] - before[1]) * d).sum(axis=axes)), atol=1e-13)
        for found, expected in zip(game.split_edge(d), (before[0] * d, before[1] * -d), strict=True):
            np.testing.assert_allclose(found, np.atleast_1d(expected.sum(axis=axes)), atol=1e-13)
        before_update, state = game.log_z_of(d), game.state()
        assert state["rounds"] == t - 1
        np.testing.assert_allclose(before_update, log_z[-1], atol=1e-12)
        np.testing.assert_array_equal(game.update(d), before_update)
        for found, expected in zip(game.weights(), (plus, minus), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)
        cosh = 2 * np.cosh(eta * game.scores.astype(np.float64))
        total = np.atleast_1d(cosh.sum(axis=axes))
        np.testing.assert_allclose(np.exp(game.log_normaliser), total, rtol=1e-12)
        np.testing.assert_allclose((48 if joint else 12) * np.exp(np.sum(game.log_z, axis=0)), total, rtol=1e-12)


def test_split_form_by_hand():
    game = Game(2, 1, LN2)
    game.update(np.array([[1.0], [-1.0]]))  # K⁺ = (.1, .4), K⁻ = (.4, .1)
    plus, minus = game.split_edge(np.array([[-1.0], [2.0]]))
    assert plus == pytest.approx(0.7, rel=1e-14)  # .1 · −1 + .4 · 2
    assert minus == pytest.approx(0.2, rel=1e-14)  # .4 · 1 − .1 · 2
    assert game.edge(np.array([[-1.0], [2.0]])) == pytest.approx(0.9, rel=1e-14)
    plus, minus = game.split_edge(np.array([[1.0], [2.0]]))
    assert (plus.item(), minus.item()) == (pytest.approx(0.9), pytest.approx(-0.6))  # a sum of .3 that the split form refuses


@pytest.mark.parametrize("joint", [False, True])
def test_uniform_weights_see_no_edge_and_the_split_form_contradicts_itself(joint):
    d = np.random.default_rng(2).normal(size=(9, 3)) + 5
    game = Game(9, 3, 0.3, joint=joint, block=2)
    assert not game.edge(d).any()
    plus, minus = game.split_edge(d)
    np.testing.assert_array_equal(plus, -minus)
    assert (plus > 1).all()


@pytest.mark.parametrize("joint", [False, True])
def test_a_student_that_is_the_teacher_changes_nothing(joint):
    game = Game(4, 3, 0.9, joint=joint)
    before = game.weights()
    assert not game.update(np.zeros((4, 3))).any()
    assert not game.scores.any()
    assert not game.edge(np.zeros((4, 3))).any()
    for a, b in zip(before, game.weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not game.certificate().max_error.any()


@pytest.mark.parametrize("eta", [0.1, LN2, 3.0])
def test_two_students_on_either_side_take_turns(eta):
    game, errors = Game(1, 1, eta), []
    for _ in range(8):
        up = game.edge(np.array([[1.0]])) >= game.edge(np.array([[-1.0]]))
        game.update(np.array([[1.0 if up else -1.0]]))
        errors.append(game.certificate().max_error.item())
    assert errors == pytest.approx([1, 0, 1 / 3, 0, 1 / 5, 0, 1 / 7, 0])


@pytest.mark.parametrize(("eta", "size"), [(1.0, 200.0), (1e100, 3e38), (1e-100, 3e38)])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores_do_not_overflow(eta, size, joint, dtype):
    scores = np.float32([[size, -size], [-size, size], [0, size]])
    game = Game.of(scores, 1, eta, joint=joint, block=2)
    plus, minus = game.weights(dtype=dtype)
    for weights in (plus, minus):
        assert np.isfinite(weights).all()
        assert weights.dtype == dtype
    total = (plus + minus).sum(axis=None if joint else 0, dtype=np.float64)
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert np.isfinite(game.edge(np.full((3, 2), -1.0))).all()
    if eta == 1:
        share = 0.25 if joint else 0.5
        assert plus[1, 0] == pytest.approx(0.2 if joint else share, rel=1e-6)


def test_certificate_by_hand():
    game = play([np.array([[1.0, 3.0], [-2.0, 0.0]]), np.array([[1.0, -1.0], [0.0, 0.5]])], 0.5)  # S = (2, 2), (−2, .5)
    found = game.certificate()
    cosh = math.cosh
    assert found.rounds == 2
    assert found.max_error.tolist() == [1, 1]
    assert found.mean_error.tolist() == [1, 0.625]
    assert found.bound == pytest.approx([math.log(4 * cosh(1)), math.log(2 * cosh(1) + 2 * cosh(0.25))], rel=1e-14)  # ηt = 1
    joint = play([game.scores.copy()], 0.5, joint=True).certificate()
    expected = math.log(6 * cosh(1) + 2 * cosh(0.25)) / 0.5
    assert joint.bound == pytest.approx([expected, expected], rel=1e-14)
    assert joint.max_error.tolist() == [2, 2]
    assert joint.mean_error.tolist() == [2, 1.25]


def test_permutations_of_samples_and_outputs():
    rng = np.random.default_rng(3)
    ds = [rng.normal(size=(8, 5)).astype(np.float32) for _ in range(3)]
    rows, columns = rng.permutation(8), rng.permutation(5)
    game, by_rows, by_columns = (play(x, block=3) for x in (ds, [d[rows] for d in ds], [d[:, columns] for d in ds]))
    for whole, permuted, other in zip(game.weights(), by_rows.weights(), by_columns.weights(), strict=True):
        np.testing.assert_allclose(permuted, whole[rows], rtol=1e-13)
        np.testing.assert_array_equal(other, whole[:, columns])
    np.testing.assert_array_equal(by_rows.scores, game.scores[rows])
    np.testing.assert_array_equal(by_columns.edge(ds[0][:, columns]), game.edge(ds[0])[columns])


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_results_do_not_depend_on_the_block(joint, block):
    rng = np.random.default_rng(4)
    ds = [5 * rng.normal(size=(11, 3)) for _ in range(4)]
    one, other = play(ds, joint=joint, block=11), play(ds, joint=joint, block=block)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_allclose(one.log_z, other.log_z, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.edge(ds[0]), other.edge(ds[0]), rtol=1e-12)
    for field in ("bound", "max_error", "mean_error"):
        np.testing.assert_allclose(getattr(one.certificate(), field), getattr(other.certificate(), field), rtol=1e-12)
    parts = list(other.weight_blocks())
    assert [part[0] for part in parts] == [slice(a, min(a + other.block, 11)) for a in range(0, 11, other.block)]
    for which, whole in enumerate(one.weights(), 1):
        np.testing.assert_allclose(np.concatenate([part[which] for part in parts]), whole, rtol=1e-12)


def test_weights_of_some_rows():
    game = play([np.random.default_rng(5).normal(size=(7, 2))], block=2)
    whole = game.weights()
    mask = np.array([True, False, True, True, False, False, True])
    for rows in (slice(1, 6, 2), slice(None), [4, 0, 4], np.array([], np.int64), mask, np.arange(7)[::-1]):
        for part, all_rows in zip(game.weights(rows, np.float32), whole, strict=True):
            assert part.dtype == np.float32
            np.testing.assert_array_equal(part, all_rows[rows].astype(np.float32))
    assert all(part.dtype == np.float32 for _, *parts in game.weight_blocks(np.float32) for part in parts)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_is_taken_and_summed_in_float32(dtype):
    d = np.array([[0.1, -3.0], [7.0, 0.2]], dtype)
    game = play([d, d])
    once = d.astype(np.float32)
    np.testing.assert_array_equal(game.scores, (once.astype(np.float64) + d).astype(np.float32))
    assert game.scores.dtype == np.float32


def test_d_may_be_the_scores_themselves():
    start = np.random.default_rng(6).normal(size=(5, 2)).astype(np.float32)
    game = play([start], block=2)
    game.update(game.scores[::-1])  # a view whose later rows are written before they are read
    np.testing.assert_array_equal(game.scores, start + start[::-1])
    game.update(-game.scores)
    assert not game.scores.any()
    assert game.log_normaliser == pytest.approx(math.log(10), rel=1e-14)


def test_what_is_handed_out_is_not_the_games_own():
    game = play([np.ones((2, 2))])
    before = game.edge(np.ones((2, 2)))
    game.log_normaliser[:] = 7
    game.log_z[0][:] = 7
    game.update(np.zeros((2, 2)))[:] = 7
    np.testing.assert_array_equal(game.edge(np.ones((2, 2))), before)
    np.testing.assert_array_equal(game.log_z[1], [0, 0])
    assert repr(game) == "Game(2 × 2, eta=0.7, round 2)"
    assert repr(Game(3, 1, 2, joint=True)) == "Game(3 × 1, joint, eta=2, round 0)"
