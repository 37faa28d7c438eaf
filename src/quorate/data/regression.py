"""The output side of a regression: standardised targets, as the last layer of a model.

Members emit per target a mean and a log-variance (Lakshminarayanan et al. 2017, arXiv 1612.01474, §2.2.1). A network is best trained on
standardised targets, its users want raw units; both hold when the last layer undoes the standardisation by the training targets' mean m
and std s. With a network's raw outputs a and b,

    μ = m + s·a,    log σ² = log(softplus(b) + 10⁻⁶) + 2 log s,

the positive variance of the paper; the likelihood in raw units differs from that of standardised targets by the constant log s alone.

Shapes: raw outputs (…, 2D), the D means first; m, s (D,); result (…, 2D).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

FLOOR = 1e-6  # of the variance in standardised units
PRECISION = 1e-3  # most rounding to float32 that is no matter, in standard deviations


def target_moments(y: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each target of y (N, D), population std; a constant target gets std 1."""
    wide = y.astype(np.float64)
    same = y.min(0) == y.max(0)
    return tuple(wide.mean(0).tolist()), tuple(np.where(same, 1.0, wide.std(0)).tolist())


def check_precision(what: str, known: np.ndarray) -> None:
    """ValueError for numbers (n,) that differ by less than float32 can tell apart at their size."""
    spread, step = float(known.std()), float(np.spacing(np.float32(np.abs(known).max()))) / 2
    if known.min() < known.max() and step > PRECISION * spread:
        raise ValueError(
            f"{what} has values around {float(np.median(known)):g} that differ by {spread:g} (standard deviation), which float32 would "
            "blur: subtract a constant"
        )


class GaussianOutput(nn.Module):
    """A network's raw outputs (…, 2D) as means and log-variances (…, 2D) in the targets' units.

    mean, std: one value per target, of the training split; buffers. Raises ValueError for none, other lengths, a std that is not > 0;
    in ``forward`` for another number of outputs than two per target.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not len(mean) or len(mean) != len(std):
            raise ValueError(f"mean and std need one value per target, got {len(mean)} and {len(std)}")
        numbers = np.array([mean, std], np.float32)
        if not (np.isfinite(numbers).all() and (numbers[1] > 0).all()):
            raise ValueError(
                f"mean must be finite, std finite and positive in float32, got {list(mean)} and {list(std)}: rescale the targets"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 2 * self.mean.shape[0]:
            raise ValueError(
                f"a network's outputs for {self.mean.shape[0]} targets must be {2 * self.mean.shape[0]}, a mean and a spread for each, got "
                f"{x.shape[-1]}: build it with classes=data.width"
            )
        a, b = x.chunk(2, dim=-1)
        log_variance = torch.log(functional.softplus(b) + FLOOR) + 2 * torch.log(self.std)
        return torch.cat([self.mean + self.std * a, log_variance], dim=-1)

    def extra_repr(self) -> str:
        return f"targets={self.mean.shape[0]}"
