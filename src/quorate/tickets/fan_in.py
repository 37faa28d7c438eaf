"""Constant fan-in: every active neuron has as many live weights, and neurons with too few that matter are ablated.

Source: Lasby et al. 2024, "Dynamic Sparse Training with Structured Sparsity" (SRigL, arXiv 2305.02299), section 3. Its layers run as dense
gathers, without row pointers. With b the live weights that the layer was given, F its fan-in and o its outputs, one move at rate r of a
mask with nnz live weights and fan-in k:

    n = ⌈r · nnz⌉;   salient: the nnz − n live weights of largest |w|, and the n dead ones of the highest scores
    ablated: neurons with fewer than γ k salient weights, so that at least ⌈b / F⌉ stay active, those with most of them
    k' = ⌊b / active⌋;   the n live weights of least |w| are dropped; every active neuron grows by score up to k'

A neuron left with more than k' drops its least |w|. An ablated neuron comes back when so many of its dead weights are among the highest
scores that it is salient again; k' then shrinks, since b is what counts. The count is never above b and short of it by fewer weights than
neurons are active. Ties go to the lowest index, as in every pattern.

Shapes: weights (out, in, …), seen as (o, F); a neuron is a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quorate.tickets.patterns import check_drawn, check_move, check_wanted, dropped, filled, grown, random_rows
from quorate.tickets.selection import count_of, highest, highest_of_rows


def trimmed(weight: Tensor, mask: Tensor, fan_in: int) -> Tensor:
    """The (o, F) mask without the live weights of least magnitude of rows that have more than ``fan_in``."""
    surplus = (mask.sum(1, keepdim=True) - fan_in).clamp(min=0)
    magnitude = weight.abs().clamp(max=torch.finfo(weight.dtype).max).masked_fill(~mask, torch.inf)
    return mask & ~highest_of_rows(-magnitude, surplus)


@dataclass(frozen=True)
class ConstantFanIn:
    """As many live weights in every active neuron, and none in ablated ones (SRigL).

    Args:
        ablate: γ, in [0, 1]: neurons with fewer salient weights than this share of the fan-in are ablated; 0 ablates none.

    Raises:
        ValueError: ``ablate`` outside [0, 1].
    """

    ablate: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.ablate <= 1:
            raise ValueError(
                f"ConstantFanIn(ablate={self.ablate!r}): expected a share of the fan-in in [0, 1], 0 to ablate no neuron"
            )

    def live(self, name: str, shape: Sequence[int], wanted: int) -> int:
        """The multiple of the outputs that is nearest to the wanted count, at least one per output."""
        size = check_wanted(name, shape, wanted)
        return min(max(round(wanted / shape[0]), 1) * shape[0], size)

    def draw(self, shape: Sequence[int], live: int, rng: np.random.Generator) -> Tensor:
        """All neurons active, the inputs of each drawn alike and independently."""
        check_drawn(self, shape, live)
        width = int(np.prod(shape[1:]))
        return random_rows(shape[0], width, live // shape[0], rng).reshape(tuple(shape))

    def fits(self, mask: Tensor) -> bool:
        """Whether every neuron with live weights has as many, and there is one."""
        fan_in = mask.reshape(mask.shape[0], -1).sum(1)
        return bool((fan_in > 0).any()) and bool(((fan_in == 0) | (fan_in == fan_in.max())).all())

    def move(self, weight: Tensor, mask: Tensor, rate: float, score: Tensor, *, live: int | None = None) -> Tensor:
        """One update of SRigL; see :class:`quorate.tickets.patterns.Pattern`.

        ``live`` should be given: by default the budget is the mask's own count, and what the division leaves over is lost for good.

        Raises:
            ValueError: as every pattern; ``live`` below the mask's count or above N.
        """
        count = check_move(self, weight, mask, rate, score)
        budget = count if live is None else live
        if not count <= budget <= mask.numel():
            raise ValueError(
                f"mask has {count} of {mask.numel()} live weights: expected live={live} to lie between, the layer's budget"
            )
        if count == mask.numel():
            return mask
        n = count_of(rate, count)
        if n == 0:
            return mask.clone()
        outputs = mask.shape[0]
        w, now, s = (tensor.reshape(outputs, -1) for tensor in (weight, mask, score))
        kept = dropped(w, now, n)
        salient = (kept | (grown(now, s, min(n, now.numel() - count)) & ~now)).sum(1)
        needed = count_of(self.ablate, int(now.sum(1).max()))
        active = int((salient >= needed).sum().clamp(-(-budget // now.shape[1]), min(outputs, budget)))
        stays = highest(salient, active)[:, None]
        fan_in = budget // active
        kept = trimmed(w, kept & stays, fan_in)
        return filled(kept, s, fan_in * stays).reshape(mask.shape)
