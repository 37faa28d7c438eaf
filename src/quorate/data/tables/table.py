"""A data set from a table, CSV or Parquet: declared columns become features, a declared column the label or target.

What a column means is declared (`quorate.data.tables.schema`), how it becomes features is fitted on the training rows alone
(`quorate.data.tables.encoder`) and kept with the data, so that new files are encoded the same way: `read_table`. The table is held in
memory, column by column, and as features.

Ids are row numbers: of the file, counted from 0 below the header, then of the test, validation and calibration files; dropped rows count.

Shapes: x (N, F) float32; y (N,) int64 labels, or (N, D) float32 targets.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quorate._validation import nearest
from quorate.data.arrays import assemble
from quorate.data.dataset import Data
from quorate.data.listing import name_some
from quorate.data.regression import check_precision
from quorate.data.split import Split
from quorate.data.tables.column import CellError, Words, bad_rows, numbers, shown, words
from quorate.data.tables.encoder import TableEncoder, contents_of
from quorate.data.tables.file import MISSING, Content, Format, read_columns
from quorate.data.tables.schema import MAX_CATEGORIES, Column, Unknown, read_schema

Task = Literal["classification", "regression"]
Tables = Mapping[str, tuple[str | Path, Any]]  # part → (path, pyarrow.Table)


def read_table(
    path: str | Path,
    encoder: TableEncoder,
    delimiter: str = ",",
    decimal: str = ".",
    format: Format | None = None,
) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
    """A new file's rows as the features of a fitted encoder, and the categories in it that training didn't have.

    path: .csv or .parquet with the encoder's columns; others are not looked at. delimiter, decimal, format: as for `table`.
    Returns x (N, F) float32, rows in the file's order, and {column: {new category: number of rows}}.
    Raises as `table`, with the file and the rows named.
    """
    found = read_columns(path, encoder.contents, (), "ignore", encoder.missing, delimiter, decimal, format)
    return _encoded(path, found, encoder)


def table(
    path: str | Path,
    *,
    schema: Mapping[str, Any] | str | Path,
    target: str | Sequence[str],
    task: Task,
    test: str | Path | None = None,
    validation: str | Path | None = None,
    calibration: str | Path | None = None,
    ood: Mapping[str, str | Path] | None = None,
    groups: str | None = None,
    fold: str | None = None,
    test_folds: Sequence[str | int] = (),
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    missing_labels: Literal["error", "drop"] = "error",
    missing: Sequence[str] = MISSING,
    other: Literal["error", "ignore"] = "error",
    max_categories: int = MAX_CATEGORIES,
    unknown: Unknown = "other",
    delimiter: str = ",",
    decimal: str = ".",
    format: Format | None = None,
    name: str = "table",
) -> Data:
    """A `Data` from a table.

    path: .csv or .parquet, of the training rows and of all splits that have no file of their own. schema: {column: kind or
    {kind: …}}, or a .yaml or .json file with it, see `quorate.data.tables.schema`. target: the column to predict, several for a
    regression; never a feature. task: "classification" (labels are text, integers or booleans) or "regression" (numbers).
    test, validation, calibration: files; cut off the first file where None. ood: {name: file}, without the target.
    groups: column that says whose a row is (a person's, a machine's): whole groups go to one split. fold, test_folds: the test
    split are the rows with these values in this column. Neither column is a feature. fractions, seed: see `quorate.data.arrays`.
    classes: labels in the order of their numbers; all that occur, sorted as text, if None.
    missing_labels: of rows without label or target: an error, or they are dropped, and counted in `Data.preprocessing`.
    missing: words that stand for no value, CSV only. other: whether columns that are not declared are an error or ignored.
    max_categories, unknown: for category columns that don't say. delimiter, decimal: CSV only. format: of all files, by their
    names if None.

    `Data.preprocessing` is {"kind": "table", "encoder": `TableEncoder.to_dict`, "dropped": {file: rows}, "new_categories":
    {split: {column: {category: rows}}}}, as JSON values.

    Raises ImportError without pyarrow; FileNotFoundError; ValueError naming file, column and rows (counted from 0), for text
    that can't be read as declared also the line: columns that are missing, undeclared or double, values of another kind or
    infinite, missing ones in a column that is not nullable, a class with too few rows for every split, whatever `read_schema` and
    `quorate.data.arrays` refuse.
    """
    features, ignored = read_schema(schema, max_categories, unknown)
    targets = (target,) if isinstance(target, str) else _sequence("target", target, "a column, or a sequence of columns")
    _check_roles(features, targets, task, classes, missing_labels, groups, fold, test_folds, test, ood)
    contents = contents_of(features)
    y_contents: dict[str, Content] = dict.fromkeys(targets, "words" if task == "classification" else "number")
    sides: dict[str, Content] = {} if groups is None else {groups: "words"}
    own: dict[str, Content] = {} if fold is None else {fold: "words"}

    def read(file: str | Path, columns: Mapping[str, Content]) -> Any:
        return read_columns(file, columns, {*ignored, *y_contents, *sides, *own}, other, missing, delimiter, decimal, format)

    paths = {"train": path, "test": test, "validation": validation, "calibration": calibration}
    tables: dict[str, tuple[str | Path, Any]] = {}
    for part, file in paths.items():
        if file is not None:
            tables[part] = file, read(file, contents | y_contents | sides | (own if part == "train" else {}))
    if task == "classification":
        names, ys = _labels(tables, targets[0], classes)
    else:
        names, ys = None, _targets(tables, targets)
    kept = {part: _known(tables[part][0], targets, y, missing_labels) for part, y in ys.items()}
    whose = {} if groups is None else _groups(tables, groups, kept)

    starts = dict(zip(tables, np.cumsum([0, *(found.num_rows for _, found in tables.values())]).tolist(), strict=False))
    rough: dict[str, Split | None] = dict.fromkeys(paths)
    for part, rows in kept.items():  # the rows' split is made on placeholders: the encoder may see training rows only
        rough[part] = Split(np.zeros((len(rows), 1), np.uint8), ys[part][rows], starts[part] + rows, whose.get(part))
    train, tested = rough["train"], rough["test"]
    assert train is not None
    if fold is not None:
        train, tested = _folds(tables["train"], fold, test_folds, train)
        if groups is not None:
            either = {"the test folds": tested, f"the other folds of {path}": train}
            _check_apart(groups, {side: _whole(*tables["train"], groups, rows.ids) for side, rows in either.items()})
    kind = targets if task == "regression" else ()
    try:
        plan = assemble(name, train, tested, rough["validation"], rough["calibration"], fractions, seed, {}, names, None, kind)
    except ValueError as error:
        if names is None or "every class" not in str(error):
            raise
        raise _too_few(path, targets[0], names, sum(map(len, kept.values())), error) from error

    origin = {part: part if part in tables else "train" for part in plan.splits()}
    encoder: TableEncoder | None = None
    splits: dict[str, Split] = {}
    new: dict[str, dict[str, dict[str, int]]] = {}
    for part, split in plan.splits().items():
        file, found = tables[origin[part]]
        rows = split.ids - starts[origin[part]]
        taken = found.select(list(features)).take(rows)
        try:
            encoder = encoder or TableEncoder.fit(taken, features, missing, rows)
            splits[part] = Split(encoder.encode(taken, rows), split.y, split.ids, split.groups)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        new[part] = encoder.new_categories(taken)
    assert encoder is not None
    outside: dict[str, Split] = {}
    for part, file in (ood or {}).items():
        x, new[f"ood/{part}"] = _encoded(file, read(file, contents), encoder)
        outside[part] = Split(x, None, np.arange(len(x)))
    about = {
        "kind": "table",
        "encoder": encoder.to_dict(),
        "dropped": {part: found.num_rows - len(kept[part]) for part, (_, found) in tables.items()},
        "new_categories": {part: columns for part, columns in new.items() if columns},
    }
    four = (splits["train"], splits["validation"], splits["calibration"], splits["test"])
    return Data.build(name, *four, outside, plan.classes, None, plan.targets, about)


def _encoded(path: str | Path, found: Any, encoder: TableEncoder) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
    try:
        return encoder.encode(found), encoder.new_categories(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_roles(
    features: Mapping[str, Column],
    targets: Sequence[str],
    task: str,
    classes: Sequence[str] | None,
    missing_labels: str,
    groups: str | None,
    fold: str | None,
    test_folds: Sequence[str | int],
    test: str | Path | None,
    ood: Mapping[str, str | Path] | None,
) -> None:
    """ValueError for arguments of `table` that contradict each other."""
    if task not in ("classification", "regression"):
        close = nearest(str(task), ["classification", "regression"])
        raise ValueError(f"task must be 'classification' or 'regression', got {task!r}{close}")
    if missing_labels not in ("error", "drop"):
        raise ValueError(f"missing_labels must be 'error' or 'drop', got {missing_labels!r}")
    if classes is not None:
        _sequence("classes", classes, "a sequence of names")
    folds = _sequence("test_folds", test_folds, "a sequence of values of the fold column")
    if ood is not None and not isinstance(ood, Mapping):
        raise ValueError(f"ood must be a mapping from names to files, got {ood!r}: write ood={{'name': 'file.csv'}}")
    if not targets or len(set(targets)) < len(targets) or (task == "classification" and len(targets) > 1):
        raise ValueError(
            f"target must be one column, or different columns for a regression, got {list(targets)} for task={task!r}"
        )
    if task == "regression" and classes is not None:
        raise ValueError(f"a regression has no classes, got classes={list(classes)}: drop them, or say task='classification'")
    roles = [*((each, "target") for each in targets), (groups, "groups"), (fold, "fold")]
    for i, (each, role) in enumerate(roles):
        if each is None:
            continue
        if not isinstance(each, str):
            raise ValueError(f"{role} must be the name of a column, got {each!r}")
        if each in features:
            raise ValueError(f"column {each!r} is the {role} column and can't be a feature too: take it out of the schema")
        if each in [c for c, _ in roles[:i]]:
            raise ValueError(f"column {each!r} can't be {role} column and something else: name another one")
    if (fold is None) != (not folds):
        raise ValueError(
            f"fold names a column and test_folds lists the values whose rows are the test split, got {fold=}, {test_folds=}"
        )
    if fold is not None and test is not None:
        raise ValueError(f"the test split is a file or folds, got {fold=} and test={str(test)!r}: give one of them")


def _sequence(name: str, given: Any, what: str) -> tuple[Any, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        raise ValueError(f"{name} must be {what}, got {given!r}: write {name}=[…]")
    return tuple(given)


def _labels(tables: Tables, target: str, classes: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, and per file (n,) labels, −1 where missing."""
    found = {part: _words(file, content, target) for part, (file, content) in tables.items()}
    present = {word for each in found.values() for word in each.words}
    names = tuple(sorted(present)) if classes is None else tuple(map(str, classes))
    number = {name: label for label, name in enumerate(names)}
    for part, each in found.items():
        for code, word in enumerate(each.words):
            if word not in number:
                rows = bad_rows(np.arange(len(each.codes)), each.codes == code)
                raise ValueError(
                    f"{tables[part][0]}: column {target!r} must hold one of the {len(names)} classes, got {shown(word)} in "
                    f"{rows}{nearest(word, list(names))}: correct it, or add it to classes"
                )
    return names, {p: np.array([*(number[w] for w in e.words), -1], np.int64)[e.codes] for p, e in found.items()}


