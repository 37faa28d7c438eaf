"""Packed transformer layers, built from packed attention, linear layers and norms (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

    post-norm   x = norm(x + attention(x)); x = norm(x + mlp(x))       Vaswani et al. 2017, arXiv:1706.03762, fig. 1
    pre-norm    x = x + attention(norm(x)); x = x + mlp(norm(x))       Xiong et al. 2020, arXiv:2002.04745, fig. 1 (`norm_first`)

A decoder layer attends to the memory between the two. Parts are named as in torch.nn, and every member is the torch.nn layer of its size.
All runs in rows, in which any activation, also one over the features, keeps the members apart. Nested tensors, which PyTorch's
encoder may use inside in evaluation and which zero what is padded, are not used.

Shapes: with `batch_first` channels (B, L, M · E′) and rows (M · B, L, E′), without it (L, B, M · E′) and (L, M · B, E′), E′ = α · E / M; a
decoder's memory in the same layout. Masks are shared by the members or each member's own, see masks.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing
from quorate.packed.layers.attention import PackedMultiheadAttention, arranged, inside, tokens
from quorate.packed.layers.layernorm import PackedLayerNorm, PackedRMSNorm
from quorate.packed.layers.linear import PackedLinear
from quorate.packed.layers.norms import home
from quorate.packed.layers.options import checked_layout
from quorate.packed.layers.widths import Alpha

Activation = str | Callable[[Tensor], Tensor]

NAMED: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
PARTS: dict[type[nn.Module], type[PackedLayer]] = {
    nn.MultiheadAttention: PackedMultiheadAttention,
    nn.Linear: PackedLinear,
    nn.LayerNorm: PackedLayerNorm,
    nn.RMSNorm: PackedRMSNorm,
}
NORMS: dict[type[nn.Module], type[PackedLayerNorm]] = {nn.LayerNorm: PackedLayerNorm, nn.RMSNorm: PackedRMSNorm}
SETTINGS = ("p", "inplace", "eps", "dropout", "add_zero_attn")  # of parts, each of which may have been changed alone


def checked_activation(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function of that name, or the callable itself. Raises ValueError for another name or a module that holds tensors."""
    if isinstance(activation, str):
        if activation not in NAMED:
            raise ValueError(f"activation: expected relu, gelu or a callable, got {activation!r}; pass the function itself")
        return NAMED[activation]
    if isinstance(activation, nn.Module) and activation.state_dict():
        kind = type(activation).__name__
        raise ValueError(f"activation: expected one without parameters, which members would share, got {kind}; use a function")
    return activation


def _own(activation: Any) -> Any:
    return copy.deepcopy(activation) if isinstance(activation, nn.Module) else activation


def _adopt_(target: nn.Module, source: nn.Module) -> None:
    """Give the parts of `target` the settings of those of the same name in `source`."""
    parts = dict(source.named_modules())
    for name, part in target.named_modules():
        for setting in SETTINGS:
            value = getattr(parts.get(name), setting, None)
            if isinstance(value, bool | int | float) and hasattr(part, setting):
                setattr(part, setting, value)


def _check_standard(module: nn.Module, reference: nn.Module) -> None:
    """Raises ValueError where the parts or parameters of a torch.nn layer are not those that it was built with."""

    def parts(layer: nn.Module) -> dict[str, object]:
        kinds: dict[str, object] = {n: type(part) for n, part in layer.named_modules() if n and not n.startswith("activation")}
        return kinds | {n: tuple(parameter.shape) for n, parameter in layer.named_parameters()}

    given, expected = parts(module), parts(reference)
    changed = [name for name in sorted(given | expected) if given.get(name) != expected.get(name)]
    if changed:
        kind = type(reference).__name__
        raise ValueError(
            f"{kind}: expected the parts that it is built with, got another {changed[0]}; write it as a module of your own, "
            "whose parts are packed one by one"
        )


class Composite(nn.Module, PackedLayer):
    """Members' views and scales of a layer made of packed layers."""

    batch_first: bool
    width: int  # E′ of a member

    def _enter(self, name: str, x: Tensor, layout: Layout) -> Tensor:
        """Tokens in any layout → rows (M · B, L, E′)."""
        x = tokens(name, x, self.members, self.width, layout, self.batch_first)
        return x if layout == "rows" else torch.cat(x.chunk(self.members, 2))

    def _chosen(self, layout: Layout | None) -> Layout:
        return self.layout if layout is None else checked_layout(layout, False)

    def member(self, m: int) -> dict[str, Tensor]:
        """Views of member m's parameters, in the shapes of `plain()`."""
        parts: dict[str, PackedLayer] = {}
        for name, part in self.named_modules():
            inner = any(name.startswith(f"{outer}.") for outer in parts)
            if name and isinstance(part, PackedLayer) and not isinstance(part, Composite) and not inner:
                parts[name] = part
        return {f"{name}.{key}": view for name, part in parts.items() for key, view in part.member(m).items()}

    @classmethod
    def fan_in(cls, module: nn.Module, name: str) -> int:
        """That of the part which holds the parameter."""
        for prefix, part in module.named_modules():
            if type(part) in PARTS and name.startswith(f"{prefix}."):
                return PARTS[type(part)].fan_in(part, name.removeprefix(f"{prefix}."))
        return super().fan_in(module, name)

    def extra_repr(self) -> str:
        return f"members={self.members}, batch_first={self.batch_first}, layout={self.layout!r}"


