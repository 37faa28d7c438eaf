"""Digital corruptions of Hendrycks & Dietterich 2019 (arXiv 1903.12261), images in [0, 1]:

- contrast (c): c (x − mean) + mean, the mean per channel over the image;
- elastic_transform (a, σ, t): the three corners of a square about the centre, of half side ⌊min(H, W) / 3⌋, move by uniform numbers
  in ±t and the image with them, affinely; then every pixel moves by a · (uniform in ±1, smoothed by a Gaussian of σ). Linear
  interpolation, mirrored edges; a, σ and t are shares of min(H, W), as published;
- pixelate (c): resized to ⌊c H⌋ × ⌊c W⌋ and back, by boxes (Pillow);
- jpeg_compression (q): stored as JPEG of quality q and read again (Pillow; colour at half resolution, its default).

Shapes: x (B, C, H, W) float32 in [0, 1].
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from quorate.data.corruptions.drawing import Key, uniforms
from quorate.data.corruptions.image import Floats, ImageCorruption


def _contrast(x: Floats, kept: float, key: Key) -> NDArray[np.floating]:  # noqa: ARG001
    mean = x.reshape(*x.shape[:2], -1).mean(2, dtype=np.float64).astype(np.float32)[:, :, None, None]
    return np.asarray((x - mean) * np.float32(kept) + mean)


def affine(height: int, width: int, moves: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of the affine map that moves three corners by `moves` (B, 3, 2), (down, right): (B, 2, 3).

    Its rows give from where, (y, x), the pixel (y, x, 1) of the result is taken.
    """
    y, x = height // 2, width // 2
    half = min(height, width) // 3
    corners = np.array([[y + half, x + half], [y + half, x - half], [y - half, x - half]], np.float64)
    moved = np.concatenate([corners + moves, np.ones((len(moves), 3, 1))], 2)
    return np.asarray(np.linalg.solve(moved, np.broadcast_to(corners, (len(moves), 3, 2))).swapaxes(1, 2))


def _elastic(x: Floats, constants: tuple[float, float, float], key: Key) -> NDArray[np.floating]:
    height, width = x.shape[2:]
    amplitude, smoothness, corner = (min(height, width) * c for c in constants)
    moves = corner * (2 * uniforms(key, 0, 3, 2) - 1)
    field = 2 * uniforms(key, 1, 2, height, width) - 1
    field = amplitude * ndimage.gaussian_filter(field, (0, 0, smoothness, smoothness), mode="reflect", truncate=3)
    grid = np.mgrid[:height, :width]
    here = np.concatenate([grid.reshape(2, -1), np.ones((1, height * width))])
    out = np.empty_like(x)
    for image, result, source, shift in zip(x, out, affine(height, width, moves), field, strict=True):
        places = np.einsum("ij,jk->ik", source, here).reshape(2, height, width)
        for channel, target in zip(image, result, strict=True):
            turned = ndimage.map_coordinates(channel, places, order=1, mode="mirror")
            ndimage.map_coordinates(turned, grid + shift, target, order=1, mode="reflect")
    return out


def _pixelate(x: Floats, share: float, key: Key) -> NDArray[np.floating]:  # noqa: ARG001
    image = _pillow()
    height, width = x.shape[2:]
    small, box = (int(width * share), int(height * share)), image.Resampling.BOX
    out = np.empty_like(x)
    for channel, target in zip(x.reshape(-1, height, width), out.reshape(-1, height, width), strict=True):
        target[:] = image.fromarray(channel).resize(small, box).resize((width, height), box)
    return out


def _jpeg(x: Floats, quality: int, key: Key) -> NDArray[np.floating]:  # noqa: ARG001
    image = _pillow()
    shown = np.rint(x * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1)
    out = np.empty(shown.shape, np.float32)
    for picture, target in zip(shown, out, strict=True):
        with io.BytesIO() as file:
            image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(file, "JPEG", quality=quality)
            target[:] = np.asarray(image.open(file), np.float32).reshape(target.shape)
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2)) / np.float32(255)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('pixelate and jpeg_compression need Pillow: pip install "quorate[train]"') from error
    return Image


contrast = ImageCorruption("contrast", (0.75, 0.5, 0.4, 0.3, 0.15), _contrast)
elastic_transform = ImageCorruption(
    "elastic_transform", ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)), _elastic
)
pixelate = ImageCorruption("pixelate", (0.95, 0.9, 0.85, 0.75, 0.65), _pixelate)
jpeg_compression = ImageCorruption("jpeg_compression", (80, 65, 58, 50, 40), _jpeg, colour=True)
