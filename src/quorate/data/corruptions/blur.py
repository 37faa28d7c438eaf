"""Blurs of Hendrycks & Dietterich 2019 (arXiv 1903.12261), with s = `image.scale` of the size:

- defocus_blur (r, a): a disk of radius s·r pixels, its rim smoothed by a 3×3 Gaussian of σ = s·a (5×5 beyond 8 pixels);
- glass_blur (σ, d, n): Gaussian of s·σ, then n times every pixel (h, w) of d < h ≤ H − d, d < w ≤ W − d takes the value at
  (h + i, w + j), i and j uniform in −d … d − 1, d in pixels times s, and the Gaussian again. The published code exchanges pixels
  through views of one array, so the neighbour keeps its value; for d = 1 this is what it computes;
- motion_blur (r, σ): `resampling.motion` with s·r and s·σ, at an angle uniform in ±45°;
- zoom_blur (e): the mean of the image and its clipped zooms by the factors numpy.arange(1, e, 0.01), which end in e itself for 1.06
  and 1.11.

Shapes: x (B, C, H, W) float32 in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from quorate.data.corruptions.drawing import Key, uniforms
from quorate.data.corruptions.image import Floats, ImageCorruption, scale
from quorate.data.corruptions.resampling import apply, motion, zoom_operator


def disk(radius: float, rim: float) -> NDArray[np.float64]:
    """A disk of sum 1 with a smoothed rim: (k, k), k odd."""
    half = 1 if radius <= 8 else 2
    reach = math.floor(radius) + half
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside = (x**2 + y**2 <= radius**2).astype(np.float64)
    taps = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * rim**2))
    taps /= taps.sum()
    smooth = ndimage.correlate1d(ndimage.correlate1d(inside, taps, 0, mode="constant"), taps, 1, mode="constant")
    return np.asarray(smooth / inside.sum())


def _defocus(x: Floats, constants: tuple[float, float], key: Key) -> NDArray[np.floating]:  # noqa: ARG001
    radius, rim = (scale(*x.shape[2:]) * c for c in constants)
    return np.asarray(ndimage.correlate(x, disk(radius, rim)[None, None], mode="mirror"))


def _glass(x: Floats, constants: tuple[float, int, int], key: Key) -> NDArray[np.floating]:
    (sigma, furthest, times), (height, width) = constants, x.shape[2:]
    grow = scale(height, width)
    widths, reach = (0, 0, grow * sigma, grow * sigma), round(grow * furthest)
    x = ndimage.gaussian_filter(x, widths, mode="nearest")
    inner = np.zeros((height, width), bool)
    inner[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    here = np.arange(height * width).reshape(height, width)
    for turn in range(times):
        down, right = np.floor(uniforms(key, turn, 2, height, width).swapaxes(0, 1) * (2 * reach)).astype(np.int64) - reach
        source = np.where(inner, here + down * width + right, here)
        x = np.take_along_axis(x.reshape(*x.shape[:2], -1), source.reshape(len(x), 1, -1), 2).reshape(x.shape)
    return np.asarray(ndimage.gaussian_filter(x, widths, mode="nearest"))


def _motion(x: Floats, constants: tuple[float, float], key: Key) -> NDArray[np.floating]:
    radius, sigma = (scale(*x.shape[2:]) * c for c in constants)
    return motion(x, radius, sigma, 90 * uniforms(key, 0) - 45)


def _zoom(x: Floats, end: float, key: Key) -> NDArray[np.floating]:  # noqa: ARG001
    factors = np.arange(1, end, 0.01).tolist()
    zoomed = apply(zoom_operator(*x.shape[2:], tuple(factors)), x)
    return (x + len(factors) * zoomed) / np.float32(len(factors) + 1)


defocus_blur = ImageCorruption("defocus_blur", ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), _defocus)
glass_blur = ImageCorruption("glass_blur", ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)), _glass)
motion_blur = ImageCorruption("motion_blur", ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), _motion)
zoom_blur = ImageCorruption("zoom_blur", (1.06, 1.11, 1.16, 1.21, 1.26), _zoom)
