"""The rules of a distillation: how a round searches, what it accepts, and when there is no further round.

Source: Dennis et al. 2023 (arXiv 2302.10093), Algorithm 1 and §4. All are plain values, part of what makes a run that run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from quorate._validation import check_known
from quorate.distil.matching import LINKS, Links

FORMS = ("summed", "split")
HELD_OUT = ("error", "edge", "report")
STARTS = ("fresh", "warm")
COMBINATIONS = ("uniform", "validated")


@dataclass(frozen=True)
class Rules:
    """How rounds go.

    Attributes:
        rounds: most students.
        budget: most MACs of all students together, as a share of the teacher's.
        budget_macs: the same in MACs per input; needed where the teacher's are not known, then ``budget`` is not used.
        tolerance: ε in output units; it stops when the certificate, or the largest error on the transfer set, is at most this. 0: never.
        patience: stop after so many rounds in a row in which the prefix came no nearer to the teacher on validation inputs.
        edge: γ ≥ 0 that a student needs on clean transfer rows, for every output.
        held_out: what it needs on validation inputs: ``"error"``, the prefix's mean error falls there; ``"edge"``, an edge of γ in the mean
            over outputs; ``"report"``, nothing, the edge is reported alone. What a teacher says of new inputs and no student can know is an
            error that all students share: no edge there, however much the mean over students still gains.
        form: of the condition, ``"summed"`` edge or the paper's ``"split"`` form.
        joint: one game over rows and outputs, with one edge, for many classes.
        eta: η of the weights; None: (1/G) √(2 ln 2N / T) with T = ``rounds`` and the G of the first student's errors.
        bound: G, of |f − g|; None: their 99.9 % quantile after round 1.
        candidates: students that a search begins with; successive halving leaves one.
        breadth: levels of the class that one search takes its candidates from.
        attempts: searches at a level, each with other seeds, before the class grows.
        lrs: factors on the learning rate that candidates take turns with.
        links: kinds of links in the order in which they are tried (:mod:`quorate.distil.pool`).
        stem: also try students that start from the one before's first features.
        start: ``"fresh"`` weights for every student, or ``"warm"``: those of the latest student of the same size, where there is one. All
            students aim at the same outputs, so that is near the goal; students differ less then.
        dropout: whether students that are cut from a network keep its dropout; it is noise to one that has a teacher's outputs to fit.
        levels: most levels of the class; None: all that there are.
        clip: largest norm of a student's gradient in a step; None for no limit.
        combine: ``"uniform"`` mean of the students, or ``"validated"`` non-negative weights, taken if cross-validation on validation inputs
            says that they are better.
    """

    rounds: int = 8
    budget: float = 1.0
    budget_macs: int | None = None
    tolerance: float = 0.0
    patience: int = 3
    edge: float = 0.0
    held_out: Literal["error", "edge", "report"] = "error"
    form: Literal["summed", "split"] = "summed"
    joint: bool = False
    eta: float | None = None
    bound: float | None = None
    candidates: int = 4
    breadth: int = 1
    attempts: int = 1
    lrs: tuple[float, ...] = (1.0, 0.5)
    links: tuple[Links, ...] = LINKS
    stem: bool = False
    start: Literal["fresh", "warm"] = "warm"
    dropout: bool = False
    levels: int | None = None
    clip: float | None = 5.0
    combine: Literal["uniform", "validated"] = "uniform"

    def __post_init__(self) -> None:
        for name in ("lrs", "links"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence) or not given:
                raise ValueError(f"{name}={given!r}: expected a sequence with at least one value")
            object.__setattr__(self, name, tuple(given))
        for name, least in (
            ("rounds", 1),
            ("patience", 1),
            ("candidates", 1),
            ("breadth", 1),
            ("attempts", 1),
            ("levels", 1),
            ("budget_macs", 1),
        ):
            _whole(name, getattr(self, name), least, name in ("levels", "budget_macs"))
        for name, positive in (("budget", True), ("tolerance", False), ("edge", False), ("eta", True), ("bound", True)):
            _number(name, getattr(self, name), positive, name in ("eta", "bound"))
        _number("clip", self.clip, True, True)
        for factor in self.lrs:
            _number("lrs", factor, True, False)
        known = all(isinstance(kind, str) and kind in LINKS for kind in self.links) and len(set(self.links)) == len(self.links)
        _check(known, "links", self.links, f"some of {', '.join(LINKS)}, each once")
        for name in ("joint", "stem", "dropout"):
            _check(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        _check(self.start in STARTS, "start", self.start, f"one of {', '.join(STARTS)}")
        _check(self.held_out in HELD_OUT, "held_out", self.held_out, f"one of {', '.join(HELD_OUT)}")
        _check(self.form in FORMS, "form", self.form, f"one of {', '.join(FORMS)}")
        _check(self.combine in COMBINATIONS, "combine", self.combine, f"one of {', '.join(COMBINATIONS)}")
        if self.joint and self.form == "split":
            raise ValueError("form='split' is a condition for every output: expected form='summed' in a joint game")

    @classmethod
    def of(cls, values: Mapping[str, Any] | Rules | None) -> Rules:
        """Rules from names and values; an unknown name is a ValueError that names the nearest one."""
        if isinstance(values, Rules):
            return values
        if values is not None and not isinstance(values, Mapping):
            raise ValueError(f"rules is a {type(values).__name__}: expected names and values, or a Rules")
        check_known("rule", values or {}, [field.name for field in fields(cls)])
        return cls(**(values or {}))

    def as_json(self) -> dict[str, Any]:
        """The values by name, as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def limit(self, teacher_macs: float | None) -> float:
        """Most MACs of all students. ValueError where neither the teacher's MACs nor a budget in MACs is known."""
        if self.budget_macs is not None:
            return float(self.budget_macs)
        if teacher_macs is None:
            raise ValueError(
                "the teacher's MACs are not known, so no share of them can be a budget: give macs= of the teacher, or rules budget_macs"
            )
        return self.budget * teacher_macs


def halving(candidates: int, epochs: int) -> list[tuple[int, int]]:
    """Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943): per rung how many candidates are left, and their epochs so far.

    With n candidates there are ⌈log₂ n⌉ + 1 rungs; each has half the candidates of the one before, trained twice as long, the last one all
    ``epochs`` (rounded to whole ones, at least 1). All together cost (1 + ½ log₂ n) · epochs of one student where n is a power of 2 and
    nothing is rounded, and never more than (1 + ½ ⌈log₂ n⌉) · epochs + n.
    """
    rungs = math.ceil(math.log2(candidates)) + 1
    found, left = [], candidates
    for rung in range(rungs):
        found.append((left, max(1, round(epochs / 2 ** (rungs - 1 - rung)))))
        left = math.ceil(left / 2)
    return found


def _check(good: bool, name: str, value: object, expected: str) -> None:
    if not good:
        raise ValueError(f"{name}={value!r}: expected {expected}")


def _whole(name: str, value: Any, least: int, optional: bool) -> None:
    good = (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool) and value >= least)
    _check(good, name, value, f"a whole number of at least {least}" + (", or None" if optional else ""))


def _number(name: str, value: Any, positive: bool, optional: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    good = (value is None and optional) or (number and (value > 0 if positive else value >= 0))
    _check(good, name, value, f"a finite number {'> 0' if positive else '≥ 0'}" + (", or None" if optional else ""))
