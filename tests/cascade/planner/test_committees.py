"""Committees against the exits of every chain; a chain's worth against windows tried one by one; rows held out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from quorate.cascade.exits import Exits
from quorate.cascade.planner.committees import Aim, Committees, Point
from quorate.cascade.planner.heldout import HeldOut
from quorate.cascade.planner.pool import Pool, read_pool
from quorate.cascade.planner.search import at, lagrangian, price_grid
from quorate.cascade.planner.space import Chain, Space
from quorate.cascade.target import parse
from quorate.combination import softmax
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding
CHAINS = [
    Chain((1,), ("mean",)),
    Chain((0, 2), ("mean", "mean")),
    Chain((2, 1, 0), ("mean", "replace", "mean")),
    Chain((1, 0, 2), ("mean", "mean", "mean")),
]


def drawn(
    seed: int, rows: int = 200, members: int = 3, kind: str = "logits", labels: bool = True, **options: Any
) -> dict[str, Outputs]:
    """Members that are right more often the more they cost."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, rows)
    signal = np.eye(3)[truth] * rng.uniform(0, 3, (rows, 1))
    made = {}
    for m in range(members):
        z = signal * (0.8 + 0.5 * m) + rng.normal(size=(rows, 3))
        p = softmax(z)
        value: Any = {"logits": z, "probs": p, "top1": (p.argmax(1), p.max(1))}[kind]
        made[f"m{m}"] = Outputs([value], kind=kind, labels=truth if labels else None, costs=[float(2**m)], **options)  # type: ignore[arg-type]
    return made


def table_of(
    pool: Pool, target: str = "accuracy", uncertainty: str = "msp", outside: dict[str, Outputs] | None = None, **terms: Any
) -> Committees:
    return Committees(pool, np.arange(pool.outputs.n), outside or {}, Aim(parse(target), uncertainty, **terms))


@pytest.mark.parametrize(
    ("kind", "combine", "uncertainty", "target"),
    [
        ("logits", "probs", "msp", "coverage@risk=0.1"),
        ("logits", "probs", "energy", "accuracy"),
        ("logits", "logits", "entropy", "nll"),
        ("probs", "probs", "margin", "risk@coverage=0.7"),
        ("probs", "last", "msp", "nll"),
        ("top1", "last", "msp", "accuracy"),
    ],
)
def test_committees_say_what_chains_say(kind: str, combine: Any, uncertainty: str, target: str) -> None:
    pool = read_pool(drawn(1, kind=kind, combine=combine))
    table = table_of(pool, target, uncertainty)
    for chain in CHAINS:
        joins = ["replace"] * len(chain.joins) if combine == "last" else list(chain.joins)
        chain = Chain(chain.members, tuple(joins))  # type: ignore[arg-type]
        task = table.task(chain)
        exits = Exits.of(pool.outputs, [pool.names[m] for m in chain.members], uncertainty, joins, nll=target == "nll")  # type: ignore[arg-type]
        expected = table.aim.task(exits, {})
        assert np.allclose(task.exits.uncertainty, exits.uncertainty, rtol=0, atol=1e-12)
        assert np.array_equal(task.exits.label, exits.label)
        assert task.exits.names == exits.names
        assert task.exits.costs == exits.costs
        assert np.allclose(task.loss, expected.loss)
        assert np.array_equal(task.cover, expected.cover)


def test_committees_with_outliers_and_terms() -> None:
    pool = read_pool(drawn(1))
    outside = {"far": read_pool(drawn(2, 60, labels=False)).outputs, "near": read_pool(drawn(3, 30, labels=False)).outputs}
    costs = np.array([1.0, 2.0, 0.5])
    table = table_of(pool, "coverage@risk=0.2", outside=outside, error_costs=costs, beta=0.7, alpha=0.6)
    chain = CHAINS[2]
    parts = [
        Exits.of(o, [pool.names[m] for m in chain.members], "msp", list(chain.joins)) for o in (pool.outputs, *outside.values())
    ]
    expected = table.aim.task(parts[0], dict(zip(outside, parts[1:], strict=True)))
    task = table.task(chain)
    assert np.allclose(task.loss, expected.loss)
    assert np.array_equal(task.weight, expected.weight)
    assert np.allclose(task.exits.uncertainty, expected.exits.uncertainty, atol=1e-12)
    assert task.inside == 200


