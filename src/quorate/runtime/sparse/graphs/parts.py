"""A part of a graph as an ONNX file of its own, which ONNX Runtime can run for any number of rows.

    inputs → Reshape → nodes of the part → Reshape → outputs

Nodes, weights, imports and functions keep their bytes. Where an array of the part has another shape than the program outside gives or
takes, (C, L) there and (C, 1, L) here, a Reshape stands at the border; where both have the same name, the inner one is renamed.
Source: protobuf.dev/programming-guides/encoding; onnx.ai/onnx/repo-docs/IR.html.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.graphs.graph import CODES, Graph, Node
from quorate.runtime.wire import varint

BATCH = "batch"
_INNER = {"Node": {5: "Attribute"}, "Attribute": {6: "Graph", 11: "Graph"}, "Graph": {1: "Node", 12: "Value"}}
_NAMES = {"Node": (1, 2), "Value": (1,)}


@dataclass(frozen=True)
class Border:
    """An array where a part begins or ends.

    Attributes:
        name: outside.
        inner: its name in the part.
        shape: outside, None where it is free: the batch.
        dtype: NumPy's name; None of an output of which ONNX Runtime finds dtype and shape itself.
        view: of an input, its shape in the part, −1 for the batch, where that is another one; of an output, its shape outside.
    """

    name: str
    inner: str
    shape: tuple[int | None, ...]
    dtype: str | None = "float32"
    view: tuple[int, ...] | None = None


def key(number: int, wire: int) -> bytes:
    """What stands before a field's value."""
    return base128(number << 3 | wire)


def base128(value: int) -> bytes:
    """A number as a varint, negative ones as 64-bit complements."""
    value &= 2**64 - 1
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """The bytes of fields (number, value): numbers as varints, texts and inner messages with their lengths."""
    parts: list[bytes] = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [key(number, 0), base128(value)]
        else:
            data = value.encode() if isinstance(value, str) else value
            parts += [key(number, 2), base128(len(data)), data]
    return b"".join(parts)


def tensor(name: str, array: NDArray[Any]) -> bytes:
    """TensorProto: dims 1, data_type 2, name 8, raw_data 9."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    dims = ((1, size) for size in array.shape)
    return message(*dims, (2, CODES[array.dtype.name]), (8, name), (9, little.tobytes()))


def renamed(view: memoryview, kind: str, names: Mapping[str, str]) -> bytes:
    """A Node's bytes with other names of what it reads and writes, its inner graphs' reads included."""
    found, place = [], 0
    while place < len(view):
        start = place
        tag, place = varint(view, place)
        number, wire = tag >> 3, tag & 7
        if wire == 2:
            size, place = varint(view, place)
            data = view[place : place + size]
            place += size
            if number in _NAMES.get(kind, ()):
                text = str(data, "utf-8")
                found.append(message((number, names.get(text, text))))
                continue
            if number in _INNER.get(kind, {}):
                found.append(message((number, renamed(data, _INNER[kind][number], names))))
                continue
        elif wire == 0:
            _, place = varint(view, place)
        else:
            place += {1: 8, 5: 4}[wire]
        found.append(bytes(view[start:place]))
    return b"".join(found)


def unused(name: str, taken: Container[str]) -> str:
    """The name, with as many strokes as it needs to be none of those taken."""
    while name in taken:
        name += "'"
    return name


def write_part(
    graph: Graph,
    nodes: Sequence[Node],
    inputs: Sequence[Border],
    outputs: Sequence[Border],
    views: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
) -> bytes:
    """A model of some of a graph's nodes, with the weights that they read.

    Args:
        graph: where they come from.
        nodes: in an order in which they can run; what they read must be written by them, a constant, or an input.
        inputs, outputs: arrays at the border.
        views: {array inside: (the array of which it is another shape, its shape)}, made where a node of the part reads it.

    Returns:
        The serialised model.

    Raises:
        ValueError: a node that reads what is not there.
    """
    used = {name for node in nodes for name in (*node.reads, *node.writes)} | {each.name for each in (*inputs, *outputs)}
    names = {
        border.inner: unused(f"{border.inner}/inside", used)
        for border in (*inputs, *outputs)
        if border.view and border.inner == border.name
    }
    shapes: dict[tuple[int, ...], str] = {}

    def reshape(source: str, target: str, shape: tuple[int, ...]) -> bytes:
        held = shapes.setdefault(shape, unused(f"shape/{'x'.join(map(str, shape))}", used))
        return message((1, source), (1, held), (2, target), (4, "Reshape"))

    def inside(name: str) -> str:
        return names.get(name, name)

    known = {border.inner for border in inputs}
    made = [reshape(each.name, inside(each.inner), each.view) for each in inputs if each.view is not None]
    weights: dict[str, bytes] = {}

    def need(name: str, reader: str) -> None:
        if name in known:
            return
        known.add(name)
        if views is not None and name in views:
            source, shape = views[name]
            need(source, reader)
            made.append(reshape(inside(source), inside(name), shape))
        elif name in graph.tensors or name in graph.constants:
            weights[name] = graph.tensors.get(name) or tensor(name, graph.constants[name])
        else:
            raise ValueError(f"node {reader[:80]!r} reads {name[:80]!r}, which nothing before it writes: export the program anew")

    for node in nodes:
        for name in node.reads:
            need(name, node.name or node.operator)
        touched = any(name in names for name in (*node.reads, *node.writes))
        made.append(renamed(memoryview(node.raw), "Node", names) if touched else node.raw)
        known.update(node.writes)
    for each in outputs:
        need(each.inner, each.name)
        if each.view is not None:
            made.append(reshape(inside(each.inner), each.name, each.view))
        elif each.inner != each.name:
            made.append(message((1, inside(each.inner)), (2, each.name), (4, "Identity")))
    weights |= {held: tensor(held, np.array(shape, np.int64)) for shape, held in shapes.items()}
    body = message(
        *((1, each) for each in made),
        (2, "part"),
        *((5, each) for each in weights.values()),
        *((11, declared(each)) for each in inputs),
        *((12, declared(each)) for each in outputs),
    )
    return message(
        (1, max(graph.version, 4)),  # before version 4 weights had to be inputs too
        (7, body),
        *((8, each) for each in graph.imports),
        *((25, each) for each in graph.functions),
    )


def declared(border: Border) -> bytes:
    """ValueInfoProto: name 1, type 2 → tensor_type 1 → elem_type 1, shape 2 → dim 1 → dim_value 1 or dim_param 2."""
    if border.dtype is None:
        return message((1, border.name))
    free = (BATCH if axis == 0 else f"{BATCH}{axis}" for axis in range(len(border.shape)))
    sizes = (message((2, name)) if size is None else message((1, size)) for size, name in zip(border.shape, free, strict=True))
    dense = message((1, CODES[border.dtype]), (2, message(*((1, size) for size in sizes))))
    return message((1, border.name), (2, message((1, dense))))
