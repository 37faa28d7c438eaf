"""Shaped weights for the *search* of a student, and the robust bound on its errors.

The maximum norm that the game of B-DISTIL (see quorate.distil.game) plays for chases outliers: after some rounds few samples hold all the
weight. What a student is trained on may therefore be shaped; S, Z, edges and certificates never are. With a cap c on η|S| and a uniform
share ρ, N the number of rows (of entries in the joint game),

    K̃^± = (1 − ρ) e^(∓u) / Σ 2 cosh u + ρ / (2N),      u = min(max(ηS, −c), c)

The effective sample size (Kish 1965, Survey Sampling) of weights w = K̃⁺ + K̃⁻ is (Σ w)² / Σ w², from 1 to N.

Shapes: weights (N, L) in [0, 1]; per output (L,), in the joint game (1,).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from quorate.distil.game import Game, check_dtype
from quorate.distil.rows import Rows, block_rows, blocks, number, sliced, some
from quorate.distil.weighing import Floats, LogCosh, LogNormaliser, weigh

BITS = 16
"""Bits of a float32 that one pass of the exact quantile sorts by."""

ROUNDING = 1e-6  # of an entry: 0.1 of 30 entries are 3, not 4


class SearchWeights:
    """The weights of a game's present round, shaped for a search; with the default values they are the game's own.

    Args:
        game: in the round of which a student is searched for; after an update new ones are to be made.
        cap: c > 0 on η|S|: no weight is more than e^2c times another. None for none.
        uniform: ρ from 0 to 1, the share of the weight that is spread evenly.

    Raises:
        ValueError: a value outside its range; use after the game went on to another round.
    """

    def __init__(self, game: Game, *, cap: float | None = None, uniform: float = 0.0) -> None:
        self.game, self.rounds = game, game.rounds
        self.cap = None if cap is None else number("cap", cap, 1e-100, 1e100, "a number from 1e-100 to 1e100, or None")
        self.uniform = number("uniform", uniform, 0.0, 1.0, "a share from 0 to 1")
        self._normaliser = game.normaliser if self.cap is None else self._capped_normaliser()

    def _capped_normaliser(self) -> LogNormaliser:
        total = LogCosh(self.game.outputs)
        for _, u in self.game.scaled():
            total.add_(self._capped(u))
        return total.value(self.game.joint)

    def _capped(self, u: Floats) -> Floats:
        return u if self.cap is None else np.clip(u, -self.cap, self.cap, out=u)

    def _shaped(self, u: Floats) -> tuple[Floats, Floats]:
        plus, minus = weigh(self._capped(u), self._normaliser)
        if self.uniform:
            for weights in (plus, minus):
                weights *= 1 - self.uniform
                weights += self.uniform * math.exp(-self.game.log_entries)
        return plus, minus

    def _check_round(self) -> None:
        if self.game.rounds != self.rounds:
            raise ValueError(f"these weights are of round {self.rounds}, the game is in round {self.game.rounds}: make new ones")

    def weights(self, rows: slice | ArrayLike | None = None, dtype: DTypeLike = np.float64) -> tuple[NDArray, NDArray]:
        """K̃⁺ and K̃⁻, (n, L) each; rows, dtype and errors as :meth:`Game.weights`."""
        self._check_round()
        game, index = self.game, self.game.chosen(rows)
        plus, minus = (np.empty((len(index), game.outputs), check_dtype(dtype)) for _ in range(2))
        for start in range(0, len(index), game.block):
            part = slice(start, start + game.block)
            plus[part], minus[part] = self._shaped(np.multiply(game.scores[index[part]], game.eta, dtype=np.float64))
        return plus, minus

    def weight_blocks(self, dtype: DTypeLike = np.float64) -> Iterator[tuple[slice, NDArray, NDArray]]:
        """(rows, K̃⁺, K̃⁻) of all rows, block by block; dtype as :meth:`weights`."""
        kind = check_dtype(dtype)
        self._check_round()
        for rows, u in self.game.scaled():
            plus, minus = self._shaped(u)
            yield rows, plus.astype(kind, copy=False), minus.astype(kind, copy=False)

    def effective_samples(self) -> Floats:
        """The effective sample size, from 1 to N per output (L,), of the joint game from 1 to N·L over all entries (1,)."""
        squares = np.zeros(self.game.outputs)
        for _, plus, minus in self.weight_blocks():
            squares += np.square(plus + minus).sum(axis=0)
        return 1 / (squares.sum(keepdims=True) if self.game.joint else squares)


@dataclass(frozen=True)
class RobustBound:
    """A bound G on |d| that outliers do not set.

    value: G, in the outputs' units.
    clipped: the share of entries with |d| > G.
    largest: the largest |d|.
    """

    value: float
    clipped: float
    largest: float


def robust_bound(d: Rows, quantile: float = 0.999) -> RobustBound:
    """G as a quantile of |d| over all entries: the ⌈q·n⌉-th smallest of n, exact in float32.

    Two passes by row blocks, in memory that does not grow with N: floats ≥ 0 are ordered as their bits are, of which the first pass counts
    the upper half and the second, among those that share G's, the lower.

    Args:
        d: f − g (N, L), an array that can be read twice: in memory or mapped.
        quantile: q above 0, at most 1.

    Raises:
        ValueError: another shape or dtype, row blocks that come once, NaN or infinities (the rows are named), values beyond float32.
    """
    array = sliced(d)
    if array is None or len(array.shape) != 2 or 0 in array.shape:
        had = type(d).__name__ if array is None else f"an array of shape {tuple(array.shape)}"
        raise ValueError(f"d is {had}: expected an array (samples, outputs) that is not empty")
    number("quantile", quantile, math.nextafter(0, 1), 1.0, "a number above 0, at most 1")
    rows, outputs = array.shape
    entries = rows * outputs
    rank = min(entries, max(1, math.ceil(quantile * entries - ROUNDING)))
    upper, lower, most = np.zeros(1 << BITS, np.int64), np.zeros(1 << BITS, np.int64), 0
    for bits in _bits(array, rows, outputs):
        upper += np.bincount(bits >> BITS, minlength=1 << BITS)
        most = max(most, int(bits.max()))
    high = int(np.searchsorted(np.cumsum(upper), rank))
    before = int(upper[:high].sum())
    for bits in _bits(array, rows, outputs):
        lower += np.bincount(bits[bits >> BITS == high] & ((1 << BITS) - 1), minlength=1 << BITS)
    low = int(np.searchsorted(np.cumsum(lower), rank - before))
    within = before + int(lower[: low + 1].sum())
    return RobustBound(_float((high << BITS) | low), (entries - within) / entries, _float(most))


def _bits(array: NDArray, rows: int, outputs: int) -> Iterator[NDArray[np.uint32]]:
    for at, part in blocks("d", array, (rows, outputs), block_rows(outputs)):
        with np.errstate(over="ignore"):
            size = np.abs(part).astype(np.float32)
        if not np.isfinite(size).all():
            bad = at.start + np.flatnonzero(~np.isfinite(size).all(axis=1))
            raise ValueError(f"d has values beyond float32 in rows {some(bad)}: scale or clip the outputs")
        yield np.ascontiguousarray(size).view(np.uint32).ravel()


def _float(bits: int) -> float:
    return float(np.array(bits, np.uint32).view(np.float32))
