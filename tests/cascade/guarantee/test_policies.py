"""Certified policies: against the array functions on what the cascade says, for every target."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quorate import metrics
from quorate.cascade import Policy, simulate
from quorate.cascade.guarantee import (
    Certificate,
    Part,
    certify,
    certify_deviation_policy,
    certify_policy,
    certify_scod,
    clopper_pearson,
    learn_then_test,
    recertify,
)
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding
SEQUENCE = tuple((round(0.02 * g, 2), round(0.03 * g, 2)) for g in range(3, 30))


def drawn(seed: int, n: int = 3000, stages: int = 2, **options: Any) -> Outputs:
    """Members over 4 classes, right more often where they are sure; 70 per cent of the rows are easy."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    signal = np.eye(4)[labels] * rng.choice([1.0, 9.0], (n, 1), p=[0.3, 0.7])
    values = [(signal + rng.normal(size=(n, 4)))[None] for _ in range(stages)]
    return Outputs(values, **({"labels": labels, "costs": [1] * stages} | options))


def foreign(seed: int, n: int = 500) -> Outputs:
    return Outputs([np.random.default_rng((seed, k)).normal(size=(1, n, 4)) for k in range(2)], costs=[1, 1])


def policy(target: str | None = "coverage@risk=0.05", **changed: Any) -> Policy:
    made = Policy.of(drawn(0), [(0.1, 0.4)], taus=[0.2, 0.25], target=target)
    return replace(made, **({"sequence": SEQUENCE} | changed))


def places(p: Policy, outputs: Outputs) -> np.ndarray:
    routed = simulate(p, outputs)
    assert p.sequence is not None
    accepts = np.array([routed.uncertainty <= np.array(taus)[routed.stage] for taus in p.sequence])
    return np.where(accepts.any(0), accepts.argmax(0), len(p.sequence))


@pytest.mark.parametrize("method", ["fixed-sequence", "bonferroni"])
def test_selective_risk_moves_the_thresholds(method: Any) -> None:
    p, cal = policy(), drawn(1)
    routed, steps = simulate(p, cal), np.arange(len(SEQUENCE))
    wrong = routed.label != cal.truth()
    direct = certify(places(p, cal), wrong, steps, 0.05, 0.1, method)
    certified = certify_policy(p, cal, delta=0.1, method=method)
    assert certified.certificate is not None
    found = Certificate.from_dict(certified.certificate)
    assert replace(found, exits=()) == direct
    assert found.feasible
    assert found.tau is not None
    assert tuple(stage.tau for stage in certified.stages) == SEQUENCE[int(found.tau)]
    assert Policy.from_json(certified.to_json()) == certified
    after = simulate(certified, cal)
    assert found.accepted == after.accepted.sum()
    for k, part in enumerate(found.exits):
        here = after.accepted & (after.stage == k)
        assert (part.name, part.rows, part.accepted) == (f"stage{k}", (after.stage == k).sum(), here.sum())
        assert part.errors == wrong[here].sum()
        assert part.bound == pytest.approx(float(clopper_pearson(int(wrong[here].sum()), int(here.sum()), 0.05)))
    fresh = recertify(certified, drawn(2))
    assert (fresh.kind, fresh.tested, fresh.delta, fresh.target, fresh.method) == ("risk", 1, 0.1, 0.05, "single")
    assert fresh.coverage == simulate(certified, drawn(2)).accepted.mean()


def test_infeasible_leaves_the_thresholds() -> None:
    cal = drawn(1, n=30)
    certified = certify_policy(policy("coverage@risk=0.01"), cal)
    assert certified.certificate is not None
    found = Certificate.from_dict(certified.certificate)
    assert (found.feasible, found.coverage, found.tau) == (False, 0.0, None)
    assert found.needed is not None
    assert certified.stages == policy().stages
    assert [part.accepted for part in found.exits] == [0, 0]
    all_wrong = drawn(1, labels=(drawn(1).truth() + 1) % 4)
    failed = recertify(policy(), all_wrong)
    assert (failed.feasible, failed.needed) == (False, None)
    assert failed.coverage > 0.5
    assert failed.bound is not None
    assert failed.bound > 0.9


def test_costs_and_limits() -> None:
    p, cal = policy(), drawn(1)
    routed, truth = simulate(p, cal), cal.truth()
    table = np.array([[0, 1, 1, 1], [2, 0, 1, 1], [1, 1, 0, 1], [1, 1, 0.5, 0]])
    direct = certify(places(p, cal), table[truth, routed.label], np.arange(27), 0.05, costs_bound=2.0)
    certified = certify_policy(p, cal, costs=table)
    found = Certificate.from_dict(certified.certificate)
    assert replace(found, exits=(), costs=None) == direct
    assert Policy.from_json(certified.to_json()) == certified
    again = recertify(certified, cal)  # by the costs that it was certified for
    assert (again.costs, again.errors, again.observed) == (found.costs, found.errors, found.observed)
    assert recertify(certified, cal, costs=[1, 1, 1, 1]).errors != found.errors
    vector = Certificate.from_dict(certify_policy(p, cal, costs=[1, 1, 1, 1]).certificate)
    assert vector.tau == Certificate.from_dict(certify_policy(p, cal).certificate).tau
    limited = Certificate.from_dict(certify_policy(p, cal, limits={3: 0.03}).certificate)
    direct = certify(places(p, cal), routed.label != truth, np.arange(27), limits={3: 0.03}, predicted=routed.label)
    assert replace(limited, exits=()) == direct
    assert limited.classes[0].target == 0.03
    with pytest.raises(ValueError, match="all 0"):
        certify_policy(p, cal, costs=[0, 0, 0, 0])


