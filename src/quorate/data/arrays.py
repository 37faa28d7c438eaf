"""A data set from NumPy arrays in memory.

Splits that are not given are cut off the training rows: stratified (`partition`), and in whole groups where there are groups
(`group_partition`). Ids are row numbers: training rows 0..n − 1, then test, then validation and calibration where given; each
OOD set counts its own rows.

Shapes: x (N, *shape) channel first: images (N, C, H, W), sequences (N, C, L), features (N, F); y (N,) integers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quorate.data.augment import Augmentation
from quorate.data.dataset import Data, names_of
from quorate.data.grouping import group_partition
from quorate.data.partition import partition
from quorate.data.split import Split
from quorate.data.store import Stored

CUT = {"validation": 0.1, "calibration": 0.1, "test": 0.2}  # of the rows, for each split that is cut off them by default


def class_names(labels: np.ndarray, classes: Sequence[str] | None) -> tuple[str, ...]:
    """`classes`, or "0".."max label" where None; ValueError for a label that shows they aren't counted from 0."""
    if classes is not None:
        return names_of(classes)
    count = int(labels.max()) + 1
    if count > len(labels):
        raise ValueError(
            f"labels must number the classes from 0 without gaps, got label {count - 1} among {len(labels)} rows: "
            "renumber them with numpy.unique(y, return_inverse=True)"
        )
    return tuple(str(c) for c in range(count))


def numbered(part: str, x: np.ndarray | Stored, y: np.ndarray | None, start: int, groups: np.ndarray | None = None) -> Split:
    """The split of x and y with ids start, start + 1, …; its ValueErrors say which part they are about."""
    try:
        return Split(x, y, np.arange(start, start + (len(x) if isinstance(x, Stored) else len(np.atleast_1d(x)))), groups)
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from error


def group_words(part: str, groups: Any, rows: int) -> list[str | int]:
    """The group of every row of a part as text or a number; ValueError for another length, other values, or both kinds."""
    values = np.asarray(groups, object) if isinstance(groups, (list, tuple)) else np.asarray(groups)
    words = values.tolist() if values.ndim == 1 else []
    kinds = {str if isinstance(w, str) else int if isinstance(w, int) and not isinstance(w, bool) else type(w) for w in words}
    if values.shape != (rows,) or len(kinds - {str}) * len(kinds - {int}):
        held = ", ".join(sorted(kind.__name__ for kind in kinds)) or values.dtype
        raise ValueError(
            f"groups of {part} must name each of the {rows} rows' group, all by whole numbers or all by text, got shape {values.shape} "
            f"of {held}: fill in the missing ones"
        )
    return words


