"""Rules: every bound, names, JSON; successive halving against tables worked by hand and its bound."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.distil.rules import STARTS, Rules, halving

OTHERS: dict[str, Any] = {  # a value of every rule that is not the default one
    "rounds": 3, "budget": 0.25, "budget_macs": 1000, "tolerance": 0.5, "patience": 1, "edge": 0.01, "held_out": "edge", "form": "split",
    "joint": True, "eta": 0.1, "bound": 4.0, "candidates": 7, "breadth": 2, "attempts": 2, "lrs": (2.0, 1.0, 0.1), "links": ("all", "none"),
    "stem": True, "dropout": True, "levels": 2, "clip": None, "combine": "validated",
    "start": next(start for start in STARTS if start != Rules().start),
}  # fmt: skip
REFUSED: list[tuple[str, Any, str]] = [
    *((name, value, "a whole number of at least 1") for name in ("rounds", "patience", "candidates", "attempts", "levels", "budget_macs")
      for value in (0, -1, 1.5, 2.0, True, "3")),
    *((name, None, "a whole number") for name in ("rounds", "patience", "candidates", "attempts")),
    *((name, value, "a finite number > 0") for name in ("budget", "eta", "bound", "clip")
      for value in (0, -0.5, math.inf, math.nan, True, "1")),
    *((name, value, "a finite number ≥ 0") for name in ("tolerance", "edge") for value in (-0.5, math.inf, math.nan, False, "1", None)),
    ("budget", None, "a finite number > 0"),
    *(("lrs", value, "at least one value") for value in ((), 0.5, "1", None)),
    *(("lrs", value, "a finite number > 0") for value in ((1.0, 0), (math.nan,), ("1",), (True,))),
    *(("links", value, "at least one value") for value in ((), "none", None)),
    *(("links", value, "some of none, last, all") for value in (("none", "first"), (["none"],), ("none", "none"), (None,))),
    *((name, value, "True or False") for name in ("joint", "stem", "dropout") for value in ("no", 1, None)),
    ("start", "cold", "one of fresh, warm"),
    ("form", "summed ", "one of summed, split"),
    ("combine", None, "one of uniform, validated"),
    ("held_out", "no", "one of error, edge, report"),
]  # fmt: skip


def test_every_rule_has_another_value_and_goes_through_json() -> None:
    assert set(OTHERS) == {field.name for field in fields(Rules)}
    plain = Rules()
    for name, value in OTHERS.items():
        made = replace(plain, **{name: value})
        assert getattr(made, name) == value != getattr(plain, name)
        assert Rules.of(json.loads(json.dumps(made.as_json()))) == made
    assert Rules.of(json.loads(json.dumps(plain.as_json()))) == plain == Rules.of({}) == Rules.of(None)
    assert Rules.of(plain) is plain
    assert Rules.of({"lrs": [1, 0.5], "links": ["last"]}).links == ("last",)


@pytest.mark.parametrize(("name", "value", "told"), REFUSED)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*{told}") as caught:
        Rules.of({name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["budget_macs", "eta", "bound", "levels", "clip"])
def test_what_may_be_none(name: str) -> None:
    assert getattr(Rules.of({name: None}), name) is None


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="form='summed' in a joint game"):
        Rules(joint=True, form="split")
    with pytest.raises(ValueError, match="unknown rule 'round'; did you mean 'rounds'"):
        Rules.of({"round": 3})
    for values in ([("rounds", 3)], "rounds", 5):
        with pytest.raises(ValueError, match="expected names and values"):
            Rules.of(values)  # type: ignore[arg-type]


def test_the_budget_is_a_share_of_the_teacher_or_said_in_macs() -> None:
    assert Rules(budget=0.5).limit(3000) == 1500
    assert Rules(budget=2.0).limit(10.0) == 20
    assert Rules(budget=0.5, budget_macs=77).limit(3000) == Rules(budget_macs=77).limit(None) == 77.0
    with pytest.raises(ValueError, match="teacher's MACs are not known"):
        Rules().limit(None)


# — successive halving —


@pytest.mark.parametrize(
    ("candidates", "epochs", "expected"),
    [
        (1, 10, [(1, 10)]),
        (2, 10, [(2, 5), (1, 10)]),
        (4, 8, [(4, 2), (2, 4), (1, 8)]),
        (3, 8, [(3, 2), (2, 4), (1, 8)]),
        (5, 16, [(5, 2), (3, 4), (2, 8), (1, 16)]),
        (8, 20, [(8, 2), (4, 5), (2, 10), (1, 20)]),
        (4, 1, [(4, 1), (2, 1), (1, 1)]),
        (9, 3, [(9, 1), (5, 1), (3, 1), (2, 2), (1, 3)]),
        (1, 1, [(1, 1)]),
    ],
)
def test_rungs_worked_by_hand(candidates: int, epochs: int, expected: list[tuple[int, int]]) -> None:
    assert halving(candidates, epochs) == expected


def spent(rungs: list[tuple[int, int]]) -> int:
    """Epochs of all candidates together."""
    done, total = 0, 0
    for left, epochs in rungs:
        total += left * (epochs - done)
        done = epochs
    return total


@given(st.integers(1, 300), st.integers(1, 2000))
def test_fewer_and_fewer_train_longer_and_longer_within_the_bound(candidates: int, epochs: int) -> None:
    rungs = halving(candidates, epochs)
    left, trained = zip(*rungs, strict=True)
    assert len(rungs) == math.ceil(math.log2(candidates)) + 1
    assert left[0] == candidates
    assert rungs[-1] == (1, epochs)
    assert all(b == math.ceil(a / 2) < a for a, b in itertools.pairwise(left))
    assert list(trained) == sorted(trained)
    assert trained[0] >= 1
    assert spent(rungs) <= (1 + math.ceil(math.log2(candidates)) / 2) * epochs + candidates


@given(st.integers(0, 7), st.integers(1, 50))
def test_powers_of_two_cost_what_is_said(power: int, times: int) -> None:
    count, epochs = 2**power, times * 2**power
    assert spent(halving(count, epochs)) == (1 + power / 2) * epochs
