"""The rows that a bundle is to answer: a file, or all files of one kind in a folder, as chunks of a fixed number of rows.

    .npy .npz .safetensors   ``row_arrays``
    .csv .parquet            ``row_tables``
    image files              ``row_images``, a row each

A folder is taken with all folders below it, in the sorted order of the paths; what begins with a dot is hidden. Its files of other
endings are passed over and counted; files of two of these kinds are refused. Links are followed, a folder that is met twice is refused.

Ids: those in the files (--ids); else row numbers of a single file, ``path:row`` in a folder, the paths of images.

Chunks begin at multiples of their size, whatever the files' sizes are, so a row is always predicted in the same company.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.cli.predicting.row_arrays import NpyFile, NpzFile, SafetensorsFile
from quorate.cli.predicting.row_file import Reading, RowFile
from quorate.cli.predicting.row_images import EXTENSIONS, ImageFiles
from quorate.cli.predicting.row_tables import CsvFile, ParquetFile
from quorate.cli.usage import UsageError
from quorate.runtime.program import Port

KINDS: dict[str, Callable[[Path, str, Port, Reading], RowFile]] = {
    ".npy": NpyFile, ".npz": NpzFile, ".safetensors": SafetensorsFile, ".csv": CsvFile, ".parquet": ParquetFile,
}  # fmt: skip
ONLY_FOR = {
    "array": (".npz", ".safetensors", ".parquet"),
    "columns": (".csv", ".parquet"),
    "scale": ("image",),
    "delimiter": (".csv",),
}


@dataclass(frozen=True)
class Piece:
    """Rows of one file: the first one's number in it, x (n, *shape), ids (n,)."""

    file: RowFile
    first: int
    x: NDArray[Any]
    ids: NDArray[Any]


@dataclass(frozen=True)
class Chunk:
    """Rows that are predicted together, piece by piece of the files they come from."""

    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(len(piece.x) for piece in self.pieces)

    @property
    def ids(self) -> NDArray[Any]:
        """(n,)"""
        return np.concatenate([piece.ids for piece in self.pieces])

    def runs(self) -> Iterator[NDArray[Any]]:
        """The rows, as long as they have one shape: (n₁, *shape₁), (n₂, *shape₂), …; one run where the bundle leaves no size free."""
        held: list[NDArray[Any]] = []
        for piece in self.pieces:
            if held and held[0].shape[1:] != piece.x.shape[1:]:
                yield np.concatenate(held)
                held = []
            held.append(piece.x)
        if held:
            yield held[0] if len(held) == 1 else np.concatenate(held)

    def finite(self) -> NDArray[np.bool_]:
        """(n,) which rows hold no NaN and no infinity."""
        return np.concatenate([_finite(piece.x) for piece in self.pieces])

    def shown(self, rows: NDArray[np.bool_]) -> str:
        """Some of the rows (n,) that are meant, with their files."""
        at, said = 0, []
        for piece in self.pieces:
            found = np.flatnonzero(rows[at : at + len(piece.x)])
            at += len(piece.x)
            if len(found):
                said.append(piece.file.shown((piece.first + found).tolist()))
        return "; ".join(said[:3]) + (f"; and {len(said) - 3} files more" if len(said) > 3 else "")


@dataclass(frozen=True)
class Rows:
    """All rows of an input.

    Attributes:
        files: in order.
        text_ids: whether ids are strings, else int64.
        passed_over: paths of files in the folder that are no input.
        identity: names, sizes and times of change, as a hash.
    """

    source: Path
    files: tuple[RowFile, ...]
    paths: tuple[str, ...]
    text_ids: bool
    passed_over: tuple[str, ...]
    identity: str

    @property
    def total(self) -> int:
        """How many rows there are."""
        return sum(file.rows for file in self.files)

    def row_bytes(self) -> int:
        """Bytes of the first row; 0 without rows."""
        return next((sum(piece.x.nbytes for piece in chunk.pieces) for chunk in self.chunks(1)), 0)

    def chunks(self, size: int, start: int = 0) -> Iterator[Chunk]:
        """The rows from ``start`` on, ``size`` in a chunk, fewer in the last. ValueError names a file that can't be read."""
        held: list[Piece] = []
        missing = size
        for number, file in enumerate(self.files):
            if start >= file.rows:
                start -= file.rows
                continue
            at, start = start, 0
            for x, ids in file.blocks(at, size):
                named = self._ids(number, at, len(x)) if ids is None else ids
                taken = 0
                while taken < len(x):
                    count = min(missing, len(x) - taken)
                    held.append(Piece(file, at + taken, x[taken : taken + count], named[taken : taken + count]))
                    taken, missing = taken + count, missing - count
                    if not missing:
                        yield Chunk(tuple(held))
                        held, missing = [], size
                at += len(x)
            if at != file.rows:
                raise ValueError(f"{file.name} had {file.rows} rows and now has {at}: it changed while it was read; start anew")
        if held:
            yield Chunk(tuple(held))

    def check_unchanged(self) -> None:
        """ValueError where a file's name, size or time of change is not what it was when the input was opened."""
        if _identity(self.source, self.paths) != self.identity:
            raise ValueError(f"{self.source} changed while it was read: run the command again with --restart")

    def _ids(self, number: int, first: int, count: int) -> NDArray[Any]:
        numbers = np.arange(first, first + count)
        return np.array([f"{self.paths[number]}:{row}" for row in numbers]) if self.text_ids else numbers


