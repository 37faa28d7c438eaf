"""Plans: what is promised is what simulating the policy gives, the list is a front, limits are kept, bad input is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quorate.cascade import Policy, simulate
from quorate.cascade.planner import Plan, join_pool, plan
from quorate.combination import softmax
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding


def drawn(
    seed: int, rows: int = 500, members: int = 3, kind: str = "logits", inside: bool = True, **options: Any
) -> dict[str, Outputs]:
    """Members that are right more often the more they cost; outside, noise that they are less sure of."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, rows)
    signal = np.eye(3)[truth] * rng.uniform(0, 4, (rows, 1)) if inside else np.zeros((rows, 3))
    made = {}
    for m in range(members):
        z = signal * (0.8 + 0.5 * m) + rng.normal(size=(rows, 3)) * (1 if inside else 0.5)
        p = softmax(z)
        value: Any = {"logits": z, "probs": p, "top1": (p.argmax(1), p.max(1))}[kind]
        given: dict[str, Any] = {"labels": truth if inside else None, "costs": [float(2**m)]} | options
        made[f"m{m}"] = Outputs([value], kind=kind, **given)  # type: ignore[arg-type]
    return made


def check(plans: list[Plan], pool: dict[str, Outputs], rising: bool) -> None:
    """Figures are those of the simulated policies; each plan is better than all cheaper ones."""
    joined = join_pool(pool)
    total = sum(joined.costs or ())
    figures = [p.figures.figure if rising else -p.figures.figure for p in plans]
    assert figures == sorted(set(figures))
    assert [p.figures.cost for p in plans] == sorted({p.figures.cost for p in plans})
    for p in plans:
        routed = simulate(p.policy, joined)
        assert routed.mean_macs == pytest.approx(p.figures.cost)
        assert p.cost_share == pytest.approx(p.figures.cost / total)
        assert p.reach == pytest.approx([(routed.stage >= k).mean() for k in range(len(p.members))])
        if p.policy.certificate is None:
            assert routed.accepted.mean() == pytest.approx(p.figures.coverage)
        assert Policy.from_json(p.policy.to_json()) == p.policy


@pytest.mark.parametrize("kind", ["logits", "top1"])
def test_accuracy(kind: str) -> None:
    pool = drawn(1, kind=kind)
    done: list[tuple[int, int]] = []
    plans = plan(pool, "accuracy", progress=lambda i, n: done.append((i, n)))
    check(plans, pool, True)
    joined = join_pool(pool)
    for p in plans:
        assert (simulate(p.policy, joined).label == joined.labels).mean() == pytest.approx(p.figures.figure)
        assert p.certificate is None
        assert p.delta is None
    singles = [(cost, float((o.predictions() == o.labels).mean())) for o in pool.values() for cost in o.costs or ()]
    costs, figures = ([getattr(p.figures, key) for p in plans] for key in ("cost", "figure"))
    for cost, accuracy in singles:  # no single member beats the front
        assert np.interp(cost, costs, figures) >= accuracy - 1e-9
    assert any(len(p.members) > 1 for p in plans)
    assert done == sorted(done)
    assert done[-1][0] == done[-1][1]


def test_limits_of_cost() -> None:
    pool = drawn(2)
    limited = plan(pool, "accuracy", max_cost=1.7, most=2, front=4)
    check(limited, pool, True)
    assert len(limited) <= 4
    assert max(p.figures.cost for p in limited) <= 1.7 * (1 + 1e-9)
    assert max(len(p.members) for p in limited) <= 2
    share = plan(pool, "accuracy", budget=1.7 / 7, most=2, front=4)
    assert [p.policy for p in share] == [p.policy for p in limited]
    assert all(p.members[0] != "m2" for p in limited)
    (only,) = plan(pool, "accuracy", max_cost=1.0, most=2)
    assert only.members == ("m0",)


def test_coverage_with_certificates() -> None:
    pool, cal = drawn(3, 800), drawn(4, 800)
    plans = plan(pool, "coverage@risk=0.1", cal=cal, delta=0.2, front=3, most=2, joins="mean")
    check(plans, pool, True)
    for p in plans:
        assert p.figures.risk <= 0.1 + 1e-9
        assert p.certificate is not None
        assert p.certificate.delta == pytest.approx(0.2 / len(plans))
        assert p.delta == 0.2
        assert p.policy.target == "coverage@risk=0.1"
        routed = simulate(p.policy, join_pool(cal))
        if p.certificate.feasible:
            assert routed.accepted.mean() == pytest.approx(p.certificate.coverage)
            assert p.certificate.bound is not None
            assert p.certificate.bound <= 0.1
    assert any(p.certificate is not None and p.certificate.feasible for p in plans)


