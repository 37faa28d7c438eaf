"""Exits: routing on arrays is the routing of ``simulate``, bit for bit, whatever the chain; and what a chain may not be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade import Policy, simulate
from quorate.cascade.exits import Exits
from quorate.cascade.policy import StagePolicy
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

LOGIT_SCORES = ["msp", "entropy", "margin", "energy", "max_logit", "variation_ratio"]


def drawn(seed: int, n: int = 60, stages: int = 3, classes: int = 3, members: int = 2, **options: Any) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    values = [
        (2 * np.eye(classes)[labels] * rng.uniform(0, 1, (n, 1)) + rng.normal(size=(members, n, classes))).astype(np.float32)
        for _ in range(stages)
    ]
    return Outputs(values, **({"labels": labels, "costs": [1.0, 2.0, 4.0, 8.0][:stages]} | options))


def as_kind(kind: str, seed: int, **options: Any) -> Outputs:
    logits = drawn(seed, **options)
    if kind == "logits":
        return logits
    from quorate.combination import softmax

    probs = [softmax(np.asarray(value, np.float64)) for value in logits.values]
    common = {"labels": logits.labels, "costs": logits.costs}
    if kind == "probs":
        return Outputs(probs, kind="probs", **common)
    means = [p.mean(0) for p in probs]
    return Outputs([(p.argmax(-1), p.max(-1)) for p in means], kind="top1", **common)


@settings(max_examples=60)
@given(st.sampled_from(["logits", "probs", "top1"]), st.integers(0, 10**6), st.data())
def test_routing_is_simulations_bit_for_bit(kind: str, seed: int, data: st.DataObject) -> None:
    out = as_kind(kind, seed)
    name = data.draw(st.sampled_from(LOGIT_SCORES if kind == "logits" else ["msp", "entropy"] if kind == "probs" else ["msp"]))
    tempered = kind != "top1" and name in ("msp", "entropy", "margin")
    order = data.draw(st.permutations(out.names).map(lambda names: list(names)[: 1 + seed % 3]))
    joins = ["replace"] * 3 if kind == "top1" else [data.draw(st.sampled_from(["mean", "replace"])) for _ in order]
    temperatures = [data.draw(st.sampled_from([0.7, 1.0, 2.5])) if tempered else 1.0 for _ in order]
    exits = Exits.of(out, order, name, joins[: len(order)], temperatures)
    cost = dict(zip(out.names, out.costs or (), strict=True))
    stages = []
    for k, stage in enumerate(order):
        cut = [None, *np.unique(exits.uncertainty[k]).tolist()]  # on data values: ties go on
        ends = data.draw(st.tuples(st.sampled_from(cut), st.sampled_from(cut)))
        low, high = ends if None in ends else sorted(ends)
        window = data.draw(st.sampled_from([(low, high), None])) if k < len(order) - 1 else None
        tau = data.draw(st.sampled_from(cut))
        stages.append(StagePolicy(stage, joins[k], temperatures[k], window, tau, cost[stage]))
    policy = Policy(tuple(stages), name, out.kind, out.combine)
    routed, under = simulate(policy, out), Exits.under(policy, out)
    np.testing.assert_array_equal(under.uncertainty, exits.uncertainty)
    np.testing.assert_array_equal(under.label, exits.label)
    assert under.costs == exits.costs
    assert under.names == tuple(order)
    exit_at = under.stage([stage.window for stage in policy.stages[:-1]])
    np.testing.assert_array_equal(exit_at, routed.stage)
    np.testing.assert_array_equal(under.at_exit(under.uncertainty, exit_at), routed.uncertainty)
    np.testing.assert_array_equal(under.at_exit(under.label, exit_at), routed.label)
    np.testing.assert_array_equal(under.accepted(exit_at, [stage.tau for stage in policy.stages]), routed.accepted)
    np.testing.assert_array_equal(under.spent[exit_at], routed.macs)


def test_the_extreme_windows() -> None:
    out = drawn(1)
    exits = Exits.of(out)
    np.testing.assert_array_equal(exits.stage([(None, None)] * 2), 2)
    np.testing.assert_array_equal(exits.stage([None, (None, None)]), 0)
    np.testing.assert_array_equal(exits.stage([(None, None), None]), 1)
    low = float(np.median(exits.uncertainty[0]))
    np.testing.assert_array_equal(exits.stage([(low, None), None]), (exits.uncertainty[0] >= low).astype(int))
    np.testing.assert_array_equal(exits.stage([(None, low), None]), (exits.uncertainty[0] <= low).astype(int))
    np.testing.assert_array_equal(Exits.of(out.prefix(1)).stage([]), 0)
    with pytest.raises(ValueError, match=r"^1 windows for 3 stages: expected 2$"):
        exits.stage([None])


def test_the_full_ensemble_is_the_last_exit() -> None:
    out = drawn(2)
    exits = Exits.of(out)
    for k in range(3):
        np.testing.assert_array_equal(exits.label[k], out.predictions(k + 1))
    np.testing.assert_array_equal(exits.errors[-1], out.errors())
    np.testing.assert_array_equal(exits.spent, [1, 3, 7])
    assert (exits.count, exits.n) == (3, 60)


def test_blocks_of_rows_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    out = drawn(3, n=50)
    whole = Exits.of(out, nll=True)
    monkeypatch.setattr("quorate.outputs.BLOCK", 7)
    parts = Exits.of(out, nll=True)
    np.testing.assert_array_equal(parts.uncertainty, whole.uncertainty)
    np.testing.assert_array_equal(parts.label, whole.label)
    np.testing.assert_array_equal(parts.loss, whole.loss)  # type: ignore[arg-type]


def test_nll_is_that_of_the_tempered_mean_probability() -> None:
    out = as_kind("probs", 4)
    exits = Exits.of(out, temperatures=[1.0, 2.0, 0.5], nll=True)
    for k, temperature in enumerate([1.0, 2.0, 0.5]):
        p = np.concatenate([np.asarray(v) for v in out.values[: k + 1]]).mean(0) ** (1 / temperature)
        p /= p.sum(-1, keepdims=True)
        np.testing.assert_allclose(exits.loss[k], -np.log(p[np.arange(out.n), out.truth()]), rtol=1e-12)  # type: ignore[index]


def test_rows_and_concat() -> None:
    out = drawn(5)
    exits = Exits.of(out, nll=True)
    odd = np.arange(out.n) % 2 == 1
    some = exits.rows(odd)
    np.testing.assert_array_equal(some.uncertainty, Exits.of(out.rows(np.flatnonzero(odd))).uncertainty)
    assert some.loss is not None
    assert some.loss.shape == (3, 30)
    assert some.truth is not None
    assert len(some.truth) == 30
    both = Exits.concat([some, exits.rows(np.flatnonzero(~odd))])
    np.testing.assert_array_equal(both.label, np.concatenate([exits.label[:, odd], exits.label[:, ~odd]], 1))
    assert both.truth is not None
    assert Exits.concat([some, replace(exits, truth=None)]).truth is None


def test_joins_and_costs_by_default() -> None:
    assert Exits.of(drawn(6, costs=None)).costs == (0, 0, 0)
    out = drawn(6, combine="last")
    single = [Exits.of(out, [name]) for name in out.names]
    np.testing.assert_array_equal(Exits.of(out).uncertainty, np.concatenate([one.uncertainty for one in single]))
    assert Exits.of(out, ["stage2", "stage0"]).costs == (4, 1)


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"order": ["stage0", "nobody"]}, "expected different ones among"),
    ({}, {"order": []}, "at least one"),
    ({}, {"order": ["stage0", "stage0"]}, "expected different ones"),
    ({"ordered": True}, {"order": ["stage1", "stage0"]}, "are no prefix of"),
    ({}, {"joins": ["mean"]}, "1 joins and 3 temperatures for 3 stages"),
    ({}, {"temperatures": [1.0, 1.0]}, "3 joins and 2 temperatures for 3 stages"),
    ({}, {"temperatures": [1.0, 1.0, 0.0]}, "expected a finite number > 0"),
    ({}, {"temperatures": [1.0, 1.0, 2.0], "uncertainty": "energy"}, "does not act on energy"),
    ({}, {"uncertainty": "confidence"}, "expected one of msp"),
    ({"labels": None}, {"nll": True}, "no labels"),
    ({"members": 1}, {"uncertainty": "variation_ratio"}, "needs two or more members"),
]


@pytest.mark.parametrize(("made", "asked", "message"), REFUSALS)
def test_refusals(made: dict[str, Any], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Exits.of(drawn(7, **made), **asked)
    assert "\n" not in str(caught.value)


def test_more_refusals() -> None:
    with pytest.raises(ValueError, match="'stage0' gives only its top class: the NLL needs scores"):
        Exits.of(as_kind("top1", 8), nll=True)
    with pytest.raises(ValueError, match="these rows have no labels: give labels="):
        _ = Exits.of(drawn(8, labels=None)).errors
    policy = Policy.of(drawn(8))
    with pytest.raises(ValueError, match="not among"):
        Exits.under(policy, drawn(8).prefix(2))
    with pytest.raises(ValueError, match="the policy is for logits"):
        Exits.under(policy, as_kind("probs", 8))
