"""Data sets in the idx format of MNIST, Fashion-MNIST, KMNIST and EMNIST's like-named files.

Format (LeCun, Cortes, Burges: The MNIST Database, "FILE FORMATS FOR THE MNIST DATABASE"): big-endian throughout,

    bytes 0–1  zero     byte 2  dtype code     byte 3  number d of axes     then d × uint32 sizes, then the values

plain or inside gzip (RFC 1952), which begins with the bytes 1f 8b; the bytes tell, not the name.

Shapes: image files (N, H, W) uint8, label files (N,) uint8; splits (N, 1, H, W).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from quorate.data.arrays import assemble, class_names, numbered
from quorate.data.augment import Augmentation
from quorate.data.dataset import Data
from quorate.data.held_out import hold_out, kept_classes
from quorate.data.npz import one_line, read_npz
from quorate.data.split import Split

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_AXES = 32
INFLATION = 1032  # the most that deflate can shrink (zlib, "Maximum Compression Factor")
CHUNK = 1 << 20


class Readable(Protocol):
    """Anything with a `read`: a file or a gzip stream."""

    def read(self, size: int, /) -> bytes: ...


def read_bytes(stream: Readable, count: int) -> bytes:
    """Up to `count` bytes, in chunks, so that memory follows what is there and not what a header claims."""
    parts: list[bytes] = []
    while count > 0 and (part := stream.read(min(count, CHUNK))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def parse_idx(stream: Readable, most: int) -> np.ndarray:
    """The array in an open idx stream of at most `most` bytes; ValueError where it breaks the format."""
    magic = read_bytes(stream, 4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not 1 <= magic[3] <= MAX_AXES:
        raise ValueError(
            f"expected the idx magic 00 00, a dtype code in {[f'{c:02x}' for c in DTYPES]} and 1 to {MAX_AXES} axes, "
            f"found {magic.hex(' ') or 'no bytes'}"
        )
    sizes = read_bytes(stream, 4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError(f"expected {magic[3]} axis sizes of 4 bytes, found {len(sizes)} bytes")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    dtype = np.dtype(DTYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    if expected > most:
        raise ValueError(f"expected {expected} bytes of values for shape {shape}, found a file that holds at most {most}")
    values = read_bytes(stream, expected)
    if len(values) < expected:
        raise ValueError(f"expected {expected} bytes of values for shape {shape}, found {len(values)}")
    if stream.read(1):  # at the end of a gzip stream this also checks its CRC and length
        raise ValueError(f"expected {expected} bytes of values for shape {shape}, found more")
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def read_idx(path: str | Path) -> np.ndarray:
    """The array of an idx file, plain or gzipped as its first bytes say: the file's shape, native dtype.

    Raises FileNotFoundError; ValueError naming the file, what the format expects and what was found, for: a wrong magic,
    dtype code or number of axes, too few or surplus bytes, sizes that the file cannot hold, a damaged gzip stream.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected an idx file, found none at {path}: check the path")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not zipped:
                return parse_idx(file, most=size)
            with gzip.GzipFile(fileobj=file) as unzipped:
                return parse_idx(unzipped, most=size * INFLATION)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip stream, found {one_line(error)}: fetch it again") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}: not an idx file, or a damaged one") from error


def read_pair(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(images (N, 1, H, W), labels (N,)) of the part "train" or "t10k"; ValueError where they don't fit together."""
    found = []
    for stem, axes in ((f"{part}-images-idx3-ubyte", 3), (f"{part}-labels-idx1-ubyte", 1)):
        tried = [root / stem, root / f"{stem}.gz"]
        path = next((p for p in tried if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"expected {stem} or {stem}.gz in {root}, found neither: looked for {', '.join(map(str, tried))}"
            )
        values = read_idx(path)
        if values.dtype != np.uint8 or values.ndim != axes:
            raise ValueError(f"{path}: expected {axes} axes of uint8, found shape {values.shape} of {values.dtype}")
        found.append(values)
    images, labels = found
    if len(images) != len(labels):
        raise ValueError(f"{root}: expected as many {part} labels as images, found {len(labels)} for {len(images)}")
    return images[:, None], labels.astype(np.int64)


def read_ood(name: str, path: str | Path) -> Split:
    """The unlabelled images (N, 1, H, W) under the key x, (N, H, W) or (N, C, H, W), of an .npz file."""
    x = read_npz(path, ["x"])["x"]
    return numbered(f"ood {name!r}, {path}", x[:, None] if x.ndim == 3 else x, None, 0)


def idx(
    root: str | Path,
    held_out: Sequence[int] | None = None,
    ood: Mapping[str, str | Path] | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    classes: Sequence[str] | None = None,
    pad: int = 2,
    flip: bool = False,
    name: str = "idx",
) -> Data:
    """A `Data` from a folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte, each plain or with .gz (plain first).

    The official test part is `test`; the official training part is split, stratified by `seed`, into train, validation
    and calibration by `fractions` (a sum below 1 leaves rows out). held_out: classes to remove everywhere; their test
    images become the OOD set "held_out", and the classes that stay are numbered anew, their names kept.
    ood: {name: path of an .npz with key x, (N, H, W) or (N, C, H, W), shaped like the images}. classes: a name per original
    label (`FASHION_MNIST_CLASSES`, …), "0", "1", … if None. pad, flip: the augmentation; flip for clothes, not for digits.
    name: part of the fingerprint (the path isn't). ids: training rows 0..n − 1, test rows n, n + 1, … as in the files.
    Raises FileNotFoundError listing what was looked for; ValueError for damaged files and whatever `Data` refuses.
    """
    root = Path(root)
    x_train, y_train = read_pair(root, "train")
    x_test, y_test = read_pair(root, "t10k")
    if not y_train.size or not y_test.size:
        raise ValueError(f"{root}: expected training and test images, found {y_train.size} and {y_test.size}")
    names = class_names(y_train, classes)
    for part, labels in (("training", y_train), ("test", y_test)):
        if labels.max() >= len(names):
            raise ValueError(
                f"{root}: expected {part} labels in 0..{len(names) - 1} for {len(names)} classes, found {labels.max()}: "
                "name every class"
            )
    kept = kept_classes(held_out or (), len(names))
    train_rows, train_labels, _ = hold_out(y_train, kept)
    test_rows, test_labels, others = hold_out(y_test, kept)
    outside = {key: read_ood(key, path) for key, path in (ood or {}).items()}
    first = len(y_train)
    if held_out:
        if "held_out" in outside or not others.size:
            raise ValueError(
                f"the held-out classes {list(held_out)} become the OOD set 'held_out', which needs test images of them "
                f"(found {others.size}) and the name for itself (other OOD sets: {list(outside)})"
            )
        outside["held_out"] = Split(x_test[others], None, first + others)
    return assemble(
        name,
        Split(x_train[train_rows], train_labels, train_rows),
        Split(x_test[test_rows], test_labels, first + test_rows),
        None,
        None,
        fractions,
        seed,
        outside,
        [names[c] for c in kept],
        Augmentation(pad, flip) if pad or flip else None,
    )
