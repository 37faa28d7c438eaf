"""A data set: train, validation, calibration and test, OOD sets, class names, normalisation, augmentation.

Four splits, four purposes: train trains; validation chooses; calibration certifies; test reports. OOD sets hold
inputs of no known class. Everything is raw: mean and std describe the training split and are applied by the model.

Shapes: every split and OOD set holds inputs of one shape and dtype, (C, H, W), (C, L) or (F,).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from quorate.data.augment import Augmentation
from quorate.data.normalise import Normalise, check_moments, moments
from quorate.data.split import Split, name_rows

PARTS = ("train", "validation", "calibration", "test")


def names_of(classes: Sequence[str]) -> tuple[str, ...]:
    """`classes` as a tuple; ValueError for one string, which would be taken for its letters."""
    if isinstance(classes, str):
        raise ValueError(f"classes must be a sequence of names, got the one string {classes!r}: pass a tuple")
    return tuple(classes)


def check_labels(part: str, split: Split, classes: Sequence[str]) -> np.ndarray:
    """The labels of a split; ValueError where there are none or one is not the index of a class."""
    if split.y is None:
        raise ValueError(f"the {part} split needs labels, got y=None: only OOD sets may come without")
    outside = np.flatnonzero(split.y >= len(classes))
    if outside.size:
        raise ValueError(
            f"labels must be in 0..{len(classes) - 1} for {len(classes)} classes, got label {split.y[outside[0]]} "
            f"in {name_rows(outside)} of the {part} split: number the labels from 0 without gaps, or name all classes"
        )
    return split.y


def digest(arrays: Sequence[np.ndarray]) -> str:
    """sha256 of the dtype, shape and little-endian bytes of arrays, in order."""
    sha = hashlib.sha256()
    for a in arrays:
        little = np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<"))
        sha.update(f"{little.dtype.str}{little.shape};".encode())
        sha.update(little.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """All data of one task, checked on construction; `Data.build` works out shape, mean and std.

    name: of the data set. train, validation, calibration, test: labelled splits. ood: {name: split}, labels not used.
    classes: names, by label. shape: of one input. mean, std: per channel (images, sequences) or feature, in raw
    units, of the training split; a constant channel or feature has std 1, so it is centred and not scaled.
    augmentation: for training images, or None.

    Raises ValueError for: inputs of another shape or dtype, labels out of range or missing, classes without a training
    row, ids that two splits share, names that are empty or repeat, fewer than two classes, a mean or std that does not
    fit, an augmentation that does not suit the inputs.
    """

    name: str
    train: Split
    validation: Split
    calibration: Split
    test: Split
    ood: dict[str, Split]
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation | None

    @classmethod
    def build(
        cls,
        name: str,
        train: Split,
        validation: Split,
        calibration: Split,
        test: Split,
        ood: Mapping[str, Split],
        classes: Sequence[str],
        augmentation: Augmentation | None = None,
    ) -> Data:
        """A `Data` with the training split's shape, mean and std. Raises what `Data` raises."""
        mean, std = moments(train.x)
        return cls(name, train, validation, calibration, test, dict(ood), names_of(classes), train.shape, mean, std, augmentation)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ood", dict(self.ood))
        for field, names in (("name", (self.name,)), ("ood", tuple(self.ood)), ("classes", self.classes)):
            if any(not isinstance(n, str) or not n for n in names) or len(set(names)) < len(names):
                raise ValueError(f"{field}: names must be non-empty strings without repeats, got {list(names)}")
        unfit = [name for name in self.ood if not re.fullmatch(r"[\w.+-]+", name)]
        if unfit:
            raise ValueError(f"ood: names become file names, got {unfit[0]!r}: use letters, digits and . _ + - only")
        if len(self.classes) < 2:
            raise ValueError(f"classification needs at least two classes, got {list(self.classes)}")
        for part, split in [*self.splits().items(), *((f"ood {n!r}", s) for n, s in self.ood.items())]:
            if split.shape != tuple(self.shape) or split.x.dtype != self.train.x.dtype:
                raise ValueError(
                    f"all inputs must have shape {tuple(self.shape)} and dtype {self.train.x.dtype}, got {split.shape} "
                    f"and {split.x.dtype} in the {part} split: resize, or convert to the same raw units"
                )
        check_moments(self.mean, self.std, self.shape[0])
        if self.augmentation is not None:
            self.augmentation.check(tuple(self.shape), integer=self.train.x.dtype == np.uint8)
        labels = {part: check_labels(part, split, self.classes) for part, split in self.splits().items()}
        absent = np.flatnonzero(np.bincount(labels["train"], minlength=len(self.classes)) == 0)
        if absent.size:
            first = [self.classes[c] for c in absent[:5]]
            raise ValueError(
                f"every class needs a training row, got none for {absent.size} of {len(self.classes)} classes, such as "
                f"{first}: add rows or leave these classes out"
            )
        for (a, one), (b, other) in itertools.combinations(self.splits().items(), 2):
            shared = np.intersect1d(one.ids, other.ids, assume_unique=True)
            if shared.size:
                raise ValueError(
                    f"a row may be in one split only, got {shared.size} ids in both {a} and {b}, such as "
                    f"{shared[:5].tolist()}: give every row of the data set its own id"
                )

    def splits(self) -> dict[str, Split]:
        """The four labelled splits by name, in the order train, validation, calibration, test."""
        return {part: getattr(self, part) for part in PARTS}

    def normalise(self) -> Normalise:
        """The layer (x − mean) / std for raw inputs: the first one of a model for these data."""
        return Normalise(self.mean, self.std, self.shape)

    def fingerprint(self) -> str:
        """sha256 (64 hex digits) of name, classes, shape and the content (x, y, ids) of every split and OOD set.

        The same on every machine and run, whatever the order of the OOD sets; mean, std and augmentation don't count.
        """
        sets = [*self.splits().items(), *((f"ood/{n}", self.ood[n]) for n in sorted(self.ood))]
        content = {
            "name": self.name,
            "classes": list(self.classes),
            "shape": list(self.shape),
            "splits": {n: digest([s.x, s.ids] if s.y is None else [s.x, s.ids, s.y]) for n, s in sets},
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> dict[str, object]:
        """Plain JSON values for a log: name, shape, dtype, classes, rows per split and OOD set, mean, std, …"""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": str(self.train.x.dtype),
            "classes": list(self.classes),
            "rows": {part: len(split) for part, split in self.splits().items()},
            "ood": {name: len(split) for name, split in self.ood.items()},
            "mean": list(self.mean),
            "std": list(self.std),
            "augmentation": None if self.augmentation is None else asdict(self.augmentation),
            "fingerprint": self.fingerprint(),
        }

    def __repr__(self) -> str:
        rows = ", ".join(f"{part} {len(split)}" for part, split in [*self.splits().items(), *self.ood.items()])
        return f"Data({self.name!r}: {len(self.classes)} classes, {self.shape} {self.train.x.dtype}, rows: {rows})"
