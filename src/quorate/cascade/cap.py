"""Cost cap: a hard limit on the mean cost per row, and who goes on when not all can be paid for.

Every row that arrives brings ``cap``; the first stage is always paid. After stage k the rows that would go on cost c_{k+1} each, and only
as many do as the account holds: at any moment Σ cost ≤ cap · rows since the start, so that rows which left early pay for later ones.

First go those nearest to where a decision can change: |U − m|, with m the policy's ``centre`` of the stage, else its τ, else the middle of
its window (an open end is infinitely far: with (low, None) the least sure go first). Of a stage that sends rows on at random, those
that would also go on at a lower rate. Equal ones in the order of rows. Whoever stays behind keeps the stage's own answer.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quorate.cascade.lock import Lock
from quorate.cascade.policy import StagePolicy
from quorate.cascade.random_routing import uniform
from quorate.combination import Floats


class Account:
    """What rows have brought and cost since the start; may be used by several threads.

    Raises:
        ValueError: a cap that is not a finite number, or below what the first stage costs.
    """

    def __init__(self, cap: float, costs: Sequence[float]) -> None:
        given: object = cap
        if isinstance(given, bool) or not isinstance(given, numbers.Real) or not math.isfinite(given):
            raise ValueError(f"cap={cap!r}: expected a finite mean cost per row, or None for no cap")
        if cap < costs[0]:
            raise ValueError(
                f"cap={cap:g} is below {costs[0]:g}, what the first stage costs every row: expected at least that much"
            )
        self.cap: float = float(cap)
        self.costs: tuple[float, ...] = tuple(costs)
        self.rows: int = 0
        self.spent: float = 0.0
        self._lock = Lock()

    def arrive_(self, rows: int) -> None:
        """New rows, each of which pays for the first stage."""
        with self._lock:
            self.rows += rows
            self.spent += rows * self.costs[0]

    def pay_(self, rows: int, k: int) -> int:
        """How many of the rows stage k can be paid for; these are."""
        cost = self.costs[k]
        with self._lock:
            limit = self.cap * self.rows
            count = rows if cost == 0 else int(min(max((limit - self.spent) // cost, 0), rows))
            while count and cost and self.spent + count * cost > limit:
                count -= 1
            self.spent += count * cost
            return count


def nearest(stage: StagePolicy, u: Floats, rows: NDArray[np.int64], k: int, count: int) -> NDArray[np.bool_]:
    """Which ``count`` of the rows (B,) go on first (B,)."""
    if stage.rate is not None:
        far = uniform(stage.seed, k, rows)
    else:
        low, high = stage.window or (None, None)
        middle = stage.tau if stage.centre is None else stage.centre
        if middle is not None:
            far = np.abs(u - middle)
        elif high is None:
            far = -u
        else:
            far = u if low is None else np.abs(u - (low + (high - low) / 2))
    chosen = np.zeros(len(u), bool)
    chosen[np.lexsort((rows, far))[:count]] = True
    return chosen
