"""Vision transformer (Dosovitskiy et al., An Image is Worth 16×16 Words, ICLR 2021, arXiv:2010.11929, eq. 1–4).

With P = (H / patch) · (W / patch) patches, N = P + 1 tokens (P without a class token), D = width and z of shape (B, N, D):

    z⁰ = [class; patches · E] + positions                                   eq. 1
    z′ = z + attention(norm(z)),    z = z′ + mlp(norm(z′))                  eq. 2–3
    logits = head(norm(z)[class]), or head(mean over tokens of norm(z))     eq. 4; mean: Beyer et al. 2022, arXiv:2205.01580

attention = proj(softmax(q kᵀ / √(D / heads)) v), concatenated over the heads (appendix A); mlp = linear, exact GELU, linear. Dropout acts
where the paper has it (appendix B.1): after every linear layer but those of q, k, v, and after the positions are added.
Stochastic depth (Huang et al. 2016, arXiv:1603.09382, §3): in training each row leaves out the branches of block l = 1 … L with a
probability that rises linearly to the given one, rate · (l − 1) / (L − 1), and scales what is kept by 1 / (1 − p) (Touvron et al.
2021, arXiv:2012.12877).

The defaults are DeiT-Tiny's with patches for 32×32: at patch 16 and 224×224, 1000 classes, 5,717,416 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.models.shape import choice, image_shape, probability, real, whole

SPREAD = 0.02  # standard deviation of linear weights and positions, truncated at two of them as in the paper's code


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Linear layer with weights from a normal of deviation 0.02 truncated at ±0.04, biases 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(layer.weight, std=SPREAD, a=-2 * SPREAD, b=2 * SPREAD)
    nn.init.zeros_(layer.bias)
    return layer


def dropping(share: float) -> nn.Module:
    """Dropout, or the identity where it would do nothing."""
    return nn.Dropout(share) if share else nn.Identity()


class StochasticDepth(nn.Module):
    """A residual branch, left out of each row with probability `share` in training and scaled by 1 / (1 − share) where kept."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.mask = nn.Dropout(share)

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, D) → the same."""
        kept: Tensor = self.mask(torch.ones_like(branch[:, :1, :1]))
        return branch * kept


class Attention(nn.Module):
    """Multi-head self-attention; rows of `qkv` are queries, keys, values, in each one head after the other."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.depth = heads, width // heads
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)
        self.dropout = dropping(dropout)

    def forward(self, z: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        parts = self.qkv(z).unflatten(-1, (3, self.heads, self.depth)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, D / heads)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        out: Tensor = self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out


class Block(nn.Module):
    """z′ = z + attention(norm(z)); z′ + mlp(norm(z′))."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, skip: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.skip1 = StochasticDepth(skip) if skip else nn.Identity()
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = linear(width, hidden)
        self.gelu = nn.GELU()
        self.dropout1 = dropping(dropout)
        self.linear2 = linear(hidden, width)
        self.dropout2 = dropping(dropout)
        self.skip2 = StochasticDepth(skip) if skip else nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        z = z + self.skip1(self.attention(self.norm1(z)))
        hidden = self.dropout1(self.gelu(self.linear1(self.norm2(z))))
        out: Tensor = z + self.skip2(self.dropout2(self.linear2(hidden)))
        return out


def check_divides(name: str, value: int, total: int, what: str) -> None:
    """A ValueError that names the legal values unless `value` divides `total`, which is `what`."""
    if total % value:
        legal = ", ".join(str(d) for d in range(1, total + 1) if total % d == 0)
        raise ValueError(f"{name}: expected a divisor of {what}, got {value}; legal are {legal}")


def hidden_units(width: int, ratio: float) -> int:
    """ratio · width, if that is a whole number of at least 1. Raises ValueError."""
    units = real(ratio) * width
    if not units >= 1 or not units.is_integer():
        raise ValueError(
            f"mlp_ratio: expected a number that makes whole hidden units at width {width}, got {ratio!r}; pass for example 4"
        )
    return int(units)


class ViT(nn.Module):
    """Vision transformer with pre-normalisation and learned positions, for images of one size.

    Args:
        shape: (channels, height, width) of one image; patch divides height and width.
        classes: number of logits.
        patch: side of a patch in pixels.
        width: size D of a token, a multiple of heads.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden units of a block's MLP per unit of width.
        pool: what the head reads: a "class" token, or the "mean" over the patches (then there is no class token).
        dropout: probability in [0, 1), in training.
        stochastic_depth: probability in [0, 1) that a row leaves out the last block's branches, in training; less for earlier blocks.

    Raises:
        ValueError: a patch that does not divide the image or heads that do not divide the width (legal ones are named), a hidden
            width that is not whole, an unknown pool, a size that is not a positive int, or a probability outside [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        patch: int = 4,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        pool: Literal["class", "mean"] = "class",
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        channels, rows, columns = image_shape(shape)
        width, depth, heads, patch = (
            whole(name, value) for name, value in (("width", width), ("depth", depth), ("heads", heads), ("patch", patch))
        )
        check_divides("patch", patch, math.gcd(rows, columns), f"height and width of the {rows}×{columns} images")
        check_divides("heads", heads, width, f"width {width}")
        hidden = hidden_units(width, mlp_ratio)
        dropout, skip = probability("dropout", dropout), probability("stochastic_depth", stochastic_depth)
        self.pool = choice("pool", pool, ("class", "mean"))
        tokens = (rows // patch) * (columns // patch) + (pool == "class")
        self.embed = nn.Conv2d(channels, width, patch, patch)
        nn.init.normal_(self.embed.weight, std=1 / math.sqrt(channels * patch**2))
        nn.init.zeros_(self.embed.bias)  # type: ignore[arg-type]
        self.positions = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1, tokens, width), std=SPREAD, a=-2 * SPREAD, b=2 * SPREAD)
        )
        if pool == "class":
            self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.dropout = dropping(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, dropout, skip * i / max(depth - 1, 1)) for i in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = linear(width, whole("classes", classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → logits (B, classes)."""
        z = self.embed(x).flatten(2).transpose(1, 2)
        if self.pool == "class":
            z = torch.cat([self.token.expand(x.shape[0], -1, -1), z], 1)
        z = self.norm(self.blocks(self.dropout(z + self.positions)))
        logits: Tensor = self.head(z[:, 0] if self.pool == "class" else z.mean(1))
        return logits