@pytest.mark.parametrize("target", ["risk@coverage=0.7", "accuracy"])
def test_thresholds_that_stay_get_a_bound(target: str) -> None:
    p, cal = policy(target), drawn(1)
    certified = certify_policy(p, cal, delta=0.02)
    assert certified.certificate is not None
    found, routed = Certificate.from_dict(certified.certificate), simulate(p, cal)
    errors = int((routed.label != cal.truth())[routed.accepted].sum())
    assert (found.kind, found.feasible, found.target, found.errors) == ("risk", True, None, errors)
    assert found.bound == pytest.approx(float(clopper_pearson(errors, int(routed.accepted.sum()), 0.02)))
    assert certified.stages == p.stages
    assert recertify(p, cal, risk=0.0).feasible is False
    assert recertify(p, cal, risk=0.5).feasible is True


def test_fpr_at_tpr() -> None:
    p, cal = policy("fpr@tpr=0.7"), drawn(1)
    bare = Outputs(cal.values, costs=[1, 1])
    certified = certify_policy(p, bare, cal_ood={"noise": foreign(3)})
    assert certified.certificate is not None
    found = Certificate.from_dict(certified.certificate)
    assert found.feasible
    assert found.tau is not None
    index = int(found.tau)
    assert found.accepted == (places(p, cal) <= index).sum()
    assert found.outliers[0].accepted == (places(p, foreign(3)) <= index).sum()
    assert tuple(stage.tau for stage in certified.stages) == SEQUENCE[index]
    still = certify_policy(replace(p, sequence=None), bare, cal_ood={"noise": foreign(3)}).certificate
    fixed = recertify(p, bare, ood={"noise": foreign(3)})
    assert still is not None
    assert Certificate.from_dict(still) == fixed
    assert fixed.coverage == simulate(p, cal).accepted.mean()
    assert fixed.outliers == (
        Part(
            "noise",
            500,
            int(n := simulate(p, foreign(3)).accepted.sum()),
            None,
            n / 500,
            float(clopper_pearson(int(n), 500, 0.025)),
        ),
    )
    failed = recertify(p, bare, target="fpr@tpr=1.0")
    assert (failed.feasible, failed.coverage) == (False, fixed.coverage)


def test_scod() -> None:
    p, cal, ood = policy("coverage@risk=0.1"), drawn(1), foreign(3)
    routed = simulate(p, cal)
    direct = certify_scod(places(p, cal), routed.label != cal.truth(), places(p, ood), np.arange(27), 0.1, beta=0.5, alpha=0.9)
    certified = certify_policy(
        p, cal, cal_ood={"a": ood.rows(np.arange(200)), "b": ood.rows(np.arange(200, 500))}, beta=0.5, alpha=0.9
    )
    assert certified.certificate is not None
    found = Certificate.from_dict(certified.certificate)
    assert (replace(found, exits=()), found.feasible) == (direct, True)
    single = recertify(p, cal, ood={"a": ood}, beta=0.5)
    out = [np.where(simulate(p, o).accepted, 0.0, 1.0) for o in (cal, ood)]
    assert single.observed == pytest.approx(metrics.scod_risk(out[0], routed.label != cal.truth(), out[1], tau=0, beta=0.5))
    same = recertify(certified, cal, ood={"a": ood})  # the mix of its own certificate
    assert (same.alpha, same.beta) == (found.alpha, found.beta) == (0.9, 0.5)
    assert same.observed == pytest.approx(found.observed)
    assert recertify(certified, cal, ood={"a": ood}, beta=2.0, alpha=0.5).beta == 2.0


def test_recertification_keeps_the_limits() -> None:
    certified, new = certify_policy(policy(), drawn(1), limits={2: 0.15}), drawn(2)
    found = recertify(certified, new)
    assert found == recertify(certified, new, limits={2: 0.15})
    assert [(part.name, part.target) for part in found.classes] == [("2", 0.15)]
    assert recertify(certified, new, limits={}).classes == ()


def nested(widths: Any, stages: int = 2, tau: float = 0.2) -> list[Policy]:
    windows = [[(max(0.0, 0.2 - w), 0.2 + w)] * (stages - 1) for w in widths]
    return [Policy.of(drawn(0, stages=stages), w, taus=[tau] * stages) for w in windows]


