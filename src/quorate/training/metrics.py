"""torchmetrics for ensembles: thin states over :mod:`quorate.metrics`, member-first logits (M, B, C) in, sums kept.

Accuracy, NLL and Brier are means over rows, so sums are their whole state; ECE's state is its bins (specification of cascades, §2,
equal width). AURC needs every row's uncertainty and error: it alone keeps two numbers per row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quorate import metrics
from quorate.cascade.uncertainty import msp
from quorate.combination import Combine, Running
from quorate.training.imports import torchmetrics

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = torchmetrics().Metric


def _combined(logits: Tensor, targets: Tensor, combine: Combine) -> tuple[Any, Any]:
    """float64 (B, C) probabilities and (B,) targets as arrays."""
    state = Running("logits", combine)
    for member in logits.detach().float().cpu().numpy():
        state.add_(member[None])  # one by one: where only the last counts, each member is a stage
    return state.probs(), targets.cpu().numpy()


class _RowMean(Metric):
    """Mean over rows of ``plain``, a function of (probs (B, C), labels (B,)) that is itself a mean over rows."""

    higher_is_better = False
    full_state_update = False
    plain: Callable[[Any, Any], float]
    total: Tensor
    rows: Tensor

    def __init__(self, combine: Combine = "probs", **options: Any) -> None:
        super().__init__(**options)
        self.combine = combine
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits (M, B, C), targets (B,)."""
        probs, labels = _combined(logits, targets, self.combine)
        self.total += self.plain(probs, labels) * len(labels)
        self.rows += len(labels)

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self.total / self.rows


class EnsembleAccuracy(_RowMean):
    """Accuracy of the combined prediction (:func:`quorate.metrics.accuracy`)."""

    higher_is_better = True
    plain = staticmethod(metrics.accuracy)


class EnsembleNLL(_RowMean):
    """Negative log-likelihood of the combined prediction, in nats (:func:`quorate.metrics.nll`)."""

    plain = staticmethod(metrics.nll)


class EnsembleBrier(_RowMean):
    """Brier score of the combined prediction (:func:`quorate.metrics.brier`)."""

    plain = staticmethod(metrics.brier)


class EnsembleECE(Metric):
    """Expected calibration error of the combined prediction, equal-width bins."""

    higher_is_better = False
    full_state_update = False
    counts: Tensor
    right: Tensor
    mass: Tensor

    def __init__(self, bins: int = 15, combine: Combine = "probs", **options: Any) -> None:
        super().__init__(**options)
        self.bins, self.combine = bins, combine
        for name in ("counts", "right", "mass"):
            self.add_state(name, torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits (M, B, C), targets (B,)."""
        probs, labels = _combined(logits, targets, self.combine)
        bins = metrics.reliability(probs, labels, bins=self.bins, scheme="width")
        full = bins.count > 0
        for state, share in ((self.counts, np.ones(self.bins)), (self.right, bins.accuracy), (self.mass, bins.probability)):
            state += torch.from_numpy(np.where(full, share, 0.0) * bins.count).to(state.device)

    def compute(self) -> Tensor:
        """Σ over bins of |right − mass| / rows."""
        return (self.right - self.mass).abs().sum() / self.counts.sum()


class GaussianNLL(_RowMean):
    """Negative log-likelihood of the members' mixture taken as one Gaussian, in nats (:func:`quorate.metrics.gaussian_nll`).

    Members' outputs (M, B, 2D), targets (B, D).
    """

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        mean, variance = _mixture(logits)
        self.total += metrics.gaussian_nll(mean, variance, targets.double().cpu().numpy()) * len(targets)
        self.rows += len(targets)


class GaussianRMSE(_RowMean):
    """Root of the mean squared error of the members' mean, over rows and targets (:func:`quorate.metrics.rmse`)."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        mean, _ = _mixture(logits)
        self.total += metrics.rmse(mean, targets.double().cpu().numpy()) ** 2 * len(targets)
        self.rows += len(targets)

    def compute(self) -> Tensor:
        """The root of the mean over all rows so far."""
        return (self.total / self.rows).sqrt()


def _mixture(outputs: Tensor) -> tuple[Any, Any]:
    """Mean and variance (B, D) of members' outputs (M, B, 2D), float64 arrays."""
    means, log_variances = outputs.detach().double().cpu().chunk(2, dim=-1)
    return metrics.mixture_moments(means.numpy(), log_variances.exp().numpy())


class EnsembleAURC(Metric):
    """Area under the risk–coverage curve (mean form) by 1 − max p of the combined prediction."""

    higher_is_better = False
    full_state_update = False
    uncertainty: list[Tensor]
    errors: list[Tensor]

    def __init__(self, combine: Combine = "probs", **options: Any) -> None:
        super().__init__(**options)
        self.combine = combine
        self.add_state("uncertainty", [], dist_reduce_fx="cat")
        self.add_state("errors", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits (M, B, C), targets (B,)."""
        probs, labels = _combined(logits, targets, self.combine)
        self.uncertainty.append(torch.from_numpy(msp(probs, kind="probs")))
        self.errors.append(torch.from_numpy(probs.argmax(-1) != labels))

    def compute(self) -> Tensor:
        """AURC of all rows so far."""
        u, e = (torch.cat(list(part)) if isinstance(part, list) else part for part in (self.uncertainty, self.errors))
        return torch.tensor(metrics.aurc(u.cpu().numpy(), e.cpu().numpy()), dtype=torch.float64)
