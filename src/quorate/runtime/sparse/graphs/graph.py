"""ONNX files read into nodes and arrays, without the onnx package.

    Model → Graph → Node      operator, names of inputs and outputs, attributes as Python values
                  → Tensor    NumPy arrays; those that the file only declares come from outside
                  → Value     dtype and shape of inputs and outputs

Source: onnx.ai/onnx/repo-docs/IR.html; wire format: :mod:`quorate.runtime.wire`. Files were checked by
:func:`quorate.runtime.onnx_file.check_program`; what is refused here is only what would be read wrongly. Nodes and tensors keep their
bytes, so that :mod:`quorate.runtime.sparse.graphs.parts` writes them as they came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.wire import MOST_FIELDS, Reader, numbers

Array = NDArray[Any]
Fields = dict[str, list[Any]]
STANDARD = ("", "ai.onnx")

# ONNX's data types that NumPy has: the field of numbers that are not raw, their kind on the wire, NumPy's name.
TYPES: dict[int, tuple[str, str, str]] = {
    1: ("float_data", "float", "float32"), 2: ("int32_data", "int", "uint8"), 3: ("int32_data", "int", "int8"),
    4: ("int32_data", "int", "uint16"), 5: ("int32_data", "int", "int16"), 6: ("int32_data", "int", "int32"),
    7: ("int64_data", "int", "int64"), 9: ("int32_data", "int", "bool"), 10: ("int32_data", "int", "float16"),
    11: ("double_data", "double", "float64"), 12: ("uint64_data", "int", "uint32"), 13: ("uint64_data", "int", "uint64"),
}  # fmt: skip
CODES = {name: code for code, (_, _, name) in TYPES.items()}


@dataclass(frozen=True, eq=False)
class Node:
    """One operator's call.

    Attributes:
        operator: such as ``"Conv"``; with its domain, ``"com.microsoft.Gelu"``, where that is not ONNX's own; a function of the file
            has ``"function "`` before it.
        name: "" where it has none.
        inputs, outputs: "" where one is left out.
        attributes: int, float, bytes, array, or a list of these; graphs and types are None.
        captured: names from outside that its inner graphs read.
        raw: the message's bytes.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    captured: tuple[str, ...]
    raw: bytes

    @property
    def reads(self) -> tuple[str, ...]:
        """All names that it reads."""
        return tuple(dict.fromkeys(name for name in (*self.inputs, *self.captured) if name))

    @property
    def writes(self) -> tuple[str, ...]:
        """All names that it writes."""
        return tuple(name for name in self.outputs if name)


@dataclass(frozen=True)
class Value:
    """An input or output: NumPy's name of its dtype, None where it is no tensor of such; its sizes, None where free or untold."""

    dtype: str | None
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, eq=False)
class Graph:
    """A file.

    Attributes:
        nodes: in order.
        constants: initialisers and what Constant nodes give, by name, of the dtypes that NumPy has.
        tensors: the bytes of the initialisers that the file holds itself, of any dtype.
        inputs, outputs: by name, without inputs that have an initialiser.
        opset: version of ONNX's own operators.
        imports, functions: the bytes of all imports of operators and of the file's own functions.
        version: of the format.
    """

    nodes: Sequence[Node]
    constants: Mapping[str, Array]
    tensors: Mapping[str, bytes]
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    opset: int
    imports: Sequence[bytes]
    functions: Sequence[bytes]
    version: int


