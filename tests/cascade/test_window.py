"""The paper's window, exactly; thresholds against a brute force over all pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate import metrics
from quorate.cascade import Policy, Prediction, quantile_window, simulate
from quorate.cascade.target import Target
from quorate.cascade.temperature import fit_temperature
from quorate.cascade.uncertainty import uncertainty as uncertainty_of
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

# Two classes, probabilities in eighths and so scores with many ties: (first member's, second member's, label) per row.
ROWS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 1)), min_size=2, max_size=30)
LEVELS = st.sampled_from([0.0, 0.05, 0.1, 0.2, 1 / 3, 0.29, 0.3333333333, 0.33333333334, 0.5, 0.7, 0.95])


def two_stages(rows: list[tuple[int, int, int]]) -> Outputs:
    table = np.array(rows)
    p = table[:, :2].T / 8
    return Outputs(np.stack([p, 1 - p], -1)[:, None], kind="probs", labels=table[:, 2], costs=[1, 3])


def drawn(seed: int, n: int = 400, classes: int = 4, **options: Any) -> Outputs:
    """Two members that are right more often where they are sure."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    signal = np.eye(classes)[labels] * rng.uniform(0, 4, (n, 1))
    values = [(signal + rng.normal(size=(n, classes)))[None].astype(np.float32) for _ in range(2)]
    return Outputs(values, **({"labels": labels, "costs": [1, 1]} | options))


def first_operating(val: Outputs, target: str, name: str = "msp") -> float | None:
    scores, level = uncertainty_of(val, name, stop=1), float(target.partition("=")[2])
    if target.startswith("coverage"):
        return metrics.threshold_at_risk(scores, val.errors(1), level)
    return metrics.threshold_at_coverage(scores, level)


# --- the window ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tau", "width", "count"), [(0.7, 0.1, 200), (0.05, 0.1, 150), (1.0, 0.1, 100), (0.7, 0.05, 100), (0.3, 0.5, 800)]
)
def test_the_rows_that_go_on(tau: float, width: float, count: int) -> None:
    scores = np.arange(1, 1001) / 1000
    for order in (scores, scores[::-1], np.random.default_rng(0).permutation(scores)):
        low, high = quantile_window(order, tau, width)
        assert int(((order >= low) & (order <= high)).sum()) == count


@given(
    st.lists(st.integers(-50, 50).map(lambda k: k / 4), min_size=1, max_size=60), st.floats(-20, 20), st.floats(0.01, 1),
)  # fmt: skip
def test_the_window_is_numpys_quantiles(scores: list[float], tau: float, width: float) -> None:
    q = np.mean(np.array(scores) <= tau)
    expected = np.quantile(scores, np.clip([q - width, q + width], 0, 1))
    np.testing.assert_allclose(quantile_window(scores, tau, width), expected, rtol=0, atol=1e-6)


TRANSFORMS: list[Callable[[np.ndarray], np.ndarray]] = [np.exp, np.arctan, lambda x: 7 * x - 1e3, lambda x: x**3]


@given(st.lists(st.integers(-8, 8), min_size=2, max_size=101), st.data(), st.integers(1, 20), st.sampled_from(TRANSFORMS))
def test_an_increasing_transform_changes_nobodys_way(
    scores: list[int], data: st.DataObject, twentieths: int, transform: Any
) -> None:
    plain = np.array(scores, np.float64)
    at = data.draw(st.integers(0, len(scores) - 1))
    ways = []
    for values in (plain, transform(plain)):
        low, high = quantile_window(values, values[at], twentieths / 20)
        ways.append((values >= low) & (values <= high))
    np.testing.assert_array_equal(*ways)


@pytest.mark.parametrize("shift", [-3.0, 0.0, 1000.0])
def test_rounding_of_a_rank_moves_no_row(shift: float) -> None:
    scores = np.arange(11.0) + shift  # (1 − .7) · 10 is 3.0000000000000004 in floats
    assert quantile_window(scores, np.inf, 0.7) == (3 + shift, 10 + shift)


