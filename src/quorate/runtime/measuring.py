"""What a policy comes to on stored Outputs: every prefix of its stages on its own, then the cascade.

A prefix sends every row through its stages and decides there, with that stage's temperature and τ; so its rows show what going on buys.
Sources of the figures: :mod:`quorate.metrics`. Rows (N,); probabilities (N, C). For a regression, the members' mean and mixture
(Lakshminarayanan et al. 2017, arXiv 1612.01474, §2.4).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate import metrics
from quorate.cascade.cascade import simulate
from quorate.cascade.policy import Policy
from quorate.cascade.prediction import Prediction
from quorate.outputs import Outputs

BINS = 15  # of the ECE
Figures = dict[str, float | None]
"""Figures by name; None where there is nothing to measure them on."""


def figures(prediction: Prediction, truth: NDArray[Any], total: float) -> Figures:
    """``accuracy, nll, ece, aurc, coverage, risk, macs, cost_share`` of a prediction.

    NLL (nats) and ECE (15 bins of equal width) are of the probabilities at exit, None where there are none; AURC of the uncertainty at
    exit; coverage and risk: the share accepted and the share wrong among these (None if none are).

    Args:
        prediction: of N rows. truth: (N,) classes.
        total: what all stages cost together per row; 0 where nobody knows, then there is no ``cost_share``.
    """
    wrong, accepted = prediction.label != truth, prediction.accepted
    scored = prediction.probs is not None
    return {
        "accuracy": float(1 - wrong.mean()),
        "nll": metrics.nll(prediction.probs, truth) if scored else None,
        "ece": metrics.ece(prediction.probs, truth, bins=BINS) if prediction.probs is not None else None,
        "aurc": metrics.aurc(prediction.uncertainty, wrong),
        "coverage": float(accepted.mean()),
        "risk": float(wrong[accepted].mean()) if accepted.any() else None,
        "macs": prediction.mean_macs if total else None,
        "cost_share": prediction.mean_macs / total if total else None,
    }


def measured(policy: Policy, outputs: Outputs) -> list[tuple[str, Figures]]:
    """(name, figures) of the prefixes, named by their stages, then of the cascade; of a single stage, of that alone.

    ``reach`` is added: the share of rows that the cascade brings to a prefix's last stage.

    Raises:
        ValueError: no labels, or Outputs that the policy can't be simulated on.
    """
    truth, total = outputs.truth(), sum(stage.cost for stage in policy.stages)
    whole = simulate(policy, outputs)
    rows = []
    for k, stage in enumerate(policy.stages):
        found = figures(simulate(prefix(policy, k + 1), outputs), truth, total)
        rows.append((stage.name if k == 0 else f"… + {stage.name}", found | {"reach": whole.reach[k]}))
    if len(policy.stages) > 1:
        rows.append(("cascade", figures(whole, truth, total) | {"reach": None}))
    return rows


def prefix(policy: Policy, stages: int) -> Policy:
    """The policy under which every row leaves after so many stages."""
    through = [replace(stage, window=(None, None), rate=None) for stage in policy.stages[: stages - 1]]
    last = replace(policy.stages[stages - 1], window=None, rate=None)
    return replace(policy, stages=(*through, last), certificate=None, sequence=None)


def regressed(outputs: Outputs) -> list[tuple[str, Figures]]:
    """(name, figures) of every prefix of a regression: ``rmse``, for Gaussians also ``nll`` (nats), and what it costs.

    Raises:
        ValueError: no targets, or Outputs of a classification.
    """
    truth, costs = outputs.truth(), np.cumsum(outputs.costs or (0.0,) * outputs.stages)
    rows: list[tuple[str, Figures]] = []
    for k, name in enumerate(outputs.names):
        found: Figures = {"nll": None}
        if outputs.kind == "gaussian":
            mean, variance = outputs.gaussian(k + 1)
            found["nll"] = metrics.gaussian_nll(mean, variance, truth)
        elif outputs.kind == "values":
            counted = outputs.until(k + 1)[-1:] if outputs.combine == "last" else outputs.until(k + 1)
            mean = np.concatenate([np.asarray(value, np.float64) for value in counted]).mean(0)
        else:
            raise ValueError(f"these Outputs hold {outputs.kind}, a classification: measure them under their policy")
        share = float(costs[k] / costs[-1]) if costs[-1] else None
        found |= {"rmse": metrics.rmse(mean, truth), "macs": float(costs[k]) if costs[-1] else None, "cost_share": share}
        rows.append((name if k == 0 else f"… + {name}", found))
    return rows
