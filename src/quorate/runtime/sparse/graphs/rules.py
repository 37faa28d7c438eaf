"""What each node of a graph is to the sparse runtime: a layer of its own, another shape of the same array, or foreign.

    Conv, Gemm, MatMul               Conv, Linear        BatchNormalization, ± × ÷ a constant      Merge: scale · x + shift
    MaxPool, AveragePool, Global…    Pool, Mean          Add of two arrays, Relu, Clip, Gelu       Merge
    Reshape, Flatten, Squeeze, Unsqueeze, Identity, Dropout        the same numbers in the same order

Folding comes next, in :mod:`quorate.runtime.sparse.graphs.fusing`. Source: onnx.ai/onnx/operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from quorate.runtime.sparse.graphs.graph import Graph, Node
from quorate.runtime.sparse.graphs.shapes import MISFITS, Known, axes_of, window
from quorate.runtime.sparse.graphs.steps import Array, Steps, Unfit, canonical, fits
from quorate.runtime.sparse.kernels.tiles import WIDEST
from quorate.runtime.sparse.network import Activation, Conv, Layer, Linear, Mean, Pool, Shape

MOST_GROUPS = 16
"""A convolution of more groups has live at most 1/16 of the matrix that the kernels see."""
TILE, LANES, MOST_COPIES = 8, 16, 256
"""Rows of a tile, by which it is told how many runs of input are packed for one, each float by itself where strides are large; the most.
Their code, straight on, takes seconds to compile from twice as many."""
OLDEST = 11
"""ONNX's operators before had other attributes."""
VIEWS = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def layer_name(weight: str) -> str:
    """What a layer is called after its weight: without the exporter's prefix and without the parameter's name."""
    return weight.removeprefix("stage.").removeprefix("module.").removesuffix(".weight")


def _given(node: Node, at: int) -> str:
    """An input's name, "" where it is left out."""
    return node.inputs[at] if len(node.inputs) > at else ""


def _geometry(node: Node, sizes: Shape, kernel: Shape) -> tuple[Shape, Shape, Shape]:
    if any(d != 1 for d, k in zip(node.attributes.get("dilations") or (), kernel, strict=False) if k > 1):
        raise Unfit(f"dilations {node.attributes['dilations']}")
    try:
        strides, pads, out = window(node, sizes, kernel)
    except ValueError as error:
        raise Unfit(str(error)) from error
    if min(pads) < 0 or any(pad >= size for pad, size in zip(pads, (*kernel, *kernel), strict=True)):
        raise Unfit(f"pads {list(pads)}: expected less than the kernel {list(kernel)}")
    if list(node.attributes.get("kernel_shape") or kernel) != list(kernel):
        raise Unfit(f"a kernel {list(kernel)} instead of {node.attributes['kernel_shape']}")
    if min(*out, *strides) < 1:
        raise Unfit(f"strides {list(strides)}")
    reach = [size + before + after for size, before, after in zip(sizes, pads, pads[len(sizes) :], strict=False)]
    return tuple(map(min, strides, reach)), pads, out  # further than the planes is as far as they reach


def _flat_axis(values: Shape) -> tuple[int, int]:
    """Of a sequence: (1, length)."""
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


def _flat_pads(pads: Shape) -> tuple[int, int, int, int]:
    return (0, pads[0], 0, pads[1]) if len(pads) == 2 else (pads[0], pads[1], pads[2], pads[3])


