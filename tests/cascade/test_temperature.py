"""Temperatures against closed forms, finite differences, a grid and SciPy's minimiser; what they do inside policies."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from quorate import metrics
from quorate.cascade import Cascade, Policy, fit_temperature, simulate
from quorate.cascade.temperature import HIGH, LOW, TemperatureBoundWarning, nll_slope, temperature_of
from quorate.cascade.uncertainty import uncertainty
from quorate.combination import log_softmax
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding


def drawn(seed: int = 0, n: int = 300, signal: float = 2.0, scale: float = 9.0, stages: int = 2, **options: Any) -> Outputs:
    """Overconfident stages of 1, 2, … members."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    values = [scale * (signal * np.eye(4)[labels] + rng.normal(size=(m + 1, n, 4))) for m in range(stages)]
    if options.get("kind") == "probs":
        values = [np.exp(log_softmax(v)) for v in values]
    return Outputs(values, labels=labels, **options)


def nll(outputs: Outputs, temperature: float, stop: int | None = None) -> float:
    """NLL of the joined prediction at a temperature, written out."""
    members = np.concatenate([np.asarray(v, np.float64) for v in outputs.until(stop)])
    if outputs.combine == "last":
        members = np.asarray(outputs.until(stop)[-1], np.float64)
    if outputs.combine == "logits":
        joined = members.mean(0)
    else:
        joined = np.log((members if outputs.kind == "probs" else np.exp(log_softmax(members))).mean(0))
    said = log_softmax(joined / temperature)
    return float(-said[np.arange(outputs.n), outputs.truth()].mean())


@pytest.mark.parametrize(("gap", "right"), [(4.0, 0.75), (0.3, 0.75), (1.0, 0.51), (-2.0, 0.2)])
def test_two_classes_with_one_gap_have_a_closed_form(gap: float, right: float) -> None:
    labels = np.arange(200) >= 200 * right  # σ(gap / T) = share of class 0
    found = temperature_of(np.tile([gap, 0.0], (200, 1)), labels.astype(int))
    assert found == pytest.approx(gap / math.log(right / (1 - right)), rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"combine": "logits"}, {"kind": "probs"}, {"combine": "last"}])
