"""Packed convolutions and transposed convolutions (Laurent et al., Packed-Ensembles, ICLR 2023, arXiv:2210.09184, §3).

M members lie side by side in the channels of one layer, kept apart by groups; α widens, γ cuts a member into subgroups:

    interior    in' = α · in    out' = α · out        groups = M · γ · g (g: the layer's own groups)
    first       in' = in        out' = α · out        every member reads the whole shared input: a dense layer
    last        in' = α · in    out' = M · out        groups = M · g
    depthwise   (g = in) stays depthwise: groups = in' = α · in, whatever γ, with the layer's own multiplier out / in

Channels are member-major throughout: index = member · (channels per member) + c, and inside a member by group. A first layer with
own groups repeats the input M times. γ is lowered by one until in' and out' divide by M · γ · g and in'/(M · γ · g) ≥ 64 (γ = 1 always
stands). Every group's weights and biases start uniform within ± 1/√(the group's fan-in), (in'/groups) · Π kernel: the true one, for
transposed convolutions too (PyTorch's own initialisation takes their fan-out).

Shapes: (B, in', *size) → (B, out', *size'); weight (out', in'/groups, *kernel), transposed (in', out'/groups, *kernel).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import skip_init

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing
from quorate.packed.layers.options import Backends, checked_gamma, checked_layout
from quorate.packed.layers.widths import Alpha, exact, lowered_gamma, whole, widened

Size = int | tuple[int, ...]
Padding = Literal["zeros", "reflect", "replicate", "circular"]

CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
NHWC = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Widths:
    """Packed channels in and out, all groups, how often the input is repeated, γ in use and why it is not the one asked for."""

    into: int
    out: int
    groups: int
    repeats: int
    gamma: int
    lowered: str


def packed_widths(into: int, out: int, members: int, alpha: Alpha, gamma: int, own: int, first: bool, last: bool) -> Widths:
    """Widths for a layer of the single network with `own` groups. Raises ValueError naming the nearest that divide."""
    for name, value in (("in_channels", into), ("out_channels", out), ("members", members), ("groups", own)):
        whole(name, value)
    checked_gamma(gamma, first, last)
    widen = exact(alpha)
    if into % own or out % own:
        raise ValueError(f"groups: expected a divisor of {into} and {out} channels, got {own}; choose one of both")
    depthwise = own == into and own > 1 and not first
    wide = into if first else widened("in_channels", into, widen, members * (1 if depthwise else own))
    each = wide // members if depthwise else own  # a member's own groups
    made = widened("out_channels", out, Fraction(members) if last else widen, members * each)
    if depthwise:
        why = f"gamma {gamma} lowered to 1: a depthwise convolution has one channel per group already" if gamma > 1 else ""
        return Widths(wide, made, members * each, 1, 1, why)
    used, why = lowered_gamma(wide, made, members, gamma, own)
    if first and own == 1:
        return Widths(wide, made, 1, 1, used, why)
    repeats = members if first else 1
    return Widths(wide * repeats, made, members * used * own, repeats, used, why)


class _Packed(PackedLayer, Backends, _ConvNd):
    """What convolutions and transposed ones share: a mix-in before nn.ConvNd or nn.ConvTransposeNd."""

    PLAIN: ClassVar[type[_ConvNd]]
    OPTIONS: ClassVar[tuple[str, ...]] = ("kernel_size", "stride", "padding", "dilation", "padding_mode")

    @abstractmethod
    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, size: Sequence[int] | None) -> Tensor:
        """The plain operation with these parameters."""

    def _place_(self, widths: Widths, members: int, first: bool, last: bool, layout: Layout) -> None:
        self.members, self.gamma, self.lowered = members, widths.gamma, widths.lowered
        self.first, self.last, self.repeats = first, last, widths.repeats
        self.layout, self.backend = checked_layout(layout, first), self.BACKENDS[0]

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform within ± 1/√(a group's fan-in)."""
        bound = 1 / math.sqrt(self.fan_in(self, "weight"))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def _dense(self) -> bool:
        """Whether one ungrouped convolution reads the shared input for all members."""
        return self.first and self.repeats == 1 and self.groups == 1

    @property
    def _axis(self) -> int:
        """The axis of the weight along which the members lie."""
        return 1 if self.transposed and self._dense else 0

    def _check(self, x: Tensor, layout: Layout) -> None:
        rows, width, spatial = layout == "rows", self.in_channels // self.repeats, len(self.kernel_size)
        width = width // self.members if rows and not self.first else width
        if x.dim() != spatial + 2 or x.shape[1] != width or (rows and x.shape[0] % self.members):
            batch, sizes = f"{self.members} · B" if rows else "B", ("depth", "height", "width")[-spatial:]
            raise ValueError(
                f"{type(self).__name__}: expected an input ({batch}, {width}, {', '.join(sizes)}) in layout {layout!r}, "
                f"got {tuple(x.shape)}; make the layer before it give that, or pass the layout that it gives"
            )

    def _ordered(self, x: Tensor) -> Tensor:
        """In the memory format of the backend."""
        if self.backend == "nhwc":
            return x.contiguous(memory_format=NHWC[len(self.kernel_size)])
        return x.contiguous() if self.backend == "nchw" else x

    def _run(self, x: Tensor, layout: Layout | None, size: Sequence[int] | None = None) -> Tensor:
        layout = self.layout if layout is None else checked_layout(layout, self.first)
        self._check(x, layout)
        members, axis = self.members, 1 if layout == "channels" else 0
        if layout != "rows" and self.backend != "loop":
            x = self._ordered(torch.cat([x] * self.repeats, 1) if self.repeats > 1 else x)
            y = self._convolve(x, self.weight, self.bias, self.groups, size)
            return y if layout == "channels" else torch.cat(y.chunk(members, 1))  # cat keeps the memory format
        if layout == "rows":
            xs = self._ordered(x).unflatten(0, (members, x.shape[0] // members)).unbind(0)
        else:
            xs = (x,) * members if self.first else x.chunk(members, 1)
        weights, groups = self.weight.chunk(members, self._axis), 1 if self._dense else self.groups // members
        biases = [None] * members if self.bias is None else self.bias.chunk(members)
        each = [self._convolve(*parts, groups, size) for parts in zip(xs, weights, biases, strict=True)]
        return torch.cat(each, axis)

    @classmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed layer for a plain one of the same kind, uninitialised.

        Raises ValueError for another module (a subclass too), and for widths that do not divide.
        """
        if type(module) is not cls.PLAIN:
            expected, came = f"nn.{cls.PLAIN.__name__}", type(module).__name__
            raise ValueError(f"{cls.__name__}: expected an {expected}, got {came}; convert it to one first")
        layer: Self = skip_init(
            cls,
            module.in_channels,
            module.out_channels,
            members=packing.members,
            alpha=packing.alpha,
            gamma=packing.gamma,
            groups=module.groups,
            bias=module.bias is not None,
            first=packing.first,
            last=packing.last,
            device=module.weight.device,
            dtype=module.weight.dtype,
            **{name: getattr(module, name) for name in cls.OPTIONS},
        )
        return layer

    def member(self, m: int) -> dict[str, Tensor]:
        """Views of member m's parameters, in the shapes of `plain()`."""
        weight = self.weight.unflatten(self._axis, (self.members, -1)).select(self._axis, m)
        return {"weight": weight} | ({} if self.bias is None else {"bias": self.bias.unflatten(0, (self.members, -1))[m]})

    def plain(self) -> _ConvNd:
        """One member's layer, uninitialised; its groups are γ · the layer's own."""
        layer: _ConvNd = skip_init(
            self.PLAIN,
            self.in_channels if self._dense else self.in_channels // self.members,
            self.out_channels // self.members,
            groups=1 if self._dense else self.groups // self.members,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
            **{name: getattr(self, name) for name in self.OPTIONS},
        )
        return layer

    @classmethod
    def fan_in(cls, module: nn.Module, name: str) -> int:  # noqa: ARG003
        """Inputs that one output reads: (in / groups) · Π kernel, of transposed convolutions too (without regard to their stride)."""
        assert isinstance(module, _ConvNd)
        return module.in_channels // module.groups * math.prod(module.kernel_size)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, members={self.members}, gamma={self.gamma}, first={self.first}, last={self.last}, "
            f"layout={self.layout}, backend={self.backend}"
        )


class _Convolution(_Packed):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        members: int,
        alpha: Alpha = 2,
        gamma: int = 1,
        stride: Size = 1,
        padding: str | Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Padding = "zeros",
        first: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        widths = packed_widths(in_channels, out_channels, members, alpha, gamma, groups, first, last)
        plain: Any = super().__init__
        sizes = (widths.into, widths.out, kernel_size, stride, padding, dilation)
        plain(*sizes, widths.groups, bias, padding_mode, device, dtype)
        self._place_(widths, members, first, last, layout)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, size: Sequence[int] | None) -> Tensor:  # noqa: ARG002
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0,) * len(self.kernel_size)
        return CONVOLVE[len(self.kernel_size)](x, weight, bias, self.stride, padding, self.dilation, groups)

    def forward(self, input: Tensor, layout: Layout | None = None) -> Tensor:
        """channels: (B, in', *size) → (B, out', *size'), of a first layer the shared (B, in, *size) → (B, out', *size');
        rows: (M · B, in'/M, *size) → (M · B, out'/M, *size'), of a first layer (M · B, in, *size), an input of each member's own;
        spread: the shared input (B, in, *size) → rows; gather: channels → rows.

        Raises ValueError for another shape, or a layout that this layer cannot have.
        """
        return self._run(input, layout)


