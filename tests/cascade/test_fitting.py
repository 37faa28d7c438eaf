"""Policy.fit: every rule for every target over two and three stages does what it says, executed as simulated, and outlives JSON."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade import Cascade, Policy, StagePolicy, simulate
from quorate.cascade.deviation import deviations
from quorate.cascade.exits import Exits
from quorate.combination import softmax
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

RULES = ["paper", "optimal", "single", "agreement", "random"]
TARGETS = ["coverage@risk=0.12", "risk@coverage=0.7", "fpr@tpr=0.9", "accuracy", "nll"]


def drawn(seed: int, kind: str = "logits", stages: int = 2, n: int = 120, ood: bool = False, **options: Any) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    signal = np.eye(3)[labels] * rng.uniform(0, 4, (n, 1)) * (not ood)
    values: list[Any] = [signal + rng.normal(0, 1.4, (2, n, 3)) for _ in range(stages)]
    if kind != "logits":
        values = [softmax(value) for value in values]
    if kind == "top1":
        values = [(p.mean(0).argmax(-1), p.mean(0).max(-1)) for p in values]
    return Outputs(values, **({"kind": kind, "labels": labels, "costs": [1.0, 2.0, 4.0][:stages]} | options))


class Stub:
    """A stage that looks its members up by row number."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    macs = None

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value, self.seen = name, value, 0

    def __call__(self, x: Any, _: Any, /) -> tuple[Any, dict[str, Any]]:
        self.seen += len(x)
        assert len(x)
        return (self.value[0][x], self.value[1][x]) if isinstance(self.value, tuple) else self.value[:, x], {}


def settings_of(rule: str, target: str, stages: int) -> dict[str, Any] | None:
    """How a rule is asked for a target; None where it is refused."""
    options: dict[str, Any] = {}
    if target in ("accuracy", "nll"):
        if rule == "paper":
            return None
        options = {"deviation": 0.05} if rule != "agreement" else {}
    if target.startswith("fpr") and (rule == "agreement" or (rule == "paper" and stages > 2)):
        options["ood"] = True
    return options


@pytest.mark.parametrize("kind", ["logits", "probs", "top1"])
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_for_every_target(rule: str, stages: int, kind: str) -> None:
    val, test = drawn(1, kind, stages), drawn(2, kind, stages, n=40)
    for target in TARGETS:
        options = settings_of(rule, target, stages)
        if options is None or (kind == "top1" and (rule == "agreement" or target == "nll")):
            continue
        if options.pop("ood", False):
            options["ood"] = {"far": drawn(3, kind, stages, ood=True)}
        policy = Policy.fit(val, target=target, window=rule, seed=3, **options)  # type: ignore[arg-type]
        assert policy.target == target
        assert Policy.from_json(policy.to_json()) == policy
        assert (policy.sequence is None) == (rule == "random" or target.startswith(("risk", "accuracy", "nll")))
        if policy.sequence is not None:
            assert policy.sequence[-1] == (None,) * stages
        for stage in policy.stages[:-1]:
            assert (stage.rate is not None) == (rule == "random")
            assert rule not in ("single", "agreement") or stage.window is None or stage.window[1] is None
        if target in ("accuracy", "nll"):
            assert all(stage.tau is None for stage in policy.stages)
        on_val = simulate(policy, val)
        if target.startswith("coverage") and rule != "random":
            wrong, rows = int((on_val.label != val.truth())[on_val.accepted].sum()), int(on_val.accepted.sum())
            assert rule in ("optimal", "single") or (rows > 0 and wrong <= 0.12 * rows)
        if target.startswith("risk") and rule in ("paper", "agreement"):
            assert on_val.accepted.sum() >= 84
        stubs = [Stub(name, value) for name, value in zip(test.names, test.values, strict=True)]
        executed, simulated = Cascade(stubs, policy, batch_size=7).predict(np.arange(test.n)), simulate(policy, test)
        for field in ("label", "stage", "accepted", "uncertainty", "macs"):
            np.testing.assert_array_equal(getattr(executed, field), getattr(simulated, field))
        assert [stub.seen for stub in stubs] == [int((simulated.stage >= k).sum()) for k in range(stages)]


