"""Windows that follow the stream: what is remembered, which windows come of it, and when they come into force."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.cascade import Cascade, Policy, Prediction, quantile_window, simulate
from quorate.cascade.adjusting import adjusted
from quorate.cascade.recent import Recent
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


def centred(outputs: Outputs) -> Policy:
    plain = Policy.of(outputs, WINDOWS)
    first, second, last = plain.stages
    return replace(plain, stages=(replace(first, centre=0.2, width=0.1), replace(second, centre=0.3, width=0.2), last))


@given(sizes=st.lists(st.integers(0, 12), max_size=9), size=st.integers(1, 15))
def test_memory_keeps_the_last_scores_in_order(sizes: list[int], size: int) -> None:
    recent, all_scores = Recent(2, size), np.arange(float(sum(sizes)))
    for end, n in zip(np.cumsum(sizes), sizes, strict=True):
        recent.add_([[all_scores[end - n : end - n // 2], all_scores[end - n // 2 : end]], []])
    np.testing.assert_array_equal(recent.scores()[0], all_scores[-size:])
    assert len(recent.scores()[1]) == 0
    recent.forget_(0)
    assert len(recent.scores()[0]) == 0
    recent.add_([[all_scores[:1]], []])
    np.testing.assert_array_equal(recent.scores()[0], all_scores[:1])


def test_windows_are_taken_anew_from_the_rows_that_reached_each_stage() -> None:
    outputs = drawn(3, 400)
    policy = centred(outputs)
    made = cascade(outputs, policy, 7, memory=10_000)
    made.predict(np.arange(400))
    reached = simulate(policy, outputs).stage >= 1
    scores = [uncertainty_of(outputs, stop=1), uncertainty_of(outputs, stop=2)[reached]]
    found = made.adjusted()
    assert found.stages[0].window == quantile_window(scores[0], 0.2, 0.1)
    assert found.stages[1].window == quantile_window(scores[1], 0.3, 0.2)
    assert found == adjusted(policy, scores)
    assert made.policy == policy
    assert made.adjust_() == made.policy == found
    assert same(made.predict(np.arange(400)), simulate(found, outputs))
    assert [len(s) for s in made._recent.scores()] == [800, sum(simulate(found, outputs).stage >= 1)]  # type: ignore[union-attr]


def test_what_was_under_way_when_the_windows_moved_is_not_remembered() -> None:
    outputs = drawn(3, 400)
    made = cascade(outputs, centred(outputs), memory=10_000)
    made.predict(np.arange(300))
    values, moved = made.stages[0].value, []  # type: ignore[attr-defined]

    class Moving(np.ndarray):
        def __getitem__(self, at: Any) -> Any:
            moved.append(made.adjust_())
            return np.asarray(self)[at]

    made.stages[0].value = values.view(Moving)  # type: ignore[attr-defined]
    assert same(made.predict(np.arange(100)), simulate(centred(outputs), outputs.rows(np.arange(100))))
    assert moved == [made.policy]
    assert [len(s) for s in made._recent.scores()] == [300, 0]  # type: ignore[union-attr]


def test_with_two_stages_it_is_the_window_of_the_whole_stream() -> None:
    outputs = drawn(4, 300).prefix(2)
    policy = Policy.of(outputs, [(0.1, 0.2)])
    policy = replace(policy, stages=(replace(policy.stages[0], centre=0.2, width=0.1), policy.stages[1]), certificate={"a": 1})
    made = cascade(outputs, policy, memory=300)
    made.predict(np.arange(300))
    assert made.adjusted().stages == policy.adjusted(outputs).stages
    assert made.adjusted().certificate is None


def test_a_stage_without_a_centre_keeps_its_window_and_needs_no_scores() -> None:
    outputs = drawn()
    policy = centred(outputs)
    policy = replace(policy, stages=(policy.stages[0], replace(policy.stages[1], centre=None, width=None), policy.stages[2]))
    found = adjusted(policy, [np.linspace(0, 1, 50), []])
    assert (found.stages[1], found.stages[0].window) == (policy.stages[1], quantile_window(np.linspace(0, 1, 50), 0.2, 0.1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: cascade(o, centred(o)).adjusted(), "this cascade keeps no uncertainties: make it with memory=10_000"),
        (lambda o: cascade(o, Policy.of(o), memory=9).adjust_(), "no stage of the policy has a centre to put a window around"),
        (lambda o: cascade(o, centred(o), memory=9).adjusted(), "stage 'stage0' can't be adjusted: .*; give scores of rows"),
        (lambda o: adjusted(centred(o), [[0.5]]), "scores of 1 stages for a policy of 3: expected 2, all stages but the last"),
        (lambda o: adjusted(centred(o), [[0.5], []]), "stage 'stage1' can't be adjusted"),
        (lambda o: cascade(o, centred(o), memory=0), "memory=0: expected how many uncertainties to keep per stage"),
        (lambda o: cascade(o, centred(o), memory=2.5), "memory=2.5: expected how many"),
    ],
)  # fmt: skip
def test_what_can_not_be_adjusted(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(drawn())
    assert "\n" not in str(caught.value)