@pytest.mark.parametrize(
    ("scores", "tau", "width", "message"),
    [
        ([], 0.5, 0.1, r"uncertainty of shape \(0,\): expected at least one finite number per row"),
        ([[1.0]], 0.5, 0.1, r"shape \(1, 1\)"),
        ([1.0, np.nan], 0.5, 0.1, "expected at least one finite number per row"),
        ([1.0], 0.5, 0.0, "width=0.0: expected a share > 0 and ≤ 1"),
        ([1.0], 0.5, 1.5, "width=1.5"),
        ([1.0], 0.5, np.nan, "width=nan"),
        ([1.0], np.nan, 0.1, "tau is NaN: expected a number, ±inf allowed"),
    ],
)
def test_windows_of_nothing(scores: Any, tau: float, width: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantile_window(scores, tau, width)


def test_one_row_and_a_tau_beyond_the_scores() -> None:
    assert quantile_window([2.0], 5.0) == (2.0, 2.0)
    assert quantile_window([1.0, 2.0, 3.0], np.inf, 0.5) == (2.0, 3.0)
    assert quantile_window([1.0, 2.0, 3.0], -np.inf, 0.5) == (1.0, 2.0)


# --- thresholds of one's own -----------------------------------------------------------------------------------------


def all_pairs(routed: Prediction, errors: np.ndarray) -> list[tuple[int, int]]:
    """(accepted, wrong) of every pair of thresholds, one per exit."""
    sides = []
    for k in (0, 1):
        u, e = routed.uncertainty[routed.stage == k], errors[routed.stage == k]
        sides.append([(int((u <= t).sum()), int(e[u <= t].sum())) for t in [-math.inf, *sorted(set(u.tolist()))]])
    return [(n + m, e + f) for n, e in sides[0] for m, f in sides[1]]


@settings(max_examples=300)
@given(ROWS, LEVELS, st.sampled_from([0.1, 0.3]))
def test_coverage_at_risk_is_the_best_of_all_pairs(rows: list[tuple[int, int, int]], risk: float, width: float) -> None:
    val = two_stages(rows)
    target = str(Target("coverage", risk))
    if first_operating(val, target) is None:
        with pytest.raises(ValueError, match=r"no threshold reaches risk .* on validation data, the least is .*: allow more"):
            Policy.fit(val, target=target, width=width)
        return
    everyone = replace(policy_window(val, target, width), target=None)
    routed = simulate(everyone, val)
    errors = routed.label != val.truth()
    best = max(n for n, wrong in all_pairs(routed, errors) if n == 0 or wrong / n <= risk)
    if best == 0:
        with pytest.raises(ValueError, match="no threshold reaches risk"):
            Policy.fit(val, target=target, width=width)
        return
    policy = Policy.fit(val, target=target, width=width)
    accepted = simulate(policy, val).accepted
    assert accepted.sum() == best
    assert errors[accepted].mean() <= risk
    assert policy.target == target
    assert policy.stages[0].window == everyone.stages[0].window


@settings(max_examples=300)
@given(ROWS, st.sampled_from([0.05, 0.1, 1 / 3, 0.5, 0.7, 0.8, 1.0]), st.sampled_from([0.1, 0.3]))
def test_risk_at_coverage_is_the_best_of_all_pairs(rows: list[tuple[int, int, int]], coverage: float, width: float) -> None:
    val = two_stages(rows)
    policy = Policy.fit(val, target=f"risk@coverage={coverage!r}", width=width)
    routed = simulate(policy, val)
    errors = routed.label != val.truth()
    need = max(1, math.ceil(coverage * len(rows) - 1e-6))
    best = min(wrong / n for n, wrong in all_pairs(routed, errors) if n >= need)
    assert routed.accepted.sum() >= need
    assert errors[routed.accepted].mean() == best


def policy_window(val: Outputs, target: str, width: float) -> Policy:
    """The policy before it has thresholds, from the paper's words."""
    operating = first_operating(val, target)
    assert operating is not None
    return Policy.of(val, [quantile_window(uncertainty_of(val, stop=1), operating, width)])


@pytest.mark.parametrize("target", ["coverage@risk=0.1", "risk@coverage=0.8"])
def test_thresholds_lie_between_data_values(target: str) -> None:
    for seed in range(5):
        val = drawn(seed)
        policy = Policy.fit(val, target=target)
        routed = simulate(policy, val)
        for stage in policy.stages:
            assert stage.tau is None or np.abs(routed.uncertainty - stage.tau).min() > 1e-9


def test_a_row_more_uncertain_than_all_data_is_not_accepted_at_the_first_exit() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.55, 1, 200)
    val = Outputs(np.stack([[p], [p]])[..., None] * [1, 0] + np.stack([[1 - p], [1 - p]])[..., None] * [0, 1], kind="probs",
                  labels=(rng.random(200) > p).astype(int))  # fmt: skip
    policy = Policy.fit(val, target="risk@coverage=0.92")  # the window's upper end is the last of the scores
    assert policy.stages[0].window[1] == uncertainty_of(val, stop=1).max()
    ood = Outputs([[[0.5, 0.5]]] * 2, kind="probs")
    routed = simulate(policy, ood)
    assert (routed.stage.tolist(), routed.accepted.tolist()) == ([0], [False])


@pytest.mark.parametrize(("width", "empty"), [(0.001, 1), (1.0, 0)])
def test_an_exit_without_data_takes_the_operating_point(width: float, empty: int) -> None:
    val = drawn(0, 100)
    policy = Policy.fit(val, target="risk@coverage=0.5", width=width)
    assert empty not in simulate(policy, val).stage
    assert policy.stages[empty].tau == first_operating(val, "risk@coverage=0.5")


