"""Reading a bundle's folder: what is there is read whole; links, pipes, other paths, other sizes and other bytes are refused."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import tiny_bundles
from quorate.runtime import folder as rooms
from quorate.runtime.folder import read_file, read_manifest
from quorate.runtime.manifest import LARGEST, BundleError, File
from quorate.runtime.paths import LONGEST, check_distinct, parts

pytestmark = pytest.mark.deciding
DATA = b"0123456789" * 300
SECRET = b"x" * 3000


def listed(path: str, data: bytes = DATA, **changed: Any) -> File:
    return File(**({"path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} | changed))


@pytest.fixture(params=["openat", "lstat"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one file, read in both ways; outside lies a secret of the same size."""
    if request.param == "openat" and not rooms._AT:
        pytest.skip("this system has no openat")
    monkeypatch.setattr(rooms, "_AT", request.param == "openat")
    made = tmp_path / "bundle"
    (made / "content").mkdir(parents=True)
    (made / "content" / "a.bin").write_bytes(DATA)
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.bin").write_bytes(DATA)
    return made


def test_reads_what_was_written(bundle: Path) -> None:
    assert read_file(bundle, listed("content/a.bin")) == DATA
    (bundle / "empty").write_bytes(b"")
    assert read_file(bundle, listed("empty", b"")) == b""
    os.link(bundle / "content" / "a.bin", bundle / "hard")
    assert read_file(bundle, listed("hard")) == DATA


def test_the_folder_itself_may_be_a_link(bundle: Path) -> None:
    link = bundle.parent / "link"
    link.symlink_to(bundle)
    assert read_file(link, listed("content/a.bin")) == DATA


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../secret", "content/../../secret", "content/./a.bin", "./content/a.bin", "content//a.bin", "content/", "/", "",
        ".", "..", "content\\a.bin", "C:a.bin", "C:/a.bin", "content/a.bin\n", "content/a.bin\0", "con\ntent/a.bin", "content/a.bin:s",
        "content/.a", "content/a.", "NUL", "content/nul.txt", "COM1/a", "ﬁle", "content/a․bin", "~/a", "a b", "$HOME", "a" * (LONGEST + 1),
        "-a", "content/-a",
    ],
)  # fmt: skip
def test_paths_that_lead_elsewhere(bundle: Path, path: str) -> None:
    with pytest.raises(BundleError, match="path") as error:
        read_file(bundle, listed(path, SECRET))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError):
        parts(path)


@pytest.mark.parametrize(
    "path", ["a", "a/b", "a.b/c.d", "content-0123456789ab/stage0.ticket.safetensors", "_/a+", "a" * LONGEST, "a..b"]
)
def test_paths_that_stay_inside(path: str) -> None:
    assert "/".join(parts(path)) == path


def test_paths_that_differ_in_case_alone() -> None:
    check_distinct(["a/b", "a/c", "a/b"])
    with pytest.raises(ValueError, match="'a/B' and 'A/b'"):
        check_distinct(["a/B", "a/c", "A/b"])


def test_links_are_not_followed(bundle: Path) -> None:
    (bundle / "file").symlink_to(bundle.parent / "secret")
    (bundle / "inside").symlink_to("content/a.bin")
    (bundle / "folder").symlink_to(bundle.parent / "elsewhere")
    (bundle / "self").symlink_to("self")
    (bundle / "dangling").symlink_to("nowhere")
    for path in ("file", "inside", "folder/a.bin", "self", "dangling"):
        with pytest.raises(BundleError, match="a link or no folder"):
            read_file(bundle, listed(path))


def test_what_is_no_file(bundle: Path) -> None:
    os.mkfifo(bundle / "pipe")
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(os.path.relpath(bundle / "socket"))
        for path, why in [
            ("pipe", "no regular file"), ("socket", "no regular file"), ("content", "no regular file"), ("absent", "is missing"),
            ("absent/a", "is missing"), ("content/a.bin/b", "no folder"),
        ]:  # fmt: skip
            with pytest.raises(BundleError, match=why):
                read_file(bundle, listed(path))


