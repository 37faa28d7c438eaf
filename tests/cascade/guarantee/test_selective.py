"""Selective risk: the specification's counts, brute force over thresholds, limits per class, and how often a claim is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quorate import metrics
from quorate.cascade.guarantee import Certificate, bounded, certify, certify_one, exits_report

pytestmark = pytest.mark.deciding
GRID = np.arange(1, 51) / 50


def true_risk(coverage: np.ndarray | float) -> Any:
    """Risk of the ``coverage`` surest of rows with u uniform on [0, 1] that are wrong with probability .15 (u / .77)²: .05 at .77."""
    return 0.05 * (np.asarray(coverage) / 0.77) ** 2


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    u = rng.random(n)
    return u, rng.random(n) < 0.15 * (u / 0.77) ** 2


@pytest.mark.parametrize(("errors", "rows", "shown"), [(0, 58, False), (0, 59, True), (1, 92, False), (1, 93, True)])
def test_one_fixed_threshold(errors: int, rows: int, shown: bool) -> None:
    wrong = np.arange(rows) < errors
    for found in (certify(np.zeros(rows), wrong, [0.5]), certify_one(np.ones(rows, bool), wrong, 0.05)):
        assert (found.feasible, found.tested) == (shown, 1)
        assert found.needed == (0 if shown else found.needed)
        assert shown or found.needed
    assert certify_one(np.ones(58, bool), np.zeros(58), 0.05).needed == 1


def test_the_figures_of_a_certificate() -> None:
    u = np.array([0.1] * 100 + [0.2] * 100 + [0.3] * 100)
    wrong = np.arange(300) % 100 < np.repeat([0, 2, 60], 100)
    found = certify(u, wrong, [0.15, 0.2, 0.25, 0.35, 0.05], 0.05, 0.1)
    assert (found.feasible, found.tau, found.accepted, found.errors, found.coverage) == (True, 0.25, 200, 2, 2 / 3)
    assert found.observed == 0.01
    assert found.bound == pytest.approx(stats.beta.ppf(0.9, 3, 198))
    assert (found.tested, found.needed, found.method, found.delta) == (5, 0, "fixed-sequence", 0.1)
    assert Certificate.from_dict(found.to_dict()) == found
    bonferroni = certify(u, wrong, [0.35, 0.25, 0.15, 0.05], 0.05, 0.1, "bonferroni")
    assert bonferroni.tau == 0.25
    assert bonferroni.bound == pytest.approx(stats.beta.ppf(1 - 0.1 / 4, 3, 198))
    assert not certify(u, wrong, [0.05, 0.15]).feasible  # nothing accepted at the first: the sequence ends there


def test_all_wrong_and_all_fine() -> None:
    u = np.linspace(0, 1, 400)
    hopeless = certify(u, np.ones(400, bool), GRID)
    assert (hopeless.feasible, hopeless.coverage, hopeless.tau, hopeless.observed, hopeless.needed) == (
        False,
        0.0,
        None,
        None,
        None,
    )
    for method in ("fixed-sequence", "bonferroni"):
        fine = certify(u, np.zeros(400, bool), [0.5, None], 0.05, 0.05, method)  # type: ignore[arg-type]
        assert (fine.feasible, fine.coverage, fine.tau) == (True, 1.0, None)
    assert certify(u, np.ones(400, bool), [None], 1.0).coverage == 1
    short = certify(np.zeros(40), np.zeros(40, bool), [1.0], 0.01)
    assert (short.feasible, short.needed) == (False, 299 - 40)
    assert certify(u, np.zeros(400, bool), [-1.0, 1.0]).needed == 59 * 401 - 400


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=60),
    risk=st.sampled_from([0.1, 0.3, 0.6]),
    delta=st.sampled_from([0.05, 0.2, 0.5]),
)
def test_against_a_loop(rows: list[tuple[int, bool]], risk: float, delta: float) -> None:
    u, wrong = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    taus = [0.0, 1.5, 3.0, 4.0, 7.0]
    p = [stats.binom.cdf(wrong[u <= t].sum(), (u <= t).sum(), risk) if (u <= t).any() else 1.0 for t in taus]
    passed = next((g for g, value in enumerate(p) if value > delta), len(p))
    found = certify(u, wrong, taus, risk, delta)
    assert (found.feasible, found.tau) == (passed > 0, taus[passed - 1] if passed else None)
    spread = certify(u, wrong, taus, risk, delta, "bonferroni")
    best = [g for g, value in enumerate(p) if value <= delta / 5]
    assert spread.accepted == (max((u <= taus[g]).sum() for g in best) if best else 0)
    back = np.arange(len(u))[::-1]
    assert certify(u[back], wrong[back], taus, risk, delta) == found
    assert certify(u, wrong, taus, risk, min(0.9, delta * 1.5)).coverage >= found.coverage
    assert certify(np.exp(u), wrong, np.exp(taus), risk, delta).coverage == found.coverage


def test_costs_are_tested_by_betting() -> None:
    rng = np.random.default_rng(0)
    u, wrong = draw(rng, 3000)
    cost = wrong * rng.choice([0.5, 2.0], 3000)
    found = certify(u, cost, GRID[5:], 0.1, costs_bound=2.0)
    p = [bounded.p_value(cost[u <= t], 0.1, 2.0) for t in GRID[5:]]
    assert found.tau == GRID[5:][next(g for g, value in enumerate(p) if value > 0.05) - 1]
    assert found.errors == pytest.approx(cost[u <= found.tau].sum())
    assert found.bound == pytest.approx(bounded.upper_bound(cost[u <= found.tau], 0.05, 2.0), rel=1e-9)
    assert found.bound <= 0.1
    assert certify(u, wrong, GRID[5:], costs_bound=1.0) == certify(u, wrong, GRID[5:])
    tenfold = certify(u, 10 * cost, GRID[5:], 1.0, costs_bound=20.0)
    assert (tenfold.tau, tenfold.feasible) == (found.tau, True)
    assert certify(u, cost, GRID, 2.0, costs_bound=2.0).coverage == 1
    short = certify(u[:100], cost[:100], GRID[2:], 0.1, costs_bound=2.0)
    assert not short.feasible
    assert short.needed is not None
    assert short.needed > 0


def test_limits_per_class() -> None:
    rng = np.random.default_rng(1)
    u, label = rng.random(4000), rng.integers(0, 3, 4000)
    wrong = rng.random(4000) < np.array([0.01, 0.05, 0.3])[label] * u
    taus = GRID[4:]
    found = certify(u, wrong, taus, 0.5, limits={1: 0.04, 2: 0.1}, predicted=label)
    alone = [certify(u[label == c], wrong[label == c], taus, limit) for c, limit in ((1, 0.04), (2, 0.1))]
    assert found.feasible
    assert found.tau == min(one.tau for one in alone if one.tau is not None)
    assert [part.name for part in found.classes] == ["1", "2"]
    for part, one in zip(
        found.classes, [certify(u[label == c], wrong[label == c], [found.tau], 0.5) for c in (1, 2)], strict=True
    ):
        assert (part.accepted, part.errors, part.risk, part.bound) == (one.accepted, one.errors, one.observed, one.bound)
    assert not certify(u, wrong, taus, 0.5, limits={7: 0.1}, predicted=label).feasible  # no row is labelled so: nothing is known
    single = certify_one(u <= 0.3, wrong, None, limits={2: 0.1}, predicted=label)
    assert (single.feasible, single.target, single.classes[0].target) == (True, None, 0.1)
    broken = certify_one(u <= 1, wrong, None, limits={2: 0.1}, predicted=label)
    assert (broken.feasible, broken.needed, broken.coverage) == (False, None, 1.0)


def violations(rng: np.random.Generator, draws: int, n: int) -> dict[str, float]:
    """How often the true risk exceeds the target, by rule."""
    found: dict[str, list[float]] = {"fixed-sequence": [], "bonferroni": [], "costs": [], "max": [], "nearest": []}
    for number in range(draws):
        u, wrong = draw(rng, n)
        found["fixed-sequence"].append(certify(u, wrong, GRID[9:]).tau or 0.0)
        found["bonferroni"].append(certify(u, wrong, GRID, method="bonferroni").tau or 0.0)
        if number < draws // 4:
            found["costs"].append(certify(u, 3 * wrong, GRID[9:], 0.15, costs_bound=3.0).tau or 0.0)
        for rule in ("max", "nearest"):
            coverage = metrics.coverage_at_risk(u, wrong, 0.05, rule)  # type: ignore[arg-type]
            found[rule].append(float(np.quantile(u, coverage)))
    return {rule: float((true_risk(np.array(taus)) > 0.05).mean()) for rule, taus in found.items()}


@pytest.mark.parametrize(("draws", "n"), [(1000, 400)])
@pytest.mark.slow
def test_claims_are_wrong_as_seldom_as_promised(draws: int, n: int) -> None:
    rates = violations(np.random.default_rng(0), draws, n)
    for rule, count in (("fixed-sequence", draws), ("bonferroni", draws), ("costs", draws // 4)):
        assert rates[rule] <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / count)
    assert rates["max"] > 0.3
    assert rates["nearest"] > 0.3


def test_the_exits_report() -> None:
    stage, accepted = np.array([0, 0, 0, 1, 1, 0]), np.array([1, 1, 0, 1, 1, 1], bool)
    first, second, third = exits_report(("a", "b", "c"), stage, accepted, [0, 1, 1, 0, 0, 0], 0.3)
    assert (first.name, first.rows, first.accepted, first.errors, first.risk) == ("a", 4, 3, 1, 1 / 3)
    assert first.bound == pytest.approx(stats.beta.ppf(0.9, 2, 2))
    assert second.bound == pytest.approx(1 - 0.1 ** (1 / 2))
    assert (third.rows, third.risk, third.bound) == (0, None, 1.0)
    assert exits_report(("a", "b"), stage, accepted, None)[0].bound is None
    costs = exits_report(("a", "b"), stage, accepted, [0, 2.5, 1, 0, 0, 0], 0.1, 3.0)[0]
    assert (costs.errors, costs.bound) == (2.5, pytest.approx(bounded.upper_bound([0, 2.5, 0], 0.05, 3.0)))
    with pytest.raises(ValueError, match=r"stages go from 0 to 1: expected 0 … 0"):
        exits_report(("a",), stage, accepted, None)
    with pytest.raises(ValueError, match="integers and booleans"):
        exits_report(("a", "b"), stage, accepted.astype(int), None)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"uncertainty": [0.1, math.nan]}, "no NaN"),
        ({"uncertainty": []}, "at least one number per row"),
        ({"errors": [True]}, "expected 2 booleans"),
        ({"errors": [0.0, -1.0]}, "finite costs ≥ 0"),
        ({"errors": [0.0, 2.0]}, "give costs_bound"),
        ({"errors": [0.0, 2.0], "costs_bound": 1.0}, "errors go up to 2"),
        ({"errors": [0, 0], "costs_bound": 0}, "costs_bound=0"),
        ({"thresholds": []}, "thresholds of shape"),
        ({"thresholds": [math.nan]}, "thresholds of shape"),
        ({"thresholds": [-math.inf]}, "no threshold"),
        ({"thresholds": 0.5}, "thresholds is float"),
        ({"thresholds": "no"}, "thresholds is str"),
        ({"risk": -0.1}, r"risk=-0\.1"),
        ({"risk": math.nan}, "risk=nan"),
        ({"delta": 1.0}, "probability of failure"),
        ({"method": "holm"}, "method='holm'"),
        ({"limits": {0: 0.1}}, "limits need predicted"),
        ({"limits": {0: 0.1}, "predicted": [0.0, 1.0]}, "expected 2 class numbers"),
        ({"limits": {-1: 0.1}, "predicted": [0, 1]}, r"limits name \[-1\]"),
        ({"limits": {0: -0.1}, "predicted": [0, 1]}, r"limits\[0\]=-0\.1"),
        ({"limits": [0.1], "predicted": [0, 1]}, "limits is list"),
    ],
)
def test_bad_input(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        certify(**({"uncertainty": [0.1, 0.2], "errors": [False, True], "thresholds": [0.3]} | arguments))
    assert "\n" not in str(caught.value)


def test_acceptances_are_booleans() -> None:
    with pytest.raises(ValueError, match="accepted of shape"):
        certify_one([1, 0], [0, 0])