@pytest.mark.parametrize(("rule", "target"), list(product(["optimal", "single", "random"], TARGETS)))
def test_within_a_budget(rule: str, target: str) -> None:
    val = drawn(4, "probs", 3)
    ood = {"far": drawn(5, "probs", 3, ood=True)} if target.startswith("fpr") else None
    policy = Policy.fit(val, target=target, window=rule, budget=0.4, ood=ood)  # type: ignore[arg-type]
    routed = simulate(policy, val)
    if rule == "random":  # in expectation
        rate = policy.stages[0].rate or 0.0
        assert 2.8 - 0.002 <= 1 + 2 * rate + 4 * rate**2 <= 2.8
        assert rate == policy.stages[1].rate
        return
    assert routed.mean_macs <= 0.4 * 7 + 1e-9
    assert policy.sequence is None or Policy.from_json(policy.to_json()).sequence == policy.sequence
    if target.startswith("coverage"):
        assert (routed.label != val.truth())[routed.accepted].mean() <= 0.12
    amount = Policy.fit(val, target=target, window=rule, max_cost=2.8, ood=ood)  # type: ignore[arg-type]
    assert amount == policy


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("target", ["coverage@risk=0.1", "risk@coverage=0.7", "accuracy", "fpr@tpr=0.9"])
@pytest.mark.parametrize("allowed", [0.0, 0.03, 0.3])
def test_the_deviation_asked_for_is_kept(stages: int, target: str, allowed: float) -> None:
    val = drawn(6, stages=stages, n=200)
    costs = []
    for rule in ("optimal", "single"):
        policy = Policy.fit(val, target=target, window=rule, deviation=allowed)  # type: ignore[arg-type]
        exits, routed = Exits.under(policy, val), simulate(policy, val)
        differing = deviations(exits, routed.stage, [s.tau for s in policy.stages], not target.startswith("fpr"))
        assert differing.mean() <= allowed + 1e-12
        costs.append(routed.mean_macs)
    assert costs[0] <= costs[1] + (0.0 if stages == 2 else 0.35)  # windows hold single thresholds among them


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("target", ["coverage@risk=0.1", "accuracy"])
@pytest.mark.parametrize("allowed", [0.01, 0.04])
def test_random_rows_deviate_as_much_as_was_allowed(stages: int, target: str, allowed: float) -> None:
    val = drawn(7, stages=stages, n=400)
    policies = [Policy.fit(val, target=target, window="random", deviation=allowed, seed=seed) for seed in range(60)]
    exits, taus = Exits.under(policies[0], val), [s.tau for s in policies[0].stages]
    found = [deviations(exits, simulate(policy, val).stage, taus).mean() for policy in policies]
    assert 0.7 * allowed <= np.mean(found) <= allowed + 3 * np.std(found) / 60**0.5


def test_random_rows_are_as_many_as_the_papers_window_sends() -> None:
    val = drawn(8)
    for width in (0.05, 0.1, 0.8):
        policy = Policy.fit(val, target="coverage@risk=0.1", window="random", width=width)
        assert policy.stages[0].rate == min(1.0, 2 * width)


@pytest.mark.parametrize("target", ["coverage@risk=0.05", "risk@coverage=0.8", "fpr@tpr=0.9"])
def test_at_the_papers_deviation_the_optimal_window_passes_no_more_rows(target: str) -> None:
    for seed in range(5):
        val = drawn(seed, n=500)
        paper, optimal = (Policy.fit(val, target=target, window=rule) for rule in ("paper", "optimal"))  # type: ignore[arg-type]
        assert (simulate(optimal, val).stage == 1).sum() <= (simulate(paper, val).stage == 1).sum()


