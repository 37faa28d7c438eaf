"""Input checks shared by the regression metrics: shapes never broadcast, nothing is clipped.

Every failed check is a one-line ``ValueError`` that says what was expected, what came (with the first offending
rows), and what to do.

Shapes: targets, means and variances (N,) or (N, D), of members (M, N) or (M, N, D).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.metrics._checks import Floats, check_array, name_rows


def check_targets(targets: ArrayLike) -> Floats:
    """Finite targets (N,) or (N, D), N ≥ 1, D ≥ 1, as float64."""
    array = check_array("targets", targets)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(
            f"targets: expected shape (N,) or (N, D) with at least one row and one target, got {array.shape}; pass one row per input"
        )
    return _finite("targets", array, 0)


def check_like(name: str, values: ArrayLike, targets: Floats) -> Floats:
    """Finite predictions of exactly the targets' shape, as float64."""
    array = check_array(name, values)
    if array.shape != targets.shape:
        raise ValueError(
            f"{name}: expected the shape of the targets, {targets.shape}, got {array.shape}; pass the same rows and axes, "
            "such as x[:, 0] or x[:, None] for a single target"
        )
    return _finite(name, array, 0)


def check_offset(mean: ArrayLike, targets: ArrayLike) -> Floats:
    """targets − mean, of one shape."""
    truth = check_targets(targets)
    return difference("targets", truth, check_like("mean", mean, truth), 0)


def check_gaussian(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    """(targets − mean, standard deviation) of one shape, the variance positive."""
    truth = check_targets(targets)
    centre, spread = check_like("mean", mean, truth), check_like("variance", variance, truth)
    return difference("targets", truth, centre, 0), np.sqrt(_positive("variance", spread, 0))


def check_spread(variance: ArrayLike) -> Floats:
    """Standard deviations (N,) or (N, D) of positive variances, for what needs no targets."""
    array = check_array("variance", variance)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(
            f"variance: expected shape (N,) or (N, D) with at least one row and one target, got {array.shape}; pass one row per input"
        )
    return np.sqrt(_positive("variance", _finite("variance", array, 0), 0))


def check_mixture(means: ArrayLike, variances: ArrayLike) -> tuple[Floats, Floats]:
    """(means, variances) of one member-first shape (M, N) or (M, N, D), the variances positive."""
    centres, spreads = check_array("means", means), check_array("variances", variances)
    if centres.ndim not in (2, 3) or centres.size == 0:
        raise ValueError(
            f"means: expected the member-first shape (M, N) or (M, N, D) with at least one member, row and target, got {centres.shape}; "
            "stack the members' predictions along a new first axis"
        )
    if spreads.shape != centres.shape:
        raise ValueError(
            f"variances: expected the shape of the means, {centres.shape}, got {spreads.shape}; pass one variance per mean"
        )
    return _finite("means", centres, 1), _positive("variances", _finite("variances", spreads, 1), 1)


def check_mixture_targets(means: Floats, targets: ArrayLike) -> Floats:
    """Targets whose shape is that of one member's means."""
    truth = check_targets(targets)
    if truth.shape != means.shape[1:]:
        raise ValueError(
            f"targets: expected the shape of one member's means, {means.shape[1:]}, got {truth.shape}; pass the same rows and axes, "
            "such as y[:, 0] or y[:, None] for a single target"
        )
    return truth


def check_level(name: str, value: object) -> float:
    """A probability strictly between 0 and 1."""
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not 0 < number < 1:
        shown = repr(value) if isinstance(value, numbers.Real | str) and len(repr(value)) <= 60 else type(value).__name__
        raise ValueError(f"{name}={shown}: expected a share above 0 and below 1; write 90 % as 0.9")
    return number


def check_levels(levels: Sequence[float] | NDArray | str) -> Floats:
    """At least one level, each strictly between 0 and 1, each once."""
    if isinstance(levels, str) or not isinstance(levels, Sequence | np.ndarray) or len(levels) == 0:
        raise ValueError(
            f"levels: expected a sequence of shares, got {type(levels).__name__}; pass at least one, such as (0.5, 0.9)"
        )
    given = np.array([check_level("levels", level) for level in levels])
    if np.unique(given).size < given.size:
        raise ValueError(f"levels: expected different shares, got {given.tolist()[:10]}; pass every level once")
    return given


def difference(name: str, values: Floats, centres: Floats, rows: int) -> Floats:
    """values − centres, broadcast, each within float64; axis ``rows`` of the result counts the rows."""
    with np.errstate(over="ignore"):
        found = values - centres
    bad = ~np.isfinite(found)
    if bad.any():
        raise ValueError(
            f"{name}: expected differences from the mean within float64, below 1.8e308, got larger ones in {name_rows(_any(bad, rows))}; "
            "give the targets another unit"
        )
    return found


def average(values: Floats) -> float:
    """The mean of all values, whose sum may be beyond float64."""
    with np.errstate(over="ignore"):
        mean = float(values.mean())
    return mean if math.isfinite(mean) else float((values / values.size).sum())


def _finite(name: str, array: NDArray, rows: int) -> Floats:
    """``array`` as float64, finite; axis ``rows`` counts the rows."""
    values = array.astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{name}: expected finite numbers, got {values[bad][0]} in {name_rows(_any(bad, rows))}; find the inputs that cause them"
        )
    return values


def _positive(name: str, values: Floats, rows: int) -> Floats:
    bad = values <= 0
    if bad.any():
        raise ValueError(
            f"{name}: expected variances above 0, got {values[bad][0]:g} in {name_rows(_any(bad, rows))}; "
            "take exp of log-variances, square standard deviations, or add a noise floor"
        )
    return values


def _any(bad: NDArray[np.bool_], rows: int) -> NDArray[np.bool_]:
    """(N,): is anything bad in a row, for any member and target?"""
    return np.asarray(bad.any(axis=tuple(axis for axis in range(bad.ndim) if axis != rows)))
