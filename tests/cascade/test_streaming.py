"""Streaming on arrays: what is requested and when, what is held, who leaves, equality with a cascade on whole sequences."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade import Cascade, Policy, StagePolicy
from quorate.cascade.chunks import Feed
from quorate.cascade.streaming import arrivals, stream
from summing_stages import Source, Summing, sequences, summing

pytestmark = pytest.mark.deciding


def policy_of(stages: list[Any], windows: list[Any], tau: float | None = None, **options: Any) -> Policy:
    rules = [
        StagePolicy(s.name, window=w, tau=tau, cost=10.0**k)
        for k, (s, w) in enumerate(zip(stages, [*windows, None], strict=True))
    ]
    return Policy(tuple(rules), **options)


def assert_equal(streamed: Any, expected: Any) -> None:
    for name in ("label", "probs", "uncertainty", "accepted", "stage", "macs"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(expected, name), err_msg=name)
    assert streamed.names == expected.names


# --- equal to a cascade, whatever the chunks -------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 15), min_size=12, max_size=40),
    ends=st.tuples(st.floats(0, 0.66), st.floats(0, 0.66)).map(sorted),
    uncertainty=st.sampled_from(["msp", "entropy", "energy", "variation_ratio"]),
    combine=st.sampled_from(["probs", "logits"]),
    own=st.booleans(),
)
def test_equals_the_cascade_on_whole_sequences(
    seed: int, sizes: list[int], ends: list[float], uncertainty: str, combine: Any, own: bool
) -> None:
    if uncertainty == "energy":
        ends = [-4 * ends[1], -ends[0]]
    stages = summing(3, 4, 9, 12, members=2, macs=7.0 if own else None)
    x = sequences(seed, length=sum(sizes))
    policy = policy_of(stages, [tuple(ends)] * 3, tau=0.4, uncertainty=uncertainty, combine=combine)
    expected = Cascade(stages, policy).predict(x)
    for stage in stages:
        stage.parts.clear()
    source = Source(x, sizes)
    found = stream(stages, source, policy)
    assert found.prediction is not None
    assert_equal(found.prediction, expected)
    stops = np.array([3, 4, 9, 12])
    np.testing.assert_array_equal(found.steps, stops[expected.stage])
    last = stops[expected.stage.max()]
    totals = np.cumsum(sizes)
    assert found.requested == totals[np.searchsorted(totals, last)] == source.requested
    for k, stage in enumerate(stages):  # just the rows still in, just the steps of the span
        still = expected.stage >= k
        if still.any():
            (part,) = stage.parts
            np.testing.assert_array_equal(part, x[still][..., stage.span[0] : stage.span[1]])
        else:
            assert not stage.parts
    assert [a.steps for a in found.arrivals] == stops[: len(found.arrivals)].tolist()


def test_rows_leave_for_good_and_results_come_back_in_order() -> None:
    x = np.zeros((3, 2, 4))
    x[0, 0, 0] = 9.0  # sure at once
    x[2, 1, 2] = 9.0  # sure after the second part
    stages = summing(2, 3, 4)
    found = stream(stages, Source(x, [1] * 4), policy_of(stages, [(0.1, None)] * 2, tau=0.2, combine="logits"))
    assert found.prediction is not None
    assert found.prediction.stage.tolist() == [0, 2, 1]
    assert found.prediction.label.tolist() == [0, 0, 1]
    assert found.prediction.accepted.tolist() == [True, False, True]
    assert found.prediction.macs.tolist() == [1, 111, 11]
    assert found.steps.tolist() == [2, 4, 3]
    assert [a.rows.tolist() for a in found.arrivals] == [[0, 1, 2], [1, 2], [1]]
    assert [a.goes_on.tolist() for a in found.arrivals] == [[False, True, True], [True, False], [False]]
    assert [a.accepted.tolist() for a in found.arrivals] == [[True, False, False], [False, True], [False]]
    assert [a.macs for a in found.arrivals] == [1, 11, 111]
    assert len(found.arrivals[1]) == 2


# --- what is requested -----------------------------------------------------------------------------------------------


def test_nothing_is_requested_once_all_rows_are_decided() -> None:
    x = sequences()
    stages = summing(4, 8, 12)

    def chunks() -> Iterator[np.ndarray]:
        yield x[..., :3]
        yield x[..., 3:5]
        raise AssertionError("a later chunk was requested")

    found = stream(stages, chunks(), policy_of(stages, [None, None]))
    assert (found.requested, set(found.steps.tolist())) == (5, {4})


def test_the_source_can_be_read_on_where_streaming_stopped() -> None:
    x = sequences()
    stages = summing(4, 12)
    chunks = iter(Source(x, [2] * 6))
    stream(stages, chunks, policy_of(stages, [None]))
    np.testing.assert_array_equal(next(chunks), x[..., 4:6])


def test_who_stops_iterating_requests_no_more() -> None:
    stages = summing(3, 6, 12)
    source = Source(sequences(), [1] * 12)
    running = arrivals(stages, source)
    assert source.calls == 0
    for requested, arrival in zip((3, 6), running, strict=False):
        assert source.calls == requested == arrival.steps == arrival.requested
    assert source.calls == 6
    assert not stages[2].parts


def test_after_the_last_stage_the_rest_is_left_alone() -> None:
    source = Source(sequences(length=20), [5, 8, 7])
    found = stream(summing(4, 12), source)
    assert (found.requested, source.calls) == (13, 2)


# --- what is held ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20), counts=st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_the_buffer_holds_just_the_steps_not_taken_yet(sizes: list[int], counts: list[int]) -> None:
    x = np.arange(2 * 3 * sum(sizes)).reshape(2, 3, -1)
    feed, taken = Feed(iter(Source(x, sizes))), 0
    for count in counts:
        part = feed.take(count)
        if part is None:
            assert taken + count > sum(sizes) == feed.requested
            break
        np.testing.assert_array_equal(part, x[..., taken : taken + count])
        taken += count
        owners = [piece if piece.base is None else piece.base for piece in feed.held]
        assert sum(owner.nbytes for owner in owners) == (feed.requested - taken) * x[..., 0].nbytes


def test_chunks_are_let_go_and_may_be_filled_again() -> None:
    x, kept = sequences(length=8), list[weakref.ref[np.ndarray]]()

    def fresh_chunks() -> Iterator[np.ndarray]:
        for t in range(8):
            chunk = x[..., t : t + 1].copy()
            kept.append(weakref.ref(chunk))
            yield chunk
            del chunk
            assert sum(ref() is not None for ref in kept) == 0

    def one_array() -> Iterator[np.ndarray]:
        held = np.empty((6, 3, 3))
        for start in (0, 3, 5):
            held[:] = x[..., start : start + 3]
            yield held[..., : 2 if start == 3 else 3]

    expected = stream(summing(2, 7, 8), [x]).prediction
    for chunks in (fresh_chunks(), one_array()):
        assert_equal(stream(summing(2, 7, 8), chunks).prediction, expected)


# --- without a policy ------------------------------------------------------------------------------------------------


def test_every_prefix_without_a_policy() -> None:
    x = sequences()
    found = stream(summing(3, 6, 12), [x], combine="logits", uncertainty="entropy")
    sums = [x[..., :stop].sum(-1) for stop in (3, 6, 12)]
    for k, arrival in enumerate(found.arrivals):
        mean = sum(sums[: k + 1]) / (k + 1)
        p = np.exp(mean) / np.exp(mean).sum(-1, keepdims=True)
        np.testing.assert_allclose(arrival.probs, p, rtol=1e-12)
        np.testing.assert_allclose(arrival.uncertainty, -(p * np.log(p)).sum(-1), rtol=1e-9)
        assert (arrival.stage, arrival.name, arrival.macs) == (k, f"part{k + 1}", None)
        assert arrival.goes_on.all() == (k < 2)
        assert arrival.accepted.all()
        assert arrival.seconds > 0
    assert found.prediction is not None
    assert np.isnan(found.prediction.macs).all()
    assert set(found.prediction.stage.tolist()) == {2}
    assert found.values is None
    last = stream(summing(3, 12), [x], combine="last").prediction
    assert last is not None
    np.testing.assert_array_equal(last.label, x.sum(-1).argmax(-1))


def test_regression_gives_means_and_variances_of_every_prefix() -> None:
    x = sequences(length=12)[:, :2]
    sums = [x[..., :stop].sum(-1) for stop in (4, 12)]
    found = stream(summing(4, 12, macs=2.0), [x], kind="values")
    np.testing.assert_allclose(found.arrivals[0].values, sums[0])
    np.testing.assert_allclose(found.values, (sums[0] + sums[1]) / 2)
    assert (found.prediction, found.variance, found.arrivals[1].macs) == (None, None, 4.0)
    np.testing.assert_allclose(stream(summing(4, 12), [x], kind="values", combine="last").values, sums[1])
    gaussian = stream(summing(4, 12), [x], kind="gaussian")
    means, variances = np.stack(sums)[..., :1], np.exp(np.stack(sums)[..., 1:])
    np.testing.assert_allclose(gaussian.values, means.mean(0))
    np.testing.assert_allclose(gaussian.variance, (variances + means**2).mean(0) - means.mean(0) ** 2)


class Labels(Summing):
    """Gives a label and its probability only."""

    def arrived(self, part: Any, carry: Any) -> Any:
        (total,), written = super().arrived(part, carry)
        return (total.argmax(-1), np.full(len(total), 0.5 if self.span[0] else 0.25)), written


def test_labels_with_one_probability() -> None:
    x = sequences()
    stages = [Labels("part1", (0, 4)), Labels("part2", (4, 12), "part1")]
    found = stream(stages, [x], kind="top1", combine="last").prediction
    assert found is not None
    assert found.probs is None
    np.testing.assert_array_equal(found.label, x.sum(-1).argmax(-1))
    np.testing.assert_array_equal(found.uncertainty, 0.5)