def test_agreement_sends_on_whoever_is_not_unanimous() -> None:
    val = drawn(9, n=300)
    policy = Policy.fit(val, target="accuracy", window="agreement")
    votes = np.asarray(val.values[0]).argmax(-1)
    np.testing.assert_array_equal(simulate(policy, val).stage == 1, votes[0] != votes[1])
    assert policy.uncertainty == "variation_ratio"


def test_scod_over_two_and_three_stages() -> None:
    for stages, rule in product((2, 3), ("paper", "optimal", "single")):
        val, ood = (
            drawn(10, stages=stages),
            {"a": drawn(11, stages=stages, ood=True), "b": drawn(12, stages=stages, n=30, ood=True)},
        )
        policy = Policy.fit(val, target="coverage@risk=0.25", window=rule, ood=ood, beta=0.5, alpha=0.7)  # type: ignore[arg-type]
        other = Policy.fit(
            val, target="coverage@risk=0.25", window=rule, ood=dict(reversed(ood.items())), beta=0.5, alpha=0.7  # type: ignore[arg-type]
        )  # fmt: skip
        np.testing.assert_array_equal(simulate(policy, val).stage, simulate(other, val).stage)
        if rule != "paper":
            continue
        routed, far = simulate(policy, val), np.concatenate([simulate(policy, part).accepted for part in ood.values()])
        accepted = 0.7 * routed.accepted.mean() + 0.3 * far.mean()
        risk = 0.7 * (routed.accepted & (routed.label != val.truth())).mean() + 0.3 * 0.5 * far.mean()
        assert risk <= 0.25 * accepted + 1e-12


def test_saturated_ties_report_the_rate_that_is_met() -> None:
    """Half of the rows are so sure that their uncertainty is 0: one tie, which no window parts."""
    rng = np.random.default_rng(13)
    labels = rng.integers(0, 2, 200)
    p = np.where(np.arange(200) < 100, 1.0, rng.uniform(0.5, 1, 200))
    probs = np.where(np.arange(2) == labels[:, None], p[:, None], 1 - p[:, None])
    probs[rng.random(200) < 0.1] = probs[rng.random(200) < 0.1][0]
    val = Outputs([probs, probs[::-1].copy()[::-1] * 0.98 + 0.01], kind="probs", labels=labels, costs=[1, 1])
    u = Exits.of(val).uncertainty[0]
    assert (u == 0).mean() >= 0.4
    for rule, options in [
        ("paper", {}),
        ("optimal", {"deviation": 0.02}),
        ("optimal", {"budget": 0.75}),
        ("single", {"budget": 0.75}),
    ]:
        policy = Policy.fit(val, target="coverage@risk=0.1", window=rule, **options)  # type: ignore[arg-type]
        routed = simulate(policy, val)
        assert len(np.unique(routed.stage[u == 0])) == 1
        assert routed.mean_macs == 1 + (routed.stage == 1).mean() <= 2 * options.get("budget", 1.0)


@settings(max_examples=30)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.sampled_from(RULES), st.sampled_from(TARGETS), st.integers(2, 3), st.booleans()
)
def test_very_few_rows_are_fitted_or_refused(seed: int, n: int, rule: Any, target: str, stages: int, same: bool) -> None:
    val = drawn(seed, "probs", stages, n)
    if same:  # duplicates, one class
        val = val.rows(np.zeros(n, np.int64)) if n == 1 else Outputs(
            [np.repeat(np.asarray(v)[:, :1], n, 1) for v in val.values], kind="probs", labels=[1] * n, costs=val.costs
        )  # fmt: skip
    try:
        policy = Policy.fit(val, target=target, window=rule)
    except ValueError as error:
        text = str(error)
    else:
        text = ""
    if text:
        assert len(text) > 20
        assert "\n" not in text
        return
    assert Policy.from_json(policy.to_json()) == policy
    assert simulate(policy, val).stage.max() < stages


