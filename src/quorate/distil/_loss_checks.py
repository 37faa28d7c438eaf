"""Checks of what the losses of a round are given: one line each. Values of tensors are not read, as that would wait for the device."""

from __future__ import annotations

import math
import numbers

import torch
from numpy.typing import ArrayLike
from torch import Tensor

Bound = float | Tensor


def full(x: Tensor) -> Tensor:
    """In float32, or float64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


def check_rows(x: Tensor, name: str) -> Tensor:
    """Floats (rows, outputs), in full precision."""
    if x.ndim != 2 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(f"{name} is {x.dtype} of shape {tuple(x.shape)}: expected floats (rows, outputs), at least one of each")
    return full(x)


def check_same(x: Tensor, other: Tensor, name: str) -> None:
    """``other`` has the shape of x, the student's outputs."""
    if other.shape != x.shape:
        raise ValueError(f"{name} has shape {tuple(other.shape)}: expected {tuple(x.shape)}, as the student's outputs")


def is_number(value: object) -> bool:
    """Finite, and not a bool."""
    return type(value) is not bool and isinstance(value, numbers.Real) and math.isfinite(value)


def check_positive(value: float, name: str) -> float:
    """A finite number > 0."""
    if not is_number(value) or value <= 0:
        raise ValueError(f"{name}={value!r}: expected a finite number > 0")
    return float(value)


def check_share(value: float, name: str) -> float:
    """A number in (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: expected a number in (0, 1]")
    return float(value)


def bound_like(value: Bound, like: Tensor, name: str) -> Tensor:
    """A bound as a tensor that broadcasts over rows, where ``like`` (B, L) is; a number is checked."""
    if not isinstance(value, Tensor):
        return like.new_tensor(check_positive(value, name))
    if value.shape not in ((), like.shape[1:]):
        raise ValueError(f"{name} has shape {tuple(value.shape)}: expected a number or {tuple(like.shape[1:])}, one per output")
    return value.to(like)


def fixed_bound(value: ArrayLike | Tensor, name: str, outputs: int) -> Tensor:
    """A bound that holds for a whole training, checked once: () or (L,) in float64."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if tensor.shape not in ((), (outputs,)) or not bool((tensor.isfinite() & (tensor > 0)).all()):
        raise ValueError(f"{name}={tensor.tolist()}: expected a finite number > 0, or {outputs} of them, one per output")
    return tensor
