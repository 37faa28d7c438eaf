"""A data set from NumPy arrays in memory.

Splits that are not given are cut off the training rows by the stratified `partition`. Ids are row numbers: training
rows 0..n − 1, then test, then validation and calibration where given; each OOD set counts its own rows.

Shapes: x (N, *shape) channel first: images (N, C, H, W), sequences (N, C, L), features (N, F); y (N,) integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quorate.data.augment import Augmentation
from quorate.data.dataset import Data, names_of
from quorate.data.partition import partition
from quorate.data.split import Split

CUT = 0.1  # of the training rows, for each split that is cut off them by default


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


def numbered(part: str, x: np.ndarray, y: np.ndarray | None, start: int) -> Split:
    """The split of x and y with ids start, start + 1, …; its ValueErrors say which part they are about."""
    try:
        return Split(x, y, np.arange(start, start + len(np.atleast_1d(x))))
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from error


def assemble(
    name: str,
    train: Split,
    test: Split,
    validation: Split | None,
    calibration: Split | None,
    fractions: Sequence[float] | None,
    seed: int,
    ood: Mapping[str, Split],
    classes: Sequence[str] | None,
    augmentation: Augmentation | None,
) -> Data:
    """A `Data` in which the splits that are None are cut off `train`; see `arrays` for the arguments."""
    if train.y is None:
        raise ValueError("the train split needs labels, got y=None: only OOD sets may come without")
    given = {"validation": validation, "calibration": calibration}
    parts = ["train", *(part for part, split in given.items() if split is None)]
    if len(parts) == 1 and fractions is not None:
        raise ValueError(f"no split is cut off train when validation and calibration are given: drop {fractions=}")
    shares = [1 - CUT * (len(parts) - 1), *[CUT] * (len(parts) - 1)] if fractions is None else list(fractions)
    if len(shares) != len(parts):
        raise ValueError(f"fractions must be {len(parts)}, for {', '.join(parts)}, got {shares}")
    names = class_names(train.y, classes)
    if len(parts) > 1:
        rows = partition(train.y, dict(zip(parts, shares, strict=True)), seed)
        cut = {part: train.subset(chosen) for part, chosen in rows.items()}
    else:
        cut = {"train": train}
    every = {**cut, **{part: split for part, split in given.items() if split is not None}}
    return Data.build(name, every["train"], every["validation"], every["calibration"], test, ood, names, augmentation)


def arrays(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    calibration: tuple[np.ndarray, np.ndarray] | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    ood: Mapping[str, np.ndarray] | None = None,
    classes: Sequence[str] | None = None,
    augmentation: Augmentation | None = None,
    name: str = "arrays",
) -> Data:
    """A `Data` from arrays: (x, y) per split, x raw uint8 or float32 (float64 is converted), channel first.

    validation, calibration: cut off the training rows where None, at random by `seed`, stratified. Where one person or
    machine gave many rows, pass splits of your own, with nobody on two sides. fractions: of the training rows, for train
    and then for each split cut off, in the order validation, calibration; by default 0.1 for each of the latter and the
    rest for train; a sum below 1 leaves rows out. ood: {name: x}. classes: names by label, "0", "1", … if None.
    Raises ValueError for whatever `Split`, `partition` and `Data` refuse, and for fractions of another number.
    """
    pairs = {"train": train, "test": test, "validation": validation, "calibration": calibration}
    splits: dict[str, Split] = {}
    start = 0
    for part, pair in pairs.items():
        if pair is None:
            continue
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"{part} must be a pair (x, y) of arrays, got {type(pair).__name__}")
        splits[part] = numbered(part, pair[0], pair[1], start)
        start += len(splits[part])
    return assemble(
        name,
        splits["train"],
        splits["test"],
        splits.get("validation"),
        splits.get("calibration"),
        fractions,
        seed,
        {n: numbered(f"ood {n!r}", x, None, 0) for n, x in (ood or {}).items()},
        classes,
        augmentation,
    )
