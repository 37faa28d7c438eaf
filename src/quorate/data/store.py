"""Rows on disk: what was decoded once is opened at once the next time, and is never whole in memory.

A store is a folder, complete or not there at all (it is made under another name and moved):

    x.npy                 (N, *shape), memory-mapped
    rows.safetensors      per row: 128-bit BLAKE2b digest, per channel the two sums that mean and std need, least and greatest value

Shapes: x (N, C, *rest) uint8 or float32. Sums per row and channel over the n = Π rest values: for uint8 Σx and Σx², exact; for
float32 the mean and Σ(x − mean)², in float64, which Chan, Golub and LeVeque (1983, eq. 2.1) add up without cancellation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from quorate.files import load_arrays, save_arrays

FORMAT = "quorate-store/1"
BLOCK = 256  # rows read between two steps of the progress
SPEAK_S = 10.0  # between two lines of progress where there is no terminal


class Unreadable(ValueError):
    """Raised by a reader for a row that can't be read; the text is the reason, in a few words."""


class Stored:
    """Rows of an array on disk: as an array as far as reading goes, ``stored[rows]`` gives them in memory.

    shape, dtype, ndim, size: of the rows chosen by :meth:`take` (all at first). Made by :func:`cached`.
    """

    def __init__(self, array: NDArray, parts: Mapping[str, NDArray], rows: NDArray[np.int64] | None = None) -> None:
        self._array, self._parts = array, parts
        self._rows = np.arange(len(array)) if rows is None else rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *shape)."""
        return (len(self._rows), *self._array.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or float32."""
        return self._array.dtype

    @property
    def ndim(self) -> int:
        """Axes, that of the rows included."""
        return self._array.ndim

    @property
    def size(self) -> int:
        """Values in all rows."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> NDArray:
        """The rows asked for (an integer, a slice, (B,) integers or a mask), copied into memory."""
        return np.array(self._array[self._rows[index]])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"Stored({self.shape} {self.dtype} on disk)"

    def take(self, rows: NDArray) -> Stored:
        """These rows, in this order; nothing is read. rows: (B,) integers in [0, N), or a mask (N,)."""
        return Stored(self._array, self._parts, self._rows[rows])

    def digests(self) -> NDArray[np.uint8]:
        """(N, 16) digest of each row's values."""
        return self._parts["digests"][self._rows]

    def moments(self) -> tuple[list[float], list[float], NDArray[np.bool_]]:
        """Mean and population std (no row read) of each channel, and whether it is constant, (C,) each."""
        first, second = self._parts["first"][self._rows], self._parts["second"][self._rows]
        low, high = self._parts["low"][self._rows].min(0), self._parts["high"][self._rows].max(0)
        per_row = int(np.prod(self._array.shape[2:]))
        n = per_row * len(self)
        if self.dtype == np.uint8:
            sums = [(int(s), int(q)) for s, q in zip(first.sum(0), second.sum(0), strict=True)]
            return [s / n for s, _ in sums], [math.sqrt((n * q - s * s) / n**2) for s, q in sums], low == high
        mean = first.mean(0)
        spread = second.sum(0) + per_row * np.square(first - mean).sum(0)
        return mean.tolist(), np.sqrt(spread / n).tolist(), low == high


def row_digests(x: NDArray) -> NDArray[np.uint8]:
    """(N, 16) BLAKE2b digest of each row's little-endian values: rows of one shape and dtype agree in it iff they do in every bit."""
    little = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<"))
    flat = little.reshape(len(x), -1).view(np.uint8) if x.size else little.reshape(len(x), 0)
    joined = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in flat)  # type: ignore[arg-type]
    return np.frombuffer(joined, np.uint8).reshape(len(x), 16)


def row_sums(x: NDArray) -> dict[str, NDArray]:
    """``first, second, low, high`` (N, C) of rows x (N, C, *rest), see the module's text."""
    flat = x.reshape(len(x), x.shape[1], -1)
    ends = {"low": flat.min(-1), "high": flat.max(-1)}
    if x.dtype == np.uint8:
        wide = flat.astype(np.uint16)
        return {"first": flat.sum(-1, dtype=np.int64), "second": np.square(wide).sum(-1, dtype=np.int64), **ends}
    exact = flat.astype(np.float64)
    mean = exact.mean(-1)
    return {"first": mean, "second": np.square(exact - mean[..., None]).sum(-1), **ends}


