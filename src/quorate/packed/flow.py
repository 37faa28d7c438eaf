"""What flows along the edges of a model's graph, seen as the single network computes it, and how a step is refused.

Raw         a tensor that comes from the input by steps without parameters: the same for all members
Constant    a buffer, or a tensor made of sizes: the same for all members
Learned     a bare parameter, or what was computed from it alone: each member has its own, without a batch
Own         a tensor that each member has for itself; at `axis` it is α/M times as wide as the single network's
Number      a size of a tensor, or another plain value
Group       a tuple or a list of flows: shapes, the results of chunk or of an LSTM
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from torch import fx

from quorate.packed.sizes import Size
from quorate.packed.trace import WAY_OUT, where

Dims = tuple[Size, ...]


@dataclass(frozen=True)
class Raw:
    """`dims` are None where no example told them; `batch` is the axis of the batch."""

    dims: Dims | None = None
    batch: int = 0


@dataclass(frozen=True)
class Constant:
    """A tensor of this shape (None: unknown) that does not change with the batch."""

    dims: Dims | None


@dataclass(frozen=True)
class Learned:
    """A parameter of this shape; which of its axes is the width is told by what it meets."""

    dims: Dims


@dataclass(frozen=True)
class Own:
    """Sizes of the single network; the axes of width and batch. No width (axis None): nothing left to narrow.

    dims is None, and axis −1, behind a Linear whose input's shape is unknown. head: behind a last layer, where a
    member is as wide as the single network.
    """

    dims: Dims | None
    axis: int | None
    batch: int = 0
    head: bool = False

    @property
    def rank(self) -> int | None:
        """How many dimensions, None if unknown."""
        return None if self.dims is None else len(self.dims)


@dataclass(frozen=True)
class Number:
    """`size`: its value in the single network, None if not a size. own: read off a tensor of the members'. scaled: depends on a width."""

    size: Size | None = None
    own: bool = False
    scaled: bool = False


@dataclass(frozen=True)
class Group:
    """Several flows."""

    items: tuple[Flow, ...]


Flow = Raw | Constant | Learned | Own | Number | Group
Flows = dict[fx.Node, Flow]

EXAMPLE = "pass example= (a batch of raw inputs), which tells all shapes"
BATCH_FIRST = "keep the rows of the batch apart: no step may mix them or cut them"
REGISTER = "keep it whole with skip=[its module], say how it is packed with quorate.packed.register_packing"
REMEDIES: dict[str, tuple[str, ...]] = {
    f"use torch.nn modules, whose parameters packing knows, {WAY_OUT}": (
        *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "bilinear", "embedding", "prelu"),
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "multi_head_attention_forward"),
    ),
    "it is packed already: give pack the plain model": (
        *("PackedLinear", "PackedConv1d", "PackedConv2d", "PackedConv3d", "PackedMultiheadAttention", "PackedLayerNorm"),
    ),
}


def remedy(name: str) -> str:
    """What to do about a function, method or module of this name."""
    return next((text for text, names in REMEDIES.items() if name in names), f"{REGISTER}, {WAY_OUT}")


def refuse(node: fx.Node, expected: str, came: str, do: str) -> NoReturn:
    """Raise the ValueError of a step that cannot be packed."""
    raise ValueError(f"cannot pack {where(node)}: expected {expected}, got {came}; {do}")


def told(flow: Flow) -> str:
    """A flow in words, for messages."""
    if isinstance(flow, Own):
        if flow.dims is None:
            return "a tensor of unknown shape"
        return f"({', '.join('B' if i == flow.batch else str(d) for i, d in enumerate(flow.dims))})"
    words = {Raw: "a tensor that all members share", Constant: "a constant", Learned: "a parameter", Number: "a number"}
    return words.get(type(flow), "several values")
