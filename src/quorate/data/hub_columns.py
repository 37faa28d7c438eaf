"""Columns of a Hugging Face data set: inputs row by row, labels, targets and groups.

A column's declared type says what it holds. Numbers pass through float64, in which a missing value is NaN: exact for all types but
integers beyond 2⁵³.

Shapes: images (C, size, size) uint8, arrays (*shape) uint8 or float32; labels and groups (N,) int64, targets (N, D) float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quorate.data.images.decoding import Decoding, decode
from quorate.data.listing import name_some
from quorate.data.npz import LAYOUTS, channel_first, one_line
from quorate.data.npz_rows import regression_targets
from quorate.data.split import name_rows
from quorate.data.store import Unreadable

NUMBERS = {"uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"}

Reader = Callable[[int], np.ndarray]


def check_columns(path: str, part: str, rows: Any, columns: Sequence[str]) -> None:
    """ValueError listing the columns unless these are among them."""
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"{path!r}, {part}: expected the columns {name_some(columns)}, got none called {name_some(missing)}; there are "
            f"{name_some(rows.column_names, 50)}"
        )


def check_same_types(path: str, parts: Mapping[str, Any], keys: Sequence[str]) -> None:
    """ValueError naming a column that has another type, or other or reordered class names, in a part than in train."""
    for part, rows in parts.items():
        for key in keys:
            first, other = parts["train"].features[key], rows.features[key]
            if first != other:
                raise ValueError(
                    f"{path!r}: {key!r} must have one type in all parts, got {first} in train and {other} in {part}: cast it to one"
                )


def number_type(feature: Any) -> str | None:
    """The type of the numbers in a column of lists or arrays of numbers ("uint8", …); None for another column."""
    nested = False
    while not isinstance(feature, dict) and (isinstance(feature, list) or hasattr(feature, "feature")):
        feature, nested = (feature[0] if isinstance(feature, list) else feature.feature), True
    dtype = str(getattr(feature, "dtype", None))
    return dtype if dtype in NUMBERS and (nested or hasattr(feature, "shape")) else None


def image_reader(rows: Any, column: str, decoding: Decoding, where: str) -> Reader:
    """Row number → image; Unreadable where there is none, ValueError naming a row whose image cannot be read this time."""
    from datasets import Image

    encoded = rows.select_columns([column]).cast_column(column, Image(decode=False))

    def read(i: int) -> np.ndarray:
        value = encoded[i][column]
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise Unreadable("missing")
        try:
            return decode(value["path"] if value["bytes"] is None else value["bytes"], decoding)
        except Unreadable:
            raise
        except ValueError as error:
            raise ValueError(f"{where}, row {i}: {error}") from error

    return read


def array_reader(rows: Any, column: str, layout: str, dtype: np.dtype[Any], where: str) -> Reader:
    """Row number → array, channel first; Unreadable where there is none, or numbers that `dtype` does not hold."""
    plain = rows.select_columns([column]).with_format("numpy", dtype=np.float64)  # where a null is NaN

    def read(i: int) -> np.ndarray:
        try:
            value = np.asarray(plain[i][column], np.float64)  # of None it is NaN, too
        except ValueError as error:
            raise ValueError(
                f"{where}, row {i}: {column!r} must hold lists of equal lengths in a row: {one_line(error)}"
            ) from error
        if np.isnan(value).any():
            raise Unreadable("a missing value or NaN")
        x = channel_first(value[None], layout, f"{where}, row {i}")[0]
        with np.errstate(over="ignore", invalid="ignore"):  # found below, and by the store
            converted = x.astype(dtype)
        if dtype == np.uint8 and (converted != x).any():
            raise Unreadable("not whole numbers in 0..255")
        return np.ascontiguousarray(converted)

    return read


def is_image(feature: Any) -> bool:
    """Whether a column holds images."""
    from datasets import Image

    return isinstance(feature, Image)


def input_reader(
    rows: Any, key: str, decoding: Decoding, layout: str | None, dtype: Literal["uint8", "float32"] | None, where: str
) -> tuple[Reader, np.dtype[Any]]:
    """(row number → input, the inputs' type) of a column of images or of lists or arrays of numbers.

    layout, dtype: of numbers only; decoding: of images, its size only of them. Raises ValueError for other columns, settings
    that are missing or not for this kind of column.
    """
    feature = rows.features[key]
    if is_image(feature):
        if layout is not None or dtype is not None:
            raise ValueError(f"{where}: {key!r} holds images, got {layout=} and {dtype=}, which are for numbers: drop them")
        return image_reader(rows, key, decoding, where), np.dtype(np.uint8)
    kind = number_type(feature)
    if kind is None:
        raise ValueError(f"{where}: {key!r} must hold images, or lists or arrays of numbers, got {feature}: name another column")
    if decoding.size is not None:
        raise ValueError(f"{where}: {key!r} holds numbers, got size={decoding.size}, which is for images: drop it")
    if layout not in LAYOUTS:
        raise ValueError(f"{where}: {key!r} holds numbers, whose layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if dtype not in (None, "uint8", "float32"):
        raise ValueError(f"dtype must be 'uint8', 'float32' or None, got {dtype!r}")
    if dtype is None and kind != "uint8" and not kind.startswith("float"):
        raise ValueError(f"{where}: {key!r} holds {kind}, and inputs are uint8 or float32: say which by dtype=")
    chosen = np.dtype(dtype or ("uint8" if kind == "uint8" else "float32"))
    return array_reader(rows, key, layout, chosen, where), chosen


def column(rows: Any, key: str, where: str) -> list[Any]:
    """The values of a column; ValueError naming rows without one."""
    values: list[Any] = rows.select_columns([key])[:][key]
    missing = np.array([i for i, value in enumerate(values) if value is None], np.int64)
    if missing.size:
        raise ValueError(f"{where}: {key!r} must have a value in every row, got none in {name_rows(missing)}: fill or drop them")
    return values


def labels_of(path: str, key: str, feature: Any, values: list[Any]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """(labels (N,), class names or None) of a column of class labels, integers or text, which is numbered in sorted order."""
    names = getattr(feature, "names", None)
    dtype = str(getattr(feature, "dtype", None))
    if names is None and dtype in ("string", "large_string"):
        there, numbered = np.unique(np.array(values, str), return_inverse=True)
        return numbered.astype(np.int64), tuple(there.tolist())
    if "int" not in dtype or dtype not in NUMBERS:
        raise ValueError(
            f"{path!r}: {key!r} must hold class labels, integers or text for classification, got {feature}: cast the column "
            "to ClassLabel, or pass task='regression' for numbers"
        )
    return np.array(values, np.int64), None if names is None else tuple(names)


def targets_of(
    path: str, key: str, feature: Any, values: list[Any], targets: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(targets (N, D), D names) of a column of numbers, or of lists of D numbers."""
    dtype = number_type(feature) or str(getattr(feature, "dtype", None))
    try:
        if dtype not in NUMBERS or hasattr(feature, "names"):
            raise ValueError(f"got {feature}")
        found = np.array(values, np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path!r}: {key!r} must hold numbers, or lists of as many numbers in every row, for regression: {one_line(error)}"
        ) from error
    return regression_targets(Path(path), key, found, targets)


def groups_of(rows: Mapping[str, Any], key: str, path: str) -> dict[str, np.ndarray]:
    """{part: (N,) group numbers} of a column of integers or text; ValueError naming groups that are in two parts."""
    values = {part: np.array(column(each, key, f"{path!r}, {part}")) for part, each in rows.items()}
    if any(v.dtype.kind not in "iuU" for v in values.values()):
        raise ValueError(f"{path!r}: the groups in {key!r} must be integers or text, got {rows['train'].features[key]}")
    for (one, first), (other, second) in itertools.combinations(values.items(), 2):
        both = np.intersect1d(first, second)
        if both.size:
            raise ValueError(
                f"{path!r}: a group of {key!r} may be in one part only, got {both.size} in both {one} and {other}, such as "
                f"{name_some(both.tolist())}: split the data set by groups, or drop groups= if its rows are independent"
            )
    every = np.unique(np.concatenate(list(values.values())))
    return {part: np.searchsorted(every, v).astype(np.int64) for part, v in values.items()}
