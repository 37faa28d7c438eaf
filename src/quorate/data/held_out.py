"""Classes held out of training, whose inputs then serve as near-OOD data.

The labels that stay are numbered anew from 0 in their old order; with the sorted kept classes k₀ < k₁ < …, k_j ↦ j.

Shapes: labels (N,) integers in [0, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def kept_classes(held_out: Sequence[int], count: int) -> list[int]:
    """The classes of 0..count − 1 that are not held out, ascending.

    Raises ValueError for a class that does not exist or repeats, and where fewer than two would be left.
    """
    out = list(held_out)
    if len(set(out)) < len(out) or any(isinstance(c, bool) or c not in range(count) for c in out):
        raise ValueError(f"held_out must be different classes in 0..{count - 1}, got {out}")
    kept = [c for c in range(count) if c not in out]
    if len(kept) < 2:
        raise ValueError(f"at least two of {count} classes must be kept, got held_out={out}, which leaves {len(kept)}")
    return kept


def hold_out(labels: np.ndarray, kept: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows of kept classes, their new labels 0..len(kept) − 1, the other rows), rows ascending, all int64."""
    inside = np.isin(labels, kept)
    rows = np.flatnonzero(inside)
    return rows, np.searchsorted(np.asarray(kept), labels[rows]), np.flatnonzero(~inside)
