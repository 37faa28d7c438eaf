"""A data set from an .npz file, loaded without pickle; the layout of its arrays is said, never guessed.

    layout       x in the file      becomes
    "features"   (N, F)             (N, F)
    "nchw"       (N, C, H, W)       (N, C, H, W)
    "nhwc"       (N, H, W, C)       (N, C, H, W)
    "nhw"        (N, H, W)          (N, 1, H, W)
    "ncl"        (N, C, L)          (N, C, L)      sequences
    "nlc"        (N, L, C)          (N, C, L)

Shapes: keys x_train, y_train, x_test, y_test and, if there, x_val, y_val, x_cal, y_cal; y (N,) integers. Where one person or machine
gave many rows, g_train, g_test, … say whose each row is, (N,) integers or strings, for all parts that are there.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quorate.data.arrays import arrays
from quorate.data.augment import Augmentation
from quorate.data.dataset import Data

LAYOUTS = ("features", "nchw", "nhwc", "nhw", "ncl", "nlc")
PARTS = {"train": "train", "test": "test", "val": "validation", "cal": "calibration"}


def one_line(error: BaseException) -> str:
    """The text of an error on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def npz_keys(archive: zipfile.ZipFile) -> list[str]:
    """The names of the arrays in an open .npz."""
    return [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]


def open_npz(path: str | Path) -> zipfile.ZipFile:
    """An .npz file, open; FileNotFoundError, or ValueError for a file that is no zip archive."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected an .npz file, found none at {path}: check the path")
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # damage surfaces as whatever the zip parser stumbles over
        raise ValueError(f"{path} must be an .npz file, but {one_line(error)}: write it with numpy.savez") from error


def read_array(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """One array of an open .npz, read to its end so that its checksum is verified; ValueError where that fails."""
    try:
        with archive.open(f"{key}.npy") as member:
            values = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):
                raise ValueError("it goes on after the array's end")
    except Exception as error:  # as above, and in the deflate and header parsers
        raise ValueError(f"{archive.filename} must hold plain arrays, but {key!r} cannot be read: {one_line(error)}") from error
    return values


def read_npz(path: str | Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The required arrays of an .npz file, and the optional ones that are there; nothing is unpickled.

    Raises FileNotFoundError; ValueError for a file that is no .npz or is damaged, a missing key (the keys that are there
    are listed), an object array.
    """
    with open_npz(path) as archive:
        there = npz_keys(archive)
        missing = [key for key in required if key not in there]
        if missing:
            raise ValueError(f"{path} must hold the keys {list(required)}, got {sorted(there)}: {missing} are missing")
        return {key: read_array(archive, key) for key in [*required, *(k for k in optional if k in there)]}


def channel_first(x: np.ndarray, layout: str, where: str) -> np.ndarray:
    """x of the stated layout as (N, C, *rest) or (N, F); ValueError for an unknown layout or another rank."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    rank = 2 if layout == "features" else len(layout)
    if x.ndim != rank:
        raise ValueError(
            f"{where}: layout {layout!r} has {rank} axes, got shape {x.shape}: reshape it, or name its layout, "
            f"one of {', '.join(LAYOUTS)}"
        )
    if layout == "nhw":
        return x[:, None]
    return np.moveaxis(x, -1, 1) if layout.endswith("c") else x


def npz(
    path: str | Path,
    *,
    layout: str,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    ood: Mapping[str, str | Path] | None = None,
    classes: Sequence[str] | None = None,
    augmentation: Augmentation | None = None,
    name: str = "npz",
) -> Data:
    """A `Data` from an .npz file with x_train, y_train, x_test, y_test, optionally x_val, y_val, x_cal, y_cal, and g_… of all these.

    layout: of every x, one of `LAYOUTS`. ood: {name: path of an .npz with key x, in the same layout}. name: of the data
    set, part of its fingerprint (the path isn't). The other arguments, splits that are not in the file and ids are those
    of `quorate.data.arrays`.
    Raises FileNotFoundError; ValueError for a damaged file, keys that are missing, come without their partner or look like
    a misspelt split (x_…, y_… or g_…), groups of some parts only, ranks other than the layout's, and whatever `arrays` refuses.
    """
    keys = {part: (f"x_{part}", f"y_{part}") for part in PARTS}
    known = [key for pair in keys.values() for key in pair]
    whose = {f"g_{part}": part for part in PARTS}
    with open_npz(path) as archive:
        there = npz_keys(archive)
    if not any(key.startswith("x_") for key in there):
        raise ValueError(
            f"{path} must hold the keys {known[:4]}, got {sorted(there)}: for one array of all rows, from which the splits are cut, "
            "quorate.data.npz_rows is the loader (on the command line --data npz_rows)"
        )
    found = read_npz(path, required=known[:4], optional=[*known[4:], *whose])
    stray = [k for k in there if k.startswith(("x_", "y_", "g_")) and k not in known and k not in whose]
    if stray:
        raise ValueError(
            f"{path}: keys x_…, y_… and g_… must be among {[*known, *whose]}, got also {stray}: rename or remove them"
        )
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for part, (x, y) in keys.items():
        if (x in found) != (y in found):
            raise ValueError(f"{path} must hold both {x} and {y} or neither, got only one of them")
        if x in found:
            pairs[part] = channel_first(found[x], layout, f"{path}, {x}"), found[y]
    groups = {part: found[g] for g, part in whose.items() if g in found}
    if groups and groups.keys() != pairs.keys():
        wanted, got = ([f"g_{part}" for part in parts] for parts in (pairs, groups))
        raise ValueError(f"{path} must hold groups of all its parts, {wanted}, or of none, got {got}: add or remove some")
    return arrays(
        pairs["train"],
        pairs["test"],
        pairs.get("val"),
        pairs.get("cal"),
        fractions=fractions,
        seed=seed,
        ood={n: channel_first(read_npz(p, ["x"])["x"], layout, f"{p}, x") for n, p in (ood or {}).items()},
        classes=classes,
        augmentation=augmentation,
        name=name,
        groups={PARTS[part]: values for part, values in groups.items()} or None,
    )
