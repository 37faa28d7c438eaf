"""Links: how a student takes up what an earlier student has computed.

Source: Dennis et al., Progressive Ensemble Distillation, NeurIPS 2023 (arXiv 2302.10093), §4: the layers of a round's student are composed
with activations of the rounds before,

    h_t^l  ←  h_t^l + α · P(stopgrad h_s^l′),   s < t

where P is the identity if both have one shape, else a 1×1 projection of the channels with a resize of the positions. The gate α is a
scalar that starts at 0, so that the class of linked students contains the unlinked one. Without a gate, P(h) stands in the place of all
that the student would have computed up to there: it starts from an earlier student's features.

Shapes: (B, C), (B, C, L), (B, C, H, W) with the channels on axis 1, or tokens (B, T, F) with the channels on axis 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.graphs.segments import Boundary

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class Incompatible(ValueError):
    """Two activations that no projection brings together."""


def check(source: Boundary, target: Boundary) -> None:
    """Raise Incompatible unless a projection leads from one activation to the other."""
    told = f"from an activation of shape {source.shape} to one of {target.shape}"
    if source.shape == target.shape:
        return
    if source.axis is None or target.axis is None:
        raise Incompatible(f"a link {told}: expected equal shapes where the axis of the channels is not known, link others")
    if len(source.shape) != len(target.shape) or source.axis != target.axis:
        raise Incompatible(f"a link {told}: expected as many axes, with the channels on the same one, link others")
    if source.axis not in (1, len(source.shape)) or (source.axis == 1 and len(source.shape) - 1 > max(CONVOLUTIONS)):
        raise Incompatible(
            f"a link {told}: expected channels on axis 1 with at most 3 axes of positions, or on the last, link others"
        )
    if source.axis != 1 and source.shape[:-1] != target.shape[:-1]:
        raise Incompatible(f"a link {told}: expected the same number of tokens, which are not resized, link others")


class Link(nn.Module):
    """α · P(h) of an earlier student's activation h, which gets no gradient.

    Args:
        source: where it comes from. target: what it is added to, or replaces.
        gate: with α, a learned scalar that starts at 0; without, P alone.

    Raises:
        Incompatible: shapes that can't be brought together (a ValueError).
    """

    def __init__(self, source: Boundary, target: Boundary, gate: bool = True) -> None:
        super().__init__()
        check(source, target)
        self.alpha = nn.Parameter(torch.zeros(())) if gate else None
        axis = target.axis or 1
        here, there = source.shape[axis - 1], target.shape[axis - 1]
        places = len(target.shape) - 1
        self.size = target.shape[1:] if axis == 1 and source.shape[1:] != target.shape[1:] else None
        self.grows = self.size is not None and math.prod(self.size) > math.prod(source.shape[1:])
        project: nn.Module = nn.Identity()
        if here != there:
            spatial = axis == 1 and places > 0
            project = CONVOLUTIONS[places](here, there, 1, bias=False) if spatial else nn.Linear(here, there, bias=False)
        self.project = project

    def forward(self, h: Tensor) -> Tensor:
        """(B, *source) → (B, *target)."""
        h = h.detach()
        h = self.project(h) if self.grows else self.project(self._resized(h))
        h = self._resized(h) if self.grows else h
        return h if self.alpha is None else self.alpha * h

    def _resized(self, h: Tensor) -> Tensor:
        """Averages over positions where there are fewer in the end, the nearest ones where there are more."""
        if self.size is None:
            return h
        if self.grows:
            return F.interpolate(h, size=list(self.size), mode="nearest")
        return POOLS[len(self.size)](h, list(self.size))
