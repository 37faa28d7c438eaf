"""Partition by groups: all rows of one person, machine or recording go to one side, the classes as even as that allows.

Groups are placed one by one, each into the part that lacks most of what it brings. With n_gc rows of class c in the group, N_c in all, n_pc
already in part p with share f_p, it is the part with the greatest

    Σ_c (f_p N_c − n_pc) n_gc / N_c,

which lowers the imbalance Σ_p Σ_c (f_p N_c − n_pc)² / N_c most; of equal parts the earlier one. When as many groups are left as parts are
empty, each of these gets one. The order is random, so that large and small groups are on every side alike (the largest first would all be
trained on): up to 20 orders, by the hash of (seed, attempt, group), are tried, and the one that ends with the least imbalance is kept. Sums
are exact (math.fsum), so the same everywhere.

Shapes: labels, groups (N,) integers; every part (n_k,) int64 row indices, ascending.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from quorate.data.counter import bits
from quorate.data.partition import exact

ATTEMPTS = 20
MOST = 200_000  # placements in all attempts together


def _place(rows: np.ndarray, wanted: Sequence[Sequence[float]], named: int, order: np.ndarray) -> tuple[float, np.ndarray]:
    """(imbalance, part of each group) of groups with rows (G, C) placed in this order; the first ``named`` parts may not stay empty."""
    totals = rows.sum(0).tolist()
    lacking = [list(part) for part in wanted]
    part_of = np.zeros(len(rows), np.int64)
    empty = set(range(named))
    for place, group in enumerate(order.tolist()):
        among = sorted(empty) if len(order) - place <= len(empty) else range(len(lacking))
        present = np.flatnonzero(rows[group]).tolist()
        brings = {c: int(rows[group, c]) / totals[c] for c in present}
        scores = [math.fsum(lacking[part][c] * share for c, share in brings.items()) for part in among]
        best = among[scores.index(max(scores))]
        for c in present:
            lacking[best][c] -= int(rows[group, c])
        part_of[group] = best
        empty.discard(best)
    return math.fsum(lack * lack / totals[c] for part in lacking for c, lack in enumerate(part)), part_of


def group_partition(
    labels: np.ndarray, groups: np.ndarray, fractions: Mapping[str, float], seed: int = 0
) -> dict[str, np.ndarray]:
    """Disjoint parts of the rows that share no group; together all rows if the fractions sum to 1.

    labels: (N,) integers (zeros where there are no classes). groups: (N,) integers. fractions: {name: share}, sum ≤ 1.
    Raises ValueError for arrays that don't fit, fractions as in :func:`quorate.data.partition.exact`, fewer groups than parts.
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    for name, values in (("labels", labels), ("groups", groups)):
        if values.shape != (len(labels),) or values.dtype.kind not in "iu" or not values.size:
            raise ValueError(f"{name} must be (N,) integers, one per row, got shape {values.shape} of {values.dtype}")
    shares = exact(list(fractions.values()))
    rest = 1 - sum(shares, Fraction(0))
    names, of_row = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        raise ValueError(
            f"{len(shares)} parts ({', '.join(fractions)}) need as many groups at least, got {len(names)}: give more groups, fewer parts"
        )
    kinds, of_class = np.unique(labels, return_inverse=True)
    rows = np.zeros((len(names), len(kinds)), np.int64)
    np.add.at(rows, (of_row, of_class), 1)
    lacking = [[float(share * int(n)) for n in rows.sum(0)] for share in [*shares, *([rest] if rest else [])]]
    attempts = max(1, min(ATTEMPTS, MOST // len(names)))
    tried = [_place(rows, lacking, len(shares), np.argsort(bits(seed, (a,), names), kind="stable")) for a in range(attempts)]
    part_of = min(tried, key=lambda found: found[0])[1]
    where = part_of[of_row]
    return {name: np.flatnonzero(where == part) for part, name in enumerate(fractions)}