def open_rows(source: str | Path, port: Port, reading: Reading) -> Rows:
    """The rows in a file or folder, whose headers are checked against what a bundle takes.

    Args:
        source: the file or folder.
        port: the bundle's input.
        reading: what the options say of it.

    Raises:
        FileNotFoundError: nothing there, or no input in the folder.
        ValueError: other shapes or dtypes, files of several kinds, a file that can't be read; one line names the file.
        UsageError: options that are missing for this kind of input, or not for it.
        ImportError: Parquet without pyarrow, images without Pillow.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: expected a file or folder of rows (--input)")
    inside, other = _listed(source) if source.is_dir() else ([source.name], [])
    kind = _kind(source, inside, other)
    for option, kinds in ONLY_FOR.items():
        if getattr(reading, option) != getattr(Reading, option) and kind not in kinds:
            raise UsageError(f"--{option} is for {', '.join(kinds)} files, {source} is {kind}: leave it out")
    identity = _identity(source, inside)
    where = [source / name if source.is_dir() else source for name in inside]
    if kind == "image":
        files: list[RowFile] = [ImageFiles(str(source), where, inside, port, reading)]
    else:
        files = [KINDS[kind](path, str(path), port, reading) for path in where]
    kinds_of_ids = {file.id_kind for file in files}
    if len(kinds_of_ids) > 1:
        raise ValueError(f"{source}: --ids {reading.ids} is text in some files and integers in others: store all alike")
    given = kinds_of_ids.pop()
    text = source.is_dir() if given is None else given == "text"
    return Rows(source, tuple(files), tuple(inside), text, tuple(other), identity)


def _finite(x: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isfinite(x).reshape(len(x), -1).all(1) if x.dtype.kind == "f" else np.ones(len(x), bool)


def _ending(name: str) -> str | None:
    """The kind of file that a name says."""
    ending = Path(name).suffix.lower()
    return ending if ending in KINDS else "image" if ending in EXTENSIONS else None


def _kind(source: Path, inside: Sequence[str], other: Sequence[str]) -> str:
    expected = f"{', '.join(KINDS)} or image files"
    if not inside:
        raise FileNotFoundError(f"{source} holds none of {expected} ({len(other)} other files): check --input")
    first: dict[str | None, str] = {}
    for name in inside:
        first.setdefault(_ending(name), name)
    if len(first) > 1:
        raise ValueError(
            f"{source} holds files of several kinds ({', '.join(list(first.values())[:3])}): put each kind in a folder of its own"
        )
    kind = next(iter(first))
    if kind is None:
        raise UsageError(f"{source}: expected a folder, or one of {expected}")
    return kind


def _listed(root: Path) -> tuple[list[str], list[str]]:
    """(paths of inputs, paths of other files) below a folder, relative to it, sorted. ValueError for what can't be listed."""
    found: list[str] = []
    other: list[str] = []
    seen: dict[tuple[int, int], str] = {}

    def walk(below: str) -> None:
        folder = root / below
        try:
            status = folder.stat()
            with os.scandir(folder) as entries:
                there = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
                folders = {entry.name for entry in there if entry.is_dir()}
        except OSError as error:
            raise ValueError(f"{str(folder)!r} can't be listed ({error.strerror}): allow reading, or take it away") from error
        known = seen.setdefault((status.st_dev, status.st_ino), below or ".")
        if known != (below or "."):
            raise ValueError(
                f"{root}: {below!r} and {known!r} are one folder, joined by a link: its rows would come twice; remove the link"
            )
        for entry in there:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.name in folders:
                walk(path)
            else:
                (other if _ending(entry.name) is None else found).append(_utf8(root, path))

    walk("")
    return sorted(found), sorted(other)


def _utf8(root: Path, path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{root}: file names must be UTF-8, got {path!r}: rename it") from error
    return path


def _identity(source: Path, names: Sequence[str]) -> str:
    """A hash of the files' names, sizes and times of change."""
    found = hashlib.sha256()
    for name in names:
        path = source / name if source.is_dir() else source
        try:
            status = path.stat()
        except OSError as error:
            raise ValueError(f"{path} can't be read ({error.strerror}): allow reading, or take it away") from error
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file: expected files that can be read more than once")
        found.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return found.hexdigest()
