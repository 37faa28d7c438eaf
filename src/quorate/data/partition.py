"""Stratified partition of rows, the same on every machine and version.

Within a class of n rows, part k has the quota f_k·n and gets ⌊f_k·n⌋ rows, then the rows left over go to the largest
remainders (Hamilton's method), all in exact rational arithmetic. Equal remainders: first a part that has no row yet,
then the part furthest below its quota over the classes so far, then the earlier one. So a part's total
differs from f_k·N by less than 1 per class. Which rows: those with the smallest hash of (seed, row), see
`quorate.data.counter`; NumPy's own shuffles may change between versions.

Shapes: labels (N,) integers; every part (n_k,) int64 row indices, ascending.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import overload

import numpy as np

from quorate.data.counter import bits


def exact(fractions: Sequence[float]) -> list[Fraction]:
    """The fractions as decimals say them (0.1 is 1/10), summing to exactly 1 where they do within 1e-9.

    Raises ValueError for none, a fraction that is not a finite positive number, or a sum above 1.
    """
    if not fractions or not all(math.isfinite(f) and f > 0 for f in fractions):
        raise ValueError(f"fractions must be finite and positive, at least one, got {list(fractions)}")
    shares = [Fraction(str(float(f))) for f in fractions]
    total = sum(shares, Fraction(0))
    if abs(total - 1) <= Fraction(1, 10**9):
        return [share / total for share in shares]
    if total > 1:
        raise ValueError(f"fractions must sum to at most 1, got {list(fractions)}, which sum to {float(total):.6g}")
    return shares


def apportion(n: int, shares: Sequence[Fraction], owed: Sequence[Fraction]) -> list[int]:
    """Rows of each part out of n, by largest remainder; `owed` (rows short so far) settles equal remainders.

    A share that lacks to 1 is a last, unnamed part, which may stay empty. Returns one count per share.
    """
    every = [*shares, 1 - sum(shares, Fraction(0))]
    counts = [math.floor(share * n) for share in every]
    credit = [*owed, -sum(owed, Fraction(0))]

    def rank(k: int) -> tuple[Fraction, bool, Fraction]:
        return counts[k] - every[k] * n, k == len(shares) or counts[k] > 0, -credit[k]

    for k in sorted(range(len(every)), key=rank)[: n - sum(counts)]:
        counts[k] += 1
    return counts[:-1]


def least_rows(n: int, shares: Sequence[Fraction]) -> int:
    """The smallest number of rows above n of which every part gets one (beyond 1,000 tries: one that suffices).

    A remainder that wins a row is at least 1 / (parts + 1), which gives the first number to try.
    """
    enough = math.ceil(1 / min(shares))
    first = max(n + 1, math.ceil(1 / (min(shares) * (len(shares) + 1))))
    none = [Fraction(0)] * len(shares)
    return next((m for m in range(first, min(enough, first + 1000)) if 0 not in apportion(m, shares, none)), enough)


@overload
def partition(labels: np.ndarray, fractions: Mapping[str, float], seed: int = ...) -> dict[str, np.ndarray]: ...
@overload
def partition(labels: np.ndarray, fractions: Sequence[float], seed: int = ...) -> list[np.ndarray]: ...
def partition(
    labels: np.ndarray, fractions: Mapping[str, float] | Sequence[float], seed: int = 0
) -> dict[str, np.ndarray] | list[np.ndarray]:
    """Disjoint stratified parts of the rows; together all rows if the fractions sum to 1, else that share of them.

    labels: (N,) integers. fractions: positive, sum ≤ 1, as {name: fraction} or in order. seed: int ≥ 0.
    Returns {name: rows} or [rows, …], each (n_k,) int64 ascending. Raises ValueError for other labels, fractions (see
    `exact`) or seeds, and for a class with too few rows for every part to get one.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(f"labels must be a 1-D integer array with at least one row, got shape {labels.shape} of {labels.dtype}")
    shares = exact(list(fractions.values() if isinstance(fractions, Mapping) else fractions))
    order = np.argsort(bits(seed, (), np.arange(len(labels))), kind="stable")
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    owed = [Fraction(0)] * len(shares)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        counts = apportion(len(rows), shares, owed)
        if 0 in counts:
            raise ValueError(
                f"every part needs a row of every class, but class {label} has {len(rows)} row(s) for fractions "
                f"{[round(float(s), 6) for s in shares]}: it needs at least {least_rows(len(rows), shares)}"
            )
        owed = [o + share * len(rows) - c for o, share, c in zip(owed, shares, counts, strict=True)]
        for part, chosen in zip(parts, np.split(rows, np.cumsum(counts)), strict=False):
            part.append(chosen)
    done = [np.sort(np.concatenate(part)) for part in parts]
    return dict(zip(fractions, done, strict=True)) if isinstance(fractions, Mapping) else done
