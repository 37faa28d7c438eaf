"""Sweeps: the windows of all stages that are worth most at a price of cost, stage by stage from the back to the front.

With the windows of all other stages as they are, what a row is worth if it goes on from stage k is known, and the best window and
threshold of stage k are found exactly (:func:`quorate.cascade.cuts.best_cut`). So every step is a coordinate ascent on

    Σ_n [ worth of row n's answer ] − price · Σ_n v(n) · (cost of the stages it went through)

which never falls; sweeps end when it stays. With two stages one sweep is the optimum. Prices are searched by bisection: cost falls as
the price rises, and every solution is the best for the cost that it has (Everett 1963, Operations Research 11).

Shapes: K exits, N rows; accept, reject (K, N) or broadcast to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from quorate.cascade.cuts import Cut, Groups, best_cut, best_cut_within
from quorate.cascade.policy import Window
from quorate.combination import Floats

SWEEPS = 6
ALL_ON = -1  # the stop of a cut that nobody has chosen yet: everything goes on


class Cuts(NamedTuple):
    """A cut per exit and the worth of all rows under them."""

    cuts: tuple[Cut, ...]
    value: float

    def windows(self, groups: Sequence[Groups]) -> list[Window | None]:
        """K−1 windows."""
        return [group.window(cut.start, cut.stop) for cut, group in zip(self.cuts[:-1], groups, strict=False)]

    def stage(self, groups: Sequence[Groups]) -> NDArray[np.int64]:
        """The stage of exit (N,)."""
        exit_at = np.zeros(len(groups[0].group), np.int64)
        going = np.ones(len(exit_at), bool)
        for cut, group in zip(self.cuts[:-1], groups, strict=False):
            going &= _on(cut, group)
            exit_at += going
        return exit_at


def sweep(
    accept: Floats,
    reject: Floats,
    fee: Floats,
    groups: Sequence[Groups],
    forced: bool = False,
    single: bool = False,
    begin: Sequence[Cut] | None = None,
    sweeps: int = SWEEPS,
) -> Cuts:
    """The cuts at which repeated sweeps end.

    Args:
        accept, reject: (K, N) what accepting and rejecting each row at each exit is worth.
        fee: (K, N) what each stage costs for each row, in units of worth.
        groups: K, the rows of every exit by uncertainty.
        forced: nothing is rejected.
        single: windows without an upper end.
        begin: cuts to begin with, as those of a neighbouring price; by default all rows reach every stage.
        sweeps: most sweeps.
    """
    count = len(groups)
    cuts = list(begin) if begin is not None else [Cut(0, 0, ALL_ON, 0.0)] * count
    last = -np.inf
    for _ in range(sweeps):
        reached = _reached(cuts, groups)
        value = np.zeros(0)
        for k in reversed(range(count)):
            group = groups[k]
            gain = group.sums(accept[k] - reject[k], reached[k])
            if k == count - 1:
                rest, onward = np.full(group.count, -np.inf), None
            else:
                onward = value - fee[k + 1]
                rest = group.sums(onward - reject[k], reached[k])
            cuts[k] = _last(gain, forced) if onward is None else best_cut(gain, rest, forced, single)
            value = np.where(group.group < cuts[k].accept, accept[k], reject[k])
            if onward is not None:
                value = np.where(_on(cuts[k], group), onward, value)
        total = float((value - fee[0]).sum())
        if total <= last + 1e-12 * max(abs(last), 1e-12):
            break
        last = total
    return Cuts(tuple(cuts), total)


def sweep_within(
    accept: Floats,
    reject: Floats,
    fee: Floats,
    groups: Sequence[Groups],
    limit: float,
    begin: Sequence[Cut],
    forced: bool = False,
    single: bool = False,
    sweeps: int = 2,
) -> Cuts:
    """Cuts that are worth most while the fees of all rows sum to at most ``limit``, stage by stage from ``begin``, which keeps it.

    Fees play no other part. Prices alone find only what lies on the convex hull of cost and worth; here each step is exact between it
    too. Arguments as in :func:`sweep`; O(G²) per stage, for coarse groups.
    """
    cuts, value = list(begin), np.zeros(0)
    for _ in range(sweeps):
        before, reached = list(cuts), _reached(cuts, groups)
        paid = np.zeros(accept.shape[1])
        for k in reversed(range(len(groups))):
            group = groups[k]
            gain = group.sums(accept[k] - reject[k], reached[k])
            if k == len(groups) - 1:
                cuts[k] = _last(gain, forced)
                value = np.where(group.group < cuts[k].accept, accept[k], reject[k])
                continue
            onward, further = value, fee[k + 1] + paid
            spent = sum(float(fee[j].sum(where=True if on is None else on)) for j, on in enumerate(reached[: k + 1]))
            rest, cost = (group.sums(each, reached[k]) for each in (onward - reject[k], further))
            cuts[k] = best_cut_within(gain, rest, cost, max(limit - spent, 0.0), forced, single)
            on = _on(cuts[k], group)
            value = np.where(on, onward, np.where(group.group < cuts[k].accept, accept[k], reject[k]))
            paid = np.where(on, further, 0.0)
        if cuts == before:
            break
    return Cuts(tuple(cuts), float(value.sum()))


def _reached(cuts: Sequence[Cut], groups: Sequence[Groups]) -> list[NDArray[np.bool_] | None]:
    """Which rows (N,) get to each stage; None for all."""
    reached: list[NDArray[np.bool_] | None] = [None]
    for cut, group in zip(cuts[:-1], groups, strict=False):
        on = _on(cut, group)
        reached.append(on if reached[-1] is None else reached[-1] & on)
    return reached


def _last(gain: Floats, forced: bool) -> Cut:
    """The last exit accepts up to the best threshold; nobody goes on."""
    groups = len(gain)
    sums = np.concatenate([[0.0], np.cumsum(gain)])
    accepted = groups if forced else int(sums.argmax())
    return Cut(accepted, 0, 0, float(sums[accepted]))


def _on(cut: Cut, group: Groups) -> NDArray[np.bool_]:
    if cut.stop == ALL_ON:
        return np.ones(len(group.group), bool)
    return (group.group >= cut.start) & (group.group < cut.stop)


Solution = TypeVar("Solution")


def at_most(
    limit: float, solve: Callable[[float], Solution], spent: Callable[[Solution], float], highest: float, rounds: int = 16
) -> Solution | None:
    """The solution of least price whose spending is at most ``limit``, by bisection of the price on a logarithmic scale.

    ``solve(price)``, ``spent(solution)`` falls with the price; None where not even ``highest`` spends so little.
    """
    free = solve(0.0)
    if spent(free) <= limit:
        return free
    best = solve(highest)
    if spent(best) > limit:
        return None
    low, high = highest * 1e-9, highest
    for _ in range(rounds):
        price = float(np.sqrt(low * high))
        found = solve(price)
        if spent(found) <= limit:
            best, high = found, price
        else:
            low = price
    return best
