"""Random numbers of a corrupted row: pure functions of (seed, corruption's name, severity, row id), never of batch or order.

With bits and SplitMix64 as in `quorate.data.counter`, the k-th number of stream t of a row is

    SplitMix64(0)[bits(seed, (name, severity, t), id) + k],

where the name counts as the first eight bytes of its sha256. Uniform numbers are midpoints of 2⁵² equal cells of (0, 1);
normal and Poisson numbers come from them by inversion of the distribution function.

Shapes: ids (B,) integers; results (B, *shape) float64.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, pdtr, pdtrik

from quorate.data.counter import bits, splitmix64

FEW = 4096  # distinct rates up to which a Poisson table per rate is the faster way


class Key(NamedTuple):
    """What decides the randomness of rows: seed, name and severity of the corruption, and each row's id."""

    seed: int
    name: str
    severity: int
    ids: NDArray[np.integer]


def uniforms(key: Key, stream: int, *shape: int) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1): (B, *shape); `stream` tells several arrays of one row apart."""
    name = int.from_bytes(hashlib.sha256(key.name.encode()).digest()[:8], "little")
    start = bits(key.seed, (name, key.severity, stream), key.ids)
    count = math.prod(shape)
    drawn = splitmix64(0, start[:, None] + np.arange(count, dtype=np.uint64))
    cells = (drawn >> np.uint64(12)).astype(np.float64)  # below 2⁵², so that cell + ½ is exact and never 2⁵²
    return np.asarray((cells + 0.5) * 2.0**-52).reshape(len(start), *shape)


def normals(key: Key, stream: int, *shape: int) -> NDArray[np.float64]:
    """Standard normal numbers: (B, *shape)."""
    return np.asarray(ndtri(uniforms(key, stream, *shape)))


def poissons(rates: NDArray[np.floating], key: Key, stream: int) -> NDArray[np.float64]:
    """Poisson numbers of mean `rates` (B, *shape), each ≥ 0: the least k with P(K ≤ k) ≥ u."""
    u = uniforms(key, stream, *rates.shape[1:])
    distinct, which = np.unique(rates, return_inverse=True)
    if len(distinct) > FEW:  # both ways ask the same distribution function, so the answer does not tell which was taken
        return _least(np.asarray(rates, np.float64), u)
    flat, counts = u.reshape(-1), np.empty(u.size)
    order = np.argsort(which.reshape(-1).astype(np.uint16), kind="stable")
    ends = np.cumsum(np.bincount(which.reshape(-1), minlength=len(distinct)))
    for rate, end, begin in zip(distinct.astype(np.float64), ends, [0, *ends[:-1]], strict=True):
        rows = order[begin:end]
        highest = math.ceil(rate + 9 * math.sqrt(rate) + 40)  # P(K > highest) < 2⁻⁵³, the least 1 − u
        counts[rows] = np.searchsorted(pdtr(np.arange(highest), rate), flat[rows])
    return counts.reshape(u.shape)


def _least(rates: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least k with P(K ≤ k) ≥ u, near where the continuous inverse says."""
    k = np.where(rates > 0, np.maximum(np.ceil(pdtrik(u, np.where(rates > 0, rates, 1.0))), 0.0), 0.0)
    k = np.where(np.isfinite(k), k, np.floor(rates))
    while (more := pdtr(k, rates) < u).any():
        k += more
    while (fewer := (k > 0) & (pdtr(np.maximum(k - 1, 0), rates) >= u)).any():
        k -= fewer
    return np.asarray(k, np.float64)
