"""A data set from one .npz file that holds all rows, and columns that say what each row is.

Beside x and y there may be columns for who or what a row came from (person, machine, recording) and for the published
fold it belongs to. Values that were quantised to 8 bits, from lo to hi, become numbers in their own unit again:

    value = lo + (hi − lo) · x / 255

Shapes: x (N, *shape) in a stated layout; y (N,) labels, numbers or names, or (N,) or (N, D) regression targets;
columns (N,) integers or strings; lo, hi () or (C,), one per channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from quorate.data.arrays import assemble, class_names, numbered
from quorate.data.augment import Augmentation
from quorate.data.dataset import Data, names_of
from quorate.data.listing import name_some
from quorate.data.npz import channel_first, read_npz


def is_list(values: object) -> bool:
    """Whether values come as a sequence that is no text, or as a 1-D array."""
    return (isinstance(values, Sequence) and not isinstance(values, str)) or (isinstance(values, np.ndarray) and values.ndim == 1)


def check_column(path: Path, key: str, values: np.ndarray, rows: int) -> np.ndarray:
    """A column of `rows` integers or strings; ValueError for anything else."""
    if values.shape != (rows,) or values.dtype.kind not in "iuU":
        raise ValueError(
            f"{path}: {key!r} must hold an integer or a string per row of x, shape ({rows},), got shape {values.shape} "
            f"of {values.dtype}"
        )
    return values


def check_names(path: Path, key: str, values: np.ndarray) -> tuple[str, ...]:
    """The names in an array; ValueError unless it is (K,) strings."""
    if values.ndim != 1 or values.dtype.kind != "U":
        raise ValueError(f"{path}: {key!r} must be a 1-D array of names, got shape {values.shape} of {values.dtype}")
    return tuple(values.tolist())


def group_rows(path: Path, key: str, column: np.ndarray, ungrouped: int | str | None) -> np.ndarray:
    """(N,) groups numbered in sorted order; a row whose entry is `ungrouped`, which must occur, is a group of its own."""
    names, numbers = np.unique(column, return_inverse=True)
    groups = numbers.astype(np.int64)
    if ungrouped is None:
        return groups
    if ungrouped not in names.tolist() or isinstance(ungrouped, bool):
        raise ValueError(f"{path}: ungrouped must be an entry of the column {key!r}, got {ungrouped!r}: drop it")
    alone = np.flatnonzero(column == ungrouped)
    groups[alone] = len(names) + np.arange(len(alone))
    return groups


def is_in(path: Path, key: str, column: np.ndarray, wanted: Sequence[int | str]) -> np.ndarray:
    """(N,) bool: rows whose entry is one of `wanted`, compared as text in a column of strings.

    Raises ValueError for a wanted value that no row has, and where all rows or none would be meant.
    """
    if not is_list(wanted) or not len(wanted):
        raise ValueError(f"test must be a sequence of values of the column {key!r}, at least one, got {wanted!r}")
    there: list[int | str] = np.unique(column).tolist()
    values = [str(v) if column.dtype.kind == "U" else v for v in wanted]
    unknown = [v for v in values if v not in there or isinstance(v, bool)]
    if unknown:
        raise ValueError(
            f"{path}: test must be values of the column {key!r}, got {name_some(unknown)}: it holds {name_some(there, 20)}"
        )
    if set(values) >= set(there):
        raise ValueError(f"{path}: test must leave rows to train on, got {list(wanted)}, which is all that {key!r} holds")
    return np.isin(column, values)


def check_disjoint(path: Path, key: str, column: np.ndarray, groups: np.ndarray, test: np.ndarray) -> None:
    """ValueError naming the groups (N,), called as in the column (N,), that have rows on both sides of `test` (N,) bool."""
    shared = np.unique(column[test & np.isin(groups, groups[~test])])
    if shared.size:
        raise ValueError(
            f"{path}: no {key!r} may have rows both in the test split and outside it, got {len(shared)} such, "
            f"{name_some(shared.tolist())}: test on other values, say by ungrouped= which entry means no group, or drop groups="
        )


def class_labels(
    path: Path, key: str, y: np.ndarray, rows: int, classes: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(labels (N,), names) of integers or names; names are numbered as in `classes`, or sorted where None."""
    if y.dtype.kind == "f":
        raise ValueError(f"{path}: {key!r} must hold integers or names, got {y.dtype}: for numbers to predict, task='regression'")
    check_column(path, key, y, rows)
    if y.dtype.kind != "U":
        return y, class_names(y, classes)
    there = np.unique(y).tolist()
    names = names_of(there if classes is None else classes)
    label = {name: number for number, name in enumerate(names)}
    unknown = [name for name in there if name not in label]
    if unknown:
        raise ValueError(f"{path}: {key!r} must hold names among the classes {list(names)}, got {name_some(unknown)}")
    return np.array([label[name] for name in y.tolist()], np.int64), names


