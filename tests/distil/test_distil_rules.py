"""Each rule by which a distillation stops, grows or accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.distil.game import Game
from small_distillations import looped, mlp, own, quick


def test_rounds() -> None:
    assert quick(students=own(), rules={"rounds": 2}).stopped == "2 rounds are the limit"


def test_students_of_a_list_of_rounds_come_to_an_end() -> None:
    found = quick(students=own(2), rules={"rounds": 5})
    assert (found.stopped, len(found.rounds)) == ("there are no more students", 2)


@pytest.mark.parametrize("rules", [{"budget_macs": 864}, {"budget": 864 / 2304}])
def test_the_budget_is_spent(rules: dict[str, Any]) -> None:
    found = quick(students=own(5), rules={"rounds": 5, **rules})  # students of 432 MACs, a teacher of 64·24 + 24·24 + 24·8
    assert found.facts["distil"]["teacher"]["macs"] == 2304
    assert (found.stopped, found.facts["macs"]) == ("the budget of 864 MACs is spent", 864)


def test_the_budget_leaves_no_room(capsys: pytest.CaptureFixture[str]) -> None:
    found = quick(rules={"rounds": 5, "links": ("none",), "budget_macs": 863}, progress=True, label="x")
    assert found.stopped == "the budget leaves room for no student of the class"
    assert len(found.rounds) == 1
    assert "left out, 432 MACs are more than the 431 left" in capsys.readouterr().err


def test_the_tolerance_is_one_of_the_largest_error() -> None:
    first = quick(students=own(), rules={"rounds": 1}).rounds[0]["max_error"]
    near = {name: quick(students=own(), rules={"tolerance": first * share}) for name, share in (("in", 1.001), ("out", 0.999))}
    assert near["in"].stopped == f"the largest error is within the tolerance of {first * 1.001:g}"
    assert len(near["in"].rounds) == 1 < len(near["out"].rounds)


def test_patience_counts_rounds_without_gain() -> None:
    found, loop = looped(students=own(2), rules={"rounds": 2})
    for name, values, without in (
        ("kl", [3.0, 2.0, 2.5, 2.0], 2),
        ("kl", [1.0], 0),
        ("kl", [1.0, 2.0, 3.0], 2),
        ("kl", [2.0, 1.0], 0),
    ):
        loop.rounds = [{name: value} for value in values]
        assert loop._without_gain() == without
    worse = quick(students=own(4), rules={"patience": 1, "rounds": 4, "eta": None}, lr=1e-6)  # nothing is learnt: round 2 is luck
    kl = [row["kl"] for row in worse.rounds]
    stop = next((t for t in range(2, 5) if min(range(t), key=kl[:t].__getitem__) < t - 1), None) if len(kl) < 4 else None
    assert stop == (len(kl) if len(kl) < 4 else None)
    assert (worse.stopped == "no gain on validation inputs for 1 rounds") == (stop is not None)
    assert found.rounds


def test_without_an_edge_the_class_grows_to_its_limit(tmp_path: Path) -> None:
    asked = {"edge": 1e6, "attempts": 2, "rounds": 3}
    for levels, expected in ((2, [(0, 0), (0, 1), (1, 0), (1, 1)]), (1, [(0, 0), (0, 1)])):
        found = quick(students=[mlp(4), mlp(6)], rules={**asked, "levels": levels}, run=tmp_path / str(levels), epochs=1)
        assert found.stopped == "the largest class has no student with an edge"
        lines = [json.loads(line) for line in (tmp_path / str(levels) / "rounds.jsonl").read_text().splitlines()]
        failed = [line for line in lines if "outcome" in line]
        assert [(line["level"], line["attempt"]) for line in failed] == expected
        assert all(line["round"] == 2 and line["outcome"] == "no edge" for line in failed)
        spent = [line["training_macs"] for line in lines]
        assert spent == sorted(spent)
        assert len(set(spent)) == len(spent)
        assert found.facts["training_macs"] == round(spent[-1])


@pytest.mark.parametrize("form", ["summed", "split"])
def test_an_edge_is_asked_of_every_output_in_the_form_that_is_said(form: str) -> None:
    found, loop = looped(students=own(2), rules={"rounds": 2, "joint": False, "form": form, "held_out": "edge"})
    assert loop.game is not None
    first, second = loop.students
    from quorate.distil.views import outputs_on

    d = [outputs_on(s, loop.students, loop.transfer, 256, True) - loop.g for s in (first, second)]
    game = Game(*loop.g.shape, loop.bounds["eta"])
    game.update(d[0])
    edges = np.concatenate(game.split_edge(d[1])) if form == "split" else game.edge(d[1])
    row = found.rounds[1]
    assert row["edge_min"] == pytest.approx(edges.min(), rel=1e-6)
    assert row["edge_mean"] == pytest.approx(edges.mean(), rel=1e-6)
    assert row["accepted_without_edge"] == (edges.min() < 0 or row["edge_held"] < 0)
    assert found.rounds[0]["edge_min"] is None
    assert loop.bounds["eta"] == pytest.approx(np.sqrt(2 * np.log(2 * len(loop.g)) / 2) / loop.bounds["errors"])


def test_given_step_and_bound_are_used() -> None:
    _, loop = looped(students=own(1), rules={"eta": 0.25, "bound": 3.0})
    assert loop.game is not None
    assert (loop.game.eta, loop.bounds["errors"]) == (0.25, 3.0)
    assert loop.bounds["clipped"] == (np.abs(loop.game.scores) > 3.0).mean()
    _, plain = looped(students=own(1), rules={"bound": 3.0, "rounds": 4})
    assert plain.game is not None
    assert plain.game.eta == pytest.approx(np.sqrt(2 * np.log(2 * plain.g.size) / 4) / 3.0)  # of the joint game
