"""Images moved: zoomed about their centre, and shifted along a line by row-wise different angles.

A clipped zoom by z, as in Hendrycks & Dietterich 2019's code: of n pixels the middle ⌈n / z⌉ are stretched linearly to
round(z ⌈n / z⌉), of which the middle n are kept; per axis, so that images needn't be square.

A motion blur with radius r and standard deviation σ along angle a, as ImageMagick's MotionBlurImage has it, one-sided:

    y(p) = Σ_k w_k x(p + round(k (cos a, sin a))),   w_k ∝ exp(−k² / 2σ²),   k = 0 … 2⌈r⌉,   edges continued.

Shapes: x (B, C, H, W) float32; angle (B,).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from quorate.data.corruptions.image import Floats


@functools.lru_cache(maxsize=16)
def zoom_operator(height: int, width: int, factors: tuple[float, ...]) -> sparse.csr_array:
    """The mean of clipped zooms by `factors`, each ≥ 1, as a sparse matrix on the H·W pixels."""
    parts = (sparse.kron(_zoom_axis(height, z), _zoom_axis(width, z), format="csr") for z in factors)
    return sparse.csr_array(functools.reduce(lambda a, b: a + b, parts) / len(factors)).astype(np.float32)


def _zoom_axis(size: int, factor: float) -> sparse.csr_array:
    """Linear interpolation at the places a clipped zoom looks at: (size, size)."""
    middle = math.ceil(size / factor)
    stretched = round(middle * factor)
    first, trimmed = (size - middle) // 2, (stretched - size) // 2
    at = first + (trimmed + np.arange(size)) * ((middle - 1) / max(1, stretched - 1))
    low = np.minimum(at.astype(np.int64), size - 2)
    rows = np.arange(size)
    weights = np.concatenate([1 - (at - low), at - low])
    return sparse.csr_array((weights, (np.concatenate([rows, rows]), np.concatenate([low, low + 1]))), shape=(size, size))


def apply(operator: sparse.csr_array, x: Floats) -> Floats:
    """A matrix on the H·W pixels, applied to every channel of every row."""
    pixels = np.ascontiguousarray(x.reshape(-1, x.shape[-2] * x.shape[-1]).T)
    return np.ascontiguousarray((operator @ pixels).T).reshape(x.shape)


def motion(x: Floats, radius: float, sigma: float, degrees: NDArray[np.float64]) -> Floats:
    """Motion blur of each row along its own angle (B,), by the module's formula."""
    reach = 2 * math.ceil(radius)
    steps = np.arange(reach + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    angle = np.deg2rad(degrees)[:, None]
    right, down = (np.ceil(steps * turn(angle) - 0.5).astype(np.int64) + reach for turn in (np.cos, np.sin))
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, x.shape[2:], axis=(2, 3))
    rows, out = np.arange(len(x)), np.zeros_like(x)
    for k, weight in enumerate(weights):
        out += weight * windows[rows, :, down[:, k], right[:, k]]
    return out