def cache_folder(cache: str | Path | None) -> Path:
    """``cache``, or the user's cache folder: ``$XDG_CACHE_HOME/quorate``, by default ``~/.cache/quorate``."""
    if cache is not None:
        return Path(cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quorate"


def cached(
    folder: str | Path,
    key: Mapping[str, Any],
    count: int,
    shape: Sequence[int],
    dtype: DTypeLike,
    read: Callable[[int], NDArray],
    label: str,
) -> tuple[Stored, dict[int, str]]:
    """Rows 0 … count − 1 from the store for ``key``, which is made first if it is not there; and why some could not be read.

    Args:
        folder: of all stores; this one's is named by the hash of key, count, shape and dtype.
        key: JSON values: all that decides what ``read`` returns (files with sizes and times, settings).
        count, shape, dtype: of x: (count, *shape) uint8 or float32.
        read: row number → array of exactly ``shape`` and ``dtype``; raises :class:`Unreadable`. Called from several threads.
        label: what is read, for the progress on stderr.

    Returns the rows (zeros for unreadable ones: leave them out with ``take``) and {row: reason}. A store of which parts are
    missing or cut off is made anew, which is said; its values are not read again. Raises ValueError for a count below 1,
    another dtype, rows of another shape or dtype; OSError where nothing can be written.
    """
    dtype = np.dtype(dtype)
    if count < 1 or dtype not in (np.uint8, np.float32) or not shape or min(shape) < 1:
        raise ValueError(f"a store needs rows of uint8 or float32, got {count} rows of {tuple(shape)} {dtype}: check the source")
    facts = {"format": FORMAT, "key": key, "shape": [count, *shape], "dtype": str(dtype)}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    place = Path(folder) / name
    if place.is_dir():
        try:
            return _open(place, (count, *shape), dtype)
        except (ValueError, FileNotFoundError) as error:
            print(f"{label}: the cache {place} is damaged ({error}), it is made anew", file=sys.stderr)
            shutil.rmtree(place)
    _make(place, facts, (count, *shape), dtype, read, label)
    return _open(place, (count, *shape), dtype)


def _open(place: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Stored, dict[int, str]]:
    parts, about = load_arrays(place / "rows.safetensors", "the rows of a store")
    array = np.load(place / "x.npy", mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype != dtype or parts.keys() != {"digests", "first", "second", "low", "high"}:
        raise ValueError(f"it holds {array.shape} {array.dtype}, expected {shape} {dtype}")
    return Stored(array, parts), {int(row): str(reason) for row, reason in about["unreadable"].items()}


def _make(
    place: Path, facts: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], read: Callable[[int], NDArray], label: str
) -> None:
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    _remove_leftovers(place.parent, host)
    temporary = place.with_name(f".{place.name}.{host}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir(parents=True)
        array = np.lib.format.open_memmap(temporary / "x.npy", mode="w+", dtype=dtype, shape=shape)
        _reserve(temporary / "x.npy")
        parts: dict[str, list[NDArray]] = {}
        unreadable: dict[int, str] = {}

        def row(i: int) -> NDArray | str:
            try:
                x = np.asarray(read(i))
            except Unreadable as error:
                return " ".join(str(error).split())
            except OSError as error:  # the source's, not the store's
                raise ValueError(f"{label}: row {i} can't be read ({error}): mend it and start again") from error
            if x.shape != shape[1:] or x.dtype != dtype:
                raise ValueError(f"{label}: row {i} is {x.shape} {x.dtype}, expected {shape[1:]} {dtype}: rows must agree")
            return x if dtype == np.uint8 or np.isfinite(x).all() else "NaN or infinity"

        workers = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool, _progress(label, shape[0]) as advance:
            for start in range(0, shape[0], BLOCK):
                block = range(start, min(start + BLOCK, shape[0]))
                for i, x in zip(block, pool.map(row, block), strict=True):
                    if isinstance(x, str):
                        unreadable[i] = x
                    else:
                        array[i] = x
                done = np.asarray(array[block.start : block.stop])
                for name, values in ({"digests": row_digests(done)} | row_sums(done)).items():
                    parts.setdefault(name, []).append(values)
                advance(len(block))
        array.flush()
        del array
        about = facts | {"unreadable": {str(i): reason for i, reason in unreadable.items()}}
        save_arrays(temporary / "rows.safetensors", {name: np.concatenate(values) for name, values in parts.items()}, about)
        with contextlib.suppress(OSError):  # another process was faster: its store is the same
            temporary.rename(place)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not make the cache {place}: {error.strerror or error}; give another cache folder (cache=…, on the command line "
            "--data.cache DIR, or set XDG_CACHE_HOME)",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reserve(path: Path) -> None:
    """Take the room that a file will need: a full disk is an OSError here, where writing to mapped memory would kill the process."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    handle = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(handle, 0, path.stat().st_size)
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path, host: str) -> None:
    """Remove unfinished stores of processes of this machine that are no more."""
    if os.name != "posix":  # there is no asking for a process without harm
        return
    for path in folder.glob(f".*.{host}.*.part"):
        with contextlib.suppress(ValueError, PermissionError):  # PermissionError: the process is there, and somebody else's
            try:
                os.kill(int(path.name.split(".")[3]), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a line every ten seconds, none for what is done before."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(f"{label}: reading", total=total)
            yield lambda rows: bar.advance(task, rows)
        return
    done, spoken = 0, time.monotonic()

    def advance(rows: int) -> None:
        nonlocal done, spoken
        done += rows
        if time.monotonic() - spoken >= SPEAK_S:
            print(f"{label}: {done} of {total} rows read", file=sys.stderr, flush=True)
            spoken = time.monotonic()

    yield advance