def _too_few(path: str | Path, target: str, names: Sequence[str], rows: int, error: ValueError) -> ValueError:
    """What a class with too few rows is about: its column and value, or a column of numbers that can't be meant as classes."""
    if 2 * len(names) > rows and all(map(_is_number, names)):
        return ValueError(
            f"{path}: column {target!r} has {len(names)} different values in {rows} rows: is it a regression? give task='regression' "
            "(on the command line --data.task regression)"
        )
    said = re.sub(r"\bclass (\d+) has", lambda found: f"class {shown(names[int(found[1])])} has", str(error))
    return ValueError(f"{path}: column {target!r}: {said}")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _targets(tables: Tables, targets: Sequence[str]) -> dict[str, np.ndarray]:
    """Per file (n, D) float64 targets, NaN where missing."""
    ys = {}
    for part, (file, found) in tables.items():
        columns = []
        for target in targets:
            try:
                values = numbers(target, found[target])
                beyond = np.abs(values) > np.finfo(np.float32).max
                if beyond.any():
                    rows = bad_rows(np.arange(len(values)), beyond)
                    raise ValueError(
                        f"target {target!r} must be finite in float32, got {values[beyond][0]:g} in {rows}: correct it"
                    )
                if not np.isnan(values).all():
                    check_precision(f"column {target!r}", values[~np.isnan(values)])
            except CellError as error:
                raise ValueError(f"{file}, row {error.row}: {error}") from error
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            columns.append(values)
        ys[part] = np.stack(columns, axis=1)
    return ys


