"""Rows in array files: ``.npy`` (mapped), ``.npz`` (members stored or deflated, read in pieces) and ``.safetensors`` (read in slices).

None of them is held in memory as a whole, and none is unpickled. What is in them is told from their headers, before a row is read.

Formats: NumPy enhancement proposal 1 (the .npy header), https://github.com/huggingface/safetensors (the header of names, types, shapes).
Shapes: arrays (N, *shape), N rows; ids (N,).
"""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from quorate._validation import nearest
from quorate.cli.predicting.row_file import (
    Block,
    IdKind,
    Reading,
    as_ids,
    check_dtype,
    check_id_dtype,
    check_shape,
    converted,
    reason,
    shown_rows,
)
from quorate.cli.usage import UsageError
from quorate.runtime.program import Port

SAFETENSORS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32", "U64": "uint64",
    "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip
Header = tuple[tuple[int, ...], np.dtype[Any]]
DAMAGE = (ValueError, EOFError, OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def chosen(where: str, names: Sequence[str], reading: Reading) -> str:
    """The array to take: the one that is named, or the only one beside the ids. ValueError where there is no such one."""
    for option, name in (("--array", reading.array), ("--ids", reading.ids)):
        if name is not None and name not in names:
            raise ValueError(
                f"{where} has no array {name!r} ({option}){nearest(name, list(names))}: it holds {', '.join(names) or 'nothing'}"
            )
    others = [name for name in names if name != reading.ids]
    if reading.array is None and len(others) != 1:
        raise ValueError(f"{where} holds {len(others)} arrays ({', '.join(others[:10]) or 'none'}): name the rows' by --array")
    return others[0] if reading.array is None else reading.array


class _ArrayFile:
    """What the three kinds share: the checks of the header, and the conversion of every block."""

    kind: str

    def __init__(self, path: Path, name: str, port: Port, reading: Reading) -> None:
        self.path, self.name, self.port, self.reading = path, name, port, reading
        headers = self._headers()
        self.array = chosen(name, list(headers), reading)
        shape, dtype = headers[self.array]
        where = name if len(headers) == 1 and reading.array is None else f"{name}, {self.array!r},"
        if not shape:
            raise ValueError(f"{where} holds a single value: expected an array with the rows first")
        check_shape(where, shape[1:], port)
        check_dtype(where, dtype, port, reading.cast)
        self.rows = shape[0]
        self.id_kind: IdKind | None = None
        if reading.ids is not None:
            found = headers[reading.ids]
            self.id_kind = check_id_dtype(name, reading.ids, found[1], found[0], self.rows)

    def _headers(self) -> dict[str, Header]:
        raise NotImplementedError

    def _pieces(self, start: int, size: int) -> Iterator[Block]:
        raise NotImplementedError

    def blocks(self, start: int, size: int) -> Iterator[Block]:
        """See :class:`quorate.cli.predicting.row_file.RowFile`."""
        if start >= self.rows:
            return
        pieces = self._pieces(start, size)
        while True:
            try:
                x, ids = next(pieces)
            except StopIteration:
                return
            except DAMAGE as error:
                raise ValueError(f"{self.name} is not a readable {self.kind} file ({reason(error)}): write it anew") from error
            yield converted(self.name, x, self.port), None if ids is None else as_ids(self.name, ids)

    def shown(self, rows: Sequence[int]) -> str:
        """See :class:`quorate.cli.predicting.row_file.RowFile`."""
        return shown_rows(self.name, rows)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except DAMAGE as error:
            raise ValueError(f"{self.name} is not a readable {self.kind} file ({reason(error)}): write it anew") from error


class NpyFile(_ArrayFile):
    """A ``.npy`` file, mapped; also one in Fortran's order."""

    kind = ".npy"

    def __init__(self, path: Path, name: str, port: Port, reading: Reading) -> None:
        for option in ("array", "ids"):
            if getattr(reading, option) is not None:
                raise UsageError(
                    f"--{option} {getattr(reading, option)}: a .npy file ({name}) has one array without a name, leave it out"
                )
        super().__init__(path, name, port, reading)

    def _headers(self) -> dict[str, Header]:
        with self._readable(), self.path.open("rb") as file:
            shape, _, dtype = _npy_header(file)
        return {"": (shape, dtype)}

    def _pieces(self, start: int, size: int) -> Iterator[Block]:
        mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
        if len(mapped) != self.rows:
            raise ValueError("it changed while it was read")
        for at in range(start, self.rows, size):
            yield np.array(mapped[at : at + size]), None


class NpzFile(_ArrayFile):
    """A ``.npz`` file; its checksums are checked for members that are read from beginning to end."""

    kind = ".npz"

    def _headers(self) -> dict[str, Header]:
        found: dict[str, Header] = {}
        with self._readable(), zipfile.ZipFile(self.path) as archive:
            for member in archive.namelist():
                if member.endswith(".npy"):
                    with archive.open(member) as file:
                        shape, _, dtype = _npy_header(file)
                        found[member.removesuffix(".npy")] = shape, dtype
        return found

    def _pieces(self, start: int, size: int) -> Iterator[Block]:
        with zipfile.ZipFile(self.path) as archive, contextlib.ExitStack() as stack:
            names = [self.array] if self.reading.ids is None else [self.array, self.reading.ids]
            members = [_Member(stack.enter_context(archive.open(f"{name}.npy")), name) for name in names]
            if any(member.shape[0] != self.rows for member in members):
                raise ValueError("it changed while it was read")
            for member in members:
                member.skip_(start)
            for at in range(start, self.rows, size):
                found = [member.take_(min(size, self.rows - at)) for member in members]
                yield found[0], found[1] if len(found) > 1 else None


class _Member:
    """A member of an archive, read row by row."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file = file
        self.shape, fortran, self.dtype = _npy_header(file)
        if fortran and len(self.shape) > 1:
            raise ValueError(
                f"{name!r} is in Fortran's order, which has no rows to read one by one; save numpy.ascontiguousarray of it"
            )
        self.width = self.dtype.itemsize * math.prod(self.shape[1:])

    def skip_(self, rows: int) -> None:
        left = rows * self.width
        while left:
            left -= len(self._some_(min(left, 2**22)))

    def take_(self, rows: int) -> NDArray[Any]:
        held = bytearray()
        while len(held) < rows * self.width:
            held += self._some_(rows * self.width - len(held))
        return np.frombuffer(held, self.dtype).reshape(rows, *self.shape[1:])

    def _some_(self, size: int) -> bytes:
        found = self.file.read(size)
        if not found:
            raise EOFError("it ends before its last row")
        return found


class SafetensorsFile(_ArrayFile):
    """A ``.safetensors`` file."""

    kind = ".safetensors"

    def _headers(self) -> dict[str, Header]:
        with self._opened() as file:
            found = {}
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                stored = part.get_dtype()
                if stored not in SAFETENSORS and (name == self.reading.array or self.reading.array is None):
                    raise ValueError(f"array {name!r} is {stored}, which NumPy does not have")
                found[name] = tuple(part.get_shape()), np.dtype(SAFETENSORS.get(stored, "V1"))
            return found

    def _pieces(self, start: int, size: int) -> Iterator[Block]:
        with self._opened() as file:
            x = file.get_slice(self.array)
            ids = None if self.reading.ids is None else file.get_slice(self.reading.ids)
            if x.get_shape()[0] != self.rows:
                raise ValueError("it changed while it was read")
            for at in range(start, self.rows, size):
                stop = min(at + size, self.rows)
                yield x[at:stop], None if ids is None else ids[at:stop]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        with self._readable():
            try:
                with safe_open(self.path, framework="numpy") as file:
                    yield file
            except SafetensorError as error:
                raise ValueError(str(error)) from error


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether in Fortran's order, dtype) of an open .npy, which then stands at its first value."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version[0]}.{version[1]}, which is for tables with named fields")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled")
    return tuple(shape), bool(fortran), dtype
