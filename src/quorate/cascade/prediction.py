"""Prediction: what a cascade says of each row, and what it spent on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quorate.combination import Floats


@dataclass(frozen=True, eq=False)
class Prediction:
    """Results of N rows, in the caller's order.

    Attributes:
        label: (N,) predicted class.
        probs: (N, C) probabilities at the stage of exit; None for members that give only their top class, or without rows.
        uncertainty: (N,) at the stage of exit.
        accepted: (N,) whether the uncertainty is at most that stage's τ.
        stage: (N,) index of the stage of exit.
        macs: (N,) cost of all stages that the row went through, in MACs (or the one unit of the policy's costs).
        names: the stages' names.
    """

    label: NDArray[np.int64]
    probs: Floats | None
    uncertainty: Floats
    accepted: NDArray[np.bool_]
    stage: NDArray[np.int64]
    macs: Floats
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def reach(self) -> tuple[float, ...]:
        """Per stage, the share of rows that reached it; the pass rate that was really met. Zeros for no rows."""
        return tuple(float((self.stage >= k).mean()) if len(self) else 0.0 for k in range(len(self.names)))

    @property
    def mean_macs(self) -> float:
        """Mean cost per row; 0 for no rows."""
        return float(self.macs.mean()) if len(self) else 0.0
