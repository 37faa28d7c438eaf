"""Packed multi-head attention: the heads are divided among the members (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

    attention(q, k, v) = softmax(q · kᵀ / √d + mask) · v        Vaswani et al. 2017, arXiv:1706.03762, eq. 1

Of α · H packed heads member m has the H′ = α · H / M from m · H′ on, each of the single network's size d, so that E′ = α · E / M = H′ · d.
Every member is an nn.MultiheadAttention of E′ features and H′ heads over its own tokens; no product ever holds two members.

Shapes: with `batch_first` channels (B, L, M · E′) and rows (M · B, L, E′), without it (L, B, M · E′) and (L, M · B, E′). Inside, all is
(M, B · L, features) for the projections and (M · B, H′, L, d) for the attention. Masks: see masks.py.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing, rows_to_last
from quorate.packed.layers.linear import PackedLinear
from quorate.packed.layers.masks import Masks
from quorate.packed.layers.norms import home, member_width
from quorate.packed.layers.options import checked_layout
from quorate.packed.layers.product import product
from quorate.packed.layers.widths import Alpha, exact, whole


def member_heads(embed_dim: int, num_heads: int, members: int, alpha: Alpha) -> int:
    """Heads of one member, α · H / M. Raises ValueError with the legal members and heads unless that is whole."""
    factor = exact(alpha)
    heads, members = whole("num_heads", num_heads), whole("members", members)
    if whole("embed_dim", embed_dim) % heads:
        legal = ", ".join(str(h) for h in range(1, embed_dim + 1) if embed_dim % h == 0)
        raise ValueError(f"num_heads: expected a divisor of embed_dim {embed_dim}, got {heads}; legal are {legal}")
    each = factor * heads / members
    if each.denominator == 1:
        return each.numerator

    def fits(h: int, m: int) -> bool:
        return Fraction(factor * h / m).denominator == 1

    fewer = ", ".join(str(m) for m in range(1, int(factor * heads) + 1) if fits(heads, m))
    others = ", ".join(str(h) for h in range(1, embed_dim + 1) if embed_dim % h == 0 and fits(h, members))
    choices = [f"members of {fewer}"] * bool(fewer) + [f"num_heads of {others}"] * bool(others) + [f"alpha of {members}"]
    raise ValueError(
        f"num_heads: expected heads that times {factor} divide among {members} members, got {heads}; legal are {', '.join(choices)}"
    )


def inside(name: str, packing: Packing) -> None:
    """Raises ValueError for a first or last layer: attention keeps its width, and a member's is not that of the network's ends."""
    if packing.first or packing.last:
        place, side = ("first", "before") if packing.first else ("last", "behind")
        raise ValueError(f"{name}: expected a layer inside the network, got its {place} one; put a Linear {side} it")


def tokens(name: str, x: Tensor, members: int, width: int, layout: Layout, batch_first: bool) -> Tensor:
    """Tokens in any layout, batch first, as a view. Raises ValueError, which names them `name`, for another shape."""
    rows, batch = layout == "rows", 0 if batch_first else 1
    packed = width if rows else members * width
    if x.dim() != 3 or x.shape[2] != packed or (rows and x.shape[batch] % members):
        size = f"{members} · B" if rows else "B"
        shape = f"({size}, L, {packed})" if batch_first else f"(L, {size}, {packed})"
        raise ValueError(
            f"{name}: expected {shape} in layout {layout!r}, got {tuple(x.shape)}; add a batch axis to an unbatched input, "
            "or pass the layout that the layer before it gives"
        )
    return x if batch_first else x.transpose(0, 1)


def arranged(y: Tensor, members: int, layout: Layout, batch_first: bool) -> Tensor:
    """Rows (M · B, L, width) → tokens as `layout` gives them."""
    y = rows_to_last(y, members) if layout == "channels" else y
    return y if batch_first else y.transpose(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """Attention with its weights after dropout: (R, H, L, d), (R, H, S, d), twice → (R, H, L, d) and (R, H, L, S)."""
    scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(-2, -1)
    weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
    return weights.to(v.dtype) @ v, weights


class PackedMultiheadAttention(nn.Module, PackedLayer):
    """M members' nn.MultiheadAttention; sizes are those of the single network.

    Args:
        embed_dim: E. num_heads: H; α · H must divide by M. members: M. alpha: widening α.
        dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first: as in nn.MultiheadAttention; kdim and vdim are widened by α too.
        layout: how `forward` takes and gives the members unless told otherwise; never "spread", as it cannot be a first layer.

    Attributes:
        embed_dim, num_heads, kdim, vdim: those of a member. source_heads: H.
        in_proj_weight: (M, 3 · E′, E′); None where kdim or vdim differs from embed_dim.
        q_proj_weight, k_proj_weight, v_proj_weight: then (M, E′, E′), (M, E′, kdim), (M, E′, vdim); else None.
        in_proj_bias: (M, 3 · E′) or None. bias_k, bias_v: (M, 1, 1, E′) or None. out_proj: a PackedLinear.

    Raises:
        ValueError: heads or widths that do not divide (it names those that do), an unknown layout or "spread".
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        members: int,
        alpha: Alpha = 2,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = member_heads(embed_dim, num_heads, members, alpha)
        self.source_heads, self.members, self.groups = num_heads, members, members
        self.layout = checked_layout(layout, False)
        self.embed_dim = width = self.num_heads * (embed_dim // num_heads)
        self.kdim = width if kdim is None else member_width("kdim", kdim, members, alpha, False)
        self.vdim = width if vdim is None else member_width("vdim", vdim, members, alpha, False)
        self.dropout, self.add_zero_attn, self.batch_first = dropout, add_zero_attn, batch_first
        self.masks = Masks(members, num_heads, self.num_heads)

        def parameter(*shape: int, wanted: bool = True) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(members, *shape, device=device, dtype=dtype)) if wanted else None

        same = self.kdim == self.vdim == width
        self.in_proj_weight = parameter(3 * width, width, wanted=same)
        self.q_proj_weight = parameter(width, width, wanted=not same)
        self.k_proj_weight = parameter(width, self.kdim, wanted=not same)
        self.v_proj_weight = parameter(width, self.vdim, wanted=not same)
        self.in_proj_bias = parameter(3 * width, wanted=bias)
        self.bias_k, self.bias_v = (parameter(1, 1, width, wanted=add_bias_kv) for _ in range(2))
        self.out_proj = PackedLinear(embed_dim, embed_dim, members, alpha, bias=bias, layout="rows", device=device, dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw each member's parameters anew as nn.MultiheadAttention of its size does."""
        self.out_proj.reset_parameters()
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            for own in () if weight is None else weight:
                nn.init.xavier_uniform_(own)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        for extra in (self.bias_k, self.bias_v):
            for own in () if extra is None else extra:
                nn.init.xavier_normal_(own)

    def _members(self, name: str, x: Tensor, width: int, layout: Layout) -> Tensor:
        """An input in any layout as (M, B, L, width), a view."""
        x = tokens(name, x, self.members, width, layout, self.batch_first)
        if layout == "rows":
            return x.unflatten(0, (self.members, x.shape[0] // self.members))  # type: ignore[no-any-return]
        return x.unflatten(2, (self.members, width)).movedim(2, 0)  # type: ignore[no-any-return]

    def _heads(self, x: Tensor, first: int, count: int, weight: Tensor) -> list[Tensor]:
        """`count` projections of (M, B, L, in) to (M · B, H′, L, d) each, with the biases from the `first` of three on."""
        members, batch, length, width = *x.shape[:3], self.embed_dim
        bias = None if self.in_proj_bias is None else self.in_proj_bias[:, first * width : (first + count) * width]
        y = product(x.reshape(members, batch * length, x.shape[3]), weight, bias)
        y = y.view(members * batch, length, count, self.num_heads, width // self.num_heads)
        return [part.transpose(1, 2) for part in y.unbind(2)]

    def _project(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> list[Tensor]:
        """The heads of q, k and v, in as few products as the inputs allow: one where all are the same tensor."""
        q = self._members("query", query, self.embed_dim, layout)
        k = q if key is query and self.kdim == self.embed_dim else self._members("key", key, self.kdim, layout)
        v = k if value is key and self.vdim == self.kdim else self._members("value", value, self.vdim, layout)
        if k.shape[:3] != v.shape[:3] or k.shape[1] != q.shape[1]:
            raise ValueError(
                f"key and value: expected one length and the batch of query, got {tuple(key.shape)} and {tuple(value.shape)} "
                f"for query {tuple(query.shape)}; pass them for the same inputs"
            )
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            return [self._heads(x, i, 1, w)[0] for i, (x, w) in enumerate(zip((q, k, v), weights, strict=True)) if w is not None]
        width, weight = self.embed_dim, self.in_proj_weight
        if v is q:
            return self._heads(q, 0, 3, weight)
        heads = self._heads(q, 0, 1, weight[:, :width])
        if v is k:
            return heads + self._heads(k, 1, 2, weight[:, width:])
        return heads + self._heads(k, 1, 1, weight[:, width : 2 * width]) + self._heads(v, 2, 1, weight[:, 2 * width :])

    def _extended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values (M · B, H′, S, d) with the learnt one and the zero one behind them."""
        rows, heads, _, depth = x.shape
        parts = [x]
        if bias is not None:
            own = bias.view(self.members, 1, heads, 1, depth).expand(-1, rows // self.members, -1, -1, -1)
            parts.append(own.flatten(0, 1).to(x.dtype))
        if self.add_zero_attn:
            parts.append(x.new_zeros(rows, heads, 1, depth))
        return torch.cat(parts, 2) if len(parts) > 1 else x

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        layout: Layout | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of each member's queries to its own keys; arguments as in nn.MultiheadAttention, all inputs in the layout.

        key_padding_mask: (B, S) shared, or (M · B, S) each member's own. attn_mask: (L, S), shared (B · H, L, S) in the heads of the
        single network, or own (M · B · H′, L, S); see masks.py. is_causal: says that attn_mask is causal, as in nn.MultiheadAttention.

        Returns the output, channels → channels, rows → rows, gather: channels → rows; and with `need_weights` the weights after dropout,
        whatever `batch_first`: channels (B, M, L, S), not averaged (B, M, H′, L, S); rows and gather (M · B, L, S) and (M · B, H′, L, S).
        Raises ValueError for another shape, an integer mask, is_causal without attn_mask, or layout "spread".
        """
        layout = self.layout if layout is None else checked_layout(layout, False)
        if is_causal and attn_mask is None:
            raise ValueError(
                "is_causal: expected an attn_mask, of which it says that it is causal, got None; pass the causal mask"
            )
        q, k, v = self._project(query, key, value, layout)
        batch, queries, keys = q.shape[0] // self.members, q.shape[2], k.shape[2]
        causal = (
            is_causal and key_padding_mask is None and not need_weights
        )  # as nn.MultiheadAttention: then the hint is the mask
        more = int(self.bias_k is not None) + int(self.add_zero_attn)
        attention = None if causal else attn_mask
        mask = self.masks.merged(attention, key_padding_mask, batch, queries, keys, more, q.dtype)
        k, v = self._extended(k, self.bias_k), self._extended(v, self.bias_v)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            mixed, weights = attend(q, k, v, mask, dropout)
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights.unflatten(0, (self.members, batch)).transpose(0, 1) if layout == "channels" else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        y = self.out_proj(mixed.transpose(1, 2).flatten(2), layout="rows")
        return arranged(y, self.members, layout, self.batch_first), weights

    @classmethod
    def like(cls, module: Any, packing: Packing) -> Self:
        """The packed layer of nn.MultiheadAttention, uninitialised. Raises ValueError, also for one at an end of its network."""
        inside(cls.__name__, packing)
        layer: Self = skip_init(
            cls,
            module.embed_dim,
            module.num_heads,
            packing.members,
            packing.alpha,
            module.dropout,
            module.in_proj_bias is not None,
            module.bias_k is not None,
            module.add_zero_attn,
            module.kdim,
            module.vdim,
            module.batch_first,
            **home(module),
        )
        return layer

    def plain(self) -> nn.Module:
        """One member's layer, uninitialised."""
        options = (self.dropout, self.in_proj_bias is not None, self.bias_k is not None, self.add_zero_attn, self.kdim, self.vdim)
        layer: nn.Module = skip_init(
            nn.MultiheadAttention, self.embed_dim, self.num_heads, *options, self.batch_first, **home(self)
        )
        return layer

    def member(self, m: int) -> dict[str, Tensor]:
        """Views of member m's parameters, in the shapes of `plain()`."""
        own = {name: parameter[m] for name, parameter in self.named_parameters(recurse=False)}
        return own | {f"out_proj.{name}": view for name, view in self.out_proj.member(m).items()}

    @classmethod
    def fan_in(cls, module: nn.Module, name: str) -> int:
        """Features that one output reads: kdim or vdim for their projections, embed_dim for all others."""
        assert isinstance(module, nn.MultiheadAttention)
        width: int = {"k_proj_weight": module.kdim, "v_proj_weight": module.vdim}.get(name, module.embed_dim)
        return width

    def extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, members={self.members}, dropout={self.dropout}, "
            f"kdim={self.kdim}, vdim={self.vdim}, batch_first={self.batch_first}, layout={self.layout!r}"
        )
