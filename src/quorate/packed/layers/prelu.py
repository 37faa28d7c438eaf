"""Packed PReLU: slopes of each member's own (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

    y = max(0, x) + slope · min(0, x)        He et al. 2015, arXiv:1502.01852, eq. 1

Shapes: weight (M, 1), one slope per member, or (M, C′), one per channel of a member; C′ = α · C / M, behind a last layer C. Channels
(B, M · C′, …), or with `axis=-1` (B, …, M · C′); rows (M · B, C′, …), where one slope fits any axes.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing
from quorate.packed.layers.norms import home, member_width
from quorate.packed.layers.options import checked_layout
from quorate.packed.layers.widths import Alpha, whole


class PackedPReLU(nn.Module, PackedLayer):
    """M members' nn.PReLU.

    Args:
        num_parameters: 1, or the channels C of the single network. members: M. alpha: widening α; α · C must divide by M.
        init: the first value of all slopes.
        last: stands behind a last layer, C channels for each member.
        axis: the packed axis in layout "channels", 1, or -1 of tokens (one slope only, as nn.PReLU counts channels at axis 1).
        layout: how `forward` takes and gives the members unless told otherwise.

    Raises:
        ValueError: a width that does not divide (it names the nearest that do), another axis, or layout "spread".
    """

    def __init__(
        self,
        num_parameters: int,
        members: int,
        alpha: Alpha = 2,
        init: float = 0.25,
        last: bool = False,
        axis: int = 1,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        one = whole("num_parameters", num_parameters) == 1
        if axis not in (1, -1) or (axis == -1 and not one):
            raise ValueError(
                f"axis: expected 1, or -1 with one slope, got {axis} with {num_parameters}; nn.PReLU counts at axis 1"
            )
        self.members = self.groups = whole("members", members)
        self.slopes = 1 if one else member_width("num_parameters", num_parameters, members, alpha, last)
        self.init, self.last, self.axis = init, last, axis
        self.layout = checked_layout(layout, False)
        self.weight = nn.Parameter(torch.empty(members, self.slopes, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All slopes to `init`."""
        nn.init.constant_(self.weight, self.init)

    def forward(self, input: Tensor, layout: Layout | None = None) -> Tensor:
        """channels → channels, rows → rows, gather: channels → rows. Raises ValueError for another shape or layout "spread"."""
        layout, members, one = self.layout if layout is None else checked_layout(layout, False), self.members, self.slopes == 1
        apart = 0 if layout == "rows" else self.axis % max(input.dim(), 1)
        size = input.shape[apart] if input.dim() > 1 else 1
        width = None if one else self.slopes if layout == "rows" else members * self.slopes
        if input.dim() < 2 or size % members or (width is not None and input.shape[1] != width):
            batch, channels = (f"{members} · B", width or "C′") if layout == "rows" else ("B", width or f"{members} · C′")
            shape = f"({batch}, …, {channels})" if self.axis == -1 else f"({batch}, {channels}, …)"
            raise ValueError(
                f"PackedPReLU: expected an input {shape} in layout {layout!r}, got {tuple(input.shape)}; make the layer before it "
                "give that, or pass the layout that it gives"
            )
        if layout == "rows":
            slope = self.weight.repeat_interleave(size // members, 0)
        else:
            slope = self.weight.expand(-1, size // members).flatten() if one else self.weight.flatten()
        trailing = 0 if self.axis == -1 and layout != "rows" else input.dim() - 2
        y = torch.where(input > 0, input, slope.unflatten(-1, (slope.shape[-1], *(1,) * trailing)) * input)
        return torch.cat(y.chunk(members, apart)) if layout == "gather" else y

    @classmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed layer of nn.PReLU, slopes at its `init`. Raises ValueError, also for one on the shared input."""
        if packing.first:
            raise ValueError(
                "PackedPReLU: expected the members' channels, got a first layer; put a Linear or convolution before it"
            )
        n, members, alpha = module.num_parameters, packing.members, packing.alpha
        return cls(n, members, alpha, module.init, packing.last, **home(module))

    def plain(self) -> nn.Module:
        """One member's layer, fresh."""
        return nn.PReLU(self.slopes, self.init, **home(self))

    def member(self, m: int) -> dict[str, Tensor]:
        """A view of member m's slopes, in the shape of `plain()`."""
        return {"weight": self.weight[m]}

    @classmethod
    def fan_in(cls, module: nn.Module, name: str) -> int:  # noqa: ARG003
        """1: an output reads one input."""
        return 1

    def extra_repr(self) -> str:
        return f"slopes={self.slopes}, members={self.members}, last={self.last}, axis={self.axis}, layout={self.layout!r}"
