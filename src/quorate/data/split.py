"""One part of a data set in memory: raw inputs, labels and ids, validated once.

Shapes: x (N, *shape) raw uint8 or float32, channel first: images (N, C, H, W), sequences (N, C, L), features
(N, F); y (N,) int64 or None where there are no labels; ids (N,) int64, each row's name within the data set.
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


def name_rows(rows: np.ndarray, shown: int = 5) -> str:
    """'row 3', 'rows 3, 7', 'rows 3, 7, 8, 9, 12 and 40 more': the first few, for an error message."""
    more = f" and {len(rows) - shown} more" if len(rows) > shown else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:shown].tolist()))}{more}"


def raw_inputs(x: np.ndarray) -> np.ndarray:
    """x as native, C-contiguous uint8 or float32, read-only; float64 becomes float32, which it has to fit.

    Raises ValueError for other dtypes, fewer than two axes, an empty axis, NaN, infinity or values beyond float32.
    """
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


@dataclass(frozen=True, eq=False, repr=False)
class Split(Dataset[tuple[Tensor, Tensor]]):
    """Inputs, labels and ids in memory; a torch `Dataset` of (x_i, y_i), with y_i = −1 where there are no labels.

    x: (N, *shape) raw values, uint8 or float32 (float64 is converted, integers of other widths are refused).
    y: (N,) integers ≥ 0, or None. ids: (N,) integers, unique. The arrays are kept as read-only views (copied only to
    change dtype or layout): write to the ones you passed and the split changes with them.

    Raises ValueError for lengths that differ, an empty split, other dtypes or ranks, NaN or infinity, negative labels,
    ids that repeat; rows are named.
    """

    x: np.ndarray
    y: np.ndarray | None
    ids: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", raw_inputs(self.x))
        object.__setattr__(self, "ids", integers(self.ids, len(self.x), "ids"))
        if self.y is not None:
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

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        labels = "without labels" if self.y is None else "labelled"
        return f"Split({len(self)} rows of {self.shape} {self.x.dtype}, {labels})"

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """(x_i of the raw dtype, y_i () int64). Negative i count from the end; IndexError outside."""
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"row must be in 0..{len(self) - 1}, got {i}")
        y = -1 if self.y is None else int(self.y[i])
        return torch.from_numpy(self.x[i].copy()), torch.tensor(y, dtype=torch.int64)

    def batch(self, rows: Sequence[int] | np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """(x (B, *shape) of the raw dtype, y (B,) int64, −1 where there are no labels) of the rows asked for.

        rows: (B,) integers in [0, N), repeats allowed, B = 0 too. Raises ValueError for anything else.
        """
        index = self._rows(rows)
        y = np.full(len(index), -1, np.int64) if self.y is None else self.y[index]
        return torch.from_numpy(self.x[index]), torch.from_numpy(y)

    def subset(self, rows: Sequence[int] | np.ndarray | Tensor) -> Split:
        """The split of these rows, in this order, with their ids. ValueError for none, repeats, or rows not in [0, N)."""
        index = self._rows(rows)
        return Split(self.x[index], None if self.y is None else self.y[index], self.ids[index])

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
