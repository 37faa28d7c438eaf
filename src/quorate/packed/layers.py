"""Packed linear and convolution layers (Laurent et al., Packed-Ensembles, ICLR 2023, arXiv:2210.09184, §3).

M members lie side by side in the channels of one layer, kept apart by groups; α widens, γ cuts a member into subgroups:

    interior   in' = α · in    out' = α · out        groups = M · γ · g (g: the layer's own groups)
    first      in' = in        out' = α · out        every member reads the whole shared input: a dense layer
    last       in' = α · in    out' = M · out        groups = M · g

Channels are member-major throughout: channel index = member · (channels per member) + c. A first convolution with own groups
repeats the input M times. A depthwise convolution (g = in) stays depthwise: in' groups, whatever γ.
Every group's weights and biases start uniform within ± 1/√(the group's fan-in), as PyTorch's own layers do.

Shapes: PackedLinear (B, in') → (B, out'), weight (groups, out'/groups, in'/groups), of the first layer (M, out'/M, in);
PackedConv2d (B, in', H, W) → (B, out', H', W'), weight (out', in'/groups, kh, kw) as in nn.Conv2d.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from quorate.packed.widths import Alpha, exact, lowered_gamma, whole, widened

Pair = int | tuple[int, int]
Padding = Literal["zeros", "reflect", "replicate", "circular"]


def _check_gamma(gamma: int, first: bool, last: bool) -> int:
    if whole("gamma", gamma) > 1 and (first or last):
        place = "first" if first else "last"
        raise ValueError(f"gamma: expected 1 for a {place} layer, got {gamma}; subgroups are for interior layers only")
    return gamma


class PackedLinear(nn.Module):
    """M linear layers in one batched product. Sizes are those of the single network.

    Args:
        in_features, out_features: widths of the single network's layer.
        members: M.
        alpha: widening α; α · width must divide by M · γ.
        gamma: γ subgroups inside a member; taken exactly, 1 for a first or last layer.
        bias: whether there is one, (out',).
        first: reads the shared input. last: gives M · out_features, member-major logits. Both may hold.

    Raises:
        ValueError: a width that does not divide (it names the nearest that do), or an input that is not (B, in').
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        members: int,
        alpha: Alpha = 2,
        gamma: int = 1,
        bias: bool = True,
        first: bool = False,
        last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.members = whole("members", members)
        self.gamma = _check_gamma(gamma, first, last)
        self.first, self.last = first, last
        groups = members * gamma
        self.groups = 1 if first else groups
        widen, head = exact(alpha), Fraction(members)
        into, out = whole("in_features", in_features), whole("out_features", out_features)
        self.in_features = into if first else widened("in_features", into, widen, groups)
        self.out_features = widened("out_features", out, head if last else widen, groups)
        fan_in = self.in_features if first else self.in_features // groups
        self.weight = nn.Parameter(torch.empty(groups, self.out_features // groups, fan_in, device=device, dtype=dtype))
        values = torch.empty(self.out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if values is None else nn.Parameter(values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform within ± 1/√(a group's fan-in)."""
        bound = 1 / math.sqrt(self.weight.shape[2])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """(B, in') → (B, out')."""
        if input.dim() != 2 or input.shape[1] != self.in_features:
            raise ValueError(
                f"PackedLinear: expected an input (B, {self.in_features}), got {tuple(input.shape)}; "
                "flatten to (B, features) before it"
            )
        if self.first:
            return F.linear(input, self.weight.reshape(self.out_features, self.in_features), self.bias)
        batch, (groups, out, into) = input.shape[0], self.weight.shape
        x = input.reshape(batch, groups, into).transpose(0, 1)
        weight = self.weight.transpose(1, 2)
        if self.bias is None:
            y = torch.bmm(x, weight)
        else:
            y = torch.baddbmm(self.bias.reshape(groups, 1, out), x, weight)
        return y.transpose(0, 1).reshape(batch, self.out_features)

    def member(self, m: int) -> dict[str, Tensor]:
        """Views of member m's parameters, in the shapes of `plain()`."""
        weight = self.weight[m] if self.gamma == 1 else self.weight[m * self.gamma : (m + 1) * self.gamma]
        out = self.out_features // self.members
        return {"weight": weight} | ({} if self.bias is None else {"bias": self.bias[m * out : (m + 1) * out]})

    def plain(self) -> nn.Module:
        """One member's layer, uninitialised: nn.Linear; with γ > 1 a PackedLinear of one member, which keeps its subgroups."""
        into = self.in_features if self.first else self.in_features // self.members
        out, like = self.out_features // self.members, self.weight
        options = {"bias": self.bias is not None, "device": like.device, "dtype": like.dtype}
        plain: nn.Module
        if self.gamma == 1:
            plain = skip_init(nn.Linear, into, out, **options)
        else:
            plain = skip_init(PackedLinear, into, out, 1, 1, self.gamma, **options)
        return plain

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, members={self.members}, "
            f"gamma={self.gamma}, bias={self.bias is not None}, first={self.first}, last={self.last}"
        )


class PackedConv2d(nn.Conv2d):
    """M two-dimensional convolutions in one grouped convolution. Sizes are those of the single network.

    γ is lowered by one until in' and out' divide by M · γ · groups and in'/(M · γ · groups) ≥ 64 (γ = 1 always stands): `gamma`
    is the one used, `lowered` says why it is not the one asked for ("" where it is).

    Args:
        in_channels, out_channels: widths of the single network's layer.
        members, alpha, gamma, first, last: as in PackedLinear.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in nn.Conv2d; `groups` are the layer's own.

    Raises:
        ValueError: a width that does not divide; it names the nearest that do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        members: int,
        alpha: Alpha = 2,
        gamma: int = 1,
        stride: Pair = 1,
        padding: str | Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Padding = "zeros",
        first: bool = False,
        last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        own, asked = whole("groups", groups), _check_gamma(gamma, first, last)
        into, out = whole("in_channels", in_channels), whole("out_channels", out_channels)
        members, widen = whole("members", members), exact(alpha)
        if into % own or out % own:
            raise ValueError(f"groups: expected a divisor of {into} and {out} channels, got {own}; choose one of both")
        depthwise = own == into and own > 1 and not first
        in_packed = widened("in_channels", into, widen, members * (1 if depthwise else own)) if not first else into
        all_own = in_packed // members if depthwise else own  # a member's own groups
        out_packed = widened("out_channels", out, Fraction(members) if last else widen, members * all_own)
        used, why = (1, "") if depthwise else lowered_gamma(in_packed, out_packed, members, asked, own)
        if depthwise and asked > 1:
            why = f"gamma {asked} lowered to 1: a depthwise convolution has one channel per group already"
        repeats = members if first and own > 1 else 1
        super().__init__(
            in_packed * repeats,
            out_packed,
            kernel_size,
            stride,
            padding,
            dilation,
            1 if first and own == 1 else members * used * all_own,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.members, self.gamma, self.lowered = members, used, why
        self.first, self.last, self.repeats = first, last, repeats

    def forward(self, input: Tensor) -> Tensor:
        """(B, in', H, W) → (B, out', H', W'); the shared input (B, in, H, W) for a first layer."""
        return super().forward(input.repeat(1, self.repeats, 1, 1) if self.repeats > 1 else input)

    def member(self, m: int) -> dict[str, Tensor]:
        """Views of member m's parameters, in the shapes of `plain()`."""
        out = self.out_channels // self.members
        rows = slice(m * out, (m + 1) * out)
        return {"weight": self.weight[rows]} | ({} if self.bias is None else {"bias": self.bias[rows]})

    def plain(self) -> nn.Conv2d:
        """One member's layer, uninitialised; its groups are γ · the layer's own."""
        dense = self.first and self.groups == 1
        layer: nn.Conv2d = skip_init(
            nn.Conv2d,
            self.in_channels if dense else self.in_channels // self.members,
            self.out_channels // self.members,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            1 if dense else self.groups // self.members,
            self.bias is not None,
            self.padding_mode,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        return layer

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, members={self.members}, gamma={self.gamma}, first={self.first}, last={self.last}"
