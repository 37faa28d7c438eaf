"""Packed norms over channels at axis 1: BatchNorm, InstanceNorm, GroupNorm (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

    y = (x - mean) / √(variance + eps) · weight + bias

    BatchNorm      one mean per channel of the batch       Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1
    InstanceNorm   one per channel and row                 Ulyanov et al. 2016, arXiv:1607.08022, eq. 2
    GroupNorm      one per group of channels and row       Wu & He 2018, arXiv:1803.08494, eq. 7

The first two act on each channel alone, so a norm over the M · C′ packed channels is M members' norms, running statistics included.
A member keeps the number of groups of its GroupNorm, so that M · g groups of C′ / g channels are M members' norms.

Shapes: channels (B, M · C′, …), rows (M · B, C′, …), with C′ = α · C / M; parameters and statistics (M · C′,), member-major. A norm
before a first layer or behind a last one has C′ = C.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing, to_channels, to_rows
from quorate.packed.layers.options import checked_layout
from quorate.packed.layers.widths import Alpha, exact, whole, widened


def member_width(name: str, width: int, members: int, alpha: Alpha, end: bool) -> int:
    """Channels of one member: α · width / M, or all of them at an end of the network (first or last). Raises ValueError."""
    factor = Fraction(whole("members", members)) if end else exact(alpha)
    return widened(name, whole(name, width), factor, members) // members


def home(module: nn.Module) -> dict[str, Any]:
    """The device and dtype of a layer, as arguments; none where it holds no tensor."""
    tensor = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    return {} if tensor is None else {"device": tensor.device, "dtype": tensor.dtype}


class _AxisOne(PackedLayer):
    """Layouts and slices of a norm whose parameters and statistics are (M · C′,)."""

    RANKS: ClassVar[tuple[int, ...]] = ()  # legal numbers of axes; () is any from 2
    first: bool
    last: bool
    width: int  # C′

    def _placed(self, members: int, width: int, first: bool, last: bool, layout: Layout) -> None:
        self.members = self.groups = members
        self.width, self.first, self.last = width, first, last
        self.layout = checked_layout(layout, first)

    def _checked(self, x: Tensor, layout: Layout | None) -> Layout:
        layout = self.layout if layout is None else checked_layout(layout, self.first)
        rows = layout == "rows"
        width = self.width if rows or self.first else self.members * self.width
        ranked = x.dim() in self.RANKS if self.RANKS else x.dim() >= 2
        if not ranked or x.shape[1] != width or (rows and x.shape[0] % self.members):
            axes = f" of {' or '.join(map(str, self.RANKS))} axes" if self.RANKS else ""
            batch = f"{self.members} · B" if rows else "B"
            raise ValueError(
                f"{type(self).__name__}: expected an input ({batch}, {width}, …){axes} in layout {layout!r}, got {tuple(x.shape)}; "
                "make the layer before it give that, or pass the layout that it gives"
            )
        return layout

    def _channels(self, x: Tensor, layout: Layout) -> Tensor:
        """An input in any layout as channels (B, M · C′, …)."""
        if layout == "rows":
            return to_channels(x, self.members)
        return torch.cat([x] * self.members, 1) if self.first else x

    def member(self, m: int) -> dict[str, Tensor]:
        """Views of member m's parameters and statistics, in the shapes of `plain()`; the batches seen are common to all members."""
        assert isinstance(self, nn.Module)
        part = slice(m * self.width, (m + 1) * self.width)
        state = (*self.named_parameters(), *self.named_buffers())
        return {name: tensor[part] if tensor.dim() else tensor for name, tensor in state}

    @classmethod
    def fan_in(cls, module: nn.Module, name: str) -> int:  # noqa: ARG003
        """1: an output reads one normalised input."""
        return 1


