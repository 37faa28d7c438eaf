"""Image files of every kind, made here, against closed forms and NumPy."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from quorate.data.images.decoding import Decoding, careful, decode, telling
from quorate.data.store import Unreadable

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
BACK = (10, 200, 90)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(shape: tuple[int, int], bits: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG by hand (ISO 15948, §5 and §11): what Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    width = len(rows) // shape[0]
    lines = b"".join(b"\0" + rows[i * width : (i + 1) * width] for i in range(shape[0]))
    head = struct.pack(">IIBBBBB", shape[1], shape[0], bits, colour, 0, 0, 0)
    more = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, order: str = "<", **tags: int) -> bytes:
    """An uncompressed one-strip TIFF by hand (TIFF 6.0, §2), grey: what Pillow cannot write."""
    height, width = values.shape
    entries = {256: width, 257: height, 258: values.itemsize * 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: values.nbytes}
    entries |= {int(key[1:]): value for key, value in tags.items()}
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    directory = struct.pack(order + "H", len(entries)) + b"".join(
        struct.pack(order + "HHI", tag, 4, 1) + struct.pack(order + "I", value) for tag, value in sorted(entries.items())
    )
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8 + len(content)) + content + directory + struct.pack(order + "I", 0)


def grey_of(rgb: np.ndarray) -> np.ndarray:
    return np.round(rgb.astype(float) @ [0.299, 0.587, 0.114])


def close(found: np.ndarray, expected: np.ndarray, by: float = 1) -> None:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).max() <= by


def test_colour_and_grey_and_bits_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"  # the content says what it is, not the name
    path.write_bytes(saved(Image.fromarray(COLOUR)))
    for source in (path, str(path), path.read_bytes()):
        found = decode(source, Decoding())
        np.testing.assert_array_equal(found, COLOUR.transpose(2, 0, 1))
        assert found.flags.c_contiguous
    close(decode(path, Decoding(channels=1)), grey_of(COLOUR)[None])
    for kind in ("PNG", "BMP", "TIFF", "PPM", "GIF"):
        grey = saved(Image.fromarray(GREY), kind)
        np.testing.assert_array_equal(decode(grey, Decoding(channels=1)), GREY[None])
        np.testing.assert_array_equal(decode(grey, Decoding(channels=3)), np.stack([GREY] * 3))
        bits = saved(Image.fromarray(GREY > 99), kind)
        np.testing.assert_array_equal(decode(bits, Decoding(channels=1)), np.where(GREY > 99, 255, 0)[None])
    smooth = np.linspace(0, 255, 256 * 3).reshape(16, 16, 3).astype(np.uint8)
    for kind in ("JPEG", "WEBP"):
        close(decode(saved(Image.fromarray(smooth), kind, quality=100), Decoding()), smooth.transpose(2, 0, 1), by=24)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(COLOUR), "JPEG2000"), Decoding()), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("background", [BACK, (255, 255, 255), (0, 0, 0)])
def test_alpha_is_laid_over_the_background(background: tuple[int, int, int]) -> None:
    a = ALPHA[..., None] / 255
    rgba = saved(Image.fromarray(np.dstack([COLOUR, ALPHA])))
    expected = a * COLOUR + (1 - a) * np.array(background)
    close(decode(rgba, Decoding(background=background)), expected.transpose(2, 0, 1))
    close(decode(rgba, Decoding(background=background, channels=1)), grey_of(expected)[None], by=2)
    la = saved(Image.fromarray(np.dstack([GREY, ALPHA])))
    expected = a * GREY[..., None] + (1 - a) * np.array(background)
    close(decode(la, Decoding(background=background)), expected.transpose(2, 0, 1))
    deep = np.dstack([GREY, ALPHA]).astype(">u2") * 257
    close(decode(png((5, 7), 16, 4, deep.tobytes()), Decoding(background=background)), expected.transpose(2, 0, 1))


def test_palettes_and_transparent_colours() -> None:
    indices = np.array([[0, 1, 2, 1]], np.uint8)
    palette = np.array([[255, 0, 7], [0, 250, 3], [1, 2, 3]], np.uint8)
    plain = png((1, 4), 8, 3, indices.tobytes(), PLTE=palette.tobytes())
    np.testing.assert_array_equal(decode(plain, Decoding()), palette[indices].transpose(2, 0, 1))
    see_through = png((1, 4), 8, 3, indices.tobytes(), PLTE=palette.tobytes(), tRNS=b"\xff\x00")
    under = np.where(indices[..., None] == 1, BACK, palette[indices])
    np.testing.assert_array_equal(decode(see_through, Decoding(background=BACK)), under.transpose(2, 0, 1))
    for bits, values, expected in ((8, b"\5\6", (90, 6)), (16, b"\0\5\xff\xff", (90, 255)), (1, b"\x40", (0, 90))):
        key = b"\0\1" if bits == 1 else b"\0\5"
        found = decode(png((1, 2), bits, 0, values, tRNS=key), Decoding(background=BACK))
        np.testing.assert_array_equal(found[2, 0], expected)
    for bits, colour, values in ((2, 0, b"\x60"), (4, 0, b"\x12"), (16, 2, bytes(12))):
        with pytest.raises(Unreadable, match=r"a transparent colour in a PNG of raw mode (L;2|L;4|RGB;16B)"):
            decode(png((1, 2), bits, colour, values, tRNS=bytes(6 if colour else 2)), Decoding())


def test_cmyk() -> None:
    inks = RNG.integers(0, 256, (5, 7, 4)).astype(np.uint8)
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
    close(decode(saved(Image.fromarray(inks, "CMYK"), "TIFF"), Decoding()), expected.transpose(2, 0, 1))
    flat = np.broadcast_to(np.uint8([30, 120, 200, 40]), (8, 8, 4))
    expected = np.broadcast_to((255 - flat[0, 0, :3].astype(float)) * 215 / 255, (8, 8, 3))
    close(decode(saved(Image.fromarray(flat, "CMYK"), "JPEG", quality=100), Decoding()), expected.transpose(2, 0, 1), by=3)


def test_sixteen_bits_are_scaled_by_257() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(every / 257 + 0.5)[None]
    sources = {
        "png": png((256, 256), 16, 0, every.astype(">u2").tobytes()),
        "little": tiff(every),
        "big": tiff(every, ">"),
        "pgm": b"P5 256 256 65535\n" + every.astype(">u2").tobytes(),
        "written": saved(Image.fromarray(every), "TIFF"),
    }
    for source in sources.values():
        np.testing.assert_array_equal(decode(source, Decoding(channels=1)), expected)
    np.testing.assert_array_equal(decode(tiff(every, t262=0), Decoding(channels=1)), 255 - expected)
    for colour in (2, 6):  # with and without alpha, here opaque
        deep = np.dstack([every, every[::-1], every.T, *([every * 0 + 65535] if colour == 6 else [])])
        found = decode(png((256, 256), 16, colour, deep.astype(">u2").tobytes()), Decoding())
        close(found, (deep[..., :3] / 257).transpose(2, 0, 1), by=1)
    twelve = b"II*\0" + tiff(np.frombuffer(bytes([0x00, 0x0F, 0xFF]), np.uint8)[None], t256=2, t258=12)[4:]
    np.testing.assert_array_equal(decode(twelve, Decoding(channels=1)), [[[0, 255]]])


def test_sixteen_bits_are_told_of_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    deep = np.full((2, 2, 3), 515, ">u2")
    colours = [png((2, 2), 16, 2, deep.tobytes()), b"P6 2 2 65535\n" + deep.tobytes()]
    greys = [
        png((2, 2), 16, 0, deep[..., 0].tobytes()),
        tiff(np.uint16(deep[..., 0])),
        b"P5 2 2 65535\n" + deep[..., 0].tobytes(),
    ]
    flat = [saved(Image.fromarray(GREY)), saved(Image.fromarray(COLOUR), "PPM"), saved(Image.fromarray(COLOUR), "JPEG")]
    for source, told in [*((each, True) for each in colours + greys), *((each, False) for each in flat)]:
        with telling("photos"):
            for _ in range(2):
                decode(source, Decoding())
        assert capsys.readouterr().err == "photos: images become 8-bit: 16-bit values are divided by 257\n" * told


@pytest.mark.parametrize(
    ("values", "tags"),
    [(np.int32([[1, 70000]]), {"t339": 2}), (np.int16([[-1, 1]]), {"t339": 2}), (np.float32([[0, 1]]), {"t339": 3})],
)
def test_values_without_a_range_are_refused(values: np.ndarray, tags: dict[str, int]) -> None:
    with pytest.raises(Unreadable, match="signed or floating-point samples"):
        decode(tiff(values, **tags), Decoding())
    with pytest.raises(Unreadable, match="mode I has no known range: convert it to 8 or 16 bits"):
        decode(tiff(np.uint32([[0, 1]])), Decoding())
    lab = Image.frombytes("LAB", (2, 2), bytes(12))
    with pytest.raises(Unreadable, match="mode LAB has no known range"):
        decode(saved(lab, "TIFF"), Decoding())


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, pixels in (("PNG", COLOUR), ("TIFF", COLOUR), ("PNG", GREY), ("PNG", GREY.astype(np.uint16) * 257)):
        found = decode(saved(Image.fromarray(pixels), kind, exif=exif), Decoding(channels=3 if pixels.ndim == 3 else 1))
        eight = pixels if pixels.dtype == np.uint8 else GREY
        np.testing.assert_array_equal(found, np.atleast_3d(TURNS[orientation](eight)).transpose(2, 0, 1))


def weights(count: int, size: int, start: float, end: float) -> np.ndarray:
    """(size, count): the triangle filter of the pixels of start..end, as wide as the area that becomes one pixel, at least 1."""
    step = (end - start) / size
    distance = start + (np.arange(size)[:, None] + 0.5) * step - np.arange(count) - 0.5
    triangle = np.maximum(0, 1 - np.abs(distance) / max(step, 1))
    return triangle / triangle.sum(1, keepdims=True)


def test_crop_stretch_pad() -> None:
    source = saved(Image.fromarray(COLOUR))  # 5 high, 7 wide
    chw = COLOUR.transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(source, Decoding(size=5)), chw[:, :, 1:6])
    tall = saved(Image.fromarray(COLOUR.swapaxes(0, 1).copy()))
    np.testing.assert_array_equal(decode(tall, Decoding(size=5)), chw.swapaxes(1, 2)[:, 1:6])
    padded = decode(source, Decoding(size=7, resize="pad", background=BACK))
    np.testing.assert_array_equal(padded[:, 1:6], chw)
    np.testing.assert_array_equal(padded[:, [0, 6]], np.broadcast_to(np.reshape(BACK, (3, 1, 1)), (3, 2, 7)))
    grey = decode(source, Decoding(size=7, resize="pad", background=BACK, channels=1))
    assert grey[0, 0].tolist() == [round(0.299 * 10 + 0.587 * 200 + 0.114 * 90)] * 7
    for size in (2, 3, 4, 7, 16):
        high, wide = weights(5, size, 0, 5), weights(7, size, 0, 7)
        close(decode(source, Decoding(size=size, resize="stretch")), high @ chw @ wide.T, by=1.01)
        close(decode(source, Decoding(size=size)), high @ chw @ weights(7, size, 1, 6).T, by=1.01)
    closer = decode(source, Decoding(size=14, resize="pad"))
    close(closer[:, 2:12], weights(5, 10, 0, 5) @ chw @ weights(7, 14, 0, 7).T, by=1.01)


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1), (3, 2)])
def test_extreme_sizes(resize: Any, shape: tuple[int, int]) -> None:
    found = decode(saved(Image.fromarray(np.full(shape, 7, np.uint8))), Decoding(size=4, channels=1, resize=resize))
    assert found.shape == (1, 4, 4)
    assert 7 in found  # the image does not vanish between its margins
    assert resize == "pad" or (found == 7).all()


def test_unreadable_files(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = saved(noise, kind)
        for part in (whole[: len(whole) // 2], whole[:30], whole[:3]):
            with pytest.raises(Unreadable) as caught:
                decode(part, Decoding())
            assert "\n" not in str(caught.value)
            assert 0 < len(str(caught.value)) <= 160
    for content in (b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"):
        with pytest.raises(Unreadable, match=r"not an image in one of the formats PNG, JPEG, BMP"):
            decode(content, Decoding())
    frames = {"save_all": True, "append_images": [noise.transpose(Image.Transpose.ROTATE_90)]}
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        with pytest.raises(Unreadable, match="2 pictures in one file, expected one"):
            decode(saved(noise, kind, **frames), Decoding())
    assert decode(saved(noise, "MPO", **frames), Decoding()).shape == (3, 64, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with careful(), pytest.raises(Unreadable, match="4096 pixels"):
        decode(saved(noise), Decoding())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Unreadable, match="64×64 pixels, more than Pillow's limit of 4000"):
            decode(saved(noise), Decoding())
    with pytest.raises(Unreadable, match="decompression bomb"):
        decode(png((60000, 60000), 8, 0, b""), Decoding())


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (MemoryError(), "MemoryError"),
        (OSError("out of memory when reading image file"), "out of memory when reading image file"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError("broken data stream when reading image file"), None),
        (MemoryError, "MemoryError"),
    ],
)
@pytest.mark.parametrize("step", ["read", "open", "load"])
def test_failures_that_may_pass_are_no_property_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: Any, reason: str | None
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(COLOUR)))

    def fails(*_: Any, **__: Any) -> None:
        raise failure

    place, name = {"read": (Path, "read_bytes"), "open": (Image, "open"), "load": (ImageFile.ImageFile, "load")}[step]
    monkeypatch.setattr(place, name, fails)
    said = "^broken data" if reason is None else f"^{path} cannot be read: {reason}: mend that and start again$"
    with pytest.raises(ValueError, match=said) as caught:
        decode(path, Decoding())
    assert isinstance(caught.value, Unreadable) == (reason is None)
    monkeypatch.undo()
    for gone in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(ValueError, match=rf"^{gone} cannot be read: (Is a directory|No such file or directory): ") as caught:
            decode(gone, Decoding())
        assert not isinstance(caught.value, Unreadable)


def test_settings_hold_what_pillow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Decoding(size=3, background=[1, 2, 3]).settings()
    assert {"size": 3, "channels": 3, "resize": "crop", "background": [1, 2, 3]}.items() <= before.items()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    assert Decoding(size=3, background=[1, 2, 3]).settings() != before
    monkeypatch.undo()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert Decoding(size=3, background=[1, 2, 3]).settings() != before


SMALL = [saved(Image.fromarray(COLOUR), kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000")]


@given(st.sampled_from(SMALL), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), st.integers(0, 10**6))
def test_damage_is_unreadable_or_harmless(content: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(content)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    with careful():
        try:
            found = decode(bytes(damaged[: cut % (2 * len(damaged)) + 1]), Decoding(size=3))
        except Unreadable:
            return
        assert (found.shape, found.dtype) == ((3, 3, 3), np.uint8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size must be a positive integer, the side in pixels, or None, got 0"),
        ({"size": 2.0}, r"size must be .* got 2\.0"),
        ({"size": True}, "size must be .* got True"),
        ({"channels": 4}, r"channels must be 1 \(grey\) or 3 \(RGB\), got 4"),
        ({"channels": True}, "channels must be"),
        ({"resize": "squash"}, "resize must be 'crop', 'stretch' or 'pad', got 'squash'"),
        ({"background": (0, 0)}, r"background must be \(red, green, blue\), whole numbers in 0\.\.255, got \(0, 0\)"),
        ({"background": (0, 0, 256)}, "background must be"),
        ({"background": "red"}, "background must be"),
        ({"background": 3}, r"background must be .* got 3$"),
        ({"background": {1, 2, 3}}, r"background must be .* got \{1, 2, 3\}$"),
    ],
)
def test_refuses_settings(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Decoding(**options)
    assert Decoding(background=[1, 2, 3]) == Decoding(background=(1, 2, 3))


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"reading images needs Pillow.*quorate\[train\]"):
        decode(b"", Decoding())
