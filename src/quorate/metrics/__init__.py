"""Metrics as plain functions: arrays in, numbers out. NumPy only; nothing is fitted, nothing is stored.

- accuracy and calibration: (probs (N, C), labels (N,));
- selective classification: (uncertainty (N,), errors (N,));
- out-of-distribution data: (id_uncertainty (N,), ood_uncertainty (N′,)), ID is the positive class;
- diversity of members: member-first probs (M, N, C).

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
from quorate.metrics.ood import aupr, auroc, fpr_at_tpr, scod_risk, threshold_at_tpr
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

__all__ = [
    "Reliability",
    "RiskCoverage",
    "accuracy",
    "adaptive_ece",
    "augrc",
    "aupr",
    "aurc",
    "auroc",
    "brier",
    "coverage_at_risk",
    "ece",
    "excess_aurc",
    "fpr_at_tpr",
    "nll",
    "oracle_accuracy",
    "pairwise_disagreement",
    "pairwise_kl",
    "per_class_accuracy",
    "reliability",
    "risk_at_coverage",
    "risk_coverage",
    "scod_risk",
    "threshold_at_coverage",
    "threshold_at_risk",
    "threshold_at_tpr",
]
