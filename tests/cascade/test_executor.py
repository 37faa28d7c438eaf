"""Stages of any framework under one policy: random routes, logits among probabilities, inputs that stages resize, what a call costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax as scipy_softmax
from scipy.stats import kstest

from quorate.cascade import Cascade, Policy, Prediction, StagePolicy, simulate
from quorate.cascade.random_routing import mixed, uniform
from quorate.cascade.uncertainty import uncertainty as uncertainty_of
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding


class Called:
    """A function of the rows as a stage; counts the rows of every call."""

    def __init__(self, name: str, call: Callable[[Any], Any], macs: float | None = None) -> None:
        self.name, self.call, self.macs = name, call, macs
        self.reads: tuple[str, ...] = ()
        self.writes: tuple[str, ...] = ()
        self.drops: tuple[str, ...] = ()
        self.calls: list[int] = []

    def __call__(self, x: Any, carry: Any) -> tuple[Any, dict[str, Any]]:
        assert dict(carry) == {}
        self.calls.append(len(x))
        return self.call(x), {}


def assert_same(a: Prediction, b: Prediction, rows: Any = slice(None)) -> None:
    for name in ("label", "probs", "uncertainty", "accepted", "stage", "macs"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name)[rows], err_msg=name)


def middle(outputs: Outputs, low: float = 0.3, high: float = 0.8) -> list[tuple[float, float]]:
    found = [np.quantile(uncertainty_of(outputs, stop=k), [low, high]) for k in range(1, outputs.stages)]
    return [(float(a), float(b)) for a, b in found]


# --- random routes ---------------------------------------------------------------------------------------------------


def test_the_generator_is_splitmix64() -> None:
    states = np.array([(1234567 + i * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF for i in range(1, 6)], np.uint64)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert mixed(states).tolist() == published


def test_its_numbers_are_uniform_and_those_of_stages_and_seeds_are_apart() -> None:
    rows = np.arange(100_000)
    drawn = [uniform(seed, k, rows) for seed, k in ((0, 0), (0, 1), (1, 0), (2**70 + 3, 2))]
    for one in drawn:
        assert 0 <= one.min() <= one.max() < 1
        assert kstest(one, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.015
    np.testing.assert_array_equal(uniform(0, 1, rows[::-1]), drawn[1][::-1])


def random_policy(outputs: Outputs, rates: tuple[float, float], seed: int = 0) -> Policy:
    plain = Policy.of(outputs, [None, None])
    stages = [replace(stage, rate=rate, seed=seed) for stage, rate in zip(plain.stages, rates, strict=False)]
    return replace(plain, stages=(*stages, plain.stages[2]))


def logits(seed: int, n: int = 120, stages: int = 3) -> Outputs:
    rng = np.random.default_rng(seed)
    return Outputs([(rng.normal(size=(1, n, 3)) * 3).astype(np.float32) for _ in range(stages)], costs=[1, 10, 100][:stages])


def looked_up(outputs: Outputs) -> list[Called]:
    return [Called(n, lambda x, v=v: v[:, x]) for n, v in zip(outputs.names, outputs.values, strict=True)]


@given(seed=st.integers(0, 99), rates=st.tuples(st.floats(0, 1), st.floats(0, 1)), batch=st.sampled_from([1, 7, 256]))
def test_the_same_rows_go_on_at_random_in_any_batches(seed: int, rates: tuple[float, float], batch: int) -> None:
    outputs = logits(seed)
    policy = random_policy(outputs, rates, seed)
    simulated, stages = simulate(policy, outputs), looked_up(outputs)
    assert_same(Cascade(stages, policy, batch, 40).predict(np.arange(120)), simulated)
    assert all(0 < count <= batch for stage in stages for count in stage.calls)
    np.testing.assert_array_equal(simulated.stage >= 1, uniform(seed, 0, np.arange(120)) < rates[0])


def test_shares_are_met_and_their_ends_are_none_and_all() -> None:
    outputs = logits(0, 70_000)
    reach = simulate(random_policy(outputs, (0.3, 0.5)), outputs).reach
    np.testing.assert_allclose(reach, [1, 0.3, 0.15], atol=0.006)
    assert simulate(random_policy(outputs, (1.0, 0.0)), outputs).reach == (1, 1, 0)


# --- logits among probabilities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 256])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_stage_of_logits_among_probabilities_is_softmaxed(batch: int, dtype: Any) -> None:
    given_ = [value.astype(dtype) for value in logits(1, stages=2).values]
    probs = [scipy_softmax(value.astype(np.float64), -1) for value in given_]
    outputs = Outputs(probs, kind="probs", costs=[1, 10])
    policy = Policy.of(outputs, middle(outputs))
    policy = replace(policy, stages=(policy.stages[0], replace(policy.stages[1], kind="logits")))
    stages = [Called("stage0", lambda x: probs[0][:, x]), Called("stage1", lambda x: np.asfortranarray(given_[1][:, x]))]
    executed, simulated = Cascade(stages, policy, batch).predict(np.arange(120)), simulate(policy, outputs)
    np.testing.assert_array_equal(executed.stage, simulated.stage)
    np.testing.assert_allclose(executed.probs, simulated.probs, rtol=1e-14)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stage 'stage1' is not probabilities in rows"):
        Cascade(stages, replace(policy, stages=(policy.stages[0], replace(policy.stages[1], kind=None)))).predict(np.arange(120))


def test_logits_are_still_checked() -> None:
    policy = Policy((StagePolicy("a", kind="logits"),), kind="probs")
    with pytest.raises(ValueError, match="stage 'a' has NaN or infinite values in rows 2: mend or drop these rows"):
        Cascade([Called("a", lambda x: np.where(x[:, None] == 2, np.nan, np.zeros((1, len(x), 3))))], policy).predict(
            np.arange(4)
        )


# --- frameworks and inputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_stages_that_take_the_input_at_other_resolutions(batch: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 8, 8, 3))
    weights = [rng.normal(size=(side * side * 3, 4)) * 2 for side in (2, 4, 8)]

    def run(side: int, weight: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        def call(part: np.ndarray) -> np.ndarray:
            step = 8 // side
            small = part.reshape(len(part), side, step, side, step, 3).mean((2, 4)).reshape(len(part), -1)
            return np.stack([(row[:, None] * weight).sum(0) for row in small])[None]  # bit for bit in any batch

        return call

    calls = [run(side, weight) for side, weight in zip((2, 4, 8), weights, strict=True)]
    outputs = Outputs([call(x) for call in calls], costs=[1, 4, 16])
    policy, order = Policy.of(outputs, middle(outputs)), rng.permutation(90)
    simulated = simulate(policy, outputs)
    stages = [Called(name, call) for name, call in zip(outputs.names, calls, strict=True)]
    assert_same(Cascade(stages, policy, batch, 50).predict(x[order]), simulated, order)
    for k, stage in enumerate(stages):
        assert sum(stage.calls) == (simulated.stage >= k).sum()
        assert 0 not in stage.calls


def test_scikit_learn_and_plain_functions_side_by_side() -> None:
    pytest.importorskip("sklearn")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 6)), rng.integers(0, 3, 400)
    x[:, :3] += 1.5 * np.eye(3)[y]
    first, second = LogisticRegression().fit(x[:200], y[:200]), RandomForestClassifier(20, random_state=0).fit(x[:200], y[:200])
    calls = [
        lambda part: first.predict_proba(part)[None],
        lambda part: part[None, :, :3],
        lambda part: second.predict_proba(part)[None],
    ]
    names, rest = ["linear", "direct", "forest"], x[200:]
    stored = [calls[0](rest), scipy_softmax(calls[1](rest), -1), calls[2](rest)]
    outputs = Outputs(stored, kind="probs", labels=y[200:], names=names, costs=[1, 2, 50])
    policy = Policy.of(outputs, middle(outputs), [0.4] * 3)
    policy = replace(policy, stages=tuple(replace(s, kind="logits") if s.name == "direct" else s for s in policy.stages))
    for batch in (1, 7, 256):
        stages = [Called(name, call) for name, call in zip(names, calls, strict=True)]
        order = rng.permutation(200)
        executed, simulated = Cascade(stages, policy, batch).predict(rest[order]), simulate(policy, outputs)
        for name in ("label", "stage", "accepted"):
            np.testing.assert_array_equal(getattr(executed, name), getattr(simulated, name)[order])
        np.testing.assert_allclose(executed.probs, simulated.probs[order], atol=1e-12)  # type: ignore[index,arg-type]
        assert [sum(stage.calls) for stage in stages] == [(simulated.stage >= k).sum() for k in range(3)]


def test_a_stage_may_use_one_buffer_again_and_again() -> None:
    outputs = Outputs([value.astype(np.float64) for value in logits(2).values], costs=[1, 10, 100])
    buffer = np.empty((1, 256, 3))

    def reused(value: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        def call(x: np.ndarray) -> np.ndarray:
            buffer[:, : len(x)] = value[:, x]
            return buffer[:, : len(x)]

        return call

    stages = [Called(name, reused(value)) for name, value in zip(outputs.names, outputs.values, strict=True)]
    for policy in (Policy.of(outputs), Policy.of(outputs, middle(outputs))):
        for batch in (1, 7, 256):
            assert_same(Cascade(stages, policy, batch).predict(np.arange(120)), simulate(policy, outputs))


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_that_leave_early_save_time_at_batch_one_too() -> None:
    """With stages of a millisecond, the wall-clock gain over running all of them is at least .85 of the gain in cost."""
    outputs = logits(3, 200)

    def busy(value: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        def call(x: np.ndarray) -> np.ndarray:
            end = time.perf_counter() + 1e-3
            while time.perf_counter() < end:
                pass
            return value[:, x]

        return call

    calls = [busy(value) for value in outputs.values]
    made = Cascade([Called(n, c, 1.0) for n, c in zip(outputs.names, calls, strict=True)], Policy.of(outputs, middle(outputs)))
    ratios = []
    for _ in range(3):
        begun = time.perf_counter()
        costs = [made.predict(np.array([i])).mean_macs for i in range(200)]
        middle_ = time.perf_counter()
        for i in range(200):
            for call in calls:
                call(np.array([i]))
        ratios.append((time.perf_counter() - middle_) / (middle_ - begun) / (3 / np.mean(costs)))
    assert max(ratios) >= 0.85