def test_a_committee_has_its_own_temperature() -> None:
    pool = read_pool(drawn(1))
    table = table_of(pool, "nll", temperature=True)
    one, both = table.said(frozenset([0])), table.said(frozenset([0, 2]))
    assert one.temperature != both.temperature != 1.0
    exits = Exits.of(pool.outputs, ["m0", "m2"], "msp", None, [one.temperature, both.temperature], nll=True)
    assert np.allclose(table.task(CHAINS[1]).loss, exits.loss)


@pytest.mark.parametrize("target", ["accuracy", "coverage@risk=0.1"])
def test_worth_of_two_stages_is_the_best_of_all_windows(target: str) -> None:
    pool = read_pool(drawn(4, 16))
    table = table_of(pool, target)
    point = Point(0.02, 1.0, 0.0) if target == "accuracy" else Point(0.05, 0.4, 0.1)
    task = table.task(CHAINS[1])
    first, last = (np.sort(u) for u in task.exits.uncertainty)
    gain = -task.weight * task.loss
    if target != "accuracy":
        gain = gain + point.slope * task.cover + point.rho * task.weight
    best = -np.inf
    ends = np.append(first, np.inf)
    thresholds = [np.inf] if target == "accuracy" else [-1.0, *first]
    finals = [np.inf] if target == "accuracy" else [-1.0, *last]
    for tau, final in itertools.product(thresholds, finals):
        here = np.where(task.exits.uncertainty[0] <= tau, gain[0], 0.0)
        there = np.where(task.exits.uncertainty[1] <= final, gain[1], 0.0) - point.price * table.unit(point) * 4.0 / 16
        for low, high in itertools.combinations(range(17), 2):
            on = (task.exits.uncertainty[0] >= ends[low]) & (task.exits.uncertainty[0] < ends[high])
            best = max(best, float(np.where(on, there, here).sum()))
        best = max(best, float(here.sum()))
    spent = point.price * table.unit(point) * 1.0
    assert table.worth(CHAINS[1], point) == pytest.approx((best - spent) / table.unit(point))


@pytest.mark.parametrize("target", ["accuracy", "nll", "coverage@risk=0.1", "risk@coverage=0.8"])
def test_worth_is_no_less_than_what_thresholds_attain(target: str) -> None:
    table = table_of(read_pool(drawn(5, 300)), target)
    for chain in CHAINS[:2]:
        for price in (1e-3, 1e-2, 1e-1):
            point = Point(price, 0.3, 0.1)
            solved = at(table, chain, point)
            figures = solved.figures
            if target.startswith("coverage"):
                attained = figures.coverage * (1 - (figures.risk - point.rho) / point.slope) - price * figures.cost
            elif target.startswith("risk"):
                attained = (
                    -figures.coverage * (figures.risk - point.rho) + point.slope * figures.coverage
                ) / 0.8 - price * figures.cost
            else:
                attained = lagrangian(table, solved, price)
            offset = 0.0 if target != "accuracy" else 1.0  # an error costs 1 where being right is worth 0
            assert table.worth(chain, point) + offset >= attained - 1e-9


def test_prices_fall_from_dear_to_cheap() -> None:
    pool = read_pool(drawn(1))
    prices = price_grid(table_of(pool), Space(pool.costs, pool.after, ("mean",), 3), 6)
    assert len(prices) == 6
    assert (np.diff(prices) < 0).all()
    assert prices[0] > 1 / 3 * 0.05


def test_rows_held_out_are_no_flattery() -> None:
    """Noise windows gain on the rows that they were found on, and nothing on others."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 4000)
    members = {f"m{m}": Outputs([rng.normal(size=(4000, 2))], labels=truth, costs=[1e-6]) for m in range(2)}
    table = table_of(read_pool(members))
    chain, point = Chain((0, 1), ("mean", "replace")), Point(1e-6, 1.0, 0.0)
    honest = HeldOut(table, 1).rows(chain, point)
    assert honest.shape == (4000,)
    assert 1 + honest.sum() == pytest.approx(0.5, abs=0.02)
    assert table.worth(chain, point) > honest.sum() + 0.01


def test_a_shorter_chain_is_taken_where_a_longer_one_gains_nothing() -> None:
    members = drawn(3, 1500)
    members["again"] = Outputs([members["m2"].values[0]], labels=members["m2"].labels, costs=[0.5])
    held = HeldOut(table_of(read_pool(members)), 0)
    short, long = Chain((3,), ("mean",)), Chain((3, 2), ("mean", "mean"))
    better = Chain((0, 2), ("mean", "mean"))
    assert held.choose([long, short], Point(1e-3, 1.0, 0.0)) == [short]
    assert held.choose([Chain((0,), ("mean",)), better], Point(1e-3, 1.0, 0.0)) == [better]