@pytest.mark.parametrize("stop", [1, 2, None])
def test_against_scipys_minimiser_and_a_grid(options: dict[str, Any], stop: int | None) -> None:
    outputs = drawn(1, stages=3, **options)
    found = fit_temperature(outputs, stop)
    best = minimize_scalar(lambda t: nll(outputs, math.exp(t), stop), bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(math.exp(best.x), rel=1e-5)
    assert abs(found - 1) > 0.01
    grid = [nll(outputs, t, stop) for t in np.geomspace(LOW, HIGH, 200)]
    assert nll(outputs, found, stop) <= min(grid) + 1e-12


@given(st.integers(0, 10_000), st.integers(2, 30), st.floats(0.05, 20.0), st.floats(-1.0, 3.0))
def test_nothing_in_the_bounds_is_better(seed: int, n: int, scale: float, signal: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    scores = scale * (signal * np.eye(3)[labels] + rng.normal(size=(n, 3)))

    def loss(t: float) -> float:
        return float(-log_softmax(scores / t)[np.arange(n), labels].mean())

    found = temperature_of(scores, labels)
    assert LOW <= found <= HIGH
    least = min(loss(t) for t in np.geomspace(LOW, HIGH, 60))
    assert loss(found) <= least + 1e-9 * max(1.0, least)
    assert temperature_of(scores + rng.normal(size=(n, 1)), labels) == pytest.approx(found, rel=1e-6)


def test_scaled_logits_have_a_scaled_temperature() -> None:
    one, other = (drawn(3, scale=s, combine="logits") for s in (1.0, 7.0))
    assert fit_temperature(other) == pytest.approx(7 * fit_temperature(one), rel=1e-9)


def test_the_slope_is_the_derivative_of_the_nll_in_one_over_t() -> None:
    outputs, step = drawn(4), 1e-5
    scores = np.log(outputs.probs())
    for t in (0.4, 1.0, 3.7):
        difference = (nll(outputs, 1 / (1 / t + step)) - nll(outputs, 1 / (1 / t - step))) / (2 * step)
        assert nll_slope(scores - scores.max(-1, keepdims=True), outputs.truth(), t) == pytest.approx(difference, abs=1e-7)


def test_bounds_are_told() -> None:
    right, labels = 5.0 * np.eye(3)[[0, 1, 2, 0]], [0, 1, 2, 0]
    with pytest.warns(TemperatureBoundWarning, match=r"bound 0\.01, .* \(the surer the better\): fit it on more or other rows"):
        assert fit_temperature(Outputs([right], labels=labels)) == LOW
    with pytest.warns(TemperatureBoundWarning, match=r"bound 100, .* \(the less sure the better\)"):
        assert fit_temperature(Outputs([right], labels=[1, 2, 0, 1])) == HIGH
    assert temperature_of(1e6 * right, np.array(labels)) == 1.0  # an NLL of 0 in float64 at every T


@pytest.mark.parametrize("value", [np.full((5, 3), 0.7), np.full((5, 1), 2.0), np.eye(3)[[0, 1, 2, 0, 1]]])
def test_where_every_temperature_is_as_good_it_is_one(value: np.ndarray) -> None:
    hot = value.shape[1] == 3 and value.max() == 1
    outputs = Outputs([value], kind="probs" if hot else "logits", labels=[0, 1, 2, 0, 1] if value.shape[1] == 3 else [0] * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_temperature(outputs) == 1.0


def test_impossible_classes_are_no_matter_unless_they_are_the_true_one() -> None:
    probs = np.array([[0.7, 0.3, 0.0], [0.6, 0.0, 0.4], [0.2, 0.8, 0.0]])
    outputs = Outputs([probs], kind="probs", labels=[0, 2, 1])
    best = minimize_scalar(lambda t: _power(probs, [0, 2, 1], math.exp(t)), bounds=(-4, 4), method="bounded")
    assert fit_temperature(outputs) == pytest.approx(math.exp(best.x), rel=1e-3)
    with pytest.raises(ValueError, match=r"1 rows give their true class probability 0, first \[1\]: their NLL is infinite"):
        fit_temperature(Outputs([probs], kind="probs", labels=[0, 1, 1]))


def _power(probs: np.ndarray, labels: list[int], t: float) -> float:
    raised = probs ** (1 / t)
    return float(-np.log((raised / raised.sum(-1, keepdims=True))[np.arange(len(probs)), labels]).mean())


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (Outputs([np.zeros((3, 2))]), "these Outputs have no labels"),
        (Outputs([(np.zeros(3, int), np.ones(3))], kind="top1", labels=[0, 0, 0]), "these Outputs hold 'top1': leave it at 1"),
        (Outputs([np.zeros((3, 2))], kind="gaussian", labels=np.zeros((3, 1))), "these Outputs hold 'gaussian'"),
    ],
)
def test_outputs_that_have_no_temperature(outputs: Outputs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(outputs)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros(3), [0, 0, 0], r"scores of shape \(3,\)"),
        (np.zeros((0, 3)), np.zeros(0, int), r"with N, C ≥ 1"),
        (np.zeros((3, 2)), [0, 1], r"labels of shape \(2,\)"),
        (np.zeros((2, 2)), [0.0, 1.0], "float64: expected"),
        (np.zeros((2, 2)), [0, 2], "labels go from 0 to 2: expected classes 0 … 1"),
        (np.zeros((2, 2)), [-1, 0], "labels go from -1 to 0"),
        (np.array([[0.0, np.nan]]), [0], "scores hold NaN"),
        (np.array([[0.0, np.inf]]), [0], r"scores hold NaN or \+inf"),
    ],
)
def test_arrays_that_do_not_fit(scores: np.ndarray, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        temperature_of(scores, labels)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("combine", ["probs", "logits", "last"])
@pytest.mark.parametrize("name", ["msp", "entropy", "margin"])
def test_a_policy_with_fitted_temperatures(combine: Any, name: str) -> None:
    validation, test = drawn(0, combine=combine, costs=[1.0, 2.0]), drawn(1, combine=combine)
    policy = Policy.fit(validation, target="coverage@risk=0.05", uncertainty=name, temperature="fit")
    plain = Policy.fit(validation, target="coverage@risk=0.05", uncertainty=name)
    temperatures = [stage.temperature for stage in policy.stages]
    assert temperatures == [fit_temperature(validation, 1), fit_temperature(validation, 2)]
    assert [stage.temperature for stage in plain.stages] == [1.0, 1.0]
    assert Policy.from_json(policy.to_json()) == policy
    low, high = policy.stages[0].window or (None, None)
    scores = uncertainty(validation, name, stop=1, temperature=temperatures[0])
    assert low is not None
    assert high is not None
    assert scores.min() <= low <= high <= scores.max()
    whole = Policy.of(test, uncertainty=name, temperatures=temperatures)
    before, after = simulate(Policy.of(test, uncertainty=name), test), simulate(whole, test)
    assert after.probs is not None
    assert before.probs is not None
    assert (after.label == before.label).all()
    assert not np.allclose(after.probs, before.probs)
    assert metrics.nll(after.probs, test.truth()) == pytest.approx(nll(test, temperatures[1]))
    assert metrics.nll(simulate(whole, validation).probs, validation.truth()) < nll(validation, 1.0)


def test_the_executed_cascade_applies_them_as_the_simulation_does() -> None:
    validation, test = drawn(0, costs=[1.0, 2.0]), drawn(2, costs=[1.0, 2.0])
    policy = Policy.fit(validation, target="risk@coverage=0.8", temperature="fit")

    class Stage:
        reads, writes, drops, macs = (), (), (), None

        def __init__(self, k: int) -> None:
            self.name, self.k = test.names[k], k

        def __call__(self, x: Any, _: Any) -> tuple[Any, dict[str, Any]]:
            return np.asarray(test.values[self.k])[:, x], {}

    run, stored = Cascade([Stage(0), Stage(1)], policy).predict(np.arange(test.n)), simulate(policy, test)
    assert run.probs is not None
    assert stored.probs is not None
    assert run.probs.tobytes() == stored.probs.tobytes()
    assert (run.accepted == stored.accepted).all()
    assert 0 < (run.stage == 1).mean() < 1


def test_requests_that_a_policy_refuses() -> None:
    validation = drawn()
    with pytest.raises(ValueError, match="temperature='fit' does not act on energy of logits: use msp, entropy or margin"):
        Policy.fit(validation, target="fpr@tpr=0.95", temperature="fit")
    with pytest.raises(ValueError, match="temperature='guess': expected 'none' or 'fit'"):
        Policy.fit(validation, target="coverage@risk=0.05", temperature="guess")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 temperatures for 2 stages: expected 2"):
        Policy.of(validation, temperatures=[2.0])
    top1 = Outputs([(np.zeros(9, int), np.linspace(0.1, 0.9, 9))] * 2, kind="top1", labels=[0] * 8 + [1])
    with pytest.raises(ValueError, match="does not act on msp of top1"):
        Policy.fit(top1, target="risk@coverage=0.5", temperature="fit")
