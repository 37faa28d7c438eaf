"""Partition by groups: all rows of one person, machine or recording go to one side, the classes as even as that allows.

Groups are placed one by one, the largest first (of equal size, the one with the smaller hash of (seed, group)), each into the part that
lacks most of what it brings. With n_gc rows of class c in the group, N_c in all, n_pc already in part p with share f_p, it is the part with
the greatest

    Σ_c (f_p N_c − n_pc) n_gc / N_c,

which lowers Σ_p Σ_c (f_p N_c − n_pc)² / N_c most. Equal parts: the earlier one. When as many groups are left as parts are empty, each of
these gets one. Sums are exact (math.fsum), so the same everywhere.

Shapes: labels, groups (N,) integers; every part (n_k,) int64 row indices, ascending.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from quorate.data.counter import bits
from quorate.data.partition import exact


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
    names, of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < len(shares):
        raise ValueError(
            f"{len(shares)} parts ({', '.join(fractions)}) need as many groups at least, got {len(names)}: give more groups, fewer parts"
        )
    kinds, of_class = np.unique(labels, return_inverse=True)
    rows = np.zeros((len(names), len(kinds)), np.int64)
    np.add.at(rows, (of_row, of_class), 1)
    totals = rows.sum(0)
    lacking = [[float(share * int(n)) for n in totals] for share in [*shares, *([rest] if rest else [])]]
    order = np.lexsort((bits(seed, (), names), -sizes))
    part_of = np.zeros(len(names), np.int64)
    empty = set(range(len(shares)))
    for place, group in enumerate(order.tolist()):
        among = sorted(empty) if len(order) - place <= len(empty) else range(len(lacking))
        present = np.flatnonzero(rows[group]).tolist()
        brings = {c: int(rows[group, c]) / int(totals[c]) for c in present}
        best = max(among, key=lambda part: math.fsum(lacking[part][c] * share for c, share in brings.items()))
        for c in present:
            lacking[best][c] -= int(rows[group, c])
        part_of[group] = best
        empty.discard(best)
    where = part_of[of_row]
    return {name: np.flatnonzero(where == part) for part, name in enumerate(fractions)}
