r"""Paths inside a bundle: relative, with ``/``, in characters that mean the same on every system.

    path   =  part *( "/" part )        at most 300 characters
    part   =  one of A–Z a–z 0–9 _, then those and . + -, the last no dot

So there is no absolute path, no ``..``, backslash, drive, stream or line break, and nothing that begins with a dot. Names that Windows
keeps for devices (``NUL``, ``com1.txt``) are refused on every system: a bundle that can be read on one can be read on all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 300
_PATH = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.+-]*[A-Za-z0-9_+-])?(?:/(?!\Z)|\Z))+")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


def parts(path: str) -> tuple[str, ...]:
    """The parts of a path inside a bundle. Raises ValueError for any other text."""
    if not isinstance(path, str) or len(path) > LONGEST or _PATH.fullmatch(path) is None:
        shown = repr(path)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}…"
        raise ValueError(f"the path {shown} leads elsewhere: expected a relative path of letters, digits, _ . + - and /")
    found = tuple(path.split("/"))
    if any(part.split(".")[0].lower() in _DEVICES for part in found):
        raise ValueError(f"the path {path!r} names a device on Windows: expected another name")
    return found


def check_distinct(paths: Iterable[str]) -> None:
    """Refuse paths that a file system without upper and lower case would take for one. Raises ValueError."""
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(path.lower(), path)
        if other != path:
            raise ValueError(f"the paths {other!r} and {path!r} are one on some systems: expected different names")
