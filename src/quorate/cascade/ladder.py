"""Ladder: the order in which the rows of all exits are accepted, and the thresholds of each step of it.

One number has to rule the thresholds of all exits. Where risk is to be small for the coverage, the next row to accept is the one whose
local risk is least, at whatever exit it lies (Neyman & Pearson 1933). Per exit the local risk as a rising function of the uncertainty
is the isotonic regression of the losses (pool adjacent violators: the corners of the lower convex hull of loss against coverage); the
exits' pieces, sorted by local risk, make one path along which every exit's τ only rises:

    coverage   0 ────────────────────────────────────── 1
    exit 0      ▪▪▪▪      ▪▪▪        ▪▪▪▪▪          ▪▪
    exit 1          ▪▪▪▪▪▪    ▪▪▪▪▪▪       ▪▪▪▪▪▪▪▪▪    ▪▪     → (τ_0, τ_1) at every point

It is made on validation data. A row's place on the ladder, the first step that accepts it, is comparable between exits, which a raw
uncertainty is not (averaging lowers 1 − max p), and it is what a certification tests in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from quorate.cascade.cuts import Groups
from quorate.cascade.task import Task
from quorate.combination import Floats

Taus = tuple[float | None, ...]


@dataclass(frozen=True, eq=False)
class Ladder:
    """A path of P steps; after step p all that came before it is accepted too.

    Attributes:
        groups: K, the exits' tie groups.
        accepted: (P+1, K) how many groups of each exit are accepted after so many steps.
        coverage, weight, loss: (P+1,) their sums of cover, weight, weight · loss.
        slope: (P,) local risk of each step: weight · (loss − ρ) per cover.
        ratio: whether risk is divided by the weight accepted.
    """

    groups: Sequence[Groups]
    accepted: NDArray[np.int64]
    coverage: Floats
    weight: Floats
    loss: Floats
    slope: Floats
    ratio: bool

    @property
    def risk(self) -> Floats:
        """(P+1,) risk after each step; 0 before the first."""
        if not self.ratio:
            return self.loss
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.weight > 0, self.loss / self.weight, 0.0)

    def taus(self, step: int) -> Taus:
        """The thresholds after so many steps; None accepts all."""
        return tuple(group.edge(int(n)) for group, n in zip(self.groups, self.accepted[step], strict=True))

    def sequence(self, most: int, begin: int = 1) -> tuple[Taus, ...]:
        """At most about ``most`` vectors of thresholds, evenly spaced in coverage, from step ``begin`` to all."""
        levels = np.linspace(self.coverage[begin], self.coverage[-1], most)
        steps = np.unique(np.append(np.searchsorted(self.coverage[:-1], levels - 1e-12), len(self.coverage) - 1))
        found: list[Taus] = []
        for step in steps[steps >= begin]:
            taus = self.taus(int(step))
            if not found or taus != found[-1]:
                found.append(taus)
        return tuple(found)


def ladder(task: Task, exit_at: NDArray[np.int64], groups: Sequence[Groups], rho: float = 0.0) -> Ladder:
    """The ladder of a task's rows at their exits (N,). ``rho`` is the risk that a mixture's weights are judged at (SCOD)."""
    net = task.weight * (task.exits.at_exit(task.loss, exit_at) - (rho if task.ratio else 0.0))
    loss = task.weight * task.exits.at_exit(task.loss, exit_at)
    pieces: list[tuple[Floats, NDArray[np.int64], Floats, Floats, Floats, int]] = []
    idle = []
    for k, group in enumerate(groups):
        here = exit_at == k
        cover = group.sums(task.cover, here)
        ends = np.flatnonzero(cover > 0)  # rows that count in no coverage, as OOD ones, come with the next that does
        if not len(ends):
            idle.append(k)
            continue
        last = np.append(ends[:-1], group.count - 1)  # and behind the last of them with it
        starts = np.append(0, ends[:-1] + 1)
        merged = [np.add.reduceat(group.sums(values, here), starts) for values in (task.cover, task.weight, loss, net)]
        fitted = isotonic_regression(merged[3] / merged[0], weights=merged[0]).x
        pieces.append((fitted, last + 1, merged[0], merged[1], merged[2], k))
    slope = np.concatenate([piece[0] for piece in pieces])
    exit_of = np.concatenate([np.full(len(piece[0]), piece[5]) for piece in pieces])
    order = np.lexsort((np.concatenate([np.arange(len(piece[0])) for piece in pieces]), exit_of, slope))
    accepted = np.zeros((len(order) + 1, len(groups)), np.int64)
    upto = np.concatenate([piece[1] for piece in pieces])
    for piece in pieces:
        k = piece[5]
        accepted[1:, k] = np.maximum.accumulate(np.where(exit_of[order] == k, upto[order], 0))
    coverage, weight, mass = (
        np.concatenate([[0.0], np.cumsum(np.concatenate([piece[i] for piece in pieces])[order])]) for i in (2, 3, 4)
    )
    for k in idle:  # an exit without rows accepts the same share of all rows
        shares = np.cumsum(groups[k].sums(task.cover))
        accepted[:, k] = np.searchsorted(shares, coverage * (1 - 1e-9)) + (coverage > 0)
    accepted[-1] = [group.count for group in groups]
    for k in idle:  # nobody there counts in the coverage, but OOD rows may be there
        for total, values in ((weight, task.weight), (mass, loss)):
            total += np.append(0.0, np.cumsum(groups[k].sums(values, exit_at == k)))[accepted[:, k]]
    return Ladder(groups, accepted, coverage, weight, mass, slope[order], task.ratio)


def choose(steps: Ladder, task: Task, allowed: NDArray[np.bool_] | None = None) -> int | None:
    """The step that meets the task's target best; None where no step does. ``allowed`` (P+1,) holds further conditions."""
    level = task.goal.level
    if level is None:
        return len(steps.coverage) - 1
    if task.goal.figure == "coverage":
        within = steps.loss <= level * steps.weight * (1 + 1e-12) if steps.ratio else steps.loss <= level
        within &= steps.coverage > 0
        if allowed is not None:
            within &= allowed
        found = np.flatnonzero(within)
        return int(found[-1]) if len(found) else None
    enough = steps.coverage >= level * steps.coverage[-1] - 1e-6 / max(task.inside, 1)
    if allowed is not None:
        enough &= allowed
    found = np.flatnonzero(enough)
    return int(found[0]) if len(found) else None


