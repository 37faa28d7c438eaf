"""Regression: errors of the mean, scores of a Gaussian prediction, calibration of its intervals.

A row n has D targets y_nd, each predicted as N(μ_nd, σ_nd²), independent of each other; z = (y − μ) / σ.

- RMSE √mean (y − μ)²,  MAE mean |y − μ|, over rows and targets;
- NLL       (1/N) Σ_n Σ_d ½ (log 2πσ² + z²), nats: the joint density of a row, hence the sum over its targets;
- CRPS      σ (z (2Φ(z) − 1) + 2φ(z) − 1/√π)  (Gneiting & Raftery 2007, eq. 21, with the sign that makes it a loss),
            in the unit of the target, mean over rows and targets;
- central interval of level p: μ ± σ Φ⁻¹((1 + p)/2), ends included; its coverage should be p;
- calibration error over levels p_j: Σ_j w_j (p_j − p̂_j)²  (Kuleshov et al. 2018, arXiv 1807.00263, diagnostic tools), w_j = 1/J,
            or the mean of |p_j − p̂_j|; p̂_j the share of targets inside the interval of level p_j, or below the p_j-quantile.

Shapes: mean, variance and targets of one shape, (N,) or (N, D), any real dtype; shapes never broadcast. All arithmetic
is float64. Where targets have different units, measure them one by one (``mean[:, d]``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from quorate.metrics._checks import Floats, check_choice
from quorate.metrics._regression_checks import average, check_gaussian, check_level, check_levels, check_offset, check_spread

LEVELS = tuple(j / 20 for j in range(1, 20))  # 5 %, 10 % … 95 %
Distance = Literal["absolute", "squared"]
Regions = Literal["intervals", "quantiles"]


def expected_distance(offset: Floats, spread: Floats) -> Floats:
    """E|X| of X ~ N(offset, spread²): 2σφ(μ/σ) + μ(2Φ(μ/σ) − 1)  (Grimit et al. 2006, eq. 5). Shapes broadcast."""
    from scipy.special import erf

    with np.errstate(over="ignore", under="ignore"):  # far out, z is inf, φ 0 and erf ±1: the distance is |offset|
        z = offset / spread
        density = np.exp(-0.5 * z * z) * math.sqrt(2 / math.pi)
    return np.asarray(spread * density + offset * erf(z * math.sqrt(0.5)))


def log_density(offset: Floats, spread: Floats) -> Floats:
    """log N(offset; 0, spread²) in nats, elementwise; −inf where the square of offset/spread is beyond float64."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(-0.5 * np.square(offset / spread) - np.log(spread) - 0.5 * math.log(2 * math.pi))


def rmse(mean: ArrayLike, targets: ArrayLike) -> float:
    """Root of the squared error's mean over rows and targets, in the unit of the targets.

    Args:
        mean: (N,) or (N, D). targets: the same shape.

    Raises:
        ValueError: shapes that differ or are empty; NaN or infinity, or a difference beyond float64.
    """
    error = np.abs(check_offset(mean, targets))
    largest = float(error.max())  # scaled, so that no square overflows
    return largest * math.sqrt(float(np.square(error / largest).mean())) if largest else 0.0


def mae(mean: ArrayLike, targets: ArrayLike) -> float:
    """Absolute error, mean over rows and targets, in the unit of the targets.

    Raises:
        ValueError: as :func:`rmse`.
    """
    return average(np.abs(check_offset(mean, targets)))


def gaussian_nll(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike) -> float:
    """Negative log-likelihood in nats: summed over a row's targets (independent), mean over rows.

    Exact: nothing is clipped, the constant ½ log 2π is counted; it depends on the unit of the targets and can be negative.

    Args:
        mean, variance, targets: (N,) or (N, D), one shape; variance above 0.

    Raises:
        ValueError: as :func:`rmse`; a variance that is 0 or negative.
    """
    offset, spread = check_gaussian(mean, variance, targets)
    with np.errstate(over="ignore"):
        return float(-log_density(offset, spread).sum() / len(offset))


