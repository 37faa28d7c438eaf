"""What flows along the edges of a packed graph, and how a step that cannot be packed is refused.

Raw        a tensor from the input by steps without parameters: the same for all members
Constant   a buffer
Wide       a tensor with the members' channels at dimension 1, member-major
Sizes      the shape of a tensor, or a part of it
Number     one entry of a shape, or another plain value
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from torch import fx

from quorate.packed.trace import WAY_OUT, where


@dataclass(frozen=True)
class Raw:
    """A tensor that all members share."""


@dataclass(frozen=True)
class Constant:
    """A buffer; `scalar` if it is one number."""

    scalar: bool


@dataclass(frozen=True)
class Wide:
    """Members' channels at dimension 1 of `rank`; `width` is the single network's, None where flattening made it unknown.

    head: behind a last layer, so M · width channels in place of α · width.
    """

    rank: int
    width: int | None
    head: bool = False


@dataclass(frozen=True)
class Number:
    """kind: "batch", "spatial" or "channels" of a Wide; "raw" for any value that packing does not change."""

    kind: str


@dataclass(frozen=True)
class Sizes:
    """The kinds of a shape's entries."""

    kinds: tuple[str, ...]


Flow = Raw | Constant | Wide | Number | Sizes
Flows = dict[fx.Node, Flow]

USE = f"use Linear, Conv2d, BatchNorm, pooling, flatten and additions, {WAY_OUT}"
LAYOUT = "keep the batch at dimension 0 and the channels at dimension 1, and flatten with torch.flatten(x, 1)"
REMEDIES: dict[str, tuple[str, ...]] = {
    f"concatenations are not packed yet: add in place of it, {WAY_OUT}": (
        *("cat", "concat", "concatenate", "stack", "hstack", "vstack"),
    ),
    LAYOUT: (
        *("permute", "transpose", "swapaxes", "movedim", "t", "T", "mT", "view", "reshape", "squeeze", "unsqueeze"),
        *("expand", "chunk", "split", "getitem", "flatten", "unflatten", "Flatten", "Unflatten"),
    ),
    "return logits and take the softmax outside the model": (*("softmax", "log_softmax", "Softmax", "LogSoftmax", "Softmax2d"),),
    f"use BatchNorm, {WAY_OUT}": ("LayerNorm", "GroupNorm", "InstanceNorm2d", "layer_norm", "group_norm", "batch_norm"),
    "its slope would be shared by all members: use ReLU or LeakyReLU": ("PReLU", "prelu"),
    "it is packed already: give pack the plain model": ("PackedLinear", "PackedConv2d"),
}


def remedy(name: str) -> str:
    """What to do about a function, method or module of this name."""
    return next((text for text, names in REMEDIES.items() if name in names), f"it is not packed yet: {USE}")


def refuse(node: fx.Node, expected: str, came: str, do: str) -> NoReturn:
    """Raise the ValueError of a step that cannot be packed."""
    raise ValueError(f"cannot pack {where(node)}: expected {expected}, got {came}; {do}")
