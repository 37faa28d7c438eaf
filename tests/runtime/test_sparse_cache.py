"""What is kept on the disk: returned as it was written; nothing that is damaged or that another user could have put there."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate.runtime.sparse.machine import cache
from quorate.runtime.sparse.machine.cache import folder, key, read_object, read_text, write_object, write_text

pytestmark = pytest.mark.deciding
DATA = bytes(range(256)) * 5
KEY, OTHER = key("a"), key("b")
HEADER = 88
posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners of POSIX")


@pytest.fixture(params=["openat", "paths"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one object, used in both ways."""
    if request.param == "openat" and not cache._AT:
        pytest.skip("this system has no openat")
    monkeypatch.setattr(cache, "_AT", request.param == "openat")
    made = tmp_path / "above" / "sparse"
    assert write_object(KEY, DATA, made)
    return made


def file(place: Path, name: str = KEY) -> Path:
    return place / f"{name}.obj"


def test_key_tells_texts_apart() -> None:
    keys = [key(*parts) for parts in [(), ("",), ("ab",), ("a", "b"), ("b", "a"), ("", "ab"), ("ab", ""), ("ab\0",), ("\ud800",)]]
    assert len(set(keys)) == len(keys)
    assert all(len(one) == 64 for one in keys)
    assert key("a", "b") == keys[3]


def test_key_depends_on_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FORMAT", 2)
    assert key("a") != KEY


def test_returns_what_was_written(place: Path) -> None:
    assert read_object(KEY, place) == DATA
    assert read_object(OTHER, place) is None
    assert read_text(KEY, place) is None
    assert write_text(KEY, "größer\n", place)
    assert write_object(OTHER, b"", place)
    assert write_object(KEY, DATA[::-1], place)
    assert (read_text(KEY, place), read_object(OTHER, place), read_object(KEY, place)) == ("größer\n", b"", DATA[::-1])
    assert sorted(entry.name for entry in place.iterdir()) == sorted([f"{KEY}.obj", f"{KEY}.text", f"{OTHER}.obj"])


