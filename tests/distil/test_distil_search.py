"""A round's search: who is trained for how long, who stays, what is left out and said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quorate.distil.learner import Training
from quorate.distil.progressive import Loop
from quorate.distil.search import Tried, search
from quorate.distil.views import Past, Views
from quorate.training import Settings
from small_distillations import DATA, QUICK, looped, mlp, own, quick, tensors


@pytest.fixture(scope="module")
def loop() -> Loop:
    return looped(students=[mlp(4), mlp(6)], rules={"rounds": 2, "candidates": 4, "lrs": (1.0, 0.1)}, epochs=4)[1]


def trained(loop: Loop, place: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[int, int]], dict[int, Tried]]:
    """What a search found, its trainings (seed, epochs in all) and its candidates by seed."""
    log: list[tuple[int, int]] = []
    tried: dict[int, Tried] = {}
    plain = Training.advance_

    def advance(self: Training, epochs: int) -> None:
        log.append((self.settings.seed, epochs))
        plain(self, epochs)
        assert self.views.epoch == epochs  # each epoch of views is seen once

    score = Tried.score

    def scored(self: Tried, per_mac: bool) -> float:
        tried[self.candidate.seed] = self
        return score(self, per_mac)

    monkeypatch.setattr(Training, "advance_", advance)
    monkeypatch.setattr(Tried, "score", scored)
    around = loop._around()
    if not place:
        around.students, around.macs, around.game = [], [], None
    return search(loop.pool, place, 0, 0, around), log, tried


@pytest.mark.parametrize("place", [0, 2])
def test_the_worse_half_leaves(loop: Loop, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, log, tried = trained(loop, place, monkeypatch)
    seeds = [c.seed for c in loop.pool.candidates(place, 0, 0, 4, loop.rules.lrs, 0)]
    assert log[:4] == [(seed, 1) for seed in seeds]
    assert [epochs for _, epochs in log[4:]] == [2, 2, 4]
    assert {seed for seed, _ in log[4:6]} <= set(seeds)
    assert log[6][0] in {seed for seed, _ in log[4:6]}
    best = found.best
    assert (best.candidate.seed, found.trained) == (log[6][0], 4)
    f = best.d.astype(np.float64)
    fall = -np.square(f).mean() if not place else -float(loop.game.log_z_of(best.d).sum())  # type: ignore[union-attr]
    assert best.fall == pytest.approx(fall)
    gone = [t for seed, t in tried.items() if seed not in {s for s, _ in log[4:]}]
    kept = [t for seed, t in tried.items() if seed in {s for s, _ in log[4:]}]
    assert len(gone) == len(kept) == 2
    assert all(t.d.size == 0 for t in gone)
    steps = sum({1: 1, 2: 1, 4: 2}[epochs] for _, epochs in log) * 2 * 64
    frozen = sum(loop.macs) if any(t.student.reads for t in tried.values()) else 0
    assert found.spent == steps * (3 * best.macs + frozen)
    rates = {t.candidate.seed: t.training.settings.lr for t in tried.values()}
    assert [rates[seed] for seed in seeds] == pytest.approx([0.02, 0.002, 0.02, 0.002])


def test_a_score_is_the_fall_per_mac() -> None:
    one = Tried(None, None, 200, None, np.empty((0, 0)), 3.0, 0.0)  # type: ignore[arg-type]
    assert (one.score(True), one.score(False)) == (0.015, 3.0)


def test_instalments_are_one_training(loop: Loop) -> None:
    settings = Settings(**{k: v for k, v in QUICK.items() if k != "progress"} | {"epochs": 4, "warmup_epochs": 1.0})

    def run(*epochs: int) -> nn.Module:
        torch.manual_seed(5)
        student = own(1)[0]
        past = Past((), loop.teacher, loop.g, np.zeros_like(loop.g), True, False)
        training = Training(
            student, past, lambda f, g, s: (f - g).square().mean() + 0 * s.sum(), Views(DATA.train, 50, 3), settings, None, 0.5
        )
        before = torch.random.get_rng_state()
        for each in epochs:
            training.advance_(each)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert training.module.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)
        return student

    whole = tensors(run(4))
    assert whole == tensors(run(1, 2, 4)) == tensors(run(2, 2, 4))
    torch.manual_seed(5)
    assert whole != tensors(own(1)[0])


def test_a_student_that_no_link_fits_is_said_to_be_without(capsys: pytest.CaptureFixture[str]) -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if float(x.float().mean()) > -1 else -self.net(x)

    found = quick(students=[Opaque], rules={"rounds": 2, "links": ("all",), "candidates": 2}, progress=True, label="run")
    said = capsys.readouterr().err
    assert "can't have links" in said
    assert "without links, no activation of an earlier student fits one of its own" in said
    assert not any(student.reads for student in found.ensemble.students)


def test_features_that_fit_no_later_student_are_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    found = quick(rules={"rounds": 2, "stem": True, "candidates": 2, "links": ("none",)}, progress=True, label="run")
    assert "left out, no features of the student before fit into this student" in capsys.readouterr().err
    assert found.rounds