def regression_targets(path: Path, key: str, y: np.ndarray, targets: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """(y (N, D) float32, D names) of y (N,) or (N, D); ValueError for other shapes or dtypes, or another number of names."""
    if y.ndim not in (1, 2) or 0 in y.shape or y.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {key!r} must hold numbers (N,) or (N, D) for regression, got shape {y.shape} of {y.dtype}")
    with np.errstate(over="ignore"):  # a Split refuses infinity
        values = y.reshape(len(y), -1).astype(np.float32)
    width = values.shape[1]
    names = (key,) if width == 1 else tuple(f"{key}{d}" for d in range(width))
    if targets is not None:
        names = names_of(targets, "targets")
    if len(names) != width:
        raise ValueError(f"{path}: targets must name the {width} columns of {key!r}, got {list(names)}")
    return values, names


def dequantise(x: np.ndarray, lo: np.ndarray, hi: np.ndarray, where: str) -> np.ndarray:
    """lo + (hi − lo)·x/255 per channel, each value rounded once to float32.

    x: (N, C, …) uint8. lo ≤ hi: () or (C,), finite. Raises ValueError for anything else.
    """
    bounds = [np.asarray(b) for b in (lo, hi)]
    if x.dtype != np.uint8:
        raise ValueError(f"{where}: scale is for values quantised to uint8, got {x.dtype}: drop scale")
    if any(b.shape not in ((), (x.shape[1],)) or b.dtype.kind not in "iuf" for b in bounds):
        raise ValueError(
            f"{where}: lo and hi must be numbers, one or one per channel, shape () or ({x.shape[1]},), got shapes "
            f"{bounds[0].shape} and {bounds[1].shape} of {bounds[0].dtype} and {bounds[1].dtype}"
        )
    low, high = (np.broadcast_to(b.astype(np.float64), x.shape[1:2]) for b in bounds)
    wrong = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high) & (low <= high)))
    if wrong.size:
        raise ValueError(
            f"{where}: lo and hi must be finite with lo ≤ hi, got {low[wrong[0]]} and {high[wrong[0]]} in channel {wrong[0]}"
        )
    table = (low[:, None] + (high - low)[:, None] * np.arange(256) / 255).astype(np.float32)
    values = np.empty(x.shape, np.float32)
    for channel, row in enumerate(table):
        np.take(row, x[:, channel], out=values[:, channel])
    return values


