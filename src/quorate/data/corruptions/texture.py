"""Textures drawn per row: the plasma fractal of fog, and ice for frost.

Plasma by the diamond-square algorithm (Fournier, Fussell & Carpenter 1982, CACM 25(6)) on a torus of side 2^K. From a corner 0
and step s = 2^K, with w = 100: the centre of every square of side s becomes the mean of its four corners, then the middle of every edge the
mean of its four neighbours at s/2, each plus w · U(−w, w); s halves and w is divided by `decay`, till s = 1. At last to [0, 1].

Shapes: results (B, side, side) or (B, H, W) float64 in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quorate.data.corruptions.drawing import Key, uniforms
from quorate.data.corruptions.image import scale
from quorate.data.corruptions.resampling import motion

Doubles = NDArray[np.float64]


def spread(x: Doubles) -> Doubles:
    """Each row moved and stretched to [0, 1]; a constant one becomes 0."""
    low = x.min((1, 2), keepdims=True)
    span = x.max((1, 2), keepdims=True) - low
    return np.asarray((x - low) / np.where(span > 0, span, 1))


def plasma(key: Key, stream: int, side: int, decay: float) -> Doubles:
    """Plasma fractals (B, side, side); side a power of two."""
    drawn = 2 * uniforms(key, stream, side * side - 1) - 1
    area = np.zeros((len(drawn), side, side))
    step, wibble, used = side, 100.0, 0

    def noise(count: int) -> Doubles:
        nonlocal used
        used += count * count
        return wibble**2 * drawn[:, used - count * count : used].reshape(-1, count, count)

    while step >= 2:
        half, count = step // 2, side // step
        corner = area[:, ::step, ::step].copy()
        below = corner + np.roll(corner, -1, 1)
        centre = area[:, half::step, half::step] = (below + np.roll(below, -1, 2)) / 4 + noise(count)
        across = centre + np.roll(centre, 1, 1) + corner + np.roll(corner, -1, 2)
        area[:, ::step, half::step] = across / 4 + noise(count)
        along = centre + np.roll(centre, 1, 2) + below
        area[:, half::step, ::step] = along / 4 + noise(count)
        step, wibble = half, wibble / decay
    return spread(area)


def covering(height: int, width: int) -> int:
    """The least power of two that is at least H and W."""
    return int(2 ** math.ceil(math.log2(max(height, width))))


def ice(key: Key, height: int, width: int) -> Doubles:
    """Frost on a pane (B, H, W): needles in two directions and the ridges of a plasma, thicker where another plasma is high.

    Drawn, not photographed, as the frost of Hendrycks & Dietterich is. Uses streams 0 … 4.
    """
    side, grow = covering(height, width), scale(height, width)
    thick, rough = (plasma(key, stream, side, decay)[:, :height, :width] for stream, decay in ((0, 2.5), (1, 1.8)))
    ridges = (1 - np.abs(2 * rough - 1)) ** 3
    seeds = (uniforms(key, 2, 1, height, width) > 0.88).astype(np.float32)
    leaning = 180 * uniforms(key, 3)
    opening = 50 + 30 * uniforms(key, 4)
    first, second = (motion(seeds, 3 * grow, 2.5 * grow, angle)[:, 0] for angle in (leaning, leaning + opening))
    needles = spread((first + second).astype(np.float64))
    return spread((0.35 + 0.65 * thick) * (0.3 + 0.7 * np.maximum(ridges, needles)))
