"""The frame of every image corruption: checks, raw values to [0, 1] and back, a bounded number of rows at a time.

Hendrycks & Dietterich 2019 (arXiv 1903.12261) with the five severities of their CIFAR-10-C. Constants in pixels are those
published for 32×32. They grow with larger images, ×`scale` = max(1, min(H, W) / 32), as lengths do between their CIFAR-10-C and
their ImageNet-C (224 pixels), and never shrink; amplitudes, shares and JPEG qualities are the same at every size.

Shapes: x (B, C, H, W) raw uint8 or float32, 0 = black and `high` = white; ids (B,); an effect sees float32 in [0, 1] and may
leave it, what it returns is clipped. Integer results are rounded to the nearest.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.data.corruptions.drawing import Key

Floats = NDArray[np.float32]
Effect = Callable[[Floats, Any, Key], NDArray[np.floating]]
HIGH = "high= (on the command line --corruption_high)"
LEAST = 8
VALUES = 2**20  # at a time, so that intermediate arrays stay small whatever the batch


def scale(height: int, width: int) -> float:
    """By how much the published lengths in pixels grow: max(1, min(H, W) / 32)."""
    return max(1.0, min(height, width) / 32)


def check_severity(severity: int) -> int:
    """`severity` as an int in 1 … 5; ValueError for anything else."""
    if isinstance(severity, bool) or not isinstance(severity, int | np.integer) or not 1 <= severity <= 5:
        raise ValueError(f"severity must be a whole number 1 … 5, got {severity!r}: for clean inputs use the split itself")
    return int(severity)


def positive(name: str, value: Any, meaning: str) -> float:
    """`value` as a float that is positive and finite in float32; ValueError for anything else."""
    try:
        number = float(value) if not isinstance(value, bool) and isinstance(value, numbers.Real) else np.nan
    except OverflowError:
        number = np.inf
    with np.errstate(over="ignore", under="ignore"):
        if not 0 < np.float32(number) < np.inf:
            raise ValueError(f"{name} must be a positive finite number, {meaning}, got {value!r}")
    return number


def check_ids(ids: NDArray, rows: int) -> NDArray[np.integer]:
    """`ids` as one integer per row; ValueError for anything else."""
    ids = np.asarray(ids)
    if ids.shape != (rows,) or ids.dtype.kind not in "iu":
        raise ValueError(f"ids must be {rows} integers, one per row of x, got shape {ids.shape} of {ids.dtype}")
    return ids


def white(x: NDArray, high: float | None, name: str) -> float:
    """The raw value that is white: `high`, or 255 for uint8 where it is None.

    Raises ValueError for dtypes other than uint8 and float32, float images without `high`, a `high` that can't be, or pixels
    outside 0 … `high`.
    """
    if x.dtype not in (np.uint8, np.float32):
        raise ValueError(f"{name} needs uint8 or float32 images, got {x.dtype}: convert them with x.astype first")
    if high is None and x.dtype != np.uint8:
        raise ValueError(f"{name} needs to know which value of float images is white: give {HIGH}, 1.0 where they are in 0 … 1")
    top = 255.0 if high is None else positive(HIGH, high, "the raw value that is white")
    if x.dtype == np.uint8 and (top > 255 or top != int(top)):
        raise ValueError(f"{HIGH} must be a whole number in 1 … 255 for uint8 images, got {high!r}")
    if x.size and not (x.dtype == np.uint8 and top == 255) and not (x.min() >= 0 and x.max() <= top):
        raise ValueError(
            f"{name} needs pixels in 0 … {top:g}, which is taken for white, got {x.min():g} … {x.max():g}: give {HIGH}, the raw value "
            "that is"
        )
    return top


@dataclass(frozen=True)
class ImageCorruption:
    """One image corruption: `corruption(x, severity, seed, ids, high=None)` → a new array of x's shape and dtype.

    name: part of the randomness. constants: the effect's, one entry per severity 1 … 5. effect: (x in [0, 1], constants, key) →
    images. colour: works on grey (C = 1) and RGB (C = 3) only; the others take any number of channels, each for itself.
    """

    name: str
    constants: tuple[Any, ...]
    effect: Effect
    colour: bool = False

    def __call__(
        self, x: NDArray, severity: int, seed: int, ids: NDArray[np.integer], *, high: float | None = None
    ) -> NDArray[Any]:
        """Each row depends on (seed, name, severity, id, pixels) alone: the same bytes in any batch and order.

        x: (B, C, H, W), H and W at least 8. severity: 1 … 5. seed: ≥ 0. ids: (B,) integers. high: the raw value that is white,
        255 for uint8 by default, needed for float32 images.
        Raises ValueError for other shapes, dtypes, values or arguments.
        """
        constants, top = self.constants[check_severity(severity) - 1], self.check(x, high)
        ids, out = check_ids(ids, len(x)), np.empty_like(x, order="C")
        rows = max(1, VALUES // max(1, x[0].size)) if len(x) else 1
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            key = Key(seed, self.name, int(severity), ids[part])
            seen = np.ascontiguousarray(x[part], np.float32) / np.float32(top)
            result = np.clip(self.effect(seen, constants, key), 0, 1) * np.float32(top)
            out[part] = np.rint(result) if x.dtype == np.uint8 else result
        return out

    def check(self, x: NDArray, high: float | None) -> float:
        """The raw value that is white; ValueError for images that can't be corrupted so."""
        if x.ndim != 4:
            raise ValueError(f"{self.name} needs images (B, C, H, W), got shape {x.shape}")
        self.check_shape(x.shape[1:])
        return white(x, high, self.name)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """ValueError unless inputs of `shape` (without the batch) can be corrupted so."""
        if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < LEAST:
            raise ValueError(f"{self.name} needs images (C, H, W) of at least {LEAST}×{LEAST} pixels, got shape {tuple(shape)}")
        if self.colour and shape[0] not in (1, 3):
            raise ValueError(
                f"{self.name} works on colours: it needs 1 channel (grey) or 3 (RGB), got {shape[0]}; leave it out for such images"
            )
