"""The students as one staged ensemble: any prefix is a predictor, and reused activations are computed once.

Source: Dennis et al. 2023 (arXiv 2302.10093), §3–4. With students f_1 … f_T (B, L)

    uniform     F_t = (1/t) Σ_{s ≤ t} f_s                            members are the students, combine = "logits"
    weighted    m_t = m_{t−1} + (f_t − m_{t−1}) · w_t / Σ_{s ≤ t} w_s    stage t gives the prefix m_t itself, combine = "last"

For outputs that are no class scores (``kind`` "values" or "gaussian") stages give the prefix too. Each student is a stage; what later
students read is carried to them and dropped behind the last reader.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quorate.combination import Combine, Kind
from quorate.distil.student import Student, freeze_, upstream

PREFIX = "prefix"


class StudentStage(nn.Module):
    """A student as a stage: (x, carry) → ((1, B, L), what later stages read)."""

    def __init__(self, student: Any, later: frozenset[str], share: float | None, place: int, last: bool) -> None:
        super().__init__()
        self.student = student
        self.name, self.share = student.name, share
        self.span = getattr(student, "span", None)  # of a student of a part of a sequence
        prefix = (PREFIX,) if share is not None and place else ()
        self.reads = (*student.reads, *prefix)
        self.kept = tuple(name for name in student.writes if name in later)
        self.writes = (*self.kept, *((PREFIX,) if share is not None and not last else ()))
        self.drops = tuple(name for name in self.reads if name not in later and not (name == PREFIX and not last))

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Raw x (B, *shape), and what it reads of the carry."""
        f, written = self.student(x, carry)
        return self._answer(f, written, carry)

    def arrived(self, part: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for a student of a part of a sequence, from that part (B, C, steps) alone."""
        f, written = self.student.arrived(part, carry)
        return self._answer(f, written, carry)

    def _answer(self, f: Tensor, written: dict[str, Tensor], carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        kept = {name: written[name] for name in self.kept}
        if self.share is None:
            return f[None], kept
        if PREFIX in carry:
            f = carry[PREFIX] + (f - carry[PREFIX]) * self.share
        return f[None], (kept | {PREFIX: f} if PREFIX in self.writes else kept)


class Distilled(nn.Module):
    """A B-DISTIL ensemble: x → (T, B, L), the students' outputs, or the prefixes' if they are weighted or no class scores.

    Args:
        students: in order, modules as :mod:`quorate.distil.student` describes them, each reading only what earlier ones write. They are
            frozen and put into eval mode.
        kind: what they emit, ``"logits"``, ``"values"`` (B, D) or ``"gaussian"`` (B, 2D).
        weights: (T,) ≥ 0 of the students; None for their plain mean. A prefix without any weight is the plain mean.

    Attributes:
        combine: ``"logits"``, or ``"last"`` where stages give prefixes.

    Raises:
        ValueError: no students, two of one name, one that reads what no earlier one writes, or weights that don't fit.
    """

    def __init__(self, students: Sequence[nn.Module], kind: Kind = "logits", weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not len(students):
            raise ValueError("Distilled([]): expected at least one student")
        if kind not in ("logits", "values", "gaussian"):
            raise ValueError(f"kind={kind!r}: expected 'logits', 'values' or 'gaussian'")
        check_chain(students)
        self.kind: Kind = kind
        self.weights = None if weights is None else _checked(weights, len(students))
        self.combine: Combine = "logits" if weights is None and kind == "logits" else "last"
        self.students = nn.ModuleList(freeze_(student) for student in students)

    @property
    def shared(self) -> tuple[str, ...]:
        """The names of the parameters that reach more than one row of :meth:`forward`: of students whose activations later ones read."""
        students: list[Any] = list(self.students)
        read = {id(s) for t in range(len(students)) for s in upstream(students[:t], students[t].reads)}
        some = [t for t, s in enumerate(students[:-1]) if self.combine == "last" or id(s) in read]
        return tuple(f"students.{t}.{name}" for t in some for name, _ in students[t].named_parameters())

    def stages(self) -> list[nn.Module]:
        """One stage per student, named as it is."""
        read: list[frozenset[str]] = [frozenset()]  # by stage, from the last: what later ones read
        for student in reversed(list(self.students)[1:]):
            read.append((read[-1] - frozenset(student.writes)) | frozenset(student.reads))  # type: ignore[arg-type]
        shares = self._shares() if self.combine == "last" else [None] * len(self.students)
        last = len(self.students) - 1
        return [
            StudentStage(student, later, share, t, t == last)
            for t, (student, later, share) in enumerate(zip(self.students, reversed(read), shares, strict=True))
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Raw x (B, *shape) → (T, B, L)."""
        outputs, carry = [], dict[str, Tensor]()
        for stage in self.stages():
            members, written = stage(x, carry)
            outputs.append(members)
            carry = {name: kept for name, kept in (carry | written).items() if name not in stage.drops}  # type: ignore[operator]
        return torch.cat(outputs)

    def train(self, mode: bool = True) -> Distilled:  # noqa: ARG002
        """Students are frozen: they stay in eval mode."""
        return super().train(False)

    def carried_bytes(self, example: Tensor) -> list[int]:
        """Per stage, the bytes per input that are carried on behind it, measured on raw inputs (B, *shape)."""
        found, carry = [], dict[str, Tensor]()
        with torch.no_grad():
            for stage in self.stages():
                _, written = stage(example, carry)
                carry = {name: kept for name, kept in (carry | written).items() if name not in stage.drops}  # type: ignore[operator]
                found.append(sum(kept.numel() * kept.element_size() for kept in carry.values()) // len(example))
        return found

    def _shares(self) -> list[float | None]:
        weights = [1.0] * len(self.students) if self.weights is None else list(self.weights)
        totals = list(itertools.accumulate(weights))
        return [w / total if total > 0 else 1 / t for t, (w, total) in enumerate(zip(weights, totals, strict=True), 1)]


def _checked(weights: Sequence[float], count: int) -> tuple[float, ...]:
    given = tuple(float(w) for w in weights)
    if len(given) != count or not all(0 <= w < float("inf") for w in given) or not sum(given) > 0:
        raise ValueError(f"weights={list(given)}: expected {count} finite numbers ≥ 0, one per student, with a sum > 0")
    return given


def check_chain(students: Sequence[Any]) -> None:
    """Names in order, and nothing read that is not written before. Raises ValueError."""
    written: set[str] = set()
    names: set[str] = set()
    for student in students:
        if not (isinstance(student, Student) and isinstance(student, nn.Module)):
            raise ValueError(f"a {type(student).__name__} is no student: expected a module with name, reads and writes")
        absent = sorted(set(student.reads) - written)
        if absent:
            raise ValueError(f"{student.name} reads {absent}, which no earlier student writes: give the students in order")
        if PREFIX in student.writes:
            raise ValueError(f"{student.name} writes {PREFIX!r}, the name of the mean so far: expected another name")
        if student.name in names:
            raise ValueError(f"two students are called {student.name!r}: expected different names")
        names.add(student.name)
        written |= set(student.writes)