def test_a_pipe_put_in_its_place_does_not_hang(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanged between the look and the opening."""
    (bundle / "a").write_bytes(DATA)
    real = rooms._check_regular

    def exchange(status: os.stat_result) -> None:
        real(status)
        (bundle / "a").unlink()
        os.mkfifo(bundle / "a")

    monkeypatch.setattr(rooms, "_check_regular", exchange)
    failed: list[BaseException] = []

    def read() -> None:
        try:
            read_file(bundle, listed("a"))
        except BundleError as error:
            failed.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert len(failed) == 1


def test_a_link_put_in_its_place_is_not_followed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "a").write_bytes(DATA)
    real = rooms._check_regular

    def exchange(status: os.stat_result) -> None:
        real(status)
        (bundle / "a").unlink()
        (bundle / "a").symlink_to(bundle.parent / "elsewhere" / "a.bin")

    monkeypatch.setattr(rooms, "_check_regular", exchange)
    with pytest.raises(BundleError, match="a link or no folder"):
        read_file(bundle, listed("a"))


def test_other_bytes(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"has 3,000 bytes, the manifest says 2,999"):
        read_file(bundle, listed("content/a.bin", DATA[:-1]))
    with pytest.raises(BundleError, match="SHA-256"):
        read_file(bundle, listed("content/a.bin", SECRET))
    for size in (-1, 2**31):
        with pytest.raises(BundleError, match="expected at most"):
            read_file(bundle, listed("content/a.bin", size_bytes=size))
    with pytest.raises(BundleError, match="expected at most 100;"):
        read_file(bundle, listed("content/a.bin"), largest=100)


@pytest.mark.parametrize(("given", "why"), [(1, "longer"), (5000, "shorter")])
def test_a_file_that_changes_while_it_is_read(bundle: Path, monkeypatch: pytest.MonkeyPatch, given: int, why: str) -> None:
    real = os.fstat

    def other(handle: int) -> os.stat_result:
        status = list(real(handle))
        status[6] = given
        return os.stat_result(status)

    monkeypatch.setattr(rooms, "_at", lambda folder, path, _: os.open(folder.joinpath(*path), os.O_RDONLY))
    monkeypatch.setattr(rooms, "_looked", lambda folder, path: os.open(folder.joinpath(*path), os.O_RDONLY))
    monkeypatch.setattr(rooms.os, "fstat", other)
    with pytest.raises(BundleError, match=why):
        read_file(bundle, listed("content/a.bin", size_bytes=given))


def test_a_file_that_may_not_be_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(rooms.os, "open", denied)
    with pytest.raises(BundleError, match=r"a\.bin can't be read \(Permission denied\)"):
        read_file(bundle, listed("content/a.bin"))


def test_nothing_is_left_open(bundle: Path) -> None:
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("this system does not list what is open")
    before = len(list(handles.iterdir()))
    read_file(bundle, listed("content/a.bin"))
    for file in (listed("content/a.bin", SECRET), listed("content"), listed("content/absent"), listed("content/a.bin/b")):
        with pytest.raises(BundleError):
            read_file(bundle, file)
    assert len(list(handles.iterdir())) == before


def test_the_manifest(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        read_manifest(bundle)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is no folder"):
        read_manifest(tmp_path / "secret")
    with pytest.raises(BundleError, match="can't be read"):
        read_manifest(Path("a\0b"))
    with (bundle / "manifest.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(BundleError, match="it is no manifest"):
        read_manifest(bundle)
    written = tiny_bundles.bundle(tmp_path / "real", [tiny_bundles.member("a", 1)])
    assert read_manifest(tmp_path / "real") == written
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").symlink_to(tmp_path / "real" / "manifest.json")
    with pytest.raises(BundleError, match="link"):
        read_manifest(bundle)