class TransformerLayer(Composite):
    """What encoder and decoder layers share: their parts, of which every attention brings a norm and a dropout."""

    PLAIN: ClassVar[Any]
    ATTENTIONS: ClassVar[tuple[str, ...]]
    self_attn: PackedMultiheadAttention
    norm1: PackedLayerNorm
    norm2: PackedLayerNorm
    dropout1: nn.Dropout
    dropout2: nn.Dropout

    def __init__(
        self,
        d_model: int,
        nhead: int,
        members: int,
        alpha: Alpha = 2,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        new: dict[str, Any] = {"bias": bias, "layout": "rows", "device": device, "dtype": dtype}
        for name in self.ATTENTIONS:
            setattr(self, name, PackedMultiheadAttention(d_model, nhead, members, alpha, dropout, batch_first=True, **new))
        self.linear1 = PackedLinear(d_model, dim_feedforward, members, alpha, **new)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = PackedLinear(dim_feedforward, d_model, members, alpha, **new)
        for i in range(1, len(self.ATTENTIONS) + 2):
            setattr(self, f"norm{i}", PackedLayerNorm(d_model, members, alpha, layer_norm_eps, **new))
            setattr(self, f"dropout{i}", nn.Dropout(dropout))
        self.activation = checked_activation(activation)
        self.members = self.groups = members
        self.width, self.hidden = self.self_attn.embed_dim, self.linear1.out_features // members
        self.batch_first, self.norm_first, self.layout = batch_first, norm_first, checked_layout(layout, False)

    def _residual(self, x: Tensor, norm: PackedLayerNorm, branch: Callable[[Tensor], Tensor]) -> Tensor:
        y: Tensor = x + branch(norm(x)) if self.norm_first else norm(x + branch(x))
        return y

    def _mlp(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return y

    @classmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed layer of the torch.nn one, uninitialised but for its norms.

        Raises ValueError for heads or widths that do not divide, parts that were replaced, and a layer at an end of its network.
        """
        inside(cls.__name__, packing)
        _check_standard(module, cls.PLAIN(*_options(module), device="meta"))
        d_model, nhead, *options = _options(module)
        layer: Self = skip_init(cls, d_model, nhead, packing.members, packing.alpha, *options, **home(module))
        _adopt_(layer, module)
        for part in layer.modules():
            if isinstance(part, PackedLayerNorm):
                part.reset_parameters()
        return layer

    def plain(self) -> nn.Module:
        """One member's layer, uninitialised."""
        options = (self.dropout.p, _own(self.activation), self.norm1.eps, self.batch_first, self.norm_first)
        sizes, bias = (self.width, self.self_attn.num_heads, self.hidden), self.linear1.bias is not None
        layer: nn.Module = skip_init(self.PLAIN, *sizes, *options, bias, **home(self))
        _adopt_(layer, self)
        return layer


def _options(module: Any) -> tuple[Any, ...]:
    """The arguments that a torch.nn layer was built with."""
    sizes = (module.self_attn.embed_dim, module.self_attn.num_heads, module.linear1.out_features)
    options = (module.dropout.p, _own(module.activation), module.norm1.eps, module.self_attn.batch_first, module.norm_first)
    return *sizes, *options, module.linear1.bias is not None


class PackedTransformerEncoderLayer(TransformerLayer):
    """M members' nn.TransformerEncoderLayer; sizes are those of the single network.

    Args:
        d_model, nhead, dim_feedforward: sizes of the single network; α · nhead and α times the widths must divide by M.
        members: M. alpha: widening α.
        dropout, activation, layer_norm_eps, batch_first, norm_first, bias: as in nn.TransformerEncoderLayer.
        layout: how `forward` takes and gives the members unless told otherwise; never "spread", as it cannot be a first layer.

    Raises:
        ValueError: heads or widths that do not divide (it names those that do), an activation that has parameters or an unknown name,
            an unknown layout or "spread".
    """

    PLAIN = nn.TransformerEncoderLayer
    ATTENTIONS = ("self_attn",)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        layout: Layout | None = None,
    ) -> Tensor:
        """channels → channels, rows → rows, gather: channels → rows; masks as in PackedMultiheadAttention.

        Raises ValueError for another shape, is_causal without src_mask, or layout "spread".
        """
        layout, masks = self._chosen(layout), (src_key_padding_mask, False, src_mask, True, is_causal)
        x = self._enter("src", src, layout)
        x = self._residual(x, self.norm1, lambda z: self.dropout1(self.self_attn(z, z, z, *masks)[0]))
        x = self._residual(x, self.norm2, lambda z: self.dropout2(self._mlp(z)))
        return arranged(x, self.members, layout, self.batch_first)


class PackedTransformerDecoderLayer(TransformerLayer):
    """M members' nn.TransformerDecoderLayer; arguments as in PackedTransformerEncoderLayer."""

    PLAIN = nn.TransformerDecoderLayer
    ATTENTIONS = ("self_attn", "multihead_attn")
    multihead_attn: PackedMultiheadAttention
    norm3: PackedLayerNorm
    dropout3: nn.Dropout

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        layout: Layout | None = None,
    ) -> Tensor:
        """channels → channels, rows → rows, gather: channels → rows, `memory` like `tgt`; masks as in PackedMultiheadAttention.

        Raises ValueError for another shape, is_causal without its mask, or layout "spread".
        """
        layout = self._chosen(layout)
        x, memory = self._enter("tgt", tgt, layout), self._enter("memory", memory, layout)
        own = (tgt_key_padding_mask, False, tgt_mask, True, tgt_is_causal)
        cross = (memory_key_padding_mask, False, memory_mask, True, memory_is_causal)
        x = self._residual(x, self.norm1, lambda z: self.dropout1(self.self_attn(z, z, z, *own)[0]))
        x = self._residual(x, self.norm2, lambda z: self.dropout2(self.multihead_attn(z, memory, memory, *cross)[0]))
        x = self._residual(x, self.norm3, lambda z: self.dropout3(self._mlp(z)))
        return arranged(x, self.members, layout, self.batch_first)
