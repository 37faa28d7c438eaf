"""The shape of every array of a graph, for batches of two and of three rows: what changes from the one to the other is the batch.

    rows      (B, *row)          what layers work on
    stacked   (1, B, *row)       the members of a single network
    fixed     the same shape for any B: sizes, tables
    other     anything else stays inside the part that makes it

Of the operators below shapes are computed (onnx.ai/onnx/operators); from the first other one on, ONNX Runtime is asked, by running the
rest of the graph on zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate._optional import one_line
from quorate.runtime.session import open_session
from quorate.runtime.sparse.graphs.graph import CODES, Graph, Node
from quorate.runtime.sparse.graphs.parts import Border, write_part

Shape = tuple[int, ...]
ROWS = (2, 3)
MISFITS = (ValueError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError)
"""What comes up where a node has not the inputs or attributes that its operator has."""

_SAME = """
    BatchNormalization Clip Dropout Elu Erf Gelu HardSigmoid HardSwish Identity LayerNormalization LeakyRelu LogSoftmax Relu Sigmoid
    Softmax Softplus Tanh com.microsoft.Gelu
"""
SAME = frozenset(_SAME.split())
BROADCAST = frozenset(("Add", "Div", "Mul", "Sub", "Sum"))


@dataclass(frozen=True)
class Known:
    """An array's dtype, by NumPy's name, and its shape with two and with three rows."""

    dtype: str
    two: Shape
    three: Shape

    @property
    def fixed(self) -> bool:
        """Whether the batch does not change its shape."""
        return self.two == self.three

    @property
    def stacked(self) -> bool:
        """Whether it is (1, B, *row)."""
        return self.two[:2] == (1, ROWS[0]) and self.three[:2] == (1, ROWS[1]) and self.two[2:] == self.three[2:]

    @property
    def row(self) -> Shape | None:
        """The shape of one row, None where the batch is neither ahead nor behind a single one."""
        if self.two[:1] == ROWS[:1] and self.three[:1] == ROWS[1:] and self.two[1:] == self.three[1:]:
            return self.two[1:]
        return self.two[2:] if self.stacked else None

    @property
    def natural(self) -> Shape:
        """Its shape with −1 for the batch, as a Reshape takes it; of arrays that have a row."""
        row = self.row or ()
        return (1, -1, *row) if self.stacked else (-1, *row)


def axes_of(node: Node, constants: Mapping[str, NDArray[Any]]) -> list[int] | None:
    """The axes that it names, as attribute or second input; None where there are none, or none that are constant."""
    if len(node.inputs) > 1 and node.inputs[1]:
        return None if node.inputs[1] not in constants else [int(axis) for axis in constants[node.inputs[1]].ravel()]
    return node.attributes.get("axes")


def window(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[Shape, Shape, Shape]:
    """(strides, pads: begins and then ends, output sizes) of a convolution's or pool's windows, rounded down.

    Raises:
        ValueError: attributes of another length than ``sizes``, an unknown ``auto_pad``, windows larger than what they slide over.
    """
    count = len(sizes)
    strides = tuple(node.attributes.get("strides") or [1] * count)
    dilations = node.attributes.get("dilations") or [1] * count
    pads = tuple(node.attributes.get("pads") or [0] * 2 * count)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = node.attributes.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        out = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
        total = [max((o - 1) * s + k - n, 0) for o, s, k, n in zip(out, strides, spans, sizes, strict=True)]
        less, more = [each // 2 for each in total], [each - each // 2 for each in total]
        pads = (*less, *more) if auto == b"SAME_UPPER" else (*more, *less)
    elif auto == b"VALID":
        pads = (0,) * 2 * count
    elif auto not in (b"NOTSET", b""):
        raise ValueError(f"auto_pad {auto!r}")
    if len(pads) != 2 * count or len(strides) != count:
        raise ValueError(f"strides {list(strides)} and pads {list(pads)} of {count} axes")
    room = [n + pads[i] + pads[count + i] - spans[i] for i, n in enumerate(sizes)]
    if min(room) < 0:
        raise ValueError(f"windows of {spans} over {list(sizes)}")
    return strides, pads, tuple(each // stride + 1 for each, stride in zip(room, strides, strict=True))


def _reshaped(shape: Shape, target: Sequence[int], allowzero: bool) -> Shape:
    found = [shape[axis] if size == 0 and not allowzero else size for axis, size in enumerate(target)]
    if -1 in found:
        found[found.index(-1)] = math.prod(shape) // -math.prod(found)
    if math.prod(found) != math.prod(shape) or min(found, default=0) < 0:
        raise ValueError(f"{shape} as {list(target)}")
    return tuple(found)


def _axes(axes: Sequence[int], rank: int) -> set[int]:
    named = {axis + rank * (axis < 0) for axis in axes}
    if len(named) < len(axes) or not named <= set(range(rank)):
        raise ValueError(f"axes {list(axes)} of {rank}")
    return named


def _out(node: Node, shapes: Sequence[Shape], constants: Mapping[str, NDArray[Any]]) -> Shape | None:
    """The shape of the only output; None where it has to be asked for. ValueError, IndexError: shapes that don't fit."""
    x, kind = shapes[0] if shapes else (), node.operator
    if kind in SAME:
        return x
    if kind in BROADCAST:
        return np.broadcast_shapes(*shapes)
    if kind == "Conv":
        return (x[0], shapes[1][0], *window(node, x[2:], shapes[1][2:])[2])
    if kind in ("MaxPool", "AveragePool"):
        return None if node.attributes.get("ceil_mode") else (*x[:2], *window(node, x[2:], node.attributes["kernel_shape"])[2])
    if kind in ("GlobalAveragePool", "GlobalMaxPool"):
        return (*x[:2], *(1,) * (len(x) - 2))
    if kind == "Gemm":
        m, n = x[:: -1 if node.attributes.get("transA") else 1], shapes[1][:: -1 if node.attributes.get("transB") else 1]
        return (m[0], n[1])
    if kind == "MatMul" and len(x) > 1 and len(shapes[1]) > 1:
        return (*np.broadcast_shapes(x[:-2], shapes[1][:-2]), x[-2], shapes[1][-1])
    if kind == "Flatten":
        axis = node.attributes.get("axis", 1)
        axis += len(x) * (axis < 0)
        return (math.prod(x[:axis]), math.prod(x[axis:])) if 0 <= axis <= len(x) else None
    if kind == "Reshape" and node.inputs[1] in constants:
        return _reshaped(x, constants[node.inputs[1]].tolist(), bool(node.attributes.get("allowzero")))
    axes = axes_of(node, constants) if kind in ("Squeeze", "Unsqueeze", "ReduceMean") else None
    if axes is None:
        return None
    if kind == "Unsqueeze":
        rank = len(x) + len(axes)
        named, left = _axes(axes, rank), iter(x)
        return tuple(1 if axis in named else next(left) for axis in range(rank))
    named = _axes(axes, len(x))
    if kind == "Squeeze":
        return tuple(size for axis, size in enumerate(x) if axis not in named)
    if not axes:
        return None
    keep = node.attributes.get("keepdims", 1)
    return tuple(1 if axis in named else size for axis, size in enumerate(x) if keep or axis not in named)


