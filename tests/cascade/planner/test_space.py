"""Chains: all of them, against a count; neighbours are legal, different, and lead everywhere."""

from __future__ import annotations

import math

import pytest

from quorate.cascade.planner.space import Chain, Space

pytestmark = pytest.mark.deciding
BOTH = ("mean", "replace")


def test_every_chain_once() -> None:
    space = Space((1.0, 2.0, 3.0), (None,) * 3, BOTH, most=3)
    chains = list(space.all())
    assert len(set(chains)) == len(chains) == space.size() == 3 + 6 * 2 + 6 * 4
    assert len(list(Space((1.0,) * 4, (None,) * 4, ("replace",), most=2).all())) == 4 + 12
    assert all(chain.joins[0] == "mean" for chain in chains)
    assert [chain.members for chain in space.singles()] == [(0,), (1,), (2,)]


def test_dear_members_come_later() -> None:
    space = Space((1.0, 5.0), (None, None), BOTH, most=2, limit=2.0)
    assert {chain.members for chain in space.all()} == {(0,), (0, 1)}


def test_dependent_members_follow_their_predecessors() -> None:
    space = Space((1.0,) * 4, (None, 0, 1, None), ("mean",), most=4)
    found = {chain.members for chain in space.all()}
    brute = {m for m in found if all(b not in m or (b - 1 in m and m.index(b - 1) < m.index(b)) for b in (1, 2))}
    assert found == brute
    assert (3, 0, 1, 2) in found
    assert (0, 3, 1) in found
    assert (1,) not in found
    assert (0, 2) not in found


@pytest.mark.parametrize("after", [(None,) * 4, (None, 0, 1, None)])
def test_neighbours_lead_everywhere(after: tuple[int | None, ...]) -> None:
    space = Space((1.0, 2.0, 3.0, 4.0), after, BOTH, most=3)
    everything = set(space.all())
    for step in (space.near, space.longer):
        for chain in everything:
            near = list(step(chain))
            assert set(near) <= everything
            assert chain not in near
    reached = set(space.singles())
    ahead = list(reached)
    while ahead:
        ahead = [n for chain in ahead for n in space.longer(chain) if n not in reached and not reached.add(n)]  # type: ignore[func-returns-value]
    assert reached == everything
    assert all(len(n.members) == len(c.members) + 1 for c in everything for n in space.longer(c))


def test_committees() -> None:
    chain = Chain((2, 0, 3, 1), ("mean", "mean", "replace", "mean"))
    assert chain.committees() == [{2}, {0, 2}, {3}, {1, 3}]
    assert Chain((1, 0), ("replace", "replace")).committees() == [{1}, {0}]
    assert math.isinf(Space((1.0,), (None,), BOTH, 1).limit)
