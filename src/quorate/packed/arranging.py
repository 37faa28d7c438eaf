"""Steps that a packed graph has beside the model's own: between members in the channels and in the batch, and bare parameters.

Shapes: channels (B, M · C, …), rows (M · B, …) with the batch at `batch`, a bare parameter (M, *shape).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quorate.packed.layers.arrangement import spread, to_channels, to_rows

__all__ = [
    "aligned",
    "apart",
    "cat_channels",
    "in_channels",
    "member_shape",
    "rows_shape",
    "spread",
    "to_channels",
    "to_rows",
    "together",
]


def member_shape(x: Tensor, members: int, axis: int) -> tuple[int, ...]:
    """A member's shape, whose tensors lie side by side along this axis."""
    return (*x.shape[:axis], x.shape[axis] // members, *x.shape[axis + 1 :])


def rows_shape(shape: Sequence[int], members: int, batch: int = 0) -> tuple[int, ...]:
    """The shape of a shared tensor once it is spread to rows."""
    return (*shape[:batch], members * shape[batch], *shape[batch + 1 :])


def cat_channels(tensors: Sequence[Tensor], members: int) -> Tensor:
    """Concatenation along each member's own channels: (B, M · C₁, …), (B, M · C₂, …) → (B, M · (C₁ + C₂), …)."""
    return torch.cat([x.unflatten(1, (members, x.shape[1] // members)) for x in tensors], 2).flatten(1, 2)


def apart(x: Tensor, members: int, batch: int = 0) -> Tensor:
    """Rows → (M, …, B, …): the members at a dimension of their own, in front."""
    parts: Tensor = x.unflatten(batch, (members, x.shape[batch] // members))
    return parts.movedim(batch, 0)


def together(x: Tensor, batch: int = 0) -> Tensor:
    """(M, …, B, …) → rows, the inverse of `apart`."""
    if batch:
        return torch.cat(x.unbind(0), batch)
    rows: Tensor = x.flatten().reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    return rows


def aligned(parameter: Tensor, rank: int) -> Tensor:
    """(M, *shape) with dimensions of one behind M, so that it broadcasts against M tensors of `rank` dimensions."""
    members, shape = parameter.shape[0], parameter.shape[1:]
    return parameter.reshape(members, *(1,) * (rank - len(shape)), *shape)


def in_channels(parameter: Tensor, x: Tensor, members: int) -> Tensor:
    """(M, *shape) so that it broadcasts against members in the channels (B, M · C, …): each channel meets its member's value."""
    values = aligned(parameter, x.dim()).movedim(0, 1)
    if values.shape[2] == 1:
        values = values.expand(-1, -1, x.shape[1] // members, *(-1,) * (x.dim() - 2))
    return values.flatten(1, 2)
