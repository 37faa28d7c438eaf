"""The loss of a round as one object: its settings, and what a batch of views has to bring.

Source: :mod:`quorate.distil.losses`, put together as

    round 1        distillation: τ² KL + λ mean (f − g)², or for regression squared or Huber's errors
    round t > 1    barrier, or (2/η) times the running potential, of (f − g, S)  +  κ τ² KL(softmax(g/τ) ‖ softmax(F_t/τ)),   κ = kl_weight

The factor makes the potential the squared error (S + d)², of round 1's scale, where η|S + d| is small: (2/η²)(cosh u − 1) ≈ (u/η)².
S = S(x) is that of the very view, summed over the frozen students, so a view that is not in the set is weighed like one that is.

Shapes: f, g, S and the mean of the students before (B, L); the loss is a scalar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from quorate._validation import check_known
from quorate.distil._loss_checks import check_positive, check_rows, check_same, check_share, fixed_bound, full, is_number
from quorate.distil.losses import RunningPotential, distillation, log_barrier, mass_weights, matching, prefix_kl, row_centred

KINDS = ("barrier", "potential")
TASKS = ("classification", "regression")
NORMALISE = ("batch", "set")


@dataclass(frozen=True)
class LossSettings:
    """What the students of the rounds are trained for.

    Attributes:
        kind: ``"barrier"`` or ``"potential"``, from the second round on.
        gamma: γ > 0 of the barrier.
        normalise: the barrier's weights have mean 1 over the ``"batch"`` or over the ``"set"``. score_cap, uniform_share: their shaping,
            see :func:`mass_weights`.
        momentum: of the potential's running normaliser, in (0, 1].
        kl_weight: ≥ 0, of :func:`prefix_kl`, added from the second round on; classification only.
        tau: temperature τ > 0 of every KL. mse_weight: λ ≥ 0 of the first round; both classification only.
        huber: δ of Huber's loss in the first round of a regression; None for squared errors.
    """

    kind: Literal["barrier", "potential"] = "potential"
    gamma: float = 1.0
    normalise: Literal["batch", "set"] = "batch"
    score_cap: float | None = None
    uniform_share: float = 0.0
    momentum: float = 0.1
    kl_weight: float = 0.0
    tau: float = 4.0
    mse_weight: float = 1.0
    huber: float | None = None

    def __post_init__(self) -> None:
        check_known("loss", [self.kind], list(KINDS))
        check_known("normalise", [self.normalise], list(NORMALISE))
        for name in ("gamma", "tau", "score_cap", "huber"):
            if getattr(self, name) is not None or name in ("gamma", "tau"):
                check_positive(getattr(self, name), name)
        for name in ("kl_weight", "mse_weight"):
            if not is_number(value := getattr(self, name)) or value < 0:
                raise ValueError(f"{name}={value!r}: expected a finite number ≥ 0")
        check_share(self.momentum, "momentum")
        if not is_number(self.uniform_share) or not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share={self.uniform_share!r}: expected a share in [0, 1]")
        if self.kind == "barrier":
            self._check_unused(("momentum",), "kind='potential'")
        else:
            self._check_unused(("gamma", "normalise", "score_cap", "uniform_share"), "kind='barrier'")
        if self.normalise == "set":
            self._check_unused(("score_cap",), "normalise='batch'")

    def check_task(self, task: str) -> None:
        """ValueError for an unknown task, or for a setting that is of the other one."""
        check_known("task", [task], list(TASKS))
        names = ("huber",) if task == "classification" else ("kl_weight", "tau", "mse_weight")
        self._check_unused(names, f"task={'regression' if task == 'classification' else 'classification'!r}")

    def _check_unused(self, names: tuple[str, ...], only: str) -> None:
        for name in names:
            if (value := getattr(self, name)) != (default := LossSettings.__dataclass_fields__[name].default):
                raise ValueError(f"{name}={value!r} is for {only} only: set that, or leave {name} at {default!r}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> LossSettings:
        """Settings from names and values; an unknown name is a ValueError that gives the nearest one."""
        check_known("setting of the loss", values, [field.name for field in fields(cls)])
        return cls(**values)


class RoundLoss:
    """The whole loss of one round, from what a batch of views gives: f, g, S(x) and the mean of the students before.

    Args:
        settings: the loss. outputs: L. task: ``"classification"`` (f and g are row-centred here, S must be of such) or ``"regression"``.
        eta: η of the game. bound: B, of the outputs, for the barrier. limit: G, of |f − g|; each a number or (L,).
        log_normaliser, samples: log C and N of the game, for ``normalise="set"``. joint: of a joint game.

    Raises:
        ValueError: settings that the task does not have, numbers out of range, batches whose shapes do not agree.
    """

    def __init__(
        self,
        settings: LossSettings,
        *,
        outputs: int,
        task: Literal["classification", "regression"],
        eta: float,
        bound: ArrayLike | Tensor,
        limit: ArrayLike | Tensor,
        log_normaliser: ArrayLike | Tensor | None = None,
        samples: int | None = None,
        joint: bool = False,
    ) -> None:
        settings.check_task(task)
        self.settings, self.task, self.eta, self.joint, self.samples = settings, task, check_positive(eta, "eta"), joint, samples
        self.bound, self.limit = (fixed_bound(value, name, outputs) for value, name in ((bound, "bound"), (limit, "limit")))
        if {log_normaliser is not None, samples is not None} != {settings.normalise == "set"}:
            raise ValueError(
                f"normalise={settings.normalise!r} with log_normaliser {'not ' if log_normaliser is None else ''}given and {samples=}: "
                "give both for 'set', none otherwise"
            )
        self.log_normaliser = None if log_normaliser is None else torch.as_tensor(log_normaliser)
        self.running: RunningPotential | None = None
        if settings.kind == "potential":
            self.running = RunningPotential(outputs, eta, bound=self.limit, momentum=settings.momentum, joint=joint)

    def parts(
        self, f: Tensor, g: Tensor, s: Tensor | None = None, prefix: Tensor | None = None, count: int = 0, *, update: bool = True
    ) -> dict[str, Tensor]:
        """The terms by name, weighted: they sum to the loss. Arguments as of a call."""
        settings = self.settings
        classes = self.task == "classification"
        if count == 0:
            if classes:
                return {"distillation": distillation(f, g, tau=settings.tau, mse_weight=settings.mse_weight)}
            return {"distillation": matching(f, g, huber=settings.huber)}
        if s is None:
            raise ValueError(f"count={count} without s: expected S (rows, outputs), the summed errors of the students before")
        f, g = check_rows(f, "f"), full(g)
        check_same(f, g, "g")
        d = row_centred(f) - row_centred(g).detach() if classes else f - g.detach()
        check_same(d, s, "s")
        if self.running is not None:
            terms = {"potential": 2 / self.eta * self.running(d, s, update=update)}
        else:
            weights = mass_weights(
                s,
                self.eta,
                log_normaliser=self.log_normaliser,
                samples=self.samples,
                joint=self.joint,
                score_cap=settings.score_cap,
                uniform_share=settings.uniform_share,
            )
            terms = {
                "barrier": log_barrier(d, s <= 0, self.bound, gamma=settings.gamma, reward_limit=self.limit, weights=weights)
            }
        if settings.kl_weight > 0:
            terms["kl"] = settings.kl_weight * prefix_kl(g, prefix, count, f, settings.tau)
        return terms

    def __call__(
        self, f: Tensor, g: Tensor, s: Tensor | None = None, prefix: Tensor | None = None, count: int = 0, *, update: bool = True
    ) -> Tensor:
        """The loss of a batch.

        Args:
            f, g: student's and teacher's outputs (B, L). s: S(x) (B, L) of the students before; None in the first round.
            prefix: their mean outputs (B, L), needed for ``kl_weight`` > 0. count: how many they are, t − 1; 0 is the first round.
            update: False for rows that are not trained on: the running normaliser stays.
        """
        return torch.stack(list(self.parts(f, g, s, prefix, count, update=update).values())).sum()

    def state_dict(self) -> dict[str, Tensor]:
        """What an exact resume needs: the potential's running normaliser, nothing for the barrier."""
        return {} if self.running is None else self.running.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of a loss of the same settings."""
        if self.running is not None:
            self.running.load_state_dict(state)
        elif state:
            raise ValueError(f"the state has {', '.join(state)}: expected nothing, the barrier keeps no state")