class _Statistics(_NormBase, _AxisOne):
    """BatchNorm or InstanceNorm over M · C′ channels; see the classes below."""

    PLAIN: ClassVar[type[_NormBase]]

    def __init__(
        self,
        num_features: int,
        members: int,
        alpha: Alpha = 2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        bias: bool = True,
        first: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        width = member_width("num_features", num_features, members, alpha, first or last)
        super().__init__(members * width, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self._placed(members, width, first, last, layout)

    def forward(self, input: Tensor, layout: Layout | None = None) -> Tensor:
        """channels (B, M · C′, …) → the same; rows (M · B, C′, …) → the same; gather: channels → rows.

        Of a first norm, channels and spread take the shared input (B, C, …). Statistics are each member's own in every layout.
        Raises ValueError for another shape, or a layout that this norm cannot have.
        """
        layout = self._checked(input, layout)
        y: Tensor = super().forward(self._channels(input, layout))
        return y if layout == "channels" else to_rows(y, self.members)

    @classmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed norm of nn.BatchNorm or nn.InstanceNorm: parameters one and zero, statistics fresh. Raises ValueError."""
        return cls(
            module.num_features,
            packing.members,
            packing.alpha,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
            module.bias is not None or not module.affine,
            packing.first,
            packing.last,
            **home(module),
        )

    def plain(self) -> nn.Module:
        """One member's norm, fresh."""
        options = (self.eps, self.momentum, self.affine, self.track_running_stats)
        norm = self.PLAIN(self.width, *options, **home(self))
        if getattr(self, "bias", None) is None:
            norm.register_parameter("bias", None)
        return norm

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, members={self.members}, first={self.first}, last={self.last}, layout={self.layout!r}"


class PackedBatchNorm1d(_Statistics, nn.BatchNorm1d):
    """M members' nn.BatchNorm1d over (B, C) or (B, C, L); the size is that of the single network.

    Args:
        num_features: C of the single network. members: M. alpha: widening α; α · C must divide by M.
        eps, momentum, affine, track_running_stats, bias: as in nn.BatchNorm1d.
        first: normalises the shared input, C channels for each member. last: stands behind a last layer, whose M · C outputs it takes.
        layout: how `forward` takes and gives the members unless told otherwise ("spread" of a first norm only).

    Raises:
        ValueError: a width that does not divide (it names the nearest that do), or a layout that this place cannot have.
    """

    RANKS = (2, 3)
    PLAIN = nn.BatchNorm1d


class PackedBatchNorm2d(_Statistics, nn.BatchNorm2d):
    """M members' nn.BatchNorm2d over (B, C, H, W); arguments as in PackedBatchNorm1d."""

    RANKS = (4,)
    PLAIN = nn.BatchNorm2d


class PackedBatchNorm3d(_Statistics, nn.BatchNorm3d):
    """M members' nn.BatchNorm3d over (B, C, D, H, W); arguments as in PackedBatchNorm1d."""

    RANKS = (5,)
    PLAIN = nn.BatchNorm3d


class _PerRow(_Statistics):
    """InstanceNorm, whose affine values and running statistics are off unless asked for, as in PyTorch."""

    def __init__(
        self,
        num_features: int,
        members: int,
        alpha: Alpha = 2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        bias: bool = True,
        first: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = (eps, momentum, affine, track_running_stats, bias, first, last, layout, device, dtype)
        super().__init__(num_features, members, alpha, *options)


class PackedInstanceNorm1d(_PerRow, nn.InstanceNorm1d):
    """M members' nn.InstanceNorm1d over (B, C, L); arguments as in PackedBatchNorm1d, `affine` and `track_running_stats` off."""

    RANKS = (3,)
    PLAIN = nn.InstanceNorm1d


class PackedInstanceNorm2d(_PerRow, nn.InstanceNorm2d):
    """M members' nn.InstanceNorm2d over (B, C, H, W); arguments as in PackedInstanceNorm1d."""

    RANKS = (4,)
    PLAIN = nn.InstanceNorm2d


class PackedInstanceNorm3d(_PerRow, nn.InstanceNorm3d):
    """M members' nn.InstanceNorm3d over (B, C, D, H, W); arguments as in PackedInstanceNorm1d."""

    RANKS = (5,)
    PLAIN = nn.InstanceNorm3d


class PackedGroupNorm(nn.GroupNorm, _AxisOne):
    """M members' nn.GroupNorm over (B, C, …); sizes are those of the single network, and each member has `num_groups` groups.

    Args:
        num_groups: g of every member; it must divide a member's channels α · C / M.
        num_channels: C of the single network. members: M. alpha: widening α; α · C must divide by M.
        eps, affine, bias: as in nn.GroupNorm.
        first, last, layout: as in PackedBatchNorm1d.

    Raises:
        ValueError: channels or groups that do not divide (it names those that do), or a layout that this place cannot have.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        members: int,
        alpha: Alpha = 2,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        first: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        width = member_width("num_channels", num_channels, members, alpha, first or last)
        if width % whole("num_groups", num_groups):
            legal = ", ".join(str(g) for g in range(1, width + 1) if width % g == 0)
            raise ValueError(
                f"num_groups: expected a divisor of a member's {width} channels, got {num_groups}; legal are {legal}"
            )
        super().__init__(members * num_groups, members * width, eps, affine, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self._placed(members, width, first, last, layout)
        self.groups = self.num_groups

    def forward(self, input: Tensor, layout: Layout | None = None) -> Tensor:
        """channels (B, M · C′, …) → the same; rows (M · B, C′, …) → the same; gather: channels → rows.

        Of a first norm, channels and spread take the shared input (B, C, …).
        Raises ValueError for another shape, or a layout that this norm cannot have.
        """
        layout = self._checked(input, layout)
        if layout != "rows":
            y = super().forward(self._channels(input, layout))
            return y if layout == "channels" else to_rows(y, self.members)
        members, each = self.members, self.num_groups // self.members
        rows = input.unflatten(0, (members, input.shape[0] // members)).unbind()
        affine: tuple[Tensor | None, ...] = (self.weight, self.bias)
        weights, biases = ([None] * members if p is None else p.unflatten(0, (members, self.width)).unbind() for p in affine)
        return torch.cat([F.group_norm(x, each, w, b, self.eps) for x, w, b in zip(rows, weights, biases, strict=True)])

    @classmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed norm of nn.GroupNorm, parameters one and zero. Raises ValueError."""
        return cls(
            module.num_groups,
            module.num_channels,
            packing.members,
            packing.alpha,
            module.eps,
            module.affine,
            module.bias is not None or not module.affine,
            packing.first,
            packing.last,
            **home(module),
        )

    def plain(self) -> nn.Module:
        """One member's norm, fresh."""
        norm = nn.GroupNorm(self.num_groups // self.members, self.width, self.eps, self.affine, **home(self))
        if getattr(self, "bias", None) is None:
            norm.register_parameter("bias", None)
        return norm

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, members={self.members}, first={self.first}, last={self.last}, layout={self.layout!r}"
