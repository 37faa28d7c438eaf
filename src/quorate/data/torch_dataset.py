"""A data set from map-style PyTorch datasets of (x, y), read once, into memory or into a store on disk.

Quorate keeps its own loader, whose batches and augmentation depend on (seed, epoch, row) alone; so what a `Dataset` returns is
read once, and a transform in it that draws random numbers would be frozen: leave it out, and use `augmentation`.

Shapes: x_i (*shape) channel first, as it is returned; a PIL image of mode "L" becomes (1, H, W), of mode "RGB" (3, H, W) uint8;
y_i an integer label, or a float or (D,) floats of a regression.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset

from quorate.data.arrays import assemble_parts, group_numbers, numbered
from quorate.data.augment import Augmentation
from quorate.data.dataset import Data
from quorate.data.split import Split, name_rows
from quorate.data.store import Stored, cache_folder, cached


class Rows(Protocol):
    """Anything with a length and numbered items: a map-style `torch.utils.data.Dataset`, a list of pairs."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def check_rows(part: str, rows: Any) -> None:
    """ValueError unless `rows` has a length and numbered items, and at least one."""
    if isinstance(rows, IterableDataset):
        raise ValueError(
            f"{part} must be a map-style dataset, got the IterableDataset {type(rows).__name__}, whose items have no numbers: "
            "collect it first (list(dataset), if it fits and ends) or write it to .npz files"
        )
    if not hasattr(rows, "__getitem__") or not hasattr(rows, "__len__") or isinstance(rows, (str, bytes, Mapping)):
        raise ValueError(f"{part} must be a map-style dataset, with a length and numbered items, got {type(rows).__name__}")
    if not len(rows):
        raise ValueError(f"{part} must hold at least one item, got an empty {type(rows).__name__}")


def input_of(x: Any, where: str) -> np.ndarray:
    """x as an array of uint8 or float32; ValueError for what is neither tensor, array nor a grey or RGB image."""
    if isinstance(x, torch.Tensor):
        if x.dtype not in (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(f"{where}: x must be uint8 or floating point, got {x.dtype}: convert it in the dataset")
        x = (x if x.dtype is torch.uint8 else x.float()).detach().cpu().numpy()
    elif type(x).__module__.startswith("PIL."):
        if x.mode not in ("L", "RGB"):
            raise ValueError(f"{where}: an image must have mode 'L' or 'RGB', got {x.mode!r}: use image.convert in the dataset")
        pixels = np.asarray(x)
        x = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if not isinstance(x, np.ndarray) or not (x.dtype == np.uint8 or x.dtype.kind == "f"):
        what = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(f"{where}: x must be a tensor or array of uint8 or floats, or a PIL image, got {what}")
    if not x.ndim or 0 in x.shape:
        raise ValueError(f"{where}: x must have at least one axis and one value, got shape {x.shape}")
    with np.errstate(over="ignore"):  # a Split and a store refuse infinity
        return np.ascontiguousarray(x, np.uint8 if x.dtype == np.uint8 else np.float32)


def answer_of(y: Any, where: str) -> np.ndarray:
    """y as () int64, a label, or (D,) float32, targets; ValueError for anything else."""
    value = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if value.ndim == 0 and value.dtype.kind in "iu":
        return value.astype(np.int64)
    if value.ndim > 1 or value.dtype.kind != "f" or not value.size:
        raise ValueError(
            f"{where}: y must be an integer label, or a float or a vector of floats to predict, got shape {value.shape} of {value.dtype}"
        )
    with np.errstate(over="ignore"):  # a Split refuses infinity
        return value.reshape(-1).astype(np.float32)


def read_item(rows: Rows, i: int, part: str, labelled: bool) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) number i, with y 0 unless `labelled`; ValueError for items that are no pairs."""
    item = rows[i]
    where = f"{part}, item {i}"
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(f"{where}: a dataset must return pairs (x, y), got {type(item).__name__}")
    return input_of(item[0], where), answer_of(item[1] if labelled else 0, where)


def agreeing(
    rows: Rows, part: str, labelled: bool, first: tuple[np.ndarray, np.ndarray]
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Number → (x, y), one at a time; ValueError naming an item whose x or y is of another shape or type than item 0's."""
    turn = threading.Lock()  # a dataset need not bear several threads

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        with turn:
            item = read_item(rows, i, part, labelled)
        for what, value, expected in zip("xy", item, first, strict=True):
            if value.shape != expected.shape or value.dtype != expected.dtype:
                raise ValueError(
                    f"{part}: all {what} must have one shape and type, got {expected.shape} {expected.dtype} in item 0 and "
                    f"{value.shape} {value.dtype} in item {i}: resize, pad or convert them in the dataset"
                )
        return item

    return read


