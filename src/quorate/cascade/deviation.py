"""Windows by deviation: the fewest rows sent on so that the cascade decides as the full ensemble does. Needs no labels.

    D = 1[ the exit's decision, or its label where both accept, differs from the full ensemble's ]

Source: specification's D, after Xia & Bouganis 2023 (arXiv 2303.08010), §3: the window is there to keep the full ensemble's decisions. With
two stages rows that go on do not deviate, so that with the groups of :mod:`quorate.cascade.cuts`, α_g and β_g the deviations of group g
if it is accepted or rejected at the first exit, and at most m deviations allowed, each case is one sorted search:

    t ≤ i ≤ j:  F(i) = min_{t ≤ i} [ A(t) + B(i) − B(t) ],   the least j with F(i) + B(G) − B(j) ≤ m
    i ≤ j ≤ t:  E(j) = min_{t ≥ j} [ A(t) − A(j) + B(G) − B(t) ],   the greatest i with A(i) + E(j) ≤ m

(A, B prefix sums of α, β; F rises, E falls): O(N log N) for the sort and O(G log G) after it, and the optimum over windows *and* first
thresholds.
With more stages D is not monotone in the windows (an early exit may be right where a middle one is wrong); windows are found by sweeps at
a price and then narrowed one by one, each exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quorate.cascade.cuts import Cut, Groups, narrowest
from quorate.cascade.exits import Exits
from quorate.cascade.policy import Window
from quorate.cascade.sweeps import Cuts, sweep
from quorate.combination import Floats

NARROWED = 3  # times that every window is narrowed
SEARCHED = 30_000  # rows that the price is searched on with three stages or more, evenly taken
BINS = 512  # groups of neighbours there
TRIES = 8  # rising prices, until all rows together deviate as little as they may


class Imitation(NamedTuple):
    """Windows (K−1) and thresholds (K) that imitate the full ensemble; the share of rows that deviate, and mean cost per row."""

    windows: tuple[Window | None, ...]
    taus: tuple[float | None, ...]
    deviation: float
    cost: float


def deviations(exits: Exits, exit_at: NDArray[np.int64], taus: Sequence[float | None], labels: bool = True) -> NDArray[np.bool_]:
    """D of every row (N,) that leaves at these exits, against the last exit under its τ.

    ``labels=False``: decisions alone count, as for OOD detection, where nobody asks for the class.
    """
    accepted = exits.accepted(exit_at, taus)
    full = exits.accepted(np.full(exits.n, exits.count - 1), taus)
    differ = accepted != full
    if labels:
        differ |= accepted & full & (exits.at_exit(exits.label, exit_at) != exits.label[-1])
    return np.asarray(differ)


def imitate(
    exits: Exits,
    tau: float | None,
    allowed: float,
    labels: bool = True,
    single: bool = False,
    first: float | None = None,
) -> Imitation:
    """The cheapest windows under which at most the share ``allowed`` of the rows deviates from the full ensemble.

    Args:
        exits: K ≥ 2 exits on N rows; labels are not needed.
        tau: the full ensemble's threshold; None: it accepts all.
        allowed: in [0, 1].
        labels: whether another label is a deviation.
        single: single-threshold cascades only.
        first: a threshold that the first exit keeps where it decides the same rows; by default midway in its window.

    Raises:
        ValueError: fewer than two exits, or a share outside [0, 1].
    """
    if exits.count < 2:
        raise ValueError("one stage has no window: give two or more stages")
    if not 0 <= allowed <= 1:
        raise ValueError(f"deviation={allowed}: expected a share of the rows in [0, 1]")
    full = np.ones(exits.n, bool) if tau is None else exits.uncertainty[-1] <= tau
    forced = tau is None
    rejecting = full.astype(np.float64)
    accepting = np.array([(~full | (label != exits.label[-1])) if labels else ~full for label in exits.label], np.float64)
    groups = [Groups.of(u) for u in exits.uncertainty]
    most = int(np.floor(allowed * exits.n + 1e-9))
    if exits.count == 2:
        cut = _two_stages(
            groups[0].sums(accepting[0]), groups[0].sums(rejecting), groups[0].sums(np.ones(exits.n)), most, forced, single
        )
        cuts = [cut, Cut(0, 0, 0, 0.0)]
    else:
        cuts = _many_stages(exits, accepting, rejecting, groups, most, forced, single)
    windows = tuple(group.window(cut.start, cut.stop) for cut, group in zip(cuts[:-1], groups, strict=False))
    limits = [None if forced else group.edge(cut.accept) for cut, group in zip(cuts[:-1], groups, strict=False)]
    if first is not None and not forced and _same(groups[0], cuts[0], first):
        limits[0] = first
    taus = (*limits, tau)
    exit_at = exits.stage(windows)
    differing = float(deviations(exits, exit_at, taus, labels).mean())
    return Imitation(windows, taus, differing, float(exits.spent[exit_at].mean()))


def _two_stages(accept: Floats, reject: Floats, rows: Floats, most: int, forced: bool, single: bool) -> Cut:
    """The cut that sends fewest rows on with at most so many deviations, from sums per group; its threshold in the window if it can.

    Of those that send equally few on, one with the fewest deviations.
    """
    a, b, n = (np.concatenate([[0.0], np.cumsum(values)]) for values in (accept, reject, rows))
    places = np.arange(len(a))
    end = len(places) - 1
    found: list[tuple[float, float, int, int, int]] = []
    if forced:
        least, at = a, places
    else:
        least = np.minimum.accumulate(a - b)
        at = np.maximum.accumulate(np.where(a - b == least, places, 0))
        least = least + b
    if single:
        start = int(np.flatnonzero(least <= most)[-1])
        return Cut(int(at[start]), start, end, float(n[end] - n[start]))
    if not forced:
        stop = np.maximum(np.searchsorted(b, least + b[-1] - most), places)
        differing = least + b[-1] - b[np.minimum(stop, end)]
        fits = (stop <= end) & (differing <= most)
        sent = np.where(fits, n[np.minimum(stop, end)] - n, np.inf)
        start = int(np.where(sent == sent.min(), differing, np.inf).argmin())
        found.append((float(sent[start]), float(differing[start]), int(at[start]), start, int(stop[start])))
    behind = (a - b)[::-1] if not forced else np.full(len(a), (a - b)[-1])
    least_behind = np.minimum.accumulate(behind)[::-1]
    rest = least_behind - a + b[-1] if not forced else a[-1] - a
    start_of = np.minimum(np.searchsorted(a, most - rest, side="right") - 1, places)
    fits = (start_of >= 0) & (rest <= most)
    sent = np.where(fits, n - n[np.maximum(start_of, 0)], np.inf)
    differing = a[np.maximum(start_of, 0)] + rest
    stop_at = int(np.where(sent == sent.min(), differing, np.inf).argmin())
    threshold = end if forced else stop_at + int((a - b)[stop_at:].argmin())
    found.append((float(sent[stop_at]), float(differing[stop_at]), threshold, int(start_of[stop_at]), stop_at))
    sent_on, _, threshold, start, stop = min(found)
    if start < stop and start <= threshold <= stop and not forced:
        threshold = (start + stop) // 2  # anywhere in the window decides the same rows
    return Cut(threshold, start, stop, sent_on)


def _same(group: Groups, cut: Cut, tau: float) -> bool:
    """Whether τ accepts the same rows as the cut among those that leave here."""
    below = int(np.searchsorted(group.edges, tau))  # groups that lie below τ, but for rounding inside one
    inside = cut.start <= cut.accept <= cut.stop
    return cut.start < below < cut.stop if inside else False


def _many_stages(
    exits: Exits, accept: Floats, reject: Floats, groups: Sequence[Groups], most: int, forced: bool, single: bool
) -> list[Cut]:
    """Windows by sweeps at the least price of a deviation that keeps them few enough, then each narrowed exactly, the others as they are.

    The price is searched on at most ``SEARCHED`` rows and ``BINS`` groups.
    """
    count, n = exits.count, exits.n
    part = np.unique(np.linspace(0, n - 1, min(n, SEARCHED)).astype(np.int64))
    coarse = [Groups.of(u[part], BINS) for u in exits.uncertainty]
    top = float(sum(exits.costs)) * n + 1.0

    def solve(price: float) -> tuple[float, Cuts]:
        return price, _sweep(exits.costs, accept[:, part], reject[part], coarse, price, forced, single)

    def differing(found: tuple[float, Cuts]) -> float:
        return float(_deviating(found[1].cuts, accept[:, part], reject[part], coarse).sum())

    price = _least_price(solve, differing, most * len(part) / n, top)
    cuts = _everything(groups)
    for _ in range(TRIES):
        found = list(_sweep(exits.costs, accept, reject, groups, price, forced, single).cuts)
        if _deviating(found, accept, reject, groups).sum() <= most:
            cuts = found
            break
        price *= 1.3
    if single:
        return cuts
    for _ in range(NARROWED):
        before = list(cuts)
        for k in range(count - 1):
            cuts[k] = _narrowed(k, cuts, exits, accept, reject, groups, most)
        if cuts == before:
            break
    return cuts


def _sweep(
    costs: Sequence[float], accept: Floats, reject: Floats, groups: Sequence[Groups], price: float, forced: bool, single: bool
) -> Cuts:
    """The cuts that cost least where a deviation has this price: the dearer, the fewer."""
    fee = np.broadcast_to(np.asarray(costs)[:, None], accept.shape)
    return sweep(-price * accept, np.broadcast_to(-price * reject, accept.shape), fee, groups, forced, single)


def _least_price(
    solve: Callable[[float], tuple[float, Cuts]], differing: Callable[[tuple[float, Cuts]], float], most: float, top: float
) -> float:
    """The least price of a deviation at which there are at most so many; the greatest where there is none."""
    low, high = top * 1e-9, top
    if differing(solve(high)) > most:
        return high
    for _ in range(24):
        price = float(np.sqrt(low * high))
        if differing(solve(price)) <= most:
            high = price
        else:
            low = price
    return high


def _everything(groups: Sequence[Groups]) -> list[Cut]:
    return [Cut(group.count, 0, group.count, 0.0) for group in groups]


def _narrowed(k: int, cuts: list[Cut], exits: Exits, accept: Floats, reject: Floats, groups: Sequence[Groups], most: int) -> Cut:
    """The cheapest window of stage k that keeps the deviations, the thresholds and other windows as they are."""
    cut, group = cuts[k], groups[k]
    reached = np.ones(exits.n, bool)
    for other, grouped in zip(cuts[:k], groups, strict=False):
        reached &= (grouped.group >= other.start) & (grouped.group < other.stop)
    onward, paid = np.zeros(exits.n), np.zeros(exits.n)
    for j in range(exits.count - 1, k, -1):
        own = groups[j]
        leaves = np.where(own.group < cuts[j].accept, accept[j], reject)
        on = (own.group >= cuts[j].start) & (own.group < cuts[j].stop) if j < exits.count - 1 else np.zeros(exits.n, bool)
        if j == exits.count - 1:
            leaves = np.zeros(exits.n)
        onward = np.where(on, onward, leaves)
        paid = exits.costs[j] + np.where(on, paid, 0.0)
    leaving = np.where(group.group < cut.accept, accept[k], reject)
    elsewhere = _deviating(cuts, accept, reject, groups)[~reached].sum()
    needed = float(leaving[reached].sum() + elsewhere - most)
    found = narrowest(group.sums(paid, reached), group.sums(leaving - onward, reached), needed - 1e-9)
    return cut if found is None else Cut(cut.accept, found[0], found[1], 0.0)


def _deviating(cuts: Sequence[Cut], accept: Floats, reject: Floats, groups: Sequence[Groups]) -> Floats:
    """Deviation of every row (N,) under cuts; the last exit has none."""
    result = np.zeros(len(reject))
    going = np.ones(len(reject), bool)
    for k, (cut, group) in enumerate(zip(cuts[:-1], groups, strict=False)):
        on = (group.group >= cut.start) & (group.group < cut.stop)
        leaving = going & ~on
        result[leaving] = np.where(group.group < cut.accept, accept[k], reject)[leaving]
        going &= on
    return result
