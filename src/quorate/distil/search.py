"""One round's search: candidates are trained in instalments, the worse half leaves, the last one is looked at.

Sources: Dennis et al. 2023 (arXiv 2302.10093), Algorithm 1; successive halving, Jamieson & Talwalkar 2016 (arXiv 1502.07943). What counts
is the fall of the potential per multiply-add that the student adds,

    score = −Σ_j ln Z_j(f) / macs(f)          ln Z_j = ln Σ_i (K⁺ e^{−ηd} + K⁻ e^{ηd}),   d = f − g on the clean transfer rows

or, as long as the potential of none falls, −Σ ln Z alone. In round 1 K is uniform, no student lowers the potential, and it is −mean d².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from quorate.data import Augmentation, Split
from quorate.distil.game import Game
from quorate.distil.learner import BatchLoss, Training
from quorate.distil.links import Incompatible
from quorate.distil.pool import Candidate, student_macs
from quorate.distil.rules import Rules, halving
from quorate.distil.stopping import Stopper
from quorate.distil.student import upstream
from quorate.distil.teacher import Teacher
from quorate.distil.views import Past, Views, outputs_on
from quorate.training.settings import Settings

Say = Callable[[str, float], None]
"""What is being done, and how much of the round's search is done (0 … 1)."""
LossFor = Callable[[], BatchLoss]


@dataclass
class Around:
    """What a round works with.

    Attributes:
        students: of the rounds before; macs: what each newly executes. game: of the transfer set; None in round 1.
        transfer, validation: rows. g, g_validation: the teacher's outputs on them (N, L).
        example: one raw input (1, *shape), on the students' device.
        loss: makes the round's loss, a new one for each candidate. left: MACs that a student may still cost.
    """

    students: Sequence[nn.Module]
    macs: Sequence[int]
    game: Game | None
    transfer: Split
    validation: Split
    g: np.ndarray
    g_validation: np.ndarray
    example: Tensor
    teacher: Teacher
    augmentation: Augmentation | None
    centre: bool
    settings: Settings
    rules: Rules
    loss: LossFor
    left: float
    stopper: Stopper
    say: Say

    @property
    def scores(self) -> np.ndarray:
        """S (N, L); zeros in round 1."""
        return np.zeros_like(self.g) if self.game is None else self.game.scores


@dataclass
class Tried:
    """A candidate that was trained.

    Attributes:
        macs: per input, newly executed. d: f − g on the clean transfer rows, (N, L).
        fall: −Σ ln Z, or in round 1 −mean d². spent: multiply-adds of its training.
    """

    candidate: Candidate
    student: nn.Module
    macs: int
    training: Training
    d: np.ndarray
    fall: float
    spent: float

    def score(self, per_mac: bool) -> float:
        """What the search goes by."""
        return self.fall / self.macs if per_mac else self.fall


@dataclass(frozen=True)
class Found:
    """What came of a search: the survivor, None where no candidate could be had; how many were trained; their multiply-adds; notes."""

    best: Tried | None
    trained: int
    spent: float
    notes: tuple[str, ...]


def search(pool: Any, place: int, level: int, attempt: int, around: Around) -> Found:
    """Train the candidates of a level by successive halving; where none of them fits the budget, those of the next smaller level."""
    tried, notes = _affordable(pool, place, level, attempt, around)
    while not tried and place and level and not pool.fixed:
        level -= 1
        tried, more = _affordable(pool, place, level, attempt, around)
        notes += more
    if not tried:
        return Found(None, 0, 0.0, tuple(notes))
    rungs, done, trained = halving(len(tried), around.settings.epochs), 0, list(tried)
    total = sum(left for left, _ in rungs)
    for rung, (left, epochs) in enumerate(rungs):
        tried = tried[:left]
        for each in tried:
            what = pool.described(each.candidate)
            around.say(f"{what} ({done + 1}/{total}, up to epoch {epochs})", done / total)
            _train_(each, epochs, around)
            done += 1
        per_mac = around.game is not None and any(each.fall > 0 for each in tried)
        tried.sort(key=lambda each: each.score(per_mac), reverse=True)  # stable: ties stay in the order of the candidates
        if rung + 1 < len(rungs):
            for gone in tried[rungs[rung + 1][0] :]:
                gone.d = np.empty((0, 0), np.float32)  # let go of its memory
    return Found(tried[0], len(trained), sum(each.spent for each in trained), tuple(notes))


def _affordable(pool: Any, place: int, level: int, attempt: int, around: Around) -> tuple[list[Tried], list[str]]:
    """The candidates of a level that can be had and fit the budget, untrained; notes on the others."""
    rules = around.rules
    tried: list[Tried] = []
    notes: list[str] = []
    for candidate in pool.candidates(place, level, attempt, rules.candidates, rules.lrs, around.settings.seed):
        try:
            student = pool.build(candidate, place, around.students, around.example)
        except Incompatible as error:
            notes.append(f"{pool.described(candidate)}: left out, {error}")
            continue
        macs = student_macs(student, around.students, around.example)
        if macs > around.left:
            notes.append(f"{pool.described(candidate)}: left out, {macs:,} MACs are more than the {around.left:,.0f} left")
            continue
        if place and candidate.links != "none" and not pool.fixed and not getattr(student, "joints", ()):
            notes.append(f"{pool.described(candidate)}: without links, no activation of an earlier student fits one of its own")
        tried.append(_prepared(candidate, student, macs, around))
    return tried, notes


def _prepared(candidate: Candidate, student: nn.Module, macs: int, around: Around) -> Tried:
    settings = replace(around.settings, lr=around.settings.lr * candidate.lr, seed=candidate.seed)
    views = Views(around.transfer, settings.batch_size, candidate.seed, around.augmentation)
    past = Past(around.students, around.teacher, around.g, around.scores, around.centre, around.augmentation is not None)
    training = Training(student, past, around.loss(), views, settings, around.stopper, around.rules.clip)
    return Tried(candidate, student, macs, training, np.empty((0, 0), np.float32), float("-inf"), 0.0)


def _train_(each: Tried, epochs: int, around: Around) -> None:
    """Train on, and see what has come of it."""
    more = epochs - each.training.epochs
    each.training.advance_(epochs)
    views = each.training.views
    each.spent += more * len(views) * views.batch_size * (3 * each.macs + _passed(each.student, around))
    f = outputs_on(each.student, around.students, around.transfer, 256, around.centre)
    each.d = f - around.g
    each.fall = (
        -float(np.square(each.d, dtype=np.float64).mean()) if around.game is None else -float(around.game.log_z_of(each.d).sum())
    )
    around.stopper.check()


def _passed(student: Any, around: Around) -> float:
    """Multiply-adds per view of the frozen networks that a training runs."""
    macs = {id(each): cost for each, cost in zip(around.students, around.macs, strict=True)}
    if around.augmentation is not None:
        return (around.teacher.macs or 0.0) + sum(macs.values())
    return float(sum(macs[id(each)] for each in upstream(around.students, student.reads)))