class _Transposed(_Packed, _ConvTransposeNd):
    OPTIONS = (*_Packed.OPTIONS, "output_padding")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        members: int,
        alpha: Alpha = 2,
        gamma: int = 1,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: Literal["zeros"] = "zeros",
        first: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        widths = packed_widths(in_channels, out_channels, members, alpha, gamma, groups, first, last)
        plain: Any = super().__init__
        sizes = (widths.into, widths.out, kernel_size, stride, padding, output_padding)
        plain(*sizes, widths.groups, bias, dilation, padding_mode, device, dtype)
        self._place_(widths, members, first, last, layout)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, size: Sequence[int] | None) -> Tensor:
        assert not isinstance(self.padding, str)
        given, stride, padding = None if size is None else list(size), list(self.stride), list(self.padding)
        kernel, dilation = list(self.kernel_size), list(self.dilation)
        extra = self._output_padding(x, given, stride, padding, kernel, len(kernel), dilation)
        return TRANSPOSED[len(self.kernel_size)](x, weight, bias, self.stride, self.padding, extra, groups, self.dilation)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None, layout: Layout | None = None) -> Tensor:
        """As a packed convolution's. output_size: the size of the output in space, as in nn.ConvTransposeNd.

        Raises ValueError for another shape, a layout that this layer cannot have, or an output_size out of reach.
        """
        return self._run(input, layout, output_size)


