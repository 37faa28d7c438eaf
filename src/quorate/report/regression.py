"""The figures of a regression ensemble, from stored Outputs of kind ``"gaussian"`` or ``"values"`` alone; nothing is fitted.

The prediction is the members' mixture taken as one Gaussian per target (Lakshminarayanan et al. 2017, arXiv 1612.01474, §2.4). How sure it
is of a row: the entropy of that Gaussian over all D targets up to constants, ½ Σ_d log σ²_d, which does not depend on their units.

Shapes: Outputs (m, N, 2D) per stage, or values (m, N, D), labels (N, D).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from quorate import metrics
from quorate.combination import Floats
from quorate.outputs import Outputs

LEVEL = 0.9
Figures = dict[str, float]


def entropy(variance: Floats, what: str) -> Floats:
    """(N,) entropy in nats of independent Gaussians with variances (N, D). ValueError, naming `what`, for a variance that is 0."""
    certain = np.flatnonzero((variance <= 0).any(-1))
    if len(certain):
        raise ValueError(
            f"{what}: {len(certain)} rows are predicted with variance 0, first {certain[:3].tolist()}: their log-variances are too "
            "small for float64, bound them where the model is trained"
        )
    return np.asarray(0.5 * np.log(2 * np.pi * np.e * variance).sum(-1))


def predicted(outputs: Outputs, stop: int | None = None) -> tuple[Floats, Floats | None]:
    """(mean (N, D), variance (N, D)) of a regression's members after stages 0 … stop−1; no variance where they are plain values."""
    if outputs.kind == "gaussian":
        return outputs.gaussian(stop)
    counted = outputs.until(stop)[-1:] if outputs.combine == "last" else outputs.until(stop)
    return np.concatenate([np.asarray(value, np.float64) for value in counted]).mean(0), None


def regression_figures(test: Outputs, ood: Mapping[str, Outputs]) -> Figures:
    """``rmse, nll, crps, interval_coverage, interval_width, ause, auroc:NAME, macs``.

    RMSE, CRPS and width are means over rows and targets, in the targets' unit; NLL is joint over a row's targets, in nats. AUSE: area
    between the curves of the remaining RMSE by predicted entropy and by true error, as a share of the RMSE; an error of several targets is
    the root of its mean square in units of each target's std on the test rows; NaN where there is no error at all.
    Of outputs that are plain values, RMSE and MACs alone.

    Raises:
        ValueError: no labels, or a variance that is 0.
    """
    mean, variance = predicted(test)
    truth, macs = test.truth(), float(sum(test.costs or (0.0,)))
    if variance is None:
        return {"rmse": metrics.rmse(mean, truth), "macs": macs}
    found = {
        "rmse": metrics.rmse(mean, truth),
        "nll": metrics.gaussian_nll(mean, variance, truth),
        "crps": metrics.crps_gaussian(mean, variance, truth),
        "interval_coverage": metrics.interval_coverage(mean, variance, truth, LEVEL),
        "interval_width": metrics.interval_width(variance, LEVEL),
    }
    unsure, scale = entropy(variance, "test rows"), truth.std(0)
    miss = np.sqrt(np.square((truth - mean) / np.where(scale > 0, scale, 1.0)).mean(-1))
    found["ause"] = metrics.ause(unsure, miss, "rms") if miss.any() else math.nan
    for name, outputs in ood.items():
        found[f"auroc:{name}"] = metrics.auroc(unsure, entropy(outputs.gaussian()[1], f"OOD set {name}"))
    return found | {"macs": macs}
