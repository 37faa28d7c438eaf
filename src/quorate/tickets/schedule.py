"""When masks move and how far: drop rates over a training, and the timeline of an EDST run.

Sources: Liu et al. 2022 (arXiv 2106.14568), §3.2 and appendix A; rates, Evci et al. 2020 (arXiv 1911.11134), §3, and Dettmers & Zettlemoyer
2019 (arXiv 1907.04840). With p in [0, 1] the share of the phase that is over:

    constant    rate
    cosine      0.005 + (rate − 0.005) · (1 + cos πp) / 2
    rigl        rate · (1 + cos πp) / 2

An EDST run of E epochs explores for t_ex, then refines M times for (E − t_ex) / M epochs. At the end of every refinement a ticket is taken,
and the run escapes, but for the last. The learning rate is its peak while exploring; a refinement is cut into equal parts with a
factor each, in the paper 0.1 and 0.01, and so jumps back up at every escape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

Decay = Literal["constant", "cosine", "rigl"]
LEAST = 0.005


def drop_rate(decay: Decay, rate: float, progress: float) -> float:
    """The share of a layer's live weights to be dropped when so much of the phase, in [0, 1], is over.

    Raises:
        ValueError: another decay, a rate outside of [0, 1] (cosine: below 0.005), or a progress outside of [0, 1].
    """
    if decay not in get_args(Decay):
        raise ValueError(f"decay={decay!r}: expected one of {', '.join(get_args(Decay))}")
    least = LEAST if decay == "cosine" else 0.0
    if not least <= rate <= 1:
        raise ValueError(f"rate={rate!r}: expected a share of the live weights in [{least:g}, 1]")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress={progress!r}: expected a share of the phase in [0, 1]")
    if decay == "constant":
        return rate
    return least + (rate - least) * (1 + math.cos(math.pi * progress)) / 2


def check_factors(factors: object) -> tuple[float, ...]:
    """Factors of the learning rate as numbers; ValueError unless each is finite and > 0, and there is one."""
    given = list(factors) if isinstance(factors, Sequence) and not isinstance(factors, str) else []
    numbers = [f for f in given if isinstance(f, int | float) and not isinstance(f, bool) and math.isfinite(f) and f > 0]
    if not given or len(numbers) < len(given):
        raise ValueError(f"factors={factors!r}: expected a finite factor > 0 of the learning rate for each part of a refinement")
    return tuple(float(factor) for factor in numbers)


class Event(NamedTuple):
    """What happens at the end of an epoch, counted from 1: a ``"ticket"`` is taken, or the run ``"escape"``\\ s; of which member."""

    epoch: int
    kind: Literal["ticket", "escape"]
    member: int


@dataclass(frozen=True)
class Timeline:
    """The epochs of an EDST run.

    Attributes:
        epochs: E, of the whole run.
        members: M, how many tickets.
        exploration: t_ex, epochs before the first refinement; None: a third of the run, and what M equal refinements leave of the rest.
        factors: of the learning rate in the equal parts of a refinement, which may end inside an epoch.

    Raises:
        ValueError: numbers that are no integers, a phase without an epoch, refinements that are not whole epochs, more parts of a
            refinement than it has epochs, or a factor that is not a finite number > 0.
    """

    epochs: int
    members: int
    exploration: int | None = None
    factors: Sequence[float] = (0.1, 0.01)

    def __post_init__(self) -> None:
        for name in ("epochs", "members", "exploration"):
            value = getattr(self, name)
            if not (isinstance(value, int) and not isinstance(value, bool)) and (name != "exploration" or value is not None):
                raise ValueError(f"{name}={value!r}: expected an integer")
        if self.members < 1:
            raise ValueError(f"members={self.members}: expected at least 1 ticket")
        object.__setattr__(self, "factors", check_factors(self.factors))
        if self.exploration is None:
            refinement = self.epochs * 2 // 3 // self.members
            if not refinement:
                raise ValueError(
                    f"epochs={self.epochs} with a third for the exploration leave {max(self.epochs * 2 // 3, 0)} for {self.members} "
                    f"refinements: expected at least one each, epochs ≥ {-(-self.members * 3 // 2)}"
                )
            object.__setattr__(self, "exploration", self.epochs - refinement * self.members)
        assert self.exploration is not None
        if self.exploration < 1:
            raise ValueError(f"exploration={self.exploration}: expected at least one epoch before the first refinement")
        rest = self.epochs - self.exploration
        if rest < self.members:
            raise ValueError(
                f"epochs={self.epochs} with exploration={self.exploration} leave {max(rest, 0)} for {self.members} refinements: expected "
                f"at least one each, epochs ≥ {self.exploration + self.members}"
            )
        if rest % self.members:
            below = self.exploration + rest // self.members * self.members
            raise ValueError(
                f"epochs={self.epochs} with exploration={self.exploration} leave {rest} for {self.members} equal refinements: expected "
                f"epochs={below} or {below + self.members}, or an exploration of {self.epochs - rest // self.members * self.members}"
            )
        if len(self.factors) > self.refinement:
            raise ValueError(
                f"a refinement of {self.refinement} epochs can't have {len(self.factors)} parts: expected as many epochs as learning-rate "
                "factors, or more"
            )

    @property
    def refinement(self) -> int:
        """Epochs of one refinement."""
        assert self.exploration is not None
        return (self.epochs - self.exploration) // self.members

    @property
    def ends(self) -> list[int]:
        """How many epochs are over at the end of each phase: of the exploration, then of every refinement."""
        assert self.exploration is not None
        return [self.exploration + m * self.refinement for m in range(self.members + 1)]

    def events(self) -> list[Event]:
        """What happens, in order: M tickets, and M − 1 escapes, each at the end of the epoch at which the ticket was taken."""
        found = []
        for m, end in enumerate(self.ends[1:]):
            found += [Event(end, "ticket", m), Event(end, "escape", m)]
        return found[:-1]

    def phase(self, epoch: int) -> tuple[int, int, int]:
        """Of an epoch from 0: (member that is refined, or −1 while exploring; the phase's first epoch; the epochs over at its end).

        Those after the run belong to its last phase.
        """
        ends = self.ends
        member = next((m for m, end in enumerate(ends) if epoch < end), self.members) - 1
        return member, 0 if member < 0 else ends[member], ends[member + 1]

    def lr_factor(self, epoch: float | Fraction) -> float:
        """The factor on the peak learning rate when so many epochs are over; a Fraction is exact where a part ends inside an epoch."""
        member, first, end = self.phase(int(epoch))
        if member < 0:
            return 1.0
        part = int((epoch - first) * len(self.factors) / (end - first))
        return self.factors[min(part, len(self.factors) - 1)]
