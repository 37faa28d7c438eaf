"""One student of a B-DISTIL ensemble: a chain of segments, with links to what earlier students have computed.

Source: Dennis et al. 2023 (arXiv 2302.10093), §4. Between two segments lies an activation, a **tap**. What comes through the links is added
there; the sum is what the student goes on with, and what later students may read:

    h_0 = x        h_i = segment_i(h_{i−1}) + Σ α · P(h_s,j)        outputs f(x) = segment_n(h_{n−1})

A student that starts from an earlier one's features leaves out the segments up to some tap, h_i = P(h_s,j).

Any module with ``name, reads, writes`` and ``forward(x, carry) → (outputs (B, L), written)`` can be a student, where ``carry`` and
``written`` are dicts of tensors, batch first; a chain's are called ``"student2.tap3"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn

from quorate.distil.links import Link
from quorate.graphs.segments import Boundary, Chain


@runtime_checkable
class Student(Protocol):
    """What an ensemble of students needs of each; all are modules."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def __call__(self, x: Tensor, carry: Mapping[str, Tensor], /) -> tuple[Tensor, dict[str, Tensor]]: ...


@dataclass(frozen=True)
class Joint:
    """A link: the tap ``at`` of the new student takes up the tap ``tap`` of an earlier student (both count from 0)."""

    at: int
    student: int
    tap: int

    @property
    def carried(self) -> str:
        """The name under which the activation is carried."""
        return tap_name(self.student, self.tap)


def tap_name(student: int, tap: int) -> str:
    """The name of a student's activation; students are called from 1."""
    return f"student{student + 1}.tap{tap}"


class ChainStudent(nn.Module):
    """A chain as the student number ``index`` (from 0), with links to earlier chain students.

    Args:
        chain: its segments; they become part of the student. Those that :func:`quorate.graphs.segments.chain` makes leave what they are
            given as it is, also where they work in place; any other segment gets a copy.
        index: its place among the students.
        links: gated ones. start: the joint from whose activation the student starts; the segments up to it are left out.
        earlier: the boundaries of each earlier student's chain, () where it has none.

    Raises:
        ValueError: links to taps that are not there, or (``links.Incompatible``) of shapes that can't be brought together.
    """

    def __init__(
        self,
        chain: Chain,
        index: int,
        links: Sequence[Joint] = (),
        start: Joint | None = None,
        earlier: Sequence[Sequence[Boundary]] = (),
    ) -> None:
        super().__init__()
        self.name = f"student{index + 1}"
        self.boundaries = tuple(chain.boundaries)
        self.joints, self.start = tuple(links), start
        for joint in (*self.joints, *([start] if start else [])):
            _check(joint, index, self.boundaries, earlier)
        if start is not None and any(joint.at < start.at for joint in links):
            raise ValueError(f"{self.name} starts at tap {start.at}: expected links behind it, got one at an earlier tap")
        self.first = 0 if start is None else start.at + 1
        self.segments = nn.ModuleList(list(chain.segments)[self.first :])
        self.copies = tuple(not isinstance(segment, fx.GraphModule) for segment in self.segments)
        self.entrance = None if start is None else Link(earlier[start.student][start.tap], self.boundaries[start.at], gate=False)
        self.links = nn.ModuleList(Link(earlier[j.student][j.tap], self.boundaries[j.at]) for j in self.joints)
        self._at: dict[int, list[tuple[int, str]]] = {}  # by tap, the places of its links and what they read
        for place, joint in enumerate(self.joints):
            self._at.setdefault(joint.at, []).append((place, joint.carried))
        self.reads = tuple(dict.fromkeys(j.carried for j in (*([start] if start else []), *self.joints)))
        self.writes = tuple(tap_name(index, tap) for tap in range(self.first, len(self.boundaries)))

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Raw x (B, *shape) and the taps of earlier students that it reads → (outputs (B, L), its own taps)."""
        written: dict[str, Tensor] = {}
        h = x
        if self.entrance is not None and self.start is not None:
            h = self._linked(self.entrance(carry[self.start.carried]), self.start.at, carry)
        last = len(self.segments) - 1
        for i, segment in enumerate(self.segments):
            h = segment(h.clone() if self.copies[i] else h)
            if i < last:
                tap = self.first + i
                h = self._linked(h, tap, carry)
                written[self.writes[i]] = h
        return h, written

    def _linked(self, h: Tensor, tap: int, carry: Mapping[str, Tensor]) -> Tensor:
        for place, name in self._at.get(tap, ()):
            h = h + self.links[place](carry[name])
        return h


def _check(joint: Joint, index: int, own: Sequence[Boundary], earlier: Sequence[Sequence[Boundary]]) -> None:
    if not 0 <= joint.student < min(index, len(earlier)):
        raise ValueError(f"student{index + 1} links to student{joint.student + 1}: expected one of the {index} earlier students")
    theirs = earlier[joint.student]
    if not (0 <= joint.at < len(own) and 0 <= joint.tap < len(theirs)):
        raise ValueError(
            f"student{index + 1} links its tap {joint.at} of {len(own)} to tap {joint.tap} of the {len(theirs)} of "
            f"student{joint.student + 1}: expected taps that are there"
        )


def freeze_(student: nn.Module) -> nn.Module:
    """An accepted student: in eval mode, without gradients."""
    for parameter in student.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return student.eval()


@torch.no_grad()
def run(students: Sequence[nn.Module], x: Tensor, needed: frozenset[str] | None = None) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs (B, L) of students one after the other, and what they wrote; where ``needed`` is given, only that of it."""
    outputs: list[Tensor] = []
    carry: dict[str, Tensor] = {}
    for student in students:
        f, written = student(x, carry)
        outputs.append(f)
        carry |= written
    return outputs, carry if needed is None else {name: carry[name] for name in needed}


def upstream(students: Sequence[Any], reads: Sequence[str]) -> list[Any]:
    """Those of the students, in order, that have to run so that these names are there."""
    wanted, chosen = set(reads), []
    for student in reversed(students):
        if wanted & set(student.writes):
            chosen.append(student)
            wanted = (wanted - set(student.writes)) | set(student.reads)
    return chosen[::-1]
