"""The figures of one ensemble or cascade, from stored Outputs alone.

Every threshold comes from validation data and is applied to test and OOD data as it is; nothing is chosen on what is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from quorate import metrics
from quorate.cascade import target as targets
from quorate.cascade.cascade import simulate
from quorate.cascade.policy import Policy
from quorate.cascade.prediction import Prediction
from quorate.cascade.temperature import temperature_of
from quorate.combination import softmax
from quorate.outputs import Outputs

RISK = 0.01
TPR = 0.95
Figures = dict[str, float]


def ensemble_figures(validation: Outputs, test: Outputs, ood: Mapping[str, Outputs]) -> Figures:
    """All figures of a whole ensemble: msp as uncertainty for errors, energy (msp where there are no logits) for OOD."""
    policy = Policy.of(validation, uncertainty="msp")
    score = "energy" if validation.kind == "logits" else "msp"
    for_ood = replace(policy, uncertainty=score)
    return _figures(policy, for_ood, validation, test, ood)


def cascade_figures(policy: Policy, validation: Outputs, test: Outputs, ood: Mapping[str, Outputs]) -> Figures:
    """All figures of a cascade, simulated; its own uncertainty at exit serves for errors and for OOD alike."""
    names = [stage.name for stage in policy.stages]
    merged = {name: outputs.grouped_as(names) for name, outputs in ood.items()}
    found = _figures(policy, policy, validation.grouped_as(names), test.grouped_as(names), merged)
    return found | {"reach": simulate(policy, test.grouped_as(names)).reach[1]} if len(names) > 1 else found


def _figures(policy: Policy, for_ood: Policy, validation: Outputs, test: Outputs, ood: Mapping[str, Outputs]) -> Figures:
    chosen, reported = simulate(policy, validation), simulate(policy, test)
    wrong = reported.label != test.truth()
    found: Figures = {"accuracy": float(1 - wrong.mean())}
    if reported.probs is not None:
        found["nll"] = metrics.nll(reported.probs, test.truth())
        found["ece"] = metrics.ece(reported.probs, test.truth(), bins=15)
        found |= _tempered(policy, chosen, validation, reported, test)
    found["aurc"] = metrics.aurc(reported.uncertainty, wrong)
    accepted = _accepted_at_risk(policy, chosen, validation, reported)
    found["coverage_at_risk"] = float(accepted.mean())
    found["risk_met"] = float(wrong[accepted].mean()) if accepted.any() else float("nan")
    id_validation = chosen if for_ood is policy else simulate(for_ood, validation)
    id_test = reported if for_ood is policy else simulate(for_ood, test)
    for name, outputs in ood.items():
        out = simulate(for_ood, outputs)
        found[f"auroc:{name}"] = metrics.auroc(id_test.uncertainty, out.uncertainty)
        found[f"fpr:{name}"] = float(_accepted_at_tpr(for_ood, id_validation, out).mean())
    if ood:
        found["tpr_met"] = float(_accepted_at_tpr(for_ood, id_validation, id_test).mean())
    found["macs"] = reported.mean_macs
    return found


def _tempered(policy: Policy, chosen: Prediction, validation: Outputs, reported: Prediction, test: Outputs) -> Figures:
    """NLL and ECE at the one temperature, fitted on validation data, of the probabilities at exit.

    Nothing where the policy has temperatures of its own, or where a true class of validation data has probability 0.
    """
    if any(stage.temperature != 1.0 for stage in policy.stages) or chosen.probs is None or reported.probs is None:
        return {}
    with np.errstate(divide="ignore"):
        fitted, applied = np.log(chosen.probs), np.log(reported.probs)
    truth = validation.truth()
    if (fitted[np.arange(len(truth)), truth] == -np.inf).any():
        return {}
    temperature = temperature_of(fitted, truth)
    probs = softmax(applied, temperature)
    return {
        "nll_tempered": metrics.nll(probs, test.truth()),
        "ece_tempered": metrics.ece(probs, test.truth(), bins=15),
        "temperature": temperature,
    }


def _accepted_at_risk(policy: Policy, chosen: Prediction, validation: Outputs, reported: Prediction) -> np.ndarray:
    if _fitted_for(policy, "coverage", RISK):
        return reported.accepted
    tau = metrics.threshold_at_risk(chosen.uncertainty, chosen.label != validation.truth(), RISK)
    return np.zeros(len(reported), bool) if tau is None else reported.uncertainty <= tau


def _accepted_at_tpr(policy: Policy, id_validation: Prediction, out: Prediction) -> np.ndarray:
    if _fitted_for(policy, "fpr", TPR):
        return out.accepted
    return np.asarray(out.uncertainty <= metrics.threshold_at_tpr(id_validation.uncertainty, TPR))


def _fitted_for(policy: Policy, figure: str, level: float) -> bool:
    return policy.target is not None and targets.parse(policy.target) == (figure, level)
