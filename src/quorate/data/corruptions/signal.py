"""The frame of the corruptions of sequences and log-mel spectrograms: checks, units, a bounded number of rows at a time.

What these do is told in units of the data: `mean` and `std` of each channel in raw values, as `Data.mean` and `Data.std` hold them for
the training split, and where decibels are meant, `decibel`, the raw values per decibel (1 for spectrograms in dB, ln 10 / 10 for
natural logarithms of power, 255 / range for uint8 over a range in dB). None of them is guessed.

Shapes: sequences x (B, C, L), log-mel spectrograms x (B, 1, frames, mels); uint8 or float32; ids (B,); mean, std (C,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quorate.data.corruptions.drawing import Key
from quorate.data.corruptions.image import LEAST, VALUES, Floats, check_ids, check_severity, positive


class Units(NamedTuple):
    """Raw mean and std per channel, (C, 1, …), and raw values per decibel (NaN where none were given)."""

    mean: Floats
    std: Floats
    decibel: float


Effect = Callable[[Floats, Any, Key, Units], NDArray[np.floating]]
DECIBEL = "decibel= (on the command line --corruption_decibel)"
AXES = {"image": "(C, H, W)", "sequence": "(C, L)", "log-mel": "(1, frames, mels)"}


@dataclass(frozen=True)
class SignalCorruption:
    """One corruption: `corruption(x, severity, seed, ids, mean=, std=, decibel=)` → a new array of x's shape and dtype.

    name: part of the randomness. kind: of the inputs. constants: the effect's, one entry per severity 1 … 5. effect: (float32 x,
    constants, key, units) → x; uint8 results are rounded and clipped to 0 … 255. channels: that there have to be at least.
    decibels: whether `decibel` is needed.
    """

    name: str
    kind: Literal["sequence", "log-mel"]
    constants: tuple[float, ...]
    effect: Effect
    channels: int = 1
    decibels: bool = False

    def __call__(
        self,
        x: NDArray,
        severity: int,
        seed: int,
        ids: NDArray[np.integer],
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        decibel: float | None = None,
    ) -> NDArray[Any]:
        """Each row depends on (seed, name, severity, id, values) alone: the same bytes in any batch and order.

        x: as the module says, uint8 or float32. severity: 1 … 5. seed: ≥ 0. ids: (B,) integers. mean, std: one raw value per
        channel. decibel: raw values per decibel, where `decibels`.
        Raises ValueError for other shapes, dtypes or arguments, and for units that are missing.
        """
        constant = self.constants[check_severity(severity) - 1]
        self.check_shape(x.shape[1:])
        if x.dtype not in (np.uint8, np.float32):
            raise ValueError(f"{self.name} needs uint8 or float32 values, got {x.dtype}: convert them with x.astype first")
        units = self.units(x, mean, std, decibel)
        ids, out = check_ids(ids, len(x)), np.empty_like(x, order="C")
        rows = max(1, VALUES // max(1, x[0].size)) if len(x) else 1
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            key = Key(seed, self.name, int(severity), ids[part])
            result = self.effect(np.ascontiguousarray(x[part], np.float32), constant, key, units)
            out[part] = np.clip(np.rint(result), 0, 255) if x.dtype == np.uint8 else result
        return out

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """ValueError unless inputs of `shape` (without the batch) can be corrupted so."""
        if len(shape) != (2 if self.kind == "sequence" else 3) or shape[0] < 1 or min(shape[1:]) < LEAST:
            raise ValueError(
                f"{self.name} needs {self.kind} inputs {AXES[self.kind]} of length {LEAST} or more, got shape {tuple(shape)}"
            )
        if self.kind == "log-mel" and shape[0] != 1:
            raise ValueError(f"{self.name} needs log-mel inputs {AXES['log-mel']} of one channel, got shape {tuple(shape)}")
        if shape[0] < self.channels:
            raise ValueError(
                f"{self.name} needs at least {self.channels} channels, got {shape[0]}: nothing would be left, leave it out"
            )

    def units(self, x: NDArray, mean: Sequence[float] | None, std: Sequence[float] | None, decibel: float | None) -> Units:
        """The units in arrays that broadcast over x; ValueError where they are missing or don't fit."""
        if mean is None or std is None:
            raise ValueError(f"{self.name} needs the raw mean and std of each channel: give mean=data.mean, std=data.std")
        found = [_floats(values) for values in (mean, std)]
        if any(v.shape != x.shape[1:2] or not np.isfinite(v).all() for v in found) or not (found[1] > 0).all():
            raise ValueError(
                f"mean and std must be {x.shape[1]} finite numbers, one per channel, std above 0, got mean={mean} and std={std}"
            )
        if self.decibels and decibel is None:
            raise ValueError(
                f"{self.name} is told in decibels: give {DECIBEL}, the raw values per decibel, 1.0 for log-mel in dB"
            )
        per_decibel = np.nan if decibel is None else positive(DECIBEL, decibel, "the raw values per decibel")
        wide = (-1, *[1] * (x.ndim - 2))
        return Units(found[0].reshape(wide), found[1].reshape(wide), per_decibel)


def _floats(values: Sequence[float]) -> Floats:
    """float32, empty where they are no numbers."""
    try:
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float32)
    except (TypeError, ValueError):
        return np.zeros(0, np.float32)


def signs(uniform: NDArray[np.float64]) -> Floats:
    """−1 or 1 at even odds, from uniform numbers."""
    return np.where(uniform < 0.5, np.float32(-1), np.float32(1))


def shifted(x: Floats, axis: int, share: float, towards: Floats) -> Floats:
    """x moved along `axis` by that share of its length, at least one place, by the sign of `towards` (B,); edges are held."""
    length = x.shape[axis]
    places = np.arange(length) - (max(1, round(share * length)) * towards.astype(np.int64))[:, None]
    wide = [len(x), *[1] * (x.ndim - 1)]
    wide[axis] = length
    return np.take_along_axis(x, np.clip(places, 0, length - 1).reshape(wide), axis)


def span(length: int, share: float, uniform: NDArray[np.float64], first: int = 0) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """A run of that share of `length` places, at least one and not all, starting at `first` or later: starts (B,), mask (B, length)."""
    run = min(max(1, round(share * length)), length - max(1, first))
    start = first + np.floor(uniform * (length - run - first + 1)).astype(np.int64)
    ahead = np.arange(length) - start[:, None]
    return start, (ahead >= 0) & (ahead < run)
