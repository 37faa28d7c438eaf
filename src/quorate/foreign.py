"""Outputs of models from elsewhere: NumPy archives and CSV files. The caller names arrays and columns; nothing is guessed."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.combination import Kind
from quorate.outputs import Outputs


def from_npz(
    path: str | Path,
    values: Sequence[str | tuple[str, str]],
    *,
    kind: Kind,
    labels: str | None = None,
    ids: str | None = None,
    **options: Any,
) -> Outputs:
    """Outputs from the arrays of an ``.npz`` (read without pickle).

    Args:
        path: the archive.
        values: per stage the name of its array, (N, C) or (m, N, C); for ``kind="top1"`` a pair of names (labels, probabilities)
            of (N,) arrays, or of (K, N) arrays that hold K stages at once.
        kind: what the arrays are, see :class:`quorate.Outputs`.
        labels, ids: names of the arrays with the true classes and the row ids, if there are any.
        **options: ``combine, classes, costs, ordered, names`` of :class:`quorate.Outputs`.

    Raises:
        FileNotFoundError, ValueError: a missing or unreadable archive, a name that is not in it (those that are get listed).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a NumPy archive (.npz)")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with archive:
            read = _Reader(path, archive)
            stages: list[Any] = []
            for entry in values:
                if isinstance(entry, str):
                    stages.append(read(entry))
                    continue
                label, prob = (read(name) for name in entry)
                stages += (
                    list(zip(label, prob, strict=True)) if label.ndim == 2 and label.shape == prob.shape else [(label, prob)]
                )
            return Outputs(
                stages,
                kind=kind,
                labels=None if labels is None else read(labels),
                ids=None if ids is None else read(ids),
                **options,
            )
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable NumPy archive ({error}): write it with numpy.savez") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _Reader:
    def __init__(self, path: Path, archive: Any) -> None:
        self.path, self.archive = path, archive

    def __call__(self, name: str) -> NDArray:
        if name not in self.archive.files:
            raise ValueError(f"there is no array {name!r}: it holds {', '.join(self.archive.files) or 'nothing'}")
        array: NDArray = self.archive[name]
        return array


def from_csv(
    path: str | Path,
    values: Sequence[Sequence[str]],
    *,
    kind: Kind,
    label: str | None = None,
    id: str | None = None,
    classes: Sequence[str] | None = None,
    delimiter: str = ",",
    **options: Any,
) -> Outputs:
    """Outputs from a CSV file with a header line; one row per input, one member per stage.

    Args:
        path: the file, UTF-8.
        values: per stage its columns' names, in class order; for ``kind="top1"`` the pair (label column, probability column).
        kind: what the columns are, see :class:`quorate.Outputs`.
        label: the column of true classes: integers, or class names if ``classes`` is given (so also for top1's label columns).
        id: the column of row ids (read as text).
        classes, **options: as in :class:`quorate.Outputs`.

    Raises:
        FileNotFoundError, ValueError: a missing file or column, a row of another length, a field that is not a number (line and
            column are named).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a CSV file")
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            lines = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(lines, [])
            needed = [name for stage in values for name in stage] + [name for name in (label, id) if name is not None]
            for name in needed:
                if header.count(name) != 1:
                    raise ValueError(
                        f"{path} has {header.count(name)} columns {name!r}: expected one; its columns are {', '.join(header)}"
                    )
            columns: dict[str, list[str]] = {name: [] for name in needed}
            at = {name: header.index(name) for name in columns}
            for row in lines:
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}, line {lines.line_num}, has {len(row)} fields: expected {len(header)} as in the header"
                    )
                for name, column in columns.items():
                    column.append(row[at[name]])
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a readable CSV file ({error}): expected UTF-8 text separated by {delimiter!r}"
            ) from error
    number = _Numbers(path, columns, None if classes is None else {str(name): k for k, name in enumerate(classes)})
    stages: list[Any] = []
    for names in values:
        if kind == "top1":
            if len(names) != 2:
                raise ValueError(f"{list(names)} for a stage of kind 'top1': expected (label column, probability column)")
            stages.append((number.classes_of(names[0]), number.floats(names[1])))
        else:
            stages.append(np.stack([number.floats(name) for name in names], -1))
    return Outputs(
        stages,
        kind=kind,
        labels=None if label is None else number.classes_of(label),
        ids=None if id is None else np.array(columns[id]),
        classes=classes,
        **options,
    )


class _Numbers:
    def __init__(self, path: Path, columns: dict[str, list[str]], index: dict[str, int] | None) -> None:
        self.path, self.columns, self.index = path, columns, index

    def floats(self, name: str) -> NDArray[np.float64]:
        return np.array(
            [self._convert(float, text, name, line) for line, text in enumerate(self.columns[name], 2)],
            np.float64,
        )

    def classes_of(self, name: str) -> NDArray[np.int64]:
        if self.index is None:
            return np.array(
                [self._convert(int, text, name, line) for line, text in enumerate(self.columns[name], 2)],
                np.int64,
            )
        for line, text in enumerate(self.columns[name], 2):
            if text not in self.index:
                raise ValueError(
                    f"{self.path}, line {line}, column {name!r}: {text!r} is not among the classes {', '.join(self.index)}"
                )
        return np.array([self.index[text] for text in self.columns[name]], np.int64)

    def _convert(self, kind: type, text: str, name: str, line: int) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(
                f"{self.path}, line {line}, column {name!r}: {text!r} is not {kind.__name__}: mend the row"
            ) from None
