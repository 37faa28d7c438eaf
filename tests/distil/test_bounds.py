"""Bounds against hand-worked values, their own optimum, the game's value by linear programming, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog

from quorate.distil.bounds import best_eta, convergence, generalisation, held_out_error, infeasibility
from quorate.distil.game import Game


def test_convergence_by_hand():
    assert best_eta(2.0, 50, 8) == pytest.approx(math.sqrt(2 * math.log(100) / 8) / 2, rel=1e-15)
    at_best = 2 * math.sqrt(2 * math.log(100) / 8)
    assert convergence(2.0, 50, 8) == pytest.approx(at_best, rel=1e-14)
    assert convergence(2.0, 50, 8, mean_edge=[0.0, 0.5]) == pytest.approx([at_best, at_best - 0.5], rel=1e-14)
    assert convergence(3.0, 50, 8, eta=0.25) == pytest.approx(math.log(100) / 2 + 0.25 * 9 / 2, rel=1e-14)
    assert convergence(3.0, 50, 8, eta=0.25, mean_edge=1) == pytest.approx(math.log(100) / 2 + 0.125, rel=1e-14)


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(1, 10**9), st.integers(1, 1000), st.floats(0.1, 10))
def test_no_step_is_better_than_the_best(bound, entries, rounds, factor):
    eta = best_eta(bound, entries, rounds)
    least = convergence(bound, entries, rounds)
    assert convergence(bound, entries, rounds, eta=eta) == pytest.approx(least, rel=1e-12)
    assert convergence(bound, entries, rounds, eta=factor * eta) >= least * (1 - 1e-12)


def test_generalisation_by_hand():
    error = [0.5, 0.25, 0.125]
    deviation = 4 * math.sqrt(math.log(3 / 0.1) / 400)
    assert generalisation(error, 0.01, 4.0, 200, 0.1) == pytest.approx([e + 0.02 + deviation for e in error], rel=1e-14)
    assert generalisation(error, [0.0, 0.1, 1.0], 4.0, 200, 0.1)[2] == pytest.approx(0.125 + 2 + deviation, rel=1e-14)
    assert generalisation([0.5], 0, 4.0, 200) == pytest.approx([0.5 + 4 * math.sqrt(math.log(20) / 400)], rel=1e-14)


@pytest.mark.parametrize("form", ["array", "blocks"])
@pytest.mark.parametrize("outputs", [1, 3, 50_000])
def test_held_out_error_is_the_empirical_bernstein_bound(form, outputs):
    rng = np.random.default_rng(0)
    difference = (2 + rng.normal(size=(7, outputs))) * rng.choice([-1, 1], (7, outputs))
    given_rows = difference if form == "array" else iter([difference[:1], difference[1:5], difference[5:5], difference[5:]])
    found = held_out_error(given_rows, 7, outputs, 2.5, 0.2)
    error = np.minimum(np.abs(difference), 2.5)
    log = math.log(2 * outputs / 0.2)
    upper = error.mean(axis=0) + np.sqrt(2 * error.var(axis=0, ddof=1) * log / 7) + 7 * 2.5 * log / (3 * 6)
    np.testing.assert_allclose(found.upper, np.minimum(upper, 2.5), rtol=1e-12)
    np.testing.assert_allclose(found.mean, np.abs(difference).mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found.beyond, (np.abs(difference) > 2.5).sum(axis=0))
    assert found.rows == 7


def test_held_out_error_where_the_bound_bites():
    error = np.tile([[0.5], [-1.0], [0.0], [1.0], [0.5]], (2000, 1))
    found = held_out_error(error, 10_000, 1, 1.0, 0.1)
    variance, log = 0.14 * 10_000 / 9_999, math.log(20)
    assert found.mean == pytest.approx([0.6], rel=1e-12)
    assert found.upper == pytest.approx(0.6 + math.sqrt(2 * variance * log / 10_000) + 7 * log / (3 * 9_999), rel=1e-12)
    assert found.beyond.tolist() == [0]


def test_held_out_error_covers_the_expectation_of_every_output_at_once():
    rng, missed = np.random.default_rng(1), 0
    for _ in range(300):
        error = rng.random((400, 3)) * [1.0, 0.1, 0.01]
        missed += (held_out_error(error, 400, 3, 1.0, 0.2).upper < [0.5, 0.05, 0.005]).any()
    assert missed <= 60


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_infeasibility_is_below_the_games_value(data, n, students, teacher_reached):
    elements = st.floats(-2, 2, width=32)
    d = data.draw(arrays(np.float32, (students, n), elements=elements)).astype(np.float64)
    game = Game(n, 1, 0.6)
    game.update(data.draw(arrays(np.float32, (n, 1), elements=elements)))
    if teacher_reached:
        d[0] = 0
    found = infeasibility([game.edge(row[:, None]) for row in d])
    # v = min over p ≥ 0, Σ p = 1 of max_i |Σ_f p_f d_f(i)|
    rows = np.concatenate([np.c_[d.T, -np.ones(n)], np.c_[-d.T, -np.ones(n)]])
    solved = linprog(
        [0.0] * students + [1.0],
        A_ub=rows,
        b_ub=np.zeros(2 * n),
        A_eq=[[1.0] * students + [0.0]],
        b_eq=[1.0],
        bounds=[(0, None)] * (students + 1),
    )
    assert 0 <= found.item() <= solved.fun + 1e-7


def test_infeasibility_by_hand():
    edges = [[-0.5, 0.25, -2.0], [-0.75, -1.0, -1.0]]
    assert infeasibility(edges).tolist() == [0.5, 0.0, 1.0]
    game = Game(1, 1, 30.0)  # one sample, a class that is 1 too high or more: K⁻ is all the weight, the bound is tight
    game.update(np.ones((1, 1)))
    assert infeasibility([game.edge(np.array([[c]])) for c in (1.0, 3.0)]) == pytest.approx([1.0], rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_eta(0, 5, 2), "bound=0: expected a number from 1e-100 to 1e100"),
        (lambda: best_eta(math.nan, 5, 2), "bound=nan: expected"),
        (lambda: best_eta(1.0, 0, 2), "entries=0: expected a whole number ≥ 1"),
        (lambda: best_eta(1.0, 5, 0.5), "rounds=0.5: expected a whole number ≥ 1"),
        (lambda: convergence(1.0, 5, 2, eta=-1), "eta=-1: expected a number from 1e-100"),
        (lambda: convergence(1.0, 5, 2, mean_edge=[math.inf]), "mean_edge has NaN or infinite values: expected finite numbers"),
        (lambda: convergence(1.0, 5, 2, mean_edge="many"), "mean_edge is not an array of numbers: give floats"),
        (lambda: generalisation([0.1], 0.1, 1.0, 5, 1.0), "delta=1.0: expected a number above 0 and below 1"),
        (lambda: generalisation([0.1], 0.1, 1.0, 5, 0.0), "delta=0.0: expected"),
        (lambda: generalisation([0.1], 0.1, -1.0, 5), "bound=-1.0: expected"),
        (lambda: generalisation([0.1], 0.1, 1.0, 0), "samples=0: expected a whole number"),
        (lambda: generalisation(0.1, 0.1, 1.0, 5), r"error of shape \(\), complexity \(\): expected \(L,\), and one or \(L,\)"),
        (lambda: generalisation([], 0.1, 1.0, 5), r"error of shape \(0,\)"),
        (lambda: generalisation([0.1, 0.2], [0.1], 1.0, 5), r"complexity \(1,\): expected"),
        (lambda: generalisation([-0.1], 0.1, 1.0, 5), "none below 0"),
        (lambda: generalisation([0.1], -0.1, 1.0, 5), "none below 0"),
        (lambda: generalisation([math.nan], 0.1, 1.0, 5), "error has NaN"),
        (lambda: generalisation([0.1], math.nan, 1.0, 5), "complexity has NaN"),
        (lambda: held_out_error(np.zeros((1, 2)), 1, 2, 1.0), "rows=1: expected a whole number ≥ 2"),
        (lambda: held_out_error(np.zeros((2, 2)), 2, 0, 1.0), "outputs=0: expected a whole number ≥ 1"),
        (lambda: held_out_error(np.zeros((2, 2)), 2, 2, 0.0), "limit=0.0: expected a number from"),
        (lambda: held_out_error(np.zeros((2, 2)), 2, 2, 1.0, 2), "delta=2: expected a number above 0 and below 1"),
        (lambda: held_out_error(np.zeros((2, 3)), 2, 2, 1.0), r"difference has shape \(2, 3\): expected \(2, 2\)"),
        (lambda: held_out_error(np.float32([[1], [np.nan]]), 2, 1, 1.0), "difference has NaN or infinite values in rows 1: mend"),
        (lambda: infeasibility([1.0]), r"edges have shape \(1,\): expected \(students, outputs\)"),
        (lambda: infeasibility(np.zeros((0, 2))), r"edges have shape \(0, 2\)"),
        (lambda: infeasibility([[math.nan]]), "edges has NaN or infinite values"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