def known_arrays(graph: Graph) -> dict[str, Known]:
    """What is known of every array; those that are no tensors, or of dtypes that NumPy does not have, are left out.

    Raises:
        ValueError: an input with a free size beside the batch, with a fixed batch, without numbers, or of an unknown dtype; a graph that
            ONNX Runtime can't run.
    """
    found = {name: Known(array.dtype.name, array.shape, array.shape) for name, array in graph.constants.items()}
    for name, value in graph.inputs.items():
        sizes = value.shape
        if value.dtype is None or not sizes or sizes[0] is not None or None in sizes[1:] or 0 in sizes:
            raise ValueError(
                f"input {name[:80]!r} is {value.dtype or 'of an unknown type'} {'' if sizes is None else list(sizes)}: expected numbers "
                "with a free batch ahead of sizes that are fixed; export the program for rows of one shape"
            )
        row = tuple(size or 0 for size in sizes[1:])
        found[name] = Known(value.dtype, (ROWS[0], *row), (ROWS[1], *row))
    pending = []
    for node in graph.nodes:
        if all(name in graph.constants for name in node.writes):
            continue
        shapes = None
        if len(node.writes) == 1 and any(node.inputs[:1]) and not node.captured and all(name in found for name in node.reads):
            shapes = _computed(node, [found[name] for name in node.inputs if name], graph.constants)
        if shapes is None:
            pending.append(node)
        else:
            found[node.writes[0]] = Known(found[node.inputs[0]].dtype, *shapes)
    if pending:
        found |= _asked(graph, pending, found)
    return found


def _computed(node: Node, inputs: Sequence[Known], constants: Mapping[str, NDArray[Any]]) -> tuple[Shape, Shape] | None:
    try:
        two, three = (_out(node, shapes, constants) for shapes in ([x.two for x in inputs], [x.three for x in inputs]))
    except (*MISFITS, StopIteration):
        return None  # ONNX Runtime says what does not fit
    return None if two is None or three is None else (two, three)


def _asked(graph: Graph, nodes: Sequence[Node], found: Mapping[str, Known]) -> dict[str, Known]:
    """What ONNX Runtime makes of zeros."""
    inner = {name for node in nodes for name in node.writes}
    taken = dict.fromkeys(name for node in nodes for name in node.reads)
    inputs = []
    for name in taken:
        if name in found and name not in graph.constants and name not in inner:
            sizes = tuple(two if two == three else None for two, three in zip(found[name].two, found[name].three, strict=True))
            inputs.append(Border(name, name, sizes, found[name].dtype))
    outputs = [Border(name, name, (), None) for node in nodes for name in node.writes]
    session = open_session(write_part(graph, nodes, inputs, outputs), "the program", threads=1)
    ran = []
    for rows in ROWS:
        feed = {}
        for each in inputs:
            known = found[each.name]
            feed[each.name] = np.zeros(known.two if rows == ROWS[0] else known.three, known.dtype)
        try:
            ran.append(session.run([each.name for each in outputs], feed))
        except Exception as error:  # see open_session
            raise ValueError(
                f"the program fails on {rows} rows of zeros ({one_line(error)}), by which its arrays' shapes are found: expected one that "
                "runs on any rows; export it anew"
            ) from error
    result = {}
    for each, two, three in zip(outputs, *ran, strict=True):
        if isinstance(two, np.ndarray) and isinstance(three, np.ndarray) and two.dtype.name in CODES:
            result[each.name] = Known(two.dtype.name, two.shape, three.shape)
    return result
