"""Packed stacks of transformer layers with a final norm (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

    x = norm(layer_n(… layer_1(x)))        Vaswani et al. 2017, arXiv:1706.03762, fig. 1; the norm is needed where layers are pre-norm

The members are brought into rows once and stay there through all layers.

Shapes: as of one layer, see transformer.py.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from quorate.packed.layers.arrangement import Layout, Packing
from quorate.packed.layers.attention import arranged, inside
from quorate.packed.layers.layernorm import PackedLayerNorm
from quorate.packed.layers.options import checked_layout
from quorate.packed.layers.transformer import (
    NORMS,
    Composite,
    PackedTransformerDecoderLayer,
    PackedTransformerEncoderLayer,
    TransformerLayer,
)
from quorate.packed.layers.widths import whole


class _Stack(Composite):
    """Copies of one layer, and a norm or none."""

    LAYER: ClassVar[type[TransformerLayer]]

    def __init__(
        self, layer: TransformerLayer, num_layers: int, norm: PackedLayerNorm | None = None, layout: Layout | None = None
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        if not isinstance(layer, self.LAYER):
            raise ValueError(f"{kind}: expected a {self.LAYER.__name__}, got {type(layer).__name__}; build that one first")
        self.members = self.groups = layer.members
        self.width, self.batch_first = layer.width, layer.batch_first
        if norm is not None and (norm.members, norm.normalized_shape) != (self.members, (self.width,)):
            raise ValueError(
                f"{kind}: expected a norm of {self.members} members over ({self.width},), got {norm.members} over "
                f"{norm.normalized_shape}; give it the layer's d_model, members and alpha"
            )
        self.num_layers = whole("num_layers", num_layers)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.norm = norm
        self.layout = layer.layout if layout is None else checked_layout(layout, False)

    def _run(self, name: str, x: Tensor, layout: Layout, *context: Any) -> Tensor:
        x = self._enter(name, x, layout)
        for layer in self.layers:
            x = layer(x if self.batch_first else x.transpose(0, 1), *context, layout="rows")
            x = x if self.batch_first else x.transpose(0, 1)
        x = x if self.norm is None else self.norm(x, layout="rows")
        return arranged(x, self.members, layout, self.batch_first)

    @classmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed stack of the torch.nn one, layer by layer, uninitialised but for its norms.

        Raises ValueError as a layer does, and for a final norm other than LayerNorm and RMSNorm.
        """
        inside(cls.__name__, packing)
        if module.norm is not None and type(module.norm) not in NORMS:
            kind = type(module.norm).__name__
            raise ValueError(f"{cls.__name__}: expected a LayerNorm, RMSNorm or no norm, got {kind}; put it behind the stack")
        layers = [cls.LAYER.like(layer, packing) for layer in module.layers]
        norm = None if module.norm is None else NORMS[type(module.norm)].like(module.norm, packing)
        stack = cls(layers[0], 1, norm, "channels")
        stack.layers, stack.num_layers = nn.ModuleList(layers), len(layers)
        return stack

    def _plain(self) -> tuple[list[nn.Module], nn.Module | None]:
        layers = [layer.plain() for layer in self.layers if isinstance(layer, TransformerLayer)]
        return layers, None if self.norm is None else self.norm.plain()


class PackedTransformerEncoder(_Stack):
    """M members' nn.TransformerEncoder.

    Args:
        layer: a PackedTransformerEncoderLayer, copied with its values as nn.TransformerEncoder does.
        num_layers: how many copies. norm: a PackedLayerNorm or PackedRMSNorm of the same width and members, or None.
        layout: how `forward` takes and gives the members unless told otherwise; None is the layer's.

    Raises:
        ValueError: another kind of layer, a norm of another width, a number of layers under 1, an unknown layout or "spread".
    """

    LAYER = PackedTransformerEncoderLayer

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        """channels → channels, rows → rows, gather: channels → rows; masks as in PackedMultiheadAttention.

        is_causal None is False, which gives the same values: masks are not searched for a causal one.
        Raises ValueError for another shape, is_causal without mask, or layout "spread".
        """
        return self._run("src", src, self._chosen(layout), mask, src_key_padding_mask, bool(is_causal))

    def plain(self) -> nn.Module:
        """One member's stack, uninitialised, without nested tensors."""
        layers, norm = self._plain()
        stack = nn.TransformerEncoder(layers[0], 1, norm, enable_nested_tensor=False)  # type: ignore[arg-type]
        stack.layers, stack.num_layers = nn.ModuleList(layers), len(layers)
        return stack


class PackedTransformerDecoder(_Stack):
    """M members' nn.TransformerDecoder; arguments as in PackedTransformerEncoder, of a PackedTransformerDecoderLayer."""

    LAYER = PackedTransformerDecoderLayer

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
        layout: Layout | None = None,
    ) -> Tensor:
        """channels → channels, rows → rows, gather: channels → rows, `memory` like `tgt`; masks as in PackedMultiheadAttention.

        tgt_is_causal None is False, which gives the same values: masks are not searched for a causal one.
        Raises ValueError for another shape, is_causal without its mask, or layout "spread".
        """
        layout = self._chosen(layout)
        rows = self._enter("memory", memory, layout)
        rows = rows if self.batch_first else rows.transpose(0, 1)
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask, bool(tgt_is_causal), memory_is_causal)
        return self._run("tgt", tgt, layout, rows, *masks)

    def plain(self) -> nn.Module:
        """One member's stack, uninitialised."""
        layers, norm = self._plain()
        stack = nn.TransformerDecoder(layers[0], 1, norm)  # type: ignore[arg-type]
        stack.layers, stack.num_layers = nn.ModuleList(layers), len(layers)
        return stack