@pytest.mark.parametrize("stages", [2, 3])
def test_the_deviation_from_the_full_chain(stages: int) -> None:
    policies, cal = nested([0.001, 0.02, 0.05, 0.1, 0.2, 0.6], stages), drawn(1, stages=stages)
    full = simulate(Policy.of(cal, taus=[0.2] * stages), cal)
    rows = []
    for p in policies:
        routed = simulate(p, cal)
        rows.append((routed.accepted != full.accepted) | (routed.accepted & (routed.label != full.label)))
    deviations = np.array(rows).T
    if stages == 2:
        assert (np.diff(deviations.astype(int), axis=1) <= 0).all()
    wider = np.maximum.accumulate(deviations[:, ::-1], 1)[:, ::-1].sum(0)
    enough = (wider + 1) / (cal.n + 1) <= 0.02
    chosen = certify_deviation_policy(policies, Outputs(cal.values, costs=[1] * stages), 0.02)
    assert chosen.certificate is not None
    found = Certificate.from_dict(chosen.certificate)
    assert enough.any()
    assert (found.kind, found.tau, found.errors) == ("deviation", enough.argmax(), wider[enough.argmax()])
    assert sum(part.errors or 0 for part in found.exits) == found.errors
    assert chosen.stages == policies[int(enough.argmax())].stages
    json.dumps(chosen.certificate, allow_nan=False)
    refused = certify_deviation_policy(policies[:2], cal, 1e-4)
    assert refused.certificate is not None
    assert (refused.certificate["feasible"], refused.stages) == (False, policies[1].stages)


def test_learn_then_test_over_policies() -> None:
    cal = drawn(1)
    policies = [Policy.of(cal, [(0.1, 0.4)], taus=[t, t]) for t in (0.05, 0.1, 0.15, 0.2, 0.3, 0.75)]
    one_stage = [Policy.of(cal, [None], taus=[t, t]) for t in (0.05, 0.1)]
    everything = policies + one_stage
    for method in ("fixed-sequence", "bonferroni", "holm"):
        at, found = learn_then_test(policies, cal, 0.05, 0.1, method)
        assert at is not None
        routed = simulate(policies[at], cal)
        assert (found.feasible, found.method, found.tested, found.coverage) == (True, method, 6, routed.accepted.mean())
        assert found.errors == (routed.label != cal.truth())[routed.accepted].sum()
        assert found.bound is not None
        assert found.bound <= 0.05 or method == "holm"
        assert Certificate.from_dict(found.to_dict()) == found
    cheap, _ = learn_then_test(everything, cal, 0.08, 0.05, "holm", best="cost")
    assert cheap in (6, 7)
    costly, _ = learn_then_test(everything, cal, 0.08, 0.05, "holm", costs=[3, 3, 3, 3], limits={0: 0.9})
    plain, _ = learn_then_test(everything, cal, 0.08, 0.05, "holm")
    assert plain is not None
    assert costly is None or costly <= plain
    none, refused = learn_then_test(policies[::-1], cal, 0.001)
    assert (none, refused.feasible, refused.coverage, refused.tau) == (None, False, 0.0, None)


@pytest.mark.parametrize(
    ("changed", "arguments", "match"),
    [
        ({"target": None}, {}, "has no target"),
        ({"target": "nll"}, {}, "nll has no guarantee"),
        ({"sequence": None}, {}, "no sequence of thresholds"),
        ({}, {"risk": 0.1}, "leave it out"),
        ({"target": "accuracy"}, {"cal_ood": {"a": foreign(0)}}, "OOD rows play no part"),
        ({"target": "fpr@tpr=0.9"}, {"costs": [1, 1, 1, 1]}, "knows no errors"),
        ({}, {"limits": {0: 0.1}, "cal_ood": {"a": foreign(0)}}, "limits per class are not certified"),
        ({}, {"method": "holm"}, "method='holm'"),
        ({}, {"method": "bonferroni", "cal_ood": {"a": foreign(0)}}, "SCOD is tested as a fixed sequence"),
        ({}, {"cal": foreign(0)}, "no labels"),
    ],
)
def test_bad_terms(changed: dict[str, Any], arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        certify_policy(policy(**changed), **({"cal": drawn(1, 50)} | arguments))
    assert "\n" not in str(caught.value)


def test_bad_lists_of_policies() -> None:
    cal = drawn(1, 50)
    with pytest.raises(ValueError, match="no policies to choose"):
        certify_deviation_policy([], cal)
    with pytest.raises(ValueError, match="different chains"):
        certify_deviation_policy([policy(), policy(uncertainty="entropy")], cal)
    random = policy(stages=(replace(policy().stages[0], window=None, rate=0.5), policy().stages[1]))
    with pytest.raises(ValueError, match="at random"):
        certify_deviation_policy([random], cal)
    with pytest.raises(ValueError, match="no policies to test"):
        learn_then_test([], cal)
    for wrong in ({"method": "hope"}, {"best": "luck"}):
        with pytest.raises(ValueError, match="expected one of fixed-sequence"):
            learn_then_test([policy()], cal, **wrong)  # type: ignore[arg-type]
