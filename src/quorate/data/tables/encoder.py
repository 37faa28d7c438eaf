"""Declared columns → features, fitted on training rows only and kept as plain JSON.

    number, date    the value (date: days since 1970-01-01)                           1 feature
    boolean         0 or 1                                                            1
    ordinal         rank of the level, from 0                                         1
    category        one-hot, categories in sorted order; then "other" if there is one    up to max_categories + 1

A missing value becomes the median of the known training values (a category: no category at all) and sets a feature of its own, "… is
missing". That feature exists for columns that are declared nullable; elsewhere a missing value is an error, in training too. The
``max_categories`` most frequent categories have a feature, of equal ones the first in sorted order; the rest are "other". A category that
training didn't have is "other" or an error, as declared; where training had nothing rare, "other" is 0 in every training row.

Nothing is scaled here: that is `quorate.data.Normalise`, a model's first layer.

Shapes: columns (N,); features (N, F) float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quorate._validation import nearest
from quorate.data.regression import check_precision
from quorate.data.tables.column import CellError, Words, arrow, bad_rows, days, numbers, shown, words
from quorate.data.tables.file import MISSING, Content, check_header
from quorate.data.tables.schema import Column, column
from quorate.files import read_json, write_json
from quorate.runs import read_facts

FORMAT = "quorate-table/1"
LARGEST = float(np.finfo(np.float32).max)
Values = np.ndarray | Words


@dataclass(frozen=True)
class Feature:
    """What training told about one column.

    name, column: as declared. indicator: whether it has the feature "… is missing". fill: for missing values; 0 for a category.
    categories: with a feature, sorted. rare: seen in training, but "other". other: whether there is the feature "other".
    """

    name: str
    column: Column
    indicator: bool
    fill: float = 0.0
    categories: tuple[str, ...] = ()
    rare: tuple[str, ...] = ()

    @property
    def other(self) -> bool:
        return self.column.kind == "category" and (bool(self.rare) or self.column.unknown == "other")

    @property
    def names(self) -> list[str]:
        """Of its features, in order."""
        own = [self.name]
        if self.column.kind == "category":
            own = [f"{self.name}={c}" for c in self.categories] + [f"{self.name} is other"] * self.other
        return own + [f"{self.name} is missing"] * self.indicator


@dataclass(frozen=True)
class TableEncoder:
    """A fitted encoding of table rows; made by `fit`, `load`, `from_dict` or `from_run`. Columns it doesn't know are not looked at.

    features: per column, in the declared order. missing: words of a CSV file that stand for no value.
    """

    features: tuple[Feature, ...]
    missing: tuple[str, ...] = MISSING

    @classmethod
    def fit(
        cls,
        columns: Any,
        schema: Mapping[str, Column],
        missing: Sequence[str] = MISSING,
        rows: np.ndarray | None = None,
    ) -> TableEncoder:
        """The encoding of training rows.

        columns: {name: (N,) values} or a `pyarrow.Table`. schema: {name: Column}, of `quorate.data.tables.schema.read_schema`.
        missing: as for the class. rows: (N,) numbers by which errors call the rows; 0 … N − 1 if None.
        Raises ValueError naming column and rows for columns that are not there, values of another kind,
        infinite numbers, numbers that float32 can't tell apart, a column without any value, missing values in one that is not nullable.
        """
        numbered = _row_numbers(columns, schema, rows)
        fitted = (_fit(name, c, _values(name, c, columns[name], numbered), numbered) for name, c in schema.items())
        return cls(tuple(fitted), tuple(missing))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the F features, in order."""
        return tuple(name for feature in self.features for name in feature.names)

    @property
    def contents(self) -> dict[str, Content]:
        """What each column has to be read as, by name."""
        return contents_of({feature.name: feature.column for feature in self.features})

    def encode(self, columns: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """(N, F) float32 features of N rows.

        columns: {name: (N,) values} or a `pyarrow.Table`; text, numbers, booleans, None (NaN for numbers) where missing. rows: (N,)
        numbers by which errors call the rows; 0 … N − 1 if None.
        Raises ValueError naming column, rows and values for what `fit` refuses, missing values in a column that has no indicator,
        levels that don't exist, and new categories where they are declared an error.
        """
        numbered = _row_numbers(columns, self.contents, rows)
        x = np.zeros((len(numbered), len(self.names)), np.float32)
        start = 0
        for feature in self.features:
            width = len(feature.names)
            values = _values(feature.name, feature.column, columns[feature.name], numbered)
            _encode(feature, values, numbered, x[:, start : start + width])
            start += width
        return x

    def new_categories(self, columns: Any) -> dict[str, dict[str, int]]:
        """{column: {category that training didn't have: its number of rows}} of N rows; columns without any are left out.

        Raises ValueError as `encode` does for columns that are not there or hold other types.
        """
        _row_numbers(columns, self.contents, None)
        found: dict[str, dict[str, int]] = {}
        for feature in self.features:
            if feature.column.kind == "category":
                codes, listed = words(feature.name, columns[feature.name])
                counts = np.bincount(codes[codes >= 0], minlength=len(listed)).tolist()
                known = {*feature.categories, *feature.rare}
                new = {word: count for word, count in zip(listed, counts, strict=True) if word not in known}
                if new:
                    found[feature.name] = dict(sorted(new.items()))
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values from which `from_dict` makes an equal encoder."""
        columns = [
            {"name": f.name, **f.column.to_dict(), "indicator": f.indicator}
            | ({"categories": list(f.categories), "rare": list(f.rare)} if f.column.kind == "category" else {"fill": f.fill})
            for f in self.features
        ]
        return {"format": FORMAT, "columns": columns, "missing": list(self.missing)}

    @classmethod
    def from_dict(cls, content: Any) -> TableEncoder:
        """The encoder of `to_dict`. ValueError saying what is wrong."""
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, Mapping) else type(content).__name__
            raise ValueError(f"a table encoder must have the format {FORMAT!r}, got {found!r}: write it with TableEncoder.save")
        columns = content.get("columns")
        if not isinstance(columns, list) or not columns or not all(isinstance(each, Mapping) for each in columns):
            raise ValueError("a table encoder's columns must be a list of at least one mapping: fit it anew")
        features = tuple(_feature(each) for each in columns)
        if len({feature.name for feature in features}) < len(features):
            raise ValueError("a table encoder's columns must have different names: fit it anew")
        return cls(features, _texts(content, "missing"))

    def save(self, path: str | Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> TableEncoder:
        """Read what `save` wrote. FileNotFoundError, ValueError naming the file."""
        try:
            return cls.from_dict(read_json(path, "a table encoder written by TableEncoder.save"))
        except ValueError as error:
            raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error

    @classmethod
    def from_run(cls, folder: str | Path) -> TableEncoder:
        """The encoder of the table that a run was trained on.

        Raises FileNotFoundError, ValueError naming the folder: no run, a run on other data.
        """
        data = read_facts(folder).get("data")
        kept = data.get("preprocessing") if isinstance(data, Mapping) else None
        if not isinstance(kept, Mapping) or kept.get("kind") != "table":
            raise ValueError(f"{folder} keeps no table encoder: expected a run trained on quorate.data.table")
        try:
            return cls.from_dict(kept.get("encoder"))
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error


def contents_of(schema: Mapping[str, Column]) -> dict[str, Content]:
    """What each declared column has to be read as."""
    return {name: c.kind if c.kind in ("number", "date") else "words" for name, c in schema.items()}


def _row_numbers(columns: Any, wanted: Collection[str], rows: np.ndarray | None) -> np.ndarray:
    """The rows' numbers (N,); ValueError for another type, wanted columns that are not there, come twice or differ in length."""
    if not isinstance(columns, Mapping | arrow().Table):
        raise ValueError(
            f"columns must be a mapping from names to values or a pyarrow.Table, got {type(columns).__name__}: pass a DataFrame as "
            "pyarrow.Table.from_pandas(frame)"
        )
    check_header("the table", list(columns) if isinstance(columns, Mapping) else columns.column_names, wanted, (), "ignore")
    lengths = {name: _length(name, columns[name]) for name in wanted} | ({} if rows is None else {"rows": len(rows)})
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns must have one value per row, got {lengths}: give all the same length")
    return np.arange(next(iter(lengths.values()))) if rows is None else rows


def _length(name: str, values: Any) -> int:
    try:
        return len(values)
    except TypeError as error:
        raise ValueError(f"column {name!r} must be one value per row, got {type(values).__name__}: pass a 1-D array") from error


def _values(name: str, declared: Column, given: Any, rows: np.ndarray) -> Values:
    """Numbers (N,) float64, NaN where missing, checked to be within float32; a category's words."""
    if declared.kind == "category":
        return words(name, given)
    if declared.kind in ("number", "date"):
        try:
            values = numbers(name, given) if declared.kind == "number" else days(name, given)
        except CellError as error:
            raise ValueError(f"row {rows[error.row]}: {error}") from error
        beyond = np.abs(values) > LARGEST
        if beyond.any():
            raise ValueError(
                f"column {name!r} must hold finite numbers within float32, got {values[beyond][0]:g} in {bad_rows(rows, beyond)}: "
                "correct them, or leave them empty in a nullable column"
            )
        return values
    ranks = (
        {word: rank for rank, word in enumerate(declared.levels)}
        if declared.kind == "ordinal"
        else dict.fromkeys(declared.true, 1) | dict.fromkeys(declared.false, 0)
    )
    codes, listed = words(name, given)
    for code, word in enumerate(listed):
        if word not in ranks:
            raise ValueError(
                f"column {name!r} of kind {declared.kind!r} must hold one of {_some(ranks)}, got {shown(word)} in "
                f"{bad_rows(rows, codes == code)}{nearest(word, list(ranks))}: correct it, or declare it in the schema"
            )
    return np.asarray(np.array([*(ranks[word] for word in listed), np.nan])[codes])


def _fit(name: str, declared: Column, values: Values, rows: np.ndarray) -> Feature:
    gone = values.codes < 0 if isinstance(values, Words) else np.isnan(values)
    if gone.all():
        raise ValueError(f"column {name!r} has no value in any of the {len(gone)} training rows: declare it 'ignore'")
    missing = int(gone.sum())
    if missing and not declared.nullable:
        raise ValueError(
            f"column {name!r} has {missing} missing value{'s' * (missing > 1)} ({bad_rows(rows, gone)}): declare it {{kind: "
            f"{declared.kind}, {'levels: […], ' * (declared.kind == 'ordinal')}nullable: true}}, or drop these rows"
        )
    if isinstance(values, Words):
        counts = np.bincount(values.codes[~gone], minlength=len(values.words)).tolist()
        ranked = sorted(zip(values.words, counts, strict=True), key=lambda each: (-each[1], each[0]))
        kept, rare = (
            [word for word, _ in part] for part in (ranked[: declared.max_categories], ranked[declared.max_categories :])
        )
        return Feature(name, declared, declared.nullable, categories=tuple(sorted(kept)), rare=tuple(sorted(rare)))
    known = values[~gone]
    check_precision(f"column {name!r}", known)
    return Feature(name, declared, declared.nullable, fill=float(np.median(known)))


def _encode(feature: Feature, values: Values, rows: np.ndarray, x: np.ndarray) -> None:
    """Write the features of one column into x (N, width) of zeros."""
    gone = values.codes < 0 if isinstance(values, Words) else np.isnan(values)
    if gone.any() and not feature.indicator:
        raise ValueError(
            f"column {feature.name!r} must not be empty (no training row was), got missing values in {bad_rows(rows, gone)}: fill them "
            "in, or declare the column nullable: true and train again"
        )
    if feature.indicator:
        x[:, -1] = gone
    if not isinstance(values, Words):
        x[:, 0] = np.where(gone, feature.fill, values)
        return
    places = {word: place for place, word in enumerate(feature.categories)} | dict.fromkeys(feature.rare, len(feature.categories))
    for code, word in enumerate(values.words):
        if word not in places and feature.column.unknown == "error":
            known = list(places)
            raise ValueError(
                f"column {feature.name!r} must hold one of the {len(known)} categories of training, got {shown(word)} in "
                f"{bad_rows(rows, values.codes == code)}{nearest(word, known)}: correct it, or declare unknown: other and train again"
            )
    targets = np.array([places.get(word, len(feature.categories)) for word in values.words], np.int64)
    there = np.flatnonzero(~gone)
    x[there, targets[values.codes[there]]] = 1


def _some(listed: Collection[str]) -> str:
    return ", ".join(map(repr, list(listed)[:10])) + (", …" if len(listed) > 10 else "")


def _feature(content: Mapping[str, Any]) -> Feature:
    """One column of `to_dict`, checked."""
    name = content.get("name")
    if not isinstance(name, str):
        raise ValueError(f"a table encoder's column must have a name, got {name!r}: fit it anew")
    own = ("name", "indicator", "fill", "categories", "rare")
    declared = column(name, {key: value for key, value in content.items() if key not in own})
    if declared == "ignore" or not isinstance(content.get("indicator"), bool):
        raise ValueError(f"column {name!r} of a table encoder must be a feature and say indicator true or false: fit it anew")
    if declared.kind == "category":
        parts = _texts(content, "categories"), _texts(content, "rare")
        if not parts[0] or list(parts[0]) != sorted({*parts[0]}) or {*parts[0]} & {*parts[1]}:
            raise ValueError(f"column {name!r} of a table encoder must list its categories once, sorted: fit it anew")
        return Feature(name, declared, content["indicator"], 0.0, *parts)
    fill = content.get("fill")
    if isinstance(fill, bool) or not isinstance(fill, int | float) or not abs(fill) <= LARGEST:
        raise ValueError(
            f"column {name!r} of a table encoder must have a fill that is finite in float32, got {fill!r}: fit it anew"
        )
    return Feature(name, declared, content["indicator"], float(fill))


def _texts(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    listed = content.get(key)
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"{key} of a table encoder must be a list of text, got {type(listed).__name__}: fit it anew")
    return tuple(listed)
