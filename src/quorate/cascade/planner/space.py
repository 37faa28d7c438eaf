"""Space: the chains a planner may build from a pool, and which chains are one step away from another.

A chain is a sequence of different members with a join each. What it says after a stage depends on the set of members joined since the
last "replace" alone (the committee), not on their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from typing import NamedTuple

from quorate.cascade.policy import Join

Committee = frozenset[int]


class Chain(NamedTuple):
    """Members by number in order, and how each joins the earlier ones (the first's join says nothing)."""

    members: tuple[int, ...]
    joins: tuple[Join, ...]

    def committees(self) -> list[Committee]:
        """Per stage the members whose outputs count."""
        found: list[Committee] = []
        for k, (member, join) in enumerate(zip(self.members, self.joins, strict=True)):
            found.append(frozenset([member]) if k == 0 or join == "replace" else found[-1] | {member})
        return found


@dataclass(frozen=True)
class Space:
    """The legal chains.

    Attributes:
        costs: per member.
        after: per member the one that has to come earlier, or None.
        joins: the joins that stages behind the first may have; the first one's is the first of them.
        most: stages at most.
        limit: what the first stage may cost.
    """

    costs: tuple[float, ...]
    after: tuple[int | None, ...]
    joins: tuple[Join, ...]
    most: int
    limit: float = math.inf

    @property
    def count(self) -> int:
        """The number of members."""
        return len(self.costs)

    def size(self) -> int:
        """How many chains there are if every order is legal."""
        return sum(math.perm(self.count, k) * len(self.joins) ** (k - 1) for k in range(1, min(self.most, self.count) + 1))

    def legal(self, members: tuple[int, ...]) -> bool:
        """Whether members may follow each other so."""
        if not 0 < len(members) <= self.most or len(set(members)) < len(members) or self.costs[members[0]] > self.limit:
            return False
        before = [self.after[m] for m in members]
        return all(b is None or b in members[:k] for k, b in enumerate(before))

    def all(self) -> Iterator[Chain]:
        """Every legal chain, short ones first."""
        for k in range(1, min(self.most, self.count) + 1):
            for members in permutations(range(self.count), k):
                if self.legal(members):
                    yield from self._joined(members)

    def singles(self) -> list[Chain]:
        """The chains of one stage."""
        return [self._start((m,)) for m in range(self.count) if self.legal((m,))]

    def longer(self, chain: Chain) -> Iterator[Chain]:
        """One member more, at any place."""
        for at in range(len(chain.members) + 1):
            for member in range(self.count):
                members = (*chain.members[:at], member, *chain.members[at:])
                if self.legal(members):
                    for join in self.joins if at else self.joins[:1]:
                        if at:
                            yield Chain(members, (*chain.joins[:at], join, *chain.joins[at:]))
                        else:  # the one that was first joins behind it
                            for second in self.joins:
                                yield Chain(members, (join, second, *chain.joins[1:]))

    def near(self, chain: Chain) -> Iterator[Chain]:
        """All chains one step away: one member more, fewer or another, two in each other's place, another join."""
        members, joins = chain
        count = len(members)
        yield from self.longer(chain)
        for at in range(count):
            fewer = members[:at] + members[at + 1 :]
            if self.legal(fewer):
                yield Chain(fewer, (joins[0], *(joins[:at] + joins[at + 1 :])[1:]))
            for member in range(self.count):
                other = (*members[:at], member, *members[at + 1 :])
                if member != members[at] and self.legal(other):
                    yield Chain(other, joins)
            for second in range(at):
                swapped = list(members)
                swapped[at], swapped[second] = swapped[second], swapped[at]
                if self.legal(tuple(swapped)):
                    yield Chain(tuple(swapped), joins)
            for join in self.joins if at else ():
                if join != joins[at]:
                    yield Chain(members, (*joins[:at], join, *joins[at + 1 :]))

    def _joined(self, members: tuple[int, ...]) -> Iterator[Chain]:
        for joins in product(self.joins, repeat=len(members) - 1):
            yield Chain(members, (self.joins[0], *joins))

    def _start(self, members: tuple[int, ...]) -> Chain:
        return Chain(members, (self.joins[0],) * len(members))
