"""An ensemble of Gaussian predictions as the mixture it is: its moments, its likelihood, its CRPS.

M members with equal weights predict N(μ_m, σ_m²) per row and target.

- Moments  μ* = (1/M) Σ μ_m,  σ*² = (1/M) Σ (σ_m² + μ_m²) − μ*²  (Lakshminarayanan et al. 2017, arXiv 1612.01474, §2.4),
           computed as mean σ_m² + mean (μ_m − μ*)², which doesn't cancel;
- NLL      −log (1/M) Σ_m Π_d N(y_d; μ_md, σ_md²), nats, mean over rows: a member predicts all targets of a row;
- CRPS     (1/M) Σ_m A(y − μ_m, σ_m²) − 1/(2M²) Σ_m Σ_k A(μ_m − μ_k, σ_m² + σ_k²) with A(μ, σ²) = E|N(μ, σ²)|
           (Grimit et al. 2006, eq. 5), per target, mean over rows and targets.

Shapes: means and variances member-first (M, N) or (M, N, D); targets (N,) or (N, D). All arithmetic is float64.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike

from quorate.metrics._checks import Floats
from quorate.metrics._regression_checks import average, check_mixture, check_mixture_targets, difference
from quorate.metrics.regression import expected_distance, log_density


def mixture_moments(means: ArrayLike, variances: ArrayLike) -> tuple[Floats, Floats]:
    """(mean, variance) of the mixture, each (N,) or (N, D): the Gaussian that deep ensembles report.

    The variance is the members' mean variance (aleatoric) plus the variance of their means (epistemic).

    Args:
        means: (M, N) or (M, N, D). variances: the same shape, above 0.

    Raises:
        ValueError: shapes that differ, are not member-first or are empty; NaN or infinity; a variance of 0 or below.
    """
    centres, spreads = check_mixture(means, variances)
    mean = centres.mean(axis=0)
    return mean, spreads.mean(axis=0) + np.square(centres - mean).mean(axis=0)


def mixture_nll(means: ArrayLike, variances: ArrayLike, targets: ArrayLike) -> float:
    """Negative log-likelihood of the exact mixture in nats: joint over a row's targets, mean over rows.

    Never above the mean of the members' :func:`~quorate.metrics.gaussian_nll` (Jensen). With one member it equals it.

    Args:
        means, variances: (M, N) or (M, N, D). targets: (N,) or (N, D).

    Raises:
        ValueError: as :func:`mixture_moments`; targets of another shape than one member's means, NaN or infinite.
    """
    from scipy.special import logsumexp

    centres, spreads = check_mixture(means, variances)
    truth = check_mixture_targets(centres, targets)
    members, rows = centres.shape[:2]
    joint = log_density(difference("targets", truth, centres, 1), np.sqrt(spreads)).reshape(members, rows, -1).sum(axis=-1)
    return float(math.log(members) - logsumexp(joint, axis=0).mean())


def crps_mixture(means: ArrayLike, variances: ArrayLike, targets: ArrayLike) -> float:
    """CRPS of the exact mixture, mean over rows and targets, in their unit; lower is better. O(M²) in the members.

    Args:
        means, variances: (M, N) or (M, N, D). targets: (N,) or (N, D).

    Raises:
        ValueError: as :func:`mixture_nll`.
    """
    centres, variance = check_mixture(means, variances)
    truth = check_mixture_targets(centres, targets)
    members = len(centres)
    offsets = difference("targets", truth, centres, 1)
    to_target = sum(average(expected_distance(o, np.sqrt(v))) for o, v in zip(offsets, variance, strict=True))
    itself = float(np.sqrt(variance).mean(axis=tuple(range(1, variance.ndim))).sum()) * 2 / math.sqrt(math.pi)
    others = sum(
        average(expected_distance(difference("means", centres[m], centres[k], 0), np.sqrt(variance[m] + variance[k])))
        for m, k in itertools.combinations(range(members), 2)
    )
    return to_target / members - (itself + 2 * others) / (2 * members**2)
