"""Weights of students against closed forms and brute force, and the rule that keeps the mean unless weights are validated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quorate.distil import combining
from quorate.distil.combining import Combination, prefix_matrix, student_weights


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def values(outputs: Any, target: Any, **options: Any) -> Combination:
    return student_weights(outputs, kind="values", teacher=target, **options)


def noisy(variances: list[float], rows: int = 4000, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Students that are the target plus independent noise: the least squares weights are ∝ 1/variance."""
    target = rng(seed).normal(size=(rows, 2))
    noise = rng(seed + 1).normal(size=(len(variances), rows, 2)) * np.sqrt(variances)[:, None, None]
    return target + noise, target


def nll(weights: NDArray, logits: NDArray, labels: NDArray) -> NDArray:
    z = np.tensordot(weights, logits, 1)
    return np.log(np.exp(z).sum(1)) - z[np.arange(len(labels)), labels]


def simplex(steps: int) -> NDArray:
    """All weights of three students in steps of 1/steps."""
    a, b = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1))
    keep = a + b <= steps
    return np.stack([a[keep], b[keep], (steps - a - b)[keep]], 1) / steps


def test_inverse_variances() -> None:
    found = values(*noisy([1.0, 0.25, 4.0]))
    assert found.chosen == "weighted"
    assert found.objective == "squared error"
    np.testing.assert_allclose(found.weights, np.array([4, 16, 1]) / 21, atol=0.02)
    assert found.weighted_loss == pytest.approx(1 / (1 + 4 + 0.25), rel=0.05)
    assert found.uniform_loss == pytest.approx(5.25 / 9, rel=0.05)
    assert found.gain == pytest.approx(found.uniform_loss - found.weighted_loss)
    assert 0 < found.standard_error < 0.1 * found.gain
    assert found.prefix_gains[0] == 0


def test_two_students_by_hand() -> None:
    target = np.zeros((4, 1))
    outputs = np.array([[1.0, 1, 1, 1], [-3.0, -3, -3, -3]])[..., None]
    found = values(outputs, target, folds=2)
    np.testing.assert_allclose(found.weights, [0.75, 0.25], atol=1e-12)  # 0.75 · 1 − 0.25 · 3 = 0
    assert found.chosen == "weighted"
    assert (found.uniform_loss, found.weighted_loss, found.standard_error) == (1.0, pytest.approx(0), pytest.approx(0))
    outside = values(np.abs(outputs), target, folds=2)  # both above: all on the nearer, least squares would want w₂ < 0
    np.testing.assert_allclose(outside.weights, [1, 0], atol=1e-12)


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-6, 1.0, 1e6]), classes=st.booleans())
@pytest.mark.slow
def test_squares_are_least_on_the_simplex(seed: int, scale: float, classes: bool) -> None:
    r = rng(seed)
    outputs, target = r.normal(size=(3, 6, 2)) * scale, r.normal(size=(6, 2)) * scale
    outputs[1] = target + r.normal() * (outputs[1] - target)
    fitted = student_weights(outputs, kind="logits" if classes else "values", teacher=target, folds=3).fitted
    d = outputs - target
    d = d - d.mean(-1, keepdims=True) if classes else d
    loss = [np.square(np.tensordot(w, d, 1)).mean() for w in (*simplex(40), fitted)]
    assert fitted.sum() == pytest.approx(1)
    assert (fitted >= 0).all()
    assert loss[-1] <= min(loss[:-1]) * (1 + 1e-9) + 1e-15 * scale**2


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.01, 1.0, 30.0]))
@pytest.mark.slow
def test_likelihood_is_greatest_on_the_simplex(seed: int, scale: float) -> None:
    r = rng(seed)
    logits, labels = r.normal(size=(3, 8, 4)) * scale, r.integers(0, 4, 8)
    fitted = student_weights(logits, kind="logits", labels=labels, folds=2).fitted
    loss = [nll(w, logits, labels).mean() for w in (*simplex(30), fitted)]
    assert fitted.sum() == pytest.approx(1)
    assert (fitted >= 0).all()
    assert loss[-1] <= min(loss[:-1]) + 1e-5 * scale


def test_likelihood_weighs_the_informed_student_and_ignores_constants() -> None:
    labels = rng().integers(0, 5, 600)
    logits = rng(1).normal(size=(3, 600, 5))
    logits[2, np.arange(600), labels] += 3
    found = student_weights(logits, kind="logits", labels=labels)
    assert (found.chosen, found.objective) == ("weighted", "nll")
    assert found.weights[2] > 0.8
    assert found.uniform_loss == pytest.approx(nll(np.full(3, 1 / 3), logits, labels).mean())
    moved = student_weights(logits + rng(2).normal(size=(3, 600, 1)), kind="logits", labels=labels)
    np.testing.assert_allclose(moved.weights, found.weights, atol=1e-5)