class PackedConv2d(_Convolution, nn.Conv2d):
    """M two-dimensional convolutions in one grouped convolution. Sizes are those of the single network.

    Args:
        in_channels, out_channels: widths of the single network's layer.
        members: M.
        alpha: widening α; α · width must divide by M · groups.
        gamma: γ subgroups inside a member, lowered where they would be too thin; 1 for a first or last layer.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in nn.Conv2d; `groups` are the layer's own.
        first: reads the shared input (in layout "rows" an input of each member's own). last: gives M · out_channels. Both may hold.
        layout: how `forward` takes and gives the members unless told otherwise.

    Attributes:
        in_channels, out_channels, groups: the packed ones. repeats: how often a first layer with own groups repeats its input.
        gamma: the one in use. lowered: why it is not the one asked for ("" where it is).

    Backends: "grouped" is one grouped convolution in the memory format that comes, "nhwc" and "nchw" in that format, "loop" one
    convolution per member. In layout "rows" all are one per member, on contiguous slices.

    Raises:
        ValueError: a width that does not divide (it names the nearest that do), an unknown layout or one that this place cannot have.
    """

    PLAIN = nn.Conv2d
    BACKENDS = ("grouped", "nhwc", "nchw", "loop")


class PackedConv1d(_Convolution, nn.Conv1d):
    """M one-dimensional convolutions in one; see PackedConv2d. There is no backend "nhwc"."""

    PLAIN = nn.Conv1d
    BACKENDS = ("grouped", "nchw", "loop")


class PackedConv3d(_Convolution, nn.Conv3d):
    """M three-dimensional convolutions in one; see PackedConv2d. Backend "nhwc" is channels_last_3d."""

    PLAIN = nn.Conv3d
    BACKENDS = ("grouped", "nhwc", "nchw", "loop")


class PackedConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """M two-dimensional transposed convolutions in one; see PackedConv2d. The same rule of γ.

    Args as there, in the order of nn.ConvTranspose2d: …, stride, padding, output_padding, groups, bias, dilation, padding_mode, ….
    """

    PLAIN = nn.ConvTranspose2d
    BACKENDS = ("grouped", "nhwc", "nchw", "loop")


class PackedConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """M one-dimensional transposed convolutions in one; see PackedConvTranspose2d. There is no backend "nhwc"."""

    PLAIN = nn.ConvTranspose1d
    BACKENDS = ("grouped", "nchw", "loop")


class PackedConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """M three-dimensional transposed convolutions in one; see PackedConvTranspose2d. Backend "nhwc" is channels_last_3d."""

    PLAIN = nn.ConvTranspose3d
    BACKENDS = ("grouped", "nhwc", "nchw", "loop")
