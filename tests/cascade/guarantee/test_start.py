"""Where a sequence begins: the specification's simulation, and the chosen start beside every fixed one."""

from __future__ import annotations

import time

import numpy as np
import pytest

from quorate.cascade.guarantee import certify, start

pytestmark = pytest.mark.deciding
GRID = np.arange(1, 101) / 100


def draw(rng: np.random.Generator, n: int, power: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """u uniform; the risk at coverage c is .05 (c / .77)^power."""
    u = rng.random(n)
    return u, rng.random(n) < np.minimum(1, 0.05 * (power + 1) * (u / 0.77) ** power)


@pytest.mark.slow
def test_the_start_does_about_as_well_as_the_best_fixed_one() -> None:
    rng, draws = np.random.default_rng(0), 100
    for power in (1.5, 2.0):
        fixed: dict[float, list[float]] = {begin: [] for begin in (0.01, 0.06, 0.2, 0.3, 0.4, 0.6)}
        chosen, bonferroni = [], []
        for _ in range(draws):
            index = start(*draw(rng, 1000, power), GRID)
            cal = draw(rng, 1000, power)
            for begin, found in fixed.items():
                found.append(certify(*cal, GRID[begin - 1e-9 < GRID]).coverage)
            chosen.append(certify(*cal, GRID[index:]).coverage)
            bonferroni.append(certify(*cal, GRID[1::2], method="bonferroni").coverage)
        means = {begin: float(np.mean(found)) for begin, found in fixed.items()}
        assert means[0.01] == 0
        assert means[0.06] < 0.45
        assert means[0.3] > np.mean(bonferroni) > means[0.06]
        assert np.mean(chosen) > max(means.values()) - 0.05


def test_what_it_depends_on() -> None:
    rng = np.random.default_rng(0)
    u, wrong = draw(rng, 1000)
    base = start(u, wrong, GRID)
    assert base == start(u[::-1], wrong[::-1], GRID)
    assert 15 <= base <= 70
    assert start(u, wrong, GRID, rows=100_000) < base
    assert start(u, wrong, GRID, rows=150) > base
    assert start(u, wrong, [0.5, None]) == 0
    assert start(u, 2.0 * wrong, GRID, 0.1, costs_bound=2.0) == base
    assert start(u, np.ones(1000), GRID) == 0  # nothing helps: the first
    rare = (rng.random(1000) < 0.2).astype(int)
    limited = [start(u, wrong, GRID, limits={1: limit}, predicted=rare) for limit in (0.05, 0.5)]
    assert limited[0] > base  # a fifth of the rows has to show as much
    assert abs(limited[1] - base) <= 3


@pytest.mark.slow
def test_a_million_rows() -> None:
    u, wrong = draw(np.random.default_rng(0), 1_000_000)
    taus = np.arange(1, 201) / 200
    best = {"certify": np.inf, "costs": np.inf, "start": np.inf}
    for _ in range(2):
        for name, call in {
            "certify": lambda: certify(u, wrong, taus),
            "costs": lambda: certify(u, wrong * 0.5, taus, 0.02, costs_bound=1.0),
            "start": lambda: start(u, wrong, taus),
        }.items():
            begin = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begin)
    assert max(best.values()) <= 2, best


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="thresholds fall"):
        start([0.1], [True], [0.5, 0.4])
    for rows in (0, 1.5, True):
        with pytest.raises(ValueError, match="how many calibration rows"):
            start([0.1], [True], [0.5], rows=rows)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give costs_bound"):
        start([0.1], [3.0], [0.5])
    with pytest.raises(ValueError, match="probability of failure"):
        start([0.1], [True], [0.5], delta=0)
