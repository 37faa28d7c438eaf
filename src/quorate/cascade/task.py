"""Task: what a cascade is chosen for, as weights of the rows and a loss per exit and row; selective, OOD and both (SCOD) are one form.

With a(n) = 1 where row n is accepted at its exit k(n), weights of coverage c, of risk w and of traffic v:

    coverage = Σ c a        risk = Σ w ℓ_k a / Σ w a  (fpr, accuracy, nll: not divided)        cost = Σ v · Σ_{j ≤ k} cost_j

====================  ======================================  ==========  ==========================  =================
target                ℓ                                       c           w                           v
====================  ======================================  ==========  ==========================  =================
coverage@risk, …      1[wrong], or the cost of the error      1/N         1/N                         1/N
the same with OOD     the same on ID, β on OOD (SCOD)         1/N on ID   α/N on ID, (1−α)/N′ on OOD  as w
fpr@tpr               0 on ID, 1 on OOD                       1/N on ID   1/N′ on OOD                 1/N on ID
accuracy, nll         1[wrong] or its cost; −log p            1/N         1/N                         1/N
====================  ======================================  ==========  ==========================  =================

Sources: Xia & Bouganis 2023 (arXiv 2303.08010) and 2022 (arXiv 2207.07506) for SCOD. α = N / (N + N′) unless it is given. Several OOD
sets weigh as one, by their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade.exits import Exits
from quorate.cascade.target import Target
from quorate.combination import Floats


class Figures(NamedTuple):
    """What a policy comes to: the target's figure, coverage (TPR), risk (FPR, error, NLL; NaN if nothing is accepted), cost per row."""

    figure: float
    coverage: float
    risk: float
    cost: float


@dataclass(frozen=True, eq=False)
class Task:
    """A target on the rows of a chain's exits, ID rows first.

    Attributes:
        goal: the target.
        exits: K exits on N rows.
        loss: (K, N) cost ≥ 0 of accepting the exit's answer.
        cover, weight, traffic: (N,) the weights c, w, v above.
        ratio: whether risk is divided by the weight accepted.
        inside: how many of the rows are in-distribution.
    """

    goal: Target
    exits: Exits
    loss: Floats
    cover: Floats
    weight: Floats
    traffic: Floats
    ratio: bool
    inside: int

    @property
    def forced(self) -> bool:
        """Whether everything is accepted."""
        return self.goal.level is None

    def rows(self, index: NDArray) -> Task:
        """Some of the rows, their weights made to sum to what they did."""
        kept = np.zeros(self.exits.n, bool)
        kept[index] = True
        at = np.flatnonzero(kept)

        def scaled(weights: Floats) -> Floats:
            part = weights[at]
            return np.asarray(part * (weights.sum() / total) if (total := part.sum()) else part)

        return replace(
            self, exits=self.exits.rows(at), loss=self.loss[:, at], cover=scaled(self.cover), weight=scaled(self.weight),
            traffic=scaled(self.traffic), inside=int(kept[: self.inside].sum()),
        )  # fmt: skip

    def figures(self, exit_at: NDArray[np.int64], accepted: NDArray[np.bool_]) -> Figures:
        """What exits (N,) and acceptances (N,) come to."""
        loss = self.exits.at_exit(self.loss, exit_at)
        coverage = float(self.cover[accepted].sum())
        wrong = float((self.weight * loss)[accepted].sum())
        below = float(self.weight[accepted].sum()) if self.ratio else 1.0
        risk = wrong / below if below else np.nan
        cost = float((self.traffic * self.exits.spent[exit_at]).sum())
        figure = {"coverage": coverage, "risk": risk, "fpr": risk, "accuracy": 1.0 - risk, "nll": risk}[self.goal.figure]
        return Figures(figure, coverage, risk, cost)

    def better(self, one: float, other: float) -> bool:
        """Whether a figure is better than another."""
        return one > other if self.goal.figure in ("coverage", "accuracy") else one < other


