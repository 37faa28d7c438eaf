"""CIFAR-10 and CIFAR-100 from the files their authors publish: Python pickles or binary records, unpacked or as the .tar.gz.

Format (Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009, and the data sets' page, "Dataset layout"):

    pickles   a dict of Python 2: data (N, 3072) uint8; labels, or fine_labels and coarse_labels: N ints
    binary    N records of 1 label byte (CIFAR-100: coarse, then fine) and 3072 pixel bytes; class names one per line

A row's 3072 bytes are its red, green and blue plane, each row by row. Nothing that a pickle names is run: the functions an
array is rebuilt by are replaced by recorders of their arguments, all else is refused, and the array is made here.

Shapes: images (N, 3, 32, 32) uint8, labels (N,) int64.
"""

from __future__ import annotations

import functools
import gzip
import io
import math
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from quorate.data.arrays import assemble, numbered
from quorate.data.augment import Augmentation
from quorate.data.dataset import Data
from quorate.data.idx import read_ood
from quorate.data.npz import one_line
from quorate.data.split import Split

SHAPE = (3, 32, 32)
PIXELS = math.prod(SHAPE)


@dataclass(frozen=True)
class Form:
    """One published form of a data set: its folder, the files of its parts, the file of the names, where the labels are.

    A pickle has the keys labels and names; a binary record has label_bytes labels, of which number label_place is meant.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str = ""
    names: str = ""
    label_bytes: int = 0
    label_place: int = 0

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.meta)


BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR10 = (
    Form("cifar-10-batches-py", BATCHES, "test_batch", "batches.meta", labels="labels", names="label_names"),
    Form("cifar-10-batches-bin", tuple(f"{b}.bin" for b in BATCHES), "test_batch.bin", "batches.meta.txt", label_bytes=1),
)
CIFAR100 = {
    kind: (
        Form("cifar-100-python", ("train",), "test", "meta", labels=f"{kind}_labels", names=f"{kind}_label_names"),
        Form("cifar-100-binary", ("train.bin",), "test.bin", f"{kind}_label_names.txt", label_bytes=2, label_place=place),
    )
    for place, kind in enumerate(("coarse", "fine"))
}


def unpickle(content: bytes) -> Any:
    """The containers, numbers, strings and arrays of a pickle, Python 2's strings as bytes; nothing that it names is run.

    Arrays are uint8 in C order, as in the published files. Raises ValueError for any other global (named), a damaged
    pickle, bytes after its end.
    """

    class Recorder:  # made anew by every call, since a pickle may set attributes of what it is given
        def __init__(self, *arguments: Any) -> None:
            self.arguments = arguments
            self.state: Any = None

        def __setstate__(self, state: Any) -> None:
            self.state = state

    class Array(Recorder):
        pass

    class DType(Recorder):
        pass

    known = {
        ("numpy.core.multiarray", "_reconstruct"): Array,
        ("numpy._core.multiarray", "_reconstruct"): Array,
        ("numpy", "ndarray"): Recorder,
        ("numpy", "dtype"): DType,
    }

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in known:
                raise ValueError(f"it names {module}.{name}, which the published files do not hold")
            return known[module, name]

    def made(value: Any) -> Any:
        if isinstance(value, dict):
            return {key.decode("latin1") if isinstance(key, bytes) else key: made(v) for key, v in value.items()}
        if not isinstance(value, Recorder):
            return value
        if not isinstance(value, Array) or not isinstance(value.state, tuple) or len(value.state) != 5:
            raise ValueError("it holds an array in another form than NumPy's")
        _, shape, dtype, fortran, values = value.state
        if not isinstance(dtype, DType) or dtype.arguments[:1] not in ((b"u1",), ("u1",)) or fortran:
            raise ValueError("it holds an array that is not uint8 in C order")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or type(values) is not bytes:
            raise ValueError("it holds an array without a shape or bytes")
        if math.prod(shape) != len(values):
            raise ValueError(f"it holds {len(values)} bytes for an array of shape {shape}")
        return np.frombuffer(values, np.uint8).reshape(shape)

    stream = io.BytesIO(content)
    try:
        found = made(Restricted(stream, encoding="bytes").load())
    except Exception as error:  # damage surfaces as whatever the unpickler stumbles over
        raise ValueError(f"expected one of CIFAR's pickles, but {one_line(error)}") from error
    if stream.read(1):
        raise ValueError("expected one of CIFAR's pickles, but the file goes on after its end")
    return found


def parse_batch(content: bytes, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """(images (N, 3, 32, 32) uint8, labels (N,) int64) of one file; ValueError where it breaks the form."""
    if form.label_bytes:
        record = form.label_bytes + PIXELS
        if len(content) % record or not content:
            raise ValueError(f"expected records of {form.label_bytes} + {PIXELS} bytes, found {len(content)} bytes")
        records = np.frombuffer(content, np.uint8).reshape(-1, record)
        x, y = records[:, form.label_bytes :], records[:, form.label_place].astype(np.int64)
        return np.ascontiguousarray(x).reshape(-1, *SHAPE), y
    found = unpickle(content)
    if not isinstance(found, dict) or not {"data", form.labels} <= found.keys():
        there = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"expected a dict with data and {form.labels}, found {there}")
    data, labels = found["data"], found[form.labels]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != PIXELS or not len(data):
        raise ValueError(f"expected data of shape (N, {PIXELS}), found {getattr(data, 'shape', type(data).__name__)}")
    if not isinstance(labels, list) or len(labels) != len(data) or any(type(n) is not int or not 0 <= n < 256 for n in labels):
        count = f"{len(labels)} values" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"expected a list of {len(data)} integers in 0..255 under {form.labels}, found {count}")
    return data.reshape(-1, *SHAPE), np.array(labels, np.int64)


def parse_names(content: bytes, form: Form) -> list[str]:
    """The class names by label; ValueError where the file holds none."""
    if form.label_bytes:
        found: Any = content.decode("latin1").split()
    else:
        holder = unpickle(content)
        found = holder.get(form.names) if isinstance(holder, dict) else None
        if isinstance(found, list):
            found = [name.decode("latin1") if isinstance(name, bytes) else name for name in found]
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"expected the classes' names{f' as a list under {form.names}' if form.names else ''}, found none")
    return found


def read_archive(path: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The contents of the wanted files in a .tar or .tar.gz, by name without folders, in one pass, nothing unpacked to disk.

    Raises ValueError for a damaged archive (gzip's checksum is verified) and for two files of one name.
    """
    found: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if zipped else file
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    name = member.name.rsplit("/", 1)[-1]
                    if name not in wanted or not member.isreg():
                        continue
                    if name in found:
                        raise ValueError(f"it holds {name} twice")
                    content = archive.extractfile(member)
                    found[name] = b"" if content is None else content.read()
            while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: expected a whole .tar.gz, but {one_line(error)}: fetch it again") from error
    return found


