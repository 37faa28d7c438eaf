"""Deviation from the full ensemble, bounded in expectation by conformal risk control.

Source: Angelopoulos et al. 2022 (arXiv 2208.02814), §2, eq. 4 and Theorem 1. D_λ in [0, B] is what row i loses at setting λ, not growing
from narrow to wide. The least λ with

    (Σ_i D_λ,i + B) / (n + 1) ≤ α

has E D_λ ≤ α for the next exchangeable row, over the draw of both. With three or more stages D is not monotone (an early stage may be
right where a later one is wrong), so it is replaced per row by D̃_λ = max of D over λ and all wider settings (:func:`wider_max`), which is.

Shapes: deviations (n, G), settings from narrow to wide.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from quorate.cascade.guarantee.certificate import Certificate
from quorate.combination import Floats

ASSUMPTION = (
    "the calibration rows are exchangeable with what will come, and chose neither the settings nor their order; the claim bounds the mean "
    "over calibration draws, not what one draw of them gives"
)
ROUNDING = 1e-12  # relative: .29 · 100 must be 29


def wider_max(deviations: ArrayLike) -> Floats:
    """D̃ (n, G): per row the largest deviation at this setting or any wider one. D itself where that never grows. Raises as below."""
    return np.asarray(np.maximum.accumulate(_checked(deviations, math.inf)[:, ::-1], axis=1)[:, ::-1])


def crc_threshold(deviations: ArrayLike, alpha: float, bound: float = 1.0) -> int | None:
    """The index of the narrowest setting that keeps the mean deviation at most α; None if there is none.

    Args:
        deviations: (n, G) booleans or numbers in [0, bound] of calibration rows, none growing along a row.
        alpha: the allowed mean, in the deviations' unit.
        bound: B, the most a row can deviate.

    Raises:
        ValueError: another shape, deviations outside [0, bound] or growing (apply :func:`wider_max`), an α or B that is not allowed.
    """
    array = _monotone(deviations, alpha, bound)
    enough = array.sum(0) + bound <= alpha * (len(array) + 1) * (1 + ROUNDING)
    return int(enough.argmax()) if enough.any() else None


def certify_deviation(deviations: ArrayLike, alpha: float, bound: float = 1.0) -> Certificate:
    """:func:`crc_threshold` as a certificate of kind "deviation", with the index for ``tau``; raises alike.

    Without a feasible setting ``needed`` is for the one of least mean deviation: n so that (n · mean + B) / (n + 1) ≤ α.
    """
    array = _monotone(deviations, alpha, bound)
    at, n = crc_threshold(array, alpha, bound), len(array)
    sums = array.sum(0)
    needed: int | None = 0
    if at is None:
        least = float(sums.min()) / n
        needed = None if least >= alpha else max(1, math.ceil((bound - alpha) / (alpha - least) * (1 - ROUNDING)) - n)
    return Certificate(
        kind="deviation",
        feasible=at is not None,
        target=alpha,
        delta=None,
        method="conformal",
        rows=n,
        tau=at,
        coverage=0.0 if at is None else 1.0,
        accepted=0 if at is None else n,
        errors=0.0 if at is None else float(sums[at]),
        observed=None if at is None else float(sums[at]) / n,
        bound=None if at is None else (float(sums[at]) + bound) / (n + 1),
        tested=array.shape[1],
        needed=needed,
        assumption=ASSUMPTION,
    )


def _monotone(deviations: ArrayLike, alpha: float, bound: float) -> Floats:
    for name, value in (("alpha", alpha), ("bound", bound)):
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r}: expected a finite number > 0, in the unit of the deviations")
    array = _checked(deviations, bound)
    growing = np.flatnonzero((np.diff(array, axis=1) > 0).any(1))
    if len(growing):
        raise ValueError(
            f"deviations grow with wider settings in {len(growing)} rows, first {growing[:3].tolist()}: apply wider_max, or order them "
            "from narrow to wide"
        )
    return array


def _checked(deviations: ArrayLike, bound: float) -> Floats:
    array = np.asarray(deviations)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "bfiu":
        raise ValueError(
            f"deviations of shape {array.shape}, {array.dtype}: expected numbers or booleans, shape (n, G), both ≥ 1"
        )
    array = array.astype(np.float64)
    if not ((array >= 0) & (array <= bound)).all() or not np.isfinite(array).all():
        raise ValueError(f"deviations hold numbers outside [0, {bound:g}] or NaN: expected each row's loss, at most the bound")
    return array
