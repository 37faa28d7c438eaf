"""The options of `--ensemble.kind bdistil`: what excludes what, and which settings a student takes from the recipe's `fit`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

pytest.importorskip("torch")

from quorate.cli.distil import DistilChoice, StudentFit
from quorate.cli.recipe import EnsembleChoice
from quorate.training import Settings

FIT = asdict(Settings(epochs=9, lr=0.3, schedule="step", milestones=(4,), label_smoothing=0.1, nesterov=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rules": {"rounds": 0}}, r"^ensemble.distil.rules: rounds=0: expected a whole number of at least 1$"),
        ({"loss": {"gamma": 2.0}}, r"^ensemble.distil.loss: gamma=2.0 is for kind='barrier' only"),
        ({"students": [{"width": 2.0}]}, r"^ensemble.distil.students: width: expected a share in \(0, 1\], got 2.0"),
        (
            {"teacher_kind": "probs"},
            r"^ensemble.distil.teacher_kind='probs' is of a teacher in an .onnx file, got None: leave it out$",
        ),
        (
            {"teacher": "run", "teacher_macs": 5.0},
            r"teacher_macs=5.0 is of a teacher in an .onnx or .safetensors file, got 'run'",
        ),
        ({"part_width": 0.25}, r"^ensemble.distil.part_width=0.25 is of ensemble.distil.parts: set that too, or leave it out$"),
        ({"parts": 0}, r"^ensemble.distil.parts=0: expected at least 1$"),
        ({"parts": 2, "students": [{}]}, r"ensemble.distil.students=.* is of students cut from the model, not of parts \(2\)"),
        (
            {"parts": 2, "rules": {"stem": True}},
            r"ensemble.distil.rules.stem=True is of students cut from the model, not of parts",
        ),
        ({"parts": 9}, r"^ensemble.distil.rules.rounds=8: expected at least 9, a round per part of the sequence$"),
    ],
)
def test_refusals(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnsembleChoice.of({"kind": "bdistil", "distil": given})


def test_other_kinds_refuse_its_options_and_it_theirs() -> None:
    with pytest.raises(
        ValueError, match=r"^ensemble.distil.rules.rounds=3 is of ensemble.kind bdistil, got kind deep: leave it out$"
    ):
        EnsembleChoice.of({"kind": "deep", "distil": {"rules": {"rounds": 3}}})
    with pytest.raises(ValueError, match=r"ensemble.tickets.density=0.5 is of ensemble.kind edst or dst, got kind bdistil"):
        EnsembleChoice.of({"kind": "bdistil", "tickets": {"density": 0.5}})
    assert DistilChoice.of({}).given() == {}


def test_students_are_trained_as_the_recipe_says_but_for_what_is_said() -> None:
    same = StudentFit().settings(FIT, 3)
    assert (same["epochs"], same["lr"], same["milestones"], same["seed"]) == (9, 0.3, (4,), 3)
    assert not {"label_smoothing", "mixup", "averaging", "inputs", "cycles"} & same.keys()
    other = StudentFit(schedule="cosine", optimizer="adamw", lr=0.01, augment=False).settings(FIT, 0)
    assert (other["schedule"], other["lr"], other["augment"]) == ("cosine", 0.01, False)
    assert not {"milestones", "decay", "nesterov", "momentum"} & other.keys()
    with pytest.raises(ValueError, match=r"^ensemble.distil.fit: milestones=\(4,\): expected rising epochs in 1 … 2"):
        StudentFit(epochs=3).settings(FIT, 0)


def test_settings_of_a_teacher_that_is_not_trained() -> None:
    DistilChoice().check_teaching(FIT)
    with pytest.raises(
        ValueError, match=r"^fit.label_smoothing=0.1 is for the training of a teacher, but ensemble.distil.teacher"
    ):
        DistilChoice(teacher="run").check_teaching(FIT)
    DistilChoice(teacher="run").check_teaching(FIT | {"label_smoothing": 0.0, "milestones": [4]})
