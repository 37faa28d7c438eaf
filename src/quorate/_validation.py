"""Checks of what comes from outside, above all members' outputs: one line each, the rows named.

Shapes: a stage's values (m, N, C), or for ``"top1"`` a pair of (N,) labels and (N,) probabilities; labels and ids (N,).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.combination import BLOCK, CLASS_KINDS, SUM_TOLERANCE, Kind

Value = NDArray | tuple[NDArray, NDArray]


def check_values(value: Any, kind: Kind, name: str, rows: NDArray | None = None) -> Value:
    """One stage's values as (m, N, C) finite floats, or the pair of ``"top1"``; labels become int64, the rest keeps its dtype.

    With ``rows``, the caller's numbers of the rows asked for, there must be as many, member-first, and errors call them so.
    """
    if kind == "top1":
        return _check_top1(value, name, rows)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is not one rectangular array: give every member and row the same length") from error
    if array.ndim == 2 and rows is None:
        array = array[None]
    if array.ndim != 3 or array.shape[0] == 0 or array.shape[2] == 0 or (rows is not None and array.shape[1] != len(rows)):
        expected = f"(members, {'rows' if rows is None else len(rows)}, {'classes' if kind in CLASS_KINDS else 'targets'})"
        raise ValueError(f"{name} has shape {array.shape}: expected {expected}")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(f"{name} has dtype {array.dtype}: expected float16, float32 or float64, convert it")
    bad = _bad_rows(array)
    if len(bad):
        raise ValueError(f"{name} has NaN or infinite values in rows {_some(bad, rows)}: mend or drop these rows")
    if kind == "probs":
        for start in range(0, array.shape[1], BLOCK):
            block = array[:, start : start + BLOCK]
            off = (np.abs(block.sum(-1, dtype=np.float64) - 1) > SUM_TOLERANCE) | (block < 0).any(-1)
            if off.any():
                bad = start + np.flatnonzero(off.any(0))
                raise ValueError(
                    f"{name} is not probabilities in rows {_some(bad, rows)} (negative, or sum not 1): give kind='logits' for logits"
                )
    return array


def _check_top1(value: Any, name: str, rows: NDArray | None) -> Value:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} of kind 'top1' is {type(value).__name__}: expected a pair (labels (N,), probabilities (N,))")
    label, prob = np.asarray(value[0]), np.asarray(value[1])
    right = label.ndim == 1 and prob.shape == label.shape and (rows is None or len(label) == len(rows))
    if not right or label.dtype.kind not in "iu" or prob.dtype.kind != "f":
        count = "N" if rows is None else len(rows)
        raise ValueError(
            f"{name} of kind 'top1' has {label.dtype} labels {label.shape} and {prob.dtype} probabilities {prob.shape}: "
            f"expected integers ({count},) and floats ({count},)"
        )
    bad = np.flatnonzero(~((prob >= 0) & (prob <= 1)) | (label < 0))
    if len(bad):
        raise ValueError(
            f"{name} has labels below 0 or probabilities outside [0, 1] in rows {_some(bad, rows)}: mend or drop these rows"
        )
    return label.astype(np.int64), prob


def _bad_rows(values: NDArray) -> NDArray[np.int64]:
    """Indices of the rows of (m, N, C) values that hold a NaN or an infinity."""
    if values.shape[1] <= BLOCK and np.isfinite(values).all():
        return np.zeros(0, np.int64)
    found = []
    for start in range(0, values.shape[1], BLOCK):
        finite = np.isfinite(values[:, start : start + BLOCK])
        if not finite.all():
            found.append(start + np.flatnonzero(~finite.all(axis=(0, 2))))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def rows_of(value: Value) -> int:
    """Number of rows of one stage's values."""
    return len(value[0]) if isinstance(value, tuple) else value.shape[1]


def check_common(sizes: dict[str, int], what: str) -> int:
    """The one size that all stages have."""
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"stages differ in {what}: {', '.join(f'{name} has {size}' for name, size in sizes.items())}; give all the same {what}"
        )
    return next(iter(sizes.values()))