# --- the paper's one threshold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["coverage@risk=0.05", "coverage@risk=0.1", "risk@coverage=0.5", "risk@coverage=0.8"])
@pytest.mark.parametrize("width", [0.1, 0.02])
def test_the_shared_threshold_is_the_papers(target: str, width: float) -> None:
    for seed in range(4):
        val = drawn(seed)
        policy = Policy.fit(val, target=target, tau="shared", width=width)
        before = policy_window(val, target, width)
        assert policy.stages[0].window == before.stages[0].window
        routed = simulate(before, val)
        errors, level = routed.label != val.truth(), float(target.partition("=")[2])
        threshold = (
            metrics.threshold_at_risk(routed.uncertainty, errors, level)
            if target.startswith("coverage")
            else metrics.threshold_at_coverage(routed.uncertainty, level)
        )
        assert {stage.tau for stage in policy.stages} == {None if threshold == math.inf else threshold}
        accepted = simulate(policy, val).accepted
        if target.startswith("coverage"):
            assert errors[accepted].mean() <= level
            assert accepted.mean() == metrics.coverage_at_risk(routed.uncertainty, errors, level)
        else:
            assert errors[accepted].mean() == metrics.risk_at_coverage(routed.uncertainty, errors, level)


@pytest.mark.parametrize(("tpr", "kind"), [(0.8, "logits"), (0.95, "logits"), (1.0, "logits"), (0.95, "probs")])
def test_fpr_at_tpr_needs_no_labels_and_accepts_just_that_share(tpr: float, kind: Any) -> None:
    z = drawn(3, labels=None).values
    values = [np.exp(v) / np.exp(v).sum(-1, keepdims=True) for v in z] if kind == "probs" else z
    val = Outputs(values, kind=kind)
    policy = Policy.fit(val, target=f"fpr@tpr={tpr:g}")
    assert policy.uncertainty == ("energy" if kind == "logits" else "msp")
    tau = policy.stages[0].tau
    assert tau is not None
    assert policy.stages[1].tau == tau
    routed = simulate(policy, val)
    assert routed.accepted.sum() == math.ceil(tpr * val.n)
    exact = metrics.threshold_at_tpr(routed.uncertainty, tpr)
    assert tau > exact or (tpr == 1 and tau == exact)


# --- fit, in general -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_about_twice_the_width_goes_on(width: float) -> None:
    val = drawn(0, 1000)
    policy = Policy.fit(val, target="risk@coverage=0.6", width=width)
    reach = simulate(policy, val).reach
    assert abs(reach[1] - 2 * width) <= 2 / 1000
    assert simulate(policy, val).mean_macs == pytest.approx(1 + reach[1])


@settings(max_examples=50)
@given(ROWS, st.sampled_from(["coverage@risk=0.3", "risk@coverage=0.8", "fpr@tpr=0.8"]), st.sampled_from(["own", "shared"]))
def test_measures_that_rank_alike_give_the_same_cascade(rows: list[tuple[int, int, int]], target: str, tau: Any) -> None:
    val, found = two_stages(rows), []  # of two classes msp, margin and entropy are increasing functions of each other
    for name in ("msp", "margin", "entropy"):
        try:
            policy = Policy.fit(val, target=target, uncertainty=name, tau=tau)
        except ValueError as error:
            found.append(str(error))
        else:
            routed = simulate(policy, val)
            found.append((routed.stage.tolist(), routed.accepted.tolist(), routed.label.tolist()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("options", [{"combine": "logits"}, {"combine": "last"}, {"kind": "top1"}])
def test_other_combinations_are_fitted_too(options: dict[str, Any]) -> None:
    val = drawn(5)
    if "kind" in options:
        pairs = [
            (val.rows(np.arange(val.n)).prefix(1).predictions(), 1 - uncertainty_of(val, stop=1)),
            (val.predictions(), 1 - uncertainty_of(val)),
        ]
        fitted = Outputs(pairs, labels=val.labels, **options)
    else:
        fitted = drawn(5, **options)
    policy = Policy.fit(fitted, target="coverage@risk=0.1")
    routed = simulate(policy, fitted)
    assert 0 < routed.reach[1] <= 0.25
    assert (routed.label != fitted.truth())[routed.accepted].mean() <= 0.1
    assert (policy.kind, policy.combine) == (fitted.kind, fitted.combine)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 100), min_size=4, max_size=4), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_wider_window_costs_no_less_and_deviates_no_more(seed: int, ends: list[int], tau0: float, tau1: float) -> None:
    outputs = drawn(seed, 60, costs=[2, 5])
    a, b, c, d = np.quantile(uncertainty_of(outputs, stop=1), np.sort(ends) / 100)
    full = simulate(Policy.of(outputs, taus=[tau0, tau1]), outputs)
    found = []
    for window in ((b, c), (a, c), (a, d), (None, d), (None, None)):
        routed = simulate(Policy.of(outputs, [window], [tau0, tau1]), outputs)
        deviates = (routed.accepted != full.accepted) | (full.accepted & (routed.label != full.label))
        found.append((routed.mean_macs, deviates))
    for (cost, deviates), (wider_cost, wider) in itertools.pairwise(found):
        assert wider_cost >= cost
        assert not (wider & ~deviates).any()
    assert not found[-1][1].any()


