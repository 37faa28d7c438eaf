"""What an executing cascade counts, what its cost cap holds back, and what its drift watch gets to see."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.cascade import Cascade, Policy, Prediction, simulate
from quorate.cascade.cap import Account, nearest
from quorate.cascade.drift import Watch
from quorate.cascade.policy import StagePolicy
from quorate.cascade.uncertainty import uncertainty as uncertainty_of
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

COSTS = (1.0, 10.0, 100.0)


class Stored:
    """A stage that looks its answers up: ``x`` holds row numbers."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    macs = None

    def __init__(self, value: Any, name: str) -> None:
        self.value, self.name = value, name

    def __call__(self, x: np.ndarray, carry: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        return self.value[:, x], {}


def drawn(seed: int = 0, n: int = 200) -> Outputs:
    rng = np.random.default_rng(seed)
    return Outputs([(rng.normal(size=(1, n, 3)) * 3).astype(np.float32) for _ in range(3)], costs=COSTS)


def cascade(outputs: Outputs, policy: Policy, *sizes: Any, **options: Any) -> Cascade:
    return Cascade([Stored(v, n) for v, n in zip(outputs.values, outputs.names, strict=True)], policy, *sizes, **options)


def same(a: Prediction, b: Prediction) -> bool:
    names = ("label", "probs", "uncertainty", "accepted", "stage", "macs")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


WINDOWS = [(0.1, 0.5), (0.15, 0.6)]


# --- counters --------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 999),
    batch=st.sampled_from([1, 7, 256]),
    chunk=st.sampled_from([None, 30]),
    cap=st.sampled_from([None, 8.0]),
)
def test_the_counts_are_those_of_the_predictions(seed: int, batch: int, chunk: int | None, cap: float | None) -> None:
    outputs = drawn(seed, 60)
    made = cascade(outputs, Policy.of(outputs, WINDOWS, [0.3, 0.4, 0.2]), batch, chunk, cap=cap)
    parts = [made.predict(np.arange(a, b)) for a, b in ((0, 25), (25, 25), (25, 60))]
    stage, accepted = (np.concatenate([getattr(p, name) for p in parts]) for name in ("stage", "accepted"))
    found = made.counters
    for k, one in enumerate(found.stages):
        assert (one.name, one.rows) == (outputs.names[k], (stage >= k).sum())
        assert (one.exits, one.accepted) == ((stage == k).sum(), accepted[stage == k].sum())
        assert one.macs == one.rows * COSTS[k]
        assert -(-one.rows // batch) <= one.calls <= one.rows
        assert (one.seconds > 0) == (one.calls > 0)
        assert one.passed == one.rows - one.exits + one.capped >= (stage > k).sum()
    assert (found.rows, found.accepted) == (60, accepted.sum())
    assert found.mean_macs == pytest.approx(np.concatenate([p.macs for p in parts]).mean(), rel=1e-12)
    assert (found.capped > 0) <= (cap is not None)
    assert json.loads(json.dumps(found.to_dict()))["stages"][1]["rows"] == found.stages[1].rows
    made.reset_counters_()
    assert (made.counters.rows, made.counters.mean_macs) == (0, 0.0)
    assert found.rows == 60


def test_calls_are_of_gathered_batches() -> None:
    outputs = drawn(0, 100)
    made = cascade(outputs, Policy.of(outputs, [(None, None), None]), 10)
    made.predict(np.arange(100))
    assert [one.calls for one in made.counters.stages] == [10, 10, 0]


def test_a_chunk_in_which_a_stage_fails_is_not_counted() -> None:
    outputs = drawn(0, 40)
    made = cascade(outputs, Policy.of(outputs), 10, 20)
    made.stages[1].value = np.where(np.arange(40)[:, None] == 33, np.nan, outputs.values[1])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="stage 'stage1' has NaN or infinite values in rows 33"):
        made.predict(np.arange(40))
    assert [one.rows for one in made.counters.stages] == [20, 20, 20]


