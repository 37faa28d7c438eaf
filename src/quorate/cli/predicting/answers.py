"""The answers to all rows as a file: ``.parquet``, ``.csv`` or ``.npz``, a row each in the order of the input.

    classification
      id             int64 | text     see ``rows``
      label          int64            index of the predicted class; −1 for a row that was skipped
      class          text             its name, where the bundle has class names
      probability    float64          of the label, at the stage of exit
      uncertainty    float64          at the stage of exit; higher = less sure
      accepted       bool             whether it is at most that stage's τ
      exit_stage     text             name of the stage
      macs           float64          cost of the stages that the row went through
      probs          float64 (C,)     with --probs: of all classes, at the stage of exit

    regression
      id, exit_stage, macs            as above; every row goes through all stages
      value          float64 (D,)     mean of the members
      variance       float64 (D,)     of their mixture, where they tell their own

A skipped row has label −1, class and exit_stage "", accepted false, macs 0, NaN elsewhere. Vectors (C,), (D,) are a fixed-size list
in Parquet, a column ``probs.NAME``, ``value.NAME`` per entry in CSV (its number where there is no name; ``value`` alone for D = 1
without one), an array (N, C), (N, D) in .npz. NaN is null in Parquet, an empty cell in CSV (true and false there are words, numbers the
shortest that read back to the same float64), NaN in .npz, which is deflated and holds an array per column.

Equal answers give equal bytes, however they were cut into parts: fixed row groups, fixed times. Memory: one group or part at a time.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quorate._optional import imported
from quorate.cascade.prediction import Prediction
from quorate.cascade.step import Step

ENDINGS = (".parquet", ".csv", ".npz")
GROUP_ROWS, GROUP_BYTES = 65_536, 2**26  # at most in a row group
CSV_ROWS = 4096  # that are text at a time
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time that every member of an archive has
VECTORS = ("probs", "value", "variance")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Layout:
    """What the answers of a bundle look like.

    Attributes:
        stages: their names.
        names: of the classes, or of a regression's targets.
        columns: in order.
        text_ids: whether ids are text.
        width: of the vectors: C or D; 0 where it is not known and no row told it.
    """

    stages: tuple[str, ...]
    names: tuple[str, ...] | None
    columns: tuple[str, ...]
    text_ids: bool
    width: int

    @classmethod
    def of(
        cls, stages: Sequence[str], kind: str, names: Sequence[str] | None, text_ids: bool, probs: bool, width: int = 0
    ) -> Layout:
        """The layout for members of this kind, as :class:`quorate.Outputs` has them."""
        if kind in ("values", "gaussian"):
            columns = ["id", "value", *(["variance"] if kind == "gaussian" else []), "exit_stage", "macs"]
        else:
            named = [] if names is None else ["class"]
            columns = [
                "id",
                "label",
                *named,
                "probability",
                "uncertainty",
                "accepted",
                "exit_stage",
                "macs",
                *(["probs"] if probs else []),
            ]
        return cls(tuple(stages), None if names is None else tuple(names), tuple(columns), text_ids, width)

    def column(self, name: str, get: Callable[[str], NDArray[Any]]) -> NDArray[Any]:
        """A column of the answers whose stored arrays ``get`` gives; text as objects."""
        if name == "exit_stage":
            return _named(self.stages, get("stage"))
        if name == "class":
            return _named(self.names or (), get("label"))
        found = get(name)
        if name in VECTORS and found.shape[1] != self.width:  # a part of skipped rows only, which told no width
            return np.full((len(found), self.width), np.nan)
        return found.astype(object) if name == "id" and self.text_ids else found

    def entries(self, name: str) -> list[str]:
        """The columns of a CSV file that a column becomes."""
        if name not in VECTORS:
            return [name]
        if self.names is None and self.width == 1 and name != "probs":
            return [name]
        return [f"{name}.{k if self.names is None else self.names[k]}" for k in range(self.width)]


def _named(names: Sequence[str], at: NDArray[Any]) -> NDArray[Any]:
    """The names by their numbers, "" for −1."""
    found: NDArray[Any] = np.array([*names, ""], object)[at]
    return found


def classified(prediction: Prediction, probs: bool) -> Arrays:
    """What is stored of predictions."""
    n = len(prediction)
    found: Arrays = {key: getattr(prediction, key) for key in ("label", "uncertainty", "accepted", "stage", "macs")}
    every = prediction.probs
    if every is None:
        raise ValueError("these predictions have no probabilities: expected those of a bundle, of scores of every class")
    found["probability"] = every[np.arange(n), prediction.label]
    return found | ({"probs": every} if probs else {})


def regressed(step: Step) -> Arrays:
    """What is stored of a regression's answers."""
    assert step.values is not None
    n = len(step)
    macs = np.nan if step.macs is None else step.macs
    found: Arrays = {"value": step.values, "stage": np.full(n, step.stage), "macs": np.full(n, macs, np.float64)}
    return found | ({} if step.variance is None else {"variance": step.variance})


