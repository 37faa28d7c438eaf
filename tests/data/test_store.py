"""Rows on disk: read once, opened again, statistics without a second pass, and what happens to bad rows, stores and disks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.data import Data, Split, Stored, arrays
from quorate.data.arrays import assemble
from quorate.data.normalise import moments
from quorate.data.store import Unreadable, cache_folder, cached, row_digests

X = np.random.default_rng(0).integers(0, 256, (600, 2, 3, 4)).astype(np.uint8)


def store(folder: Path, x: np.ndarray = X, **changes: Any) -> Stored:
    given_ = {"key": {"name": "x"}, "count": len(x), "shape": x.shape[1:], "dtype": x.dtype, "read": lambda i: x[i], "label": "x"}
    return cached(folder, **(given_ | changes))[0]


def test_reads_once_and_opens_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def read(i: int) -> np.ndarray:
        calls.append(i)
        return X[i]

    first = store(tmp_path, read=read)
    assert sorted(calls) == list(range(600))
    again = store(tmp_path, read=read)
    assert len(calls) == 600
    for one in (first, again):
        assert (one.shape, one.dtype, one.ndim, one.size, len(one)) == (X.shape, X.dtype, 4, X.size, 600)
        np.testing.assert_array_equal(one[:], X)
        np.testing.assert_array_equal(np.asarray(one, np.float32), X.astype(np.float32))
    assert not isinstance(first[3:9], np.memmap)
    assert [p.name for p in tmp_path.iterdir()] == [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")]


@pytest.mark.parametrize(
    "change", [{"key": {"name": "y"}}, {"count": 599}, {"shape": (2, 12), "read": lambda i: X[i].reshape(2, 12)}]
)
def test_another_key_is_another_store(tmp_path: Path, change: dict[str, Any]) -> None:
    store(tmp_path)
    store(tmp_path, **change)
    assert len(list(tmp_path.iterdir())) == 2


def test_rows_and_take(tmp_path: Path) -> None:
    stored = store(tmp_path)
    rows = np.array([5, 3, 599])
    np.testing.assert_array_equal(stored[rows], X[rows])
    np.testing.assert_array_equal(stored[7], X[7])
    np.testing.assert_array_equal(stored[np.arange(600) < 4], X[:4])
    few = stored.take(rows).take(np.array([2, 0]))
    np.testing.assert_array_equal(few[:], X[[599, 5]])
    np.testing.assert_array_equal(few.digests(), row_digests(X[[599, 5]]))
    few[0][:] = 0  # a copy
    np.testing.assert_array_equal(stored[599], X[599])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 40), st.floats(-3, 6))
def test_moments_are_those_of_the_rows_in_memory(
    tmp_path_factory: Any, seed: int, integer: bool, count: int, scale: float
) -> None:
    draw = np.random.default_rng(seed)
    x = (
        draw.integers(0, 256, (count, 3, 5)).astype(np.uint8)
        if integer
        else draw.normal(10**scale, 1, (count, 3, 5)).astype(np.float32)
    )
    x[:, 1] = 7
    chosen = draw.permutation(count)[: max(1, count // 2)]
    folder = tmp_path_factory.mktemp("store")
    stored = store(folder, x).take(chosen)
    mean, std = moments(stored)
    expected_mean, expected_std = moments(x[chosen])
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(std, expected_std, rtol=1e-9)
    if integer:
        assert mean == expected_mean
    assert std[1] == 1
    shutil.rmtree(folder)


def test_unreadable_rows_are_told_each_time(tmp_path: Path) -> None:
    def read(i: int) -> np.ndarray:
        if i == 2:
            raise Unreadable("cut\noff")
        return np.full(3, np.nan if i == 4 else i, np.float32)

    for _ in range(2):
        stored, reasons = cached(tmp_path, {}, 5, (3,), np.float32, read, "x")
        assert reasons == {2: "cut off", 4: "NaN or infinity"}
        np.testing.assert_array_equal(stored[:][:, 0], [0, 1, 0, 3, 0])


def test_reads_in_several_threads(tmp_path: Path) -> None:
    barrier = threading.Barrier(2, timeout=20)

    def read(i: int) -> np.ndarray:
        if i < 2:
            barrier.wait()  # passes only if two rows are read at a time
        return X[i]

    np.testing.assert_array_equal(store(tmp_path, read=read)[:], X)


@pytest.mark.parametrize("spoil", ["short", "other", "no rows", "text"])
def test_a_damaged_store_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: str) -> None:
    store(tmp_path)
    (place,) = tmp_path.iterdir()
    if spoil == "short":
        (place / "x.npy").write_bytes((place / "x.npy").read_bytes()[:-100])
    elif spoil == "other":
        np.save(place / "x.npy", X[:3])
    elif spoil == "text":
        (place / "x.npy").write_text("hello")
    else:
        (place / "rows.safetensors").unlink()
    np.testing.assert_array_equal(store(tmp_path)[:], X)
    assert "is damaged" in capsys.readouterr().err
    np.testing.assert_array_equal(store(tmp_path, read=lambda _: pytest.fail("read again"))[:], X)


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(i: int) -> np.ndarray:
        if i == 300:
            raise KeyboardInterrupt
        return X[i]

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, read=interrupted)
    with pytest.raises(ValueError, match=r"x: row 3 is \(2, 3\) uint8, expected \(2, 3, 4\) uint8"):
        store(tmp_path, read=lambda i: X[i][:, :, 0] if i == 3 else X[i])

    def forbidden(i: int) -> np.ndarray:
        raise PermissionError(13, "Permission denied", f"{i}.png")

    with pytest.raises(ValueError, match=r"x: row 0 can't be read \(.*Permission denied: '0.png'\): mend it and start again"):
        store(tmp_path, read=forbidden)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("no posix_fallocate here")
    asked: list[int] = []

    def full(_: int, offset: int, size: int) -> None:
        asked.append(size - offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        OSError, match=r"could not make the cache .* No space left on device; give another cache folder .*--data.cache DIR"
    ):
        store(tmp_path)
    assert asked[0] > X.nbytes
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    dead, alive, elsewhere = (
        tmp_path / f".{name}.part"
        for name in (f"a.{host}.{ended.pid}.ff", f"a.{host}.{os.getpid()}.ff", f"a.{'0' * 8}.{ended.pid}.ff")
    )
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    store(tmp_path)
    assert not dead.exists()
    assert alive.exists()
    assert elsewhere.exists()


def test_a_store_that_cannot_be_opened_now_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def busy(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", busy)
        with pytest.raises(OSError, match="Too many open files"):
            store(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("change", [{"count": 0}, {"dtype": np.int64}, {"shape": ()}, {"shape": (2, 0)}])
def test_refuses(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a store needs rows of uint8 or float32, got"):
        store(tmp_path, **change)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError,
        match=r"could not make the cache .*file.*folder \(cache=…, on the command line --data.cache DIR, or set XDG_CACHE_HOME\)$",
    ):
        store(tmp_path / "file")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder("here") == Path("here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "quorate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder(None) == Path("/home/somebody/.cache/quorate")


def test_data_on_disk_equal_data_in_memory(tmp_path: Path) -> None:
    y = np.arange(600) % 3
    memory = arrays((X, y), seed=3)
    disk = assemble("arrays", Split(store(tmp_path), y, np.arange(600)), None, None, None, None, 3, {}, None, None)
    assert (disk.mean, disk.std) == (memory.mean, memory.std)
    for part, split in disk.splits().items():
        assert isinstance(split.x, Stored)
        other = memory.splits()[part]
        np.testing.assert_array_equal(split.ids, other.ids)
        assert all((a == b).all() for a, b in zip(split.batch([0, 5]), other.batch([0, 5]), strict=True))
        assert (split[-1][0] == other[-1][0]).all()
    assert (
        disk.fingerprint()
        == assemble("arrays", Split(store(tmp_path), y, np.arange(600)), None, None, None, None, 3, {}, None, None).fingerprint()
    )
    moved = X.copy()
    moved[disk.test.ids[0], 0, 0, 0] ^= 1
    other = assemble("arrays", Split(store(tmp_path / "b", moved), y, np.arange(600)), None, None, None, None, 3, {}, None, None)
    assert isinstance(other, Data)
    assert other.fingerprint() != disk.fingerprint()
    assert json.dumps(disk.summary())
    with pytest.raises(ValueError, match="at least one row, got none"):
        disk.test.subset([])
