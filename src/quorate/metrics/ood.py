"""Telling in-distribution (ID) data from the rest by the uncertainty, and abstaining on a mix of both.

ID is the positive class; accept means ``uncertainty <= τ``. Equal scores are one point, in every function.

- TPR(τ), FPR(τ): the shares of ID and of OOD rows accepted;
- AUROC: P(u_ID < u_OOD) + ½ P(u_ID = u_OOD), the Mann–Whitney statistic (Fawcett 2006, §7);
- AUPR: Σ_τ (recall_τ − recall_before τ) · precision_τ, that is average precision, without interpolation;
- SCOD risk (Xia & Bouganis 2022, arXiv 2207.07506; 2023, arXiv 2303.08010): Σ cost / number accepted, where a right
  ID row costs 0, a wrong one 1, an OOD row β, each part weighted to a mix α : 1 − α of ID and OOD.

Shapes: ``id_uncertainty`` (N,), ``ood_uncertainty`` (N′,), higher = less sure, ±inf allowed. Comparisons in float64.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from quorate.metrics._checks import (
    Floats,
    check_choice,
    check_errors,
    check_number,
    check_scores,
    check_share,
)


def auroc(id_uncertainty: ArrayLike, ood_uncertainty: ArrayLike) -> float:
    """Probability that an ID row is less uncertain than an OOD row, ties counted half; .5 is chance, 1 best.

    Raises:
        ValueError: an empty array, not (N,), or NaN.
    """
    inside, outside = _both(id_uncertainty, ood_uncertainty)
    outside.sort()
    inside.sort()
    at_most = int(np.searchsorted(outside, inside, side="right").sum())
    below = int(np.searchsorted(outside, inside, side="left").sum())
    pairs = inside.size * outside.size
    return (2 * pairs - at_most - below) / (2 * pairs)


def aupr(id_uncertainty: ArrayLike, ood_uncertainty: ArrayLike, positive: Literal["in", "out"] = "in") -> float:
    """Average precision of finding the positive class; chance level is its share of all rows.

    Args:
        id_uncertainty: (N,). ood_uncertainty: (N′,).
        positive: ``"in"``: ID rows, taken from the least uncertain on. ``"out"``: OOD rows, from the most uncertain on.

    Raises:
        ValueError: as :func:`auroc`; an unknown ``positive``.
    """
    check_choice("positive", positive, "in", "out")
    inside, outside = _both(id_uncertainty, ood_uncertainty)
    wanted, others = (inside, outside) if positive == "in" else (-outside, -inside)
    others.sort()
    distinct, sizes = np.unique(wanted, return_counts=True)
    found = np.cumsum(sizes)
    precision = found / (found + np.searchsorted(others, distinct, side="right"))
    return float((sizes * precision).sum() / wanted.size)


def threshold_at_tpr(id_uncertainty: ArrayLike, tpr: float = 0.95) -> float:
    """The least τ that accepts at least the share ``tpr`` of ID rows: the very score of an ID row.

    It is the exact score, so that :func:`fpr_at_tpr` is the share of OOD with ``u <= τ``. Where the scores are computed
    anew and may round otherwise, deploy ``threshold_at_coverage(id_uncertainty, tpr)``: it accepts the same ID rows
    and lies midway to the next ID score.

    Raises:
        ValueError: empty or NaN uncertainty; ``tpr`` outside (0, 1].
    """
    scores = check_scores("id_uncertainty", id_uncertainty)
    last = check_share("tpr", tpr, scores.size) - 1
    return float(np.partition(scores, last)[last])


def fpr_at_tpr(id_uncertainty: ArrayLike, ood_uncertainty: ArrayLike, tpr: float = 0.95) -> float:
    """Share of OOD rows accepted (ties accepted) by the least threshold that accepts ``tpr`` of ID; 0 is best.

    Raises:
        ValueError: as :func:`auroc`; ``tpr`` outside (0, 1].
    """
    inside, outside = _both(id_uncertainty, ood_uncertainty)
    return float(np.mean(outside <= threshold_at_tpr(inside, tpr)))


def scod_risk(
    id_uncertainty: ArrayLike,
    id_errors: ArrayLike,
    ood_uncertainty: ArrayLike,
    *,
    tau: float | None = None,
    id_coverage: float | None = None,
    beta: float = 1.0,
    alpha: float | None = None,
) -> float:
    """Risk of the accepted rows in a mix of ID and OOD data.

    [ α · mean(error · accepted) over ID + (1 − α) · β · share of OOD accepted ] / [ α · share of ID accepted
    + (1 − α) · share of OOD accepted ]. NaN when nothing is accepted, where risk is undefined.

    Args:
        id_uncertainty: (N,). id_errors: (N,) booleans (true = wrong) or costs. ood_uncertainty: (N′,).
        tau: accept ``uncertainty <= tau``, on both.
        id_coverage: instead of ``tau``: the least ID score that accepts this share of ID rows.
        beta: cost of an accepted OOD row.
        alpha: share of ID in the mix; ``None``: as sampled, N / (N + N′).

    Raises:
        ValueError: as :func:`auroc`; bad errors; not exactly one of ``tau`` and ``id_coverage``; ``id_coverage``
            outside (0, 1]; NaN ``tau``; negative or infinite ``beta``; ``alpha`` outside [0, 1].
    """
    inside, outside = _both(id_uncertainty, ood_uncertainty)
    errors = check_errors("id_errors", id_errors, inside.size)
    cost = check_number("beta", beta, 0.0)
    if alpha is None:
        id_weight, ood_weight = 1.0, 1.0
    else:
        share = check_number("alpha", alpha, 0.0, 1.0)
        id_weight, ood_weight = share / inside.size, (1.0 - share) / outside.size
    if (tau is None) == (id_coverage is None):
        got = "neither" if tau is None else "both"
        raise ValueError(f"expected exactly one of tau and id_coverage, got {got}; choose how to set the threshold")
    if tau is not None:
        limit = check_number("tau", tau, -math.inf)
    else:
        last = check_share("id_coverage", id_coverage, inside.size) - 1
        limit = float(np.partition(inside, last)[last])
    accepted = inside <= limit
    ood_accepted = ood_weight * np.count_nonzero(outside <= limit)
    weight = id_weight * np.count_nonzero(accepted) + ood_accepted
    if weight == 0:
        return math.nan
    return float((id_weight * np.sort(errors[accepted]).sum() + cost * ood_accepted) / weight)


def _both(id_uncertainty: ArrayLike, ood_uncertainty: ArrayLike) -> tuple[Floats, Floats]:
    """Checked float64 copies of both arrays."""
    inside = check_scores("id_uncertainty", id_uncertainty).astype(np.float64)
    return inside, check_scores("ood_uncertainty", ood_uncertainty).astype(np.float64)