def read_graph(onnx: bytes, external: Mapping[str, Array] | None = None) -> Graph:
    """The graph of a serialised model.

    Args:
        onnx: the file.
        external: the values of initialisers that it only declares.

    Raises:
        ValueError: a malformed file; an initialiser whose values are elsewhere and not given, or not of its dtype and shape; tensors that
            hold another number of values than their shape says; a name that is written twice, or read before it is written.
    """
    reader = Reader()
    model = reader.message(memoryview(onnx), "Model")
    if "graph" not in model:
        raise ValueError("the program has no graph: expected a serialised ONNX model; export it anew")
    graph = reader.message(model["graph"][0], "Graph")
    imports = [reader.message(view, "Opset") for view in model.get("opset_import", [])]
    opset = max((one(each, "version", 1) for each in imports if one(each, "domain", "") in STANDARD), default=1)
    functions = [reader.message(view, "Function") for view in model.get("functions", [])]
    own = {(_domain(each), one(each, "name", ""), one(each, "overload", "")) for each in functions}
    nodes = [_node(reader, view, own) for view in graph.get("node", [])]
    constants: dict[str, Array] = {}
    tensors: dict[str, bytes] = {}
    names: set[str] = set()
    for view in graph.get("initializer", []):
        fields = reader.message(view, "Tensor")
        name = one(fields, "name", "")
        names.add(name)
        if one(fields, "data_location", 0):
            constants[name] = _elsewhere(name, fields, external or {})
        else:
            tensors[name] = bytes(view)
            if (array := _array(fields)) is not None:
                constants[name] = array
    inputs = _values(reader, graph.get("input", []))
    _check_order(nodes, {name for name, _ in inputs} | names)
    for node in nodes:
        if node.operator == "Constant" and node.outputs and (value := _constant(node)) is not None:
            constants[node.outputs[0]] = value
    return Graph(
        nodes,
        constants,
        tensors,
        {name: value for name, value in inputs if name not in names},
        dict(_values(reader, graph.get("output", []))),
        opset,
        [bytes(view) for view in model.get("opset_import", [])],
        [bytes(view) for view in model.get("functions", [])],
        one(model, "ir_version", 0),
    )


def one(fields: Fields, name: str, default: Any) -> Any:
    """A field that is there once or not at all."""
    return fields[name][0] if name in fields else default


def _domain(fields: Fields) -> str:
    domain: str = one(fields, "domain", "")
    return "" if domain in STANDARD else domain


def _check_order(nodes: Sequence[Node], there: set[str]) -> None:
    """That every name is written once, and before it is read. ``there``: what is written before all nodes. Raises ValueError."""
    there = set(there)
    for node in nodes:
        label = (node.name or node.operator)[:80]
        for name in node.reads:
            if name not in there:
                raise ValueError(f"node {label!r} reads {name[:80]!r}, which nothing before it writes: export the program anew")
        for name in node.writes:
            if name in there:
                raise ValueError(f"node {label!r} writes {name[:80]!r}, which is written before: export the program anew")
            there.add(name)


def _node(reader: Reader, view: memoryview, own: set[tuple[Any, ...]]) -> Node:
    fields = reader.message(view, "Node")
    domain, kind, overload = _domain(fields), one(fields, "op_type", ""), one(fields, "overload", "")
    operator = f"{domain}.{kind}" if domain else kind
    if overload or (domain, kind, overload) in own:
        operator = f"function {operator}"
    attributes, captured = {}, dict[str, None]()
    for each in fields.get("attribute", []):
        attribute = reader.message(each, "Attribute")
        attributes[one(attribute, "name", "")] = _value(reader, attribute)
        for inner in (*attribute.get("g", ()), *attribute.get("graphs", ())):
            captured |= dict.fromkeys(_captured(reader, inner))
    outputs = tuple(fields.get("output", []))
    name = one(fields, "name", "")
    return Node(operator, name, tuple(fields.get("input", [])), outputs, attributes, tuple(captured), bytes(view))


def _value(reader: Reader, fields: Fields) -> Any:
    """An attribute's value."""
    if "ref_attr_name" in fields:
        return None
    if "t" in fields:
        return _array(reader.message(fields["t"][0], "Tensor"))
    if "s" in fields:
        return bytes(fields["s"][0])
    if "strings" in fields:
        return [bytes(view) for view in fields["strings"]]
    for single, several, kind in (("f", "floats", "float"), ("i", "ints", "int")):
        if single in fields:
            return numbers(fields[single], kind, 1)[0]
        if several in fields:
            return numbers(fields[several], kind, MOST_FIELDS)
    # an empty list, or one number that is its default, is written as its type alone
    return {1: 0.0, 2: 0, 3: b"", 6: [], 7: [], 8: []}.get(one(fields, "type", 0))


