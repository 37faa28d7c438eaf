"""Files sorted into class folders: which parts, classes and files a folder holds, without opening one of them.

Two layouts, told apart by the folders directly in the root:

    root/class/file              one part, "all", which is then split
    root/part/class/file         parts train, test, validation (or val), calibration (or cal); train has to be there

If one of the root's folders is called like a part, all of them have to be, unless `classes` names that folder as a
class. Whatever begins with a dot is hidden and left out. Symbolic links are followed, but no folder is listed twice:
that would be a loop, or the same files under two names.

Shapes: labels number the classes 0..C − 1, in the order of their sorted names or of `classes`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

PARTS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "val": "validation",
    "calibration": "calibration",
    "cal": "calibration",
}
SHOWN = 5


class File(NamedTuple):
    """One file: its path below the root with forward slashes, label (−1: none), size in bytes, time of change in ns.

    A link to nothing has size and time 0; opening it is what fails.
    """

    path: str
    label: int
    size: int
    modified_ns: int


@dataclass(frozen=True)
class Listing:
    """What a folder holds. parts: {"all": files} or {part: files}, each sorted by class and path; other: paths of files
    inside class folders, or beside them, that have none of the extensions."""

    root: Path
    classes: tuple[str, ...]
    parts: dict[str, tuple[File, ...]]
    other: tuple[str, ...]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads round in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


class _Search:
    """The folders listed so far and the files passed over, below one root."""

    def __init__(self, root: str | Path, extensions: Sequence[str]) -> None:
        self.root = Path(root)
        if isinstance(extensions, str) or not extensions or any(not e.startswith(".") or e != e.lower() for e in extensions):
            raise ValueError(f"extensions must be lower-case suffixes such as ('.png', '.jpg'), got {extensions!r}")
        if not self.root.is_dir():
            raise FileNotFoundError(f"expected a folder, found none at {self.root}: check the path")
        self.extensions = tuple(extensions)
        self.seen: dict[tuple[int, int], str] = {}
        self.other: list[str] = []

    def scan(self, below: str) -> tuple[list[str], list[File]]:
        """(names of the folders, files with one of the extensions, unlabelled) directly in a folder below the root."""
        folder = self.root / below
        try:
            status = folder.stat()
            with os.scandir(folder) as entries:
                found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
            folders = [e.name for e in found if is_folder(e)]
        except OSError as error:
            raise ValueError(f"{str(folder)!r} cannot be listed: {error}: remove what is in the way or allow reading") from error
        known = self.seen.setdefault((status.st_dev, status.st_ino), below)
        if known != below:
            raise ValueError(
                f"{self.root}: {below!r} and {known or '.'!r} are one folder, joined by a symbolic link: "
                "its files would be taken twice; remove the link"
            )
        inside = set(folders)
        files = [self._file(f"{below}/{e.name}" if below else e.name, e) for e in found if e.name not in inside]
        return folders, [file for file in files if file is not None]

    def _file(self, path: str, entry: os.DirEntry[str]) -> File | None:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{self.root}: file names must be UTF-8, got {path!r}: rename it") from error
        if entry.name.lower().endswith(self.extensions):
            try:
                status = entry.stat()
            except OSError:
                return File(path, -1, 0, 0)
            if stat.S_ISREG(status.st_mode):
                return File(path, -1, status.st_size, status.st_mtime_ns)
        self.other.append(path)
        return None

    def below(self, below: str, nested: bool) -> list[File]:
        """All files in a folder, with those of its subfolders if `nested`; ValueError for subfolders otherwise."""
        folders, files = self.scan(below)
        if folders and not nested:
            raise ValueError(
                f"{self.root}: {below!r} was taken for a class folder, but holds the folders {name_some(folders)}: call the "
                f"parts {name_some(PARTS, shown=len(PARTS))}, or pass nested=True if all files below belong to the class"
            )
        for name in folders:
            files += self.below(f"{below}/{name}" if below else name, nested)
        return files


def name_some(names: Iterable[object], shown: int = SHOWN) -> str:
    """ "'a', 'b'" or "'a', 'b', 'c', 'd', 'e' and 40 more": the first few, quoted, for an error message."""
    every = list(names)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(map(repr, every[:shown])) + more


def part_folders(root: Path, folders: Sequence[str], classes: Sequence[str] | None) -> dict[str, str]:
    """{part: folder} of the layout with parts, {"all": ""} of the other; ValueError where it could be either."""
    named = [f for f in folders if f in PARTS and f not in (classes or ())]
    if not named:
        return {"all": ""}
    others = [f for f in folders if f not in named]
    if others:
        raise ValueError(
            f"{root} must hold either part folders or class folders, got the parts {name_some(named)} beside "
            f"{name_some(others)}: parts are called {name_some(PARTS, shown=len(PARTS))}; move the others elsewhere, or name "
            "all class folders by classes="
        )
    found: dict[str, str] = {}
    for folder in named:
        if PARTS[folder] in found:
            raise ValueError(f"{root} holds {found[PARTS[folder]]!r} and {folder!r}, which are one part: merge them")
        found[PARTS[folder]] = folder
    if "train" not in found:
        raise ValueError(f"{root} must hold the folder 'train' beside {name_some(named)}: add it")
    return {part: found[part] for part in dict.fromkeys(PARTS.values()) if part in found}


def list_classes(
    root: str | Path, extensions: Sequence[str], classes: Sequence[str] | None = None, nested: bool = False
) -> Listing:
    """The files of `root` by part and class.

    extensions: lower-case suffixes of the files to take, compared without regard to case. classes: the class folders to
    take, in the order of their labels; all, sorted, if None. nested: take the files of a class folder's subfolders too.
    Raises FileNotFoundError where there is no folder; ValueError naming the folders for: a layout that could be either
    one, files outside class folders, fewer than two classes, a class that has no file or is missing from or extra in a
    part, subfolders without `nested`, a folder met twice, names that are not UTF-8, a folder that cannot be listed.
    """
    search = _Search(root, extensions)
    if classes is not None and (isinstance(classes, str) or not classes or len(set(classes)) < len(classes)):
        raise ValueError(f"classes must be different folder names, got {classes!r}")
    top, strays = search.scan("")
    layout = part_folders(search.root, top, classes)
    inside: dict[str, list[str]] = {}
    for part, folder in layout.items():
        inside[part], more = (top, []) if part == "all" else search.scan(folder)
        strays += more
    if strays:
        raise ValueError(
            f"{search.root}: every file to take must lie in a class folder, got {len(strays)} outside, such as "
            f"{strays[0].path!r}: move them into a class folder or elsewhere"
        )
    names = list(classes) if classes is not None else sorted(set().union(*inside.values()))
    if len(names) < 2:
        raise ValueError(f"{search.root} must hold at least two class folders, got {names}: expected root/class/file")
    for part, there in inside.items():
        missing = [name for name in names if name not in there]
        if missing:
            where = search.root / layout[part]
            raise ValueError(
                f"every class needs a folder in every part, got none for {name_some(missing)} in {where}, which holds "
                f"{name_some(there) or 'no folder'}: add the class there, or take it away everywhere"
            )
    parts: dict[str, tuple[File, ...]] = {}
    for part, folder in layout.items():
        files: list[File] = []
        for label, name in enumerate(names):
            path = f"{folder}/{name}" if folder else name
            found = search.below(path, nested)
            if not found:
                raise ValueError(
                    f"every class needs a file, got none with {', '.join(search.extensions)} in {str(search.root / path)!r}: "
                    "add files, remove the folder, or name the classes to take by classes="
                )
            files += (file._replace(label=label) for file in found)
        parts[part] = tuple(files)
    return Listing(search.root, tuple(names), parts, tuple(search.other))


def list_files(root: str | Path, extensions: Sequence[str]) -> Listing:
    """The unlabelled files of a folder and all its subfolders, as the part "all" of no class: an OOD set.

    Raises what `list_classes` raises for folders, and ValueError where there is no such file.
    """
    search = _Search(root, extensions)
    files = search.below("", nested=True)
    if not files:
        raise ValueError(f"{search.root} must hold files with {', '.join(search.extensions)}, got none: check the path")
    return Listing(search.root, (), {"all": tuple(files)}, tuple(search.other))


def path_groups(pattern: str, paths: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(group of each path (N,) int64, names of the groups): the text of `pattern`'s first group, found by `re.search`.

    Numbered in the sorted order of the names. Raises ValueError for a pattern that is no regular expression or has no
    group, and naming paths in which it finds none.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"groups must be a regular expression, got {pattern!r}: {error}") from error
    if not compiled.groups:
        raise ValueError(f"groups must hold a (group) that names a row's group, got {pattern!r}: put it into parentheses")
    matches = [compiled.search(path) for path in paths]
    found = [match.group(1) if match else None for match in matches]
    unmatched = [path for path, name in zip(paths, found, strict=True) if not name]
    if unmatched:
        raise ValueError(
            f"groups={pattern!r} must find a group in every path, got none in {len(unmatched)} of {len(paths)}, such as "
            f"{name_some(unmatched)}: correct the pattern"
        )
    names, numbers = np.unique(np.array(found, dtype=str), return_inverse=True)
    return numbers.astype(np.int64), tuple(names.tolist())
