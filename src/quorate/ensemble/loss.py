"""Losses of member-first outputs: the sum over members is exactly M independent trainings.

Sources: Laurent et al. 2023 (arXiv 2210.09184), §3.3; Lakshminarayanan et al. 2017 (arXiv 1612.01474), eq. 1.

Shapes: logits (M, B, C) with labels (B,) or (M, B); Gaussian outputs (M, B, 2D) with targets (B, D) or (M, B, D).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduction = Literal["sum", "mean", "none"]
"""Over members: their sum, their mean, or the loss (M,) of each."""


def member_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, reduction: Reduction = "sum") -> Tensor:
    """Cross-entropy of member-first logits: the sum over members of each member's mean loss.

    The sum is exactly M independent trainings (Packed-Ensembles, arXiv 2210.09184, §3.3); ``reduction="mean"`` divides by M, which
    scales every member's gradient by 1/M while weight decay stays; ``reduction="none"`` gives the members' losses (M,).

    Args:
        logits: (M, B, C).
        targets: (B,) class numbers shared by the members, or (M, B) for a batch of its own per member.
        label_smoothing: in [0, 1).
        reduction: over members.

    Raises:
        ValueError: shapes that don't fit, label smoothing outside [0, 1), or an unknown reduction.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits of shape {tuple(logits.shape)}: expected member-first (M, B, C)")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: expected a share in [0, 1)")
    members, batch, _ = logits.shape
    if targets.shape == (batch,):
        targets = targets.expand(members, batch)
    elif targets.shape != (members, batch):
        raise ValueError(
            f"targets of shape {tuple(targets.shape)}: expected ({batch},), or ({members}, {batch}) for one batch per member"
        )
    _check_reduction(reduction)
    flat = logits.flatten(0, 1), targets.flatten()
    if reduction == "none":
        rows = functional.cross_entropy(*flat, label_smoothing=label_smoothing, reduction="none")
        return rows.reshape(members, batch).mean(1)
    mean = functional.cross_entropy(*flat, label_smoothing=label_smoothing)
    return mean * members if reduction == "sum" else mean


def gaussian_loss(outputs: Tensor, targets: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Negative log-likelihood of Gaussian members, in nats: the sum over members of each member's mean over rows.

    −log p(y|x) = ½ Σ_d (log 2π + log σ²_d + (y_d − μ_d)² / σ²_d), summed over targets (Lakshminarayanan et al. 2017, eq. 1).

    Args:
        outputs: (M, B, 2D), the D means and then the D log-variances.
        targets: (B, D) shared by the members, or (M, B, D).
        reduction: over members, as in :func:`member_loss`.

    Raises:
        ValueError: shapes that don't fit, or an unknown reduction.
    """
    if outputs.ndim != 3 or outputs.shape[-1] % 2:
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)}: expected member-first (M, B, 2D), means and then log-variances"
        )
    members, batch, width = outputs.shape
    if targets.shape not in ((batch, width // 2), (members, batch, width // 2)):
        raise ValueError(
            f"targets of shape {tuple(targets.shape)}: expected ({batch}, {width // 2}), one column per mean, or ({members}, {batch}, "
            f"{width // 2}) for one batch per member"
        )
    _check_reduction(reduction)
    mean, log_variance = outputs.chunk(2, dim=-1)
    terms = math.log(2 * math.pi) + log_variance + (targets - mean).square() * torch.exp(-log_variance)
    rows = terms.sum(-1)
    if reduction == "none":
        return 0.5 * rows.mean(1)
    loss = 0.5 * rows.mean()
    return loss * members if reduction == "sum" else loss


def _check_reduction(reduction: str) -> None:
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction={reduction!r}: expected 'sum' or 'mean' over members, or 'none' for each one's loss")


def mean_probs(logits: Tensor) -> Tensor:
    """The mean of the members' probabilities: logits (M, B, C) → (B, C)."""
    if logits.ndim != 3:
        raise ValueError(f"logits of shape {tuple(logits.shape)}: expected member-first (M, B, C)")
    return logits.softmax(-1).mean(0)
