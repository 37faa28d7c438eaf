"""From listed files to a data set: each file is read once into the store, then grouped and split.

A file that cannot be read is an error, or is left out if the user says so; either way it is counted and named, as are
files of other kinds that lay among them. Ids number the listed files, part by part, the unreadable ones included.

Shapes: every file becomes one row (*shape) of one dtype, uint8 or float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from quorate.data.arrays import assemble
from quorate.data.augment import Augmentation
from quorate.data.dataset import Data
from quorate.data.listing import SHOWN, File, Listing, name_some, path_groups
from quorate.data.split import Split
from quorate.data.store import Stored, cache_folder, cached


def read_files(
    listing: Listing,
    shape: Sequence[int],
    dtype: DTypeLike,
    read: Callable[[Path], np.ndarray],
    settings: Mapping[str, Any],
    cache: str | Path | None,
    unreadable: Literal["error", "skip"],
    label: str,
) -> tuple[Stored, np.ndarray, dict[str, str]]:
    """(all rows, which were readable (N,) bool, {path: reason} of the others), in the order of the listing's parts.

    read: path → array of exactly `shape` and `dtype`, or raises `Unreadable`; called from several threads. settings:
    JSON values, all that decides what `read` returns beside the files. Raises ValueError for unreadable files unless
    "skip", and if none is readable.
    """
    if unreadable not in ("error", "skip"):
        raise ValueError(f"unreadable must be 'error' or 'skip', got {unreadable!r}")
    files = [file for part in listing.parts.values() for file in part]
    key = {
        "root": str(listing.root.resolve()),
        "files": [[file.path, file.size, file.modified_ns] for file in files],
        "settings": dict(settings),
    }
    rows, bad = cached(cache_folder(cache), key, len(files), shape, dtype, lambda i: read(listing.root / files[i].path), label)
    reasons = {files[i].path: reason for i, reason in sorted(bad.items())}
    if reasons:
        some = ", ".join(f"{path!r} ({reason})" for path, reason in list(reasons.items())[:SHOWN])
        more = f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        said = f"{listing.root}: {len(reasons)} of {len(files)} files cannot be read: {some}{more}"
        if unreadable == "error" or len(reasons) == len(files):
            raise ValueError(f"{said}: mend or remove them, or leave them out by unreadable='skip' if others are readable")
        print(f"{said}: left out", file=sys.stderr)
    readable = np.ones(len(files), bool)
    readable[list(bad)] = False
    return rows, readable, reasons


def check_apart(parts: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    """ValueError naming the groups, (n,) numbers per part, that have files in two parts."""
    whole: dict[int, str] = {}
    for part, groups in parts.items():
        distinct = np.unique(groups).tolist()
        shared = [group for group in distinct if group in whole]
        if shared:
            raise ValueError(
                f"a group may have files in one part only, got {len(shared)} in both {whole[shared[0]]} and {part}, such as "
                f"{name_some(names[g] for g in shared)}: move their files into one part, or correct the pattern groups="
            )
        whole |= dict.fromkeys(distinct, part)


def read_listed(
    name: str,
    listing: Listing,
    ood: Mapping[str, Listing],
    shape: Sequence[int],
    dtype: DTypeLike,
    read: Callable[[Path], np.ndarray],
    settings: Mapping[str, Any],
    *,
    cache: str | Path | None,
    unreadable: Literal["error", "skip"],
    groups: str | None,
    fractions: Sequence[float] | None,
    seed: int,
    augmentation: Augmentation | None,
) -> Data:
    """The `Data` of listed files; the parts that the listing lacks are cut off its first one, "all" or "train".

    shape, dtype, read, settings, cache, unreadable: see `read_files`. groups: see `path_groups`; a group whose files lie in
    two parts is refused. fractions, seed, augmentation: as in `quorate.data.arrays`. `Data.preprocessing` holds the
    settings, and what was left out. Raises what these functions raise.
    """
    every: list[File] = [file for part in listing.parts.values() for file in part]
    whose, group_names = (None, ()) if groups is None else path_groups(groups, [file.path for file in every])
    rows, readable, left_out = read_files(listing, shape, dtype, read, settings, cache, unreadable, name)
    splits: dict[str, Split] = {}
    end = 0
    for part, files in listing.parts.items():
        start, end = end, end + len(files)
        chosen = start + np.flatnonzero(readable[start:end])
        if not chosen.size:
            raise ValueError(f"{listing.root}: the part {part!r} has no readable file: mend them")
        labels = np.array([every[i].label for i in chosen], np.int64)
        splits[part] = Split(rows.take(chosen), labels, chosen, None if whose is None else whose[chosen])
    check_apart({part: split.groups for part, split in splits.items() if split.groups is not None}, group_names)
    outside: dict[str, Split] = {}
    for key, other in ood.items():
        far, fit, reasons = read_files(other, shape, dtype, read, settings, cache, unreadable, f"{name}, ood {key}")
        outside[key] = Split(far.take(np.flatnonzero(fit)), None, np.flatnonzero(fit))
        left_out |= {f"ood {key}: {path}": reason for path, reason in reasons.items()}
    return assemble(
        name,
        splits["all"] if "all" in splits else splits["train"],
        splits.get("test"),
        splits.get("validation"),
        splits.get("calibration"),
        fractions,
        seed,
        outside,
        listing.classes,
        augmentation,
        preprocessing={
            **settings,
            "unreadable": left_out,
            "passed_over": {"count": len(listing.other), "such_as": list(listing.other[:SHOWN])},
        },
    )
