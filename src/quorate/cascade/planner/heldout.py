"""Held out: what chains are worth on rows that their windows were not found on, and the shortest one that is as good as the best.

Every stage more has a window more to fit, and there are far more long chains than short ones, so on the rows that chose them long
chains look better than they are. Here windows come from one half of the sample and are judged on the other, both ways round; of the
best chains of every length the shortest is taken whose difference to the best is within one standard error of it (Breiman et al.
1984, Classification and Regression Trees, §3.4.3; here of the paired difference, since the rows are the same).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quorate.cascade.cuts import Groups
from quorate.cascade.planner.committees import SWEEPS, Committees, Point
from quorate.cascade.planner.space import Chain, Committee
from quorate.cascade.sweeps import sweep
from quorate.combination import Floats

COARSE = 64  # groups of neighbours that windows are cut between
ERRORS = 1.0  # standard errors within which a shorter chain is as good


class HeldOut:
    """Chains of a sample, each half of it judged by windows from the other."""

    def __init__(self, table: Committees, seed: int = 0) -> None:
        self.table = table
        n = table.base.exits.n
        order = np.random.default_rng(seed).permutation(n)
        self.halves = (np.sort(order[: n // 2]), np.sort(order[n // 2 :]))
        self.groups: dict[tuple[Committee, int], tuple[Groups, NDArray[np.int64]]] = {}

    def rows(self, chain: Chain, point: Point) -> Floats:
        """What every row adds to the chain's worth (N,), in units of the figure; their sum estimates V without its optimism."""
        table, task, scale = self.table, self.table.base, self.table.unit(point)
        parts = [table.said(committee) for committee in chain.committees()]
        worth = -np.stack([part.weighted for part in parts])
        if not task.forced:
            worth += point.slope * task.cover + (point.rho * task.weight if task.ratio else 0.0)
        fee = np.multiply.outer(point.price * scale * np.array([table.pool.costs[m] for m in chain.members]), task.traffic)
        result = np.empty(task.exits.n)
        for half in (0, 1):
            here, there = self.halves[half], self.halves[1 - half]
            both = [self._grouped(committee, half) for committee in chain.committees()]
            mine, paid = worth[:, here], fee[:, here]
            nothing = np.broadcast_to(np.zeros(1), mine.shape)
            cuts = sweep(mine, nothing, paid, [groups for groups, _ in both], task.forced, sweeps=SWEEPS).cuts
            value = np.zeros(len(there))
            for k in reversed(range(len(parts))):
                group = both[k][1]
                answered = np.where(group < cuts[k].accept, worth[k, there], 0.0)
                on = (group >= cuts[k].start) & (group < cuts[k].stop)
                value = answered if k == len(parts) - 1 else np.where(on, value, answered)
                value = value - fee[k, there]
            result[there] = value
        return result / scale

    def choose(self, chains: Sequence[Chain], point: Point, count: int = 1) -> list[Chain]:
        """The shortest chain that is as good as the best, of equally short ones the best; the best itself; the next that are no longer."""
        judged = {chain: self.rows(chain, point) for chain in dict.fromkeys(chains)}
        order = sorted(judged, key=lambda chain: (-float(judged[chain].sum()), len(chain.members), chain))
        best = order[0]
        taken = best
        for chain in sorted(order, key=lambda chain: len(chain.members)):  # stable: the best of every length first
            lost = judged[best] - judged[chain]
            if lost.sum() <= ERRORS * np.sqrt(len(lost)) * lost.std():
                taken = chain
                break
        others = [chain for chain in order if len(chain.members) <= len(taken.members)]
        return list(dict.fromkeys([taken, best, *others]))[:count]

    def _grouped(self, committee: Committee, half: int) -> tuple[Groups, NDArray[np.int64]]:
        """One half's rows in groups, and the numbers of the groups that the other half's rows fall into."""
        key = (committee, half)
        if key not in self.groups:
            u = self.table.said(committee).uncertainty
            groups = Groups.of(u[self.halves[half]], COARSE)
            self.groups[key] = groups, np.searchsorted(groups.edges, u[self.halves[1 - half]])
        return self.groups[key]
