"""Which operators a program may use, and how large what they make of constants may be.

Refused are operators that draw random numbers (their golden outputs could not be checked), generate text, or hand a file to a provider
(``EPContext``); of ONNX Runtime's own operators those are taken that its optimiser and its quantisation make and that networks are exported
with. Loops must say how often they run, as a constant, and may not stand in another one. A decision tree may have at most
:data:`MOST_BRANCHES` nodes: ONNX Runtime reads trees by recursion, deep ones end the process.

Sizes that a program gives as constants are limited to :data:`MOST_ELEMENTS`: the shape of ``ConstantOfShape`` or ``Expand``, pads,
ranges, factors. **Not covered**: sizes that a program computes, even from constants, and what it computes in honest sizes. So a
program may still take all the memory and time that it likes; who runs bundles of strangers gives their process limits.

Source: onnx.ai/onnx/operators, onnxruntime's ContribOperators.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quorate.runtime.wire import MOST_FIELDS, count, numbers

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
UNUSED = (
    "ai.onnx.preview", "ai.onnx.preview.training", "ai.onnx.training", "com.microsoft.experimental", "com.microsoft.nchwc",
    "org.pytorch.aten",
)  # fmt: skip
"""Domains that ONNX Runtime's optimiser imports into every file that it writes; none of their operators may be used."""
MOST_ELEMENTS = 2**28
MOST_STEPS = 2**16
MOST_BRANCHES = 4_000

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_REFUSED = {"ImageDecoder"}
_OWN = """
    Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu ComplexMul ComplexMulConj ConvTransposeWithDynamicPads DequantizeLinear
    DynamicQuantizeLSTM DynamicQuantizeMatMul EmbedLayerNormalization ExpandDims FastGelu FusedConv FusedGemm FusedMatMul
    FusedMatMulActivation GatedRelativePositionBias GatherBlockQuantized GatherND Gelu GemmFastGelu GridSample GroupNorm
    GroupQueryAttention Inverse IsAllFinite MatMulInteger16 MatMulIntegerToFloat MatMulNBits MaxpoolWithMask MulInteger MultiHeadAttention
    NhwcConv NhwcFusedConv NhwcMaxPool Pad QAttention QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool QLinearConcat
    QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere
    QuantizeLinear QuickGelu Range ReduceSumInteger RelativePositionBias RotaryEmbedding SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization TransposeMatMul Trilu
"""
_MICROSOFT = frozenset(_OWN.split())
LOOPS = ("Loop", "Scan", "SequenceMap")
_SIZES = {
    "ConstantOfShape": (0,), "Expand": (1,), "Tile": (1,), "Resize": (1, 2, 3), "Upsample": (1,), "OneHot": (1,), "AffineGrid": (1,),
    "CenterCropPad": (1,), "Col2Im": (0,), "MaxUnpool": (2,), "MelWeightMatrix": (0, 1), "HannWindow": (0,), "HammingWindow": (0,),
    "BlackmanWindow": (0,), "DFT": (1,),
}  # fmt: skip
"""Inputs by position that say how large the output is."""
ATTRIBUTES = frozenset({
    "pads", "scales", "strides", "dilations", "kernel_shape", "output_shape", "output_padding", "pooled_shape", "repeats", "shape",
    "hidden_size", "blocksize", "output_height", "output_width", "output_size", "height_scale", "width_scale",
})  # fmt: skip
"""Attributes that do."""

Numbers = Sequence[float]


@dataclass
class Node:
    """What is looked at of a node: ``sizes`` are those of its attributes that are in :data:`ATTRIBUTES`."""

    operator: str
    domain: str
    overload: str
    inputs: Sequence[str]
    in_loop: bool
    sizes: Mapping[str, Numbers] = field(default_factory=dict)


def check_node(node: Node, constants: Mapping[str, Sequence[Numbers | None]]) -> None:
    """Refuse an operator or its sizes.

    Args:
        node: of one of the domains.
        constants: the constants of a name, of which there may be several in different scopes; None for one that is too long to be a size.

    Raises:
        ValueError: says why.
    """
    name = node.operator
    if name in _RANDOM:
        raise ValueError(f"operator {name} draws random numbers: a program must give the same for the same rows")
    if name in _REFUSED or (node.domain == "com.microsoft" and name not in _MICROSOFT):
        raise ValueError(f"operator {_full(node)} is not one of those that a bundle may use")
    given = [constants.get(read, ()) for read in node.inputs]
    if name == "Dropout" and len(node.inputs) > 2 and node.inputs[2] and any(each != (0,) for each in given[2] or (None,)):
        raise ValueError("operator Dropout draws random numbers in training mode: export the network in eval mode")
    if name in LOOPS:
        _check_loop(node, given)
    for key, values in node.sizes.items():
        _check_size(f"{name}'s {key}", _padded(values) if key == "pads" else values)
    for position in _SIZES.get(name, ()):
        for constant in given[position] if position < len(given) else ():
            _check_size(f"{name}'s sizes", constant)
    if name == "Pad" and len(given) > 1:
        for constant in given[1]:
            _check_size("Pad's pads", None if constant is None else _padded(constant))
    if name == "Range" and len(given) == 3:
        _check_range(given)


def check_trees(operator: str, attribute: str, ints: list[Any]) -> None:
    """Refuse an ensemble of trees one of which is large; where nodes don't name their tree, all of them count as one. Raises ValueError."""
    largest = 0
    if attribute == "nodes_treeids":
        largest = max(Counter(numbers(ints, "int", MOST_FIELDS)).values(), default=0)
    elif attribute == "nodes_truenodeids" and operator == "TreeEnsemble":
        largest = count(ints, "int")
    if largest > MOST_BRANCHES:
        raise ValueError(
            f"operator {operator} has a tree of {largest:,} nodes: expected at most {MOST_BRANCHES:,}, grow smaller ones"
        )


def _full(node: Node) -> str:
    return f"{node.domain}.{node.operator}" if node.domain else node.operator


def _check_loop(node: Node, given: Sequence[Sequence[Numbers | None]]) -> None:
    if node.in_loop:
        raise ValueError(f"operator {node.operator} stands in another loop or in a function: unroll it")
    if node.operator == "Loop":
        steps = given[0] if given else ()
        if not steps or any(each is None or len(each) != 1 or not each[0] <= MOST_STEPS for each in steps):
            raise ValueError(f"operator Loop has no constant number of at most {MOST_STEPS:,} steps: give it one, or unroll it")


def _padded(pads: Numbers) -> Numbers:
    """By how much each axis grows; pads are the begins of all axes and then the ends."""
    half = len(pads) // 2
    return [1 + max(begin, 0) + max(end, 0) for begin, end in zip(pads[:half], pads[half:], strict=False)]


def _check_size(what: str, sizes: Numbers | None) -> None:
    if sizes is None:
        raise ValueError(f"{what} are more numbers than an array has axes")
    if not all(math.isfinite(size) for size in sizes) or math.prod(max(abs(size), 1) for size in sizes) > MOST_ELEMENTS:
        raise ValueError(f"{what} are {str(list(sizes))[:80]}: expected at most {MOST_ELEMENTS:,} elements")


def _check_range(given: Sequence[Sequence[Numbers | None]]) -> None:
    for start in given[0]:
        for limit in given[1]:
            for delta in given[2]:
                ends = [each[0] if each else math.nan for each in (start, limit, delta)]
                steps = abs(ends[1] - ends[0]) / abs(ends[2]) if ends[2] else math.inf
                if not steps <= MOST_ELEMENTS:
                    raise ValueError(f"Range's numbers are {ends}: expected at most {MOST_ELEMENTS:,} elements")
