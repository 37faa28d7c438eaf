"""Policies: windows with closed ends, JSON that keeps every bit, and all that a policy may not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade import Policy, StagePolicy
from quorate.cascade.policy import FORMAT
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

FINITE = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
END = st.none() | FINITE
WINDOW = st.none() | st.tuples(END, END).map(lambda w: w if None in w else tuple(sorted(w)))
OUTPUTS = Outputs([np.zeros((2, 4, 3))] * 3, names=["a", "b", "c"], costs=[1, 2.5, 4])


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    uncertainty = draw(st.sampled_from(["msp", "entropy", "margin", "energy", "max_logit", "variation_ratio"]))
    count = draw(st.integers(1, 4))
    stages = [
        StagePolicy(
            draw(st.text(min_size=1, max_size=5)) + str(k),
            draw(st.sampled_from(["mean", "replace"])),
            draw(POSITIVE) if uncertainty in ("msp", "entropy", "margin") else 1.0,
            draw(WINDOW) if k < count - 1 else None,
            draw(END),
            draw(st.floats(0, allow_infinity=False)),
        )
        for k in range(count)
    ]
    target = draw(st.none() | st.sampled_from(["accuracy", "coverage@risk=0.05"]))
    certificate = draw(st.none() | st.dictionaries(st.text(max_size=3), FINITE | st.text(max_size=3) | st.booleans(), max_size=3))
    return Policy(tuple(stages), uncertainty, "logits", draw(st.sampled_from(["probs", "logits"])), target, certificate)


def bits(policy: Policy) -> list[str]:
    """Every float as its hexadecimal digits, so that 0.0 and −0.0 differ."""
    numbers = [n for s in policy.stages for n in (s.temperature, s.tau, s.cost, *(s.window or ()))]
    return ["none" if n is None else n.hex() for n in numbers]


# --- JSON ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(policies())
def test_json_keeps_every_bit(policy: Policy) -> None:
    text = policy.to_json()
    again = Policy.from_json(text)
    assert again == policy
    assert bits(again) == bits(policy)
    assert again.to_json() == text


def test_files_keep_every_bit_and_errors_name_them(tmp_path: Path) -> None:
    policy = Policy.of(OUTPUTS, [(0.1, None), (-0.0, 1 / 3)], [0.2, None, 0.4], "entropy", "risk@coverage=0.8")
    path = tmp_path / "deep" / "policy.json"
    policy.save(path)
    assert Policy.load(path) == policy
    assert path.read_text() == policy.to_json() + "\n"
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist: expected a policy written by Policy\.save"):
        Policy.load(tmp_path / "none.json")
    for text, message in [("{", "is not readable as JSON"), ("[]", ": not a policy: format 'list'")]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            Policy.load(path)
        assert str(caught.value).count(str(path)) == 1


def test_numpy_numbers_become_plain_ones() -> None:
    stage = StagePolicy("a", "mean", np.float32(1), [np.float64(0.5), np.int64(1)], np.float16(0.5), np.int32(7))  # type: ignore[arg-type]
    assert stage == StagePolicy("a", "mean", 1.0, (0.5, 1.0), 0.5, 7.0)
    policy = Policy((stage, StagePolicy("b")))
    assert Policy.from_json(policy.to_json()) == policy


def test_arrays_per_stage_are_taken_as_lists() -> None:
    two = OUTPUTS.prefix(2)
    listed = Policy.of(two, [(0.1, 0.4)], [0.2, 0.3], temperatures=[1.5, 2.0])
    assert Policy.of(two, np.array([[0.1, 0.4]]), np.array([0.2, 0.3]), temperatures=np.array([1.5, 2.0])) == listed
    assert Policy.of(two, np.zeros((0, 2)), np.zeros(0), temperatures=np.zeros(0)) == Policy.of(two)


@pytest.mark.parametrize(
    "given", [{"windows": 0.5}, {"taus": "ab"}, {"temperatures": np.float64(2)}, {"temperatures": np.array(2)}]
)
def test_what_is_no_list_per_stage(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(given))} is \w+: expected a list, one entry per stage"):
        Policy.of(OUTPUTS, **given)


GOOD: dict[str, Any] = json.loads(Policy.of(OUTPUTS).to_json())


def changed(path: str, value: Any) -> str:
    data = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    at = data
    for key in parents:
        at = at[int(key) if key.isdigit() else key]
    at[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a policy: unreadable JSON .*, expected what Policy.to_json writes"),
        ("[" * 100_000, "unreadable JSON"),
        ("3", "not a policy: format 'int', expected 'quorate-policy/1' as Policy.to_json writes it"),
        ("{}", "not a policy: format None"),
        (changed("format", "quorate-policy/2"), "format 'quorate-policy/2'"),
        (json.dumps({"format": FORMAT}), "not a policy: stages is missing, expected stages, uncertainty, kind"),
        (changed("extra", 1), r"not a policy of this version: unknown keys \['extra'\], expected stages, uncertainty"),
        (
            changed("stages.0.widow", 1),
            r"not a stage of this version: unknown keys \['widow'\], expected name, join, temperature",
        ),
        (changed("stages", "abc"), "not a policy: stages is str, expected a list"),
        (changed("stages", {}), "not a policy: stages is dict, expected a list"),
        (changed("stages", [1]), "not a stage: int, expected an object with name, join"),
        (changed("stages", [{"join": "mean"}]), "not a stage: name is missing, expected name, join"),
        (changed("stages", []), "a policy needs at least one stage"),
        (changed("kind", 1), "not a policy: kind is int, expected text"),
        (changed("kind", None), "kind=None: expected one of logits"),
        (changed("uncertainty", ["msp"]), "not a policy: uncertainty is list, expected text"),
        (changed("target", 5), "not a policy: target is int, expected text"),
        (changed("certificate", [1]), "certificate is list: expected a dict, or None"),
        (changed("stages.0.name", 5), "stage name 5: expected text, the stage's name in its pool"),
        (changed("stages.0.temperature", "1"), "stage 'a': temperature='1', expected a finite number > 0"),
        (changed("stages.0.tau", True), "stage 'a': tau=True, expected a finite number, or None to accept all"),
        (changed("stages.0.cost", 10**400), "cost=10+, expected a finite number ≥ 0"),
        (changed("stages.0.tau", float("nan")), "tau=nan, expected a finite number"),
        (changed("stages.0.window", "ab"), r"window='ab', expected \(low, high\), each a finite number, or None for an open end"),
        (changed("stages.0.window", [0]), r"window=\[0\], expected \(low, high\)"),
        (changed("stages.0.window", [0, "x"]), r"window=\[0, 'x'\], expected \(low, high\)"),
        (changed("stages.0.window", [0, float("inf")]), r"window=\[0, inf\], expected"),
    ],
)
def test_json_that_is_no_policy(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Policy.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("certificate", [{"bound": float("nan")}, {"bound": np.float32(1)}, {"set": {1}}])
def test_a_certificate_that_json_cannot_hold(certificate: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the certificate can't be JSON .*: give finite numbers, text, lists and dicts only"):
        Policy((StagePolicy("a"),), certificate=certificate).to_json()


# --- what a policy may say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"name": ""}, "stage name '': expected text"),
        ({"join": "sum"}, "stage 'a': join='sum', expected 'mean' or 'replace'"),
        ({"temperature": 0}, "temperature=0.0, expected a finite number > 0"),
        ({"temperature": np.inf}, "temperature=inf, expected a finite number > 0"),
        ({"cost": -1}, "cost=-1.0, expected a finite number ≥ 0"),
        ({"cost": np.nan}, "cost=nan, expected a finite number ≥ 0"),
        ({"cost": None}, "cost=None, expected a finite number ≥ 0"),
        ({"tau": np.inf}, "tau=inf, expected a finite number, or None to accept all"),
        ({"window": (1, 0)}, r"window=\(1, 0\) has low > high, expected low ≤ high or None \(nobody goes on\)"),
        ({"window": (np.nan, None)}, r"window=\(nan, None\), expected \(low, high\)"),
        ({"window": 0.5}, "window=0.5, expected"),
    ],
)
def test_stage_refusals(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StagePolicy(**({"name": "a"} | stage))


A, B = StagePolicy("a"), StagePolicy("b")
LAST = StagePolicy("a", "replace")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"stages": ()}, "a policy needs at least one stage, each a StagePolicy"),
        ({"stages": ("a",)}, "each a StagePolicy"),
        ({"stages": (A, A)}, r"stage names \['a', 'a'\]: expected each once, a stage can't run twice"),
        ({"stages": (A, StagePolicy("b", window=(0, 1)))}, r"the last stage 'b' has window=\(0.0, 1.0\): expected None, nothing comes"),
        ({"uncertainty": "confidence"}, "uncertainty 'confidence': expected one of msp"),
        ({"kind": "words"}, "kind='words': expected one of"),
        ({"kind": "values"}, r"is for classification, these outputs are regression \(values\)"),
        ({"combine": "median"}, "combine='median': expected one of probs, logits, last"),
        ({"kind": "probs", "combine": "logits"}, "combine='logits' needs members of kind 'logits'"),
        ({"kind": "probs", "uncertainty": "energy"}, "'energy' is a score of logits"),
        ({"uncertainty": "mutual_information", "combine": "logits"}, "this ensemble averages logits: use entropy"),
        ({"kind": "top1", "stages": (LAST,)}, "combine='probs' needs every class's score, top1 has only the winner's"),
        ({"kind": "top1", "combine": "last", "uncertainty": "margin"}, "needs every class's score"),
        ({"kind": "top1", "combine": "last"}, "stage 'a': combine='last' counts one stage alone, expected join='replace'"),
        ({"combine": "last"}, "expected join='replace'"),
        ({"kind": "top1", "combine": "last", "stages": (StagePolicy("a", "replace", 2),)}, "stage 'a': temperature=2.0 does not act"),
        ({"uncertainty": "energy", "stages": (StagePolicy("a", temperature=2.0),)}, "does not act on energy of logits: leave it at 1"),
        ({"target": "speed"}, "target 'speed': expected one of"),
        ({"certificate": 3}, "certificate is int: expected a dict, or None"),
    ],
)  # fmt: skip
def test_policy_refusals(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Policy(**({"stages": (A, B)} | policy))
    assert "\n" not in str(caught.value)


# --- what it does ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (None, [0, 0, 0, 0, 0]),
        ((0.25, 0.75), [0, 1, 1, 1, 0]),  # closed: ties go on
        ((None, 0.25), [1, 1, 0, 0, 0]),
        ((0.75, None), [0, 0, 0, 1, 1]),
        ((None, None), [1, 1, 1, 1, 1]),
        ((0.5, 0.5), [0, 0, 1, 0, 0]),
        ((0.6, 0.7), [0, 0, 0, 0, 0]),
    ],
)
def test_a_tie_goes_on(window: Any, expected: list[int]) -> None:
    u = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(StagePolicy("a", window=window).goes_on(u), np.array(expected, bool))


def test_a_tie_is_accepted_and_no_tau_accepts_all() -> None:
    u = np.array([-1.0, 0.5, np.nextafter(0.5, 1)])
    np.testing.assert_array_equal(StagePolicy("a", tau=0.5).accepts(u), [True, True, False])
    np.testing.assert_array_equal(StagePolicy("a").accepts(u), [True, True, True])


def test_of_takes_names_costs_and_the_way_of_joining_from_outputs() -> None:
    policy = Policy.of(OUTPUTS)
    assert policy.stages == tuple(
        StagePolicy(n, "mean", 1.0, w, None, c) for n, w, c in [("a", (None, None), 1), ("b", (None, None), 2.5), ("c", None, 4)]
    )
    last = Policy.of(Outputs([np.zeros((4, 3))], combine="last"), taus=[0.5], uncertainty="entropy", target="nll")
    assert last == Policy((StagePolicy("stage0", "replace", tau=0.5),), "entropy", "logits", "last", "nll")
    for windows, taus in [([None], []), ([], [None]), ([None, None, None], [])]:
        with pytest.raises(ValueError, match="for 3 stages: expected 2 and 3"):
            Policy.of(OUTPUTS, windows, taus)


def test_with_costs() -> None:
    policy = Policy.of(OUTPUTS).with_costs([3, np.int64(5), 0])
    assert [stage.cost for stage in policy.stages] == [3, 5, 0]
    assert policy.with_costs([1, 2.5, 4]) == Policy.of(OUTPUTS)
    with pytest.raises(ValueError, match="2 costs for 3 stages: expected one per stage"):
        policy.with_costs([1, 2])
