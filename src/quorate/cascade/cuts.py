"""Cuts: where to cut one stage's uncertainties into rows that are accepted, sent on, and rejected. Exact, in O(N log N).

Rows in order of uncertainty fall into G tie groups. A stage cuts them by a window [i, j) of groups that go on and a threshold t below
which the others are accepted, which can lie before, inside or behind the window:

    A…A R…R W…W R…R   (t ≤ i)          A…A W…W A…A R…R   (j ≤ t)

With sums per group of what accepting and what going on is worth (rejecting is worth 0), prefix sums P_A, P_W and running maxima find
the best (t, i, j) of all O(G³) in O(G):

    t ≤ i ≤ j:  max_j P_W(j) + max_{i ≤ j} [ max_{t ≤ i} P_A(t) − P_W(i) ]
    i ≤ j ≤ t:  max_t P_A(t) + max_{j ≤ t} [ P_W(j) − P_A(j) + max_{i ≤ j} ( P_A(i) − P_W(i) ) ]

:func:`narrowest` finds the cheapest window whose gain is at least so much, for gains of either sign. Thresholds lie midway between
data values (specification of cascades, §1: never on one, since rounding would flip routes).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quorate.cascade.policy import Window
from quorate.combination import Floats


class Cut(NamedTuple):
    """The first ``accept`` groups are accepted but for those in [start, stop), which go on; ``value`` is what that is worth."""

    accept: int
    start: int
    stop: int
    value: float


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows of one exit by tie group, or by coarser groups of neighbours.

    Attributes:
        group: (N,) number of each row's group, rising with its uncertainty.
        edges: (G−1,) uncertainties between the groups.
        least: the smallest uncertainty.
    """

    group: NDArray[np.int64]
    edges: Floats
    least: float

    @classmethod
    def of(cls, uncertainty: Floats, most: int | None = None) -> Groups:
        """Groups of equal uncertainty (N,); at most about ``most`` of about equal size if that is given."""
        distinct, group = np.unique(uncertainty, return_inverse=True)
        edges = midway(distinct)
        if most is not None and len(distinct) > most:
            ends = np.cumsum(np.bincount(group, minlength=len(distinct)))[:-1]  # rows up to each edge
            kept = np.unique(np.searchsorted(ends, np.arange(1, most) * (len(uncertainty) / most)))
            kept = kept[kept < len(edges)]
            coarse = np.zeros(len(distinct), np.int64)
            coarse[kept + 1] = 1
            return cls(np.cumsum(coarse)[group], edges[kept], float(distinct[0]))
        return cls(group.astype(np.int64, copy=False), edges, float(distinct[0]))

    @property
    def count(self) -> int:
        return len(self.edges) + 1

    def sums(self, values: Floats, mask: NDArray[np.bool_] | None = None) -> Floats:
        """(G,) sums of (N,) values per group, of the masked rows only."""
        if mask is not None:
            values = np.where(mask, values, 0.0)
        return np.asarray(np.bincount(self.group, values, self.count), np.float64)

    def edge(self, groups: int) -> float | None:
        """The threshold with so many groups below it; None above all; below all data a number that is."""
        if groups >= self.count:
            return None
        return float(self.edges[groups - 1] if groups else np.nextafter(self.least, -np.inf))

    def window(self, start: int, stop: int) -> Window | None:
        """Groups [start, stop) as a window; open where it begins or ends with the data; None if it is empty."""
        if start >= stop:
            return None
        low = None if start == 0 else float(np.nextafter(self.edges[start - 1], np.inf))
        return low, self.edge(stop)


def midway(distinct: Floats) -> Floats:
    """(G−1,) thresholds between rising numbers: midway, the lower one where no number lies between."""
    low, high = distinct[:-1], distinct[1:]
    middle = low / 2 + high / 2
    return np.where((middle >= low) & (middle < high), middle, low)


