"""Weather and light of Hendrycks & Dietterich 2019 (arXiv 1903.12261), with s = `image.scale` of the size and images in [0, 1]:

- snow (μ, σ, z, t, r, m, k): a layer of normal numbers (μ, σ), zoomed by s·z, below t set to 0, blurred in motion (s·r, s·m) at an
  angle uniform in −135° … −45°; the image k x + (1 − k) max(x, 1.5 grey(x) + ½) plus the layer and the layer turned by 180°;
- frost (k, f): k x + f · ice. The published corruption blends photographs of frost; here the ice is drawn (`texture.ice`), with a
  bluish tint in colour images, so figures under frost can't be compared with published ones;
- fog (f, d): (x + f · plasma) · max x / (max x + f), plasma fractals of decay d, the largest value taken over the image;
- brightness (b): V + b of hue, saturation, value, V clipped at 1; for grey images x + b.

Grey is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), or the one channel that there is.

Shapes: x (B, C, H, W) float32 in [0, 1], C = 1 or 3 (fog: any).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quorate.data.corruptions.drawing import Key, normals, uniforms
from quorate.data.corruptions.image import Floats, ImageCorruption, scale
from quorate.data.corruptions.resampling import apply, motion, zoom_operator
from quorate.data.corruptions.texture import covering, ice, plasma

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
ICE = np.array([0.80, 0.90, 1.00], np.float32)


def grey(x: Floats) -> Floats:
    """Luminance (B, 1, H, W) of grey or RGB images."""
    return x if x.shape[1] == 1 else LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:]


def _snow(x: Floats, constants: tuple[float, ...], key: Key) -> NDArray[np.floating]:
    mean, deviation, zoom, threshold, radius, sigma, kept = constants
    height, width = x.shape[2:]
    grow = scale(height, width)
    layer = (mean + deviation * normals(key, 0, 1, height, width)).astype(np.float32)
    if zoom * grow > 1:
        layer = apply(zoom_operator(height, width, (zoom * grow,)), layer)
    layer = np.clip(np.where(layer < threshold, np.float32(0), layer), 0, 1)
    layer = motion(layer, radius * grow, sigma * grow, -135 + 90 * uniforms(key, 1))
    pale = np.maximum(x, np.float32(1.5) * grey(x) + np.float32(0.5))
    return np.asarray(np.float32(kept) * x + np.float32(1 - kept) * pale + layer + layer[:, :, ::-1, ::-1])


def _frost(x: Floats, constants: tuple[float, float], key: Key) -> NDArray[np.floating]:
    kept, cover = constants
    tint = ICE if x.shape[1] == 3 else np.array([ICE @ LUMA], np.float32)
    layer = ice(key, *x.shape[2:]).astype(np.float32)[:, None] * tint[:, None, None]
    return np.asarray(np.float32(kept) * x + np.float32(cover) * layer)


def _fog(x: Floats, constants: tuple[float, float], key: Key) -> NDArray[np.floating]:
    (thick, decay), (height, width) = constants, x.shape[2:]
    cloud = plasma(key, 0, covering(height, width), decay)[:, None, :height, :width].astype(np.float32)
    brightest = x.max((1, 2, 3), keepdims=True)
    return np.asarray((x + np.float32(thick) * cloud) * (brightest / (brightest + np.float32(thick))))


def _brightness(x: Floats, more: float, key: Key) -> NDArray[np.floating]:  # noqa: ARG001
    value = x.max(1, keepdims=True)  # hue and saturation stay where all channels keep their ratio
    raised = np.minimum(value + np.float32(more), 1)
    return np.asarray(np.where(value > 0, x * (raised / np.where(value > 0, value, 1)), raised))


snow = ImageCorruption(
    "snow",
    (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    _snow,
    colour=True,
)
frost = ImageCorruption("frost", ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)), _frost, colour=True)
fog = ImageCorruption("fog", ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), _fog)
brightness = ImageCorruption("brightness", (0.05, 0.1, 0.15, 0.2, 0.3), _brightness, colour=True)
