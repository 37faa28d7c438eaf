"""What tunings found out, kept on the disk beside the machine code (:mod:`quorate.runtime.sparse.machine.cache`).

One belongs to a program and its ticket (by SHA-256), a processor, a number of threads and a version of Quorate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from quorate import __version__
from quorate.runtime.manifest import File, Manifest, Stage
from quorate.runtime.sparse.machine import cache
from quorate.runtime.sparse.machine.host import here
from quorate.runtime.sparse.tuning import FORMAT, Tuning


def key_of(program: str, ticket: str, threads: int) -> str:
    """Under which the tuning of a program is kept.

    Args:
        program, ticket: SHA-256 of the files, in hexadecimal; "" where there is no ticket.
        threads: that a call will use.

    Raises:
        ImportError: llvmlite is not installed.
    """
    host = here()
    return cache.key("tuning", str(FORMAT), __version__, program, ticket, host.cpu, host.features, str(threads))


def stage_key(files: Mapping[str, File], stage: Stage, threads: int) -> str:
    """The same of a bundle's stage with a ticket; ``files`` by path."""
    return key_of(files[stage.program].sha256, files[str(stage.ticket)].sha256, threads)


def kept(key: str) -> Tuning | None:
    """The tuning that was kept under a key; None where there is none, or none of this version."""
    folder = cache.folder()
    text = None if folder is None else cache.read_text(key, folder)
    try:
        return None if text is None else Tuning.from_json(text)
    except ValueError:
        return None


def told(manifest: Manifest, threads: int) -> dict[str, str | None]:
    """Which tuning every stage with a ticket would run by: {stage: SHA-256 of it; None where none was kept}. Raises as :func:`key_of`."""
    files = {file.path: file for file in manifest.files}
    found: dict[str, str | None] = {}
    for stage in manifest.stages:
        if stage.ticket is not None:
            tuning = kept(stage_key(files, stage, threads))
            found[stage.ports.stage] = None if tuning is None else hashlib.sha256(tuning.to_json().encode()).hexdigest()
    return found


def keep(key: str, tuning: Tuning) -> None:
    """Keep a tuning under a key. Raises as :func:`check_folder`."""
    _write(key, tuning.to_json())


def check_folder() -> None:
    """That tunings can be kept.

    Raises:
        ValueError: there is no cache folder.
        OSError: it can't be written to, or is not this user's alone.
    """
    _write(cache.key("whether tunings can be kept"), "")


def _write(key: str, text: str) -> None:
    folder = cache.folder()
    if folder is None:
        raise ValueError(f"{cache.VARIABLE} turns the cache off: a tuning would be lost, name a folder in it")
    if not cache.write_text(key, text, folder):
        raise OSError(
            f"the cache {folder} can't be written: expected a folder of this user alone with room left, see {cache.VARIABLE}"
        )
