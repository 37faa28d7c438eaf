"""idx files written here by hand from the format's description, whole and damaged, plain and gzipped."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.data import FASHION_MNIST_CLASSES, Augmentation, idx
from quorate.data.idx import read_idx
from quorate.data.partition import partition

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (200, 7, 6)).astype(np.uint8), (np.arange(200) % 5).astype(np.uint8)
TEST = RNG.integers(0, 256, (30, 7, 6)).astype(np.uint8), (np.arange(30)[::-1] % 5).astype(np.uint8)


def encode(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    head = bytes([0, 0, code, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def folder(root: Path, zipped: bool = False, **changes: Any) -> Path:
    files = {
        "train-images-idx3-ubyte": TRAIN[0],
        "train-labels-idx1-ubyte": TRAIN[1],
        "t10k-images-idx3-ubyte": TEST[0],
        "t10k-labels-idx1-ubyte": TEST[1],
    }
    for name, array in files.items():
        content = encode(changes.get(name.rsplit("-", 1)[0].replace("-", "_").rsplit("_idx", 1)[0], array))
        (root / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return root


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (0, 2), (1, 1, 1, 2)])
@pytest.mark.parametrize("zipped", [False, True])
def test_reads_every_dtype_and_rank_by_content_not_name(tmp_path: Path, dtype: str, shape: tuple, zipped: bool) -> None:
    array = (RNG.standard_normal(shape) * 50).astype(dtype)
    path = tmp_path / ("plain" if zipped else "plain.gz")  # the name says the opposite
    path.write_bytes(gzip.compress(encode(array)) if zipped else encode(array))
    found = read_idx(str(path))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    assert found.flags.writeable


WHOLE = encode(np.arange(24, dtype=np.int32).reshape(4, 6))
HUGE = b"\0\0\x0c\x03" + b"\xff" * 12 + b"\0" * 96

DAMAGE = {
    "empty": (b"", "idx magic .* found no bytes"),
    "three bytes": (b"\0\0\x08", "found 00 00 08"),
    "no zeros": (b"\1" + WHOLE[1:], "found 01 00 0c 02"),
    "dtype code": (b"\0\0\x0a\2" + WHOLE[4:], "a dtype code in .*'08'.* found 00 00 0a 02"),
    "no axes": (b"\0\0\x08\0" + WHOLE[4:], "1 to 32 axes, found 00 00 08 00"),
    "too many axes": (b"\0\0\x08\x40" + b"\0\0\0\1" * 64 + b"\0", "1 to 32 axes, found 00 00 08 40"),
    "sizes cut": (WHOLE[:9], "expected 2 axis sizes of 4 bytes, found 5 bytes"),
    "values cut": (WHOLE[:-1], r"expected 96 bytes of values for shape \(4, 6\), found 95"),
    "values missing": (WHOLE[:12], r"expected 96 bytes of values for shape \(4, 6\), found"),
    "surplus": (WHOLE + b"\0", r"expected 96 bytes of values for shape \(4, 6\), found more"),
    "sizes too large": (HUGE, r"for shape \(4294967295, 4294967295, 4294967295\), found a file that holds at most"),
    "little-endian sizes": (WHOLE[:4] + struct.pack("<II", 4, 6) + WHOLE[12:], r"\(67108864, 100663296\)"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", DAMAGE)
def test_refuses_what_breaks_the_format(tmp_path: Path, kind: str, zipped: bool) -> None:
    content, said = DAMAGE[kind]
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=said) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :] if at >= 0 else flip(content, at + len(content))


ZIPPED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        ZIPPED[:-9],
        ZIPPED[:-4],
        ZIPPED[:12],
        ZIPPED[:2],
        flip(ZIPPED, -8),  # CRC
        flip(ZIPPED, -1),  # length
        flip(ZIPPED, 15),  # deflate stream
        flip(ZIPPED, 2),  # compression method
        ZIPPED + b"garbage",
    ],
    ids=["stream cut", "trailer cut", "header only", "magic only", "CRC", "length", "stream", "method", "garbage"],
)
def test_refuses_damaged_gzip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.gz: expected") as caught:
        read_idx(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="expected an idx file, found none at"):
            read_idx(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_default(tmp_path: Path, zipped: bool) -> None:
    data = idx(folder(tmp_path, zipped))
    for part, rows in zip(("train", "validation", "calibration"), partition(TRAIN[1], [0.8, 0.1, 0.1], 0), strict=True):
        split = data.splits()[part]
        np.testing.assert_array_equal(split.ids, rows)
        np.testing.assert_array_equal(split.x[:, 0], TRAIN[0][rows])
        np.testing.assert_array_equal(split.y, TRAIN[1][rows])
    np.testing.assert_array_equal(data.test.x[:, 0], TEST[0])
    np.testing.assert_array_equal(data.test.y, TEST[1])
    np.testing.assert_array_equal(data.test.ids, 200 + np.arange(30))
    assert data.shape == (1, 7, 6)
    assert data.classes == ("0", "1", "2", "3", "4")
    assert data.ood == {}
    assert data.augmentation == Augmentation(pad=2)
    assert data.name == "idx"


def test_held_out_classes_keep_their_row_numbers(tmp_path: Path) -> None:
    data = idx(folder(tmp_path), held_out=(3, 0), seed=5, fractions=(0.5, 0.25, 0.1), classes=FASHION_MNIST_CLASSES[:5])
    assert data.classes == ("Trouser", "Pullover", "Coat")
    ids = np.concatenate([s.ids for s in (data.train, data.validation, data.calibration)])
    assert len(np.unique(ids)) == len(ids) == 102  # 0.85 of 120
    for split, (x, y), first in ((data.train, TRAIN, 0), (data.calibration, TRAIN, 0), (data.test, TEST, 200)):
        assert split.y is not None
        np.testing.assert_array_equal(np.array([1, 2, 4])[split.y], y[split.ids - first])
        np.testing.assert_array_equal(split.x[:, 0], x[split.ids - first])
    held = data.ood["held_out"]
    assert held.y is None
    np.testing.assert_array_equal(held.ids, 200 + np.flatnonzero(np.isin(TEST[1], (0, 3))))
    np.testing.assert_array_equal(held.x[:, 0], TEST[0][held.ids - 200])
    other = idx(tmp_path, held_out=(3, 0), seed=6, fractions=(0.5, 0.25, 0.1))
    assert not np.array_equal(data.train.ids, other.train.ids)


def test_ood_augmentation_and_name(tmp_path: Path) -> None:
    folder(tmp_path)
    np.savez(tmp_path / "flat.npz", x=TEST[0][:4], y=TEST[1][:4])
    np.savez(tmp_path / "deep.npz", x=TEST[0][:5, None])
    paths = {"flat": tmp_path / "flat.npz", "deep": str(tmp_path / "deep.npz")}
    data = idx(tmp_path, ood=paths, held_out=(1,), pad=0, flip=True, name="toy")
    assert list(data.ood) == ["flat", "deep", "held_out"]
    np.testing.assert_array_equal(data.ood["flat"].x[:, 0], TEST[0][:4])
    np.testing.assert_array_equal(data.ood["deep"].x[:, 0], TEST[0][:5])
    assert data.ood["flat"].ids.tolist() == [0, 1, 2, 3]
    assert data.augmentation == Augmentation(flip=True)
    assert data.name == "toy"
    assert idx(tmp_path, pad=0).augmentation is None
    np.savez(tmp_path / "wide.npz", x=TEST[0][:, :, :3])
    with pytest.raises(ValueError, match="in the ood 'wide' split"):
        idx(tmp_path, ood={"wide": tmp_path / "wide.npz"})
    np.savez(tmp_path / "floats.npz", x=TEST[0].astype(np.int16))
    with pytest.raises(ValueError, match=r"ood 'odd', .*floats.npz: x must be uint8"):
        idx(tmp_path, ood={"odd": tmp_path / "floats.npz"})
    with pytest.raises(ValueError, match=r"name for itself \(other OOD sets: \['held_out'\]\)"):
        idx(tmp_path, ood={"held_out": paths["flat"]}, held_out=(1,))


def test_plain_file_comes_before_gzip_and_kinds_mix(tmp_path: Path) -> None:
    folder(tmp_path)
    folder(tmp_path, zipped=True, t10k_labels=TEST[1][::-1].copy())
    np.testing.assert_array_equal(idx(tmp_path).test.y, TEST[1])
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    np.testing.assert_array_equal(idx(tmp_path).test.y, TEST[1][::-1])


def test_missing_part_lists_what_was_looked_for(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"looked for .*t10k-images-idx3-ubyte, .*t10k-images-idx3-ubyte\.gz"):
        idx(tmp_path)


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({"train_images": TRAIN[0][:, 0]}, {}, r"expected 3 axes of uint8, found shape \(200, 6\)"),
        ({"train_images": TRAIN[0].astype(np.int16)}, {}, "found shape .* of int16"),
        ({"t10k_labels": TEST[0]}, {}, "expected 1 axes of uint8"),
        ({"t10k_labels": TEST[1][1:]}, {}, "as many t10k labels as images, found 29 for 30"),
        ({"t10k_labels": TEST[1] + 1}, {}, r"test labels in 0\.\.4 for 5 classes, found 5"),
        ({"t10k_images": TEST[0][:, 1:]}, {}, "in the test split"),
        ({"t10k_images": TEST[0][:0], "t10k_labels": TEST[1][:0]}, {}, "found 200 and 0"),
        ({}, {"classes": ("a", "b")}, r"training labels in 0\.\.1 for 2 classes, found 4"),
        ({}, {"classes": "abcde"}, "sequence of names, got the one string 'abcde'"),
        ({}, {"classes": tuple("abcdef")}, r"none for 1 of 6 classes, such as \['f'\]"),
        ({}, {"held_out": (5,)}, r"different classes in 0\.\.4"),
        ({}, {"held_out": (0, 1, 2, 3)}, "at least two of 5"),
        ({"t10k_labels": TEST[1] * 0}, {"held_out": (1,)}, r"needs test images of them \(found 0\)"),
        ({}, {"fractions": (0.5, 0.5)}, "fractions must be 3"),
        ({}, {"pad": 6}, "pad=6 for 7×6 images"),
    ],
)
def test_refuses(tmp_path: Path, files: dict, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        idx(folder(tmp_path, **files), **options)
    assert "\n" not in str(caught.value)
