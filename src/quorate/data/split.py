"""One part of a data set, in memory or on disk: raw inputs, labels or targets, ids and groups, validated once.

Shapes: x (N, *shape) raw uint8 or float32, channel first: images (N, C, H, W), sequences (N, C, L), features
(N, F); y (N,) int64 labels, (N, D) float32 targets of a regression, or None where there are neither; ids (N,) int64,
each row's name within the data set; groups (N,) int64, whose row it is (a person's, a machine's), or None.
Normalisation belongs to the model (`quorate.data.Normalise`), so what is stored is what a deployed model gets.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from quorate.data.regression import check_precision
from quorate.data.store import Stored


def name_rows(rows: np.ndarray, shown: int = 5) -> str:
    """'row 3', 'rows 3, 7', 'rows 3, 7, 8, 9, 12 and 40 more': the first few, for an error message."""
    more = f" and {len(rows) - shown} more" if len(rows) > shown else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:shown].tolist()))}{more}"


def raw_inputs(x: np.ndarray | Stored) -> np.ndarray | Stored:
    """x as native, C-contiguous uint8 or float32, read-only; float64 becomes float32, which it has to fit.

    x on disk stays as it is: its rows were checked when they were stored. Raises ValueError for other dtypes, fewer than two
    axes, an empty axis, NaN, infinity or values beyond float32.
    """
    if isinstance(x, Stored):
        return x
    x = np.asarray(x)
    if x.dtype != np.uint8 and not (x.dtype.kind == "f" and x.dtype.itemsize in (4, 8)):
        raise ValueError(f"x must be uint8, float32 or float64, got {x.dtype}: convert it with x.astype first")
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"x must be (N, *shape) with at least one row and one value per row, got shape {x.shape}: "
            "an empty or 1-D split cannot be used"
        )
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):  # found below
            x = x.astype(np.float32, copy=False)
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        if bad.size:
            raise ValueError(f"x must be finite in float32, got NaN or infinity in {name_rows(bad)}: drop or impute")
    view = np.ascontiguousarray(x).view()
    view.flags.writeable = False
    return view


def integers(values: np.ndarray, count: int, name: str) -> np.ndarray:
    """`values` as (count,) int64, read-only; ValueError for another shape or dtype, or a number beyond int64."""
    values = np.asarray(values)
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be a 1-D integer array with one entry per row of x, shape ({count},), "
            f"got shape {values.shape} of {values.dtype}"
        )
    if values.dtype.kind == "u" and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit int64, got {values.max()}: renumber them")
    view = np.ascontiguousarray(values, dtype=np.int64).view()
    view.flags.writeable = False
    return view


ENOUGH = 10  # rows to tell from whether targets vary by less than float32 can hold


def regression_targets(y: np.ndarray, count: int) -> np.ndarray:
    """y as (count, D) float32, read-only; (count,) is one target. ValueError for another shape, NaN, infinity, lost variation."""
    wide = y[:, None] if y.ndim == 1 else y
    if wide.ndim != 2 or len(wide) != count or not wide.shape[1]:
        raise ValueError(f"targets must be (N,) or (N, D) floats for the {count} rows of x, got shape {y.shape}")
    exact = wide
    with np.errstate(over="ignore"):
        wide = np.ascontiguousarray(wide, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(wide).all(axis=1))
    if bad.size:
        raise ValueError(f"targets must be finite in float32, got NaN or infinity in {name_rows(bad)}: drop these rows")
    if exact.dtype != np.float32 and count >= ENOUGH:
        for d in range(exact.shape[1]):
            check_precision(f"target {d} of y", exact[:, d])
    view = wide.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False, repr=False)
class Split(Dataset[tuple[Tensor, Tensor]]):
    """Inputs, labels or targets, and ids; a torch `Dataset` of (x_i, y_i), with y_i = −1 where there are no labels.

    x: (N, *shape) raw values, uint8 or float32 (float64 is converted, integers of other widths are refused), in memory or
    `quorate.data.store.Stored` on disk. y: (N,) integers ≥ 0 are labels; floats (N,) or (N, D) are the targets of a regression;
    or None. ids: (N,) integers, unique. groups: (N,) integers, or None. The arrays are kept as read-only views (copied only to
    change dtype or layout): write to the ones you passed and the split changes with them.

    Raises ValueError for lengths that differ, an empty split, other dtypes or ranks, NaN or infinity, negative labels,
    ids that repeat; rows are named.
    """

    x: np.ndarray | Stored
    y: np.ndarray | None
    ids: np.ndarray
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", raw_inputs(self.x))
        object.__setattr__(self, "ids", integers(self.ids, len(self.x), "ids"))
        if self.groups is not None:
            object.__setattr__(self, "groups", integers(self.groups, len(self.x), "groups"))
        if self.y is not None and np.asarray(self.y).dtype.kind == "f":
            object.__setattr__(self, "y", regression_targets(np.asarray(self.y), len(self.x)))
        elif self.y is not None:
            object.__setattr__(self, "y", integers(self.y, len(self.x), "y"))
            negative = np.flatnonzero(self.y < 0)
            if negative.size:
                raise ValueError(
                    f"labels must be at least 0, got {self.y[negative[0]]} in {name_rows(negative)}: "
                    "number classes from 0, or pass y=None for data without labels"
                )
        values, first = np.unique(self.ids, return_index=True)
        if len(values) < len(self.ids):
            again = np.setdiff1d(np.arange(len(self.ids)), first)
            raise ValueError(
                f"ids must be unique, got id {self.ids[again[0]]} again in {name_rows(again)}: give each row its own"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return tuple(self.x.shape[1:])

    @property
    def targets(self) -> int:
        """Number D of regression targets; 0 for labels or none."""
        return 0 if self.y is None or self.y.ndim == 1 else int(self.y.shape[1])

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        labels = "without labels" if self.y is None else f"{self.targets} targets" if self.targets else "labelled"
        return f"Split({len(self)} rows of {self.shape} {self.x.dtype}, {labels})"

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """(x_i of the raw dtype, y_i () int64 or (D,) float32). Negative i count from the end; IndexError outside."""
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"row must be in 0..{len(self) - 1}, got {i}")
        y = np.int64(-1) if self.y is None else self.y[i]
        return torch.from_numpy(self.x[i].copy()), torch.as_tensor(np.array(y))

    def batch(self, rows: Sequence[int] | np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """(x (B, *shape) of the raw dtype, y (B,) int64, −1 where there are no labels, or (B, D) float32) of the rows asked for.

        rows: (B,) integers in [0, N), repeats allowed, B = 0 too. Raises ValueError for anything else.
        """
        index = self._rows(rows)
        y = np.full(len(index), -1, np.int64) if self.y is None else self.y[index]
        return torch.from_numpy(self.x[index]), torch.from_numpy(y)

    def subset(self, rows: Sequence[int] | np.ndarray | Tensor) -> Split:
        """The split of these rows, in this order, with their ids and groups; x on disk stays there.

        Raises ValueError for no rows, repeats, or rows not in [0, N).
        """
        index = self._rows(rows)
        if isinstance(self.x, Stored) and not index.size:
            raise ValueError("a split needs at least one row, got none: an empty split cannot be used")
        x = self.x.take(index) if isinstance(self.x, Stored) else self.x[index]
        y, groups = (None if part is None else part[index] for part in (self.y, self.groups))
        return Split(x, y, self.ids[index], groups)

    def _rows(self, rows: Sequence[int] | np.ndarray | Tensor) -> np.ndarray:
        index = rows.cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
        if index.shape == (0,):
            return np.zeros(0, np.int64)
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise ValueError(
                f"rows must be a 1-D sequence of integers, got shape {index.shape} of {index.dtype}: "
                "turn a mask into rows with numpy.flatnonzero"
            )
        if index.min() < 0 or index.max() >= len(self):
            raise ValueError(f"rows must be in 0..{len(self) - 1}, got {index.min()}..{index.max()}")
        return index
