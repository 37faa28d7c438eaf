"""Standardisation of raw inputs, as the first layer of a model: (x − mean) / std per channel or feature.

mean and std are those of the training split's raw values over all axes but the second (population std):

    mean_c = Σ x_c / n,    std_c = √(Σ (x_c − mean_c)² / n)

Shapes: x (B, C, *rest); images (B, C, H, W), sequences (B, C, L), features (B, F). mean, std: one value per C or F.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from quorate.data.store import Stored

CHUNK = 4096  # rows at a time, so that the float64 copy stays small


def moments(x: np.ndarray | Stored) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel or feature of raw values x (N, C, *rest); a constant one gets std 1.

    uint8: exact integer sums, so the same bits everywhere. float32: two passes in float64. On disk: from the store's sums.
    """
    if isinstance(x, Stored):
        mean, std, flat = x.moments()
        return tuple(mean), tuple(1.0 if same else s for s, same in zip(std, flat, strict=True))
    chunks = [x[i : i + CHUNK] for i in range(0, len(x), CHUNK)]
    axes = (0, *range(2, x.ndim))
    n = x.size // x.shape[1]
    if x.dtype == np.uint8:
        sums = sum(c.sum(axes, dtype=np.int64) for c in chunks)
        squares = sum(np.square(c.astype(np.uint16)).sum(axes, dtype=np.int64) for c in chunks)
        pairs = [(int(s), int(q)) for s, q in zip(sums, squares, strict=True)]
        mean = [s / n for s, _ in pairs]
        std = [math.sqrt((n * q - s * s) / n**2) for s, q in pairs]
    else:
        mean = (sum(c.sum(axes, dtype=np.float64) for c in chunks) / n).tolist()
        centre = np.reshape(mean, (-1, *[1] * (x.ndim - 2)))
        std = np.sqrt(sum(np.square(c - centre).sum(axes) for c in chunks) / n).tolist()
    constant = x.min(axes) == x.max(axes)  # exact, where rounding would leave a float std of 1e-17
    return tuple(mean), tuple(1.0 if same else s for s, same in zip(std, constant, strict=True))


def check_moments(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """ValueError unless there are `channels` finite means and as many stds, finite and positive in float32."""
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"mean and std need one value for each of the {channels} channels (or features), got {len(mean)} and {len(std)}"
        )
    for c, (m, s) in enumerate(zip(mean, std, strict=True)):
        with np.errstate(over="ignore", under="ignore"):
            m32, s32 = np.float32(m), np.float32(s)
        if not (np.isfinite(m32) and np.isfinite(s32) and s32 > 0):
            raise ValueError(
                f"mean must be finite and std finite and positive in float32, got mean {m!r}, std {s!r} "
                f"for channel {c}: use std 1 for a constant channel, rescale one this small or large"
            )


class Normalise(nn.Module):
    """(x − mean) / std with the buffers `mean` and `std`, so that a model takes raw inputs, uint8 included.

    mean, std: one value per channel or feature, in raw units. shape: of one input without the batch, (C, *rest);
    the buffers are (C, 1, …) so that they broadcast over the rest. Output: x's shape, dtype of the buffers (float32
    unless the module is converted). Traceable by torch.fx. Raises ValueError as `check_moments` does.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], shape: Sequence[int]) -> None:
        super().__init__()
        if not shape:
            raise ValueError("shape must be that of one input, (C, *rest), got (): pass the shape without the batch")
        check_moments(mean, std, shape[0])
        wide = (shape[0], *[1] * (len(shape) - 1))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(wide))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(wide))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.std.dtype) - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"channels={self.mean.shape[0]}"