def read_file(folder: Path, name: str) -> bytes:
    """The content of one file."""
    return (folder / name).read_bytes()


def locate(root: str | Path, forms: Sequence[Form]) -> tuple[Form, Path, Callable[[str], bytes]]:
    """(the form that is there, where its files are, what reads one of them by name).

    root: the archive, the unpacked folder, or the folder that holds it. Raises FileNotFoundError where no form is there or
    files of it are missing; ValueError for more than one form, or a damaged archive.
    """
    root = Path(root)
    places: list[tuple[Form, Path, set[str], Callable[[str], bytes]]] = []
    if root.is_file():
        contents = read_archive(root, [name for form in forms for name in form.files])
        places = [(form, root, contents.keys() & set(form.files), contents.__getitem__) for form in forms]
    else:
        for form in forms:
            for folder in (root, root / form.folder):
                there = {name for name in form.files if (folder / name).is_file()}
                places.append((form, folder, there, functools.partial(read_file, folder)))
    found = [place for place in places if place[2] & {*place[0].train, place[0].test}]
    if not found:
        raise FileNotFoundError(
            f"expected {' or '.join(dict.fromkeys(form.folder for form in forms))} at {root}, as unpacked or as .tar.gz, found "
            "neither: give the folder, or the archive's own path"
        )
    if len(found) > 1:
        raise ValueError(f"{root} holds {' and '.join(form.folder for form, *_ in found)}: give the path of the one to read")
    form, place, there, read = found[0]
    missing = [name for name in form.files if name not in there]
    if missing:
        raise FileNotFoundError(f"{place} must hold the files of {form.folder}, got none of {missing}: fetch it again")
    return form, place, read


