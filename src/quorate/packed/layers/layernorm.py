"""Packed LayerNorm and RMSNorm: one norm per member (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

    LayerNorm   y = (x - mean) / √(variance + eps) · weight + bias     Ba et al. 2016, arXiv:1607.06450, eq. 3–4
    RMSNorm     y = x / √(mean of x² + eps) · weight                   Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4

The mean runs over one member's share of the channels, never over all M · C′ of them, and weight and bias are each member's own: one
fused call per member, which reads and writes less than one call for all without weights and a second step that applies them.

Shapes: tokens, normalized_shape (C,): channels (B, …, M · C′), rows (M · B, …, C′). Images, normalized_shape (C, H, W): channels
(B, …, M · C′, H, W), rows (M · B, …, C′, H, W). C′ = α · C / M, but C of a norm before a first layer or behind a last one. Weight and
bias (M, C′) or (M, C′, H, W). Of two axes either could be the channels' ((C, L) of a signal, (N, C) of tokens): refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing
from quorate.packed.layers.norms import home, member_width
from quorate.packed.layers.options import checked_layout
from quorate.packed.layers.widths import Alpha, whole


def _member_shape(normalized_shape: int | Sequence[int], members: int, alpha: Alpha, end: bool) -> tuple[int, ...]:
    """(C, …) of the single network → (C′, …) of a member. Raises ValueError."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if len(shape) not in (1, 3):
        raise ValueError(
            f"normalized_shape: expected (C,) of tokens or (C, H, W) of images, got {shape}, in which the channels could be any axis; "
            "normalise over C alone, or over all of a row with PackedGroupNorm of one group"
        )
    return member_width("normalized_shape", shape[0], members, alpha, end), *(whole("normalized_shape", n) for n in shape[1:])


class PackedLayerNorm(nn.Module, PackedLayer):
    """M members' nn.LayerNorm; the shape is that of the single network.

    Args:
        normalized_shape: C or (C,), the last axis; or (C, H, W), the last three. members: M. alpha: widening α; α · C must divide by M.
        eps, elementwise_affine, bias: as in nn.LayerNorm.
        first: normalises the shared input, C channels for each member. last: stands behind a last layer, whose M · C outputs it takes.
        layout: how `forward` takes and gives the members unless told otherwise ("spread" of a first norm only).

    Attributes:
        normalized_shape: that of a member, (C′,) or (C′, H, W). weight, bias: (M, *normalized_shape) or None.

    Raises:
        ValueError: a width that does not divide (it names the nearest that do), a shape of two or more than three axes, or a layout that
            this place cannot have.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        members: int,
        alpha: Alpha = 2,
        eps: float | None = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        first: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _member_shape(normalized_shape, members, alpha, first or last)
        self.members = self.groups = members
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self.first, self.last, self.layout = first, last, checked_layout(layout, first)
        shape = (members, *self.normalized_shape)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if elementwise_affine else None
        self.bias = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if elementwise_affine and bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights one, biases zero."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _normed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        assert self.eps is not None
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    def _checked(self, x: Tensor, layout: Layout | None) -> Layout:
        layout = self.layout if layout is None else checked_layout(layout, self.first)
        rows, (width, *plane) = layout == "rows", self.normalized_shape
        shape = (width if rows or self.first else self.members * width, *plane)
        if x.dim() <= len(shape) or x.shape[-len(shape) :] != shape or (rows and x.shape[0] % self.members):
            batch = f"{self.members} · B" if rows else "B"
            raise ValueError(
                f"{type(self).__name__}: expected an input ({batch}, …, {', '.join(map(str, shape))}) in layout {layout!r}, got "
                f"{tuple(x.shape)}; make the layer before it give that, or pass the layout that it gives"
            )
        return layout

    def forward(self, input: Tensor, layout: Layout | None = None) -> Tensor:
        """channels (B, …, M · C′) → the same; rows (M · B, …, C′) → the same; gather: channels → rows; images likewise, see above.

        Of a first norm, channels and spread take the shared input (B, …, C).
        Raises ValueError for another shape, or a layout that this norm cannot have.
        """
        layout, members = self._checked(input, layout), self.members
        channel = input.dim() - len(self.normalized_shape)
        apart = 0 if layout == "rows" or self.first else channel  # the members' axis
        if layout == "rows":
            x = input.unflatten(0, (members, input.shape[0] // members))
        else:
            x = (
                input.expand(members, *input.shape)
                if self.first
                else input.unflatten(channel, (members, self.normalized_shape[0]))
            )
        weights, biases = ([None] * members if p is None else p.unbind() for p in (self.weight, self.bias))
        each = [self._normed(*parts) for parts in zip(x.unbind(apart), weights, biases, strict=True)]
        return torch.cat(each, channel if layout == "channels" else 0)

    @classmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed norm of nn.LayerNorm, parameters one and zero. Raises ValueError."""
        return cls(
            module.normalized_shape,
            packing.members,
            packing.alpha,
            module.eps,
            module.elementwise_affine,
            getattr(module, "bias", None) is not None or not module.elementwise_affine,
            packing.first,
            packing.last,
            **home(module),
        )

    def plain(self) -> nn.Module:
        """One member's norm, fresh."""
        bias = self.bias is not None
        assert self.eps is not None
        return nn.LayerNorm(self.normalized_shape, self.eps, self.elementwise_affine, bias, **home(self))

    def member(self, m: int) -> dict[str, Tensor]:
        """Views of member m's parameters, in the shapes of `plain()`."""
        return {name: parameter[m] for name, parameter in self.named_parameters()}

    @classmethod
    def fan_in(cls, module: nn.Module, name: str) -> int:  # noqa: ARG003
        """1: an output reads one normalised input."""
        return 1

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, members={self.members}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}, first={self.first}, last={self.last}, layout={self.layout!r}"
        )


class PackedRMSNorm(PackedLayerNorm):
    """M members' nn.RMSNorm; arguments as in PackedLayerNorm, without bias; `eps` None is the machine's for the input's dtype."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        members: int,
        alpha: Alpha = 2,
        eps: float | None = None,
        elementwise_affine: bool = True,
        first: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, members, alpha, eps, elementwise_affine, False, first, last, layout, device, dtype)

    def _normed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:  # noqa: ARG002
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)

    @classmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed norm of nn.RMSNorm, weights one. Raises ValueError."""
        members, alpha, ends = packing.members, packing.alpha, (packing.first, packing.last)
        return cls(module.normalized_shape, members, alpha, module.eps, module.elementwise_affine, *ends, **home(module))

    def plain(self) -> nn.Module:
        """One member's norm, fresh."""
        return nn.RMSNorm(self.normalized_shape, self.eps, self.elementwise_affine, **home(self))
