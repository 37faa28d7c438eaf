"""torchmetrics of each member by itself: member-first outputs in, sums of all members at once kept, a dict of figures per member out.

The figures are those of :mod:`quorate.metrics` on one member's probabilities softmax(z_m), or mean μ_m and variance σ_m², in float64:
accuracy, NLL (nats) and ECE (equal-width bins, closed above; Guo et al. 2017, arXiv 1706.04599, eq. 3) of classes; the NLL of the
Gaussian, summed over a row's targets, and the RMSE of the mean of a regression.

Shapes: logits (M, B, C) with labels (B,); Gaussian outputs (M, B, 2D) with targets (B, D). Fewer than M members may come, of an ensemble
that grows: the first ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from quorate.training.imports import torchmetrics

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = torchmetrics().Metric


class _Members(Metric):
    """Sums over rows, one per member."""

    full_state_update = False
    rows: Tensor

    def __init__(self, members: int, **options: Any) -> None:
        super().__init__(**options)
        self._sum("rows", members)

    def _sum(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, **sums: Tensor) -> None:
        for name, value in sums.items():
            getattr(self, name)[: len(value)] += value

    def _seen(self, **figures: Tensor) -> list[dict[str, float]]:
        """Figures (M,) as one dict per member that came."""
        columns = [values[self.rows > 0].tolist() for values in figures.values()]
        return [dict(zip(figures, member, strict=True)) for member in zip(*columns, strict=True)]


class MemberScores(_Members):
    """``val_accuracy``, ``val_ece`` and ``val_nll`` of the members of a classifier.

    Args:
        members: M.
        bins: of the ECE.
    """

    right: Tensor
    loss: Tensor
    top: Tensor
    hits: Tensor

    def __init__(self, members: int, bins: int = 15, **options: Any) -> None:
        super().__init__(members, **options)
        self.bins = bins
        for name in ("right", "loss"):
            self._sum(name, members)
        for name in ("top", "hits"):
            self._sum(name, members, bins)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits (M, B, C), targets (B,)."""
        scores = logits.detach().double()
        members, rows, _ = scores.shape
        labels = targets.to(scores.device).expand(members, rows)
        top, classes = scores.softmax(-1).max(-1)
        right = (classes == labels).double()
        edges = torch.arange(1, self.bins, dtype=torch.float64, device=top.device) / self.bins
        inside = functional.one_hot(torch.searchsorted(edges, top), self.bins).double()  # (M, B, bins)
        self._add(
            rows=torch.full_like(self.rows[:members], rows),
            right=right.sum(1),
            loss=(scores.logsumexp(-1) - scores.gather(-1, labels[..., None])[..., 0]).sum(1),
            top=(top[..., None] * inside).sum(1),
            hits=(right[..., None] * inside).sum(1),
        )

    def compute(self) -> list[dict[str, float]]:
        """The figures over all rows so far, one dict per member that came."""
        gap = (self.hits - self.top).abs().sum(1)
        return self._seen(val_accuracy=self.right / self.rows, val_ece=gap / self.rows, val_nll=self.loss / self.rows)


class GaussianMemberScores(_Members):
    """``val_nll`` and ``val_rmse`` of the members of a regression.

    Args:
        members: M.
    """

    loss: Tensor
    squares: Tensor

    def __init__(self, members: int, **options: Any) -> None:
        super().__init__(members, **options)
        for name in ("loss", "squares"):
            self._sum(name, members)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: outputs (M, B, 2D), targets (B, D)."""
        mean, log_variance = outputs.detach().double().chunk(2, dim=-1)
        squares = (targets.to(mean) - mean).square()
        terms = math.log(2 * math.pi) + log_variance + squares * torch.exp(-log_variance)
        members, rows, _ = mean.shape
        self._add(
            rows=torch.full_like(self.rows[:members], rows),
            loss=0.5 * terms.sum((1, 2)),
            squares=squares.mean(2).sum(1),
        )

    def compute(self) -> list[dict[str, float]]:
        """The figures over all rows so far, one dict per member that came."""
        return self._seen(val_nll=self.loss / self.rows, val_rmse=(self.squares / self.rows).sqrt())
