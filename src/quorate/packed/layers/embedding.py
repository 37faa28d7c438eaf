"""Packed embeddings: M tables of vectors, each member with its own (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

An index reads a vector of α · E numbers that the members share, E' = α · E / M each. The M tables (M, V, E') are read as one of M · V
rows: member m's vector of index i is row m · V + i, so that a shared index is one lookup for all members.

    PackedEmbedding       "channels"  shared (B, …) → (B, …, M · E')    "spread"  shared (B, …) → (M · B, …, E')
                          "rows"  each member's own indices (M · B, …) → (M · B, …, E')
    PackedEmbeddingBag    "channels"  shared (B, L) → (B, M · E')       "spread"  → (M · B, E')       "rows"  (M · B, L) → (M · B, E')

Vectors start from N(0, 1), that of `padding_idx` from 0, as in PyTorch.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing, rows_to_last
from quorate.packed.layers.widths import Alpha, exact, whole, widened

BagMode = Literal["sum", "mean", "max"]


class _Joined(torch.autograd.Function):
    """(M, V, E) → (M · V, E), through which a sparse gradient comes back as one of (M, V, E) with two sparse dimensions."""

    @staticmethod
    def forward(ctx: Any, tables: Tensor) -> Tensor:
        ctx.size = tables.shape
        return tables.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.coalesce()
        row, values = grad.indices()[0], grad.values()
        places = torch.stack((row // ctx.size[1], row % ctx.size[1]))
        return torch.sparse_coo_tensor(places, values, ctx.size, is_coalesced=True, check_invariants=False)


class _PackedTable(nn.Module, PackedLayer):
    """M tables of vectors and what both layers need of them."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        members: int,
        alpha: Alpha,
        padding_idx: int | None,
        max_norm: float | None,
        norm_type: float,
        scale_grad_by_freq: bool,
        sparse: bool,
        last: bool,
        layout: Layout,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.members = self.groups = whole("members", members)
        self.num_embeddings = whole("num_embeddings", num_embeddings)
        factor = Fraction(members) if last else exact(alpha)
        self.embedding_dim = widened("embedding_dim", whole("embedding_dim", embedding_dim), factor, members)
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"padding_idx: expected an index from {-num_embeddings} to {num_embeddings - 1}, got {padding_idx}; "
                "name the row of the padding, or None"
            )
        if sparse and scale_grad_by_freq:
            raise ValueError(
                "scale_grad_by_freq: expected False with sparse gradients, which PyTorch does not scale, got True; leave one of both"
            )
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse, self.last, self.layout = scale_grad_by_freq, sparse, last, layout
        self._used(None)
        table = torch.empty(members, num_embeddings, self.embedding_dim // members, device=device, dtype=dtype)
        self.weight = nn.Parameter(table)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all vectors anew from N(0, 1); those of the padding are 0."""
        nn.init.normal_(self.weight)
        self.zero_padding_()

    @torch.no_grad()
    def zero_padding_(self) -> None:
        """Set each member's padding vector to 0, if there is a padding."""
        if self.padding_idx is not None:
            self.weight[:, self.padding_idx].zero_()

    @classmethod
    def fan_in(cls, module: nn.Module, name: str) -> int:  # noqa: ARG003
        """1: a vector's scale does not depend on its length or on the size of the table."""
        return 1

    def member(self, m: int) -> dict[str, Tensor]:
        """A view of member m's table."""
        return {"weight": self.weight[m]}

    def _options(self) -> dict[str, Any]:
        """What the plain layer has in common with this one."""
        names = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        return {name: getattr(self, name) for name in names}

    def _used(self, layout: Layout | None) -> Layout:
        used = self.layout if layout is None else layout
        if used not in ("channels", "rows", "spread"):
            raise ValueError(
                f'layout: expected "channels", "rows" or "spread" of a layer that reads indices, got {used!r}; choose one of them'
            )
        return used

    def _places(self, input: Tensor, layout: Layout, last: bool) -> Tensor:
        """Rows of the joined table: (M, B, …), or (B, …, M) if `last`."""
        size = self.num_embeddings
        start = torch.arange(self.members, device=input.device, dtype=input.dtype) * size
        if last:
            return input.unsqueeze(-1) + start
        if layout == "spread":
            return input + start.reshape(-1, *(1,) * input.dim())
        each = input.unflatten(0, (self.members, input.shape[0] // self.members))
        places = each + start.reshape(-1, *(1,) * input.dim())
        # an index out of range must not read the next member's table, but fail as ever
        return torch.where((each < 0) | (each >= size), self.members * size, places)

    def _check(self, input: Tensor, layout: Layout, dimensions: int | None) -> None:
        """ValueError unless these are indices (B, …), of that many dimensions if that is given, in "rows" (M · B, …)."""
        rows = layout == "rows"
        right = input.dim() == dimensions if dimensions else input.dim() >= 1
        if not right or input.dtype not in (torch.int32, torch.int64) or (rows and input.shape[0] % self.members):
            batch = f"{self.members} · B" if rows else "B"
            raise ValueError(
                f"{type(self).__name__}: expected int32 or int64 indices ({batch}, {'L' if dimensions else '…'}), got {input.dtype} "
                f"{tuple(input.shape)}; check layout, which is {layout!r}"
            )

    def _table(self, places: Tensor) -> Tensor:
        """The joined table (M · V, E'), the vectors that are read first cut to `max_norm` in place."""
        if self.max_norm is not None:
            with torch.no_grad():
                joined = self.weight.detach().flatten(0, 1)
                torch.embedding_renorm_(joined, places.reshape(-1), float(self.max_norm), float(self.norm_type))
        return _Joined.apply(self.weight) if self.sparse else self.weight.flatten(0, 1)

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, members={self.members}, padding_idx={self.padding_idx}, "
            f"max_norm={self.max_norm}, norm_type={self.norm_type}, scale_grad_by_freq={self.scale_grad_by_freq}, "
            f"sparse={self.sparse}, last={self.last}, layout={self.layout!r}"
        )


class PackedEmbedding(_PackedTable):
    """M embeddings read in one lookup. Sizes are those of the single network.

    The vectors of `padding_idx` start at 0 and get no gradient. With `max_norm` the forward pass shortens, in place, the vectors that
    it reads, as nn.Embedding does. `sparse` gives `weight` a sparse gradient (M, V, E') with two sparse dimensions.

    Args:
        num_embeddings: V, rows of a table.
        embedding_dim: E; α · E must divide by M.
        members: M.
        alpha: widening α.
        padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse: as in nn.Embedding; frequencies are counted per member.
        last: gives E to each member, M · E in all.
        layout: "channels", "rows" or "spread".

    Raises:
        ValueError: a width that does not divide (it names the nearest that do), illegal settings, or what is no batch of indices.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        members: int,
        alpha: Alpha = 2,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, last, layout, device, dtype)
        super().__init__(num_embeddings, embedding_dim, members, alpha, *options)

    @classmethod
    def like(cls, module: nn.Embedding, packing: Packing) -> Self:
        """The packed layer for an nn.Embedding, uninitialised."""
        names = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        options = {name: getattr(module, name) for name in names} | {"last": packing.last}
        where = {"device": module.weight.device, "dtype": module.weight.dtype}
        sizes = (module.num_embeddings, module.embedding_dim)
        layer: Self = skip_init(cls, *sizes, packing.members, packing.alpha, **options, **where)
        return layer

    def plain(self) -> nn.Embedding:
        """One member's layer, uninitialised."""
        where = {"device": self.weight.device, "dtype": self.weight.dtype}
        plain: nn.Embedding = skip_init(nn.Embedding, self.num_embeddings, self.weight.shape[2], **self._options(), **where)
        return plain

    def forward(self, input: Tensor, layout: Layout | None = None) -> Tensor:
        """Indices (B, …) → (B, …, M · E') or (M · B, …, E'); in "rows" (M · B, …) → (M · B, …, E')."""
        used = self._used(layout)
        self._check(input, used, None)
        last = used == "channels"
        places = self._places(input, used, last)
        y = F.embedding(places, self._table(places), None, None, 2.0, self.scale_grad_by_freq, self.sparse)
        if self.padding_idx is not None and y.requires_grad:
            each = input.unflatten(0, (self.members, input.shape[0] // self.members)) if used == "rows" else input
            padding = (each == self.padding_idx).unsqueeze(-1)
            y = torch.where(padding.unsqueeze(-1) if last else padding, y.detach(), y)
        return y.flatten(-2) if last else y.flatten(0, 1)


class PackedEmbeddingBag(_PackedTable):
    """M bags of embeddings, reduced in one call. Sizes are those of the single network; bags have one length, (B, L).

    Indices equal to `padding_idx` are left out of the sum, mean or maximum. `max_norm` and `sparse` act as in PackedEmbedding.

    Args:
        num_embeddings, embedding_dim, members, alpha, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, last, layout: as in
            PackedEmbedding.
        mode: "sum", "mean" or "max".
        include_last_offset: of the layer this one stands for; it says nothing about bags (B, L).

    Raises:
        ValueError: as in PackedEmbedding; scaled gradients, "max" with sparse ones, offsets, or weights in another mode than "sum".
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        members: int,
        alpha: Alpha = 2,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: BagMode = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f'mode: expected "sum", "mean" or "max", got {mode!r}; choose one of them')
        if mode == "max" and sparse:
            raise ValueError('mode: expected "sum" or "mean" with sparse gradients, got "max"; leave one of both')
        if scale_grad_by_freq:
            raise ValueError(
                "scale_grad_by_freq: expected False, got True for bags, whose gradients PyTorch scales by other rows' frequencies on a "
                "CPU; use an Embedding and reduce its output, or leave it out"
            )
        options = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, last, layout, device, dtype)
        super().__init__(num_embeddings, embedding_dim, members, alpha, *options)
        self.mode, self.include_last_offset = mode, include_last_offset

    @classmethod
    def like(cls, module: nn.EmbeddingBag, packing: Packing) -> Self:
        """The packed layer for an nn.EmbeddingBag, uninitialised."""
        names = ("max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse", "include_last_offset", "padding_idx")
        options = {name: getattr(module, name) for name in names} | {"last": packing.last}
        where = {"device": module.weight.device, "dtype": module.weight.dtype}
        sizes = (module.num_embeddings, module.embedding_dim)
        layer: Self = skip_init(cls, *sizes, packing.members, packing.alpha, **options, **where)
        return layer

    def plain(self) -> nn.EmbeddingBag:
        """One member's layer, uninitialised."""
        options = self._options() | {"mode": self.mode, "include_last_offset": self.include_last_offset}
        where = {"device": self.weight.device, "dtype": self.weight.dtype}
        plain: nn.EmbeddingBag = skip_init(nn.EmbeddingBag, self.num_embeddings, self.weight.shape[2], **options, **where)
        return plain

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None, layout: Layout | None = None
    ) -> Tensor:
        """Bags (B, L) → (B, M · E') or (M · B, E'); in "rows" (M · B, L) → (M · B, E'). `per_sample_weights` have the input's shape."""
        used = self._used(layout)
        self._check(input, used, 2)
        if offsets is not None:
            raise ValueError(
                "offsets: expected None, got a tensor; pass bags of one length (B, L), the shorter ones filled with padding_idx"
            )
        weights = per_sample_weights
        if weights is not None and (self.mode != "sum" or weights.shape != input.shape):
            raise ValueError(
                f'per_sample_weights: expected shape {tuple(input.shape)} in mode "sum", got {tuple(weights.shape)} in mode '
                f"{self.mode!r}; give each index its weight, or None"
            )
        places = self._places(input, "rows" if used == "rows" else "spread", last=False).flatten(0, 1)  # (M · B, L)
        table = self._table(places)
        copies = 1 if used == "rows" else self.members
        if weights is not None:
            weights = weights.repeat(copies, 1)
        if self.padding_idx is not None:  # left out whatever their values, so one row can stand for all members' padding
            places = torch.where((input == self.padding_idx).repeat(copies, 1), self.padding_idx, places)
        y = F.embedding_bag(
            places,
            table,
            mode=self.mode,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
            per_sample_weights=weights,
            padding_idx=self.padding_idx,
        )
        return rows_to_last(y, self.members) if used == "channels" else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}, include_last_offset={self.include_last_offset}"
