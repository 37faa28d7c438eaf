"""Machine code and tuning results kept on the disk, for the same user on the same processor.

What lies there is executed, so nothing is taken that another user could have put there: the folder must be a directory itself (no link),
of this user, with no rights for anyone else, below none that everyone may change. It is opened once and all is done relative to it
(``openat``, never through a link), so that nothing that happens to the path meanwhile leads elsewhere. A file must be regular, of this
user, writable to nobody else, and begin with a header that names its content:

    16 bytes magic and format · 32 bytes key · 8 bytes length · 32 bytes SHA-256 of what follows · exactly so many bytes

The key is the SHA-256 of all that the content depends on. Whatever is missing, refused or damaged is as if it weren't there, and a disk
that is full or may not be written is no error: the caller makes the content anew. Files are written beside their place and moved over it
in one step, so any number of processes may share the folder. It is kept below :data:`MOST_BYTES` and :data:`MOST_FILES` by removing the
files that were not used for longest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1
"""Raised when the header changes, or how code is made of a text."""
VARIABLE = "QUORATE_CACHE"
MOST_BYTES = 256 * 2**20
MOST_FILES = 10_000
"""Of all files together: bytes, and how many, as they are looked through whenever one is written."""
LARGEST_OBJECT, LARGEST_TEXT = 16 * 2**20, 2**20
"""Bytes; what is larger is neither written nor read."""
ABANDONED = 3600.0  # seconds after which a file that is still being written belongs to a process that died

_HEADER = struct.Struct("<16s32sQ32s")
_KEY = re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(r"[0-9a-f]{64}\.(obj|text)|\.[0-9a-f]{64}\.[0-9a-f]{16}\.part")
_AT = {os.open, os.stat, os.unlink, os.rename, os.utime} <= os.supports_dir_fd and os.listdir in os.supports_fd
# Not blocking: that a pipe put in a file's place can't hold us.
_READ = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_NOFOLLOW", "O_BINARY"))
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | sum(getattr(os, flag, 0) for flag in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"))


def folder() -> Path | None:
    """Where things are kept; None where nothing is.

    ``$QUORATE_CACHE/sparse``, by default ``quorate/sparse`` in the platform's cache folder: ``$XDG_CACHE_HOME`` or ``~/.cache``, on macOS
    ``~/Library/Caches``, on Windows ``%LOCALAPPDATA%``. A ``QUORATE_CACHE`` that is empty or ``off`` turns it off.

    Raises:
        ValueError: ``QUORATE_CACHE`` is a relative path.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        if given in ("", "off"):
            return None
        if not os.path.isabs(given):
            raise ValueError(f"{VARIABLE} is {given!r}: expected an absolute path, or 'off' for no cache")
        return Path(given) / "sparse"
    above = _platform()
    return None if above is None else above / "quorate" / "sparse"


def key(*parts: str) -> str:
    """The name of what depends on these texts, in this order, and on nothing else: 64 hexadecimal digits."""
    digest = hashlib.sha256(f"quorate {FORMAT} {len(parts)}".encode())
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(struct.pack("<Q", len(data)) + data)
    return digest.hexdigest()


def read_object(key: str, folder: Path) -> bytes | None:
    """The object written under a key; None where there is none that can be trusted. ValueError for what is no key."""
    return _read(key, "obj", LARGEST_OBJECT, folder)


def write_object(key: str, data: bytes, folder: Path) -> bool:
    """Keep an object under a key; whether that went well, which nobody has to look at. ValueError for what is no key."""
    return len(data) <= LARGEST_OBJECT and _write(key, "obj", data, folder)


def read_text(key: str, folder: Path) -> str | None:
    """The text written under a key; None where there is none that can be trusted. ValueError for what is no key."""
    data = _read(key, "text", LARGEST_TEXT, folder)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return None


def write_text(key: str, text: str, folder: Path) -> bool:
    """Keep a text under a key; whether that went well, which nobody has to look at. ValueError for what is no key."""
    data = text.encode()
    return len(data) <= LARGEST_TEXT and _write(key, "text", data, folder)


def _platform() -> Path | None:
    given = {"nt": "LOCALAPPDATA"}.get(os.name, "XDG_CACHE_HOME")
    place = os.environ.get(given, "")
    if os.path.isabs(place) and not _mac():  # a relative one is to be ignored (XDG Base Directory Specification)
        return Path(place)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if not home.is_absolute():
        return None
    return home / ("AppData/Local" if os.name == "nt" else "Library/Caches" if _mac() else ".cache")


def _mac() -> bool:
    return str(sys.platform) == "darwin"


# ---------------------------------------------------------------- files