def test_threads_lose_no_count() -> None:
    outputs = drawn(0, 300)
    policy = Policy.of(outputs, WINDOWS)
    made = cascade(outputs, policy, 16, cap=30.0, watch=Watch.of(policy, outputs), memory=10**6)
    threads = [threading.Thread(target=lambda: [made.predict(np.arange(i, i + 30)) for i in range(0, 270, 30)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = made.counters
    assert found.rows == 8 * 270
    assert found.mean_macs <= 30
    assert all(a.rows - a.exits == b.rows for a, b in zip(found.stages, found.stages[1:], strict=False))
    assert made.watch is not None
    assert made.watch.rates["stage0"] == found.stages[0].passed / found.rows
    assert [len(s) for s in made._recent.scores()] == [found.stages[0].rows, found.stages[1].rows]  # type: ignore[union-attr]


def test_a_cascade_can_be_copied_and_pickled() -> None:
    outputs = drawn()
    policy = Policy.of(outputs, WINDOWS)
    made = cascade(outputs, policy, cap=20.0, watch=Watch.of(policy, outputs), memory=50)
    made.predict(np.arange(100))
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert twin.counters == made.counters
        assert same(twin.predict(np.arange(100, 200)), copy.deepcopy(made).predict(np.arange(100, 200)))
        assert twin.counters.rows == made.counters.rows + 100


# --- the cost cap ----------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), cap=st.floats(1, 120), batch=st.sampled_from([1, 7, 256]), taus=st.booleans())
def test_the_running_mean_is_never_above_the_cap_and_whoever_runs_says_the_same(
    seed: int, cap: float, batch: int, taus: bool
) -> None:
    outputs = drawn(seed, 90)
    policy = Policy.of(outputs, WINDOWS, [0.3, 0.35, 0.4] if taus else [])
    free, made = simulate(policy, outputs), cascade(outputs, policy, batch, 30, cap=cap)
    other = cascade(outputs, policy, 11, 30, cap=cap)
    spent, seen = 0.0, 0
    for start in range(0, 90, 30):
        p = made.predict(np.arange(start, start + 30))
        assert same(p, other.predict(np.arange(start, start + 30)))
        spent, seen = spent + p.macs.sum(), seen + 30
        assert spent <= cap * seen * (1 + 1e-12)
        here = slice(start, start + 30)
        whole = p.stage == free.stage[here]
        for name in ("label", "probs", "uncertainty", "accepted", "macs"):
            np.testing.assert_array_equal(getattr(p, name)[whole], getattr(free, name)[here][whole])
        assert (p.stage <= free.stage[here]).all()
        for k in (0, 1):
            held = np.flatnonzero((p.stage == k) & ~whole)
            np.testing.assert_array_equal(p.probs[held], outputs.probs(k + 1)[here][held])
            on = np.flatnonzero(p.stage > k)
            if len(held) and len(on):
                middle = policy.stages[k].tau if taus else sum(WINDOWS[k]) / 2
                far = np.abs(uncertainty_of(outputs, stop=k + 1)[here] - middle)
                assert far[on].max() <= far[held].min()


def test_a_cap_that_covers_all_changes_nothing_and_the_least_one_keeps_all_at_the_first_stage() -> None:
    outputs = drawn()
    policy = Policy.of(outputs, WINDOWS)
    assert same(cascade(outputs, policy, 7, cap=111.0).predict(np.arange(200)), simulate(policy, outputs))
    least = cascade(outputs, policy, 7, cap=1.0)
    assert (least.predict(np.arange(200)).stage == 0).all()
    assert [one.calls for one in least.counters.stages][1:] == [0, 0]
    assert least.counters.capped == simulate(policy, outputs).reach[1] * 200


def test_rows_that_left_early_pay_for_later_ones() -> None:
    account = Account(2.0, (1.0, 3.0))
    account.arrive_(10)
    assert account.pay_(0, 1) == 0
    account.arrive_(2)
    assert account.pay_(9, 1) == 4
    assert account.pay_(9, 1) == 0
    assert (account.rows, account.spent) == (12, 24.0)
    rounded = Account(3.6, (1.0, 1.82))  # what is left, 67.34, is 37 · 1.82, but 33.46 and that are a last bit more than 100.8
    rounded.arrive_(28)
    assert [rounded.pay_(3, 1), rounded.pay_(100, 1)] == [3, 36]
    assert rounded.spent <= 3.6 * 28
    free = Account(1.0, (1.0, 0.0))
    free.arrive_(1)
    assert free.pay_(5, 1) == 5


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"window": (0.0, 1.0)}, [3, 1]),
        ({"window": (0.0, 1.0), "tau": 0.1}, [2, 0]),
        ({"window": (0.0, 1.0), "tau": 0.1, "centre": 0.9}, [4, 3]),
        ({"window": (0.0, None)}, [4, 3]),
        ({"window": (None, None)}, [4, 3]),
        ({"window": (None, 1.0)}, [2, 0]),
    ],
)
def test_who_goes_first(options: dict[str, Any], first: list[int]) -> None:
    u = np.array([0.1, 0.35, 0.1, 0.6, 0.9])
    rows = np.array([7, 3, 5, 9, 11])
    assert np.flatnonzero(nearest(StagePolicy("a", **options), u, rows, 0, 2)).tolist() == sorted(first)
    for count in range(6):
        assert nearest(StagePolicy("a", **options), u, rows, 0, count).sum() == count
    assert np.flatnonzero(nearest(StagePolicy("a", window=(0.0, 0.2)), u[[0, 2]], rows[[0, 2]], 0, 1)).tolist() == [1]


