"""Files that are either the old one or the new one, never half of each.

A file is written beside its destination, flushed to the disk, and moved over it in one step (POSIX ``rename``), so that a kill or
a full disk at any moment leaves what was there before.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; what is written there replaces ``path`` when the block ends well.

    Raises ``OSError`` with one line that names ``path`` when it can't be written (full disk, no permission); ``path`` then
    holds what it held before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        mode = temporary.stat().st_mode  # by the umask; some writers make a file of their own that only its owner can read
        yield temporary
        temporary.chmod(mode)
        _flush(temporary, os.O_RDWR)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"could not write {path}: {reason}; what was there before is unchanged: make room or choose another place"
        raise (OSError(message) if error.errno is None else OSError(error.errno, message)) from error
    finally:
        with contextlib.suppress(OSError):  # a parent that is no folder
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system can flush a folder; the new file is in place all the same
        _flush(path.parent, os.O_RDONLY)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as strict JSON, atomically. ValueError for NaN, infinity, or what JSON has no words for."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} can't hold this as JSON ({error}): give finite numbers, text, lists and dicts only") from error
    write_text(path, text + "\n")


def read_json(path: str | Path, expected: str) -> Any:
    """Read a JSON file; ``expected`` says in words what it should have been, for the error."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected {expected}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON ({error}): expected {expected}") from error


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write named arrays and JSON values about them as one safetensors file, atomically; equal content gives equal bytes."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={"about": json.dumps(about)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def load_arrays(path: str | Path, expected: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`save_arrays` wrote → (arrays, about); ``expected`` says in words what it should be, for the error."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected {expected}")
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}): expected {expected}") from error
    foreign = [f"{name!r} is {array.dtype}" for name, array in arrays.items() if array.dtype.kind not in "biufc"]
    if foreign:  # a type that NumPy has only where another package brought it
        raise ValueError(f"{path} is not a readable safetensors file (array {foreign[0]}): expected {expected}")
    return arrays, dict(about)


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
