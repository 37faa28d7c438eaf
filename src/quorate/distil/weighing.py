"""Weights K^± = e^(∓u) / C of a game in logarithms, from u = ηS and ln C = ln Σ 2 cosh u (see quorate.distil.game).

Shapes: u (n, L) float64, row blocks; ln C (L,), or (1,) where one sum is over the outputs too. It is kept as max |u| and what is beyond it,
so that weights sum to 1 however large u is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LogNormaliser:
    """ln C = most + beyond, (L,) or (1,): max |u|, and ln Σ (e^(u − most) + e^(−u − most))."""

    most: Floats
    beyond: Floats

    @property
    def total(self) -> Floats:
        """ln C."""
        total: Floats = self.most + self.beyond
        return total

    def since(self, before: LogNormaliser) -> Floats:
        """ln C less that of the round before: ln Z."""
        log_z: Floats = (self.most - before.most) + (self.beyond - before.beyond)
        return log_z


class LogCosh:
    """Σ_i 2 cosh(u_ij) over row blocks, about the running maximum of |u|."""

    def __init__(self, outputs: int) -> None:
        self._most, self._sum = np.zeros(outputs), np.zeros(outputs)

    def add_(self, u: Floats) -> None:
        """Take in the rows of u (n, L), which is overwritten."""
        size = np.abs(u)
        most = np.maximum(self._most, size.max(axis=0))
        self._sum *= np.exp(self._most - most)
        np.subtract(size, most, out=u)
        self._sum += np.exp(u, out=u).sum(axis=0)
        np.add(size, most, out=size)
        np.negative(size, out=size)
        self._sum += np.exp(size, out=size).sum(axis=0)
        self._most = most

    def value(self, joint: bool) -> LogNormaliser:
        """ln C (L,), or (1,) over all outputs; of no rows it is −∞."""
        most, total = self._most, self._sum
        if joint:
            most = most.max(keepdims=True)
            total = (total * np.exp(self._most - most)).sum(keepdims=True)
        return LogNormaliser(most, np.log(total))


def weigh(u: Floats, log_c: LogNormaliser) -> tuple[Floats, Floats]:
    """K^± = e^(∓u) / C of u (n, L), which is overwritten."""
    minus = u - log_c.most
    minus -= log_c.beyond
    np.add(u, log_c.most, out=u)
    np.add(u, log_c.beyond, out=u)
    np.negative(u, out=u)
    return np.exp(u, out=u), np.exp(minus, out=minus)
