"""The sizes a model is built for: checked once, in `__init__`, so that `forward` stays free of conditions."""

from __future__ import annotations

import operator
from collections.abc import Sequence


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
