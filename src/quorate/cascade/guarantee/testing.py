"""Which of several hypotheses a set of p-values rejects, with probability at most δ of rejecting any true one.

Source: Angelopoulos et al. 2021, "Learn then Test" (arXiv 2110.01052), §2: each hypothesis says "this setting's risk is too high", every
rejected one is a setting to be trusted. With G hypotheses:

    fixed sequence   in an order fixed beforehand, each at δ, up to the first that is not rejected (Maurer et al. 1995)
    Bonferroni       each at δ / G
    Holm             ascending p₍₁₎ ≤ p₍₂₎ ≤ …: each at δ / (G − i + 1), up to the first that is not rejected (Holm 1979)

Shapes: p-values (G,) → rejected (G,) booleans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade.guarantee.binomial import check_delta
from quorate.combination import Floats

Method = Literal["fixed-sequence", "bonferroni", "holm"]


def fixed_sequence(p_values: ArrayLike, delta: float = 0.05) -> NDArray[np.bool_]:
    """Reject in the given order, each at δ, until the first that is not; the order must not come from the tested rows.

    Raises:
        ValueError: p-values that are not (G,) numbers from 0 to 1, at least one; a δ outside (0, 1).
    """
    p = _checked(p_values, delta)
    return np.asarray(np.logical_and.accumulate(p <= delta))


def bonferroni(p_values: ArrayLike, delta: float = 0.05) -> NDArray[np.bool_]:
    """Reject each at δ / G. Raises as :func:`fixed_sequence`."""
    p = _checked(p_values, delta)
    return np.asarray(p <= delta / len(p))


def holm(p_values: ArrayLike, delta: float = 0.05) -> NDArray[np.bool_]:
    """Reject step by step from the least p-value on; all that Bonferroni rejects and at times more. Raises as :func:`fixed_sequence`."""
    p = _checked(p_values, delta)
    order = np.argsort(p, kind="stable")
    rejected = np.zeros(len(p), bool)
    rejected[order] = np.logical_and.accumulate(p[order] <= delta / np.arange(len(p), 0, -1))
    return rejected


TESTS: dict[str, Callable[[ArrayLike, float], NDArray[np.bool_]]] = {
    "fixed-sequence": fixed_sequence,
    "bonferroni": bonferroni,
    "holm": holm,
}


def _checked(p_values: ArrayLike, delta: float) -> Floats:
    check_delta(delta)
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values of shape {p.shape}: expected at least one number from 0 to 1, shape (G,)")
    return p
