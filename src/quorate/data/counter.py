"""Counter-based randomness: a number is a pure function of (seed, counters, id), never of call order.

SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, fig. 17): from state
s the n-th output is mix(s + (n + 1)·γ) mod 2⁶⁴. Its outputs are used as states again, one level per counter:

    state(seed) = SplitMix64(0)[seed];   state(…, c) = SplitMix64(state(…))[c];   bits(…, id) = SplitMix64(state(…))[id]

Shapes: ids (B,) integers; results (B,). Integer arithmetic only, so the same bits on every machine and version.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

GAMMA = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio, odd: n ↦ s + (n + 1)·γ is a bijection


def splitmix64(state: int, counters: np.ndarray) -> np.ndarray:
    """Outputs number `counters` (B,) uint64 of SplitMix64 started at `state`: (B,) uint64."""
    z = (counters + np.uint64(1)) * np.uint64(GAMMA) + np.uint64(state)  # array arithmetic wraps, by definition
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def counter(value: int, name: str) -> int:
    """`value` as an int in [0, 2⁶⁴); anything else is a ValueError that says which argument (`name`) it was."""
    try:
        number = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise ValueError(f"{name} must be an integer in [0, 2**64), got {value!r}: pass a non-negative int")
    return number


def bits(seed: int, counters: Sequence[int], ids: np.ndarray) -> np.ndarray:
    """64 random bits per id.

    seed: int in [0, 2⁶⁴). counters: any number of them, each in [0, 2⁶⁴); their order and number count.
    ids: (B,) integers, negative ones allowed. Returns (B,) uint64. Raises ValueError for anything else.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids must be a 1-D integer array, got shape {ids.shape} of {ids.dtype}: pass one id per sample")
    state = 0
    for value in (counter(seed, "seed"), *(counter(c, "a counter (epoch, draw)") for c in counters)):
        state = int(splitmix64(state, np.array([value], np.uint64))[0])
    return splitmix64(state, ids.astype(np.uint64))  # C conversion: −1 becomes 2⁶⁴ − 1


def uniforms(seed: int, epoch: int, ids: np.ndarray, draw: int) -> np.ndarray:
    """Uniform numbers in [0, 1), one per sample: the same for (seed, epoch, id, draw) in any batch, order or worker.

    seed, epoch, draw: ints in [0, 2⁶⁴); draw tells several numbers of one sample apart. ids: (B,) integers.
    Returns (B,) float64, multiples of 2⁻⁵³. Raises ValueError for anything else.
    """
    return (bits(seed, (epoch, draw), ids) >> np.uint64(11)).astype(np.float64) * 2.0**-53
