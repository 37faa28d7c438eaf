"""Step: what one prefix of a staged ensemble says of a batch, when it was ready, and what it cost; class scores or regression.

Shapes: members (m, B, C) → labels, uncertainties (B,), probabilities (B, C); regression members (m, B, D) → values (B, D), gaussian ones
(m, B, 2D), D means and D log-variances, → values and variances (B, D) of their mixture (Lakshminarayanan et al. 2017, arXiv 1612.01474).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.combination import Combine, Floats, Kind
from quorate.metrics import mixture_moments


@dataclass(frozen=True, eq=False)
class Step:
    """The answer of one prefix for B rows.

    Attributes:
        stage: index of the prefix's last stage.
        name: of that stage.
        label: (B,) predicted class; None for regression. No temperature moves it.
        probs: (B, C) probabilities at the prefix's temperature; None for regression.
        uncertainty: (B,); None for regression.
        values: (B, D) mean of the members for regression, else None.
        variance: (B, D) of the mixture for members of kind ``"gaussian"``, else None.
        macs: per row, of all stages up to this one (or in the unit of the costs given); None where no costs are known.
        seconds: that these stages and their combination took.
        late: ready only after the deadline; no other prefix was ready either.
    """

    stage: int
    name: str
    label: NDArray[np.int64] | None
    probs: Floats | None
    uncertainty: Floats | None
    values: Floats | None
    variance: Floats | None
    macs: float | None
    seconds: float
    late: bool = False

    def __len__(self) -> int:
        return len(self.probs if self.probs is not None else self.values)  # type: ignore[arg-type]


class Regression:
    """The regression members so far of a batch of rows: their mean, or the moments of their mixture."""

    def __init__(self, kind: Kind, combine: Combine) -> None:
        self.kind, self.combine = kind, combine
        self.members: list[Floats] = []

    def add_(self, members: NDArray) -> None:
        if self.combine == "last":
            self.members = []
        for member in np.asarray(members, np.float64):
            if self.members and member.shape != self.members[0].shape:
                raise ValueError(
                    f"a member has shape {member.shape} where the earlier ones have {self.members[0].shape}: members must agree"
                )
            self.members.append(member)

    def answer(self) -> tuple[Floats, Floats | None]:
        stacked = np.stack(self.members)
        if self.kind == "values":
            return stacked.mean(0), None
        if stacked.shape[-1] % 2:
            raise ValueError(
                f"gaussian members have {stacked.shape[-1]} columns: expected 2·D, the means and then the log-variances"
            )
        means, log_variances = np.split(stacked, 2, axis=-1)
        return mixture_moments(means, np.exp(log_variances))


def joined(steps: Sequence[Step]) -> Step:
    """The rows of several batches, one after the other."""
    first = steps[0]
    if len(steps) == 1:
        return first
    arrays = [field.name for field in fields(Step) if isinstance(getattr(first, field.name), np.ndarray)]
    joined: dict[str, Any] = {name: np.concatenate([getattr(step, name) for step in steps]) for name in arrays}
    return replace(first, seconds=sum(step.seconds for step in steps), **joined)
