"""Rows of image files: pixels as they are, in the order of the paths; every other mode, size, depth or kind of bundle is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.cli.predicting.row_file import Reading
from quorate.cli.predicting.rows import Rows, open_rows
from quorate.cli.usage import UsageError
from quorate.runtime.program import Port

Image = pytest.importorskip("PIL.Image")

RGB = Port("x", "uint8", (3, 5, 7))


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(name: str, values: np.ndarray, **options: Any) -> None:
    path = Path("in") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def read(port: Port, size: int = 100, start: int = 0, **reading: Any) -> tuple[np.ndarray, list[str]]:
    rows: Rows = open_rows("in", port, Reading(**reading))
    chunks = list(rows.chunks(size, start))
    return np.concatenate([x for c in chunks for x in c.runs()]), [i for c in chunks for i in c.ids.tolist()]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_come_back_channels_first(channels: int) -> None:
    names = ["b.png", "a/2.png", "a/10.PNG", "c.tiff"]
    images = {name: pixels(5, 7, channels, seed=k) for k, name in enumerate(names)}
    for name, values in images.items():
        save(name, values[..., 0] if channels == 1 else values)
    Path("in/notes.txt").write_text("")
    port = Port("x", "uint8", (channels, 5, 7))
    want = np.stack([images[name].transpose(2, 0, 1) for name in sorted(names)])
    for size in (1, 3, 4):
        found, ids = read(port, size, size if size < 4 else 0)
        assert (found == want[size if size < 4 else 0 :]).all()
        assert found.dtype == np.uint8
        assert ids == sorted(names)[size if size < 4 else 0 :]
    assert open_rows("in", port, Reading()).row_bytes() == channels * 35
    single = open_rows("in/b.png", port, Reading())
    assert [chunk.ids.tolist() for chunk in single.chunks(5)] == [["b.png"]]


def test_scale_divides() -> None:
    values = pixels(5, 7, 3)
    save("a.png", values)
    port = Port("x", "float32", (3, 5, 7))
    found = read(port, scale=255.0)[0]
    assert found.dtype == np.float32
    assert (found[0] == values.transpose(2, 0, 1).astype(np.float32) / np.float32(255)).all()
    assert (read(port, scale=1.0)[0][0] == values.transpose(2, 0, 1)).all()
    assert read(Port("x", "float16", (3, 5, 7)), scale=128.0)[0].dtype == np.float16


def test_orientation_is_followed() -> None:
    values = pixels(7, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    save("a.png", values, exif=exif)
    assert (read(RGB)[0][0] == np.rot90(values, -1).transpose(2, 0, 1)).all()


def test_free_sizes() -> None:
    save("a.png", pixels(5, 7, 3))
    save("b.png", pixels(6, 7, 3))
    save("c.png", pixels(6, 7, 3))
    (chunk,) = open_rows("in", Port("x", "uint8", (3, None, 7)), Reading()).chunks(9)
    assert [x.shape for x in chunk.runs()] == [(1, 3, 5, 7), (2, 3, 6, 7)]
    assert chunk.shown(np.array([False, True, True])) == f"{Path('in/b.png')}, {Path('in/c.png')}"


def deep() -> None:
    Path("in").mkdir()
    Path("in/a.ppm").write_bytes(b"P6 7 5 65535\n" + bytes(5 * 7 * 6))


def animated() -> None:
    Path("in").mkdir()
    frames = [Image.fromarray(pixels(5, 7, 3, seed=k)) for k in range(2)]
    frames[0].save("in/a.png", save_all=True, append_images=frames[1:])


def truncated() -> None:
    save("a.png", pixels(5, 7, 3))
    data = Path("in/a.png").read_bytes()
    Path("in/a.png").write_bytes(data[: len(data) // 2])


def text() -> None:
    Path("in").mkdir()
    Path("in/a.jpg").write_text("no image")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: save("a.png", pixels(5, 7)), "is an image of mode L: the bundle takes .* RGB of 8 bits; convert it"),
        (lambda: save("a.png", pixels(5, 7, 4)), "is an image of mode RGBA"),
        (lambda: save("a.png", pixels(7, 5, 3)), r"has 5×7 pixels, a row of shape \(3, 7, 5\)"),
        (lambda: save("a.png", pixels(5, 7, 3), transparency=(1, 2, 3)), "has a transparent colour"),
        (deep, "is an image of mode RGB of 16 bits"),
        (animated, "holds 2 pictures"),
        (truncated, "can't be read as an image"),
        (text, "can't be read as an image"),
    ],
)
def test_images_that_do_not_fit(make: Any, expected: str) -> None:
    make()
    with pytest.raises(ValueError, match=expected) as caught:
        read(RGB)
    assert str(next(Path("in").iterdir())) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    save("a.png", pixels(5, 7, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match="decompression bomb"):
        read(RGB)


@pytest.mark.parametrize(
    ("port", "reading", "expected"),
    [
        (Port("x", "float32", (3, 5, 7)), {}, "say what they are divided by, such as --scale 255"),
        (Port("x", "float32", (3, 5, 7)), {"scale": 0.0}, "--scale 0: expected a finite number > 0"),
        (Port("x", "float32", (3, 5, 7)), {"scale": np.inf}, "--scale inf: expected a finite number > 0"),
        (RGB, {"scale": 255.0}, "--scale 255 makes fractions, the bundle takes rows of uint8"),
        (Port("x", "int64", (3, 5, 7)), {}, "images are uint8, the bundle takes rows of int64"),
        (Port("x", "uint8", (35,)), {}, r"rows of shape \(C, H, W\) with C 1, 3, 4: the bundle takes"),
        (Port("x", "uint8", (2, 5, 7)), {}, r"rows of shape \(C, H, W\)"),
        (RGB, {"ids": "name"}, "--ids is not for image files"),
        (RGB, {"cast": True}, "--cast is not for image files"),
        (RGB, {"array": "x"}, "--array is for .npz"),
    ],
)
def test_bundles_and_options_that_images_do_not_fit(port: Port, reading: dict[str, Any], expected: str) -> None:
    save("a.png", pixels(5, 7, 3))
    with pytest.raises((ValueError, UsageError), match=expected):
        read(port, **reading)


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    save("a.png", pixels(5, 7, 3))
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image")
    with pytest.raises(ImportError, match=r"pip install .pillow."):
        read(RGB)
