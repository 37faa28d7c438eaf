"""Beam and local search against every chain."""

from __future__ import annotations

import numpy as np
import pytest

from quorate.cascade.planner import plan
from quorate.cascade.planner.committees import Aim, Committees, Point
from quorate.cascade.planner.pool import read_pool
from quorate.cascade.planner.search import Worths, beamed
from quorate.cascade.planner.space import Space
from quorate.cascade.target import parse
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding


def drawn(seed: int, members: int, rows: int = 400) -> dict[str, Outputs]:
    """Members of random strength, cost and likeness."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, rows)
    hard = np.eye(4)[truth] * rng.uniform(0, 3, (rows, 1))
    shared = rng.normal(size=(2, rows, 4))
    made = {}
    for m in range(members):
        z = hard * rng.uniform(0.6, 2) + shared[m % 2] * rng.uniform(0, 1) + rng.normal(size=(rows, 4)) * rng.uniform(0.5, 1.2)
        made[f"m{m}"] = Outputs([z], labels=truth, costs=[float(np.exp(rng.uniform(0, 4)))])
    return made


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("target", ["accuracy", "coverage@risk=0.1"])
def test_beam_finds_what_is_worth_most(seed: int, target: str) -> None:
    pool = read_pool(drawn(seed, 5), costs=True)
    table = Committees(pool, np.arange(400), {}, Aim(parse(target), "msp"))
    space = Space(pool.costs, pool.after, ("mean", "replace"), most=3)
    for price in (1e-4, 1e-3, 1e-2):
        worths = Worths(table, Point(price, 0.3, 0.1))
        best = max(worths.of(chain) for chain in space.all())
        singles = [worths.of(chain) for chain in space.singles()]
        found = max(Worths(table, Point(price, 0.3, 0.1)).of(chain) for chain in beamed(worths, space, space.singles(), 6))
        assert found >= best - 0.01 * (best - min(singles))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("target", ["accuracy", "coverage@risk=0.15"])
def test_fronts_of_beam_and_of_every_chain(seed: int, target: str) -> None:
    """The area under the beam's front, of what can be had at every cost, is at most 1 % less."""
    pool = drawn(100 + seed, 5)
    fronts = [plan(pool, target, search=how, front=24, most=3) for how in ("exhaustive", "beam")]  # type: ignore[arg-type]
    points = [np.array([(p.figures.cost, p.figures.figure) for p in front]).T for front in fronts]
    low, high = (float(np.log(end(np.concatenate([cost for cost, _ in points])))) for end in (np.min, np.max))
    floor = min(float(figure.min()) for _, figure in points)
    every, beam = (
        (np.diff(np.append(np.clip(np.log(cost), low, high), high)) * (np.maximum.accumulate(figure) - floor)).sum()
        for cost, figure in points
    )
    assert beam >= 0.99 * every
