"""The loop: round after round a student that the teacher's game accepts, until there is none, or enough.

Source: Dennis et al. 2023 (arXiv 2302.10093), Algorithm 1:

    f_1 by distillation                                                    no edge is asked of it: under uniform weights all edges are 0
    for t = 2, 3, …:
        search the class for f with edge e_j(f; K) ≥ γ                     on clean transfer rows, and on held-out inputs
        found: S ← S + (f − g); else grow the class

The state after each round is on disk (:mod:`quorate.distil.state`); every draw depends on (seed, round, attempt, candidate) alone, so a run
that was stopped in the middle of a round does that round again, to the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quorate.combination import log_softmax
from quorate.data import Augmentation, Data, Split
from quorate.distil.bounds import best_eta, infeasibility
from quorate.distil.game import Game
from quorate.distil.learner import BatchLoss
from quorate.distil.pool import spec_of, student_macs
from quorate.distil.round_loss import LossSettings, RoundLoss
from quorate.distil.rules import Rules
from quorate.distil.search import Around, Found, Tried, search
from quorate.distil.shaping import SearchWeights, robust_bound
from quorate.distil.showing import Shown
from quorate.distil.state import Store
from quorate.distil.stopping import Stopper
from quorate.distil.student import freeze_
from quorate.distil.teacher import Teacher
from quorate.distil.views import outputs_on
from quorate.metrics import fidelity_agreement, fidelity_kl
from quorate.training.settings import Settings

ROUNDING = 1e-7
"""Share of G by which an edge may fall short: that of a student that is the teacher is 0 up to rounding."""


@dataclass
class Loop:
    """All that the rounds work with and on.

    Attributes:
        pool: of students. g, g_held: the teacher's outputs on transfer and validation rows.
        limit: MACs of all students together. students, macs: accepted ones, with what each newly executes.
        game, held: S on the transfer and the validation rows; None before round 1.
        rounds: what each reported. log: the same with searches that found nothing.
        level: of the class. spent: multiply-adds of all trainings. stopped: why there is no further round.
    """

    teacher: Teacher
    pool: Any
    data: Data
    transfer: Split
    augmentation: Augmentation | None
    g: np.ndarray
    g_held: np.ndarray
    centre: bool
    rules: Rules
    losses: LossSettings
    settings: Settings
    limit: float
    device: torch.device
    store: Store | None
    stopper: Stopper
    shown: Shown
    students: list[Any] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)
    game: Game | None = None
    held: Game | None = None
    bounds: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    level: int = 0
    attempt: int = 0
    spent: float = 0.0
    stopped: str | None = None

    def run_(self) -> None:
        """Go on with the rounds until something stops them."""
        while self.stopped is None:
            self.stopped = self._finished()
            if self.stopped is None:
                self._round_()
                self.stopper.saved = f"round {len(self.rounds)}" if self.rounds else "no round"
                self.stopper.check()
        self._write()

    # — one round —

    def _round_(self) -> None:
        """Search at the class's level; accept, or try again, or let the class grow."""
        place = len(self.students)
        level = f", class {self.level + 1} of {self._levels()}" if place and not self.pool.fixed else ""
        self.shown.begins(f"round {place + 1}{level}")
        found = search(self.pool, place, self.level, self.attempt, self._around())
        self.spent += found.spent
        for note in found.notes:
            self.shown.line(note)
        if found.best is None:
            self._record(place, found, None, "no candidate")
            why = "the budget leaves room for no student of the class" if found.notes else "there are no more students"
            self.stopped = why  # larger classes cost more
            return
        report = self._examined(found.best)
        if place == 0 or report["accepted"] or self.pool.fixed:
            self._accept_(found, report)
            return
        self._record(place, found, report, "no edge")
        self.shown.line(
            f"not accepted: {self.pool.described(found.best.candidate)} has an edge of {report['edge_min']:.3g} at least, "
            f"{report['edge_held']:.3g} held out, where the mean error would go from {report['held_error_before']:.3g} to "
            f"{report['held_error']:.3g}"
            + (
                f"; if no student of the class has a larger edge, no mixture of them errs less than {report['infeasible']:.3g}"
                if report["infeasible"] > 0
                else ""
            )
        )
        if self.attempt + 1 < self.rules.attempts:
            self.attempt += 1
        else:
            best = self.pool.level_of(found.best.candidate)
            self._grow_(max(self.level, best), "the largest class has no student with an edge")

    def _grow_(self, level: int, otherwise: str) -> None:
        """On to the class behind a level that has nothing more to give, or the end."""
        if len(self.students) and level + 1 < self._levels():
            self.level, self.attempt = level + 1, 0
        else:
            self.stopped = otherwise
        self._write()

    def _levels(self) -> int:
        return len(self.pool.levels) if self.rules.levels is None else min(self.rules.levels, len(self.pool.levels))

    def _around(self) -> Around:
        return Around(
            self.students, self.macs, self.game, self.transfer, self.data.validation, self.g, self.g_held, self._example(),
            self.teacher, self.augmentation, self.centre, self.settings, self.rules, self._loss, self.limit - sum(self.macs),
            self.stopper, self.shown.say,
        )  # fmt: skip

    def _example(self) -> Tensor:
        return self.transfer.batch(np.arange(1))[0].to(self.device)

    def _loss(self) -> BatchLoss:
        """A new loss of the round, (f, g, S) → scalar."""
        count = len(self.students)
        bounds = self.bounds or {"eta": 1.0, "outputs": 1.0, "errors": 1.0}  # round 1 uses none of them
        whole, entries = self.losses.normalise == "set", self.g.size if self.rules.joint else len(self.g)
        normaliser = np.full(1 if self.rules.joint else self.g.shape[1], np.log(2.0 * entries))  # ln C before the first round
        if self.game is not None:
            normaliser = self.game.log_normaliser
        loss = RoundLoss(
            self.losses,
            outputs=self.g.shape[1],
            task="classification" if self.centre else "regression",
            eta=bounds["eta"],
            bound=bounds["outputs"],
            limit=bounds["errors"],
            log_normaliser=normaliser if whole else None,
            samples=len(self.g) if whole else None,
            joint=self.rules.joint,
        )

        def of(f: Tensor, g: Tensor, s: Tensor) -> Tensor:
            return loss(f, g, s, g + s / count, count) if count else loss(f, g)

        return of

    def _examined(self, best: Tried) -> dict[str, Any]:
        """Edges of a student on clean transfer rows and on held-out inputs, and whether it is accepted."""
        f = outputs_on(best.student, self.students, self.data.validation, 256, self.centre)
        report: dict[str, Any] = {
            "d_held": f - self.g_held,
            "edge_min": None,
            "edge_mean": None,
            "edge_held": None,
            "accepted": True,
        }
        if self.game is None or self.held is None:
            return report
        if self.rules.form == "split":
            edges = np.concatenate(self.game.split_edge(best.d))
            held = np.concatenate(self.held.split_edge(report["d_held"]))
        else:
            edges, held = self.game.edge(best.d), self.held.edge(report["d_held"])
        before = np.abs(self.held.scores, dtype=np.float64).mean() / len(self.students)
        after = np.abs(self.held.scores + report["d_held"], dtype=np.float64).mean() / (len(self.students) + 1)
        passed = {"error": after <= before, "edge": held.mean() >= self.rules.edge, "report": True}[self.rules.held_out]
        return report | {
            "edge_min": float(edges.min()), "edge_mean": float(edges.mean()), "edge_held": float(held.mean()),
            "held_error": float(after), "held_error_before": float(before),
            "accepted": bool(edges.min() >= self.rules.edge - ROUNDING * self.bounds["errors"] and passed),
            "infeasible": float(infeasibility(self.game.edge(best.d)[None]).max()),
        }  # fmt: skip

    # — acceptance —

    def _accept_(self, found: Found, report: dict[str, Any]) -> None:
        best = found.best
        assert best is not None
        if self.game is None:
            self._begin_game_(best.d)
        assert self.game is not None
        assert self.held is not None
        log_z = self.game.update(best.d)
        self.held.update(report.pop("d_held"))
        self.students.append(freeze_(best.student))
        self.macs.append(best.macs)
        self.attempt = 0
        if len(self.students) > 1 and not self.pool.fixed:
            self.level = max(self.level, self.pool.level_of(best.candidate))
        row = self._row(found, report, float(log_z.sum()))
        self.rounds.append(row)
        self.log.append(row)
        self.shown.round(row)
        if self.store is not None:
            self.store.write_round(best.student, self.game.scores, self.held.scores, self._state())
            self.store.write_log(self.log)

    def _begin_game_(self, d: np.ndarray) -> None:
        """G, B and η come from the first student's errors; η is constant from here on."""
        errors, outputs = robust_bound(d), robust_bound(self.g)
        limit = self.rules.bound or max(errors.value, 1e-12)
        entries = d.size if self.rules.joint else len(d)
        eta = self.rules.eta or best_eta(limit, entries, self.rules.rounds)
        self.bounds = {
            "eta": eta, "errors": limit, "outputs": max(outputs.value, limit), "clipped": float((np.abs(d) > limit).mean()),
            "largest": errors.largest,
        }  # fmt: skip
        (rows, outputs_), held = d.shape, len(self.g_held)
        self.game = Game(rows, outputs_, eta, joint=self.rules.joint)
        self.held = Game(held, outputs_, eta, joint=self.rules.joint)

    def _row(self, found: Found, report: dict[str, Any], log_z: float) -> dict[str, Any]:
        """What the accepted round came to, as JSON values."""
        best = found.best
        assert best is not None
        assert self.game is not None
        assert self.held is not None
        certificate = self.game.certificate()
        shaped = SearchWeights(self.game, cap=self.losses.score_cap, uniform=self.losses.uniform_share)
        total, t = sum(self.macs), len(self.students)
        f_held = self.g_held + self.held.scores / t
        row = {
            "round": t,
            "student": self.pool.described(best.candidate),
            "candidate": best.candidate.as_json(),
            "level": self.level,
            "trained": found.trained,
            **{name: report[name] for name in ("edge_min", "edge_mean", "edge_held")},
            "accepted_without_edge": t > 1 and not report["accepted"],
            "log_z": log_z,
            "effective_samples": float(shaped.effective_samples().min()),
            "certificate": float(certificate.bound.max()),
            "max_error": float(certificate.max_error.max()),
            "mean_error": float(certificate.mean_error.mean()),
            "held_mean_error": float(np.abs(f_held - self.g_held).mean()),
            "beyond_bound": float((np.abs(best.d) > self.bounds["errors"]).mean()),
            "student_macs": best.macs,
            "macs": total,
            "cost_share": None if not self.teacher.macs else total / self.teacher.macs,
            "training_macs": self.spent,
        }
        return row | self._quality(f_held)

    def _quality(self, f: np.ndarray) -> dict[str, float]:
        """Fidelity and quality of a prefix on validation rows."""
        if not self.centre:
            return {"mse": float(np.square(f - self.g_held, dtype=np.float64).mean())}
        found = {"kl": fidelity_kl(self.g_held, f), "agreement": fidelity_agreement(self.g_held, f)}
        labels = self.data.validation.y
        if labels is not None and not self.data.targets:
            log_p = log_softmax(f)
            found["accuracy"] = float((f.argmax(1) == labels).mean())
            found["nll"] = float(-log_p[np.arange(len(labels)), labels].mean())
        return found

    def _record(self, place: int, found: Found, report: dict[str, Any] | None, outcome: str) -> None:
        """A search that found nothing, for ``rounds.jsonl``."""
        what = None if found.best is None else self.pool.described(found.best.candidate)
        edges = (
            {}
            if report is None
            else {name: report[name] for name in ("edge_min", "edge_mean", "edge_held", "held_error", "infeasible")}
        )
        self.log.append(
            {"round": place + 1, "outcome": outcome, "level": self.level, "attempt": self.attempt, "trained": found.trained,
             "best": what, **edges, "notes": list(found.notes), "training_macs": self.spent}
        )  # fmt: skip

    # — when to stop, and the state —

    def _finished(self) -> str | None:
        if not self.rounds or self.game is None:
            return None
        certificate = self.game.certificate()
        largest = float(certificate.max_error.max())
        scale = max(self.bounds["outputs"], 1e-30)
        if largest <= 1e-6 * scale:
            return "converged: the students are the teacher"
        if self.rules.tolerance > 0 and min(largest, float(certificate.bound.max())) <= self.rules.tolerance:
            return f"the largest error is within the tolerance of {self.rules.tolerance:g}"
        if len(self.rounds) >= self.rules.rounds:
            return f"{self.rules.rounds} rounds are the limit"
        if sum(self.macs) >= self.limit:
            return f"the budget of {self.limit:,.0f} MACs is spent"
        if self._without_gain() >= self.rules.patience:
            return f"no gain on validation inputs for {self.rules.patience} rounds"
        return None

    def _without_gain(self) -> int:
        """Rounds since the prefix was nearest to the teacher on validation inputs."""
        name = "kl" if self.centre else "mse"
        values = [row[name] for row in self.rounds]
        return len(values) - 1 - int(np.argmin(values))

    def _state(self) -> dict[str, Any]:
        assert self.game is not None
        assert self.held is not None
        return {
            "rounds": self.rounds, "log": self.log, "level": self.level, "attempt": self.attempt, "spent": self.spent,
            "bounds": self.bounds, "game": self.game.state(), "held": self.held.state(), "stopped": self.stopped,
        }  # fmt: skip

    def _write(self) -> None:
        if self.store is not None and self.game is not None:
            self.store.write(self._state())
            self.store.write_log(self.log)

    def go_on_(self, state: dict[str, Any]) -> None:
        """Take up a stored state: students are built as they were, with the weights they had. ValueError where that can't be."""
        assert self.store is not None
        self.rounds, self.log = state["rounds"], state["log"]
        self.level, self.attempt, self.spent = state["level"], state["attempt"], state["spent"]
        self.bounds, self.stopped = state["bounds"], state["stopped"]
        example = self._example()
        for place, row in enumerate(self.rounds):
            student = self.pool.build(spec_of(row["candidate"]), place, self.students, example)
            self.store.load_student_(student, place + 1)
            if self.settings.channels_last:  # as it was trained: what is computed in another layout differs in its last bits
                student.to(memory_format=torch.channels_last)
            self.macs.append(student_macs(student, self.students, example))
            self.students.append(freeze_(student))
        number = len(self.rounds)
        self.game = Game.of(self.store.array(f"scores-{number}", self.g.shape), **state["game"])
        self.held = Game.of(self.store.array(f"held-{number}", self.g_held.shape), **state["held"])
        self.shown.line(f"going on after round {number}")
        self.stopper.saved = f"round {number}"
