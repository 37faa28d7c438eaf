"""Outputs of models from elsewhere: NumPy archives and CSV files. The caller names arrays and columns; nothing is guessed."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.combination import CLASS_KINDS, Kind


def read_npz(
    path: str | Path, values: Sequence[str | Sequence[str]], kind: Kind, labels: str | None = None, ids: str | None = None
) -> dict[str, Any]:
    """The ``values, labels, ids`` that :meth:`quorate.Outputs.from_npz` names, which also says what may be asked for."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a NumPy archive (.npz)")
    for entry in values:
        pair = isinstance(entry, tuple | list) and len(entry) == 2
        if isinstance(values, str) or pair != (kind == "top1") or not (pair or isinstance(entry, str)):
            expected = "a pair of names (labels, probabilities)" if kind == "top1" else "the name of one array"
            raise ValueError(f"values={values!r} for kind={kind!r}: expected a list with {expected} per stage")
    names = [name for entry in values for name in ([entry] if isinstance(entry, str) else entry)]
    arrays = _named_arrays(path, [*names, *(name for name in (labels, ids) if name is not None)])
    stages: list[Any] = []
    for entry in values:
        if isinstance(entry, str):
            stages.append(arrays[entry])
            continue
        label, prob = arrays[entry[0]], arrays[entry[1]]
        stages += list(zip(label, prob, strict=True)) if label.ndim == 2 and label.shape == prob.shape else [(label, prob)]
    return {
        "values": stages,
        "labels": None if labels is None else arrays[labels],
        "ids": None if ids is None else arrays[ids],
    }


def _named_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray]:
    """The named arrays of the archive."""
    try:
        with path.open("rb") as file:  # NumPy leaves a damaged file open
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            with archive:
                missing = [name for name in names if name not in archive.files]
                arrays = {name: archive[name] for name in names if name not in missing}
    except (ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable NumPy archive ({error}): write it with numpy.savez") from error
    if missing:
        raise ValueError(f"{path} has no array {missing[0]!r}: it holds {', '.join(archive.files) or 'nothing'}")
    return arrays


def read_csv(
    path: str | Path,
    values: Sequence[Sequence[str]],
    kind: Kind,
    labels: str | None = None,
    ids: str | None = None,
    classes: Sequence[str] | None = None,
    delimiter: str = ",",
) -> dict[str, Any]:
    """The ``values, labels, ids`` that :meth:`quorate.Outputs.from_csv` names, which also says what may be asked for."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a CSV file")
    for stage in values:
        if isinstance(values, str) or isinstance(stage, str) or not stage or (kind == "top1" and len(stage) != 2):
            expected = "the pair (label column, probability column)" if kind == "top1" else "the list of its columns"
            raise ValueError(f"values={values!r} for kind={kind!r}: expected a list with {expected} per stage")
    if len(delimiter) != 1:
        raise ValueError(f"delimiter={delimiter!r}: expected one character")
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            lines = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(lines, [])
            needed = [name for stage in values for name in stage] + [name for name in (labels, ids) if name is not None]
            for name in needed:
                if header.count(name) != 1:
                    raise ValueError(f"{path} has {header.count(name)} columns {name!r}: expected one; its columns are {header}")
            columns: dict[str, list[str]] = {name: [] for name in needed}
            at_line: list[int] = []
            at = {name: header.index(name) for name in columns}
            for row in lines:
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}, line {lines.line_num}, has {len(row)} fields: expected {len(header)} as in the header"
                    )
                at_line.append(lines.line_num)
                for name, column in columns.items():
                    column.append(row[at[name]])
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a readable CSV file ({error}): expected UTF-8 text separated by {delimiter!r}"
            ) from error
    read = _Columns(path, columns, at_line, None if classes is None else {str(name): k for k, name in enumerate(classes)})
    stages: list[Any] = [
        (read.classes(stage[0]), read.floats(stage[1])) if kind == "top1" else np.stack([read.floats(name) for name in stage], -1)
        for stage in values
    ]
    truth = None if labels is None else read.classes(labels) if kind in CLASS_KINDS else read.floats(labels)
    return {"values": stages, "labels": truth, "ids": None if ids is None else np.array(columns[ids])}


class _Columns:
    """The text of the columns as numbers; errors name the line."""

    def __init__(self, path: Path, columns: dict[str, list[str]], at_line: list[int], index: dict[str, int] | None) -> None:
        self.path, self.columns, self.at_line, self.index = path, columns, at_line, index

    def floats(self, name: str) -> NDArray[np.float64]:
        return np.array(self._convert(name, float, "a number"), np.float64)

    def classes(self, name: str) -> NDArray[np.int64]:
        index = self.index
        if index is None:
            return np.array(self._convert(name, lambda text: np.int64(int(text)), "an integer"), np.int64)
        return np.array(self._convert(name, lambda text: index[text], f"one of the classes {', '.join(index)}"), np.int64)

    def _convert(self, name: str, kind: Callable[[str], Any], expected: str) -> list[Any]:
        numbers = []
        for text, line in zip(self.columns[name], self.at_line, strict=True):
            try:
                numbers.append(kind(text))
            except (ValueError, KeyError, OverflowError):
                raise ValueError(f"{self.path}, line {line}, column {name!r}: {text!r} is not {expected}, mend the row") from None
        return numbers