def within_limits(steps: Ladder, task: Task, exit_at: NDArray[np.int64], limits: dict[int, float]) -> NDArray[np.bool_]:
    """(P+1,) whether, of the rows accepted with each of these labels, at most the limit's share is wrong (costs, if errors have them)."""
    ok = np.ones(len(steps.coverage), bool)
    label = task.exits.at_exit(task.exits.label, exit_at)
    first = first_step(steps, exit_at)
    loss = task.exits.at_exit(task.loss, exit_at)
    for said, limit in limits.items():
        here = (label == said) & (np.arange(len(label)) < task.inside)
        rows = np.cumsum(np.bincount(first[here], minlength=len(ok)))[: len(ok)]
        wrong = np.cumsum(np.bincount(first[here], loss[here], len(ok)))[: len(ok)]
        ok &= wrong <= limit * rows * (1 + 1e-12)
    return ok


def first_step(steps: Ladder, exit_at: NDArray[np.int64]) -> NDArray[np.int64]:
    """After how many steps each row is accepted first (N,)."""
    first = np.empty(len(exit_at), np.int64)
    for k, group in enumerate(steps.groups):
        here = exit_at == k
        of_group = np.searchsorted(steps.accepted[:, k], np.arange(group.count), side="right")
        first[here] = of_group[group.group[here]]
    return first


def on_sequence(sequence: Sequence[Taus], uncertainty: ArrayLike, exit_at: NDArray[np.int64]) -> NDArray[np.int64]:
    """A row's place on a sequence of thresholds (N,): the number of the first vector that accepts it, their count if none does.

    ``uncertainty`` (N,) is that at the row's exit.
    """
    u = np.asarray(uncertainty)
    limits = np.array([[np.inf if tau is None else tau for tau in taus] for taus in sequence])
    place = np.empty(len(u), np.int64)
    for k in range(limits.shape[1]):
        here = exit_at == k
        place[here] = np.searchsorted(limits[:, k], u[here])
    return place