def read_part(
    part: str, rows: Rows, labelled: bool, cache: str | Path | None, cache_key: str | None, name: str
) -> tuple[np.ndarray | Stored, np.ndarray]:
    """(x (N, *shape), y (N,) or (N, D)) of all items; x is on disk if there is a cache key, and then only item 0 is read again."""
    check_rows(part, rows)
    first = read_item(rows, 0, part, labelled)
    read, count = agreeing(rows, part, labelled, first), len(rows)
    (shape, dtype), label = (first[0].shape, first[0].dtype), not first[1].ndim
    if cache_key is None:
        x, y = np.empty((count, *shape), dtype), np.empty((count, *first[1].shape), first[1].dtype)
        x[0], y[0] = first
        for i in range(1, count):
            x[i], y[i] = read(i)
        return x, y
    answers: dict[int, np.ndarray] = {}

    def input_row(i: int) -> np.ndarray:
        x, answers[i] = read(i)
        return x

    def answer_row(i: int) -> np.ndarray:
        y = answers[i] if i in answers else read(i)[1]
        return np.frombuffer(y.astype("<i8").tobytes(), np.uint8) if label else y

    def stored(column: str, row: Callable[[int], np.ndarray], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Stored:
        key = {"kind": "torch/1", "cache_key": cache_key, "part": part, "column": column}
        found, bad = cached(cache_folder(cache), key, count, shape, dtype, row, f"{name}, {part}")
        if bad:
            raise ValueError(
                f"{part}: {column} must be finite, got NaN or infinity in {name_rows(np.array(sorted(bad)))}: drop or impute"
            )
        return found

    inputs = stored("x", input_row, shape, dtype)
    if label:  # a store holds bytes or float32, so a label is its 8 bytes
        return inputs, stored("y", answer_row, (8,), np.dtype(np.uint8))[:].view("<i8")[:, 0].astype(np.int64)
    return inputs, stored("y", answer_row, first[1].shape, np.dtype(np.float32))[:]


def from_datasets(
    train: Rows,
    test: Rows | None = None,
    validation: Rows | None = None,
    calibration: Rows | None = None,
    *,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    groups: Sequence[Any] | np.ndarray | Mapping[str, Sequence[Any] | np.ndarray] | None = None,
    ood: Mapping[str, Rows] | None = None,
    classes: Sequence[str] | None = None,
    targets: Sequence[str] = (),
    augmentation: Augmentation | None = None,
    cache: str | Path | None = None,
    cache_key: str | None = None,
    name: str = "datasets",
) -> Data:
    """A `Data` from map-style datasets of pairs (x, y): `torch.utils.data.Dataset`s with a length, or lists.

    x: a tensor or array of uint8 or floats, channel first, or a grey or RGB PIL image; all of one shape and type. y: an
    integer label from 0; or a float or vector of D floats for a regression, then targets names them. test, validation,
    calibration: cut off the training rows where None. fractions, seed, groups, classes, augmentation: as in
    `quorate.data.arrays`. ood: {name: dataset}, whose y is not used. cache_key: with it, the rows are kept on disk and not
    in memory, and later starts read item 0 of each dataset only: text of yours that names this data and changes whenever
    the data do, since a dataset has no identity of its own. cache: folder of these stores, by default $XDG_CACHE_HOME/quorate
    or ~/.cache/quorate. ids: training items 0..n − 1, then test, validation and calibration.

    Raises ValueError for an `IterableDataset` or what else has no numbered items, items that are no such pairs or differ in
    shape or type (they are named), cache without cache_key, and whatever `Split`, `partition` and `Data` refuse.
    """
    key: object = cache_key
    if (key is not None and not (isinstance(key, str) and key)) or (key is None and cache is not None):
        raise ValueError(
            f"a cache needs cache_key=, text that names this data and changes whenever the data do, got {cache=} and "
            f"{cache_key=}: a dataset has no identity of its own"
        )
    others = {"test": test, "validation": validation, "calibration": calibration}
    given = {"train": train, **{part: rows for part, rows in others.items() if rows is not None}}
    for part, rows in given.items():
        check_rows(part, rows)
    whose = group_numbers(groups, {part: len(rows) for part, rows in given.items()})
    splits: dict[str, Split] = {}
    start = 0
    for part, rows in given.items():
        x, y = read_part(part, rows, True, cache, cache_key, name)
        splits[part] = numbered(part, x, y, start, whose.get(part))
        start += len(y)
    outside = {
        key: numbered(f"ood {key!r}", read_part(f"ood {key!r}", rows, False, cache, cache_key, name)[0], None, 0)
        for key, rows in (ood or {}).items()
    }
    return assemble_parts(name, splits, fractions, seed, outside, classes, augmentation, targets)
