"""Fidelity of a student against closed forms, SciPy and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from quorate import metrics
from quorate.metrics import _checks

pytestmark = pytest.mark.deciding


def logits(rows=40, classes=5, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, classes)) * 3).astype(dtype), (rng.normal(size=(rows, classes)) * 3).astype(dtype)


def test_kl_of_two_bernoullis_and_its_direction():
    teacher, student = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    assert metrics.fidelity_kl(teacher, student) == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-14
    )
    assert metrics.fidelity_kl(student, teacher) == pytest.approx(
        0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-14
    )


@given(st.integers(1, 30), st.integers(2, 6), st.integers(0, 999), st.sampled_from([0.3, 1.0, 4.0]))
def test_kl_and_agreement_equal_scipy(rows, classes, seed, temperature):
    g, f = logits(rows, classes, seed)
    p, q = (scipy.special.softmax(z / temperature, -1) for z in (g, f))
    assert metrics.fidelity_kl(g, f, temperature) == pytest.approx(scipy.stats.entropy(p, q, axis=-1).mean(), rel=1e-9, abs=1e-12)
    assert metrics.fidelity_agreement(g, f) == np.mean([a.argmax() == b.argmax() for a, b in zip(g, f, strict=True)])
    assert metrics.fidelity_kl(g, f, temperature) >= 0


def test_constants_and_the_limits_of_temperature():
    g, f = logits()
    shifted = g + np.arange(40)[:, None]
    assert metrics.fidelity_kl(g, shifted) == pytest.approx(0, abs=1e-13)
    assert metrics.fidelity_kl(g, g) == 0
    assert metrics.fidelity_error(g, shifted, centred=True).max_error.max() == pytest.approx(0, abs=1e-12)
    assert metrics.fidelity_error(g, shifted).max_error.tolist() == pytest.approx([39.0] * 5)
    hot = (
        metrics.fidelity_kl(g, f, 1e4) * 1e8
    )  # → half the mean squared distance of the row-centred logits, over C (Hinton, §2.1)
    centred = (f - f.mean(-1, keepdims=True)) - (g - g.mean(-1, keepdims=True))
    assert hot == pytest.approx((centred**2).mean(-1).mean() / 2, rel=1e-3)
    assert metrics.fidelity_kl([[1e4, -1e4]], [[-1e4, 1e4]]) == pytest.approx(2e4)


def test_ties_go_to_the_lowest_class():
    assert metrics.fidelity_agreement([[1, 1], [0, 1], [2, 0]], [[3, 3], [1, 0], [1, 1]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_errors_by_loops_in_float64_and_over_blocks(centred, dtype, monkeypatch):
    monkeypatch.setattr(_checks, "BLOCK", 35)  # 7 of 40 rows at a time
    g, f = logits(dtype=dtype)
    found = metrics.fidelity_error(g, f, centred=centred)
    table = f.astype(np.float64) - g.astype(np.float64)
    if centred:
        table -= table.mean(-1, keepdims=True)
    np.testing.assert_allclose(found.max_error, [max(abs(v) for v in column) for column in table.T], rtol=1e-14)
    np.testing.assert_allclose(found.mean_error, [math.fsum(abs(v) for v in column) / 40 for column in table.T], rtol=1e-13)
    whole = metrics.fidelity_kl(g, f, 2.0), metrics.fidelity_agreement(g, f)
    monkeypatch.undo()
    assert whole == (pytest.approx(metrics.fidelity_kl(g, f, 2.0), rel=1e-13), metrics.fidelity_agreement(g, f))


def test_regression_has_one_output():
    found = metrics.fidelity_error([[1.0], [2.0], [4.0]], [[1.5], [2.0], [1.0]])
    assert (found.max_error.tolist(), found.mean_error.tolist()) == ([3.0], [pytest.approx(3.5 / 3)])


def test_bad_input_is_named_in_one_line():
    good = np.zeros((3, 2))
    broken = np.array([[0, 1], [np.nan, 0], [0, np.inf]])
    measures = (metrics.fidelity_kl, metrics.fidelity_agreement, metrics.fidelity_error)
    for measure in measures:
        for args, message in [
            ((good, good[:2]), r"student: expected the teacher's shape \(3, 2\), got \(2, 2\)"),
            ((good[0], good[0]), r"teacher: expected shape \(N, C\)"),
            ((good[:0], good[:0]), "teacher: expected shape"),
            ((np.zeros((2, 3, 2)), np.zeros((2, 3, 2))), "average members first"),
            ((broken, good), "teacher: expected finite class scores, got NaN or infinity in rows 1, 2"),
            ((good, broken), "student: expected finite class scores"),
            ((good, [["a", "b"]] * 3), "student: expected real numbers"),
        ]:
            with pytest.raises(ValueError, match=message) as caught:
                measure(*args)
            assert "\n" not in str(caught.value)
    for measure in (metrics.fidelity_kl, metrics.fidelity_agreement, lambda g, f: metrics.fidelity_error(g, f, centred=True)):
        with pytest.raises(ValueError, match="2 outputs"):
            measure(good[:, :1], good[:, :1])
    for temperature in (0, -1.0, math.nan, math.inf, "hot"):
        with pytest.raises(ValueError, match=r"temperature=.*expected a finite number"):
            metrics.fidelity_kl(good, good, temperature)
