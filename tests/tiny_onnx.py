"""ONNX files of a few nodes, written in protobuf's wire format by hand: they need no package, so the deciding half is tested with them too.

Source: onnx.proto (onnx.ai), the field numbers named below.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

CODES = {"float32": 1, "uint8": 2, "int8": 3, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}
Shape = Sequence[int | str]


def varint(number: int) -> bytes:
    """A number of any size in base 128, the least group first."""
    number &= 2**64 - 1
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def field(number: int, value: int | float | bytes | str) -> bytes:
    """One field: a varint, a float, or bytes with their length."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: NDArray) -> bytes:
    """TensorProto: dims 1, data_type 2, name 8, raw_data 9."""
    dims = b"".join(field(1, size) for size in array.shape)
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return dims + field(2, CODES[array.dtype.name]) + field(8, name) + field(9, little.tobytes())


def external(name: str, dtype: str, shape: Sequence[int], location: str) -> bytes:
    """The same with its data elsewhere: external_data 13 of key 1 and value 2, data_location 14 = 1."""
    dims = b"".join(field(1, size) for size in shape)
    return dims + field(2, CODES[dtype]) + field(8, name) + field(13, field(1, "location") + field(2, location)) + field(14, 1)


def attribute(name: str, value: int | float | Sequence[int] | bytes) -> bytes:
    """AttributeProto: name 1, f 2, i 3, t 5 (bytes of a tensor), ints 8, type 20."""
    if isinstance(value, bytes):
        return field(1, name) + field(5, value) + field(20, 4)
    if isinstance(value, float):
        return field(1, name) + field(2, value) + field(20, 1)
    if isinstance(value, int):
        return field(1, name) + field(3, value) + field(20, 2)
    return field(1, name) + b"".join(field(8, each) for each in value) + field(20, 7)


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | float | Sequence[int] | bytes) -> bytes:
    """NodeProto: input 1, output 2, op_type 4, attribute 5."""
    said = b"".join(field(5, attribute(name, value)) for name, value in attributes.items())
    return b"".join(field(1, name) for name in inputs) + b"".join(field(2, name) for name in outputs) + field(4, kind) + said


def info(name: str, dtype: str, shape: Shape | None) -> bytes:
    """ValueInfoProto: name 1, type 2 → tensor_type 1 → elem_type 1, shape 2 → dim 1 → dim_value 1 or dim_param 2."""
    kind = field(1, CODES[dtype])
    if shape is not None:
        kind += field(2, b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in shape))
    return field(1, name) + field(2, field(1, kind))


def model(
    nodes: Sequence[bytes],
    inputs: Mapping[str, tuple[str, Shape | None]],
    outputs: Mapping[str, tuple[str, Shape | None]],
    weights: Sequence[bytes] = (),
    opset: int = 17,
) -> bytes:
    """ModelProto: ir_version 1, graph 7, opset_import 8; GraphProto: node 1, name 2, initializer 5, input 11, output 12."""
    graph = b"".join(field(1, each) for each in nodes) + field(2, "g") + b"".join(field(5, each) for each in weights)
    graph += b"".join(field(11, info(name, *kind)) for name, kind in inputs.items())
    graph += b"".join(field(12, info(name, *kind)) for name, kind in outputs.items())
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, opset))


def linear(
    weight: NDArray,
    bias: NDArray | None = None,
    batch: int | str = "n",
    x: str = "x",
    y: str = "y",
    activation: str | None = None,
) -> bytes:
    """A model x (batch, F) → x Wᵀ + b, (batch, C); of a weight (m, F, C) without bias x W_i, (m, batch, C). ``activation`` comes last."""
    stacked = weight.ndim == 3
    mid = y if activation is None else "before"
    arrays = {"w": weight.astype(np.float32)} | ({} if bias is None else {"b": bias.astype(np.float32)})
    first = node("MatMul", [x, "w"], [mid]) if stacked else node("Gemm", [x, *arrays], [mid], transB=1)
    rest = [] if activation is None else [node(activation, [mid], [y])]
    shape: Shape = (weight.shape[0], batch, weight.shape[2]) if stacked else (batch, weight.shape[0])
    features = weight.shape[1]
    return model(
        [first, *rest],
        {x: ("float32", (batch, features))},
        {y: ("float32", shape)},
        [tensor(name, array) for name, array in arrays.items()],
    )