def read_parts(root: str | Path, forms: Sequence[Form]) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    """([(images, labels) of train, of test], class names). Raises as `locate`; ValueError naming a file that is damaged."""
    form, place, read = locate(root, forms)

    def parsed(name: str, parse: Callable[[bytes, Form], Any]) -> Any:
        try:
            return parse(read(name), form)
        except ValueError as error:
            raise ValueError(f"{place}, {name}: {error}: not the published file, or a damaged one") from error

    names: list[str] = parsed(form.meta, parse_names)
    parts = []
    for files in (form.train, (form.test,)):
        batches = [parsed(name, parse_batch) for name in files]
        for name, (_, y) in zip(files, batches, strict=True):
            if y.max() >= len(names):
                raise ValueError(
                    f"{place}, {name}: expected labels in 0..{len(names) - 1}, for the names in {form.meta}, found {y.max()}"
                )
        x, y = (np.concatenate(column) for column in zip(*batches, strict=True))
        parts.append((x, y))
    return parts, names


def outside(name: str, path: str | Path) -> Split:
    """An OOD set: the key x of an .npz file, or the test images of CIFAR-10 or CIFAR-100 files."""
    if Path(path).suffix == ".npz":
        return read_ood(name, path)
    parts, _ = read_parts(path, (*CIFAR10, *CIFAR100["fine"]))
    return numbered(f"ood {name!r}, {path}", parts[1][0], None, 0)


def cifar(
    root: str | Path,
    forms: Sequence[Form],
    ood: Mapping[str, str | Path] | None,
    fractions: Sequence[float],
    seed: int,
    pad: int,
    flip: bool,
    name: str,
) -> Data:
    """The `Data` of the form that is there; see `cifar10`."""
    ((x, y), (x_test, y_test)), names = read_parts(root, forms)
    return assemble(
        name,
        numbered("train", x, y, 0),
        numbered("test", x_test, y_test, len(x)),
        None,
        None,
        fractions,
        seed,
        {key: outside(key, path) for key, path in (ood or {}).items()},
        names,
        Augmentation(pad, flip) if pad or flip else None,
    )


def cifar10(
    root: str | Path,
    ood: Mapping[str, str | Path] | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    pad: int = 4,
    flip: bool = True,
    name: str = "cifar10",
) -> Data:
    """CIFAR-10 from the published files: cifar-10-batches-py or cifar-10-batches-bin, or their .tar.gz as it was fetched.

    root: the archive, the unpacked folder, or the folder that holds it. The official test part is `test`; the official
    training part is split, stratified by `seed`, into train, validation and calibration by `fractions` (a sum below 1
    leaves rows out). ood: {name: path}, an .npz with the key x (N, 3, 32, 32), or CIFAR-10 or CIFAR-100 files, whose test
    images are taken. pad, flip: the augmentation. name: part of the fingerprint (the path isn't). ids: training rows
    0..n − 1, test rows n, n + 1, … as in the files. The same `Data` from every form.
    Raises FileNotFoundError where files are missing; ValueError for damaged files (named), for two forms in one folder, and
    whatever `Data` refuses.
    """
    return cifar(root, CIFAR10, ood, fractions, seed, pad, flip, name)


def cifar100(
    root: str | Path,
    labels: Literal["fine", "coarse"] = "fine",
    ood: Mapping[str, str | Path] | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    pad: int = 4,
    flip: bool = True,
    name: str = "cifar100",
) -> Data:
    """CIFAR-100 from the published files: cifar-100-python or cifar-100-binary, or their .tar.gz as it was fetched.

    labels: "fine", the 100 classes, or "coarse", their 20 superclasses. Everything else: as in `cifar10`.
    """
    if labels not in CIFAR100:
        raise ValueError(f"labels must be 'fine' (100 classes) or 'coarse' (20 superclasses), got {labels!r}")
    return cifar(root, CIFAR100[labels], ood, fractions, seed, pad, flip, name)
