"""Noise of Hendrycks & Dietterich 2019 (arXiv 1903.12261), every value x_i of [0, 1] for itself:

- gaussian_noise: x_i + σ n_i, n_i standard normal;
- shot_noise: Poisson(c x_i) / c, the photons of a dark room;
- impulse_noise: with probability p, 0 or 1 at even odds.

Shapes: x (B, C, H, W) float32 in [0, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quorate.data.corruptions.drawing import Key, normals, poissons, uniforms
from quorate.data.corruptions.image import Floats, ImageCorruption


def _gaussian(x: Floats, sigma: float, key: Key) -> NDArray[np.floating]:
    return x + sigma * normals(key, 0, *x.shape[1:]).astype(np.float32)


def _shot(x: Floats, photons: float, key: Key) -> NDArray[np.floating]:
    return (poissons(x * np.float32(photons), key, 0) / photons).astype(np.float32)


def _impulse(x: Floats, share: float, key: Key) -> NDArray[np.floating]:
    u = uniforms(key, 0, *x.shape[1:])
    return np.where(u < share / 2, np.float32(1), np.where(u < share, np.float32(0), x))


gaussian_noise = ImageCorruption("gaussian_noise", (0.04, 0.06, 0.08, 0.09, 0.10), _gaussian)
shot_noise = ImageCorruption("shot_noise", (500, 250, 100, 75, 50), _shot)
impulse_noise = ImageCorruption("impulse_noise", (0.01, 0.02, 0.03, 0.05, 0.07), _impulse)
