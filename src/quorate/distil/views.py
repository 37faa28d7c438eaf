"""What students are trained on: views of the transfer set, with what teacher and earlier students say of them.

Source: Dennis et al. 2023 (arXiv 2302.10093), Algorithm 1. A round needs of every row the teacher's outputs g(x), the sum
S(x) = Σ_s (f_s − g)(x) over the t − 1 earlier students, and the activations that links read. On clean views g and S are those that are
stored; on augmented views all is computed on the view itself, by the frozen students and the teacher.

Shapes: x (B, *shape) raw; g, S (B, L) float32, row-centred where the outputs are logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quorate.data import Augmentation, Split
from quorate.distil.student import run, upstream
from quorate.distil.teacher import Teacher
from quorate.ensemble import device_of, evaluating


class Views:
    """Batches (x (B, *shape) raw, rows (B,) int64) of a split in an order drawn from (seed, epoch), the last incomplete one left out.

    Args:
        split: the rows, with or without labels.
        batch_size: rows per batch; a split with fewer is one batch.
        seed: of order and augmentation.
        augmentation: applied to every view; None for clean ones.

    Iterating gives one epoch, the next time the next.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, augmentation: Augmentation | None = None) -> None:
        self.split, self.batch_size, self.seed, self.augmentation = split, min(batch_size, len(split)), seed, augmentation
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.split) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.split))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = order[start : start + self.batch_size]
            x = self.split.batch(rows)[0]
            if self.augmentation is not None:
                x = self.augmentation.apply(x, self.seed, epoch, self.split.ids[rows])
            yield x, torch.from_numpy(rows)


@dataclass
class Past:
    """The teacher and the frozen students of the rounds before, as a training asks them.

    Attributes:
        students: in order.
        teacher: asked on views that are not stored.
        g, s: (N, L) arrays of the clean transfer rows: the teacher's outputs, and S of all students.
        centred: whether outputs are row-centred.
        online: compute on the view (augmented views); else look up.
    """

    students: Sequence[nn.Module]
    teacher: Teacher
    g: np.ndarray
    s: np.ndarray
    centred: bool
    online: bool

    @torch.no_grad()
    def of(self, x: Tensor, rows: Tensor, reads: Sequence[str]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(g (B, L), S (B, L), the activations named in ``reads``) of a batch of views, in full precision also under autocast."""
        kind = x.device.type
        plain = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with plain:
            return self._online(x, frozenset(reads)) if self.online else self._stored(x, rows, reads)

    def _online(self, x: Tensor, needed: frozenset[str]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        g = centred(self.teacher.outputs(x)) if self.centred else self.teacher.outputs(x)
        outputs, carry = run(self.students, x, needed)
        s = torch.zeros_like(g)
        for f in outputs:
            s = s + (centred(f.float()) if self.centred else f.float()) - g
        return g, s, carry

    def _stored(self, x: Tensor, rows: Tensor, reads: Sequence[str]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        at = rows.cpu().numpy()
        g, s = (torch.from_numpy(np.asarray(each[at], np.float32)).to(x.device) for each in (self.g, self.s))
        return g, s, run(upstream(self.students, reads), x, frozenset(reads))[1]

    def to_(self, device: torch.device) -> None:
        """Move the students."""
        for student in self.students:
            student.to(device)


def centred(outputs: Tensor) -> Tensor:
    """Outputs (B, L) minus their mean over L, which softmax ignores."""
    return outputs - outputs.mean(-1, keepdim=True)


@torch.no_grad()
def outputs_on(student: Any, students: Sequence[nn.Module], split: Split, batch_size: int, centre: bool) -> np.ndarray:
    """The outputs (N, L) float32 of a student in eval mode on the clean rows of a split; earlier students run as far as it reads them.

    Raises:
        ValueError: outputs that are not (B, L) or not finite.
    """
    before = upstream(students, student.reads)
    device, found = device_of(student), list[np.ndarray]()
    with evaluating(student):
        for start in range(0, len(split), batch_size):
            x = split.batch(np.arange(start, min(start + batch_size, len(split))))[0].to(device)
            f = student(x, run(before, x, frozenset(student.reads))[1])[0].float()
            if f.ndim != 2 or len(f) != len(x):
                raise ValueError(f"{student.name} gave {tuple(f.shape)} for {len(x)} rows: expected (B, outputs)")
            found.append((centred(f) if centre else f).cpu().numpy())
    joined = np.concatenate(found)
    if not np.isfinite(joined).all():
        raise ValueError(f"{student.name} gave outputs that are not finite: lower lr, or check the inputs")
    return joined