def test_random_rows_that_are_held_back_are_those_of_a_lower_rate() -> None:
    outputs = drawn(0, 1000)

    def policy(rate: float) -> Policy:
        plain = Policy.of(outputs, [None, None])
        return replace(plain, stages=(replace(plain.stages[0], rate=rate, seed=5), *plain.stages[1:]))

    capped = cascade(outputs, policy(0.5), 1000, 1000, cap=3.0).predict(np.arange(1000))
    rates = [simulate(policy(rate), outputs).stage for rate in np.linspace(0, 0.5, 1001)]
    assert capped.stage.sum() == 200
    assert any(np.array_equal(capped.stage, stage) for stage in rates)


@pytest.mark.parametrize(
    ("cap", "message"),
    [
        (0.5, "cap=0.5 is below 1, what the first stage costs every row: expected at least that much"),
        (float("nan"), "cap=nan: expected a finite mean cost per row, or None for no cap"),
        (float("inf"), "cap=inf: expected a finite"),
        (True, "cap=True: expected a finite"),
        ("3", "cap='3': expected a finite"),
    ],
)
def test_caps_that_are_refused(cap: Any, message: str) -> None:
    outputs = drawn()
    with pytest.raises(ValueError, match=message):
        cascade(outputs, Policy.of(outputs), cap=cap)


# --- the watch -------------------------------------------------------------------------------------------------------


def test_the_watch_gets_what_the_policy_decided_not_what_the_cap_left() -> None:
    outputs = drawn(0, 200)
    policy = Policy.of(outputs, WINDOWS)
    reach = [round(r * 200) for r in simulate(policy, outputs).reach]
    plain, held = (cascade(outputs, policy, 7, cap=cap, watch=Watch.of(policy, outputs)) for cap in (None, 2.0))
    for made in (plain, held):
        made.predict(np.arange(200))
        assert made.watch is not None
        assert made.watch.rates["stage0"] == reach[1] / reach[0]
    assert plain.watch.rates["stage1"] == reach[2] / reach[1]  # type: ignore[union-attr]
    assert held.watch.rates["stage1"] is None  # type: ignore[union-attr]


def test_a_shifted_stream_raises_the_alarm_of_the_cascade() -> None:
    outputs = drawn(0, 2000)
    policy = Policy.of(outputs, WINDOWS)
    shifted = Outputs([v * 0.5 for v in outputs.values], costs=COSTS)
    for stream, alarms in ((drawn(1, 2000), ()), (shifted, ("stage0",))):
        made = cascade(stream, policy, watch=Watch.of(policy, outputs))
        made.predict(np.arange(2000))
        assert made.watch is not None
        assert made.watch.alarms[:1] == alarms


def test_a_watch_over_other_stages_is_refused() -> None:
    outputs = drawn()
    with pytest.raises(ValueError, match=r"the watch is for \['stage0'\]: expected \['stage0', 'stage1'\], the policy's stages"):
        cascade(outputs, Policy.of(outputs), watch=Watch.of_counts(["stage0"], [9], [1]))
