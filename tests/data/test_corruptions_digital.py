"""Contrast by its formula, elastic transform by a loop, pixelate and JPEG as Pillow does them on 8-bit images."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from quorate.data.corruptions import corruption
from quorate.data.corruptions.digital import affine
from quorate.data.corruptions.drawing import Key, uniforms

ELASTIC = [(1, 0, 0, 0.08), (2, 0.05, 0.2, 0.07), (3, 0.08, 0.06, 0.06), (4, 0.1, 0.04, 0.05), (5, 0.1, 0.03, 0.03)]


def pictures(rows: int = 2, channels: int = 3, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, channels, height, width), dtype=np.uint8)


@pytest.mark.parametrize(("severity", "kept"), [*enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1)])
def test_contrast(severity: int, kept: float) -> None:
    images = pictures(3, 3, 20, 30)
    mean = images.mean((2, 3), keepdims=True)
    found = corruption("contrast")(images, severity, 0, np.arange(3))
    assert np.abs(found - (kept * (images - mean) + mean)).max() <= 0.5 + 1e-3


def mirrored(place: float, size: int, edge_twice: bool) -> list[tuple[int, float]]:
    """(index, weight) of linear interpolation at a place, mirrored about the edge pixel or about its outer edge."""
    low = int(np.floor(place))
    found = []
    for index, weight in ((low, 1 - (place - low)), (low + 1, place - low)):
        while not 0 <= index < size:
            if index < 0:
                index = -index - edge_twice
            else:
                index = 2 * (size - 1) - index + edge_twice
        found.append((index, weight))
    return found


def look(x: np.ndarray, y: float, z: float, edge_twice: bool) -> float:
    rows, columns = mirrored(y, x.shape[0], edge_twice), mirrored(z, x.shape[1], edge_twice)
    return sum(a * b * x[i, j] for i, a in rows for j, b in columns)


@pytest.mark.parametrize(("severity", "amplitude", "smoothness", "corner"), ELASTIC)
@pytest.mark.parametrize("size", [(32, 32), (14, 19)])
def test_elastic(severity: int, amplitude: float, smoothness: float, corner: float, size: tuple[int, int]) -> None:
    images, ids, (height, width) = pictures(2, 1, *size), np.array([2, 3]), size
    side, key = min(size), Key(5, "elastic_transform", severity, ids)
    found = corruption("elastic_transform")(images, severity, 5, ids)
    moves = side * corner * (2 * uniforms(key, 0, 3, 2) - 1)
    field = 2 * uniforms(key, 1, 2, *size) - 1
    for row in range(2):
        half, centre = side // 3, np.array([height // 2, width // 2])
        corners = centre + half * np.array([[1, 1], [1, -1], [-1, -1]])
        forward = np.linalg.lstsq(np.c_[corners, np.ones(3)], corners + moves[row], rcond=None)[0].T
        back = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
        x, turned, expected = images[row, 0] / 255, np.empty(size), np.empty(size)
        for i in range(height):
            for j in range(width):
                turned[i, j] = look(x, *(back @ [i, j, 1]), edge_twice=False)
        down, right = (
            side * amplitude * ndimage.gaussian_filter(f, side * smoothness, mode="reflect", truncate=3) for f in field[row]
        )
        for i in range(height):
            for j in range(width):
                expected[i, j] = look(turned, i + down[i, j], j + right[i, j], edge_twice=True)
        assert np.abs(found[row, 0] - 255 * expected).max() <= 0.5 + 1e-2


def test_affine_moves_the_corners_and_channels_alike() -> None:
    moves = np.random.default_rng(0).uniform(-2, 2, (4, 3, 2))
    corners = np.array([[26, 30], [26, 10], [6, 10]])  # of 32×40: centre (16, 20), half side 10
    for back, move in zip(affine(32, 40, moves), moves, strict=True):
        np.testing.assert_allclose(np.c_[corners + move, np.ones(3)] @ back.T, corners, atol=1e-9)
    grey = pictures(1, 1)
    out = corruption("elastic_transform")(grey.repeat(3, 1), 4, 0, np.arange(1))
    assert (out == out[:, :1]).all()
    np.testing.assert_array_equal(out[:, :1], corruption("elastic_transform")(grey, 4, 0, np.arange(1)))


@pytest.mark.parametrize(("severity", "share"), [*enumerate((0.95, 0.9, 0.85, 0.75, 0.65), 1)])
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (20, 50)])
def test_pixelate(severity: int, share: float, size: tuple[int, int]) -> None:
    images, (height, width) = pictures(2, 3, *size), size
    found = corruption("pixelate")(images, severity, 0, np.arange(2))
    for row in range(2):
        small = Image.fromarray(images[row].transpose(1, 2, 0)).resize((int(width * share), int(height * share)), Image.BOX)
        expected = np.asarray(small.resize((width, height), Image.BOX)).transpose(2, 0, 1)
        assert np.abs(found[row] - expected.astype(int)).max() <= 1  # 8 bits between the two steps there


@pytest.mark.parametrize(("severity", "quality"), [*enumerate((80, 65, 58, 50, 40), 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg(severity: int, quality: int, channels: int) -> None:
    images = pictures(2, channels, 24, 40)
    found = corruption("jpeg_compression")(images, severity, 0, np.arange(2))
    for row in range(2):
        file = io.BytesIO()
        Image.fromarray(images[row].transpose(1, 2, 0).squeeze()).save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file)).reshape(24, 40, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(found[row], expected)


@pytest.mark.parametrize("name", ["pixelate", "jpeg_compression"])
def test_without_pillow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'need Pillow: pip install "quorate\[train\]"'):
        corruption(name)(pictures(), 1, 0, np.arange(2))
