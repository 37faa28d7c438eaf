"""From listed files to a data set: each file is read once into the store, then grouped and split.

A file that cannot be read is an error, or is left out if the user says so; either way it is counted and named, as are
files of other kinds that lay among them. Ids number the listed files, part by part, the unreadable ones included.

Shapes: every file becomes one row (*shape) of one dtype, uint8 or float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from quorate.data.arrays import assemble_parts
from quorate.data.augment import Augmentation
from quorate.data.dataset import Data
from quorate.data.listing import SHOWN, File, Listing, name_some, path_groups
from quorate.data.reading import check_unreadable, readable_rows
from quorate.data.split import Split
from quorate.data.store import Stored, Unreadable, cache_folder, cached


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
    """(all rows, numbers of the readable ones, {path: reason} of the others), in the order of the listing's parts.

    read: path → array of exactly `shape` and `dtype`, or raises `Unreadable`; called from several threads. settings:
    JSON values, all that decides what `read` returns beside the files. Raises ValueError for unreadable files unless
    "skip", and if none is readable.
    """
    check_unreadable(unreadable)
    files = [file for part in listing.parts.values() for file in part]
    key = {
        "root": str(listing.root.resolve()),
        "files": [[file.path, file.size, file.modified_ns] for file in files],
        "settings": dict(settings),
    }

    def row(i: int) -> np.ndarray:
        if not files[i].size and not files[i].modified_ns:  # known from the listing, and so from the key
            raise Unreadable("empty, or a link to nothing")
        return read(listing.root / files[i].path)

    rows, bad = cached(cache_folder(cache), key, len(files), shape, dtype, row, label)
    kept = readable_rows(str(listing.root), len(files), bad, unreadable, "files", lambda i: repr(files[i].path))
    return rows, kept, {files[i].path: reason for i, reason in sorted(bad.items())}


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
    rows, kept, left_out = read_files(listing, shape, dtype, read, settings, cache, unreadable, name)
    splits: dict[str, Split] = {}
    end = 0
    for part, files in listing.parts.items():
        start, end = end, end + len(files)
        chosen = kept[(kept >= start) & (kept < end)]
        if not chosen.size:
            raise ValueError(f"{listing.root}: the part {part!r} has no readable file: mend them")
        labels = np.array([every[i].label for i in chosen], np.int64)
        splits["train" if part == "all" else part] = Split(
            rows.take(chosen), labels, chosen, None if whose is None else whose[chosen]
        )
    check_apart({part: split.groups for part, split in splits.items() if split.groups is not None}, group_names)
    outside: dict[str, Split] = {}
    for key, other in ood.items():
        far, readable, reasons = read_files(other, shape, dtype, read, settings, cache, unreadable, f"{name}, ood {key}")
        outside[key] = Split(far.take(readable), None, readable)
        left_out |= {f"ood {key}: {path}": reason for path, reason in reasons.items()}
    return assemble_parts(
        name,
        splits,
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