def _captured(reader: Reader, view: memoryview) -> list[str]:
    """What an inner graph reads and does not define, at any depth."""
    graph = reader.message(view, "Graph")
    defined = {one(reader.message(each, "Value"), "name", "") for each in graph.get("input", [])}
    defined |= {one(reader.message(each, "Tensor"), "name", "") for each in graph.get("initializer", [])}
    read: list[str] = []
    for each in graph.get("node", []):
        node = reader.message(each, "Node")
        read += node.get("input", [])
        for attribute in (reader.message(each, "Attribute") for each in node.get("attribute", [])):
            for inner in (*attribute.get("g", ()), *attribute.get("graphs", ())):
                read += _captured(reader, inner)
        defined |= set(node.get("output", []))
    read += [one(reader.message(each, "Value"), "name", "") for each in graph.get("output", [])]
    return [name for name in read if name and name not in defined]


def _constant(node: Node) -> Array | None:
    """What a Constant node gives; None for texts."""
    for name, dtype in (("value_float", "f4"), ("value_floats", "f4"), ("value_int", "i8"), ("value_ints", "i8")):
        if name in node.attributes:
            return np.array(node.attributes[name], dtype)
    value = node.attributes.get("value")
    return value if isinstance(value, np.ndarray) else None


def _array(fields: Fields) -> Array | None:
    """A tensor's values; None for dtypes that NumPy does not have, and for texts."""
    dims, code = numbers(fields.get("dims", []), "int", 64), one(fields, "data_type", 0)
    if code not in TYPES:
        return None
    field, kind, name = TYPES[code]
    dtype = np.dtype(name).newbyteorder("<")
    if "raw_data" in fields:
        flat = np.frombuffer(bytes(fields["raw_data"][0]), dtype)
    elif kind == "int":
        given = np.array(numbers(fields.get(field, []), kind, MOST_FIELDS), np.int64)
        flat = given.astype(np.uint16).view(np.float16) if name == "float16" else given.astype(dtype)
    else:
        flat = np.frombuffer(b"".join(map(bytes, fields.get(field, []))), dtype)
    if flat.size != np.prod(dims, dtype=np.int64):
        label = one(fields, "name", "")[:80]
        raise ValueError(f"tensor {label!r} of shape {dims} holds {flat.size:,} values: expected as many as that; export it anew")
    return flat.astype(name, copy=False).reshape(dims)


def _elsewhere(name: str, fields: Fields, external: Mapping[str, Array]) -> Array:
    dims, dtype = tuple(numbers(fields.get("dims", []), "int", 64)), TYPES.get(one(fields, "data_type", 0), ("", "", ""))[2]
    if name not in external:
        raise ValueError(
            f"the values of initialiser {name[:80]!r} are not in the file: expected them in external, which has none"
        )
    given = np.asarray(external[name])
    if given.shape != dims or given.dtype != dtype:
        raise ValueError(
            f"initialiser {name[:80]!r} is {dtype or 'no tensor of numbers'} {list(dims)} in the program, {given.dtype} "
            f"{list(given.shape)} in external: give the weights that belong to it"
        )
    return given


def _values(reader: Reader, views: Sequence[memoryview]) -> list[tuple[str, Value]]:
    found = []
    for view in views:
        fields = reader.message(view, "Value")
        type_ = reader.message(fields["type"][0], "Type") if "type" in fields else {}
        dense = reader.message(type_["tensor_type"][0], "Dense") if "tensor_type" in type_ else {}
        shape: tuple[int | None, ...] | None = None
        if "shape" in dense:
            sizes = [reader.message(each, "Size") for each in reader.message(dense["shape"][0], "Shape").get("dim", [])]
            shape = tuple(one(size, "dim_value", None) for size in sizes)
        dtype = TYPES.get(one(dense, "elem_type", 0), ("", "", None))[2]
        found.append((one(fields, "name", ""), Value(dtype, shape)))
    return found