def _conv(steps: Steps, node: Node) -> Layer:
    given = steps.weight(node.inputs[1])
    sizes = steps.row(node.inputs[0])[1:]
    source, (channels, *_) = steps.planes(node.inputs[0])
    groups = node.attributes.get("group", 1)
    if groups > MOST_GROUPS:
        raise Unfit(f"{groups} groups: more than {MOST_GROUPS}")
    if given.ndim != len(sizes) + 2 or given.shape[1] * groups != channels or given.shape[0] % groups:
        raise Unfit(f"a weight {list(given.shape)} over {channels} channels")
    strides, pads, out = _geometry(node, sizes, given.shape[2:])
    outputs, spans = len(given), _flat_axis(given.shape[2:])
    (height, _), (down, across) = _flat_axis(out), _flat_axis(strides)
    copies = spans[1] * ((min(height, TILE) - 1) * down + spans[0]) * (LANES if across > WIDEST else 1)
    if copies > MOST_COPIES:
        raise Unfit(f"a kernel {list(given.shape[2:])} with strides {list(strides)}: too much code to pack its input")
    steps.hold(given.size * groups)
    weight: Array = given.reshape(outputs, -1, *spans)
    if groups > 1:
        each = given.reshape(groups, outputs // groups, -1, *spans)
        weight = np.zeros((groups, outputs // groups, groups, *each.shape[2:]), np.float32)
        weight[range(groups), :, range(groups)] = each
        weight = weight.reshape(outputs, channels, *spans)
    bias: Array = steps.wide(_given(node, 2), outputs) if _given(node, 2) else np.zeros(outputs)
    stride, around, shape = _flat_axis(strides), _flat_pads(pads), (outputs, *_flat_axis(out))
    target, name = node.outputs[0], (layer_name(node.inputs[1]), node.name, node.outputs[0])
    if len(steps.shapes[source]) == 3:
        return steps.stored(node, Conv(steps.called(*name), source, target, weight, bias, stride, around, groups=groups), shape)
    if shape[1:] != (1, 1):
        raise Unfit("planes of one pixel become larger")
    above, left = around[:2]
    tap: Array = (
        weight[:, :, above, left] if above < weight.shape[2] and left < weight.shape[3] else np.zeros((outputs, channels))
    )
    return steps.stored(node, Linear(steps.called(*name), source, target, tap, bias), (outputs,))


def _gemm(steps: Steps, node: Node) -> Layer:
    row, weight = steps.row(node.inputs[0]), steps.weight(node.inputs[1])
    bias: Array = np.zeros(1)
    get = node.attributes.get
    if node.operator == "Gemm":
        weight = weight if get("transB", 0) else weight.T
        if get("alpha", 1.0) != 1:
            weight = get("alpha", 1.0) * weight.astype(np.float64)
        if _given(node, 2):
            bias = get("beta", 1.0) * steps.wide(node.inputs[2])
        if bias.ndim < 2 or len(bias) == 1:
            bias = bias.ravel()
    elif weight.ndim == 2:
        weight = weight.T
    if (
        len(row) != 1
        or weight.ndim != 2
        or weight.shape[1] != row[0]
        or get("transA", 0)
        or bias.shape not in ((1,), weight.shape[:1])
    ):
        raise Unfit(f"{node.operator} of rows {list(row)} and {list(weight.shape[::-1])}: expected a vector and a matrix")
    source, outputs = steps.vector(node.inputs[0]), len(weight)
    steps.hold(weight.size)
    if not (fits(weight) and fits(bias)):
        raise Unfit("alpha or beta make weights that are no finite numbers in float32")
    name = steps.called(layer_name(node.inputs[1]), node.name, node.outputs[0])
    return steps.stored(node, Linear(name, source, node.outputs[0], weight, np.broadcast_to(bias, outputs).copy()), (outputs,))


def _normalised(steps: Steps, node: Node) -> Layer:
    if node.attributes.get("training_mode", 0) or any(node.outputs[1:]):
        raise Unfit("it normalises as in training")
    source, channels = steps.plain(node.inputs[0]), steps.row(node.inputs[0])[0]
    gain, offset, mean, variance = (steps.wide(name, channels) for name in node.inputs[1:5])
    with np.errstate(all="ignore"):
        scale = gain / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    if not np.isfinite(scale).all():
        raise Unfit("its variance is not positive")
    return steps.merge(node, source, scale=scale, shift=offset - scale * mean)


def _arithmetic(steps: Steps, node: Node) -> Layer:
    kind = node.operator
    if len(node.inputs) != 2:
        raise Unfit(f"{kind} of {len(node.inputs)} arrays")
    held = [name for name in node.inputs if name in steps.graph.constants]
    if not held:
        return _sum(steps, node)
    constant, name = held[0], node.inputs[node.inputs[0] == held[0]]
    source, row, first = steps.plain(name), steps.row(name), node.inputs[0] == constant
    value = _per_channel(steps.wide(constant), row)
    if kind == "Div" and (first or not value.all()):
        raise Unfit("it divides by an array, or by 0")
    ones, zeros = np.ones_like(value), np.zeros_like(value)
    if kind in ("Mul", "Div"):
        return steps.merge(node, source, scale=value if kind == "Mul" else 1 / value, shift=zeros)
    if kind == "Sub":
        return steps.merge(node, source, scale=-ones if first else ones, shift=value if first else -value)
    return steps.merge(node, source, scale=ones, shift=value)


def _per_channel(value: Array, row: Shape) -> Array:
    """(C,) of a constant that is broadcast over all but the channels."""
    shape = (1,) * (1 + len(row) - value.ndim) + value.shape
    if len(shape) != 1 + len(row) or shape[1] not in (1, row[0]) or value.size != shape[1]:
        raise Unfit(f"a constant {list(value.shape)} beside rows of {list(row)}: expected one value per channel")
    return np.broadcast_to(value.ravel(), row[:1]).copy()


def _sum(steps: Steps, node: Node) -> Layer:
    first, second = node.inputs
    if node.operator not in ("Add", "Sum"):
        raise Unfit(f"{node.operator} of two arrays")
    if any(name not in steps.known for name in node.inputs) or steps.row(first) != steps.row(second):
        raise Unfit("a sum of arrays of two shapes")
    a, b = steps.plain(first), steps.plain(second)
    if steps.shapes[a] != steps.shapes[b]:
        a, b = steps.vector(first), steps.vector(second)
    if a == b:
        channels = steps.shapes[a][0]
        return steps.merge(node, a, scale=np.full(channels, 2.0), shift=np.zeros(channels))
    return steps.merge(node, a, add=b)


def _activation(steps: Steps, node: Node) -> Layer:
    kind: Activation = "relu"
    if node.operator == "Clip":
        low, high = (float(steps.wide(name).ravel()[0]) if (name := _given(node, at)) else None for at in (1, 2))
        if low != 0 or high not in (None, 6):
            raise Unfit(f"Clip between {low} and {high}: expected 0 and 6, or 0 alone")
        kind = "relu" if high is None else "relu6"
    elif node.operator != "Relu":
        if node.attributes.get("approximate", b"none") != b"none":
            raise Unfit(f"Gelu approximated by {node.attributes['approximate'].decode()}")
        kind = "gelu"
    return steps.merge(node, steps.plain(node.inputs[0]), activation=kind)


def _pool(steps: Steps, node: Node) -> Layer:
    source, shape = steps.planes(node.inputs[0])
    sizes, kernel = steps.row(node.inputs[0])[1:], tuple(node.attributes["kernel_shape"])
    if node.attributes.get("ceil_mode", 0):
        raise Unfit("it rounds sizes up")
    if len(steps.shapes[source]) != 3 or len(kernel) != len(sizes):
        raise Unfit("it pools planes of one pixel, or over other axes")
    strides, pads, out = _geometry(node, sizes, kernel)
    return steps.stored(
        node,
        Pool(
            steps.called(node.name, node.outputs[0]),
            source,
            node.outputs[0],
            "max" if node.operator == "MaxPool" else "mean",
            _flat_axis(kernel),
            _flat_axis(strides),
            _flat_pads(pads),
            bool(node.attributes.get("count_include_pad", 0)),
        ),
        (shape[0], *_flat_axis(out)),
    )


def _mean(steps: Steps, node: Node) -> Layer | None:
    row, axes = steps.row(node.inputs[0]), axes_of(node, steps.graph.constants)
    if node.operator == "ReduceMean":
        named = {axis + (len(row) + 1) * (axis < 0) for axis in axes or ()}
        if min(named, default=0) < 2 or any(size > 1 and axis not in named for axis, size in enumerate(row[1:], 2)):
            raise Unfit("a mean over other axes than those of the planes")
    source, shape = steps.planes(node.inputs[0])
    if len(steps.shapes[source]) == 1:
        steps.alias[node.outputs[0]] = source
        return None
    return steps.stored(node, Mean(steps.called(node.name, node.outputs[0]), source, node.outputs[0]), shape[:1])


def _view(steps: Steps, node: Node) -> None:
    source, known = steps.root(node.inputs[0]), [steps.known.get(name) for name in (node.inputs[0], node.outputs[0])]
    rows = [each.row for each in known if each is not None and each.dtype == "float32" and each.row is not None]
    if len(rows) < 2:
        raise Unfit("it moves the batch, or arrays of another type than float32")
    shape, wanted = steps.shapes[source], canonical(rows[1]) or (1,)
    if shape != wanted and (len(shape) not in (1, 3) or math.prod(wanted) != wanted[0]):
        raise Unfit(f"rows of {list(shape)} become others of {list(rows[1])}")
    if node.operator == "Dropout" and (mode := _given(node, 2)) and bool(steps.graph.constants.get(mode, np.ones(1)).any()):
        raise Unfit("it drops as in training")
    steps.alias[node.outputs[0]] = source


RULES: dict[str, Callable[[Steps, Node], Layer | None]] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _gemm, "BatchNormalization": _normalised, "Relu": _activation, "Clip": _activation,
    "Gelu": _activation, "com.microsoft.Gelu": _activation, "MaxPool": _pool, "AveragePool": _pool, "GlobalAveragePool": _mean,
    "ReduceMean": _mean, **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), _arithmetic), **dict.fromkeys(VIEWS, _view),
}  # fmt: skip


def steps_of(graph: Graph, known: Mapping[str, Known], foreign: str = "") -> Steps:
    """Every node's layer, or the reason why it has none.

    Args:
        graph: all nodes.
        known: of its arrays.
        foreign: the reason why none may have one.
    """
    steps = Steps(graph, known)
    read = {name for node in graph.nodes for name in node.reads} | graph.outputs.keys()
    for number, node in enumerate(graph.nodes):
        if steps.constant(node):
            continue
        try:
            if foreign:
                raise Unfit(foreign)
            if node.operator not in RULES:
                raise Unfit(f"{node.operator} is none of the runtime's operators")
            if any(name in read for name in node.outputs[1:]):
                raise Unfit(f"{node.operator} gives more than one array")
            layer = RULES[node.operator](steps, node)
        except (Unfit, *MISFITS) as reason:
            why = str(reason) if isinstance(reason, Unfit) else f"its inputs or attributes are none of {node.operator}'s"
            steps.add([number], None, why)
            steps.shapes |= {name: steps.outside(name) for name in node.writes}
            continue
        if layer is not None:
            steps.add([number], layer)
    return steps
