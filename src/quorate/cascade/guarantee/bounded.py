"""The mean of bounded costs, by betting: a p-value and an upper bound for any costs in [0, b].

Source: Waudby-Smith & Ramdas 2023 (arXiv 2010.09686), §4: with x = cost / b in [0, 1], a gambler who bets the share f of what a cost
of 1 would take has, after n independent rows and against "the mean is m or more",

    K_f = Π_i (1 + f (m − x_i) / (1 − m)),   E K_f ≤ 1 if the mean is m or more,   0 < f ≤ 1

and so has any average over f fixed beforehand. By Markov's inequality P(K ≥ 1/δ) ≤ δ: the p-value is min(1, 1/K). Here K is the plain
average over f = 1, ½, ¼ … down to √(2 log 20 / n), the bet that suits n all-or-nothing costs of mean ½ at δ = .05; smaller variances
and means want larger bets. The bets depend on n alone. K does not depend on the order of rows (the paper's wealth, which
adapts bet by bet, does), it is a product over prefixes when rows are sorted by uncertainty, and it rises with m, so that the upper
bound is where K = 1/δ.

Shapes: costs (n,), float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

from quorate.cascade.guarantee.binomial import check_delta
from quorate.combination import Floats

TUNED = 2 * math.log(20)  # nats, twice what δ = .05 takes
CLOSE = 1e-12  # of the mean's unit, to which the bound is found, from above


def p_value(costs: ArrayLike, mean: float, bound: float = 1.0) -> float:
    """The p-value against "the true mean cost is ``mean`` or more".

    1 without rows; 0 for a mean of ``bound`` or more, which no cost exceeds.

    Args:
        costs: (n,) independent draws in [0, bound].
        mean, bound: in the costs' unit.

    Raises:
        ValueError: costs outside [0, bound] or not numbers, a bound that is not a finite number > 0, or a NaN mean.
    """
    x = _checked(costs, bound)
    if np.isnan(mean):
        raise ValueError("mean is NaN: expected the mean cost to test")
    return table_p_value(x, np.ones(len(x)), mean / bound)


def upper_bound(costs: ArrayLike, delta: float = 0.05, bound: float = 1.0) -> float:
    """The upper confidence bound of the true mean cost at level 1 − δ; ``bound`` itself without rows. Raises as :func:`p_value`."""
    check_delta(delta)
    values, counts = np.unique(_checked(costs, bound), return_counts=True)
    goal = -math.log(delta)

    def surplus(mean: float) -> float:
        return max(_log_wealth(values, counts, mean), -1e9) - goal  # a number even where one bet has lost all

    low, high = float(values @ counts / counts.sum()) if len(values) else 1.0, 1.0 - CLOSE
    if low >= high or surplus(high) <= 0:
        return float(bound)
    return float(bound * min(1.0, brentq(surplus, low, high, xtol=CLOSE) + CLOSE))


def prefix_p_values(costs: Floats, ends: NDArray[np.int64], mean: float, bound: float) -> Floats:
    """p-values (G,) of the first ``ends[g]`` of costs (n,), all against one mean; what :func:`p_value` gives on each prefix."""
    x, m = _checked(costs, bound), mean / bound
    if m >= 1:
        return np.where(ends > 0, 0.0, 1.0)
    most = int(_bets(ends.max(initial=0)))
    logs = np.full((most, len(ends)), -np.inf)
    levels, level = np.unique(x, return_inverse=True)
    for index, bet in enumerate(0.5 ** np.arange(most)):
        sums = np.append(0.0, np.cumsum(_log_factor(levels, bet, m)[level]))[ends]
        logs[index] = np.where(index < _bets(ends), sums, -np.inf)
    wealth = logsumexp(logs, axis=0) - np.log(_bets(ends))
    return np.where(ends > 0, np.exp(-np.maximum(wealth, 0.0)), 1.0)


def table_p_value(values: Floats, counts: NDArray, mean: float) -> float:
    """The p-value where ``counts`` (V,) rows have cost ``values`` (V,) in [0, 1]."""
    if mean >= 1:
        return 0.0 if counts.sum() > 0 else 1.0
    if mean <= 0:
        return 1.0
    return float(np.exp(-max(_log_wealth(values, counts, mean), 0.0)))


def _log_wealth(values: Floats, counts: NDArray, mean: float) -> float:
    present = counts > 0
    values, counts = values[present], counts[present]
    bets = 0.5 ** np.arange(int(_bets(counts.sum())))
    return float(logsumexp([counts @ _log_factor(values, bet, mean) for bet in bets]) - np.log(len(bets)))


def _bets(n: ArrayLike) -> NDArray[np.int64]:
    """How many of f = 1, ½, ¼ … are at least √(2 log 20 / n); at least one."""
    return np.asarray(1 + np.floor(0.5 * np.log2(np.maximum(n, TUNED) / TUNED)), np.int64)


def _log_factor(x: Floats, bet: float, mean: float) -> Floats:
    with np.errstate(divide="ignore"):  # the whole stake is lost: −inf
        return np.asarray(np.log1p(bet * (mean - x) / (1 - mean)))


def _checked(costs: ArrayLike, bound: float) -> Floats:
    if not (np.isfinite(bound) and bound > 0):
        raise ValueError(f"bound={bound}: expected a finite number > 0, the largest cost a row can have")
    array = np.asarray(costs, np.float64)
    if array.ndim != 1 or not ((array >= 0) & (array <= bound)).all():
        raise ValueError(f"costs of shape {array.shape}: expected one number from 0 to {bound:g} per row, shape (n,)")
    return array / bound
