"""The students of an ensemble as one multi-exit network, all exits trained at once, as a baseline of bdistil_table.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quorate.distil.student import ChainStudent


class Together(nn.Module):
    """Students trained as one network: raw x → (T, B, L). Through their links gradients flow, which the loop's links stop.

    Args:
        students: in order, with links to earlier ones; their links are replaced by ones that let gradients through.
    """

    name = "all students"
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def __init__(self, students: Sequence[ChainStudent]) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        for student in students:
            student.links = nn.ModuleList(Open(link) for link in student.links)
            student.entrance = None if student.entrance is None else Open(student.entrance)

    def forward(self, x: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """Raw x (B, *shape), no carry."""
        written: dict[str, Tensor] = {}
        outputs = []
        for student in self.students:
            f, own = student(x, written)
            written |= own
            outputs.append(f)
        return torch.stack(outputs), {}


class Open(nn.Module):
    """α · P(h) of :class:`quorate.distil.links.Link`, with a gradient of h."""

    def __init__(self, link: Any) -> None:
        super().__init__()
        self.link = link

    def forward(self, h: Tensor) -> Tensor:
        """(B, *source) → (B, *target)."""
        link = self.link
        h = link._resized(link.project(h)) if link.grows else link.project(link._resized(h))
        return h if link.alpha is None else link.alpha * h