def with_skipped(found: Arrays, kept: NDArray[np.bool_], layout: Layout) -> Arrays:
    """Answers of the rows (n,) that were kept, with those that were skipped between them."""
    empty: dict[str, Any] = {"label": -1, "stage": -1, "accepted": False, "macs": 0.0}
    stored = {"exit_stage": "stage"}
    result: Arrays = {}
    for column in layout.columns:
        name = stored.get(column, column)
        if name in ("id", "class"):
            continue
        value = found.get(name)
        kind = {"label": np.int64, "stage": np.int64, "accepted": np.bool_}.get(name, np.float64)
        width = () if name not in VECTORS else (layout.width,) if value is None else value.shape[1:]
        result[name] = np.full((len(kept), *width), empty.get(name, np.nan), kind)
        if value is not None:
            result[name][kept] = value
    return result


class Part(Protocol):
    """Stored answers of some rows, arrays by name; read when asked for."""

    def __call__(self, name: str, /) -> NDArray[Any]: ...


def write(path: Path, ending: str, parts: Sequence[Part], layout: Layout) -> None:
    """Write the answers; ``ending`` says how. ImportError for Parquet without pyarrow; OSError for what can't be written."""
    {".parquet": _parquet, ".csv": _csv, ".npz": _npz}[ending](path, parts, layout)


def check_parquet() -> None:
    """ImportError without pyarrow."""
    imported("pyarrow.parquet", "quorate[tables]")


def _columns(parts: Iterable[Part], layout: Layout) -> Iterator[Arrays]:
    for part in parts:
        yield {name: layout.column(name, part) for name in layout.columns}


def _grouped(tables: Iterable[Arrays], rows: int) -> Iterator[Arrays]:
    """The same rows, ``rows`` in each table, fewer in the last."""
    held: list[Arrays] = []
    missing = rows
    for table in tables:
        at, n = 0, len(table["id"])
        while at < n:
            count = min(missing, n - at)
            held.append({name: column[at : at + count] for name, column in table.items()})
            at, missing = at + count, missing - count
            if not missing:
                yield {name: np.concatenate([piece[name] for piece in held]) for name in table}
                held, missing = [], rows
    if held:
        yield {name: np.concatenate([piece[name] for piece in held]) for name in held[0]}


def _parquet(path: Path, parts: Sequence[Part], layout: Layout) -> None:
    arrow, parquet = imported("pyarrow", "quorate[tables]"), imported("pyarrow.parquet", "quorate[tables]")
    types = {"label": arrow.int64(), "accepted": arrow.bool_(), "class": arrow.string(), "exit_stage": arrow.string()}
    types["id"] = arrow.string() if layout.text_ids else arrow.int64()
    types |= dict.fromkeys(VECTORS, arrow.list_(arrow.float64(), layout.width))
    schema = arrow.schema([(name, types.get(name, arrow.float64())) for name in layout.columns])

    def array(name: str, values: NDArray[Any]) -> Any:
        if name in VECTORS:
            flat = arrow.array(np.ascontiguousarray(values).reshape(-1), arrow.float64(), from_pandas=True)
            return (
                arrow.FixedSizeListArray.from_arrays(flat, layout.width)
                if layout.width
                else arrow.array([[]] * len(values), types[name])
            )
        return arrow.array(values, schema.field(name).type, from_pandas=True)

    row_bytes = 64 + 8 * layout.width * sum(name in VECTORS for name in layout.columns)
    with parquet.ParquetWriter(path, schema) as writer:
        for table in _grouped(_columns(parts, layout), max(1, min(GROUP_ROWS, GROUP_BYTES // row_bytes))):
            writer.write_table(arrow.table([array(name, values) for name, values in table.items()], schema))


def _csv(path: Path, parts: Sequence[Part], layout: Layout) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([entry for name in layout.columns for entry in layout.entries(name)])
        for table in _grouped(_columns(parts, layout), CSV_ROWS):
            cells: list[list[str]] = []
            for name, values in table.items():
                cells += [_words(column) for column in (values.T if name in VECTORS else [values])]
            writer.writerows(zip(*cells, strict=True))


def _words(values: NDArray[Any]) -> list[str]:
    """A column's cells."""
    if values.dtype == bool:
        return ["true" if value else "false" for value in values.tolist()]
    if values.dtype.kind == "f":
        return ["" if value != value else repr(value) for value in values.tolist()]
    return [str(value) for value in values.tolist()]


def _npz(path: Path, parts: Sequence[Part], layout: Layout) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in layout.columns:
            rows, dtype = _extent(name, parts, layout)
            member = zipfile.ZipInfo(f"{name}.npy", EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            shape = (rows, layout.width) if name in VECTORS else (rows,)
            with archive.open(member, "w", force_zip64=True) as file:
                header: Mapping[str, Any] = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, dict(header))
                for part in parts:
                    file.write(np.ascontiguousarray(layout.column(name, part).astype(dtype)).tobytes())


def _extent(name: str, parts: Sequence[Part], layout: Layout) -> tuple[int, np.dtype[Any]]:
    """(rows, dtype) of a whole column; text is as wide as its longest."""
    rows, longest, dtype = 0, 1, np.dtype({"label": "<i8", "id": "<i8", "accepted": "?"}.get(name, "<f8"))
    text = name in ("class", "exit_stage") or (name == "id" and layout.text_ids)
    for part in parts:
        values = layout.column(name, part) if name == "id" else part("stage")
        rows += len(values)
        if text:
            longest = max([longest, *(len(word) for word in (values if name == "id" else ()))])
    if name in ("class", "exit_stage"):
        longest = max([1, *(len(word) for word in (layout.names or () if name == "class" else layout.stages))])
    return rows, np.dtype(f"<U{longest}") if text else dtype
