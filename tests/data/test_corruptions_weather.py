"""Snow, fog, brightness against loops, colorsys and SciPy in float64; frost, whose ice is drawn, by its properties."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from scipy import ndimage

from quorate.data.corruptions import corruption
from quorate.data.corruptions.drawing import Key, normals, uniforms
from quorate.data.corruptions.resampling import motion
from quorate.data.corruptions.texture import covering, ice, plasma, spread

FROST = [(1, 1, 0.2), (2, 1, 0.3), (3, 0.9, 0.4), (4, 0.85, 0.4), (5, 0.75, 0.45)]


def pictures(rows: int = 2, channels: int = 3, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (rows, channels, height, width), dtype=np.uint8)


def check(found: np.ndarray, expected: np.ndarray) -> None:
    off = np.abs(found - np.clip(expected, 0, 1) * 255)
    assert off.max() <= 0.5 + 2e-3


def diamond_square(noise: np.ndarray, side: int, decay: float) -> np.ndarray:
    """Point by point, noise taken in the order in which the levels fill centres, then horizontal, then vertical edges."""
    area, step, wibble, used = np.zeros((side, side)), side, 100.0, 0
    while step >= 2:
        half, count = step // 2, side // step
        at = [(i, j) for i in range(0, side, step) for j in range(0, side, step)]
        for (down, right), corners in (
            ((half, half), ((-half, -half), (-half, half), (half, -half), (half, half))),
            ((0, half), ((0, -half), (0, half), (-half, 0), (half, 0))),
            ((half, 0), ((0, -half), (0, half), (-half, 0), (half, 0))),
        ):
            for n, (i, j) in enumerate(at):
                y, x = i + down, j + right
                mean = sum(area[(y + a) % side, (x + b) % side] for a, b in corners) / 4
                area[y, x] = mean + wibble**2 * noise[used + n]
            used += count * count
        step, wibble = half, wibble / decay
    assert used == side * side - 1
    return (area - area.min()) / (area.max() - area.min())


@pytest.mark.parametrize("decay", [3, 1.75])
@pytest.mark.parametrize("side", [2, 8, 32])
def test_plasma(side: int, decay: float) -> None:
    key = Key(1, "fog", 2, np.array([5, 6]))
    noise = 2 * uniforms(key, 4, side * side - 1) - 1
    found = plasma(key, 4, side, decay)
    for row in range(2):
        np.testing.assert_allclose(found[row], diamond_square(noise[row], side, decay), atol=1e-12)


def test_covering_and_spread() -> None:
    assert [covering(*size) for size in ((8, 8), (9, 8), (28, 32), (224, 33))] == [8, 16, 32, 256]
    assert spread(np.array([[[2.0, 4.0]], [[3.0, 3.0]]])).tolist() == [[[0, 1]], [[0, 0]]]


@pytest.mark.parametrize(("severity", "thick", "decay"), [(1, 0.2, 3), (2, 0.5, 3), (3, 0.75, 2.5), (4, 1, 2), (5, 1.5, 1.75)])
@pytest.mark.parametrize("size", [(32, 32), (20, 45)])
def test_fog(severity: int, thick: float, decay: float, size: tuple[int, int]) -> None:
    images, ids = pictures(2, 3, *size), np.array([3, 8])
    cloud = plasma(Key(9, "fog", severity, ids), 0, covering(*size), decay)[:, None, : size[0], : size[1]]
    x = images / 255
    top = x.max((1, 2, 3), keepdims=True)
    check(corruption("fog")(images, severity, 9, ids), (x + thick * cloud) * top / (top + thick))
    black = np.zeros((1, 1, *size), np.uint8)
    assert not corruption("fog")(black, severity, 9, ids[:1]).any()


@pytest.mark.parametrize(("severity", "more"), [*enumerate((0.05, 0.1, 0.15, 0.2, 0.3), 1)])
def test_brightness(severity: int, more: float) -> None:
    images = pictures(1, 3, 12, 12)
    images[0, :, 0, :3] = [[0, 255, 0], [0, 255, 7], [0, 255, 0]]
    expected = np.empty((3, 12, 12))
    for i in range(12):
        for j in range(12):
            hue, saturation, value = colorsys.rgb_to_hsv(*images[0, :, i, j] / 255)
            expected[:, i, j] = colorsys.hsv_to_rgb(hue, saturation, min(value + more, 1))
    check(corruption("brightness")(images, severity, 0, np.arange(1))[0], expected)
    grey = pictures(2, 1)
    check(corruption("brightness")(grey, severity, 0, np.arange(2)), grey / 255 + more)


@pytest.mark.parametrize(
    ("severity", "mean", "deviation", "zoom", "threshold", "radius", "sigma", "kept"),
    [
        (1, 0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (2, 0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (3, 0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (4, 0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (5, 0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 32), (3, 48)])
def test_snow(
    severity: int,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    kept: float,
    channels: int,
    size: int,
) -> None:
    images, ids, grow = pictures(2, channels, size, size), np.array([0, 4]), max(1, size / 32)
    key = Key(6, "snow", severity, ids)
    found = corruption("snow")(images, severity, 6, ids)
    angles = -135 + 90 * uniforms(key, 1)
    assert (angles > -135).all()
    assert (angles < -45).all()
    for row in range(2):
        layer = mean + deviation * normals(key, 0, 1, size, size)[row, 0]
        middle = int(np.ceil(size / (zoom * grow)))
        top = (size - middle) // 2
        layer = ndimage.zoom(layer[top : top + middle, top : top + middle], zoom * grow, order=1)
        trim = (len(layer) - size) // 2
        layer = layer[trim : trim + size, trim : trim + size]
        layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
        layer = motion(layer[None, None].astype(np.float32), radius * grow, sigma * grow, angles[row : row + 1])[0, 0]
        x = images[row] / 255
        grey = np.tensordot([0.299, 0.587, 0.114], x, 1) if channels == 3 else x[0]
        white = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
        check(found[row], white + layer + np.rot90(layer, 2))


@pytest.mark.parametrize(("severity", "kept", "cover"), FROST)
def test_frost(severity: int, kept: float, cover: float) -> None:
    images, ids = pictures(3, 3, 24, 40) // 2, np.arange(3)
    layer = ice(Key(2, "frost", severity, ids), 24, 40)
    expected = kept * images / 255 + cover * layer[:, None] * np.array([0.8, 0.9, 1])[:, None, None]
    check(corruption("frost")(images, severity, 2, ids), expected)
    grey = images[:, :1]
    check(corruption("frost")(grey, severity, 2, ids), kept * grey / 255 + cover * layer[:, None] * 0.8815)


def test_ice_covers_unevenly_and_differs_by_row() -> None:
    found = ice(Key(0, "frost", 1, np.arange(50)), 32, 32)
    np.testing.assert_allclose(found.min((1, 2)), 0)
    np.testing.assert_allclose(found.max((1, 2)), 1)
    assert 0.2 < found.mean() < 0.6
    assert found.std((1, 2)).min() > 0.08
    assert np.abs(np.corrcoef(found.reshape(50, -1)) - np.eye(50)).max() < 0.9