def test_temperatures_come_before_all_else() -> None:
    val = drawn(14, stages=3)
    cool, warm = (Policy.fit(val, target="accuracy", window="single", deviation=0.02, temperature=t) for t in ("none", "fit"))  # type: ignore[arg-type]
    assert all(stage.temperature == 1 for stage in cool.stages)
    assert all(stage.temperature != 1 for stage in warm.stages)


def test_limits_and_costs_move_the_thresholds() -> None:
    val = drawn(15, n=400)
    target = "coverage@risk=0.1"
    plain = Policy.fit(val, target=target, window="optimal", budget=0.6)
    held = Policy.fit(val, target=target, window="optimal", budget=0.6, limits={0: 0.01})
    routed = simulate(held, val)
    here = routed.accepted & (routed.label == 0)
    assert (routed.label != val.truth())[here].sum() <= 0.01 * here.sum()
    dear = Policy.fit(val, target=target, window="optimal", budget=0.6, error_costs=[5.0, 1.0, 1.0])
    assert simulate(dear, val).accepted.sum() < simulate(plain, val).accepted.sum()
    priced = simulate(dear, val)
    costs = np.array([5.0, 1, 1])[val.truth()] * (priced.label != val.truth())
    assert costs[priced.accepted].mean() <= 0.1


def test_rates_and_kinds_outlive_json() -> None:
    policy = Policy.fit(drawn(16, "probs"), target="accuracy", window="random", budget=0.5, seed=11)
    mixed = replace(
        policy, stages=(replace(policy.stages[0], kind="logits"), policy.stages[1]), sequence=((0.1, None), (None, None))
    )
    again = Policy.from_json(mixed.to_json())
    assert again == mixed
    assert again.stages[0].kind == "logits"
    assert again.stages[0].seed == 11
    assert again.sequence == mixed.sequence


ONE, TWO = StagePolicy("a"), StagePolicy("b")
POLICY_REFUSALS: list[tuple[Any, str]] = [
    (lambda: StagePolicy("a", rate=1.1), "rate=1.1, window=None: expected a share in"),
    (lambda: StagePolicy("a", rate=float("nan")), "rate=nan, expected a share of the rows"),
    (lambda: StagePolicy("a", rate=True), "rate=True, expected a share of the rows"),
    (lambda: StagePolicy("a", rate=0.5, window=(None, None)), "no window beside it"),
    (lambda: StagePolicy("a", seed=1.5), "seed=1.5, expected an integer"),  # type: ignore[arg-type]
    (lambda: StagePolicy("a", seed=True), "seed=True, expected an integer"),
    (lambda: StagePolicy("a", kind="top1"), "kind='top1', expected 'logits', 'probs'"),  # type: ignore[arg-type]
    (lambda: Policy((ONE, replace(TWO, rate=0.5))), "the last stage 'b' has rate=0.5: expected None"),
    (lambda: Policy((replace(ONE, kind="probs"), TWO)), "of kind 'probs' in a policy over 'logits'"),
    (lambda: Policy((replace(ONE, kind="logits"), TWO), kind="top1", combine="last"), "of kind 'logits' in a policy over 'top1'"),
    (lambda: Policy((ONE, TWO), sequence=()), "sequence is tuple: expected vectors of 2 numbers"),
    (lambda: Policy((ONE, TWO), sequence=5), "sequence is int: expected vectors"),  # type: ignore[arg-type]
    (lambda: Policy((ONE, TWO), sequence=((0.1,),)), "sequence holds [0.1]: expected vectors of 2"),
    (lambda: Policy((ONE, TWO), sequence=((0.1, float("inf")),)), "sequence holds [0.1, inf]"),
    (lambda: Policy((ONE, TWO), sequence=((0.1, True),)), "sequence holds [0.1, True]"),
    (lambda: Policy((ONE, TWO), sequence=((0.1, None), (0.2, 0.5))), "sequence falls at vector 1"),
]


@pytest.mark.parametrize(("made", "message"), POLICY_REFUSALS)
def test_policies_that_are_refused(made: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        made()
    assert message in str(caught.value), caught.value
    assert "\n" not in str(caught.value)
