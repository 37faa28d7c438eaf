"""Streaming on arrays: sequences that end early, and everything that is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quorate.cascade import Cascade, Policy, StagePolicy
from quorate.cascade.streaming import StreamedStage, arrivals, stream
from summing_stages import Source, Summing, sequences, summing

pytestmark = pytest.mark.deciding


def policy_of(stages: list[Any], windows: list[Any], tau: float | None = None, **options: Any) -> Policy:
    rules = [
        StagePolicy(s.name, window=w, tau=tau, cost=10.0**k)
        for k, (s, w) in enumerate(zip(stages, [*windows, None], strict=True))
    ]
    return Policy(tuple(rules), **options)


# --- a sequence that ends early --------------------------------------------------------------------------------------


def test_a_short_sequence_is_refused_or_answered_by_the_last_prefix() -> None:
    x = sequences()
    with pytest.raises(ValueError, match=r"ended after 7 steps: stage 'part2' expected 8, all stages 12; .* short='answer'"):
        stream(summing(4, 8, 12), [x[..., :7]])
    with pytest.raises(ValueError, match=r"ended after 3 steps: stage 'part1' expected 4, all stages 12; give the rest$"):
        stream(summing(4, 8, 12), [x[..., :3]], short="answer")
    with pytest.raises(ValueError, match="ended after 0 steps"):
        stream(summing(4), [], short="answer")
    stages = summing(4, 8, 12)
    policy = policy_of(stages, [(0.3, None), (None, None)], tau=0.5)
    found = stream(stages, [x[..., :6], x[..., 6:7]], policy, short="answer")
    only = Cascade(stages[:1], policy_of(stages[:1], [], tau=0.5)).predict(x)
    assert found.prediction is not None
    np.testing.assert_array_equal(found.prediction.probs, only.probs)
    np.testing.assert_array_equal(found.prediction.accepted, only.accepted)
    assert set(found.steps.tolist()) == {4}
    assert found.requested == 7
    decided_later = stream(stages, [x[..., :11]], policy, short="answer")
    assert set(decided_later.steps.tolist()) == {4, 8}


# --- refusals --------------------------------------------------------------------------------------------------------


def test_nan_is_refused_in_rows_that_are_still_in_only() -> None:
    x = np.zeros((3, 2, 4))
    x[0, 0, 0] = 9.0
    x[0, :, 2:] = np.nan  # padding behind a decided row
    stages = summing(2, 4)
    policy = policy_of(stages, [(0.1, None)])
    stream(stages, [x], policy)
    x[1, 1, 3] = -np.inf
    with pytest.raises(ValueError, match=r"steps 2 … 3 are NaN or infinite in rows 1: mend or drop"):
        stream(stages, [x], policy)
    many = np.full((8, 2, 4), np.nan)
    with pytest.raises(ValueError, match=r"steps 0 … 1 are NaN or infinite in rows 0, 1, 2, 3, 4, … \(8 in all\)"):
        stream(stages, [many], policy)


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ([[1.0, 2.0]], r"the chunk after 0 steps is list of shape \(\): expected an array"),
        ([np.zeros(3)], r"of shape \(3,\)"),
        ([np.zeros((2, 3, 0))], "at least 1 of each"),
        ([np.zeros((0, 3, 1))], "at least 1 of each"),
        ([np.zeros((2, 3, 1), complex)], "dtype complex128: expected real numbers"),
        (
            [np.zeros((2, 3, 1)), np.zeros((1, 3, 1))],
            r"after 1 steps has shape \(1, 3, 1\) .* expected \(2, 3, any number of steps\)",
        ),
        ([np.zeros((2, 3, 2)), np.zeros((2, 4, 1))], r"after 2 steps has shape \(2, 4, 1\)"),
        ([np.zeros((2, 3, 1)), np.zeros((2, 3, 1), np.float32)], "dtype float32: expected .* float64, as the first chunk"),
    ],
)
def test_chunks_that_do_not_fit(chunks: list[Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        stream(summing(4), chunks)


class Alien:
    """An array of no framework that is known."""

    shape, dtype = (1, 1, 4), "float32"


def test_chunks_of_no_known_framework_and_no_chunks() -> None:
    with pytest.raises(ValueError, match="after 0 steps is Alien: expected a NumPy array, a tensor"):
        stream(summing(4), [Alien()])
    for whole in (np.zeros((2, 3, 4)), 7):
        with pytest.raises(
            ValueError, match=r"chunks is (ndarray|int): expected an iterable of arrays .*, \[x\] for a whole one"
        ):
            arrivals(summing(4), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spans", "told"),
    [
        ([(0, 4), (5, 8)], r"'b' has span \(5, 8\), a gap: expected it to start at step 4"),
        ([(0, 4), (3, 8)], r"'b' has span \(3, 8\), an overlap"),
        ([(1, 4), (4, 8)], "'a' has span .* a gap: expected it to start at step 0"),
        ([(0, 0), (0, 8)], "whole steps with start < stop"),
        ([(0, 4.0), (4, 8)], "whole steps"),
        ([(0, 4, 8), (8, 9)], "whole steps"),
        ([(0, 4), None], "'b' can't be streamed to: expected span"),
    ],
)
def test_spans_have_to_follow_each_other(spans: list[Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        arrivals([Summing(name, span) for name, span in zip("ab", spans, strict=True)], [])


def test_other_refusals_come_before_the_first_request() -> None:
    stages, source = summing(4, 12), Source(sequences(), [12])
    policy = policy_of(stages, [None])
    refused: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "no stages"),
        (stages[:1], {"policy": policy}, r"stages are \['part1'\], the policy is for \['part1', 'part2'\]"),
        (stages, {"policy": policy, "kind": "logits", "uncertainty": "msp"}, "kind='logits', uncertainty='msp' beside a policy"),
        (stages, {"short": "guess"}, "short='guess': expected 'refuse', or 'answer'"),
        (stages, {"kind": "values", "uncertainty": "msp"}, "is for classification, these outputs are regression"),
        (stages, {"uncertainty": "nonsense"}, "uncertainty 'nonsense': expected one of"),
        (stages, {"kind": "probs", "combine": "logits"}, "combine='logits' needs members of kind 'logits'"),
        ([stages[0], stages[0]], {}, "an overlap"),
        ([Summing("a", (0, 4), "nobody")], {}, "reads .* which no earlier stage writes"),
        (summing(4, macs=-1.0), {}, "finite numbers ≥ 0"),
    ]
    for given_stages, options, told in refused:
        with pytest.raises(ValueError, match=told):
            arrivals(given_stages, source, **options)
    assert source.calls == 0
    assert isinstance(stages[0], StreamedStage)


def test_a_stage_that_breaks_its_contract() -> None:
    class Broken(Summing):
        def arrived(self, part: Any, carry: Any) -> Any:
            members, written = super().arrived(part, carry)
            return (members * np.nan if self.name == "nan" else members[:, :-1]), written if self.name != "silent" else {}

    for name, told in (
        ("nan", "stage 'nan' has NaN or infinite values in rows 0"),
        ("few", "has shape"),
        ("silent", r"wrote \[\]"),
    ):
        with pytest.raises(ValueError, match=told):
            stream([Broken(name, (0, 4))], [sequences()])
