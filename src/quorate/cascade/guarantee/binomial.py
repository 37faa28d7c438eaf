"""Exact binomial bounds and p-values: what k errors in n independent rows say about the true rate.

Source: Clopper & Pearson 1934 (Biometrika 26). With I the regularised incomplete beta function:

    P(Bin(n, r) ≤ k) = 1 − I_r(k + 1, n − k)             the p-value against "the rate is r or more"
    upper(k, n, δ): P(Bin(n, u) ≤ k) = δ, 1 for k = n      lower(k, n, δ): P(Bin(n, l) ≥ k) = δ, 0 for k = 0

Each bound holds with probability at least 1 − δ over the draw, for any n; both at once with 1 − 2δ. Nothing is learnt from no rows: the
p-value is 1, the bounds are 1 and 0.

Shapes: k and n are whole numbers, or arrays of them of one shape; results have that shape, as float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincc, betainccinv, betaincinv

from quorate.combination import Floats

MOST_ROWS = 1 << 50  # more than anybody has: beyond it the estimate of rows says "none would do"


def clopper_pearson(errors: ArrayLike, n: ArrayLike, delta: float = 0.05) -> Floats:
    """Upper confidence bound of the rate, at level 1 − δ.

    Raises:
        ValueError: counts that are not whole numbers with 0 ≤ errors ≤ n, or a δ outside (0, 1).
    """
    k, rows = _counts(errors, n)
    check_delta(delta)
    some = k < rows
    return np.where(some, betainccinv(k + 1.0, np.where(some, rows - k, 1), delta), 1.0)


def lower(errors: ArrayLike, n: ArrayLike, delta: float = 0.05) -> Floats:
    """Lower confidence bound of the rate, at level 1 − δ. Raises as :func:`clopper_pearson`."""
    k, rows = _counts(errors, n)
    check_delta(delta)
    some = k > 0
    return np.where(some, betaincinv(np.where(some, k, 1), rows - k + 1.0, delta), 0.0)


def p_value(errors: ArrayLike, n: ArrayLike, risk: float) -> Floats:
    """P(Bin(n, risk) ≤ errors): how likely so few errors are where the true rate is ``risk`` or more.

    1 without rows; 0 for a risk of 1 or more, which no rate exceeds.

    Raises:
        ValueError: counts as in :func:`clopper_pearson`; a risk that is negative or not a number.
    """
    k, rows = _counts(errors, n)
    if not risk >= 0:
        raise ValueError(f"risk={risk}: expected a share of at least 0, such as 0.05")
    if risk >= 1:
        return np.where(rows > 0, 0.0, 1.0)
    some = k < rows
    return np.where(some, betaincc(k + 1.0, np.where(some, rows - k, 1), risk), 1.0)


def samples_needed(risk: float, delta: float = 0.05, observed: float = 0.0) -> int | None:
    """How many rows show a rate below ``risk`` at level 1 − δ when the share ``observed`` of them is wrong; ``None``: no number does.

    For ``observed=0`` the exact least number, ⌈log δ / log(1 − risk)⌉: 59 at 5 %, 299 at 1 %, for δ = .05. For others an estimate that
    takes observed · n for the errors, whole or not.

    Raises:
        ValueError: a δ outside (0, 1); a risk or an observed share that is negative or not a number.
    """
    check_delta(delta)
    if not (risk >= 0 and observed >= 0):
        raise ValueError(f"risk={risk}, observed={observed}: expected shares of at least 0, such as 0.05")
    if risk >= 1:
        return 1
    if observed >= risk:
        return None

    def enough(n: int) -> bool:
        return bool(betaincc(observed * n + 1, n * (1 - observed), risk) <= delta)

    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_ROWS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def more_rows(rows: int, accepted: int, share: float, risk: float, delta: float) -> int | None:
    """How many more rows than ``rows`` would show a rate below ``risk`` among the accepted, if they are like these; at least 1.

    ``share`` of the ``accepted`` were wrong; of no accepted rows, the next one is taken to be accepted, and right.
    """
    needed = samples_needed(risk, delta, share if accepted else 0.0)
    if needed is None:
        return None
    whole = -(-needed * rows // accepted) if accepted else needed * (rows + 1)
    return max(1, whole - rows)


def check_delta(delta: float) -> None:
    """A ValueError unless 0 < δ < 1."""
    if not (isinstance(delta, int | float) and 0 < delta < 1 and math.isfinite(delta)):
        raise ValueError(f"delta={delta}: expected the allowed probability of failure, > 0 and < 1, such as 0.05")


def _counts(errors: ArrayLike, n: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    k, rows = np.asarray(errors), np.asarray(n)
    if k.dtype.kind not in "iu" or rows.dtype.kind not in "iu" or not ((k >= 0) & (k <= rows)).all():
        raise ValueError(f"errors of {k.dtype}, n of {rows.dtype}: expected whole numbers with 0 ≤ errors ≤ n")
    return k.astype(np.int64), rows.astype(np.int64)