def group_numbers(groups: Any, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Whose the rows of the parts are, {part: (rows,) numbers from 0}; empty for None.

    groups: (N,) numbers or text for the training rows, or {part: the same}; sizes: rows by part. Raises ValueError for other values, parts
    that are not there, groups of some parts only, and a group in two parts, which is named.
    """
    if groups is None:
        return {}
    given = dict(groups) if isinstance(groups, Mapping) else {"train": groups}
    if given.keys() != sizes.keys():
        raise ValueError(
            f"groups must be given for all of {', '.join(sizes)}, got {', '.join(given) or 'none'}: where parts are given, a group must "
            "not be on two sides; pass {part: groups}"
        )
    words = {part: group_words(part, given[part], rows) for part, rows in sizes.items()}
    if len({type(each[0]) for each in words.values() if each}) > 1:
        raise ValueError("groups must be all whole numbers or all text, got both in different parts: name them alike")
    for (one, first), (other, second) in itertools.combinations(words.items(), 2):
        both = sorted(set(first) & set(second))
        if both:
            raise ValueError(
                f"a group may be in one split only, got {both[:3]} in both {one} and {other}: move its rows to one side"
            )
    numbers = {word: n for n, word in enumerate(sorted({word for each in words.values() for word in each}))}
    return {part: np.array([numbers[word] for word in each], np.int64) for part, each in words.items()}


def cut(train: Split, fractions: Mapping[str, float], seed: int) -> dict[str, Split]:
    """The parts of ``train``: stratified by its labels; where it has groups, each group whole in one part."""
    labels = np.zeros(len(train), np.int64) if train.y is None or train.targets else train.y
    rows = partition(labels, fractions, seed) if train.groups is None else group_partition(labels, train.groups, fractions, seed)
    return {part: train.subset(chosen) for part, chosen in rows.items()}


def assemble(
    name: str,
    train: Split,
    test: Split | None,
    validation: Split | None,
    calibration: Split | None,
    fractions: Sequence[float] | None,
    seed: int,
    ood: Mapping[str, Split],
    classes: Sequence[str] | None,
    augmentation: Augmentation | None,
    targets: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
) -> Data:
    """A `Data` in which the splits that are None are cut off `train`; see `arrays` for the arguments."""
    if train.y is None:
        raise ValueError("the train split needs labels, got y=None: only OOD sets may come without")
    if targets and classes is not None:
        raise ValueError(
            f"data have classes or targets, got classes {list(classes)} and targets {list(targets)}: give one of them"
        )
    if targets and not train.targets:
        raise ValueError(
            f"targets {list(targets)} need float y, got whole numbers: convert y with astype(float) for a regression"
        )
    if train.targets and not targets:
        raise ValueError(
            f"y holds floats, of {train.targets} targets: name them (targets=…) for a regression, or number the classes"
        )
    given = {"validation": validation, "calibration": calibration, "test": test}
    parts = ["train", *(part for part, split in given.items() if split is None)]
    if len(parts) == 1 and fractions is not None:
        raise ValueError(f"no split is cut off train when validation, calibration and test are given: drop {fractions=}")
    shares = (
        [1 - sum(CUT[part] for part in parts[1:]), *(CUT[part] for part in parts[1:])] if fractions is None else list(fractions)
    )
    if len(shares) != len(parts):
        raise ValueError(f"fractions must be {len(parts)}, for {', '.join(parts)}, got {shares}")
    names = () if targets else class_names(train.y, classes)
    own = cut(train, dict(zip(parts, shares, strict=True)), seed) if len(parts) > 1 else {"train": train}
    every = {**own, **{part: split for part, split in given.items() if split is not None}}
    rows = (every["train"], every["validation"], every["calibration"], every["test"])
    return Data.build(name, *rows, ood, names, augmentation, targets, preprocessing)


def assemble_parts(
    name: str,
    parts: Mapping[str, Split],
    fractions: Sequence[float] | None,
    seed: int,
    ood: Mapping[str, Split],
    classes: Sequence[str] | None,
    augmentation: Augmentation | None,
    targets: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
) -> Data:
    """A `Data` of {part: split}: train, and those of test, validation and calibration that are not to be cut off it.

    The other arguments are those of `quorate.data.arrays.assemble`, which raises what this does.
    """
    train, test, validation, calibration = parts["train"], parts.get("test"), parts.get("validation"), parts.get("calibration")
    settings = fractions, seed, ood, classes, augmentation, targets, preprocessing
    return assemble(name, train, test, validation, calibration, *settings)


def arrays(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray] | None = None,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    calibration: tuple[np.ndarray, np.ndarray] | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    ood: Mapping[str, np.ndarray] | None = None,
    classes: Sequence[str] | None = None,
    augmentation: Augmentation | None = None,
    name: str = "arrays",
    groups: np.ndarray | Mapping[str, np.ndarray] | None = None,
    targets: Sequence[str] = (),
) -> Data:
    """A `Data` from arrays: (x, y) per split, x raw uint8 or float32 (float64 is converted), channel first.

    test, validation, calibration: cut off the training rows where None, at random by `seed`, stratified. groups: (N,) numbers
    or text, whose each training row is, where one person or machine gave many: whole groups then go to one side; where other
    splits are given too, {part: (n,) groups}, and none may be in two parts. fractions: of the training rows, for train and
    then for each split cut off, in the order validation, calibration, test; by default 0.1, 0.1 and 0.2, and the rest for
    train; a sum below 1 leaves rows out. targets: names of the D targets where y (N, D) or (N,) are floats, for a
    regression. ood: {name: x}. classes: names by label, "0", "1", … if None.
    Raises ValueError for whatever `Split`, `partition` and `Data` refuse, and for fractions of another number.
    """
    pairs = {"train": train, "test": test, "validation": validation, "calibration": calibration}
    given = {part: pair for part, pair in pairs.items() if pair is not None or part == "train"}
    for part, pair in given.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"{part} must be a pair (x, y) of arrays, got {type(pair).__name__}")
    sizes = {part: len(np.atleast_1d(pair[0])) for part, pair in given.items() if pair is not None}
    named = group_numbers(groups, sizes)
    splits: dict[str, Split] = {}
    start = 0
    for part, pair in given.items():
        if pair is not None:
            splits[part] = numbered(part, pair[0], pair[1], start, named.get(part))
            start += sizes[part]
    return assemble_parts(
        name,
        splits,
        fractions,
        seed,
        {n: numbered(f"ood {n!r}", x, None, 0) for n, x in (ood or {}).items()},
        classes,
        augmentation,
        targets,
    )
