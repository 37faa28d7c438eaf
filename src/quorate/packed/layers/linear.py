"""Packed linear layers (Laurent et al., Packed-Ensembles, ICLR 2023, arXiv:2210.09184, §3).

M members lie side by side in one layer, kept apart by groups; α widens, γ cuts a member into subgroups:

    interior   in' = α · in    out' = α · out        groups = M · γ
    first      in' = in        out' = α · out        every member reads the whole shared input: a dense layer
    last       in' = α · in    out' = M · out        groups = M

Features are member-major: index = member · (features per member) + f, and inside a member by subgroup. Every group's weights and
biases start uniform within ± 1/√(the group's fan-in), as nn.Linear's do.

Shapes: the product of every layout is (G, R, in'/G) × (G, in'/G, out'/G) → (G, R, out'/G) with G = M · γ and R rows (all axes but the
last); of a first layer in'/G stands for in. In the rows layout of γ = 1 both sides are views; with γ > 1 subgroups are copied
apart and together again; in the channels layout the output is copied together. A shared input meets all members' weights in one
dense product, (R, in) × (in, out'), which "spread" copies into rows.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import skip_init

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing
from quorate.packed.layers.options import Backends, checked_gamma, checked_layout
from quorate.packed.layers.product import product
from quorate.packed.layers.widths import Alpha, exact, whole, widened


class PackedLinear(nn.Module, PackedLayer, Backends):
    """M linear layers in one batched product. Sizes are those of the single network.

    Args:
        in_features, out_features: widths of the single network's layer.
        members: M.
        alpha: widening α; α · width must divide by M · γ.
        gamma: γ subgroups inside a member; taken exactly, 1 for a first or last layer.
        bias: whether there is one, (out',).
        first: reads the shared input (in layout "rows" an input of each member's own). last: gives M · out_features. Both may hold.
        layout: how `forward` takes and gives the members unless told otherwise.

    Attributes:
        in_features, out_features: the packed widths in' and out'.
        weight: (M · γ, out'/(M · γ), in'/(M · γ)), of a first layer (M, out'/M, in). bias: (out',) or None.
        groups: blocks that do not see each other, M · γ; 1 for a first layer.

    Backends: "baddbmm" is one batched product, see product.py (of a shared input one dense product); "loop" one product per group.

    Raises:
        ValueError: a width that does not divide (it names the nearest that do), an unknown layout or one that this place cannot have.
    """

    BACKENDS: ClassVar[tuple[str, ...]] = ("baddbmm", "loop")

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
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.members = whole("members", members)
        self.gamma = checked_gamma(gamma, first, last)
        self.first, self.last = first, last
        self.layout = checked_layout(layout, first)
        self.backend = self.BACKENDS[0]
        blocks = members * gamma
        self.groups = 1 if first else blocks
        widen = exact(alpha)
        into, out = whole("in_features", in_features), whole("out_features", out_features)
        self.in_features = into if first else widened("in_features", into, widen, blocks)
        self.out_features = widened("out_features", out, Fraction(members) if last else widen, blocks)
        fan_in = self.in_features // self.groups
        self.weight = nn.Parameter(torch.empty(blocks, self.out_features // blocks, fan_in, device=device, dtype=dtype))
        values = torch.empty(self.out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if values is None else nn.Parameter(values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform within ± 1/√(a group's fan-in)."""
        bound = 1 / math.sqrt(self.weight.shape[2])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _check(self, x: Tensor, layout: Layout) -> None:
        rows = layout == "rows"
        width = self.in_features // self.members if rows and not self.first else self.in_features
        if x.dim() < 2 or x.shape[-1] != width or (rows and x.shape[0] % self.members):
            batch = f"{self.members} · B" if rows else "B"
            raise ValueError(
                f"PackedLinear: expected an input ({batch}, …, {width}) in layout {layout!r}, got {tuple(x.shape)}; "
                "make the layer before it give that, or pass the layout that it gives"
            )

    def _apart(self, x: Tensor, layout: Layout) -> Tensor:
        """(R, in'), or rows (M · R, width), → the blocks' inputs (G, R, in'/G)."""
        if layout == "rows":
            rows: Tensor = x.unflatten(0, (self.members, x.shape[0] // self.members))
            return rows if self.gamma == 1 else rows.unflatten(2, (self.gamma, -1)).transpose(1, 2).flatten(0, 1)
        groups: Tensor = x.expand(self.members, *x.shape) if self.first else x.unflatten(1, (self.groups, -1)).transpose(0, 1)
        return groups

    def _product(self, x: Tensor, axis: int) -> Tensor:
        """The blocks' inputs (G, R, in'/G) → their outputs (G, R, out'/G); a loop lays them side by side in memory along `axis`."""
        bias = None if self.bias is None else self.bias.unflatten(0, (self.weight.shape[0], -1))
        if self.backend == "loop":
            biases = [None] * len(self.weight) if bias is None else bias.unbind()
            each = [F.linear(*block) for block in zip(x.unbind(), self.weight.unbind(), biases, strict=True)]
            return torch.stack(each, axis).transpose(0, axis)
        return product(x, self.weight, bias)

    def _short(self, x: Tensor, layout: Layout) -> Tensor | None:
        """The commonest cases with few calls, in eager mode: rows (M · B, width), and one shared row. None for all others."""
        if x.dim() != 2 or self.gamma > 1 or self.backend != "baddbmm" or torch.compiler.is_compiling():
            return None
        (n, width), (members, out, into) = x.shape, self.weight.shape
        if width != into:
            return None
        if layout == "rows" and n % members == 0:
            bias = None if self.bias is None else self.bias.view(members, out)
            return product(x.reshape(members, n // members, width), self.weight, bias).reshape(n, out)
        if layout == "spread" and n == 1:
            return F.linear(x, self.weight.view(members * out, into), self.bias).view(members, out)
        return None

    def forward(self, input: Tensor, layout: Layout | None = None) -> Tensor:
        """The layer on the last axis of an input of two axes or more.

        channels: (B, …, in') → (B, …, out'); rows: (M · B, …, in'/M) → (M · B, …, out'/M), of a first layer (M · B, …, in);
        spread: the shared input (B, …, in) → rows; gather: channels → rows.
        Raises ValueError for another shape, or a layout that this layer cannot have.
        """
        layout = self.layout if layout is None else checked_layout(layout, self.first)
        if (short := self._short(input, layout)) is not None:
            return short
        self._check(input, layout)
        x, members, channels = input.flatten(0, -2), self.members, layout == "channels"
        if self.first and layout != "rows" and self.backend == "baddbmm":
            y = F.linear(x, self.weight.flatten(0, 1), self.bias)
            y = y if channels else torch.cat(y.chunk(members, 1))
        else:
            y = self._product(self._apart(x, layout), 1 if channels else 0)
            if channels:
                y = y.transpose(0, 1).flatten(1)
            elif self.gamma > 1:
                y = y.unflatten(0, (members, self.gamma)).transpose(1, 2).flatten(2)
        if channels:
            return y.reshape(*input.shape[:-1], self.out_features)
        batch = input.shape[0] if layout == "rows" else members * input.shape[0]
        y = y.flatten()  # by way of one axis: torch.export cannot prove the stride of members and a batch of any size merged
        return y.reshape(batch, *input.shape[1:-1], self.out_features // members)

    @classmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed layer for an nn.Linear, uninitialised; the subgroups of a PackedLinear of one member are kept and cut again.

        Raises ValueError for another module, and for widths that do not divide.
        """
        one = isinstance(module, cls) and module.members == 1
        if not one and type(module) not in (nn.Linear, NonDynamicallyQuantizableLinear):
            raise ValueError(f"PackedLinear: expected an nn.Linear, got {type(module).__name__}; convert it to one first")
        layer: Self = skip_init(
            cls,
            module.in_features,
            module.out_features,
            packing.members,
            packing.alpha,
            packing.gamma * (module.gamma if one else 1),
            module.bias is not None,
            packing.first,
            packing.last,
            device=module.weight.device,
            dtype=module.weight.dtype,
        )
        return layer

    def member(self, m: int) -> dict[str, Tensor]:
        """Views of member m's parameters, in the shapes of `plain()`."""
        weight = self.weight[m] if self.gamma == 1 else self.weight.unflatten(0, (self.members, self.gamma))[m]
        return {"weight": weight} | ({} if self.bias is None else {"bias": self.bias.unflatten(0, (self.members, -1))[m]})

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

    @classmethod
    def fan_in(cls, module: nn.Module, name: str) -> int:  # noqa: ARG003
        """Inputs that one output reads, of an nn.Linear or a PackedLinear."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.shape[-1]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, members={self.members}, gamma={self.gamma}, "
            f"bias={self.bias is not None}, first={self.first}, last={self.last}, layout={self.layout}, backend={self.backend}"
        )
