"""What holds of the game for any learners: the certificate, the bound of theory at edges ≥ 0, normalised weights, ln C in any block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp

from quorate.distil.bounds import best_eta, convergence
from quorate.distil.game import Game
from quorate.distil.weighing import LogCosh

SIZES = st.tuples(st.integers(1, 8), st.integers(1, 3))


def learners(data, shape, rounds, largest):
    elements = st.floats(-largest, largest, width=32)
    return data.draw(arrays(np.float32, (rounds, *shape), elements=elements))


@settings(deadline=None, max_examples=60)
@given(st.data(), SIZES, st.integers(1, 6), st.floats(1e-3, 50), st.booleans(), st.integers(1, 4))
def test_certificate_holds_for_any_learners(data, shape, rounds, eta, joint, block):
    game = Game(*shape, eta, joint=joint, block=block)
    for d in learners(data, shape, rounds, 1000.0):
        game.update(d)
        found = game.certificate()
        score = np.abs(game.scores.astype(np.float64))
        np.testing.assert_allclose(found.max_error, score.max(axis=0) / game.rounds, rtol=1e-12)
        np.testing.assert_allclose(found.mean_error, score.mean(axis=0) / game.rounds, rtol=1e-12)
        assert (found.max_error <= found.bound * (1 + 1e-12)).all()
        log_z = np.sum(game.log_z, axis=0)
        entries = shape[0] * shape[1] if joint else shape[0]
        expected = np.broadcast_to(np.log(2 * entries) + log_z, shape[1])
        np.testing.assert_allclose(found.bound * eta * game.rounds, expected, rtol=1e-9, atol=1e-9)
        for weights in game.weights():
            assert ((weights >= 0) & (weights <= 1 + 1e-12)).all()
        np.testing.assert_allclose(sum(k.sum(axis=None if joint else 0) for k in game.weights()), 1, rtol=1e-10)


@settings(deadline=None, max_examples=60)
@given(st.data(), SIZES, st.integers(1, 12), st.sampled_from([0.25, 1.0, 40.0]), st.sampled_from([None, 0.3, 2.0]), st.booleans())
def test_learners_with_edges_keep_the_bound_of_theory(data, shape, rounds, bound, factor, joint):
    entries = shape[0] * shape[1] if joint else shape[0]
    eta = best_eta(bound, entries, rounds) * (factor or 1)
    game, edges = Game(*shape, eta, joint=joint), []
    for d in learners(data, shape, rounds, bound):
        good = d * np.where(game.edge(d) < 0, -1, 1)  # per output, in the joint game as a whole
        edges.append(game.edge(good))
        assert (edges[-1] >= 0).all()
        game.update(good)
    limit = convergence(bound, entries, rounds, eta=None if factor is None else eta, mean_edge=np.mean(edges, axis=0))
    assert (game.certificate().max_error <= limit + 1e-6 * bound).all()
    assert (game.certificate().bound <= limit + 1e-6 * bound).all()  # the certificate is never the weaker one


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1.0, 100.0, 1e30, 1e300]))
def test_log_normaliser_is_scipys(data, n, outputs, block, scale):
    u = data.draw(arrays(np.float64, (n, outputs), elements=st.floats(-1, 1))) * scale
    total = LogCosh(outputs)
    for start in range(0, n, block):
        total.add_(u[start : start + block].copy())
    both = np.concatenate([u, -u])
    np.testing.assert_allclose(total.value(False).total, logsumexp(both, axis=0), rtol=1e-13)
    np.testing.assert_allclose(total.value(True).total, [logsumexp(both)], rtol=1e-13)


@settings(deadline=None, max_examples=40)
@given(st.data(), SIZES, st.booleans())
def test_edge_is_linear_and_is_the_slope_of_ln_z(data, shape, joint):
    eta, step = 0.8, 2.0**-14
    first, a, b = learners(data, shape, 3, 2.0).astype(np.float64)
    game = Game(*shape, eta, joint=joint)
    game.update(first)
    np.testing.assert_allclose(game.edge(3 * a - b), 3 * game.edge(a) - game.edge(b), atol=1e-12)
    plus, minus = game.weights()
    z = [(plus * np.exp(-eta * s * a) + minus * np.exp(eta * s * a)).sum(axis=None if joint else 0) for s in (step, -step)]
    slope = np.atleast_1d(np.log(z[0]) - np.log(z[1])) / (2 * step)
    np.testing.assert_allclose(slope, -eta * game.edge(a), atol=1e-6)


def test_weights_of_the_joint_game_lean_towards_the_worst_output():
    d = np.array([[0.5, -4.0], [0.25, 1.0]])
    apart, joint = Game(2, 2, 1.0), Game(2, 2, 1.0, joint=True)
    for game in (apart, joint):
        game.update(d)
    assert sum(apart.weights())[:, 0].sum() == pytest.approx(1)
    assert sum(joint.weights())[:, 0].sum() < 0.1
