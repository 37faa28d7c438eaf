"""Every measure against SciPy and float64 closed forms, and what each refuses."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from quorate.cascade import uncertainty
from quorate.cascade.uncertainty import MEASURES, fresh, measure, score
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

SCALED = ("msp", "entropy", "margin")
PUBLIC = {name: getattr(uncertainty, name) for name in MEASURES}


def reference(name: str, z: np.ndarray, combine: str, temperature: float) -> np.ndarray:
    """The table of the module, in plain float64."""
    z = z.astype(np.float64)
    each = scipy.special.softmax(z, -1)
    if combine == "logits":
        z = z.mean(0, keepdims=True)
    mean = scipy.special.softmax(z, -1).mean(0)
    p = scipy.special.softmax(np.log(mean) / temperature, -1)
    top = np.sort(p, -1)[:, ::-1]
    votes = np.eye(z.shape[-1])[each.argmax(-1)].mean(0)
    return {
        "msp": lambda: 1 - p.max(-1),
        "entropy": lambda: scipy.stats.entropy(p, axis=-1),
        "margin": lambda: 1 - (top[:, 0] - top[:, 1]),
        "energy": lambda: -scipy.special.logsumexp(z, -1).mean(0),
        "max_logit": lambda: -z.max(-1).mean(0),
        "mutual_information": lambda: scipy.stats.entropy(mean, axis=-1) - scipy.stats.entropy(each, axis=-1).mean(0),
        "variation_ratio": lambda: 1 - votes.max(-1),
    }[name]()


def logits(seed: int, m: int, rows: int, classes: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(m, rows, classes)) * scale).astype(np.float32)


# --- the formulas ----------------------------------------------------------------------------------------------------


@given(
    name=st.sampled_from(SCALED), seed=st.integers(0, 10**6), m=st.integers(1, 4), classes=st.integers(2, 12),
    combine=st.sampled_from(["probs", "logits"]), temperature=st.floats(0.2, 5), scale=st.sampled_from([0.1, 3.0, 20.0]),
)  # fmt: skip
def test_measures_of_the_joined_probabilities(
    name: str, seed: int, m: int, classes: int, combine: Any, temperature: float, scale: float
) -> None:
    z = logits(seed, m, 8, classes, scale)
    expected = reference(name, z, combine, temperature)
    np.testing.assert_allclose(PUBLIC[name](z, combine=combine, temperature=temperature), expected, rtol=1e-9, atol=1e-12)
    if combine == "probs":
        p = scipy.special.softmax(z.astype(np.float64), -1)
        np.testing.assert_allclose(PUBLIC[name](p, kind="probs", temperature=temperature), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "combine"),
    [
        ("energy", "probs"), ("energy", "logits"), ("max_logit", "probs"), ("max_logit", "logits"),
        ("mutual_information", "probs"), ("variation_ratio", "probs"), ("variation_ratio", "logits"),
    ],
)  # fmt: skip
def test_measures_of_the_members(name: str, combine: Any) -> None:
    z = logits(1, 5, 50, 4)
    p = scipy.special.softmax(z.astype(np.float64), -1)
    logit_scores = name in ("energy", "max_logit")
    computed = [
        uncertainty.uncertainty(Outputs([z], combine=combine), name),
        PUBLIC[name](z, **({"combine": combine} if logit_scores else {})),
        *([] if logit_scores else [PUBLIC[name](p, kind="probs")]),
    ]
    for u in computed:
        np.testing.assert_allclose(u, reference(name, z, combine, 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_higher_means_less_sure(name: str) -> None:
    sure = [[9.0, 0, 0], [9.0, 0, 0], [9.0, 0, 0]]
    unsure = [[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]]
    u = PUBLIC[name](np.stack([sure, unsure], 1))
    assert u.shape == (2,)
    assert u.dtype == np.float64
    assert u[0] < u[1]


def test_hand_worked_values() -> None:
    p = np.array([[[0.5, 0.25, 0.25]], [[0.25, 0.75, 0]]])
    assert uncertainty.msp(p, kind="probs") == [0.5]
    assert uncertainty.margin(p, kind="probs") == [1 - (0.5 - 0.375)]
    assert uncertainty.variation_ratio(p, kind="probs") == [0.5]
    np.testing.assert_allclose(uncertainty.variation_ratio(np.eye(3)[[0, 0, 1], None]), [1 / 3])
    np.testing.assert_allclose(uncertainty.energy([[0.0, 0.0]]), [-np.log(2)])
    np.testing.assert_array_equal(uncertainty.max_logit(np.array([[[1, 5]], [[3, 2]]]), combine="logits"), [-3.5])
    np.testing.assert_array_equal(uncertainty.max_logit(np.array([[[1, 5]], [[3, 2]]])), [-4])


# --- where numbers end -----------------------------------------------------------------------------------------------


def test_saturated_logits_give_0_and_no_nan() -> None:
    z = np.array([[1000.0, 0.0], [-1000.0, 0.0]])
    for name in SCALED:
        np.testing.assert_array_equal(PUBLIC[name](z), [0, 0])
        np.testing.assert_array_equal(PUBLIC[name](z, temperature=0.01), [0, 0])
    np.testing.assert_array_equal(uncertainty.mutual_information(np.stack([z, z])), [0, 0])
    np.testing.assert_array_equal(uncertainty.energy(z), [-1000, 0])


def test_sure_rows_differ_below_the_rounding_of_1_minus_p() -> None:
    z = np.array([[40.0, 0, 0], [60.0, 0, 0], [200.0, 0, 0]])
    np.testing.assert_allclose(uncertainty.msp(z), 2 * np.exp([-40.0, -60, -200]), rtol=1e-12)
    np.testing.assert_allclose(uncertainty.margin(z), 3 * np.exp([-40.0, -60, -200]), rtol=1e-12)


@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from([1e-9, 1.0, 1e3]))
def test_ranges(seed: int, classes: int, scale: float) -> None:
    z = logits(seed, 3, 20, classes, scale)
    bounds = {
        "msp": 1 - 1 / classes,
        "margin": 1,
        "entropy": np.log(classes),
        "mutual_information": np.log(classes),
        "variation_ratio": 2 / 3,
    }
    for name, top in bounds.items():
        u = PUBLIC[name](z)
        assert u.min() >= 0
        assert u.max() <= top + 1e-12


def test_one_member_may_come_without_its_axis_and_whole_numbers_are_logits() -> None:
    z = logits(0, 1, 5, 3)
    np.testing.assert_array_equal(uncertainty.msp(z[0]), uncertainty.msp(z))
    np.testing.assert_array_equal(uncertainty.energy([[3, 1]]), uncertainty.energy([[3.0, 1.0]]))
    assert uncertainty.entropy(np.zeros((2, 0, 3))).shape == (0,)


# --- stored Outputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
def test_stored_outputs_are_measured_after_any_stage_and_beyond_one_block(name: str) -> None:
    stages = [logits(k, 2, 70_001, 3) for k in range(3)]
    outputs = Outputs(stages)
    for stop, members in ((1, stages[:1]), (2, stages[:2]), (None, stages)):
        expected = PUBLIC[name](np.concatenate(members))
        np.testing.assert_array_equal(uncertainty.uncertainty(outputs, name, stop), expected)
    if name in SCALED:
        expected = PUBLIC[name](stages[0], temperature=2.5)
        np.testing.assert_array_equal(uncertainty.uncertainty(outputs, name, 1, 2.5), expected)


def test_the_last_stage_alone_and_top1() -> None:
    stages = [logits(0, 1, 6, 3), logits(1, 2, 6, 3)]
    np.testing.assert_array_equal(uncertainty.uncertainty(Outputs(stages, combine="last")), uncertainty.msp(stages[1]))
    np.testing.assert_array_equal(uncertainty.uncertainty(Outputs(stages, combine="last"), stop=1), uncertainty.msp(stages[0]))
    top = Outputs([(np.array([1, 0]), np.array([0.25, 1.0])), (np.array([1, 1]), np.array([0.5, 0.75], np.float32))], kind="top1")
    np.testing.assert_array_equal(uncertainty.uncertainty(top), [0.5, 0.25])
    np.testing.assert_array_equal(uncertainty.uncertainty(top, stop=1), [0.75, 0])


def test_memory_is_bounded_on_large_outputs() -> None:
    values = [np.random.default_rng(k).normal(size=(1, 300_000, 10)).astype(np.float32) for k in range(2)]
    outputs = Outputs(values)
    for name in ("msp", "energy", "mutual_information"):
        tracemalloc.start()
        uncertainty.uncertainty(outputs, name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 4 * sum(value.nbytes for value in values)


# --- refusals --------------------------------------------------------------------------------------------------------

Z = logits(0, 2, 4, 3)
TOP = Outputs([(np.array([0, 1]), np.array([0.5, 0.5]))], kind="top1")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure("confidence"), "uncertainty 'confidence': expected one of msp, entropy, margin, energy, max_logit"),
        (lambda: measure("msp", "words"), "kind='words': expected one of logits, probs, top1"),  # type: ignore[arg-type]
        (lambda: measure("entropy", "top1"), "needs every class's score, top1 has only the winner's: use msp"),
        (lambda: measure("energy", "probs"), "'energy' is a score of logits, these are probabilities: use msp or entropy"),
        (lambda: measure("max_logit", "probs"), "is a score of logits"),
        (lambda: measure("msp", "values"), r"is for classification, these outputs are regression \(values\): give class scores"),
        (lambda: measure("msp", "gaussian"), "regression"),
        (lambda: fresh("msp", "top1", "probs"), "combine='probs' needs every class's score, top1 has only the winner's"),
        (lambda: fresh("mutual_information", "logits", "logits"), "this ensemble averages logits: use entropy"),
        (lambda: uncertainty.mutual_information(Z[:1]), "needs two or more members, there is one so far: use entropy"),
        (lambda: uncertainty.variation_ratio(Z[0]), "needs two or more members, there is one so far: use msp"),
        (lambda: uncertainty.margin(Z[..., :1]), "margin needs at least two classes: use msp"),
        (lambda: uncertainty.msp(Z, temperature=0), "temperature=0: expected a finite number > 0"),
        (lambda: uncertainty.msp(Z, temperature=-1), "expected a finite number > 0"),
        (lambda: uncertainty.msp(Z, temperature=np.inf), "expected a finite number > 0"),
        (lambda: uncertainty.msp(Z, temperature=np.nan), "expected a finite number > 0"),
        (lambda: uncertainty.msp(Z, kind="probs", combine="logits"), "combine='logits' needs members of kind 'logits'"),
        (lambda: uncertainty.msp(Z, kind="probs"), "members is not probabilities in rows 0, 1, 2, 3 .*give kind='logits'"),
        (lambda: uncertainty.msp(Z, kind="top1"), "kind='top1' has no scores of every class to take msp of"),
        (lambda: uncertainty.msp(Z, combine="median"), "combine='median': expected one of"),  # type: ignore[arg-type]
        (lambda: uncertainty.msp(Z[0, 0]), r"members has shape \(3,\): expected \(members, rows, classes\)"),
        (lambda: uncertainty.msp(Z[:0]), r"members has shape \(0, 4, 3\)"),
        (lambda: uncertainty.msp([["a", "b"]]), "members has dtype <U1: expected float16, float32 or float64"),
        (lambda: uncertainty.msp(np.where(np.arange(4)[:, None] == 2, np.nan, Z)), "NaN or infinite values in rows 2: mend"),
        (lambda: uncertainty.energy(np.where(np.arange(4)[:, None] % 2, -np.inf, Z)), "in rows 1, 3: mend or drop"),
        (lambda: uncertainty.uncertainty(Outputs([Z]), "energy", temperature=2), "does not act on energy of logits: leave it at 1"),
        (lambda: uncertainty.uncertainty(TOP, temperature=2), "temperature=2 does not act on msp of top1: leave it at 1"),
        (lambda: uncertainty.uncertainty(Outputs([Z]), temperature=0), "expected a finite number > 0"),
        (lambda: uncertainty.uncertainty(Outputs([Z]), stop=0), "stop=0: expected 1 … 1 stages"),
        (lambda: uncertainty.uncertainty(Outputs([Z]), stop=2), "stop=2: expected 1 … 1 stages"),
        (lambda: uncertainty.uncertainty(TOP, "margin"), "needs every class's score"),
        (lambda: uncertainty.uncertainty(Outputs([Z], kind="values")), "is for classification"),
    ],
)  # fmt: skip
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_score_takes_a_state_of_top1() -> None:
    state = fresh("msp", "top1", "last")
    state.add_((np.array([1]), np.array([0.25])))  # type: ignore[arg-type]
    assert score("msp", state) == [0.75]
