"""The cache's content is executed: nothing is read or written where another user could have a hand in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from quorate.runtime.sparse.machine import cache
from quorate.runtime.sparse.machine.cache import key, read_object, write_object

pytestmark = [pytest.mark.deciding, pytest.mark.skipif(os.name != "posix", reason="modes and owners of POSIX")]
DATA = bytes(range(256)) * 5
KEY, OTHER = key("a"), key("b")


@pytest.fixture(params=["openat", "paths"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one object, used in both ways."""
    if request.param == "openat" and not cache._AT:
        pytest.skip("this system has no openat")
    monkeypatch.setattr(cache, "_AT", request.param == "openat")
    made = tmp_path / "above" / "sparse"
    assert write_object(KEY, DATA, made)
    return made


def check_unused(place: Path) -> None:
    """Neither read nor written."""
    before = sorted(os.listdir(place))
    assert read_object(KEY, place) is None
    assert not write_object(OTHER, DATA, place)
    assert sorted(os.listdir(place)) == before


@pytest.mark.parametrize("mode", [0o750, 0o740, 0o720, 0o710, 0o701, 0o702, 0o704, 0o777, 0o1777])
def test_a_folder_that_others_have_rights_in(mode: int, place: Path) -> None:
    place.chmod(mode)
    check_unused(place)
    place.chmod(0o700)
    assert read_object(KEY, place) == DATA


def test_a_folder_of_another_user(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    check_unused(place)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_was_given_to_another_user(what: str, place: Path) -> None:
    given = place if what == "folder" else place / f"{KEY}.obj"
    os.chown(given, 65_534, 65_534)
    assert read_object(KEY, place) is None
    assert write_object(KEY, DATA, place) == (what == "file")


@pytest.mark.parametrize("look", ["stat", "fstat"])
def test_a_file_of_another_user(look: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen before or after it is opened."""
    real = getattr(os, look)

    def foreign(*arguments: Any, **named: Any) -> os.stat_result:
        status = real(*arguments, **named)
        if not stat.S_ISREG(status.st_mode):
            return status
        return os.stat_result((*status[:4], status.st_uid + 1, *status[5:]))

    monkeypatch.setattr(os, look, foreign)
    assert read_object(KEY, place) is None
    monkeypatch.undo()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o720])
def test_a_file_that_others_may_write(mode: int, place: Path) -> None:
    (place / f"{KEY}.obj").chmod(mode)
    assert read_object(KEY, place) is None
    assert write_object(KEY, DATA, place)
    assert (place / f"{KEY}.obj").stat().st_mode & 0o777 == 0o600
    assert read_object(KEY, place) == DATA


def test_a_file_that_others_may_read(place: Path) -> None:
    (place / f"{KEY}.obj").chmod(0o644)
    assert read_object(KEY, place) == DATA


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o703])
@pytest.mark.parametrize("level", [0, 1])
def test_a_folder_above_that_everyone_may_change(mode: int, level: int, place: Path) -> None:
    place.parents[level].chmod(mode)
    check_unused(place)
    place.parents[level].chmod(0o1777)
    assert read_object(KEY, place) == DATA
    place.parents[level].chmod(0o775)
    assert read_object(KEY, place) == DATA


def test_everyones_folder_behind_a_link_above(place: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(place.parent)
    through = tmp_path / "link" / "sparse"
    assert read_object(KEY, through) == DATA
    place.parent.chmod(0o777)
    check_unused(through)
    place.parent.chmod(0o755)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "link").symlink_to(place.parent)
    assert read_object(KEY, tmp_path / "links" / "link" / "sparse") == DATA
    deep = tmp_path / "deep" / "er"
    deep.parent.mkdir()
    place.parent.rename(deep)
    (tmp_path / "links" / "deep").symlink_to(deep)
    assert read_object(KEY, tmp_path / "links" / "deep" / "sparse") == DATA
    deep.parent.chmod(0o777)
    check_unused(tmp_path / "links" / "deep" / "sparse")


def test_a_link_as_folder(place: Path, tmp_path: Path) -> None:
    (tmp_path / "sparse").symlink_to(place)
    check_unused(tmp_path / "sparse")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert not write_object(KEY, DATA, tmp_path / "dangling")
    assert not (tmp_path / "nowhere").exists()


def test_a_file_as_folder(place: Path) -> None:
    assert read_object(KEY, place / f"{KEY}.obj") is None
    assert not write_object(KEY, DATA, place / f"{KEY}.obj")
    assert not write_object(KEY, DATA, place / f"{KEY}.obj" / "below" / "sparse")


def test_a_link_as_file_is_replaced_not_followed(place: Path, tmp_path: Path) -> None:
    (place / f"{KEY}.obj").rename(tmp_path / "outside")
    (place / f"{KEY}.obj").symlink_to(tmp_path / "outside")
    assert read_object(KEY, place) is None
    before = (tmp_path / "outside").stat()
    assert write_object(KEY, DATA, place)
    assert not (place / f"{KEY}.obj").is_symlink()
    assert (tmp_path / "outside").stat() == before
    assert read_object(KEY, place) == DATA


def test_a_pipe_does_not_hold_it(place: Path) -> None:
    (place / f"{KEY}.obj").unlink()
    os.mkfifo(place / f"{KEY}.obj", 0o600)
    assert read_object(KEY, place) is None
    assert write_object(KEY, DATA, place)
    assert read_object(KEY, place) == DATA


def test_a_folder_in_the_files_place(place: Path) -> None:
    (place / f"{OTHER}.obj").mkdir(mode=0o700)
    assert read_object(OTHER, place) is None
    assert not write_object(OTHER, DATA, place)
    assert sorted(os.listdir(place)) == sorted([f"{KEY}.obj", f"{OTHER}.obj"])


@pytest.mark.parametrize("kind", ["link", "pipe", "other file"])
def test_a_file_exchanged_while_it_is_opened(kind: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, target = os.open, place / f"{KEY}.obj"

    def exchanged(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if str(path).endswith(".obj"):
            target.rename(tmp_path / "outside")
            if kind == "link":
                target.symlink_to(tmp_path / "outside")
            elif kind == "pipe":
                os.mkfifo(target, 0o600)
            else:
                target.write_bytes((tmp_path / "outside").read_bytes())
                target.chmod(0o600)
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", exchanged)
    assert read_object(KEY, place) is None


@pytest.mark.skipif(not cache._AT, reason="this system has no openat")
def test_a_folder_exchanged_after_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All happens in the folder that was looked at."""
    place, evil, moved = tmp_path / "sparse", tmp_path / "evil", tmp_path / "moved"
    assert write_object(KEY, b"evil", evil)
    assert write_object(KEY, DATA, place)
    real = cache._check_folder

    def exchanged(path: str, status: os.stat_result) -> None:
        real(path, status)
        if not moved.exists():
            place.rename(moved)
            place.symlink_to(evil)

    monkeypatch.setattr(cache, "_check_folder", exchanged)
    assert read_object(KEY, place) == DATA
    place.unlink()
    moved.rename(place)
    assert write_object(OTHER, DATA, place)
    assert os.listdir(evil) == [f"{KEY}.obj"]
    assert (moved / f"{OTHER}.obj").exists()