def crps_gaussian(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike) -> float:
    """Continuous ranked probability score of a Gaussian, mean over rows and targets, in their unit; lower is better.

    ∫ (F(x) − 1[x ≥ y])² dx in closed form; tends to the absolute error as the variance goes to 0.

    Raises:
        ValueError: as :func:`gaussian_nll`.
    """
    offset, spread = check_gaussian(mean, variance, targets)
    return average(expected_distance(offset, spread) - spread / math.sqrt(math.pi))


def interval_coverage(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike, level: float = 0.9) -> float:
    """Share of all targets inside their central interval of ``level``; should be ``level``.

    Every target has an interval of its own: for D targets it is not the share of rows that are inside in all of them.

    Raises:
        ValueError: as :func:`gaussian_nll`; a level that is not strictly between 0 and 1.
    """
    reach = _reach(check_level("level", level))
    offset, spread = check_gaussian(mean, variance, targets)
    return float(np.mean(np.abs(offset) <= reach * spread))


def interval_width(variance: ArrayLike, level: float = 0.9) -> float:
    """Width of the central interval of ``level``, mean over rows and targets, in their unit: the sharpness.

    Raises:
        ValueError: a variance of another shape than (N,) or (N, D), not finite, 0 or negative; a level not in (0, 1).
    """
    reach = _reach(check_level("level", level))
    return float(2 * reach * check_spread(variance).mean())


def interval_calibration(
    mean: ArrayLike,
    variance: ArrayLike,
    targets: ArrayLike,
    levels: Sequence[float] = LEVELS,
    regions: Regions = "intervals",
) -> Floats:
    """The observed share p̂ of targets per level, (J,) in the order of ``levels``: a calibration curve.

    Args:
        mean, variance, targets: (N,) or (N, D), one shape; variance above 0.
        levels: (J,) different shares in (0, 1).
        regions: ``"intervals"``: inside the central interval, as :func:`interval_coverage`. ``"quantiles"``: at or below
            the quantile, the form of Kuleshov et al., which also sees a mean that is off to one side.

    Raises:
        ValueError: as :func:`interval_coverage`; no level, or one that comes again; unknown ``regions``.
    """
    check_choice("regions", regions, "intervals", "quantiles")
    wanted = check_levels(levels)
    offset, spread = check_gaussian(mean, variance, targets)
    if regions == "intervals":
        offset, reaches = np.abs(offset), [_reach(level) for level in wanted.tolist()]
    else:
        reaches = [_quantile(level) for level in wanted.tolist()]
    return np.array([np.mean(offset <= reach * spread) for reach in reaches])


def interval_calibration_error(
    mean: ArrayLike,
    variance: ArrayLike,
    targets: ArrayLike,
    levels: Sequence[float] = LEVELS,
    distance: Distance = "absolute",
    regions: Regions = "intervals",
) -> float:
    """How far the observed shares are from the levels, mean over levels; 0 is best.

    Args:
        mean, variance, targets, levels, regions: as :func:`interval_calibration`.
        distance: ``"absolute"``: |p − p̂|. ``"squared"``: (p − p̂)², with ``regions="quantiles"`` the error of Kuleshov
            et al. with equal weights 1/J (they leave the weights open).

    Raises:
        ValueError: as :func:`interval_calibration`; an unknown ``distance``.
    """
    check_choice("distance", distance, "absolute", "squared")
    gap = np.abs(interval_calibration(mean, variance, targets, levels, regions) - np.asarray(levels, np.float64))
    return float((gap if distance == "absolute" else gap * gap).mean())


def _quantile(level: float) -> float:
    """Φ⁻¹(level)."""
    from scipy.special import ndtri

    return float(ndtri(level))


def _reach(level: float) -> float:
    """Half the width of the standard normal's central interval, from the tail where ``level`` is near 1."""
    return -_quantile((1 - level) / 2)
