"""What a network is to the sparse runtime: layers over named arrays, batch normalisation and activations folded into them.

    Conv     s = weight ∗ source + bias (+ add)         kept as `raw` where a later layer reads it
             target = activation(scale · s + shift)
    Linear   the same with a matrix over a vector
    Pool     largest or mean of windows      Mean    of each plane      Flatten   planes to a vector
    Merge    target = activation(scale · (source + add) + shift)
    Foreign  a part that ONNX Runtime runs

Arrays are (C, H, W) planes or (F,) vectors of one row; a convolution over a sequence (C, L) has planes (C, 1, L). All weights are float32;
dead ones are 0. Every name is written once, before it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Activation = Literal["none", "relu", "relu6", "gelu"]
Floats = NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What happens to a sum s before it is stored.

    Attributes:
        add: name of an array of the target's shape that is added to s, or None.
        raw: name under which s is kept as it is, or None.
        scale, shift: (O,) each, or both None.
        activation: of scale · s + shift.
    """

    add: str | None = None
    raw: str | None = None
    scale: Floats | None = None
    shift: Floats | None = None
    activation: Activation = "none"


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution of dilation 1; a grouped one has zeros in its weight.

    Attributes:
        name: of the layer, unique.
        source, target: of arrays (C, H, W) and (O, H', W'). ``target`` is None where only ``epilogue.raw`` is read later.
        weight: (O, C, Kh, Kw).
        bias: (O,).
        stride: down and across.
        pads: rows of zeros above, columns at the left, below, at the right.
    """

    name: str
    source: str
    target: str | None
    weight: Floats
    bias: Floats
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    epilogue: Epilogue = Epilogue()
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Linear:
    """weight (O, F) and bias (O,) over a vector (F,)."""

    name: str
    source: str
    target: str | None
    weight: Floats
    bias: Floats
    epilogue: Epilogue = Epilogue()


@dataclass(frozen=True, eq=False)
class Pool:
    """The largest or the mean of each window of (C, H, W). ``counted``: whether a mean's divisor counts the padding."""

    name: str
    source: str
    target: str
    kind: Literal["max", "mean"]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    counted: bool = False


@dataclass(frozen=True, eq=False)
class Mean:
    """(C, H, W) → (C,), the mean of each plane."""

    name: str
    source: str
    target: str


@dataclass(frozen=True, eq=False)
class Flatten:
    """(C, H, W) → (C · H · W,), in that order."""

    name: str
    source: str
    target: str


@dataclass(frozen=True, eq=False)
class Merge:
    """activation(scale · (source + add) + shift) of arrays of one shape, by the epilogue, which has no ``raw``."""

    name: str
    source: str
    target: str
    epilogue: Epilogue


@dataclass(frozen=True, eq=False)
class Foreign:
    """A part that ONNX Runtime runs on arrays (B, *shape).

    Attributes:
        name: of its first node.
        sources, targets: arrays it reads and writes; in the graph they have the same names.
        onnx: the serialised graph, with all its weights; every input and output is (batch, *shape) float32 unless ``dtypes`` tells else.
        operators: what it is made of, such as ``("Softmax",)``.
        dtypes: NumPy's name by array, of those that are not float32.
        reason: why it is not run here.
        live: live weights of a convolution or matrix in it, 0 where there is none.
    """

    name: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    onnx: bytes
    operators: tuple[str, ...]
    reason: str
    dtypes: Mapping[str, str]
    live: int = 0


Layer = Conv | Linear | Pool | Mean | Flatten | Merge | Foreign


@dataclass(frozen=True, eq=False)
class Network:
    """A program as layers in an order in which they can run.

    Attributes:
        inputs: {name: shape of a row} of the program's inputs as they come, such as (3, 32, 32); (9, 128) for a sequence.
        shapes: of every array, inner ones as the layers see them: (C, H, W) or (F,).
        layers: in order.
        outputs: {the program's name: (the array it is taken from, its shape of a row)}, where the batch stands ahead of the shape but
            for ``unsqueezed``.
        unsqueezed: outputs that are (1, B, *shape): members of a single network.
        dtypes: NumPy's name by array, of inputs and outputs that are not float32.
    """

    inputs: Mapping[str, Shape]
    shapes: Mapping[str, Shape]
    layers: Sequence[Layer]
    outputs: Mapping[str, tuple[str, Shape]]
    unsqueezed: frozenset[str]
    dtypes: Mapping[str, str]


def reads(layer: Layer) -> tuple[str, ...]:
    """The names of the arrays that a layer reads."""
    if isinstance(layer, Foreign):
        return layer.sources
    epilogue: Any = getattr(layer, "epilogue", None)
    return (layer.source,) if epilogue is None or epilogue.add is None else (layer.source, epilogue.add)


def writes(layer: Layer) -> tuple[str, ...]:
    """The names of the arrays that a layer writes."""
    if isinstance(layer, Foreign):
        return layer.targets
    epilogue: Any = getattr(layer, "epilogue", None)
    raw = None if epilogue is None else epilogue.raw
    return tuple(name for name in (layer.target, raw) if name is not None)


def live(layer: Layer) -> int:
    """Live weights of a layer."""
    return (
        int(np.count_nonzero(layer.weight))
        if isinstance(layer, Conv | Linear)
        else layer.live
        if isinstance(layer, Foreign)
        else 0
    )
