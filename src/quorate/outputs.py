"""Outputs: what every stage of an ensemble said on a data set, stored; all that is fitted, planned or measured needs only this.

Shapes, by ``kind`` of the values (one entry per stage, N rows, m members of the stage, C classes, D targets):

- ``"logits"``, ``"probs"``: (m, N, C) floats; a stage with one member may be given as (N, C).
- ``"top1"``: a pair of (N,) integer labels and (N,) probabilities, for models that give no more.
- ``"values"``: (m, N, D) regression values. ``"gaussian"``: (m, N, 2D), the D means and then the D log-variances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate import foreign
from quorate._validation import (
    Value,
    as_ids,
    check_classes,
    check_common,
    check_costs,
    check_ids,
    check_index,
    check_labels,
    check_names,
    check_values,
    rows_of,
)
from quorate.combination import BLOCK, COMBINES, KINDS, Combine, Floats, Kind, Running
from quorate.files import load_arrays, save_arrays

FORMAT = "quorate-outputs/1"


class Outputs:
    """Stored outputs of an ensemble's stages, in order, on N rows. Treated as immutable: methods return new ones.

    Args:
        values: one entry per stage, see the module's shapes.
        kind: what the values are.
        combine: how members become one prediction: mean of ``"probs"``, mean of ``"logits"``, or the ``"last"`` stage alone (its
            own members averaged as probabilities; the only way for ``"top1"``, which takes it by default).
        labels: (N,) true classes as integers, or (N, D) true values for regression.
        ids: (N,) integers or strings, each once, by which rows of different Outputs are matched. Default: 0 … N−1.
        classes: the class names, in order.
        costs: per stage, its cost per row in MACs (or any one unit used throughout).
        ordered: stages depend on their predecessors, so that only prefixes make sense.
        names: the stages' names, each once. Default: ``stage0`` ….

    Raises:
        ValueError: shapes, lengths, labels or ids that don't fit together, NaN or infinite values (the rows are named).
    """

    def __init__(
        self,
        values: Sequence[Any],
        *,
        kind: Kind = "logits",
        combine: Combine | None = None,
        labels: ArrayLike | None = None,
        ids: ArrayLike | None = None,
        classes: Sequence[str] | None = None,
        costs: Sequence[float] | None = None,
        ordered: bool = False,
        names: Sequence[str] | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
        combine = combine or ("last" if kind == "top1" else "probs")
        if combine not in COMBINES:
            raise ValueError(f"combine={combine!r}: expected one of {', '.join(COMBINES)}")
        if kind == "top1" and combine != "last":
            raise ValueError(f"combine={combine!r} needs every class's score, top1 has only the winner's: use combine='last'")
        if kind == "probs" and combine == "logits":
            raise ValueError("combine='logits' needs kind='logits', these are probabilities: use combine='probs'")
        if len(values) == 0:
            raise ValueError("values is empty: expected one array per stage, at least one")
        self.kind, self.combine, self.ordered = kind, combine, bool(ordered)
        self.names = check_names(names, len(values))
        self.values: list[Value] = [check_values(v, kind, name) for v, name in zip(values, self.names, strict=True)]
        self.n = check_common({name: rows_of(v) for v, name in zip(self.values, self.names, strict=True)}, "rows")
        if self.n == 0:
            raise ValueError("the stages have 0 rows: expected at least one")
        self.classes = None if classes is None else check_classes(classes)
        self.width = self._width()
        self.labels = None if labels is None else check_labels(labels, self.n, kind, self.width)
        self.ids = np.arange(self.n, dtype=np.int64) if ids is None else check_ids(ids, self.n)
        self.costs = None if costs is None else check_costs(costs, len(self.values))

    def _width(self) -> int | None:
        """Number of classes C (targets D for regression); None for top1 without class names."""
        named = None if self.classes is None else len(self.classes)
        if self.kind == "top1":
            if named is not None:
                for (label, _), name in zip(self.values, self.names, strict=True):
                    if label.max() >= named:
                        raise ValueError(
                            f"{name} names class {label.max()}, but there are {named} classes: expected 0 … {named - 1}"
                        )
            return named
        sizes = {name: v.shape[2] for v, name in zip(self.values, self.names, strict=True) if not isinstance(v, tuple)}
        width = check_common(sizes, "columns")
        if self.kind == "gaussian":
            if width % 2:
                raise ValueError(f"gaussian values have {width} columns: expected 2·D, the means and then the log-variances")
            width //= 2
        elif named is not None and named != width:
            raise ValueError(f"{named} class names for {width} columns: expected one name per column")
        return width

    # --- reading ---

    @property
    def stages(self) -> int:
        """K, the number of stages."""
        return len(self.values)

    @property
    def members(self) -> tuple[int, ...]:
        """The number of members of each stage."""
        return tuple(1 if isinstance(v, tuple) else v.shape[0] for v in self.values)

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return (
            f"Outputs({self.n} rows, stages {', '.join(self.names)} with {self.members} members, kind={self.kind!r}, "
            f"combine={self.combine!r}, width={self.width}, labels={'yes' if self.labels is not None else 'no'})"
        )

    def until(self, stop: int | None = None) -> list[Value]:
        """The values of stages 0 … stop−1 (default: all)."""
        if stop is not None and not 1 <= stop <= self.stages:
            raise ValueError(f"stop={stop}: expected 1 … {self.stages} stages, or None for all")
        return self.values[:stop]

    def running(self, rows: slice, stop: int | None = None, tracks: Sequence[str] = ()) -> Running:
        """The running combination of stages 0 … stop−1 (default: all) on a block of rows; not for top1."""
        state = Running(self.kind, self.combine, tracks)
        for value in self.until(stop):
            state.add_(value[:, rows])  # type: ignore[call-overload]
        return state

    def blocks(self) -> Iterator[slice]:
        """Slices that cover the rows, a bounded number at a time."""
        for start in range(0, self.n, BLOCK):
            yield slice(start, min(start + BLOCK, self.n))

    def probs(self, stop: int | None = None) -> Floats:
        """Combined probabilities (N, C) after stages 0 … stop−1 (default: all), float64."""
        self._needs_scores("probs()")
        result = np.empty((self.n, self.width or 0))
        for rows in self.blocks():
            result[rows] = self.running(rows, stop).probs()
        return result

    def gaussian(self, stop: int | None = None) -> tuple[Floats, Floats]:
        """(mean (N, D), variance (N, D)) of the members' mixture after stages 0 … stop−1 (default: all), for ``kind="gaussian"``.

        μ* = mean of μ_m, σ*² = mean of (σ_m² + μ_m²) − μ*² (Lakshminarayanan et al. 2017, arXiv 1612.01474, §2.4), float64.
        """
        means, variances = self.gaussians(stop)
        mean = means.mean(0)
        return mean, np.asarray(variances.mean(0) + np.square(means - mean).mean(0))

    def gaussians(self, stop: int | None = None) -> tuple[Floats, Floats]:
        """The (means (M, N, D), variances (M, N, D)) of the members that count after stages 0 … stop−1 (default: all), float64.

        These are all of them; with ``combine="last"`` those of stage stop−1.
        """
        if self.kind != "gaussian":
            raise ValueError(f"means and variances need kind='gaussian', these Outputs hold {self.kind!r}")
        counted = self.until(stop)[-1:] if self.combine == "last" else self.until(stop)
        joined = np.concatenate([np.asarray(value, np.float64) for value in counted])
        means, log_variances = np.split(joined, 2, axis=-1)
        return means, np.exp(log_variances)

    def predictions(self, stop: int | None = None) -> NDArray[np.int64]:
        """Predicted class (N,) after stages 0 … stop−1 (default: all)."""
        if self.kind == "top1":
            return np.asarray(self.until(stop)[-1][0])
        self._needs_scores("predictions()")
        result = np.empty(self.n, np.int64)
        for rows in self.blocks():
            result[rows] = self.running(rows, stop).probs().argmax(-1)
        return result

    def errors(self, stop: int | None = None) -> NDArray[np.bool_]:
        """Where the combined prediction is wrong (N,)."""
        return np.asarray(self.predictions(stop) != self.truth())

    def truth(self) -> NDArray:
        """The labels; a ValueError where there are none."""
        if self.labels is None:
            raise ValueError("these Outputs have no labels: give labels= when they are made")
        return self.labels

    @property
    def _regression(self) -> bool:
        return self.kind in ("values", "gaussian")

    def _described(self) -> str:
        what = "targets" if self._regression else "unnamed classes"
        return str(list(self.classes)) if self.classes is not None else f"{self.width or 'any number of'} {what}"

    def _needs_scores(self, what: str) -> None:
        if self.kind not in ("logits", "probs"):
            raise ValueError(f"{what} needs scores of every class, these Outputs hold {self.kind!r}")

    # --- other Outputs from these ---

    def _like(self, values: Sequence[Any], **changed: Any) -> Outputs:
        same: dict[str, Any] = {
            "kind": self.kind, "combine": self.combine, "labels": self.labels, "ids": self.ids, "classes": self.classes,
            "costs": self.costs, "ordered": self.ordered, "names": self.names,
        }  # fmt: skip
        return Outputs(values, **(same | changed))

    def rows(self, index: ArrayLike) -> Outputs:
        """Some of the rows, in the order of ``index`` (integers or a mask)."""
        at = check_index(index, self.n)
        take = [tuple(part[at] for part in v) if isinstance(v, tuple) else v[:, at] for v in self.values]
        return self._like(take, labels=None if self.labels is None else self.labels[at], ids=self.ids[at])

    def prefix(self, stages: int) -> Outputs:
        """The first ``stages`` stages."""
        if not 1 <= stages <= self.stages:
            raise ValueError(f"prefix({stages}): expected 1 … {self.stages}")
        costs = None if self.costs is None else self.costs[:stages]
        return self._like(self.values[:stages], costs=costs, names=self.names[:stages])

    def regroup(self, sizes: Sequence[int], names: Sequence[str] | None = None) -> Outputs:
        """Merge neighbouring stages: ``regroup([1, 3])`` of four makes two. Members and costs add up; not for top1."""
        if sum(sizes) != self.stages or min(sizes, default=0) < 1:
            raise ValueError(f"regroup({list(sizes)}): expected positive sizes that sum to {self.stages} stages")
        if self.kind == "top1" or self.combine == "last":
            raise ValueError("stages of which only the last counts can't be merged: keep them apart, or use prefix()")
        ends = np.cumsum(sizes)
        groups = [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        return self._like(
            [np.concatenate([self.values[i] for i in group]) for group in groups],
            costs=None if self.costs is None else [float(sum(self.costs[i] for i in group)) for group in groups],
            names=names or ["+".join(self.names[i] for i in group) for group in groups],
        )

    def grouped_as(self, names: Sequence[str]) -> Outputs:
        """Neighbouring stages merged so that the stages have these names, a merged one's being its parts' joined by ``+``."""
        if tuple(names) == self.names:
            return self
        sizes = [name.count("+") + 1 for name in names]
        if "+".join(names) != "+".join(self.names) or len(names) == 0:
            raise ValueError(
                f"stages {list(names)} are not {list(self.names)}, nor neighbours of these merged: use their own pool"
            )
        return self.regroup(sizes)

    def aligned(self, ids: ArrayLike) -> Outputs:
        """The rows with these ids, in this order; a ValueError names ids that are not here."""
        wanted = as_ids(ids)
        if wanted.dtype.kind != self.ids.dtype.kind:
            raise ValueError(f"ids of type {wanted.dtype} can't be matched with ids of type {self.ids.dtype}: give the same kind")
        order = np.argsort(self.ids, kind="stable")
        at = np.searchsorted(self.ids[order], wanted)
        found = order[np.minimum(at, self.n - 1)]
        missing = wanted[self.ids[found] != wanted]
        if len(missing):
            raise ValueError(f"{len(missing)} ids are not in these Outputs, first {missing[:3].tolist()}: expected the same rows")
        return self.rows(found)

    def check_same_rows(self, other: Outputs, here: str, there: str) -> None:
        """A ValueError unless both have the same classes, and the same labels for the same ids in the same order."""
        if self.classes != other.classes or self.width != other.width or self._regression != other._regression:
            raise ValueError(
                f"{here} and {there} have different classes ({self._described()} and {other._described()}): compare runs on one data set"
            )
        if self.n != other.n or self.ids.dtype.kind != other.ids.dtype.kind or (self.ids != other.ids).any():
            raise ValueError(
                f"{here} ({self.n} rows) and {there} ({other.n} rows) have different row ids: compare runs on one split"
            )
        one_has_none = (self.labels is None) != (other.labels is None)
        if one_has_none or (self.labels is not None and not np.array_equal(self.labels, np.asarray(other.labels))):
            raise ValueError(f"{here} and {there} have different labels for the same ids: compare runs on one data set")

    # --- files ---

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        arrays: dict[str, NDArray] = {}
        for k, value in enumerate(self.values):
            if isinstance(value, tuple):
                arrays[f"values.{k}.labels"], arrays[f"values.{k}.probs"] = value
            else:
                arrays[f"values.{k}"] = value
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.ids.dtype.kind == "U":
            encoded = [str(name).encode() for name in self.ids]
            arrays["ids.utf8"] = np.frombuffer(b"".join(encoded), np.uint8)
            arrays["ids.ends"] = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        else:
            arrays["ids"] = self.ids
        about = {
            "format": FORMAT, "kind": self.kind, "combine": self.combine, "stages": self.stages, "names": self.names,
            "classes": self.classes, "costs": self.costs, "ordered": self.ordered,
        }  # fmt: skip
        save_arrays(path, arrays, about)

    @classmethod
    def load(cls, path: str | Path) -> Outputs:
        """Read what :meth:`save` wrote. FileNotFoundError or ValueError name the file and what was expected."""
        expected = "Outputs written by Outputs.save"
        arrays, about = load_arrays(path, expected)
        found = about.pop("format", None)
        if found != FORMAT:
            raise ValueError(f"{path} has format {found!r}, expected {FORMAT!r}: {expected}")
        try:
            values: list[Any] = [
                (arrays[f"values.{k}.labels"], arrays[f"values.{k}.probs"]) if about["kind"] == "top1" else arrays[f"values.{k}"]
                for k in range(about.pop("stages"))
            ]
            if "ids" in arrays:
                ids = arrays["ids"]
            else:
                ends, text = arrays["ids.ends"].tolist(), arrays["ids.utf8"].tobytes()
                ids = np.array([text[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} lacks a part ({error}): expected {expected}") from error
        try:
            return cls(values, labels=arrays.get("labels"), ids=ids, **about)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_npz(
        cls,
        path: str | Path,
        values: Sequence[str | tuple[str, str]],
        *,
        kind: Kind,
        labels: str | None = None,
        ids: str | None = None,
        **options: Any,
    ) -> Outputs:
        """Outputs from the arrays of someone's ``.npz`` (read without pickle).

        Args:
            path: the archive.
            values: per stage the name of its array, (N, C) or (m, N, C); for ``kind="top1"`` a pair of names (labels,
                probabilities) of (N,) arrays, or of (K, N) arrays that hold K stages at once.
            kind: what the arrays are.
            labels, ids: names of the arrays with the true classes and the row ids, if there are any.
            **options: ``combine, classes, costs, ordered, names``.

        Raises:
            FileNotFoundError, ValueError: a missing or unreadable archive, a name that is not in it (those that are get listed).
        """
        return cls._found_in(path, foreign.read_npz(path, values, kind, labels, ids), kind=kind, **options)

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        values: Sequence[Sequence[str]],
        *,
        kind: Kind,
        labels: str | None = None,
        ids: str | None = None,
        classes: Sequence[str] | None = None,
        delimiter: str = ",",
        **options: Any,
    ) -> Outputs:
        """Outputs from someone's CSV file with a header line; one row per input, one member per stage.

        Args:
            path: the file, UTF-8.
            values: per stage its columns' names, in class order; for ``kind="top1"`` the pair (label column, probability column).
            kind: what the columns are.
            labels: the column of true classes: integers, or class names if ``classes`` is given (so also for top1's label columns).
                For regression the column of the true values (of one target).
            ids: the column of row ids (read as text).
            classes: the class names, in order.
            delimiter: the one character between fields.
            **options: ``combine, costs, ordered, names``.

        Raises:
            FileNotFoundError, ValueError: a missing file or column, a row of another length, a field that is not a number (line
                and column are named).
        """
        found = foreign.read_csv(path, values, kind, labels, ids, classes, delimiter)
        return cls._found_in(path, found, kind=kind, classes=classes, **options)

    @classmethod
    def _found_in(cls, path: str | Path, found: dict[str, Any], **options: Any) -> Outputs:
        """Outputs whose errors name the file."""
        try:
            return cls(**found, **options)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
