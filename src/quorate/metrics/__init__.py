"""Metrics as plain functions: arrays in, numbers out. NumPy (the normal distribution is SciPy's); nothing is fitted, nothing is stored.

- accuracy and calibration: (probs (N, C), labels (N,));
- selective classification: (uncertainty (N,), errors (N,));
- out-of-distribution data: (id_uncertainty (N,), ood_uncertainty (N′,)), ID is the positive class;
- diversity of members: member-first probs (M, N, C);
- fidelity of a student to its teacher: outputs (N, C) of both; prefixes of stages: labels (K, N);
- regression: Gaussian mean and variance, targets, all (N,) or (N, D); of members, means and variances (M, N) or (M, N, D).

Uncertainty: higher = less sure. Accept means ``uncertainty <= threshold``. Ties are one point.
"""

from __future__ import annotations

from quorate.metrics.accuracy import (
    Reliability,
    accuracy,
    adaptive_ece,
    brier,
    ece,
    nll,
    per_class_accuracy,
    reliability,
)
from quorate.metrics.diversity import oracle_accuracy, pairwise_disagreement, pairwise_kl
from quorate.metrics.fidelity import Fidelity, fidelity_agreement, fidelity_error, fidelity_kl
from quorate.metrics.mixture import crps_mixture, mixture_moments, mixture_nll
from quorate.metrics.ood import aupr, auroc, fpr_at_tpr, scod_risk, threshold_at_tpr
from quorate.metrics.prefixes import Prefixes, prefixes
from quorate.metrics.regression import (
    crps_gaussian,
    gaussian_nll,
    interval_calibration,
    interval_calibration_error,
    interval_coverage,
    interval_width,
    mae,
    rmse,
)
from quorate.metrics.selective import (
    RiskCoverage,
    augrc,
    aurc,
    coverage_at_risk,
    excess_aurc,
    risk_at_coverage,
    risk_coverage,
    threshold_at_coverage,
    threshold_at_risk,
)
from quorate.metrics.sparsification import Sparsification, ause, sparsification

__all__ = [
    "Fidelity",
    "Prefixes",
    "Reliability",
    "RiskCoverage",
    "Sparsification",
    "accuracy",
    "adaptive_ece",
    "augrc",
    "aupr",
    "aurc",
    "auroc",
    "ause",
    "brier",
    "coverage_at_risk",
    "crps_gaussian",
    "crps_mixture",
    "ece",
    "excess_aurc",
    "fidelity_agreement",
    "fidelity_error",
    "fidelity_kl",
    "fpr_at_tpr",
    "gaussian_nll",
    "interval_calibration",
    "interval_calibration_error",
    "interval_coverage",
    "interval_width",
    "mae",
    "mixture_moments",
    "mixture_nll",
    "nll",
    "oracle_accuracy",
    "pairwise_disagreement",
    "pairwise_kl",
    "per_class_accuracy",
    "prefixes",
    "reliability",
    "risk_at_coverage",
    "risk_coverage",
    "rmse",
    "scod_risk",
    "sparsification",
    "threshold_at_coverage",
    "threshold_at_risk",
    "threshold_at_tpr",
]