def best_cut(accept: Floats, rest: Floats, forced: bool = False, single: bool = False) -> Cut:
    """The cut of greatest worth, from sums per group (G,): accepting, going on, both over rejecting. ``forced``: nothing is rejected.

    ``single``: all above the window's low end go on, the single-threshold cascade. Of equally good ones a narrow window.
    """
    a, w = _prefix(accept), _prefix(rest)
    groups = len(accept)
    if single:
        best_t, most = (np.arange(groups + 1), a) if forced else _running(a)
        ends = most - w
        start = groups - int(ends[::-1].argmax())
        return Cut(int(best_t[start]), start, groups, float(ends[start] + w[-1]))
    if forced:
        gain = w - a
        start_at, lowest = _running(-gain)
        stop = int((gain + lowest).argmax())
        start = int(start_at[stop])
        return Cut(groups, start, stop, float(a[-1] + gain[stop] - gain[start]))
    best_t, most = _running(a)
    best_i, before = _running(most - w)
    ends = w + before
    stop = int(ends.argmax())
    start = int(best_i[stop])
    below = Cut(int(best_t[start]), start, stop, float(ends[stop]))
    best_i, opened = _running(a - w)
    best_j, closed = _running(w - a + opened)
    ends = a + closed
    accepted = int(ends.argmax())
    stop = int(best_j[accepted])
    above = Cut(accepted, int(best_i[stop]), stop, float(ends[accepted]))
    return below if below.value >= above.value else above


def best_cut_within(accept: Floats, rest: Floats, cost: Floats, limit: float, forced: bool = False, single: bool = False) -> Cut:
    """The best cut as :func:`best_cut`, of those whose window costs at most ``limit``, from sums of costs ≥ 0 per group (G,). O(G²)."""
    a, w, c = _prefix(accept), _prefix(rest), _prefix(cost)
    groups = len(accept)
    stops = np.array([groups]) if single else np.arange(groups + 1)
    low_at, low = _running(a)
    high_at, high = (each[::-1] for each in _running(a[::-1]))
    if forced:
        leaving = a[-1] - a[stops] + a[:, None]
    else:  # thresholds before the window, or behind it
        leaving = np.maximum(low[:, None], a[:, None] - a[stops] + high[stops])
    worth = leaving + w[stops] - w[:, None]
    within = (np.arange(groups + 1)[:, None] <= stops) & (c[stops] - c[:, None] <= limit + 1e-12 * c[-1])
    start, at = np.unravel_index(int(np.where(within, worth, -np.inf).argmax()), worth.shape)
    stop = int(stops[at])
    if forced:
        accepted = groups
    elif low[start] >= a[start] - a[stop] + high[stop]:
        accepted = int(low_at[start])
    else:
        accepted = groups - int(high_at[stop])
    return Cut(accepted, int(start), stop, float(worth[start, at]))


def narrowest(cost: Floats, gain: Floats, least: float) -> tuple[int, int] | None:
    """The [start, stop) of least summed cost whose gain is at least ``least``; None if there is none, (0, 0) if none is needed.

    Exact for gains of either sign, costs ≥ 0 (G,): with prefix sums C, S a start i is dominated by a later i′ with S(i′) ≤ S(i), so that
    the starts worth keeping have rising S, and one that has served a stop is never better for a later one.
    """
    if least <= 0:
        return 0, 0
    events = np.flatnonzero(gain)  # a cheapest window begins and ends with a gain
    if not len(events):
        return None
    paid = _prefix(cost)
    sums = _prefix(gain[events])
    starts: deque[tuple[int, float]] = deque()
    best: tuple[float, int, int] | None = None
    first, last = paid[events].tolist(), paid[events + 1].tolist()
    totals = sums.tolist()
    for k in range(len(events)):
        while starts and totals[starts[-1][0]] >= totals[k]:
            starts.pop()
        starts.append((k, first[k]))
        while starts and totals[k + 1] - totals[starts[0][0]] >= least:
            i, begun = starts.popleft()
            spent = last[k] - begun
            if best is None or spent < best[0]:
                best = spent, i, k
    return None if best is None else (int(events[best[1]]), int(events[best[2]]) + 1)


def _prefix(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _running(values: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Where the greatest value up to each place is (the last of equals), and that value."""
    most = np.maximum.accumulate(values)
    at = np.where(values == most, np.arange(len(values)), 0)
    return np.maximum.accumulate(at), most