def _name(key: str, kind: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of the cache: expected 64 hexadecimal digits, as key() makes them")
    return f"{key}.{kind}"


def _header(key: str, kind: str, data: bytes) -> bytes:
    magic = f"quorate {kind} {FORMAT}\n".encode()
    return _HEADER.pack(magic, bytes.fromhex(key), len(data), hashlib.sha256(data).digest())


def _read(key: str, kind: str, largest: int, folder: Path) -> bytes | None:
    name = _name(key, kind)
    with contextlib.suppress(OSError), _opened(folder, make=False) as place:
        path, at = place.at(name)
        # A device may do something when it is opened, so what stands there is looked at before as well as after.
        seen = os.stat(path, dir_fd=at, follow_symlinks=False)
        if not _trusted(seen, largest):
            return None
        handle = os.open(path, _READ, dir_fd=at)
        try:
            opened = os.fstat(handle)
            if not _trusted(opened, largest) or (opened.st_dev, opened.st_ino) != (seen.st_dev, seen.st_ino):
                return None
            whole = _all(handle, opened.st_size)
        finally:
            os.close(handle)
        data = whole[_HEADER.size :]
        if whole[: _HEADER.size] != _header(key, kind, data):
            return None
        with contextlib.suppress(OSError):  # a disk that may only be read
            os.utime(path, dir_fd=at, follow_symlinks=not _AT)
        return data
    return None


def _trusted(status: os.stat_result, largest: int) -> bool:
    """Whether it is a regular file of this user that nobody else may write, of a sensible size."""
    sized = _HEADER.size <= status.st_size <= _HEADER.size + largest
    return stat.S_ISREG(status.st_mode) and sized and _own(status) and (os.name == "nt" or not status.st_mode & 0o022)


def _own(status: os.stat_result) -> bool:
    # On Windows files have no owner that Python tells; the user's profile, where the folder lies, is closed to others by its access list.
    return os.name == "nt" or status.st_uid == os.geteuid()


def _all(handle: int, size: int) -> bytes:
    """So many bytes of a file; fewer if it became shorter."""
    blocks: list[bytes] = []
    left = size
    while left and (block := os.read(handle, left)):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def _write(key: str, kind: str, data: bytes, folder: Path) -> bool:
    name = _name(key, kind)
    try:
        with _opened(folder, make=True) as place:
            temporary, at = place.at(f".{key}.{secrets.token_hex(8)}.part")
            handle = os.open(temporary, _WRITE, 0o600, dir_fd=at)
            try:
                try:
                    left = memoryview(_header(key, kind, data) + data)
                    while left:
                        left = left[os.write(handle, left) :]
                finally:
                    os.close(handle)
                os.replace(temporary, place.at(name)[0], src_dir_fd=at, dst_dir_fd=at)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=at)
                raise
            _trim(place)
    except OSError:
        return False
    return True


def _trim(place: _Place) -> None:
    """Remove what a process left that died, then the files not used for longest until the rest fits. Others' files are left alone."""
    known: list[tuple[float, int, str]] = []
    for name in filter(_OURS.fullmatch, place.names()):
        path, at = place.at(name)
        with contextlib.suppress(OSError):  # another process was quicker
            status = os.stat(path, dir_fd=at, follow_symlinks=False)
            if name.endswith(".part"):
                if time.time() - status.st_mtime > ABANDONED:
                    os.unlink(path, dir_fd=at)
            else:
                known.append((status.st_mtime, status.st_size, name))
    size, count = sum(entry[1] for entry in known), len(known)
    for _, length, name in sorted(known):
        if size <= MOST_BYTES and count <= MOST_FILES:
            break
        path, at = place.at(name)
        with contextlib.suppress(OSError):
            os.unlink(path, dir_fd=at)
        size, count = size - length, count - 1


# ---------------------------------------------------------------- the folder


@dataclass(frozen=True)
class _Place:
    """An opened folder; ``handle`` is None where the system can't open files relative to one (Windows)."""

    path: str
    handle: int | None

    def at(self, name: str) -> tuple[str, int | None]:
        """A path and what it is relative to, as functions of ``os`` take them."""
        return (os.path.join(self.path, name), None) if self.handle is None else (name, self.handle)

    def names(self) -> list[str]:
        return os.listdir(self.path if self.handle is None else self.handle)


@contextlib.contextmanager
def _opened(folder: Path, make: bool) -> Iterator[_Place]:
    """The folder, if it is ours alone. Raises OSError."""
    path = os.path.abspath(folder)
    if make:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    _check_above(path)
    if not _AT:
        _check_folder(path, os.lstat(path))
        yield _Place(path, None)
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_folder(path, os.fstat(handle))
        yield _Place(path, handle)
    finally:
        os.close(handle)


def _check_folder(path: str, status: os.stat_result) -> None:
    # The name surrogate bit of Windows' reparse tags: a junction is a link by another name.
    if not stat.S_ISDIR(status.st_mode) or int(getattr(status, "st_reparse_tag", 0)) & 0x20000000:
        raise NotADirectoryError(f"{path} is a link or no folder")
    if not _own(status) or (os.name != "nt" and status.st_mode & 0o077):
        raise PermissionError(f"{path} is not this user's alone")


def _check_above(path: str) -> None:
    """No folder above, once links are followed, may be changed by everyone (unless it is sticky, as /tmp is). Raises OSError."""
    if os.name == "nt":  # access lists instead of modes
        return
    above = os.path.realpath(os.path.dirname(path))
    while True:
        mode = os.stat(above).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise PermissionError(f"{above} may be changed by everyone")
        if above == os.path.dirname(above):
            return
        above = os.path.dirname(above)
