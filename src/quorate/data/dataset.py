"""A data set: train, validation, calibration and test, OOD sets, classes or targets, normalisation, augmentation.

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
from typing import Any, Literal

import numpy as np

from quorate.data.augment import Augmentation
from quorate.data.duplicates import Pairs, duplicates
from quorate.data.normalise import Normalise, check_moments, moments
from quorate.data.regression import GaussianOutput, target_moments
from quorate.data.split import Split, name_rows
from quorate.data.store import Stored

PARTS = ("train", "validation", "calibration", "test")


def names_of(classes: Sequence[str], what: str = "classes") -> tuple[str, ...]:
    """`classes` as a tuple; ValueError for one string, which would be taken for its letters."""
    if isinstance(classes, str):
        raise ValueError(f"{what} must be a sequence of names, got the one string {classes!r}: pass [{classes!r}]")
    return tuple(classes)


def check_labels(part: str, split: Split, classes: Sequence[str]) -> np.ndarray:
    """The labels of a split; ValueError where there are none or one is not the index of a class."""
    if split.y is None:
        raise ValueError(f"the {part} split needs labels, got y=None: only OOD sets may come without")
    if split.targets:
        raise ValueError(f"the {part} split has targets (float y), the data have classes: name the targets for a regression")
    outside = np.flatnonzero(split.y >= len(classes))
    if outside.size:
        raise ValueError(
            f"labels must be in 0..{len(classes) - 1} for {len(classes)} classes, got label {split.y[outside[0]]} "
            f"in {name_rows(outside)} of the {part} split: number the labels from 0 without gaps, or name all classes"
        )
    return split.y


def digest(arrays: Sequence[np.ndarray | Stored]) -> str:
    """sha256 of the dtype, shape and little-endian bytes of arrays, in order; rows on disk count by their digests."""
    sha = hashlib.sha256()
    for each in arrays:
        if isinstance(each, Stored):
            sha.update(f"rows of {each.dtype.str}{each.shape};".encode())
        a = each.digests() if isinstance(each, Stored) else each
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
    targets: names of a regression's targets; empty for a classification. target_mean, target_std: of the training split's targets.
    preprocessing: how raw files became rows, as JSON values to be kept with the model, or None.

    Raises ValueError for: inputs of another shape or dtype, labels out of range or missing, classes without a training
    row, ids or groups that two splits share, names that are empty or repeat, fewer than two classes, a mean or std that does not
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
    targets: tuple[str, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    preprocessing: dict[str, Any] | None = None

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
        targets: Sequence[str] = (),
        preprocessing: Mapping[str, Any] | None = None,
    ) -> Data:
        """A `Data` with the training split's shape, mean and std, those of its targets too. Raises what `Data` raises."""
        mean, std = moments(train.x)
        target_mean, target_std = target_moments(train.y) if train.targets and train.y is not None else ((), ())
        return cls(
            name,
            train,
            validation,
            calibration,
            test,
            dict(ood),
            names_of(classes),
            train.shape,
            mean,
            std,
            augmentation,
            names_of(targets, "targets"),
            target_mean,
            target_std,
            None if preprocessing is None else dict(preprocessing),
        )

    def __post_init__(self) -> None:
        object.__setattr__(self, "ood", dict(self.ood))
        for field, names in (
            ("name", (self.name,)),
            ("ood", tuple(self.ood)),
            ("classes", self.classes),
            ("targets", self.targets),
        ):
            if any(not isinstance(n, str) or not n for n in names) or len(set(names)) < len(names):
                raise ValueError(f"{field}: names must be non-empty strings without repeats, got {list(names)}")
        unfit = [name for name in self.ood if not re.fullmatch(r"[\w.+-]+", name)]
        if unfit:
            raise ValueError(f"ood: names become file names, got {unfit[0]!r}: use letters, digits and . _ + - only")
        if self.targets and self.classes:
            raise ValueError(f"data have classes or targets, got {list(self.classes)} and {list(self.targets)}: give one of them")
        if not self.targets and len(self.classes) < 2:
            raise ValueError(
                f"classification needs at least two classes, got {list(self.classes)}; a regression names its targets"
            )
        for part, split in [*self.splits().items(), *((f"ood {n!r}", s) for n, s in self.ood.items())]:
            if split.shape != tuple(self.shape) or split.x.dtype != self.train.x.dtype:
                raise ValueError(
                    f"all inputs must have shape {tuple(self.shape)} and dtype {self.train.x.dtype}, got {split.shape} "
                    f"and {split.x.dtype} in the {part} split: resize, or convert to the same raw units"
                )
        check_moments(self.mean, self.std, self.shape[0])
        if self.augmentation is not None:
            self.augmentation.check(tuple(self.shape), integer=self.train.x.dtype == np.uint8)
        if self.targets:
            self._check_targets()
        else:
            self._check_classes()
        for (a, one), (b, other) in itertools.combinations(self.splits().items(), 2):
            shared = np.intersect1d(one.ids, other.ids, assume_unique=True)
            if shared.size:
                raise ValueError(
                    f"a row may be in one split only, got {shared.size} ids in both {a} and {b}, such as "
                    f"{shared[:5].tolist()}: give every row of the data set its own id"
                )
            if one.groups is not None and other.groups is not None:
                both = np.intersect1d(one.groups, other.groups)
                if both.size:
                    raise ValueError(
                        f"a group may be in one split only, got {both.size} groups in both {a} and {b}, such as "
                        f"{both[:5].tolist()}: split by groups"
                    )

    def _check_classes(self) -> None:
        labels = {part: check_labels(part, split, self.classes) for part, split in self.splits().items()}
        absent = np.flatnonzero(np.bincount(labels["train"], minlength=len(self.classes)) == 0)
        if absent.size:
            first = [self.classes[c] for c in absent[:5]]
            raise ValueError(
                f"every class needs a training row, got none for {absent.size} of {len(self.classes)} classes, such as "
                f"{first}: add rows or leave these classes out"
            )

    def _check_targets(self) -> None:
        for part, split in self.splits().items():
            if split.targets != len(self.targets):
                what = "no y" if split.y is None else f"{split.targets} targets" if split.targets else "integer labels"
                raise ValueError(
                    f"the {part} split has {what}: expected float y of {len(self.targets)} targets ({', '.join(self.targets[:5])})"
                )
        self.output()

    @property
    def task(self) -> Literal["classification", "regression"]:
        """What is to be learnt."""
        return "regression" if self.targets else "classification"

    @property
    def width(self) -> int:
        """Values that a model emits per input: a logit per class; or a mean per target, then a log-variance per target."""
        return 2 * len(self.targets) or len(self.classes)

    def splits(self) -> dict[str, Split]:
        """The four labelled splits by name, in the order train, validation, calibration, test."""
        return {part: getattr(self, part) for part in PARTS}

    def normalise(self) -> Normalise:
        """The layer (x − mean) / std for raw inputs: the first one of a model for these data."""
        return Normalise(self.mean, self.std, self.shape)

    def output(self) -> GaussianOutput:
        """The last layer of a regression model: means and log-variances in the targets' units. ValueError for a classification."""
        if not self.targets:
            raise ValueError(f"{self.name} has classes: its models end in logits, without an output layer")
        return GaussianOutput(self.target_mean, self.target_std)

    def duplicates(self) -> Pairs:
        """{(earlier, later): ids in the later split of inputs that are also in the earlier one}: exact copies only."""
        return duplicates(self.splits())

    def fingerprint(self) -> str:
        """sha256 (64 hex digits) of name, classes, shape and the content (x, y, ids) of every split and OOD set.

        The same on every machine and run, whatever the order of the OOD sets; mean, std and augmentation don't count. Rows on disk
        count by their digests: the same rows in memory have another fingerprint.
        """
        sets = [*self.splits().items(), *((f"ood/{n}", self.ood[n]) for n in sorted(self.ood))]
        content = {
            "name": self.name,
            "classes": list(self.classes),
            "shape": list(self.shape),
            "splits": {n: digest([s.x, s.ids] if s.y is None else [s.x, s.ids, s.y]) for n, s in sets},
            **({"targets": list(self.targets)} if self.targets else {}),
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
            "duplicates": {f"{one}/{other}": len(ids) for (one, other), ids in self.duplicates().items()},
            **({"targets": list(self.targets)} if self.targets else {}),
            **({"preprocessing": self.preprocessing} if self.preprocessing is not None else {}),
        }

    def __repr__(self) -> str:
        rows = ", ".join(f"{part} {len(split)}" for part, split in [*self.splits().items(), *self.ood.items()])
        what = f"targets {', '.join(self.targets)}" if self.targets else f"{len(self.classes)} classes"
        return f"Data({self.name!r}: {what}, {self.shape} {self.train.x.dtype}, rows: {rows})"