def test_a_missing_folder_is_empty_and_is_not_made_by_reading(tmp_path: Path) -> None:
    assert read_object(KEY, tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


@posix
def test_is_made_for_its_user_alone(place: Path) -> None:
    assert place.stat().st_mode & 0o777 == 0o700
    assert file(place).stat().st_mode & 0o777 == 0o600


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    **{f"byte {at}": lambda whole, at=at: whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in
       (0, 8, 15, 16, 47, 48, 55, 56, 87, 88, 500, HEADER + len(DATA) - 1)},
    **{f"cut to {size}": lambda whole, size=size: whole[:size] for size in (0, 1, HEADER - 1, HEADER, HEADER + len(DATA) - 1)},
    "longer": lambda whole: whole + b"\0",
    "twice": lambda whole: whole + whole,
    "zeros": lambda whole: bytes(len(whole)),
    "no header": lambda _: DATA,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_damaged_is_ignored_and_written_anew(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    assert write_object(KEY, DATA, tmp_path / "sparse")
    whole = file(tmp_path / "sparse").read_bytes()
    file(tmp_path / "sparse").write_bytes(damage(whole))
    assert read_object(KEY, tmp_path / "sparse") is None
    assert write_object(KEY, DATA, tmp_path / "sparse")
    assert file(tmp_path / "sparse").read_bytes() == whole


def test_content_of_another_key_or_kind_is_ignored(place: Path) -> None:
    file(place).rename(file(place, OTHER))
    assert read_object(OTHER, place) is None
    file(place, OTHER).rename(place / f"{KEY}.text")
    assert read_text(KEY, place) is None


def test_text_that_is_no_text_is_ignored(place: Path) -> None:
    assert cache._write(KEY, "text", b"\xff", place)
    assert read_text(KEY, place) is None


@pytest.mark.parametrize("wrong", ["", "../" + KEY, KEY + "\n", KEY.upper(), KEY[1:], KEY + "0"])
def test_what_is_no_key_is_refused(wrong: str, tmp_path: Path) -> None:
    for use in (read_object, read_text, lambda name, at: write_object(name, b"", at), lambda name, at: write_text(name, "", at)):
        with pytest.raises(ValueError, match="expected 64 hexadecimal digits") as caught:
            use(wrong, tmp_path / "sparse")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_is_too_large_is_neither_written_nor_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGEST_OBJECT", len(DATA))
    assert read_object(KEY, place) == DATA
    assert not write_object(OTHER, DATA + b"x", place)
    monkeypatch.setattr(cache, "LARGEST_OBJECT", len(DATA) - 1)
    assert read_object(KEY, place) is None
    monkeypatch.setattr(cache, "LARGEST_TEXT", 3)
    assert write_text(KEY, "abc", place)
    assert not write_text(KEY, "üü", place)
    assert read_text(KEY, place) == "abc"


@pytest.mark.parametrize(("limit", "most"), [("MOST_BYTES", 3 * (HEADER + len(DATA))), ("MOST_FILES", 3)])
def test_the_least_lately_used_go_first(limit: str, most: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [key(str(n)) for n in range(4)]
    for n, name in enumerate(names):
        assert write_object(name, DATA, place)
        os.utime(file(place, name), (1000 + n, 1000 + n))
    os.utime(file(place), (999, 999))
    (place / "mine.txt").write_bytes(bytes(10_000))
    os.utime(place / "mine.txt", (1, 1))
    assert read_object(names[0], place) == DATA
    monkeypatch.setattr(cache, limit, most)
    assert write_object(OTHER, DATA, place)
    left = {name for name in [KEY, OTHER, *names] if read_object(name, place) is not None}
    assert left == {names[0], names[3], OTHER}
    assert (place / "mine.txt").exists()


def test_what_a_killed_process_left_is_removed(place: Path) -> None:
    old, young = (place / f".{KEY}.{digit * 16}.part" for digit in "01")
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    assert write_object(OTHER, b"", place)
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize(
    ("function", "code"), [("open", errno.EROFS), ("write", errno.ENOSPC), ("replace", errno.EACCES), ("mkdir", errno.EACCES)]
)
def test_a_disk_that_is_full_or_read_only_is_no_error(
    function: str, code: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(os, function)

    def refused(*arguments: Any, **named: Any) -> Any:
        if function == "open" and not arguments[1] & os.O_CREAT:
            return real(*arguments, **named)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, refused)
    if function != "mkdir":
        assert not write_object(OTHER, DATA, place)
    assert not write_object(KEY, DATA, tmp_path / "new" / "sparse")
    monkeypatch.undo()
    assert [entry.name for entry in place.iterdir()] == [f"{KEY}.obj"]
    assert read_object(KEY, place) == DATA


def test_a_folder_that_may_only_be_read_still_serves(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "utime", refused)
    assert read_object(KEY, place) == DATA


def test_short_writes_and_reads_are_continued(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.write, os.read
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data[:7])))
    monkeypatch.setattr(os, "read", lambda handle, size: read(handle, min(size, 5)))
    assert write_object(OTHER, DATA, place)
    assert read_object(OTHER, place) == DATA


WRITER = """
import sys
from pathlib import Path
from quorate.runtime.sparse.machine.cache import write_object
for turn in range(150):
    assert write_object(sys.argv[1], bytes([turn]) * (100 * turn), Path(sys.argv[2]))
"""


def test_many_processes_may_share_it(tmp_path: Path) -> None:
    source = str(Path(quorate.__file__).parents[1])
    command = [sys.executable, "-c", WRITER, KEY, str(tmp_path / "sparse")]
    running = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": source}) for _ in range(2)]
    seen = set()
    while any(process.poll() is None for process in running):
        data = read_object(KEY, tmp_path / "sparse")
        if data:
            assert data == data[:1] * (100 * data[0])
            seen.add(data[0])
        time.sleep(0.002)
    assert [process.returncode for process in running] == [0, 0]
    assert read_object(KEY, tmp_path / "sparse") == bytes([149]) * 14_900
    assert [entry.name for entry in (tmp_path / "sparse").iterdir()] == [f"{KEY}.obj"]


@pytest.mark.parametrize(
    ("environment", "mac", "expected"),
    [
        ({"QUORATE_CACHE": "/x/y", "XDG_CACHE_HOME": "/z"}, False, "/x/y/sparse"),
        ({"QUORATE_CACHE": "", "XDG_CACHE_HOME": "/z"}, False, None),
        ({"QUORATE_CACHE": "off"}, False, None),
        ({"XDG_CACHE_HOME": "/z"}, False, "/z/quorate/sparse"),
        ({"XDG_CACHE_HOME": ""}, False, "/home/me/.cache/quorate/sparse"),
        ({"XDG_CACHE_HOME": "relative"}, False, "/home/me/.cache/quorate/sparse"),
        ({}, False, "/home/me/.cache/quorate/sparse"),
        ({"HOME": "relative"}, False, None),
        ({"XDG_CACHE_HOME": "/z"}, True, "/home/me/Library/Caches/quorate/sparse"),
    ],
)
@posix
def test_where_it_lies(environment: dict[str, str], mac: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUORATE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cache, "_mac", lambda: mac)
    assert folder() == (None if expected is None else Path(expected))


@posix
def test_a_user_without_a_home_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("QUORATE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert folder() is None


@pytest.mark.parametrize("given", ["cache", "~/cache", "./off", " "])
def test_a_relative_place_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_CACHE", given)
    with pytest.raises(ValueError, match="expected an absolute path, or 'off'") as caught:
        folder()
    assert "\n" not in str(caught.value)
