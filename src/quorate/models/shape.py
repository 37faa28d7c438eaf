"""The sizes and options a model is built for: checked once, in `__init__`, so that `forward` stays free of conditions."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any


def whole(name: str, value: int, least: int = 1) -> int:
    """`value` as an int of at least `least`. Raises ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name}: expected an int of at least {least}, got {value!r}; pass a whole number")
    return number


def widths(name: str, values: Sequence[int], count: int | None = None) -> tuple[int, ...]:
    """`values` as a tuple of ints of at least 1, `count` of them if given. Raises ValueError."""
    if not isinstance(values, Sequence):
        raise ValueError(f"{name}: expected a tuple of ints, got {values!r}; pass for example (64,)")
    if count is not None and len(values) != count:
        raise ValueError(f"{name}: expected {count} ints, got {len(values)} in {values!r}; pass one per layer")
    return tuple(whole(f"{name}[{i}]", value) for i, value in enumerate(values))


def input_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one input, without the batch: at least one dimension. Raises ValueError."""
    sizes = widths("shape", shape)
    if not sizes:
        raise ValueError("shape: expected at least one dimension, got (); pass the shape of one input, no batch")
    return sizes


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape of one image, without the batch: (channels, height, width). Raises ValueError."""
    sizes = widths("shape", shape)
    if len(sizes) != 3:
        raise ValueError(f"shape: expected (channels, height, width), got {sizes}; pass the shape of one image, no batch")
    return sizes[0], sizes[1], sizes[2]


def sequence_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The shape of one sequence, without the batch: (channels, length). Raises ValueError."""
    sizes = widths("shape", shape)
    if len(sizes) != 2:
        raise ValueError(f"shape: expected (channels, length), got {sizes}; pass the shape of one sequence, no batch")
    return sizes[0], sizes[1]


def real(value: Any) -> float:
    """`value` as a float, NaN if it is no number."""
    return math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)


def probability(name: str, value: float) -> float:
    """`value` as a float in [0, 1). Raises ValueError."""
    if not 0.0 <= real(value) < 1.0:
        raise ValueError(f"{name}: expected a probability in [0, 1), got {value!r}; 0 is no {name}")
    return float(value)


def choice(name: str, value: str, options: Sequence[str]) -> str:
    """`value` if it is one of `options`. Raises ValueError."""
    if value not in options:
        listed = " or ".join(f'"{option}"' for option in options)
        raise ValueError(f"{name}: expected {listed}, got {value!r}; pass one of them")
    return value