def _known(path: str | Path, targets: Sequence[str], y: np.ndarray, missing_labels: str) -> np.ndarray:
    """Rows that have a label or all targets."""
    gone = y < 0 if y.ndim == 1 else np.isnan(y).any(axis=1)
    if gone.any() and (missing_labels == "error" or gone.all()):
        raise ValueError(
            f"{path}: every row needs {', '.join(map(repr, targets))}, got none in {bad_rows(np.arange(len(y)), gone)}: fill it in"
            + ("" if gone.all() else ", or pass missing_labels='drop'")
        )
    return np.flatnonzero(~gone)


def _words(path: str | Path, found: Any, column: str) -> Words:
    try:
        return words(column, found[column])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _whole(path: str | Path, found: Any, column: str, kept: np.ndarray) -> Words:
    """The words of a column in the kept rows, none missing."""
    codes, listed = _words(path, found, column)
    gone = codes[kept] < 0
    if gone.any():
        raise ValueError(
            f"{path}: column {column!r} must say something in every row, got nothing in {bad_rows(kept, gone)}: fill it in"
        )
    return Words(codes[kept], listed)


def _groups(tables: Tables, column: str, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per file the groups of the kept rows, numbered over all files in the sorted order of their names."""
    found = {part: _whole(file, content, column, kept[part]) for part, (file, content) in tables.items()}
    _check_apart(column, {f"{part} ({tables[part][0]})": each for part, each in found.items()})
    number = {word: i for i, word in enumerate(sorted({word for each in found.values() for word in each.words}))}
    return {part: np.array([number[word] for word in each.words], np.int64)[each.codes] for part, each in found.items()}


def _check_apart(column: str, sides: Mapping[str, Words]) -> None:
    """ValueError naming words of the column that rows of two sides have."""
    there = {side: {each.words[code] for code in np.unique(each.codes).tolist()} for side, each in sides.items()}
    for (one, first), (other, second) in itertools.combinations(there.items(), 2):
        both = sorted(first & second)
        if both:
            raise ValueError(
                f"a group of column {column!r} may be in one split only, got {len(both)} in both {one} and {other}, such as "
                f"{name_some(both)}: move their rows to one side, or drop groups= if all rows are independent"
            )


def _folds(table: tuple[str | Path, Any], column: str, test_folds: Sequence[str | int], split: Split) -> tuple[Split, Split]:
    """(the rest, the rows of the test folds) of the first file's rows."""
    codes, listed = _whole(*table, column, split.ids)
    wanted = [str(each) for each in test_folds]
    for each in wanted:
        if each not in listed:
            some = ", ".join(map(repr, sorted(listed)[:10]))
            raise ValueError(f"{table[0]}: column {column!r} has no fold {each!r}, got {some}{nearest(each, list(listed))}")
    inside = np.isin(codes, [listed.index(each) for each in wanted])
    if inside.all():
        raise ValueError(f"{table[0]}: test_folds must leave rows for training, got all {len(set(listed))} folds: leave one out")
    return split.subset(np.flatnonzero(~inside)), split.subset(np.flatnonzero(inside))
