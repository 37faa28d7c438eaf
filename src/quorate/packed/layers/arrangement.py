"""How M members lie side by side in one tensor, and what every packed layer offers.

    channels    (B, M · C, …)    in the channels, member-major: index = member · C + c; of tokens (B, …, M · C), in the last axis
    rows        (M · B, C, …)    in the batch, member-major: row = member · B + b, and each row is what a plain member would see

In rows every step that treats the rows of a batch one by one keeps the members apart; in channels grouped convolutions do
(Laurent et al., ICLR 2023, arXiv:2210.09184, §3). A layer takes and gives, by its `layout`:

    "channels"    channels → channels    (a first layer: the shared input (B, …) → channels)
    "rows"        rows → rows            (a first layer: an input of its own for each member)
    "spread"      the shared input (B, …) → rows, of a first layer
    "gather"      channels → rows
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

Layout = Literal["channels", "rows", "spread", "gather"]


@dataclass(frozen=True)
class Packing:
    """What is asked of a packed layer: M members, α as a fraction, γ subgroups, and whether it is the first or last of its network."""

    members: int
    alpha: Fraction
    gamma: int = 1
    first: bool = False
    last: bool = False

    @property
    def ratio(self) -> Fraction:
        """α / M: a member's width as a share of the single network's."""
        return self.alpha / self.members


class PackedLayer(ABC):
    """A layer that holds M members' parameters; a mix-in for an nn.Module.

    Attributes:
        members: M.
        layout: how `forward` takes and gives the members where its argument `layout` is None.
        groups: how many blocks do not see each other.
        gamma: subgroups per member in use. lowered: why it is not the one asked for, or "".
    """

    members: int
    layout: Layout
    groups: int
    gamma: int = 1
    lowered: str = ""

    @classmethod
    @abstractmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed layer for a plain one of the single network, uninitialised, on its device and in its dtype.

        Raises ValueError for widths that do not divide (it names the nearest that do) and settings that cannot be packed.
        """

    @abstractmethod
    def plain(self) -> nn.Module:
        """One member's layer, uninitialised, with frozen parameters frozen or not as it comes."""

    @abstractmethod
    def member(self, m: int) -> dict[str, Tensor]:
        """Views of all that belongs to member m, named and shaped as in the state dict of `plain()`."""

    @classmethod
    def fan_in(cls, module: nn.Module, name: str) -> int:  # noqa: ARG003
        """Inputs that one output of a plain layer reads: the scale of the parameter `name` is 1/√ of it."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return math.prod(weight.shape[1:])


def to_rows(x: Tensor, members: int) -> Tensor:
    """Channels at dimension 1, (B, M · C, …) → rows (M · B, C, …), in the memory format that comes."""
    return torch.cat(x.split(x.shape[1] // members, 1))


def to_channels(x: Tensor, members: int) -> Tensor:
    """Rows (M · B, C, …) → channels at dimension 1, (B, M · C, …), in the memory format that comes."""
    return torch.cat(x.unflatten(0, (members, x.shape[0] // members)).unbind(0), 1)


def last_to_rows(x: Tensor, members: int) -> Tensor:
    """Channels in the last axis, (B, …, M · C) → rows (M · B, …, C)."""
    return torch.cat(x.split(x.shape[-1] // members, -1))


def rows_to_last(x: Tensor, members: int) -> Tensor:
    """Rows (M · B, …, C) → channels in the last axis, (B, …, M · C)."""
    return torch.cat(x.unflatten(0, (members, x.shape[0] // members)).unbind(0), -1)


def spread(x: Tensor, members: int, batch: int = 0) -> Tensor:
    """The shared input (B, …) → rows (M · B, …), each member's the same. batch: the axis of the batch."""
    return torch.cat([x] * members, batch)
