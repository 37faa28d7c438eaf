"""A stratified subset of exactly so many rows, the same on every machine and version.

A class of n_c of N rows has the quota n·n_c/N; it gets the whole part, and the rows left over go to the largest remainders
(Hamilton's method, `quorate.data.partition.apportion`). Within a class, those with the smallest hash of (seed, id).

Shapes: labels, ids (N,) integers; the result (n,) row numbers, ascending.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from quorate.data.counter import bits
from quorate.data.partition import apportion


def stratified(labels: NDArray, ids: NDArray, count: int, seed: int = 0) -> NDArray[np.int64]:
    """`count` rows in which every class has its share, to within one row; each row's chance depends on (seed, its id) alone.

    Raises ValueError for a count that is not in 1 … N, labels that are not (N,) integers, or a seed below 0.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.shape != np.shape(ids):
        raise ValueError(
            f"labels must be integers (N,) beside ids (N,), got {labels.shape} of {labels.dtype} and {np.shape(ids)}"
        )
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(labels):
        raise ValueError(f"a subset must have 1 … {len(labels)} rows, got {count!r}: there are {len(labels)}")
    order = np.argsort(bits(seed, (), ids), kind="stable")
    classes, sizes = np.unique(labels, return_counts=True)
    shares = [Fraction(int(size), len(labels)) for size in sizes]
    counts = apportion(count, shares, [Fraction(0)] * len(shares))
    chosen = [order[labels[order] == label][:wanted] for label, wanted in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate(chosen))