def test_risk_at_coverage_with_costs_of_errors() -> None:
    pool = drawn(5)
    costs = [1.0, 3.0, 0.5]
    plans = plan(pool, "risk@coverage=0.7", error_costs=costs, front=3, most=2)
    check(plans, pool, False)
    joined = join_pool(pool)
    for p in plans:
        routed = simulate(p.policy, joined)
        lost = np.where(routed.label != joined.labels, np.array(costs)[joined.truth()], 0.0)
        assert lost[routed.accepted].mean() == pytest.approx(p.figures.figure)
        assert p.figures.coverage >= 0.7 - 1e-9


def test_limits_per_class() -> None:
    pool = drawn(12, 900)
    plans = plan(pool, "coverage@risk=0.15", limits={1: 0.05}, front=3, most=2, joins="mean")
    joined = join_pool(pool)
    for p in plans:
        routed = simulate(p.policy, joined)
        said = routed.accepted & (routed.label == 1)
        assert (joined.truth()[said] != 1).mean() <= 0.05


def test_nll_with_temperatures_has_no_certificate() -> None:
    pool = drawn(6)
    plans = plan(pool, "nll", cal=drawn(7), temperature="fit", front=3, most=2)
    check(plans, pool, False)
    joined = join_pool(pool)
    for p in plans:
        routed = simulate(p.policy, joined)
        assert routed.probs is not None
        assert -np.log(routed.probs[np.arange(500), joined.truth()]).mean() == pytest.approx(p.figures.figure)
        assert p.certificate is None
    assert any(stage.temperature != 1 for p in plans for stage in p.policy.stages)


def test_outliers() -> None:
    pool, ood = drawn(8), {"far": drawn(9, 150, inside=False), "near": drawn(10, 50, inside=False)}
    unlabelled = {name: Outputs(o.values, costs=o.costs) for name, o in pool.items()}
    plans = plan(unlabelled, "fpr@tpr=0.9", ood=ood, cal=drawn(11), cal_ood=ood, front=3, most=2, delta=0.1)
    check(plans, unlabelled, False)
    for p in plans:
        assert p.policy.uncertainty == "energy"
        assert p.certificate is not None
        assert [part.name for part in p.certificate.outliers] == ["far", "near"]
    uncertified = plan(unlabelled, "fpr@tpr=0.9", ood=ood, front=2, most=2)
    for p in uncertified:
        shares = [simulate(p.policy, join_pool(part)).accepted for part in ood.values()]
        assert np.concatenate(shares).mean() == pytest.approx(p.figures.figure)
    mixed = plan(pool, "risk@coverage=0.8", ood=ood, beta=0.5, alpha=0.9, cal=drawn(11), front=2, most=2)
    for p in mixed:
        assert p.certificate is None
        routed = simulate(p.policy, join_pool(pool))
        outside = np.concatenate([simulate(p.policy, join_pool(part)).accepted for part in ood.values()]).mean()
        wrong = 0.9 * (routed.accepted & (routed.label != join_pool(pool).labels)).mean() + 0.1 * 0.5 * outside
        assert wrong / (0.9 * routed.accepted.mean() + 0.1 * outside) == pytest.approx(p.figures.figure)


def test_mixed_kinds_and_dependent_stages() -> None:
    one, other = drawn(1), drawn(1, kind="probs")
    exits = Outputs([one[f"m{m}"].values[0] for m in range(3)], labels=one["m0"].labels, costs=[1, 2, 4], ordered=True)
    pool = {"net": exits, "service": replace_costs(other["m2"], 3.0)}
    plans = plan(pool, "accuracy", front=6)
    check(plans, pool, True)
    for p in plans:
        mine = [name for name in p.members if name.startswith("net/")]
        assert mine == ["net/stage0", "net/stage1", "net/stage2"][: len(mine)]
        assert all((stage.kind == "logits") == stage.name.startswith("net/") for stage in p.policy.stages)
        assert p.policy.kind == "probs"


def replace_costs(outputs: Outputs, cost: float) -> Outputs:
    return Outputs(outputs.values, kind=outputs.kind, labels=outputs.labels, costs=[cost])


