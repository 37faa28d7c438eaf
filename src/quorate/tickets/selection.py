"""Choosing entries by value with exact counts: ties go to the lowest index, the same on every device and each time.

PyTorch's ``topk`` leaves open which of equal entries it takes, so only its threshold is used: all above it are chosen, the first ones
at it.

Shapes: values (N,) or, row by row, (R, F); what is chosen is bool of the same shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def count_of(share: float, count: int) -> int:
    """ceil(share · count), where a product above an integer by up to 1e-6 counts as that integer: 0.07 · 100 is 7."""
    return min(math.ceil(share * count - 1e-6), count)


def highest(values: Tensor, n: int) -> Tensor:
    """The n highest of (N,) values without NaN."""
    if n == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = values.topk(n, sorted=False).values.min()
    above, at = values > threshold, values == threshold
    return above | (at & (at.cumsum(0) <= n - above.sum()))


def lowest(values: Tensor, n: int) -> Tensor:
    """The n lowest of (N,) values without NaN."""
    return highest(-values, n)


def highest_of_rows(values: Tensor, counts: Tensor | int) -> Tensor:
    """The highest of every row of (R, F) values: as many as (R, 1) counts say."""
    chosen = torch.arange(values.shape[1], device=values.device).expand_as(values) < counts
    order = values.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, chosen)
