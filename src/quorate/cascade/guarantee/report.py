"""Per exit stage: how many rows leave there, how many of them are accepted, and their risk with an upper bound.

The K bounds are each at δ / K, so that together they hold at level 1 − δ for thresholds fixed beforehand (exact binomial for 0/1 errors,
by betting for other costs; :mod:`quorate.cascade.guarantee.binomial` and ``bounded``).

Shapes: stage (N,) index of the stage of exit, accepted (N,) booleans, errors (N,) booleans or costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from quorate.cascade.guarantee import binomial, bounded
from quorate.cascade.guarantee.binomial import check_delta
from quorate.cascade.guarantee.certificate import Part
from quorate.cascade.guarantee.selective import Rows


def exits_report(
    names: Sequence[str],
    stage: ArrayLike,
    accepted: ArrayLike,
    errors: ArrayLike | None,
    delta: float = 0.05,
    costs_bound: float | None = None,
) -> tuple[Part, ...]:
    """One :class:`Part` per stage, in order; without ``errors`` only the counts.

    Raises:
        ValueError: arrays of other lengths, a stage that is none of the names, errors as in ``certify``, or a δ outside (0, 1).
    """
    check_delta(delta)
    at, taken = np.asarray(stage), np.asarray(accepted)
    if at.ndim != 1 or at.dtype.kind not in "iu" or taken.shape != at.shape or taken.dtype != bool:
        raise ValueError(
            f"stage of shape {at.shape}, {at.dtype}, accepted of shape {taken.shape}, {taken.dtype}: expected (N,) integers and booleans"
        )
    if len(at) and not (at.min() >= 0 and at.max() < len(names)):
        raise ValueError(f"stages go from {at.min()} to {at.max()}: expected 0 … {len(names) - 1}, one per name")
    seen = None if errors is None else Rows.of(at, errors, costs_bound)
    parts = []
    for k, name in enumerate(names):
        mask = (at == k) & taken
        count, rows = int(mask.sum()), int((at == k).sum())
        if seen is None:
            parts.append(Part(name, rows, count))
            continue
        cost = seen.cost[mask]
        spent = float(np.sort(cost).sum())
        if seen.binary:
            bound = float(binomial.clopper_pearson(int(spent), count, delta / len(names)))
        else:
            bound = bounded.upper_bound(cost, delta / len(names), seen.most)
        parts.append(Part(name, rows, count, spent, spent / count if count else None, bound))
    return tuple(parts)
