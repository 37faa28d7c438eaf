"""Choosing entries by value with exact counts: ties go to the lowest index, the same on every device and each time.

``topk`` and ``partition`` leave open which of equal entries they take, so only their threshold is used: all above it are chosen, the first
ones at it. On a CPU it is NumPy's, several times as fast.

Shapes: values (N,), of any shape with the places that may be chosen, or, row by row, (R, F); what is chosen is bool of the same shape.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def count_of(share: float, count: int) -> int:
    """ceil(share · count), where a product above an integer by up to 1e-6 counts as that integer: 0.07 · 100 is 7."""
    return min(math.ceil(share * count - 1e-6), count)


def threshold(values: Tensor, n: int) -> Tensor:
    """The n-th highest of (N,) values without NaN, 1 ≤ n ≤ N."""
    if values.device.type != "cpu":
        return values.topk(n, sorted=False).values.min()
    narrow = values.dtype in (torch.float16, torch.bfloat16)
    array = (values.detach().float() if narrow else values.detach()).numpy()
    return torch.tensor(np.partition(array, len(array) - n)[len(array) - n].item(), dtype=values.dtype)


def highest(values: Tensor, n: int) -> Tensor:
    """The n highest of (N,) values without NaN."""
    if n == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    least = threshold(values, n)
    chosen = values >= least
    if surplus := int(chosen.count_nonzero()) - n:
        chosen[(values == least).nonzero()[-surplus:]] = False
    return chosen


def highest_among(values: Tensor, places: Tensor, n: int) -> Tensor:
    """The n highest values at the places (bool, of the same shape, at least n of them), without NaN."""
    if n == 0:
        return torch.zeros_like(places)
    if values.device.type == "cpu" and values.dtype not in (torch.float16, torch.bfloat16):
        among = torch.from_numpy(values.detach().numpy()[places.numpy()])  # several times as fast as torch's own indexing
    else:
        among = values[places]
    least = threshold(among, n)
    chosen = (values >= least) & places
    if surplus := int(chosen.count_nonzero()) - n:
        ties = ((values == least) & places).flatten().nonzero()[-surplus:, 0]
        chosen = chosen.flatten()
        chosen[ties] = False
    return chosen.reshape(places.shape)


def highest_of_rows(values: Tensor, counts: Tensor | int) -> Tensor:
    """The highest of every row of (R, F) values: as many as (R, 1) counts say."""
    chosen = torch.arange(values.shape[1], device=values.device).expand_as(values) < counts
    order = values.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, chosen)
