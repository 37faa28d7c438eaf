"""Which weights are live: masks as plain data, drawn with exact counts, applied in place, packed to bits, hashed and compared.

A mask is a bool tensor of its weight's shape, True where the weight is live; :data:`Masks` holds one per sparse weight, by the name the
weight has in ``model.named_parameters()``. Flat indices run in row-major order of the shape, whatever the memory format.

Applying multiplies the weights' bits, read as integers, by 0 or 1. So live weights stay as they are, bit for bit, and dead ones become
+0.0 whatever they held: a product of floats would leave −0.0, and NaN where a dead weight was infinite. It is as fast as that product
and five times as fast as ``masked_fill_`` on a CPU, and one foreach call on a GPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Masks = dict[str, Tensor]
"""Masks by the names of their weights."""

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as a weight, by bytes."""


def draw(shape: Sequence[int], live: int, rng: np.random.Generator) -> Tensor:
    """A mask on the CPU with exactly ``live`` live places, all such masks equally likely.

    Raises:
        ValueError: ``live`` is not in 0 … the size of the shape.
    """
    size = math.prod(shape)
    if not 0 <= live <= size:
        raise ValueError(f"{live} live weights were asked of shape {tuple(shape)}: expected 0 … {size}")
    mask = np.zeros(size, bool)
    mask[rng.choice(size, live, replace=False, shuffle=False)] = True
    return torch.from_numpy(mask).reshape(tuple(shape))


def check_mask(mask: Tensor, name: str = "mask", shape: Sequence[int] | None = None) -> Tensor:
    """A bool tensor, of the shape where one is given."""
    if mask.dtype != torch.bool or (shape is not None and tuple(mask.shape) != tuple(shape)):
        expected = "bool" if shape is None else f"bool {tuple(shape)}, as the weight"
        raise ValueError(f"{name} is {mask.dtype} of shape {tuple(mask.shape)}: expected {expected}")
    return mask


def pack_bits(mask: Tensor) -> Tensor:
    """The mask as uint8 (ceil(N / 8),) on the CPU: place i is bit i mod 8 of byte i // 8, the lowest bit first; unused bits are 0."""
    bits = check_mask(mask).detach().cpu().reshape(-1).numpy()
    return torch.from_numpy(np.packbits(bits, bitorder="little"))


def unpack_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask of a shape from its packed bits, on the CPU.

    Raises:
        ValueError: other than uint8 (ceil(N / 8),), or bits set beyond the last place.
    """
    size = math.prod(shape)
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (-(-size // 8),):
        raise ValueError(
            f"packed bits are {bits.dtype} of shape {tuple(bits.shape)}: expected uint8 ({-(-size // 8)},) for shape {tuple(shape)}"
        )
    flat = np.unpackbits(bits.detach().cpu().numpy(), bitorder="little")
    if flat[size:].any():
        raise ValueError(
            f"packed bits are set beyond the {size} places of shape {tuple(shape)}: expected 0 there, they are damaged"
        )
    return torch.from_numpy(flat[:size].astype(bool)).reshape(tuple(shape))


def digest(masks: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of names, shapes and bits; the order of the names and the device do not matter."""
    hashed = hashlib.sha256()
    for name in sorted(masks):
        head = f"{len(name)}:{name}{tuple(masks[name].shape)}"
        hashed.update(head.encode())
        hashed.update(pack_bits(masks[name]).numpy().tobytes())
    return hashed.hexdigest()


def overlap(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Jaccard index |A ∩ B| / |A ∪ B| of the live weights of all masks together, in [0, 1]; 1 for two sets without any.

    Raises:
        ValueError: masks of different weights or shapes.
    """
    if set(a) != set(b):
        odd = sorted(set(a) ^ set(b))
        raise ValueError(f"masks differ in weight {odd[0]!r} ({len(odd)} in all): expected masks of the same weights")
    both, either = 0, 0
    for name, mask in a.items():
        ours, theirs = check_mask(mask, f"mask {name!r}"), check_mask(b[name], f"mask {name!r}", mask.shape)
        theirs = theirs.to(ours.device)
        both += int((ours & theirs).count_nonzero())
        either += int((ours | theirs).count_nonzero())
    return both / either if either else 1.0


class Multipliers:
    """Masks made ready to be applied to their weights after every optimiser step; to be made anew when masks change.

    Args:
        weights: tensors of up to 8 bytes per element, floating or complex; they tell devices, widths and memory formats and are not held.
        masks: theirs, in the same order, on any device.

    Raises:
        ValueError: as many masks as weights are expected, each bool and of its weight's shape.
    """

    def __init__(self, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        if len(weights) != len(masks):
            raise ValueError(f"there are {len(masks)} masks for {len(weights)} weights: expected one each, in the same order")
        for at, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
            check_mask(mask, f"mask {at}", weight.shape)
        self._multipliers = [
            torch.empty_like(weight, dtype=INTEGERS[weight.element_size()], requires_grad=False).copy_(mask)
            for weight, mask in zip(weights, masks, strict=True)
        ]

    def apply_(self, weights: Sequence[Tensor]) -> None:
        """Set dead weights to +0.0 in place; live ones keep their bits. ``weights`` are those given first, or tensors just like them."""
        if len(weights) != len(self._multipliers):
            raise ValueError(f"{len(weights)} weights came: expected {len(self._multipliers)}, one per mask")
        if weights:
            bits = [weight.detach().view(INTEGERS[weight.element_size()]) for weight in weights]
            torch._foreach_mul_(bits, self._multipliers)

    def mask_(self, at: int, tensor: Tensor) -> None:
        """Set a tensor of weight number ``at``, its gradient or state, of any width, to +0.0 in place where the weight is dead."""
        bits = tensor.detach().view(INTEGERS[tensor.element_size()])
        bits.mul_(self._multipliers[at].to(bits.dtype))


def apply_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Set dead weights to +0.0 in place, live ones keep their bits; :class:`Multipliers` does it again and again at less cost."""
    Multipliers(weights, masks).apply_(weights)
