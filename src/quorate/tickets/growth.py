"""How dead weights are scored: those of the highest score are grown when masks move.

Sources: random growth, SET (Mocanu et al. 2018) and ITOP (Liu et al. 2021, arXiv 2102.02887); the gradient's magnitude, RigL (Evci et al.
2020, arXiv 1911.11134). A static mask, drawn once and trained as it is, is the control.

    Random     score ~ U[0, 1)                                    training costs 3 f_S per input, f_S the sparse forward pass
    Gradient   score = |mean of the loss' gradients ∂L/∂w over the last k steps|    needs the dense gradient in these steps

Shapes: a weight's gradient, the weight and its scores are all of the weight's shape; scores are ≥ 0. The scores of live weights count
too: a weight may be dropped and grown in one update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor


class Growth(Protocol):
    """What scores dead weights."""

    @property
    def batches(self) -> int:
        """In how many steps, up to and with the one of an update, the dense gradient is needed; 0 for none."""

    @property
    def moves(self) -> bool:
        """Whether masks ever move."""

    def score(self, gradient: Tensor | None, weight: Tensor, rng: np.random.Generator) -> Tensor:
        """Scores ≥ 0 of the weight's shape on its device; the gradient is the sum over ``batches`` steps, as good as their mean to rank."""


@dataclass(frozen=True)
class Random:
    """Dead weights are grown at random, all alike (SET, ITOP); independent of the device, for the draws are NumPy's."""

    batches: ClassVar[int] = 0
    moves: ClassVar[bool] = True

    def score(self, gradient: Tensor | None, weight: Tensor, rng: np.random.Generator) -> Tensor:  # noqa: ARG002
        """Uniform float32 in [0, 1); the gradient is not looked at."""
        return torch.from_numpy(rng.random(weight.numel(), dtype=np.float32)).reshape(weight.shape).to(weight.device)


@dataclass(frozen=True)
class Gradient:
    """Dead weights of the largest gradients are grown (RigL).

    Args:
        batches: over how many steps, the last before an update, the gradient is averaged; RigL's is 1.

    Raises:
        ValueError: fewer than one batch.
    """

    batches: int = 1
    moves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(f"batches={self.batches}: expected at least 1, the steps over which the gradient is averaged")

    def score(self, gradient: Tensor | None, weight: Tensor, rng: np.random.Generator) -> Tensor:  # noqa: ARG002
        """|gradient|; nothing is drawn.

        Raises:
            ValueError: no gradient, or one of another shape than the weight's.
        """
        if gradient is None or gradient.shape != weight.shape:
            came = "none" if gradient is None else f"one of shape {tuple(gradient.shape)}"
            raise ValueError(
                f"growth by gradient got {came}: expected the dense gradient of shape {tuple(weight.shape)}, of a weight in use"
            )
        return gradient.detach().abs()


@dataclass(frozen=True)
class Static:
    """Masks never move: what was drawn at first is trained to the end."""

    batches: ClassVar[int] = 0
    moves: ClassVar[bool] = False

    def score(self, gradient: Tensor | None, weight: Tensor, rng: np.random.Generator) -> Tensor:  # noqa: ARG002
        """Nothing is ever grown.

        Raises:
            ValueError: always.
        """
        raise ValueError("growth Static() scores nothing: its masks never move, use Random() or Gradient() for masks that do")
