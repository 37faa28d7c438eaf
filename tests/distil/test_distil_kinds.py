"""Distillations of every kind: what the outputs are, how they are weighed and joined, what students may take up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quorate.data import Data
from quorate.distil import Cut, Distillation, Pool, Teacher, distil
from quorate.distil.combining import Combination
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP
from small_distillations import DATA, QUICK, Own, looped, mlp, own, quick, sums, taught, tensors

SUMS = sums(outputs=2)


def values_teacher(data: Data = SUMS) -> Teacher:
    torch.manual_seed(3)
    net = nn.Sequential(data.normalise(), MLP(data.shape, len(data.targets), (16,))).eval()
    return Teacher.of(net, kind="values", macs=1000.0)


def gaussian_teacher() -> nn.Module:
    torch.manual_seed(3)
    net = DeepEnsemble(
        [nn.Sequential(SUMS.normalise(), MLP(SUMS.shape, 4, (16,)), SUMS.output()) for _ in range(2)], kind="gaussian"
    )
    return net.eval()


def check_prefixes(found: Distillation, g: np.ndarray, data: Data) -> None:
    """The last stage is the mean of the students, as far from the teacher as the last round says."""
    x = data.validation.batch(np.arange(len(data.validation)))[0]
    with torch.no_grad():
        prefixes = found.ensemble(x).numpy()
    for row, prefix in zip(found.rounds, prefixes, strict=True):
        assert row["mse"] == pytest.approx(np.square(prefix - g).mean(), rel=1e-3)
        assert row["held_mean_error"] == pytest.approx(np.abs(prefix - g).mean(), rel=1e-3)
        assert "agreement" not in row


@pytest.mark.parametrize(
    "loss", [{"kind": "potential", "huber": 1.0}, {"kind": "barrier", "gamma": 0.5}], ids=lambda loss: loss["kind"]
)
def test_a_regression_of_values(loss: dict[str, Any]) -> None:
    teacher = values_teacher()
    found, loop = looped(teacher, own(3, SUMS), SUMS, loss=loss, rules={"joint": False})
    g = teacher.on(SUMS.validation)
    assert found.ensemble.kind == "values"
    assert found.ensemble.combine == "last"
    assert loop.game is not None
    assert np.array_equal(loop.g, teacher.on(SUMS.train))  # nothing is centred
    check_prefixes(found, g, SUMS)
    assert found.facts["distil"]["prefixes"] is None


def test_a_regression_of_one_value() -> None:
    data = sums(outputs=1)
    found, loop = looped(values_teacher(data), own(2, data), data, rules={"rounds": 2})
    assert loop.g.shape == (60, 1)
    assert found.rounds[-1]["mean_error"] > 0


def test_a_gaussian_teacher() -> None:
    class Two(Own):
        def __init__(self, place: int) -> None:
            super().__init__(place, data=SUMS)
            self.last = nn.Linear(6, 4)

    teacher = gaussian_teacher()
    found, loop = looped(teacher, [Two(0), Two(1)], SUMS, rules={"rounds": 2})
    assert found.ensemble.kind == "gaussian"
    assert loop.g.shape == (60, 4)
    check_prefixes(found, Teacher.of(teacher).on(SUMS.validation), SUMS)
    assert found.outputs["test"].kind == "gaussian"


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "barrier", "normalise": "set", "uniform_share": 0.3, "kl_weight": 0.5, "tau": 2.0},
        {"kind": "barrier", "score_cap": 2.0},
        {"kl_weight": 1.0, "momentum": 0.5, "mse_weight": 0.0},
    ],
    ids=["barrier-set", "barrier-cap", "potential-kl"],
)
@pytest.mark.parametrize("joint", [False, True])
def test_losses_and_games_of_a_classification(loss: dict[str, Any], joint: bool) -> None:
    found, loop = looped(students=own(2), loss=loss, rules={"rounds": 2, "joint": joint}, epochs=1)
    assert loop.game is not None
    assert loop.game.log_normaliser.shape == ((1,) if joint else (8,))
    plain = quick(students=own(2), rules={"rounds": 2, "joint": joint}, epochs=1)
    first = tensors(found.ensemble.students[0]) == tensors(plain.ensemble.students[0])
    assert first == ("tau" not in loss and "mse_weight" not in loss)  # round 1 is distillation, whatever comes after
    assert tensors(found.ensemble.students[1]) != tensors(plain.ensemble.students[1])
    assert found.facts["identity"]["loss"]["kind"] == loss.get("kind", "potential")


@pytest.mark.parametrize("chosen", ["uniform", "weighted"])
def test_validated_weights(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def weights(each: np.ndarray, **options: Any) -> Combination:
        seen.update(each=each, **options)
        fitted = np.array([0.25, 0.75])
        return Combination(
            fitted if chosen == "weighted" else np.full(2, 0.5),
            chosen,
            "nll",
            fitted,
            np.zeros(2),
            np.ones(2),
            2.0,
            1.0,  # type: ignore[arg-type]
        )

    monkeypatch.setattr("quorate.distil.distillation.student_weights", weights)
    found, loop = looped(students=own(2), rules={"rounds": 2, "combine": "validated"}, seed=4)
    x = DATA.validation.batch(np.arange(len(DATA.validation)))[0]
    with torch.no_grad():
        students = [student(x, {}) for student in found.ensemble.students[:1]]
        f1 = students[0][0]
        f2 = found.ensemble.students[1](x, students[0][1])[0]
        out = found.ensemble(x)
    np.testing.assert_allclose(seen["each"], torch.stack([f1, f2]), atol=1e-5)
    assert np.array_equal(seen["teacher"], loop.g_held)
    assert (seen["kind"], seen["seed"]) == ("logits", 4)
    told = found.facts["distil"]["combination"]
    assert (told["chosen"], told["fitted"], told["gain"], told["standard_error"]) == (chosen, [0.25, 0.75], 0.0, 1.0)
    if chosen == "uniform":
        assert found.ensemble.weights is None
        torch.testing.assert_close(out, torch.stack([f1, f2]))
    else:
        assert found.facts["distil"]["weights"] == [0.25, 0.75]
        torch.testing.assert_close(out, torch.stack([f1, 0.25 * f1 + 0.75 * f2]), atol=1e-5, rtol=1e-4)


def test_validated_weights_of_a_regression() -> None:
    found = quick(values_teacher(), own(2, SUMS), SUMS, rules={"rounds": 2, "combine": "validated"})
    assert found.combination is not None
    assert found.combination.objective == "squared error"
    one = quick(values_teacher(), own(1, SUMS), SUMS, rules={"rounds": 1, "combine": "validated"})
    assert one.combination is None


def conv() -> nn.Module:
    torch.manual_seed(1)
    parts: list[nn.Module] = []
    for inputs in (1, 8, 8):
        parts += [nn.Conv2d(inputs, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(DATA.normalise(), *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8)).eval()


@pytest.mark.slow
def test_students_are_cut_from_the_teacher_and_take_up_features() -> None:
    rules = {
        "rounds": 2,
        "stem": True,
        "candidates": 2,
        "held_out": "report",
        "joint": True,
        "budget": 2.0,
        "links": ("none", "last"),
    }
    chosen = {**QUICK, "epochs": 1}
    found = distil(conv(), [Cut(width=0.5), Cut(width=0.25)], DATA, rules=rules, **chosen)
    assert found.rounds[0]["student"].startswith("depth 1 width 0.25")  # from small to large, whatever the order given
    assert not found.rounds[0]["candidate"]["stem"]
    ladder = distil(conv(), None, DATA, rules={**rules, "stem": False, "rounds": 1}, **chosen)
    assert ladder.rounds[0]["macs"] <= 0.25 * 2.0 * ladder.facts["distil"]["teacher"]["macs"]


def test_a_stem_is_computed_once() -> None:
    pool = Pool.listed([conv()], DATA.train.batch([0])[0], links=("none",), stem=True)
    found = quick(conv(), pool, rules={"rounds": 2, "candidates": 2, "edge": 0.0}, lr=0.003)
    stems = [student for student in found.ensemble.students if getattr(student, "start", None) is not None]
    for student in stems:
        assert student.reads
        assert found.facts["stage_macs"][1] < found.facts["stage_macs"][0]
    assert found.facts["distil"]["carried_bytes"][-1] == 0


def test_a_warm_start_has_the_weights_of_the_student_before() -> None:
    cold, warm = (
        looped(rules={"rounds": 2, "start": start, "links": ("none",)}, lr=1e-9, weight_decay=0.0)[1]
        for start in ("fresh", "warm")
    )
    for loop, alike in ((cold, False), (warm, True)):
        place = len(loop.students)
        made = loop.pool.build(loop.pool.candidates(place, 0, 0, 1, (1.0,), 9)[0], place, loop.students, loop._example())
        assert (tensors(made.segments) == tensors(loop.students[-1].segments)) == alike


def test_functions_and_modules_make_students_and_each_candidate_is_its_own() -> None:
    found = quick(students=[lambda: mlp(5, seed=int(torch.randint(1000, ()))), mlp(6)], rules={"rounds": 1, "candidates": 3})
    assert found.rounds[0]["trained"] == 3
    again = quick(students=[lambda: mlp(5, seed=int(torch.randint(1000, ()))), mlp(6)], rules={"rounds": 1, "candidates": 3})
    assert tensors(found.ensemble) == tensors(again.ensemble)
    other = quick(students=[mlp(5), mlp(6)], rules={"rounds": 1, "candidates": 3}, seed=1)
    assert tensors(found.ensemble) != tensors(other.ensemble)


def test_an_ensemble_teaches_its_mean_and_lends_its_first_member() -> None:
    ensemble = DeepEnsemble([taught(), mlp(24, 24, seed=3)]).eval()
    _, loop = looped(ensemble, [Cut(width=0.25)], rules={"rounds": 1})
    g = Teacher.of(ensemble).on(DATA.train)
    np.testing.assert_allclose(loop.g, g - g.mean(1, keepdims=True), atol=1e-6)
    assert loop.teacher.macs == 2 * 2304
