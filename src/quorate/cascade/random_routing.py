"""Random routing: a baseline that sends a share of the rows on whatever they say, the same rows wherever it is asked.

Row i goes on after stage k iff h(seed, k, i) < rate, h ∈ [0, 1) the upper 53 bits of SplitMix64 (Steele, Lea & Flood 2014, "Fast
splittable pseudorandom number generators", OOPSLA, Fig. 17). Nothing is drawn in turn, so batches, chunks and the other rows change
nothing; rows are numbered as they lie in the caller's array.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quorate.cascade.policy import StagePolicy
from quorate.combination import Floats

_GAMMA, _MASK = 0x9E3779B97F4A7C15, 0xFFFFFFFFFFFFFFFF


def mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output of these states, elementwise modulo 2⁶⁴."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def uniform(seed: int, stage: int, rows: NDArray[np.int64]) -> Floats:
    """Numbers in [0, 1), one per row number (B,): that many steps of the generator that ``seed`` and ``stage`` start."""
    start = mixed(np.array([(seed + (stage + 1) * _GAMMA) & _MASK], np.uint64))
    state = start + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA)
    return np.asarray((mixed(state) >> np.uint64(11)) * 2.0**-53)


def goes_on(stage: StagePolicy, u: Floats, k: int, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows (B,) go on after stage k: by its window on their uncertainties (B,), or by its rate on their numbers."""
    return stage.goes_on(u) if stage.rate is None else uniform(stage.seed, k, rows) < stage.rate
