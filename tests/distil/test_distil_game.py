"""What a distillation keeps: S, its certificate and its prefixes, recomputed from the students that it gave back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quorate.data import Augmentation, Data, Split
from quorate.distil import Distillation
from quorate.distil.progressive import Loop
from quorate.distil.search import Around, search
from quorate.distil.student import run
from quorate.distil.views import Past, Views
from small_distillations import DATA, looped, mlp, own, quick, taught, tensors


def whole(split: Split) -> Tensor:
    return split.batch(np.arange(len(split)))[0]


def centred(values: Tensor) -> np.ndarray:
    wide = values.double().numpy()
    return wide - wide.mean(-1, keepdims=True)


@pytest.fixture(scope="module")
def made() -> tuple[Distillation, Loop]:
    return looped(students=own(4), rules={"rounds": 5})


@pytest.mark.parametrize("part", ["transfer", "validation"])
def test_the_sums_are_those_of_the_students_that_come_back(made: tuple[Distillation, Loop], part: str) -> None:
    found, loop = made
    assert len(found.rounds) == 4
    assert any(student.reads for student in found.ensemble.students)  # links are a part of it
    split, game = (DATA.train, loop.game) if part == "transfer" else (DATA.validation, loop.held)
    assert game is not None
    with torch.no_grad():
        f, g = centred(found.ensemble(whole(split))), centred(taught()(whole(split)))
    np.testing.assert_allclose(game.scores, (f - g).sum(0), atol=1e-4)
    certificate = game.certificate()
    errors = np.abs(f.mean(0) - g)
    assert certificate.rounds == 4
    assert (errors <= certificate.bound + 1e-6).all()
    np.testing.assert_allclose(certificate.max_error, errors.max(0), rtol=1e-4)
    if part == "transfer":
        row = found.rounds[-1]
        assert row["max_error"] == pytest.approx(errors.max(), rel=1e-4)
        assert row["mean_error"] == pytest.approx(errors.mean(), rel=1e-4)
        log_c = np.log(2 * g.size) + sum(r["log_z"] for r in found.rounds)
        assert row["certificate"] == pytest.approx(log_c / (loop.bounds["eta"] * 4), rel=1e-9)


def test_each_round_reports_its_prefix(made: tuple[Distillation, Loop]) -> None:
    found, loop = made
    with torch.no_grad():
        f, g = found.ensemble(whole(DATA.validation)).double(), taught()(whole(DATA.validation)).double()
        of_students, of_teacher = found.ensemble(whole(DATA.train)).double(), taught()(whole(DATA.train)).double()
    for t, row in enumerate(found.rounds, 1):
        prefix = f[:t].mean(0)
        kl = (g.softmax(-1) * (g.log_softmax(-1) - prefix.log_softmax(-1))).sum(-1).mean()
        assert row["round"] == t
        assert row["kl"] == pytest.approx(float(kl), rel=1e-4)
        assert row["agreement"] == pytest.approx(float((prefix.argmax(-1) == g.argmax(-1)).double().mean()))
        assert row["accuracy"] == pytest.approx(float((prefix.argmax(-1).numpy() == DATA.validation.y).mean()))
        held = np.abs(centred(prefix) - centred(g)).mean()
        assert row["held_mean_error"] == pytest.approx(held, rel=1e-4)
        scores = np.asarray(centred(of_students[:t].sum(0)) - t * centred(of_teacher)) * loop.bounds["eta"]
        mass = np.cosh(scores) / np.cosh(scores).sum()
        assert row["effective_samples"] == pytest.approx(1 / np.square(mass).sum(), rel=1e-3)
        assert row["macs"] == sum(r["student_macs"] for r in found.rounds[:t]) == sum(found.facts["stage_macs"][:t])
        assert row["cost_share"] == pytest.approx(row["macs"] / loop.teacher.macs)
    np.testing.assert_allclose(np.concatenate(found.outputs["validation"].values), f, atol=1e-5)
    assert found.facts["training_macs"] == round(found.rounds[-1]["training_macs"]) > 0
    with torch.no_grad():
        apart = centred(found.ensemble(whole(DATA.calibration)).mean(0)) - centred(taught()(whole(DATA.calibration)))
    told = found.facts["distil"]["held_out"]
    assert told["rows"] == len(DATA.calibration)
    assert told["mean_error"] == pytest.approx(float(np.abs(apart).mean()), rel=1e-4)
    assert told["upper"] >= min(told["mean_error"], told["limit"])


def test_training_a_student_leaves_teacher_and_earlier_students_as_they_are() -> None:
    hashes: dict[str, str] = {}
    finish = search

    def watched(pool: Any, place: int, level: int, attempt: int, around: Around) -> Any:
        before = {s.name: tensors(s) for s in around.students}
        assert all(hashes.setdefault(name, value) == value for name, value in before.items())
        assert all(not s.training and not any(p.requires_grad for p in s.parameters()) for s in around.students)
        found = finish(pool, place, level, attempt, around)
        assert before == {s.name: tensors(s) for s in around.students}
        return found

    teacher = mlp(24, 24, seed=7, norm=True, dropout=0.3)
    before = tensors(teacher)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quorate.distil.progressive.search", watched)
        found = quick(teacher, own(), augment=True)  # both run on every view
    assert tensors(teacher) == before
    assert not teacher.training
    assert hashes == {s.name: tensors(s) for s in list(found.ensemble.students)[:-1]}
    assert any("num_batches_tracked" in name for name in found.ensemble.state_dict())


def test_labels_do_not_matter() -> None:
    plain, loop = looped(students=own(), rules={"rounds": 2})
    same = Split(DATA.train.x, None, DATA.train.ids)
    nothing, without = looped(students=own(), rules={"rounds": 2}, transfer=same)
    turned = {name: Split(s.x, None if s.y is None else np.roll(s.y, 1), s.ids) for name, s in DATA.splits().items()}
    data = Data.build("digits", *turned.values(), DATA.ood, DATA.classes, DATA.augmentation)
    permuted, other = looped(students=own(), rules={"rounds": 2}, data=data)
    assert loop.game is not None
    for found, again in ((nothing, without), (permuted, other)):
        assert again.game is not None
        assert np.array_equal(loop.game.scores, again.game.scores)
        assert tensors(found.ensemble) == tensors(plain.ensemble)
        assert [r["candidate"] for r in found.rounds] == [r["candidate"] for r in plain.rounds]
    assert [r["accuracy"] for r in permuted.rounds] != [r["accuracy"] for r in plain.rounds]


def test_views_that_are_the_rows_themselves_have_the_sums_that_are_stored(made: tuple[Distillation, Loop]) -> None:
    found, loop = made
    assert loop.game is not None
    last = list(found.ensemble.students)[-1]
    views = {kind: Views(DATA.train, 50, 3, kind) for kind in (None, Augmentation(pad=0, flip=False))}
    pasts = [Past(loop.students, loop.teacher, loop.g, loop.game.scores, True, online) for online in (False, True)]
    for (x, rows), (same, equal) in zip(*views.values(), strict=True):
        assert torch.equal(x, same)
        assert torch.equal(rows, equal)
        stored, online = (past.of(x, rows, last.reads) for past in pasts)
        for a, b in zip(stored[:2], online[:2], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert stored[2].keys() == online[2].keys() == set(last.reads)
        assert all(torch.equal(stored[2][name], online[2][name]) for name in last.reads)
        losses = [loop._loss()(last(x, carry)[0], g, s) for g, s, carry in (stored, online)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)


def test_a_view_has_sums_of_its_own(made: tuple[Distillation, Loop]) -> None:
    _, loop = made
    assert loop.game is not None
    x, rows = next(iter(Views(DATA.train, 40, 3, Augmentation(pad=1))))
    g, s, _ = Past(loop.students, loop.teacher, loop.g, loop.game.scores, True, True).of(x, rows, ())
    outputs = run(loop.students, x)[0]
    np.testing.assert_allclose(g, centred(taught()(x).detach()), atol=1e-5)
    np.testing.assert_allclose(s, sum(centred(f) - centred(taught()(x).detach()) for f in outputs), atol=1e-4)
    assert np.abs(s.numpy() - loop.game.scores[rows]).max() > 0.1


def test_views_leave_out_the_last_incomplete_batch_and_differ_by_epoch() -> None:
    views = Views(DATA.train, 50, 3)
    epochs = [torch.cat([rows for _, rows in views]) for _ in range(2)]
    assert len(views) == 2
    assert all(len(e) == len(e.unique()) == 100 for e in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(torch.cat([rows for _, rows in Views(DATA.train, 50, 3)]), epochs[0])
    few = Views(DATA.train.subset(np.arange(7)), 50, 3)
    assert [sorted(rows.tolist()) for _, rows in few] == [list(range(7))]


def test_augmented_views_are_trained_on() -> None:
    plain, viewed = quick(rules={"rounds": 2}), quick(rules={"rounds": 2}, augment=True)
    assert tensors(plain.ensemble) != tensors(viewed.ensemble)
    assert viewed.facts["training_macs"] > plain.facts["training_macs"]  # the teacher runs on each
    assert viewed.facts["identity"]["augmentation"] == {"pad": 1, "flip": False, "fill": 0}


@pytest.mark.parametrize("students", [1, 2])
def test_a_student_that_is_the_teacher_has_converged(students: int) -> None:
    """The class holds the teacher itself; nothing is left to train, and the class does not grow."""

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.idle = taught(), nn.Parameter(torch.ones(1))
            for parameter in self.same.parameters():
                parameter.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.same(x) + 0.0 * self.idle

    found, loop = looped(students=[Exact] * students, rules={"levels": None, "joint": False, "candidates": 2})
    assert found.stopped.startswith("converged")
    assert loop.level == 0
    assert len(found.rounds) == 1
    assert loop.game is not None
    assert not loop.game.scores.any()
    plus, minus = loop.game.weights()
    np.testing.assert_allclose([plus, minus], 1 / (2 * len(DATA.train)), rtol=1e-12)
    assert found.rounds[0]["max_error"] == 0.0


def test_a_single_pair_of_classes_with_constant_teacher_is_no_error() -> None:
    """A teacher that says the same of everything: bounds of zero stay usable."""
    constant = taught()
    with torch.no_grad():
        for parameter in constant.parameters():
            parameter.zero_()
    found = quick(constant, rules={"rounds": 2})
    assert found.rounds
    assert all(np.isfinite(row["certificate"]) for row in found.rounds)
