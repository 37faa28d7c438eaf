"""Attention masks of packed members: shared by all, or each member's own, as one mask that is added to the scores.

    scores = q · kᵀ / √d + mask        (Vaswani et al. 2017, arXiv:1706.03762, eq. 1; a masked score is -∞)

Shapes, with H heads of the single network, H′ = α · H / M of a member, L queries, S keys:

    key padding      shared (B, S)                                      own (M · B, S)
    attention        (L, S); shared (B · H, L, S) or (B, H, L, S)       own (M · B · H′, L, S) or (M · B, H′, L, S)
    merged           what broadcasts to rows (M · B, H′, L, S)

Own masks are member-major like rows. Heads are divided among the members: head j of member m is packed head p = m · H′ + j, and takes
a shared mask's head p mod H. With α = M that is head j, all of the single network's masks for each member; with α = 1 member m's slice.
With α = 1 and M > 1 a mask of three axes fits both readings and is refused; the forms of four axes tell them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quorate.packed.layers.arrangement import spread, to_rows


def additive(name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask in `dtype`; of a bool one True is -∞, False 0. Raises ValueError for other integers."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise ValueError(f"{name}: expected a bool mask (True is left out) or a float one (added), got {mask.dtype}; convert it")
    return mask.to(dtype)


@dataclass(frozen=True)
class Masks:
    """Merges the masks of one attention layer.

    Args:
        members: M. heads: H of the single network. each: H′ of a member.
    """

    members: int
    heads: int
    each: int

    def attention(self, mask: Tensor, batch: int, queries: int, keys: int, dtype: torch.dtype) -> Tensor:
        """An attention mask → (1, 1, L, S) or (M · B, H′, L, S). Raises ValueError for another shape."""
        members, heads, each = self.members, self.heads, self.each
        mask, rows = additive("attn_mask", mask, dtype), members * batch
        if mask.dim() == 2 and mask.shape == (queries, keys):
            return mask[None, None]
        if mask.dim() in (3, 4) and mask.shape[-2:] == (queries, keys):
            count = mask.shape[0] if mask.dim() == 3 else mask.shape[:2]
            shared, own = (batch * heads, rows * each) if mask.dim() == 3 else ((batch, heads), (rows, each))
            if mask.dim() == 3 and members > 1 and heads == members * each and count == own:
                raise ValueError(
                    f"attn_mask: expected four axes where alpha is 1, got {tuple(mask.shape)}, which may be shared or each member's "
                    f"own; reshape to ({batch}, {heads}, L, S) for a shared one or ({rows}, {each}, L, S) for own ones"
                )
            if count == shared:
                repeated = mask.reshape(batch, heads, queries, keys).repeat(1, -(-members * each // heads), 1, 1)
                return to_rows(repeated[:, : members * each], members)
            if count == own:
                return mask.reshape(rows, each, queries, keys)
        raise ValueError(
            f"attn_mask: expected ({queries}, {keys}), shared ({batch * heads}, {queries}, {keys}) or own "
            f"({rows * each}, {queries}, {keys}), got {tuple(mask.shape)}; count in the heads of the single network or of all members"
        )

    def padding(self, mask: Tensor, batch: int, keys: int, dtype: torch.dtype) -> Tensor:
        """A key padding mask → (M · B, 1, 1, S). Raises ValueError for another shape."""
        rows = self.members * batch
        if mask.dim() != 2 or mask.shape[1] != keys or mask.shape[0] not in (batch, rows):
            raise ValueError(
                f"key_padding_mask: expected ({batch}, {keys}) shared by the members or ({rows}, {keys}) of their own, "
                f"got {tuple(mask.shape)}; one row for each input and one column for each key"
            )
        mask = additive("key_padding_mask", mask, dtype)
        return (mask if mask.shape[0] == rows else spread(mask, self.members))[:, None, None]

    def merged(
        self,
        attention: Tensor | None,
        padding: Tensor | None,
        batch: int,
        queries: int,
        keys: int,
        more: int,
        dtype: torch.dtype,
    ) -> Tensor | None:
        """Their sum, which broadcasts to (M · B, H′, L, S + more): the `more` last keys are for all. None without masks."""
        first = None if attention is None else self.attention(attention, batch, queries, keys, dtype)
        second = None if padding is None else self.padding(padding, batch, keys, dtype)
        both = second if first is None else first if second is None else first + second
        return both if both is None or not more else F.pad(both, (0, more))
