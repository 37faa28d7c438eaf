"""Reading a bundle's folder: only regular files below it, of the declared size and SHA-256, each opened once.

A path is opened part by part, each relative to the directory opened before and without following symbolic links (``openat`` with
``O_NOFOLLOW``), so that nothing that happens to the folder meanwhile leads out of it. The bytes that were hashed are those returned.
Where the system has no ``openat`` (Windows), every part is looked at (``lstat``) before and what was opened is compared with it.

The folder itself may be reached through a link: it is the caller's word. Hard links are files like others.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from quorate.runtime.manifest import LARGEST, BundleError, File, Manifest
from quorate.runtime.paths import parts

NAME = "manifest.json"
LARGEST_FILE = 2**31 - 1  # bytes; more than that no ONNX file can hold
_AT = os.open in os.supports_dir_fd and os.stat in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
# Not blocking: that a pipe put in a file's place can't hold us.
_FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_NOFOLLOW", "O_BINARY"))


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json`` of a bundle.

    Raises:
        FileNotFoundError: no such folder, or one without a manifest.
        BundleError: no folder, or a manifest that is damaged (see :meth:`Manifest.from_json`).
    """
    folder = Path(folder)
    with _opened(folder, (NAME,), NAME) as (handle, size):
        if size > LARGEST:
            raise BundleError(f"{folder / NAME} has {size:,} bytes: expected at most {LARGEST:,}, it is no manifest")
        text = _all(handle, size, folder, NAME)
    return Manifest.from_json(text, str(folder / NAME))


def read_file(folder: Path, file: File, largest: int = LARGEST_FILE) -> bytes:
    """The bytes of one of a bundle's files, of its size and hash.

    Args:
        folder: the bundle.
        file: as its manifest lists it; the path is checked here again.
        largest: bytes that are read at most.

    Raises:
        BundleError: a path that leads elsewhere, a link, a file that is missing, no regular file, too large, or not what was written.
    """
    folder = Path(folder)
    try:
        path = parts(file.path)
    except ValueError as error:
        raise BundleError(f"{folder}: {error}; export the bundle anew") from error
    if not 0 <= file.size_bytes <= largest:
        raise BundleError(
            f"{folder}: {file.path} is to have {file.size_bytes:,} bytes: expected at most {largest:,}; export it anew"
        )
    with _opened(folder, path, file.path) as (handle, size):
        if size != file.size_bytes:
            raise _damaged(folder, file.path, f"it has {size:,} bytes, the manifest says {file.size_bytes:,}")
        data = _all(handle, size, folder, file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _damaged(folder, file.path, "its SHA-256 is not that of the manifest")
    return data


def _damaged(folder: Path, path: str, reason: str) -> BundleError:
    return BundleError(f"{folder} is damaged: {path}: {reason}; copy or export the bundle anew")


@contextlib.contextmanager
def _opened(folder: Path, path: tuple[str, ...], shown: str) -> Iterator[tuple[int, int]]:
    """A regular file below the folder, as its descriptor and size. Raises BundleError."""
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise BundleError(f"{folder} is no folder: expected a bundle, as quorate export writes it")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} does not exist: expected the folder of a bundle") from error
    except BundleError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(f"{str(folder)!r} can't be read ({reason}): expected the folder of a bundle") from error
    with contextlib.ExitStack() as stack:
        try:
            handle = _at(folder, path, stack) if _AT else _looked(folder, path)
        except OSError as error:
            raise _unopened(folder, shown, error) from error
        stack.callback(os.close, handle)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _damaged(folder, shown, "it is no regular file")
        yield handle, status.st_size


def _unopened(folder: Path, shown: str, error: OSError) -> Exception:
    if error.errno == errno.ENOENT and shown == NAME:
        return FileNotFoundError(f"{folder} has no {NAME}: expected a bundle, as quorate export writes it")
    if error.errno == errno.ENOENT:
        return _damaged(folder, shown, "it is missing")
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
        return _damaged(folder, shown, "it or a folder above it is a link or no folder")
    return BundleError(
        f"{folder / shown} can't be read ({error.strerror or error}): give leave to read it, or copy the bundle anew"
    )


def _at(folder: Path, path: tuple[str, ...], stack: contextlib.ExitStack) -> int:
    """Open by ``openat``. Raises OSError."""
    above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, above)
    for part in path[:-1]:
        above = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=above)
        stack.callback(os.close, above)
    # A device may do something when it is opened, so what stands there is looked at before as well as after.
    _check_regular(os.stat(path[-1], dir_fd=above, follow_symlinks=False))
    return os.open(path[-1], _FLAGS, dir_fd=above)


def _looked(folder: Path, path: tuple[str, ...]) -> int:
    """Open by name, after looking at every part; what was opened must be what was seen. Raises OSError."""
    place = os.path.realpath(folder)
    for part in path[:-1]:
        place = os.path.join(place, part)
        status = os.lstat(place)
        if not stat.S_ISDIR(status.st_mode) or _stands_for_another(status):
            raise OSError(errno.ENOTDIR, "a link or no folder")
    place = os.path.join(place, path[-1])
    seen = os.lstat(place)
    _check_regular(seen)
    handle = os.open(place, _FLAGS)
    opened = os.fstat(handle)
    if (opened.st_dev, opened.st_ino) != (seen.st_dev, seen.st_ino) or os.path.realpath(place) != place:
        os.close(handle)
        raise OSError(errno.ELOOP, "it was exchanged while it was opened")
    return handle


def _stands_for_another(status: os.stat_result) -> bool:
    """Whether it is a link or a junction of Windows: the name surrogate bit of its reparse tag."""
    return bool(int(getattr(status, "st_reparse_tag", 0)) & 0x20000000)


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode) or _stands_for_another(status):
        raise OSError(errno.ELOOP, "a link")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def _all(handle: int, size: int, folder: Path, shown: str) -> bytes:
    """The file's bytes, ``size`` in all, as a rule by one call and so without a copy. Raises BundleError where there are fewer or more."""
    blocks: list[bytes] = []
    left = size
    try:
        while left:
            blocks.append(os.read(handle, left))
            if not blocks[-1]:
                raise _damaged(folder, shown, "it became shorter while it was read")
            left -= len(blocks[-1])
        if os.read(handle, 1):
            raise _damaged(folder, shown, "it became longer while it was read")
    except OSError as error:
        raise BundleError(
            f"{folder / shown} can't be read ({error.strerror or error}): copy or export the bundle anew"
        ) from error
    return b"".join(blocks)