def test_the_evidence_is_out_of_fold() -> None:
    outputs, target = noisy([1.0, 0.3, 2.0], rows=30)
    found = values(outputs, target, folds=3, seed=5)
    fold = rng(5).permutation(30) % 3
    saved = np.empty((3, 30))
    for k in range(3):
        held = fold == k
        w = values(outputs[:, ~held], target[~held], folds=2).fitted
        for t in (1, 2, 3):
            for sign, weights in ((-1, w[:t] / w[:t].sum()), (1, np.full(t, 1 / t))):
                part = sign * np.square(np.tensordot(weights, outputs[:t, held], 1) - target[held]).mean(1)
                saved[t - 1, held] = part if sign < 0 else saved[t - 1, held] + part
    np.testing.assert_allclose(found.prefix_gains, saved.mean(1), atol=1e-12)
    np.testing.assert_allclose(found.prefix_errors, saved.std(1, ddof=1) / np.sqrt(30), atol=1e-12)
    assert values(outputs, target, folds=3, seed=6).gain != found.gain


def test_a_gain_within_the_noise_leaves_the_mean() -> None:
    for seed in range(5):
        found = values(*noisy([1.0] * 6, rows=40, seed=10 * seed))
        assert found.chosen == ("weighted" if found.gain > found.standard_error else "uniform")
        if found.chosen == "uniform":
            np.testing.assert_array_equal(found.weights, np.full(6, 1 / 6))
            assert not np.array_equal(found.fitted, found.weights)
    assert found.chosen == "uniform"


def test_a_gain_that_costs_a_prefix_is_refused_unless_asked_for() -> None:
    errors = np.array(
        [[1.0, 0.0], [-1.0, 0.1], [2.0, -0.3]]
    )  # (0.2, 0.6, 0.2) ends at 0, yet the first two alone balance by halves
    outputs = np.repeat(errors[:, None], 8, 1)
    free = values(outputs, np.zeros((8, 2)), every_prefix=False)
    np.testing.assert_allclose(free.weights, [0.2, 0.6, 0.2], atol=1e-9)
    uniform, weighted = [0.5, 0.00125, 2.02 / 9], [0.5, (0.25 + 0.075**2) / 2, 0]
    np.testing.assert_allclose(free.prefix_gains, np.subtract(uniform, weighted), atol=1e-9)
    careful = values(outputs, np.zeros((8, 2)))
    assert (free.chosen, careful.chosen) == ("weighted", "uniform")
    np.testing.assert_array_equal(careful.weights, np.full(3, 1 / 3))
    np.testing.assert_array_equal(careful.fitted, free.weights)
    np.testing.assert_allclose(free.prefix(2), [0.25, 0.75], atol=1e-9)


@pytest.mark.parametrize("objective", ["teacher", "labels"])
def test_degenerate_students(objective: str) -> None:
    target: Any = rng().normal(size=(20, 3)) if objective == "teacher" else np.arange(20) % 3
    one = rng(1).normal(size=(20, 3))
    for students in ([one], [one, one, one], [0 * one, 0 * one], [one, one + 2]):
        found = student_weights(np.stack(students), kind="logits", **{objective: target})
        assert found.chosen == "uniform"
        np.testing.assert_array_equal(found.weights, np.full(len(students), 1 / len(students)))
        assert found.gain == pytest.approx(0, abs=1e-9)
    if objective == "teacher":  # students that are the teacher, up to what softmax ignores
        for students in ([target, target], [target, target + 1], [target, target + 1e3 * one[:, :1]]):
            exact = student_weights(np.stack(students), kind="logits", teacher=target)
            assert (exact.chosen, exact.uniform_loss) == ("uniform", pytest.approx(0, abs=1e-20))
        with_one = student_weights(np.stack([0 * one, target, one]), kind="logits", teacher=target)
        np.testing.assert_allclose(with_one.weights, [0, 1, 0], atol=1e-9)
        np.testing.assert_array_equal(with_one.prefix(1), [1])