@pytest.mark.parametrize(
    ("val", "options", "message"),
    [
        (drawn(0), {"target": "accuracy"}, "'accuracy' has no threshold to put a window around: use coverage@risk, "),
        (drawn(0), {"target": "speed"}, "target 'speed': expected one of"),
        (drawn(0).prefix(1), {}, "the Outputs have 1 stage: a window is between stages, give one more"),
        (Outputs([np.zeros((4, 2))] * 3), {}, "these rows have no labels: give labels="),
        (drawn(0), {"tau": "one"}, "tau='one': expected 'own' or 'shared'"),
        (drawn(0), {"width": 0}, "width=0: expected a share > 0"),
        (drawn(0), {"uncertainty": "confidence"}, "uncertainty 'confidence': expected one of"),
        (drawn(0, labels=None), {}, "these rows have no labels: give labels="),
        (two_stages([(8, 8, 1), (8, 8, 1), (7, 8, 0)]), {"target": "coverage@risk=0.1"}, "on validation data, the least is 0.6667: allow"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted(val: Outputs, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Policy.fit(val, **({"target": "risk@coverage=0.8"} | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["coverage@risk=0.1", "risk@coverage=0.7", "fpr@tpr=0.9"])
def test_the_window_is_that_of_the_tempered_scores(target: str) -> None:
    val = drawn(3)
    policy = Policy.fit(val, target=target, uncertainty="msp", temperature="fit")
    first, last = policy.stages
    assert (first.temperature, last.temperature) == (fit_temperature(val, 1), fit_temperature(val, 2))
    assert abs(first.temperature - 1) > 0.1
    scores = uncertainty_of(val, "msp", stop=1, temperature=first.temperature)
    assert first.centre is not None
    assert first.window == quantile_window(scores, first.centre)
    level = float(target.partition("=")[2])
    share = metrics.coverage_at_risk(scores, val.errors(1), level) if target.startswith("coverage") else level
    assert (scores <= first.centre).mean() == pytest.approx(share, abs=1 / val.n)


# --- under shift -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.1, 0.25])
def test_adjusting_moves_the_window_and_nothing_else(width: float) -> None:
    policy = Policy.fit(drawn(0), target="coverage@risk=0.1", width=width)
    first, last = policy.stages
    policy = replace(policy, stages=(replace(first, temperature=1.5), last))
    shifted = Outputs([v * 0.6 for v in drawn(7).values])
    moved = policy.adjusted(shifted)
    scores = uncertainty_of(shifted, stop=1, temperature=1.5)
    assert first.centre is not None
    assert moved.stages[0].window == quantile_window(scores, first.centre, width)
    assert moved.stages[0].window != first.window
    assert replace(moved, stages=(replace(moved.stages[0], window=first.window), last)) == policy


@pytest.mark.parametrize("target", ["risk@coverage=0.8", "coverage@risk=0.1", "fpr@tpr=0.9"])
@pytest.mark.parametrize("tau", ["own", "shared"])
def test_adjusting_on_the_same_data_changes_nothing(target: str, tau: Any) -> None:
    for seed in range(6):
        val = drawn(seed)
        policy = Policy.fit(val, target=target, tau=tau, width=0.05 * (seed + 1))
        assert policy.stages[0].centre == first_operating(val, target, policy.uncertainty)
        assert policy.adjusted(val) == policy


def test_what_cannot_be_adjusted() -> None:
    val = drawn(0)
    policy = Policy.fit(val, target="coverage@risk=0.1")
    cases = [
        (Policy.of(val.prefix(1)), val, "this policy has 1 stage and no window: fit one on two stages or more"),
        (Policy.of(val), val, "a centre to put a window around: fit one whose target leaves some rows out"),
        (policy, drawn(0, names=["x", "y"]), r"begins with 'stage0' .*, these Outputs hold 'x', 'y' .*: give the same pool"),
        (
            policy,
            drawn(0, combine="logits"),
            r"these Outputs hold 'stage0', 'stage1' \(logits, combined by logits\): give the same pool",
        ),
    ]
    for wrong, outputs, message in cases:
        with pytest.raises(ValueError, match=message):
            wrong.adjusted(outputs)
