"""Window attention of torchvision (Swin, MaxViT), made anew at a member's width, and Swin's merging of patches.

Their attention adds a learned table by relative position to the weights (Liu et al., ICCV 2021, arXiv:2103.14030, eq. 4; the second
version computes it: arXiv:2111.09883, §3.3; Tu et al., ECCV 2022, arXiv:2204.01697, §3.2). A member has fewer heads of the same size.
Such a module is kept whole: M of the package's own class run one after the other. Neither package is imported.

Shapes: (B, H, W, C) → (B, H, W, C); MaxViT's (B, windows, positions, C) → the same; merging (B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 2 · C).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.packed.initial import drawn
from quorate.packed.layers.arrangement import Packing
from quorate.packed.registry import Rewrite, register_packing


def share(module: nn.Module, heads: int, packing: Packing) -> int:
    """How many heads a member has. ValueError, which names the nearest legal numbers, unless it is whole."""
    mine, step = heads * packing.ratio, packing.ratio.denominator
    if mine.denominator != 1:
        legal = sorted({max(step, heads // step * step), (heads // step + 1) * step})
        raise ValueError(
            f"{type(module).__name__}: expected heads that α/M = {packing.ratio} divides, got {heads}; "
            f"legal are {' and '.join(map(str, legal))}; change their number, alpha or members"
        )
    return mine.numerator


@torch.no_grad()
def redrawn(new: nn.Module, module: nn.Module) -> nn.Module:
    """`new`, a narrower module of the same kind, in dtype and on the device of `module`, drawn at the scale that it has.

    Weights of linear layers at the scale of their fan-in, as `initial.py`; what is all one value keeps it.
    """
    like = next(module.parameters())
    new.to(device=like.device, dtype=like.dtype)
    for name, parameter in new.named_parameters():
        given, owner = module.get_parameter(name), name.rpartition(".")[0]
        layers = [m.get_submodule(owner) for m in (module, new)]
        fans = [layer.in_features for layer in layers if isinstance(layer, nn.Linear)] or [1, 1]
        ratio = math.sqrt(fans[0] / fans[1])
        first = given.flatten()[0]
        parameter.copy_(torch.where((given == first).all(), first, drawn(parameter, given, ratio)))
    return new


def shifted(module: Any, packing: Packing) -> nn.Module:
    """A member's ShiftedWindowAttention, of either version."""
    heads = share(module, module.num_heads, packing)
    width = module.qkv.in_features // module.num_heads * heads
    new = type(module)(
        width, list(module.window_size), list(module.shift_size), heads, module.qkv.bias is not None, module.proj.bias is not None,
        module.attention_dropout, module.dropout,
    )  # fmt: skip
    return redrawn(new, module)


def relative(module: Any, packing: Packing) -> nn.Module:
    """A member's RelativePositionalMultiHeadAttention."""
    heads = share(module, module.n_heads, packing)
    return redrawn(type(module)(heads * module.head_dim, module.head_dim, module.max_seq_len), module)


class PatchMerging(nn.Module):
    """Four neighbouring patches in one, with the given norm and linear layer (arXiv:2103.14030, §3.1; norm last: arXiv:2111.09883).

    Args:
        reduction: 4 · C → 2 · C. norm: of 4 · C before it, or of 2 · C behind it.
        norm_last: whether the norm lies behind.
    """

    def __init__(self, reduction: nn.Module, norm: nn.Module, norm_last: bool) -> None:
        super().__init__()
        self.reduction, self.norm, self.norm_last = reduction, norm, norm_last

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 2 · C)."""
        x = F.pad(x, (0, 0, 0, x.shape[-2] % 2, 0, x.shape[-3] % 2))
        x = torch.cat([x[..., i::2, j::2, :] for j in (0, 1) for i in (0, 1)], -1)
        merged: Tensor = self.norm(self.reduction(x)) if self.norm_last else self.reduction(self.norm(x))
        return merged


def merging(norm_last: bool) -> Rewrite:
    """The rewrite of torchvision's PatchMerging."""

    def rewrite(module: Any) -> nn.Module:
        return PatchMerging(module.reduction, module.norm, norm_last)

    return rewrite


SWIN = "torchvision.models.swin_transformer."
register_packing(f"{SWIN}ShiftedWindowAttention", narrow=shifted)
register_packing(f"{SWIN}ShiftedWindowAttentionV2", narrow=shifted)
register_packing("torchvision.models.maxvit.RelativePositionalMultiHeadAttention", narrow=relative)
register_packing(f"{SWIN}PatchMerging", rewrite=merging(norm_last=False))
register_packing(f"{SWIN}PatchMergingV2", rewrite=merging(norm_last=True))