def test_targets_of_a_regression_are_as_a_teacher() -> None:
    outputs, target = noisy([1.0, 0.25], rows=50)
    by_labels = student_weights(outputs, kind="values", labels=target)
    np.testing.assert_array_equal(by_labels.weights, values(outputs, target).weights)
    one = student_weights(outputs[..., :1].astype(np.float32), kind="values", labels=target[:, 0])
    np.testing.assert_allclose(one.fitted, values(outputs[..., :1], target[:, :1]).fitted, atol=1e-6)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, target = noisy([1.0, 0.25, 3.0], rows=50)
    labels = target.argmax(1)
    whole = values(outputs, target), student_weights(outputs, kind="logits", labels=labels)
    monkeypatch.setattr(combining, "BLOCK_VALUES", 43)  # 7 rows at a time
    parts = values(outputs, target), student_weights(outputs, kind="logits", labels=labels)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.fitted, b.fitted, atol=1e-6)
        np.testing.assert_allclose(a.prefix_gains, b.prefix_gains, atol=1e-6)


def test_prefixes_of_weights() -> None:
    half = 0.5
    np.testing.assert_allclose(
        prefix_matrix([0.0, 0.0, 0.2, 0.6]), [[1, 0, 0, 0], [half, half, 0, 0], [0, 0, 1, 0], [0, 0, 0.25, 0.75]]
    )
    np.testing.assert_allclose(prefix_matrix([0.0, 0.0]), [[1, 0], [half, half]])
    np.testing.assert_allclose(prefix_matrix([5e-324, 5e-324]), [[1, 0], [half, half]])
    np.testing.assert_allclose(prefix_matrix([1e308, 1e308]), [[1, 0], [half, half]])


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=7))
def test_prefixes_are_means(weights: list[float]) -> None:
    lower = prefix_matrix(weights)
    assert (lower >= 0).all()
    np.testing.assert_allclose(lower.sum(1), 1)
    assert (np.triu(lower, 1) == 0).all()
    w = np.array(weights) / (max(weights) or 1)
    for t in range(1, len(w) + 1):
        if w[:t].sum() > 0:
            np.testing.assert_allclose(lower[t - 1, :t] * w[:t].sum(), w[:t], atol=1e-12)


OUT, TARGET = np.zeros((2, 6, 3)), np.zeros((6, 3))
NAN = np.where(np.arange(6)[:, None] == 4, np.nan, TARGET)
BAD: dict[str, tuple[Any, str]] = {
    "kind": (lambda: student_weights(OUT, kind="logit", teacher=TARGET), "unknown kind 'logit'; did you mean 'logits'"),  # type: ignore[arg-type]
    "neither": (lambda: student_weights(OUT, kind="logits"), "neither of teacher and labels given: expected exactly one"),
    "both": (lambda: values(OUT, TARGET, labels=TARGET), "both of teacher and labels given"),
    "two axes": (lambda: values(TARGET, TARGET), r"outputs have shape \(6, 3\): expected \(students, rows, outputs\)"),
    "none": (lambda: values(OUT[:0], TARGET), r"outputs has shape \(0, 6, 3\)"),
    "integers": (lambda: values(OUT.astype(int), TARGET), "outputs has dtype int64: expected float16, float32 or float64"),
    "nan": (lambda: values(np.stack([TARGET, NAN]), TARGET), "outputs has NaN or infinite values in rows 4"),
    "teacher's nan": (lambda: values(OUT, NAN), "teacher has NaN or infinite values in rows 4"),
    "teacher's shape": (lambda: values(OUT, TARGET[:, :2]), r"teacher has shape \(6, 2\): expected \(6, 3\), as each student's"),
    "teacher's dtype": (lambda: values(OUT, TARGET.astype(int)), "teacher has dtype int64: expected float16"),
    "labels": (lambda: student_weights(OUT, kind="logits", labels=[0, 1, 2, 3, 0, 1]), "labels out of range in rows 3"),
    "label floats": (lambda: student_weights(OUT, kind="logits", labels=TARGET[:, 0]), "labels are float64 of shape"),
    "targets": (lambda: student_weights(OUT, kind="values", labels=TARGET[:5]), r"expected numbers of shape \(6, 3\)"),
    "one fold": (lambda: values(OUT, TARGET, folds=1), "folds=1 of 6 rows: expected an integer in 2 … 6"),
    "many folds": (lambda: values(OUT, TARGET, folds=7), "folds=7 of 6 rows: expected an integer in 2 … 6"),
    "seed": (lambda: values(OUT, TARGET, seed=-1), "seed=-1: expected an integer ≥ 0"),
    "weights": (lambda: prefix_matrix([0.5, -0.5]), r"weights \[0.5, -0.5\]: expected \(students,\) finite numbers ≥ 0"),
    "no weights": (lambda: prefix_matrix([]), r"weights \[\]: expected"),
    "prefix": (lambda: values(OUT, TARGET).prefix(3), r"prefix\(3\): expected a number of students in 1 … 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