def test_the_same_twice() -> None:
    pool = drawn(13, 300)
    one, two = (plan(pool, "coverage@risk=0.1", search="beam", front=3, most=2, seed=5) for _ in range(2))
    assert [replace(p.policy, certificate=None) for p in one] == [q.policy for q in two]


def test_a_target_that_no_plan_meets() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    p = np.full((300, 2), 0.5) + np.array([0.1, -0.1])
    pool = {"a": Outputs([p], kind="probs", labels=labels, costs=[1])}
    least = (labels != 0).mean()
    with pytest.raises(
        ValueError, match=f"no plan reaches coverage@risk=0.001 on validation data, the least risk is {least:.4g}:"
    ):
        plan(pool, "coverage@risk=0.001")


POOL, CAL = drawn(1, 60), drawn(2, 60)
OOD = {"far": drawn(3, 20, inside=False)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.5, "max_cost": 1.0}, "expected one of them"),
        ({"budget": 1.5}, "an amount in their unit is max_cost"),
        ({"max_cost": 0.5}, "less than 1, what the cheapest member 'm0' costs"),
        ({"joins": "sum"}, "joins='sum': expected one of mean, replace, both"),
        ({"search": "random"}, "search='random': expected one of auto"),
        ({"temperature": 2}, "temperature=2: expected one of none, fit"),
        ({"most": 0}, "most=0: expected a whole number ≥ 1"),
        ({"front": 1.5}, "front=1.5: expected a whole number ≥ 1"),
        ({"beam": True}, "beam=True: expected a whole number ≥ 1"),
        ({"delta": 1.0}, "delta=1.0: expected a probability between 0 and 1"),
        ({"target": "fpr@tpr=0.9"}, "no OOD data"),
        ({"target": "accuracy", "limits": {0: 0.1}}, "rejects no errors: leave limits out"),
        ({"target": "speed"}, "target 'speed': expected one of"),
        ({"target": "accuracy", "ood": OOD}, "OOD rows play no part"),
        ({"cal_ood": OOD}, "cal_ood without cal"),
        ({"cal": CAL, "ood": OOD}, "ood and cal_ood: expected both or none"),
        ({"cal": CAL, "ood": OOD, "cal_ood": OOD, "limits": {0: 0.1}}, "limits per class have no certificate"),
        ({"cal": drawn(2, 60, labels=None)}, "cal has no labels"),
        ({"cal": {"m0": CAL["m0"]}}, "cal has members ['m0'], the pool has ['m0', 'm1', 'm2']"),
        ({"ood": {"far": {"m0": CAL["m0"]}}}, "ood['far'] has members ['m0']"),
        ({"pool": drawn(1, 60, labels=None)}, "needs labelled Outputs"),
        ({"pool": drawn(1, 60, costs=None)}, "'m0' has no costs"),
        ({"pool": drawn(1, 60, kind="top1"), "target": "nll"}, "target nll needs scores of every class"),
        ({"pool": drawn(1, 60, kind="top1"), "joins": "mean"}, "use 'replace'"),
        ({"pool": drawn(1, 60, kind="top1"), "temperature": "fit"}, "does not act on msp of top1"),
        ({"temperature": "fit", "uncertainty": "energy"}, "does not act on energy of logits"),
        ({"uncertainty": "doubt"}, "uncertainty 'doubt': expected one of"),
        ({"error_costs": [1.0]}, "error costs of shape (1,)"),
        ({"beta": -1.0, "ood": OOD}, "beta=-1.0"),
        ({"beta": 2.0}, "beta=2.0, alpha=None play no part without OOD rows"),
        ({"alpha": 0.5, "target": "accuracy"}, "beta=1.0, alpha=0.5 play no part without OOD rows"),
        ({"limits": {3: 0.1}}, "limits={3: 0.1}: expected class numbers"),
        ({"delta": "x"}, "delta=x: expected a probability"),
        ({"seed": -1}, "seed=-1, expected an integer ≥ 0"),
        ({"pool": drawn(1, 1)}, "the pool has 1 row"),
        ({"pool": drawn(1, 60, costs=[1e308])}, "too large to be added up"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"pool": POOL, "target": "coverage@risk=0.2"} | options
    with pytest.raises(ValueError) as error:
        plan(given.pop("pool"), given.pop("target"), **given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