def error_losses(exits: Exits, costs: ArrayLike | None = None) -> Floats:
    """(K, N) 1 where an exit's label is wrong, or the cost of its error.

    ``costs`` (C,): of an error on a row of this true class; (C, C): of saying column c of a row of class r.

    Raises:
        ValueError: rows without labels, costs of another shape, negative or not finite, classes beyond them.
    """
    errors = exits.errors
    if costs is None:
        return errors.astype(np.float64)
    table = np.asarray(costs, np.float64)
    truth = exits.truth
    assert truth is not None
    most = int(max(truth.max(), exits.label.max()))
    right = table.ndim == 1 or (table.ndim == 2 and table.shape[0] == table.shape[1])
    if not right or len(table) <= most or not np.isfinite(table).all() or (table < 0).any():
        raise ValueError(
            f"error costs of shape {table.shape}: expected finite numbers ≥ 0, one per true class or a square table (true, said), for at "
            f"least {most + 1} classes"
        )
    if table.ndim == 1:
        return np.asarray(errors * table[truth])
    return np.asarray(table[truth, exits.label])


def make_task(
    goal: Target,
    inside: Exits,
    outside: Mapping[str, Exits] | None = None,
    error_costs: ArrayLike | None = None,
    beta: float = 1.0,
    alpha: float | None = None,
) -> Task:
    """The task of a target.

    Args:
        goal: the parsed target.
        inside: exits on in-distribution rows, labelled unless the target is ``fpr@tpr``; with ``loss`` for ``nll``.
        outside: the same exits on OOD sets; needed for ``fpr@tpr``, SCOD for the selective targets, refused for the others.
        error_costs: see :func:`error_losses`; by default every error costs 1.
        beta: cost of an accepted OOD row, for SCOD.
        alpha: share of ID rows in the mix, for SCOD.

    Raises:
        ValueError: as :func:`error_losses`; an OOD target without OOD rows, OOD rows or costs where they play no part, a bad β or α, an
            infinite NLL.
    """
    sets = list((outside or {}).values())
    if goal.figure == "fpr" and not sets:
        raise ValueError(f"target {goal} needs OOD rows to count among the accepted: give ood={{name: Outputs}}")
    if goal.level is None and sets:
        raise ValueError(f"target {goal} accepts everything, OOD rows play no part: leave ood out")
    if goal.figure in ("nll", "fpr") and error_costs is not None:
        raise ValueError(f"target {goal} knows no errors: leave error_costs out, or take accuracy or coverage@risk")
    if not (np.isfinite(beta) and beta >= 0) or (alpha is not None and not 0 < alpha < 1):
        raise ValueError(f"beta={beta}, alpha={alpha}: expected a finite cost ≥ 0 and a share between 0 and 1, or None")
    n, m = inside.n, sum(part.n for part in sets)
    if goal.figure == "nll":
        if inside.loss is None:
            raise ValueError("target nll needs scores of every class and labels")
        loss = inside.loss
        endless = np.flatnonzero(~np.isfinite(loss).all(0))
        if len(endless):
            raise ValueError(
                f"the true class has probability 0 in {len(endless)} rows, first {endless[:3].tolist()}, so that the NLL is infinite: give "
                "logits, or take accuracy"
            )
    elif goal.figure == "fpr":
        loss = np.zeros((inside.count, n))
    else:
        loss = error_losses(inside, error_costs)
    on_id, on_ood = np.ones(n), np.ones(m)
    cover = np.concatenate([on_id / n, np.zeros(m)])
    check_same_chain([inside, *sets])
    exits = inside if not sets else Exits.concat([inside, *sets])
    if goal.figure == "fpr":
        weight = np.concatenate([np.zeros(n), on_ood / m])
        loss = np.concatenate([loss, np.ones((inside.count, m))], 1)
        return Task(goal, exits, loss, cover, weight, cover, False, n)
    if not sets:
        return Task(goal, exits, loss, cover, cover, cover, goal.level is not None, n)
    share = n / (n + m) if alpha is None else alpha
    weight = np.concatenate([on_id * share / n, on_ood * (1 - share) / m])
    loss = np.concatenate([loss, np.full((inside.count, m), beta)], 1)
    return Task(goal, exits, loss, cover, weight, weight, True, n)


def check_same_chain(parts: Sequence[Exits]) -> None:
    """A ValueError unless all have the same stages."""
    if len({part.names for part in parts}) > 1:
        raise ValueError(f"chains {[list(part.names) for part in parts]}: expected the same stages for all rows")