def npz_rows(
    path: str | Path,
    *,
    layout: str,
    x: str = "x",
    y: str = "y",
    groups: str | None = None,
    ungrouped: int | str | None = None,
    fold: str | None = None,
    test: Sequence[int | str] | None = None,
    classes: str | Sequence[str] | None = None,
    task: Literal["classification", "regression"] = "classification",
    targets: str | Sequence[str] | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    scale: Sequence[str] | None = None,
    ood: Mapping[str, str | Path] | None = None,
    augmentation: Augmentation | None = None,
    name: str = "npz_rows",
) -> Data:
    """A `Data` from an .npz file with one array of inputs, one of labels or targets, and columns beside them.

    layout: of x, one of `quorate.data.npz.LAYOUTS`. x, y, groups, fold: keys in the file. y: classification: integers
    from 0, or names; regression: numbers (N,) or (N, D). groups: (N,) integers or strings, such as the person: all rows
    of a group go to one split. ungrouped: the entry of that column for rows of no group, which stand alone. fold, test:
    the rows whose entry in the column `fold` (N,) is among the values `test` are the test split (compared as text if the
    column holds strings); without both, it is cut off by fractions.
    classes, targets: names of the labels or of the regression targets, or the key of an array of them; by default "0",
    "1", … or the sorted names in y, and y's key, numbered from 0 if D > 1. scale: keys (lo, hi) of numbers, one or one per
    channel, by which x (uint8) was quantised: x becomes float32 lo + (hi − lo)·x/255. ood: {name: path of an .npz with the
    key `x`, in the same layout and quantised alike}. fractions, seed, augmentation, name: as in `quorate.data.arrays`;
    fractions are for train, validation, calibration and, where it is cut off, test.
    Row numbers in the file are the ids.

    Raises FileNotFoundError; ValueError for a damaged file, keys that are missing (those in the file are listed), columns
    that do not fit x, values of `test` that do not occur, groups with rows inside and outside the test split, labels or
    names that do not suit the task, and whatever `Split`, `partition` and `Data` refuse.
    """
    path = Path(path)
    if task not in ("classification", "regression"):
        raise ValueError(f"task must be 'classification' or 'regression', got {task!r}")
    if (fold is None) != (test is None):
        raise ValueError(f"fold (a column) and test (its values) go together, got {fold=} and {test=}: give both or neither")
    if scale is not None and (not is_list(scale) or len(scale) != 2):
        raise ValueError(f"scale must be the two keys of lo and hi, got {scale!r}")
    wanted, other = (classes, targets) if task == "classification" else (targets, classes)
    if other is not None:
        raise ValueError(f"classes are for classification and targets for regression, got {other!r} for {task}: drop them")
    if ungrouped is not None and groups is None:
        raise ValueError(f"ungrouped is an entry of the column groups=, got {ungrouped!r} without it: name the column")
    optional = (groups, fold, wanted if isinstance(wanted, str) else None)
    found = read_npz(path, list(dict.fromkeys([x, y, *(key for key in optional if key is not None), *(scale or ())])))

    def inputs(values: np.ndarray, where: str) -> np.ndarray:
        first = channel_first(values, layout, where)
        return first if scale is None else dequantise(first, found[scale[0]], found[scale[1]], where)

    values = inputs(found[x], f"{path}, {x}")
    if not len(values):
        raise ValueError(f"{path}: {x!r} must hold at least one row, got shape {values.shape}")
    columns = {key: check_column(path, key, found[key], len(values)) for key in (groups, fold) if key is not None}
    names = check_names(path, wanted, found[wanted]) if isinstance(wanted, str) else wanted
    if task == "regression":
        answers, names = regression_targets(path, y, found[y], names)
    else:
        answers, names = class_labels(path, y, found[y], len(values), names)
    whose = None if groups is None else group_rows(path, groups, columns[groups], ungrouped)
    rows = numbered(str(path), values, answers, 0, whose)
    train, held = rows, None
    if fold is not None and test is not None:
        inside = is_in(path, fold, columns[fold], test)
        if groups is not None and whose is not None:
            check_disjoint(path, groups, columns[groups], whose, inside)
        train, held = rows.subset(np.flatnonzero(~inside)), rows.subset(np.flatnonzero(inside))
    return assemble(
        name,
        train,
        held,
        None,
        None,
        fractions,
        seed,
        {n: numbered(f"ood {n!r}", inputs(read_npz(p, [x])[x], f"{p}, {x}"), None, 0) for n, p in (ood or {}).items()},
        names if task == "classification" else None,
        augmentation,
        targets=names if task == "regression" and names else (),
        preprocessing={
            "kind": "npz_rows/1",
            "layout": layout,
            "scale": None if scale is None else {k: found[s].tolist() for k, s in zip(("lo", "hi"), scale, strict=True)},
            "columns": {"x": x, "y": y, "groups": groups, "ungrouped": ungrouped, "fold": fold},
            "test": None if test is None else [v if isinstance(v, str) else int(v) for v in test],
        },
    )
