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

from quorate.combination import CLASS_KINDS, COMBINES, KINDS, Combine, Floats, Kind, Running
from quorate.files import load_arrays, save_arrays

FORMAT = "quorate-outputs/1"
BLOCK = 65_536  # rows worked on at a time where float64 copies are needed, so that memory does not grow with N
Value = NDArray | tuple[NDArray, NDArray]


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
        self.names = _names(names, len(values))
        self.values: list[Value] = [_stage(v, kind, name) for v, name in zip(values, self.names, strict=True)]
        self.n = _common({name: rows_of(v) for v, name in zip(self.values, self.names, strict=True)}, "rows")
        if self.n == 0:
            raise ValueError("the stages have 0 rows: expected at least one")
        self.classes = None if classes is None else tuple(str(c) for c in classes)
        self.width = self._width()
        self.labels = None if labels is None else _labels(labels, self.n, kind, self.width)
        self.ids = _ids(ids, self.n)
        self.costs = None if costs is None else _costs(costs, len(self.values))

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
        width = _common(sizes, "columns")
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

    def running(self, rows: slice, stop: int | None = None, tracks: Sequence[str] = ()) -> Running:
        """The running combination of stages 0 … stop−1 (default: all) on a block of rows."""
        state = Running(self.kind, self.combine, tracks)
        for value in self.values[:stop]:
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

    def predictions(self, stop: int | None = None) -> NDArray[np.int64]:
        """Predicted class (N,) after stages 0 … stop−1 (default: all)."""
        if self.kind == "top1":
            return np.asarray(self.values[(stop or self.stages) - 1][0])
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
        at = np.asarray(index)
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
            raise ValueError(f"stages {list(names)} are not {list(self.names)}, nor neighbours of these merged: use their own pool")
        return self.regroup(sizes)

    def aligned(self, ids: ArrayLike) -> Outputs:
        """The rows with these ids, in this order; a ValueError names ids that are not here."""
        wanted = np.asarray(ids)
        order = np.argsort(self.ids, kind="stable")
        try:
            at = np.searchsorted(self.ids[order], wanted)
        except TypeError as error:
            raise ValueError(f"ids of type {wanted.dtype} can't be matched with ids of type {self.ids.dtype}") from error
        found = order[np.minimum(at, self.n - 1)]
        missing = wanted[self.ids[found] != wanted]
        if len(missing):
            raise ValueError(f"{len(missing)} ids are not in these Outputs, first {missing[:3].tolist()}: expected the same rows")
        return self.rows(found)

    def check_same_rows(self, other: Outputs, here: str, there: str) -> None:
        """A ValueError unless both have the same classes, and the same labels for the same ids in the same order."""
        if self.classes != other.classes or self.width != other.width:
            raise ValueError(
                f"{here} and {there} have different classes ({_brief(self)} and {_brief(other)}): compare runs on one data set"
            )
        if self.n != other.n or self.ids.dtype.kind != other.ids.dtype.kind or (self.ids != other.ids).any():
            raise ValueError(
                f"{here} ({self.n} rows) and {there} ({other.n} rows) have different row ids: compare runs on one split"
            )
        if (self.labels is None) != (other.labels is None) or (self.labels is not None and (self.labels != other.labels).any()):
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
            "format": FORMAT, "kind": self.kind, "combine": self.combine, "stages": self.stages, "names": self.names, "classes": self.classes,
            "costs": self.costs, "ordered": self.ordered,
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
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} lacks a part ({error}): expected {expected}") from error
        try:
            return cls(values, labels=arrays.get("labels"), ids=ids, **about)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_npz(cls, path: str | Path, values: Sequence[Any], **options: Any) -> Outputs:
        """Other people's outputs in a NumPy archive: see :func:`quorate.foreign.from_npz`."""
        from quorate.foreign import from_npz

        return from_npz(path, values, **options)

    @classmethod
    def from_csv(cls, path: str | Path, values: Sequence[Sequence[str]], **options: Any) -> Outputs:
        """Other people's outputs in a CSV file: see :func:`quorate.foreign.from_csv`."""
        from quorate.foreign import from_csv

        return from_csv(path, values, **options)


def rows_of(value: Value) -> int:
    """Number of rows of one stage's values."""
    return len(value[0]) if isinstance(value, tuple) else value.shape[1]


