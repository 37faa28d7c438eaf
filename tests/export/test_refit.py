"""Lowered stages with a policy fitted to them: what is kept, what is measured, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.cascade.cascade import Cascade, simulate
from quorate.cascade.exits import Exits
from quorate.cascade.guarantee import Certificate
from quorate.cascade.planner import plan
from quorate.cascade.policy import Policy
from quorate.cascade.temperature import fit_temperature
from quorate.combination import softmax
from quorate.export.moving import mapped, moved
from quorate.export.refit import Lowered, lowered
from quorate.outputs import Outputs
from quorate.runtime.card import card
from quorate.runtime.collecting import collect
from quorate.runtime.loading import load_bundle
from quorate.runtime.program import Port, Program
from quorate.runtime.session import OnnxStage, open_session
from quorate.runtime.writing import write_bundle
from small_programs import classifier, linear, rows

X, LABELS = rows(1500, 11)
CAL, TEST = rows(1500, 12), rows(800, 13)
PROGRAMS = classifier()


def chain(programs: Any) -> list[OnnxStage]:
    return [OnnxStage(open_session(p.onnx, "it", threads=1), p.ports) for p in programs]


def outputs(programs: Any, x: Any, labels: Any = None, kind: Any = "logits") -> Outputs:
    return collect(chain(programs), x, labels, kind=kind)


VAL = outputs(PROGRAMS, X, LABELS)


def fitted(**options: Any) -> Policy:
    return Policy.fit(VAL, **({"target": "coverage@risk=0.05", "window": "optimal", "deviation": 0.02} | options))


@pytest.fixture(scope="module")
def certified() -> tuple[Policy, Lowered]:
    policy = fitted(cal=outputs(PROGRAMS, *CAL), delta=0.1, uncertainty="entropy")
    return policy, lowered(PROGRAMS, policy, "int8-static", x=X, labels=LABELS, cal=rows(1500, 14), test=TEST)


def test_same_target_no_dearer_and_a_certificate_of_its_own(certified: tuple[Policy, Lowered]) -> None:
    policy, found = certified
    after = outputs(found.programs, X, LABELS)
    new = found.policy
    assert (new.target, new.uncertainty, new.kind, new.combine) == (policy.target, "entropy", "logits", "probs")
    assert [s.name for s in new.stages] == [s.name for s in policy.stages]
    assert simulate(new, after).mean_macs <= simulate(policy, VAL).mean_macs * (1 + 1e-9)
    assert policy.certificate is not None
    assert new.certificate is not None
    assert new.certificate != policy.certificate
    assert Certificate.from_dict(new.certificate).delta == 0.1
    assert Certificate.from_dict(new.certificate).rows == 1500


def test_the_target_is_met_on_validation_rows() -> None:
    policy = fitted()
    found = lowered(PROGRAMS, policy, {"second": "int8-static"}, x=X, labels=LABELS)
    assert found.programs[0] is PROGRAMS[0]
    said = simulate(found.policy, outputs(found.programs, X, LABELS))
    assert (said.label != LABELS)[said.accepted].mean() <= 0.05
    assert said.accepted.mean() > simulate(policy, VAL).accepted.mean() - 0.05
    assert found.policy.certificate is None


def test_change_is_what_was_measured(certified: tuple[Policy, Lowered]) -> None:
    policy, found = certified
    change = json.loads(json.dumps(found.change, allow_nan=False))
    first = change["stages"]["first"]
    assert first["precision"] == "int8-static"
    assert (first["bytes_before"], first["bytes_after"]) == (len(PROGRAMS[0].onnx), len(found.programs[0].onnx))
    assert all(value > 0 for key in ("latency_ms_before", "latency_ms_after") for value in first[key].values())
    before, after = simulate(policy, outputs(PROGRAMS, *TEST)), simulate(found.policy, outputs(found.programs, *TEST))
    assert change["test"]["rows"] == 800
    assert change["test"]["agreement"] == (before.label == after.label).mean()
    for key, said in (("before", before), ("after", after)):
        assert change["test"][key]["accuracy"] == pytest.approx((said.label == TEST[1]).mean())
        assert change["test"][key]["coverage"] == said.accepted.mean()
        assert change["test"][key]["macs"] == pytest.approx(said.mean_macs)
    said = simulate(policy, VAL)
    assert change["validation"]["before"]["risk"] == (said.label != LABELS)[said.accepted].mean()
    assert "fitted anew for coverage@risk=0.05, at no more mean cost" in change["policy"]


def test_tolerance_is_twice_the_largest_difference_on_the_same_inputs() -> None:
    found = lowered(PROGRAMS, fitted(), "int8-static", x=X, labels=LABELS, calibration=X[:300])
    old, new = chain(PROGRAMS), chain(found.programs)
    rows_, carry = X[:300], dict[str, Any]()
    worst = 0.0
    for a, b in zip(old, new, strict=True):
        (was, wrote), (members, carried) = a(rows_, carry), b(rows_, carry)
        worst = max(worst, np.abs(members - was).max(), *(np.abs(carried[n] - wrote[n]).max() for n in b.writes))
        carry = carried
    assert found.atol == pytest.approx(2 * worst, rel=1e-6)


def test_a_later_stage_is_calibrated_on_what_the_lowered_ones_write() -> None:
    """Rows of ten times the range: scales would be far off had the second stage seen those of other rows."""
    wide = 10 * X
    found = lowered(PROGRAMS, fitted(), "int8-static", x=X, labels=LABELS, calibration=wide)
    exact, here = outputs(PROGRAMS, wide).values, outputs(found.programs, wide).values
    assert all(np.abs(a - b).max() < 0.1 * np.std(a) + 0.05 * np.abs(a).max() for a, b in zip(exact, here, strict=True))  # type: ignore[arg-type]


def test_without_a_target_the_same_shares_go_on_and_are_accepted() -> None:
    policy = Policy.of(VAL, windows=[(0.1, 0.45)], taus=[0.3, 0.4])
    found = lowered(PROGRAMS, policy, "int8-static", x=X)
    old, new = simulate(policy, VAL), simulate(found.policy, outputs(found.programs, X))
    assert found.policy != policy
    assert new.reach == pytest.approx(old.reach, abs=1.5 / len(X))
    for k in (0, 1):
        assert new.accepted[new.stage == k].mean() == pytest.approx(old.accepted[old.stage == k].mean(), abs=0.005)
    assert found.change["test"] is None
    assert found.change["validation"]["before"] == {"coverage": old.accepted.mean(), "macs": old.mean_macs}


def test_joins_and_temperatures() -> None:
    policy = Policy.of(VAL, windows=[(0.05, None)], temperatures=[0.5, 3.0], target="accuracy")
    policy = replace(policy, stages=(policy.stages[0], replace(policy.stages[1], join="replace")))
    found = lowered(PROGRAMS, policy, "bf16", x=X, labels=LABELS).policy
    after = outputs(lowered(PROGRAMS, policy, "bf16", x=X, labels=LABELS).programs, X, LABELS)
    alone = Outputs(after.values[1:], labels=LABELS)
    assert [s.join for s in found.stages] == ["mean", "replace"]
    assert [s.temperature for s in found.stages] == pytest.approx([fit_temperature(after, 1), fit_temperature(alone, 1)])


def test_centred_windows_stay_centred() -> None:
    policy = fitted(window="paper", deviation=None, width=0.15)
    found = lowered(PROGRAMS, policy, "int8-static", x=X, labels=LABELS)
    stage = found.policy.stages[0]
    assert stage.centre is not None
    assert stage.width == 0.15
    assert "windows moved" in found.change["policy"]
    after = outputs(found.programs, X, LABELS)
    assert found.policy.adjusted(after).stages[0].window == pytest.approx(stage.window, abs=0.02)
    assert simulate(found.policy, after).reach == pytest.approx(simulate(policy, VAL).reach, abs=0.003)


def test_one_stage_gets_its_threshold() -> None:
    one = [PROGRAMS[0]]
    one = [Program(replace(one[0].ports, drops=("hidden",)), one[0].onnx)]
    (best, *_) = plan({"first": outputs(one, X, LABELS)}, "coverage@risk=0.1")
    policy = replace(best.policy, stages=(replace(best.policy.stages[0], name="first"),))
    found = lowered(one, policy, "int8-dynamic", x=X, labels=LABELS)
    said = simulate(found.policy, outputs(found.programs, X, LABELS))
    assert (said.label != LABELS)[said.accepted].mean() <= 0.1
    assert "threshold fitted anew" in found.change["policy"]


@pytest.mark.parametrize("target", ["risk@coverage=0.8", "accuracy", "nll"])
def test_other_targets(target: str) -> None:
    policy = fitted(target=target, deviation=None, max_cost=2500.0)
    found = lowered(PROGRAMS, policy, "int8-static", x=X, labels=LABELS)
    said = simulate(found.policy, outputs(found.programs, X, LABELS))
    assert said.mean_macs <= simulate(policy, VAL).mean_macs * (1 + 1e-9)
    assert said.accepted.mean() >= (0.8 if "coverage" in target else 1.0)


def test_tpr_is_kept_and_can_be_certified_without_outliers() -> None:
    policy = fitted(target="fpr@tpr=0.9", window="paper", deviation=None)
    found = lowered(PROGRAMS, policy, "int8-static", x=X, cal=CAL)
    assert simulate(replace(found.policy, certificate=None), outputs(found.programs, X)).accepted.mean() == pytest.approx(
        0.9, abs=0.005
    )
    assert found.policy.certificate is not None
    assert found.policy.certificate["kind"] == "fpr"


def test_costs_of_errors_and_limits_stay() -> None:
    costs = [1.0, 2.0, 0.5]
    policy = fitted(cal=outputs(PROGRAMS, *CAL), error_costs=costs, limits={1: 0.2})
    found = lowered(PROGRAMS, policy, "bf16", x=X, labels=LABELS, cal=TEST).policy
    assert found.certificate is not None
    told = Certificate.from_dict(found.certificate)
    assert told.costs == tuple(costs)
    assert [(part.name, part.target) for part in told.classes] == [("1", 0.2)]


def test_a_stage_of_logits_among_probabilities() -> None:
    values = [softmax(np.asarray(value, np.float64)) for value in VAL.values]
    probs = Outputs(values, kind="probs", labels=LABELS, names=VAL.names, costs=VAL.costs)
    policy = Policy.of(probs, windows=[(0.1, 0.6)], taus=[0.3, 0.3])
    policy = replace(policy, stages=tuple(replace(s, kind="logits") for s in policy.stages))
    found = lowered(PROGRAMS, policy, "bf16", x=X, labels=LABELS)
    said = Cascade(chain(found.programs), found.policy).predict(X)
    assert said.accepted.mean() == pytest.approx(simulate(policy, probs).accepted.mean(), abs=0.003)
    assert found.change["validation"]["after"]["accuracy"] == pytest.approx((said.label == LABELS).mean())


def test_costs_of_ones_own_stay_and_bound_the_mean() -> None:
    priced = Outputs(VAL.values, kind="logits", labels=LABELS, names=VAL.names, costs=[5.0, 1.0])
    policy = Policy.fit(priced, target="coverage@risk=0.05", window="optimal", budget=0.9)
    found = lowered(PROGRAMS, policy, "bf16", x=X, labels=LABELS)
    assert [stage.cost for stage in found.policy.stages] == [5.0, 1.0]
    most = simulate(policy, priced).mean_macs
    assert simulate(found.policy, outputs(found.programs, X, LABELS)).mean_macs <= most * (1 + 1e-9)
    assert found.change["validation"]["before"]["macs"] == pytest.approx(most)


def test_without_costs_those_of_the_programs_count() -> None:
    policy = Policy.of(Outputs(VAL.values, kind="logits", names=VAL.names), windows=[(0.1, 0.6)])
    found = lowered(PROGRAMS, policy, "bf16", x=X)
    assert [stage.cost for stage in found.policy.stages] == [program.ports.macs for program in PROGRAMS]


def test_rows_sent_at_random_stay_at_random() -> None:
    policy = fitted(window="random", deviation=None, max_cost=2000.0)
    found = lowered(PROGRAMS, policy, "bf16", x=X, labels=LABELS).policy
    assert [s.rate for s in found.stages] == [s.rate for s in policy.stages]
    assert found.stages[0].rate is not None


def test_the_threshold_with_the_same_share() -> None:
    old, new = np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 40])
    assert [mapped(t, old, new) for t in (1, 2.5, 3)] == [15.0, 25.0, 35.0]
    assert [mapped(t, old, new, below=True) for t in (2, 2.5, 4)] == [15.0, 25.0, 35.0]
    assert mapped(0.5, old, new) == 0.5  # below all stays below all
    assert mapped(50.0, old, new) == 50.0
    assert mapped(4.0, old, new) == np.nextafter(40.0, np.inf)
    assert mapped(0.5, old, new - 10) < 0.0  # and is put there
    assert mapped(2.5, old, np.array([10.0, 20, 20, 40])) == 20.0  # a tie goes whole
    assert mapped(2.5, old, np.repeat(new, 2)) == 25.0  # another number of rows


def test_moving_to_the_same_outputs_changes_nothing_that_is_decided() -> None:
    policy = fitted()
    same = moved(policy, VAL, policy, VAL)
    one, other = simulate(policy, VAL), simulate(same, VAL)
    np.testing.assert_array_equal(one.stage, other.stage)
    np.testing.assert_array_equal(one.accepted, other.accepted)
    assert Exits.under(same, VAL).names == VAL.names


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"precision": {"third": "bf16"}}, r"precision names \['third'\]"),
    ({"precision": {}}, "names no stage"),
    ({"precision": "int3"}, "precision='int3'"),
    ({"labels": None}, "counts errors: give the labels"),
    ({"cal": (X, LABELS)}, "the calibration rows are the validation rows"),
    ({"test": CAL, "cal": CAL}, "the test rows are the calibration rows"),
    ({"cal": CAL, "precision": "int8-dynamic"}, "depends on its neighbours"),
    ({"programs": PROGRAMS[::-1]}, "the policy is for"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED)
def test_refused(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"programs": PROGRAMS, "policy": fitted(), "precision": "bf16", "x": X, "labels": LABELS} | change
    with pytest.raises(ValueError, match=said) as error:
        lowered(**given)
    assert "\n" not in str(error.value)


def test_a_target_that_is_missed() -> None:
    program = linear(np.eye(3, 6, dtype="f4"), np.zeros(3, "f4"))
    policy = Policy.of(outputs([program], X, LABELS), taus=[0.4], target="coverage@risk=0.0001")
    flipped = np.full(len(X), 2)
    with pytest.raises(ValueError, match=r"at this precision no threshold reaches .* or leave stages at fp32"):
        lowered([program], policy, "bf16", x=X[LABELS == 0], labels=flipped[: (LABELS == 0).sum()])


def test_a_certificate_of_a_mix_needs_its_outliers() -> None:
    far = {"far": outputs(PROGRAMS, 3 + rows(500, 20)[0])}
    policy = fitted(ood=far, cal_ood=far, cal=outputs(PROGRAMS, *CAL), target="coverage@risk=0.4")
    assert policy.certificate is not None
    assert policy.certificate["kind"] == "scod"
    with pytest.raises(ValueError, match="a mix with OOD rows"):
        lowered(PROGRAMS, policy, "bf16", x=X, labels=LABELS, cal=CAL)
    found = lowered(PROGRAMS, policy, "bf16", x=X, labels=LABELS)
    assert "same shares" in found.change["policy"]


def test_a_bundle_of_lowered_stages_decides_the_same(certified: tuple[Policy, Lowered], tmp_path: Path) -> None:
    _, found = certified
    x, answers, carry = X[:16], [], dict[str, Any]()
    for stage in chain(found.programs):
        answers.append(stage(x, {name: carry[name] for name in stage.reads}))
        carry |= answers[-1][1]
    ports = [program.ports for program in found.programs]
    told = card(name="small", stages=ports, input=Port("x", "float32", (6,)), policy=found.policy, precision=found.change)
    write_bundle(
        tmp_path / "b", found.programs, policy=found.policy, golden=(x, answers), card=told, name="small", precision=found.change,
        rtol=0.0, atol=found.atol,
    )  # fmt: skip
    runtime = load_bundle(tmp_path / "b")
    said, stored = runtime.predict(TEST[0]), simulate(found.policy, outputs(found.programs, TEST[0]))
    np.testing.assert_array_equal(said.label, stored.label)
    np.testing.assert_array_equal(said.stage, stored.stage)
    assert runtime.manifest.precision == found.change
    assert [stage.ports.precision for stage in runtime.manifest.stages] == ["int8-static"] * 2
    assert "| second | int8-static |" in told
