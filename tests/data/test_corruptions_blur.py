"""The blurs against loops and SciPy in float64, at all five published severities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage, signal

from quorate.data.corruptions import corruption
from quorate.data.corruptions.drawing import Key, uniforms
from quorate.data.corruptions.resampling import apply, motion, zoom_operator


def pictures(rows: int = 2, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 3, height, width), dtype=np.uint8)


def check(found: np.ndarray, expected: np.ndarray) -> None:
    """Bytes against images in [0, 1]: equal but for float32 near a half."""
    off = np.abs(found - np.clip(expected, 0, 1) * 255)
    assert off.max() <= 0.5 + 1e-3


def moved(x: np.ndarray, angle: float, radius: float, sigma: float) -> np.ndarray:
    """Motion blur of one channel, pixel by pixel."""
    height, width = x.shape
    steps = range(2 * math.ceil(radius) + 1)
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in steps]
    out = np.zeros((height, width))
    for k, weight in zip(steps, weights, strict=True):
        right = math.ceil(k * math.cos(math.radians(angle)) - 0.5)
        down = math.ceil(k * math.sin(math.radians(angle)) - 0.5)
        for i in range(height):
            for j in range(width):
                out[i, j] += weight * x[min(max(i + down, 0), height - 1), min(max(j + right, 0), width - 1)]
    return out / sum(weights)


def zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """A clipped zoom of one square channel, by scipy.ndimage.zoom."""
    size = len(x)
    middle = math.ceil(size / factor)
    top = (size - middle) // 2
    large = ndimage.zoom(x[top : top + middle, top : top + middle], factor, order=1)
    trim = (len(large) - size) // 2
    return large[trim : trim + size, trim : trim + size]


@pytest.mark.parametrize(("severity", "radius", "rim"), [(1, 0.3, 0.4), (2, 0.4, 0.5), (3, 0.5, 0.6), (4, 1, 0.2), (5, 1.5, 0.1)])
@pytest.mark.parametrize("size", [(32, 32), (20, 45), (64, 80), (224, 256)])
def test_defocus(severity: int, radius: float, rim: float, size: tuple[int, int]) -> None:
    grow = max(1, min(size) / 32)
    radius, rim = grow * radius, grow * rim
    y, x = np.mgrid[-13:14, -13:14]
    disk = (x**2 + y**2 <= radius**2) / np.sum(x**2 + y**2 <= radius**2)
    half = 2 if radius > 8 else 1
    taps = np.exp(-(np.arange(-half, half + 1) ** 2) / 2 / rim**2)
    kernel = signal.convolve2d(disk, np.outer(taps, taps) / taps.sum() ** 2, mode="same")
    images = pictures(1, *size)
    padded = np.pad(images[0, 0] / 255, 13, mode="reflect")
    expected = signal.convolve2d(padded, kernel[::-1, ::-1], mode="valid")
    check(corruption("defocus_blur")(images, severity, 0, np.arange(1))[0, 0], expected)


@pytest.mark.parametrize(("severity", "sigma", "times"), [(1, 0.05, 1), (2, 0.25, 1), (3, 0.4, 1), (4, 0.25, 2), (5, 0.4, 2)])
def test_glass_as_the_published_loop_with_its_views(severity: int, sigma: float, times: int) -> None:
    images, ids = pictures(height=20, width=30), np.array([4, 9])
    found = corruption("glass_blur")(images, severity, 3, ids)
    key = Key(3, "glass_blur", severity, ids)
    for row, image in enumerate(images):
        x = np.stack([ndimage.gaussian_filter(c / 255, sigma, mode="nearest") for c in image], -1)
        for turn in range(times):
            down, right = np.floor(2 * uniforms(key, turn, 2, 20, 30)[row]).astype(int) - 1
            for h in range(19, 1, -1):
                for w in range(29, 1, -1):
                    x[h, w] = x[h + down[h, w], w + right[h, w]]
        expected = np.stack([ndimage.gaussian_filter(x[..., c], sigma, mode="nearest") for c in range(3)])
        check(found[row], expected)


def test_glass_grows_with_the_image() -> None:
    images = np.zeros((1, 1, 96, 96), np.uint8)
    images[0, 0, 48, 48] = 255
    key = Key(0, "glass_blur", 1, np.arange(1))
    down, right = np.floor(uniforms(key, 0, 2, 96, 96)[0] * 6).astype(int) - 3  # scale 3
    lit = [(h, w) for h in range(4, 94) for w in range(4, 94) if (h + down[h, w], w + right[h, w]) == (48, 48)]
    out = corruption("glass_blur")(images, 1, 0, np.arange(1))[0, 0]
    assert [(int(h), int(w)) for h, w in np.argwhere(out > 100)] == lit


@pytest.mark.parametrize(("severity", "radius", "sigma"), [(1, 6, 1), (2, 6, 1.5), (3, 6, 2), (4, 8, 2), (5, 9, 2.5)])
@pytest.mark.parametrize("size", [(32, 32), (9, 14), (48, 50)])
def test_motion(severity: int, radius: float, sigma: float, size: tuple[int, int]) -> None:
    grow, images, ids = max(1, min(size) / 32), pictures(2, *size), np.array([1, 7])
    found = corruption("motion_blur")(images, severity, 2, ids)
    angles = 90 * uniforms(Key(2, "motion_blur", severity, ids), 0) - 45
    for row in range(2):
        check(found[row, 1], moved(images[row, 1] / 255, angles[row], grow * radius, grow * sigma))


def test_motion_along_the_axes() -> None:
    x = np.zeros((4, 1, 9, 9), np.float32)
    x[:, 0, 4, 4] = 1
    out = motion(x, 2, 1.5, np.array([0.0, 90.0, 180.0, -45.0]))[:, 0]
    weights = np.exp(-(np.arange(5) ** 2) / 4.5)
    weights /= weights.sum()
    np.testing.assert_allclose(out[0, 4, 4::-1], weights, atol=1e-6)  # each pixel gathers from its right: light runs to the left
    np.testing.assert_allclose(out[1, 4::-1, 4], weights, atol=1e-6)
    np.testing.assert_allclose(out[2, 4, 4:], weights, atol=1e-6)
    assert out[3, 5, 3] > 0
    assert out.sum((1, 2)) == pytest.approx(1)


@pytest.mark.parametrize(("severity", "end"), [*enumerate((1.06, 1.11, 1.16, 1.21, 1.26), 1)])
def test_zoom_blur(severity: int, end: float) -> None:
    factors = np.arange(1, end, 0.01)
    for size in (32, 27):
        images = pictures(1, size, size)
        x = images[0, 2] / 255
        expected = (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)
        check(corruption("zoom_blur")(images, severity, 0, np.arange(1))[0, 2], expected)


@pytest.mark.parametrize("factor", [1, 1.01, 1.25, 1.75, 2.25, 15.75])
def test_zooms_of_oblong_images_are_those_of_their_axes(factor: float) -> None:
    ramp = np.arange(40) / 40
    down, right = (zoomed(np.broadcast_to(ramp[:n], (n, n)), factor)[0] for n in (24, 40))
    both = np.stack([np.broadcast_to(ramp[:24, None], (24, 40)), np.broadcast_to(ramp, (24, 40))])[None].astype(np.float32)
    found = apply(zoom_operator(24, 40, (factor,)), both)[0]
    np.testing.assert_allclose(found[0], np.broadcast_to(down[:, None], (24, 40)), atol=1e-6)
    np.testing.assert_allclose(found[1], np.broadcast_to(right, (24, 40)), atol=1e-6)