def bad_rows(values: NDArray) -> NDArray[np.int64]:
    """Indices of the rows of (m, N, C) values that hold a NaN or an infinity."""
    found = [
        start + np.flatnonzero(~np.isfinite(values[:, start : start + BLOCK]).all(axis=(0, 2)))
        for start in range(0, values.shape[1], BLOCK)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _stage(value: Any, kind: Kind, name: str) -> Value:
    if kind == "top1":
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ValueError(f"{name} of kind 'top1': expected a pair (labels (N,), probabilities (N,))")
        label, prob = np.asarray(value[0]), np.asarray(value[1])
        if label.ndim != 1 or prob.shape != label.shape or label.dtype.kind not in "iu" or prob.dtype.kind != "f":
            raise ValueError(
                f"{name} of kind 'top1' has {label.dtype} labels {label.shape} and {prob.dtype} probabilities {prob.shape}: "
                "expected integers (N,) and floats (N,)"
            )
        wrong = np.flatnonzero(~((prob >= 0) & (prob <= 1)) | (label < 0))
        if len(wrong):
            raise ValueError(
                f"{name} has labels below 0 or probabilities outside [0, 1] in rows {_some(wrong)}: mend or drop these rows"
            )
        return label.astype(np.int64), prob
    array = np.asarray(value)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[0] == 0 or array.shape[2] == 0:
        raise ValueError(
            f"{name} has shape {np.shape(value)}: expected (members, rows, {'classes' if kind in CLASS_KINDS else 'targets'})"
        )
    if array.dtype.kind != "f":
        raise ValueError(f"{name} has dtype {array.dtype}: expected floats")
    bad = bad_rows(array)
    if len(bad):
        raise ValueError(f"{name} has NaN or infinite values in rows {_some(bad)}: mend or drop these rows")
    if kind == "probs":
        for start in range(0, array.shape[1], BLOCK):
            block = array[:, start : start + BLOCK]
            off = (np.abs(block.sum(-1, dtype=np.float64) - 1) > 1e-3) | (block < 0).any(-1)
            if off.any():
                rows = start + np.flatnonzero(off.any(0))
                raise ValueError(
                    f"{name} is not probabilities in rows {_some(rows)} (negative, or sum not 1): give kind='logits' for logits"
                )
    return array


def _common(sizes: dict[str, int], what: str) -> int:
    if len(set(sizes.values())) != 1:
        raise ValueError(f"stages differ in {what}: " + ", ".join(f"{name} has {size}" for name, size in sizes.items()))
    return next(iter(sizes.values()))


def _names(names: Sequence[str] | None, stages: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"stage{k}" for k in range(stages))
    if len(names) != stages or len(set(names)) != stages:
        raise ValueError(f"names {list(names)}: expected {stages} different names, one per stage")
    return tuple(str(name) for name in names)


def _labels(labels: ArrayLike, n: int, kind: Kind, width: int | None) -> NDArray:
    array = np.asarray(labels)
    if kind in CLASS_KINDS:
        if array.shape != (n,) or array.dtype.kind not in "iu":
            raise ValueError(f"labels are {array.dtype} of shape {array.shape}: expected integers of shape ({n},)")
        array = array.astype(np.int64)
        wrong = np.flatnonzero((array < 0) | (array >= (width or np.iinfo(np.int64).max)))
        if len(wrong):
            raise ValueError(
                f"labels out of range in rows {_some(wrong)} (first {array[wrong[0]]}): expected 0 … {(width or 0) - 1}"
            )
        return array
    if array.ndim == 1:
        array = array[:, None]
    if array.shape != (n, width) or array.dtype.kind not in "fiu":
        raise ValueError(f"labels are {array.dtype} of shape {np.shape(labels)}: expected numbers of shape ({n}, {width})")
    array = array.astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(array).all(-1))
    if len(wrong):
        raise ValueError(f"labels are NaN or infinite in rows {_some(wrong)}: mend or drop these rows")
    return array


def _ids(ids: ArrayLike | None, n: int) -> NDArray:
    if ids is None:
        return np.arange(n, dtype=np.int64)
    array = np.asarray(ids)
    if array.shape != (n,) or array.dtype.kind not in "iuU":
        raise ValueError(f"ids are {array.dtype} of shape {array.shape}: expected integers or strings of shape ({n},)")
    array = array if array.dtype.kind == "U" else array.astype(np.int64)
    ordered = np.sort(array)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(f"ids must differ, {len(twice)} come again, first {twice[:3].tolist()}")
    return array


def _costs(costs: Sequence[float], stages: int) -> tuple[float, ...]:
    array = np.asarray(costs, np.float64)
    if array.shape != (stages,) or not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(f"costs {np.asarray(costs).tolist()}: expected {stages} finite numbers ≥ 0, one per stage")
    return tuple(array.tolist())


def _brief(outputs: Outputs) -> str:
    return str(list(outputs.classes)) if outputs.classes is not None else f"{outputs.width} unnamed"


def _some(rows: NDArray) -> str:
    text = ", ".join(str(r) for r in rows[:5].tolist())
    return text + (f", … ({len(rows)} in all)" if len(rows) > 5 else "")