def check_names(names: Sequence[str] | None, stages: int) -> tuple[str, ...]:
    """The stages' names, each once; ``stage0`` … by default."""
    if names is None:
        return tuple(f"stage{k}" for k in range(stages))
    given = tuple(str(name) for name in names)
    if isinstance(names, str) or len(given) != stages or len(set(given)) != stages:
        raise ValueError(f"names {_brief(names)}: expected a list of {stages} different names, one per stage")
    return given


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The class names in order, each once."""
    given = tuple(str(name) for name in classes)
    if isinstance(classes, str) or not given or len(set(given)) != len(given):
        raise ValueError(f"classes {_brief(classes)}: expected a list of different class names")
    return given


def check_labels(labels: ArrayLike, n: int, kind: Kind, width: int | None) -> NDArray:
    """(N,) classes as int64 in 0 … width−1, or (N, D) finite targets as float64."""
    array = np.asarray(labels)
    if kind in CLASS_KINDS:
        if array.shape != (n,) or array.dtype.kind not in "iu":
            raise ValueError(f"labels are {array.dtype} of shape {array.shape}: expected integers of shape ({n},)")
        array = array.astype(np.int64)
        wrong = np.flatnonzero((array < 0) | (array >= (width or np.iinfo(np.int64).max)))
        if len(wrong):
            expected = "at least 0" if width is None else f"0 … {width - 1}"
            raise ValueError(
                f"labels out of range in rows {_some(wrong)} (first {array[wrong[0]]}): expected {expected}, drop unlabelled rows"
            )
        return array
    shape = array.shape
    if array.ndim == 1:
        array = array[:, None]
    if array.shape != (n, width) or array.dtype.kind not in "fiu":
        raise ValueError(f"labels are {array.dtype} of shape {shape}: expected numbers of shape ({n}, {width})")
    array = array.astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(array).all(-1))
    if len(wrong):
        raise ValueError(f"labels are NaN or infinite in rows {_some(wrong)}: mend or drop these rows")
    return array


def check_ids(ids: ArrayLike, n: int) -> NDArray:
    """(N,) row ids as int64 or strings, each once."""
    array = as_ids(ids)
    if array.shape != (n,):
        raise ValueError(f"ids have shape {array.shape}: expected one per row, shape ({n},)")
    ordered = np.sort(array)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(f"ids must differ, {len(twice)} come again, first {twice[:3].tolist()}: give every row its own")
    return array


def as_ids(ids: ArrayLike) -> NDArray:
    """Row ids as int64 or strings."""
    array = np.asarray(ids)
    if array.dtype.kind not in "iuU":
        raise ValueError(f"ids are {array.dtype}: expected integers or strings, convert them")
    if array.dtype.kind == "U":
        return array
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"ids reach {array.max()}: expected integers below 2**63, give them as strings")
    return array.astype(np.int64)


def check_costs(costs: Sequence[float], stages: int) -> tuple[float, ...]:
    """One finite cost ≥ 0 per stage."""
    array = np.asarray(costs, np.float64)
    if array.shape != (stages,) or not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(f"costs {np.asarray(costs).tolist()}: expected {stages} finite numbers ≥ 0, one per stage")
    return tuple(array.tolist())


def check_index(index: ArrayLike, n: int) -> NDArray:
    """Which rows are meant: integers in 0 … n−1, or a mask (n,)."""
    array = np.asarray(index)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    mask = array.dtype == bool
    if array.ndim != 1 or not (mask or array.dtype.kind in "iu") or (mask and len(array) != n):
        raise ValueError(
            f"rows are given as {array.dtype} of shape {array.shape}: expected integers of one axis, or a mask ({n},)"
        )
    if not mask and array.size and (array.min() < 0 or array.max() >= n):
        raise ValueError(f"rows {array.min()} … {array.max()} are asked for: expected rows 0 … {n - 1}")
    return array


def _brief(names: Sequence[str]) -> str:
    text = repr(names if isinstance(names, str) else list(names))
    return text if len(text) <= 100 else f"{text[:97]}…"


def _some(at: NDArray, rows: NDArray | None = None) -> str:
    named = at[:5] if rows is None else rows[at[:5]]
    text = ", ".join(str(r) for r in named.tolist())
    return text + (f", … ({len(at)} in all)" if len(at) > 5 else "")


def check_known(what: str, given: Iterable[str], known: list[str]) -> None:
    """A ValueError for the first name that is not known; it gives the nearest, and all."""
    for name in given:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}{nearest(name, known)} (known: {', '.join(known)})")


def nearest(word: str, known: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the known word that is nearest, or nothing."""
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
