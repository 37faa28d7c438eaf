"""What is checked of a program before ONNX Runtime sees it. The file is not trusted, and no package but NumPy is needed.

    Model → Graph → Node → Attribute → Graph …      nested at most 32 messages deep, read without recursion
          → Function → Node …                       written out, at most 250,000 nodes, no function within itself
            Graph, Attribute → Tensor

- Wire format: :mod:`quorate.runtime.wire`. A file that ONNX Runtime would take for its own format ("ORTM") is refused.
- Data from elsewhere: only the initialisers that the bundle's ticket holds, of exactly these shapes, may lie outside; their location is
  "ticket", which nobody opens: the weights are handed over in memory.
- Tensors: as many bytes or numbers as dims and type say, so that a declared shape is one that the file fills. Sparse tensors, which are
  made dense by what they declare, are refused; so are shapes of inputs and values of more than 2³² elements.
- Operators: domains "", "ai.onnx", "ai.onnx.ml", "com.microsoft" and the file's own functions; of others none is used, see
  :mod:`quorate.runtime.operators`.

Training information and device configurations are refused. Types, names, and what operators take are ONNX Runtime's to check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quorate.runtime import operators
from quorate.runtime.manifest import BundleError
from quorate.runtime.operators import DOMAINS, LOOPS, UNUSED, Node, Numbers
from quorate.runtime.wire import Reader, count, numbers

DEEPEST = 32
MOST_NODES = 250_000
LOCATION = "ticket"
MOST_DECLARED = 2**32
_SHORT = 64  # numbers of a constant that may be a size
Fields = dict[str, list[Any]]

# ONNX's data types: bits per element, the field that holds the numbers where they are not raw, and NumPy's type.
_TYPES: dict[int, tuple[int, str, str]] = {
    1: (32, "float_data", "<f4"), 2: (8, "int32_data", "u1"), 3: (8, "int32_data", "i1"), 4: (16, "int32_data", "<u2"),
    5: (16, "int32_data", "<i2"), 6: (32, "int32_data", "<i4"), 7: (64, "int64_data", "<i8"), 9: (8, "int32_data", "u1"),
    10: (16, "int32_data", "<f2"), 11: (64, "double_data", "<f8"), 12: (32, "uint64_data", "<u4"), 13: (64, "uint64_data", "<u8"),
    14: (64, "float_data", ""), 15: (128, "double_data", ""), 16: (16, "int32_data", ""), 17: (8, "int32_data", ""),
    18: (8, "int32_data", ""), 19: (8, "int32_data", ""), 20: (8, "int32_data", ""), 21: (4, "int32_data", ""), 22: (4, "int32_data", ""),
    23: (4, "int32_data", ""), 24: (8, "int32_data", ""), 25: (2, "int32_data", ""), 26: (2, "int32_data", ""),
}  # fmt: skip
_STRING = 8
_KINDS = {"float_data": "float", "double_data": "double", "int32_data": "int", "int64_data": "int", "uint64_data": "int"}


def check_program(onnx: bytes, where: str, external: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a program that may not be handed to ONNX Runtime.

    Args:
        onnx: the serialised model.
        where: its name, for errors.
        external: the initialisers of the graph whose values come from the ticket file, and their shapes; no others, and all of these.

    Raises:
        BundleError: one line that says why.
    """
    try:
        if onnx[4:8] == b"ORTM":
            raise ValueError("it is in ONNX Runtime's own format: expected ONNX")
        _Check(external).model(memoryview(onnx))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{where} is no program that a bundle may hold: {reason[:300]}; export it anew") from error


class _Check:
    """One file's messages, read one after the other from a list of those that are left."""

    def __init__(self, external: Mapping[str, tuple[int, ...]]) -> None:
        self.reader = Reader()
        self.external = external
        self.supplied: set[str] = set()
        self.left: list[tuple[str, memoryview, int, int, bool]] = []  # message, its bytes, depth, holder, whether in a loop
        self.nodes: list[tuple[int, Node]] = []  # with their holder: 0 is the graph, k the k-th function
        self.functions: dict[tuple[str, str, str], int] = {}
        self.constants: dict[str, list[Numbers | None]] = {}

    def model(self, data: memoryview) -> None:
        model = self.reader.message(data, "Model")
        if "graph" not in model or "ir_version" not in model:
            raise ValueError("it has no graph or no version")
        if "training_info" in model:
            raise ValueError("it holds training information: expected a program for inference")
        domains = self._domains(model)
        for holder, view in enumerate(model.get("functions", []), 1):
            domains += self._function(view, holder)
        for domain in dict.fromkeys(domains):
            self._check_domain(domain, {key[0] for key in self.functions} | set(UNUSED))
        for entry in model.get("metadata_props", []):
            self.reader.message(entry, "Entry")
        self.left.append(("Graph", model["graph"][0], 2, 0, False))
        while self.left:
            kind, view, depth, holder, in_loop = self.left.pop()
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} messages deep")
            fields = self.reader.message(view, kind)
            known = {"Graph": self._graph, "Node": self._node, "Attribute": self._attribute}
            known.get(kind, self._other)(kind, fields, depth, holder, in_loop)
        if absent := sorted(self.external.keys() - self.supplied):
            raise ValueError(f"it has no external initialiser {absent[0][:80]!r}, for which there are weights")
        for _, node in self.nodes:
            operators.check_node(node, self.constants)
        self._check_calls()

    def _function(self, view: memoryview, holder: int) -> list[str]:
        """The domains that it uses."""
        function = self.reader.message(view, "Function")
        key = (_one(function, "domain"), _one(function, "name"), _one(function, "overload"))
        if key in self.functions:
            raise ValueError(f"it has the function {key[1][:80]!r} twice")
        self.functions[key] = holder
        for name, kind in _IN_FUNCTION.items():
            self.left += [(kind, inner, 3, holder, True) for inner in function.get(name, [])]
        return self._domains(function)

    def _domains(self, fields: Fields) -> list[str]:
        return [_one(self.reader.message(view, "Opset"), "domain") for view in fields.get("opset_import", [])]

    def _check_domain(self, domain: str, own: set[str]) -> None:
        if domain not in DOMAINS and domain not in own:
            raise ValueError(
                f"operator domain {domain[:80]!r} is not one of {', '.join(map(repr, DOMAINS))} or of its own functions"
            )

    def _graph(self, _: str, graph: Fields, depth: int, holder: int, in_loop: bool) -> None:
        if "sparse_initializer" in graph:
            raise ValueError("it has sparse initialisers: expected dense ones")
        for view in graph.get("initializer", []):
            name, values = self._tensor(view, top=depth == 2)
            self.constants.setdefault(name, []).append(values)
        for field, kind in _IN_GRAPH.items():
            self.left += [(kind, view, depth + 1, holder, in_loop) for view in graph.get(field, [])]

    def _node(self, _: str, fields: Fields, depth: int, holder: int, in_loop: bool) -> None:
        operator, domain, overload = (_one(fields, key) for key in ("op_type", "domain", "overload"))
        if (domain, operator, overload) not in self.functions:
            self._check_domain(domain, set())
        sizes: dict[str, Numbers] = {}
        for view in fields.get("attribute", []):
            attribute = self.reader.message(view, "Attribute")
            found, values = self._attribute("Attribute", attribute, depth + 1, holder, in_loop or operator in LOOPS)
            if operator.startswith("TreeEnsemble"):
                operators.check_trees(operator, found, attribute.get("ints", []))
            if found in operators.ATTRIBUTES and values is not None:
                sizes[found] = values
            elif operator == "Constant":
                for name in fields.get("output", [])[:1]:
                    self.constants.setdefault(name, []).append(values)
        self.left += [("Entry", view, depth + 1, holder, in_loop) for view in fields.get("metadata_props", [])]
        inputs = fields.get("input", [])
        self.nodes.append((holder, Node(operator, domain, overload, inputs, in_loop, sizes)))
        if len(self.nodes) > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES:,} nodes")

    def _attribute(self, _: str, fields: Fields, depth: int, holder: int, in_loop: bool) -> tuple[str, Numbers | None]:
        """Its name, and its numbers if they are few."""
        name, held = _one(fields, "name"), [field for field in _VALUES if field in fields]
        if {"sparse_tensor", "sparse_tensors"} & set(held):
            raise ValueError(f"attribute {name[:80]!r} is a sparse tensor: expected a dense one")
        if len(held) > 1:
            raise ValueError(f"attribute {name[:80]!r} has the values {', '.join(held)}: expected one")
        values: Numbers | None = None
        for field, kind in ((field, _VALUES[field]) for field in held):
            if kind == "Tensor":
                for view in fields[field]:
                    _, values = self._tensor(view, top=False)
            elif kind in ("float", "int"):
                values = tuple(numbers(fields[field], kind, _SHORT)) if count(fields[field], kind) <= _SHORT else None
            elif kind != "bytes":
                self.left += [(kind, view, depth + 1, holder, in_loop) for view in fields[field]]
        return name, values

    def _other(self, kind: str, fields: Fields, depth: int, holder: int, in_loop: bool) -> None:
        """Messages of which only the inner ones matter, and shapes."""
        if kind == "Shape":
            sizes = [_one(self.reader.message(view, "Size"), "dim_value", 0) for view in fields.get("dim", [])]
            if min(sizes, default=0) < 0 or len(sizes) > _SHORT or math.prod(max(size, 1) for size in sizes) > MOST_DECLARED:
                raise ValueError(f"it declares the shape {str(sizes)[:80]}")
        for name, inner in _INNER.get(kind, {}).items():
            self.left += [(inner, view, depth + 1, holder, in_loop) for view in fields.get(name, [])]

    def _tensor(self, view: memoryview, top: bool) -> tuple[str, Numbers | None]:
        """The name of a tensor whose data fit, and its numbers if they are few. ``top``: an initialiser of the graph itself."""
        fields = self.reader.message(view, "Tensor")
        name = _one(fields, "name")
        for entry in fields.get("metadata_props", []):
            self.reader.message(entry, "Entry")
        dims = numbers(fields.get("dims", []), "int", _SHORT)
        if "segment" in fields or any(size < 0 for size in dims) or math.prod(max(size, 1) for size in dims) > 2**40:
            raise ValueError(f"tensor {name[:80]!r} has the shape {str(dims)[:80]}, or is a segment")
        type_, location = _one(fields, "data_type", 0), _one(fields, "data_location", 0)
        data = {key: fields[key] for key in (*_KINDS, "string_data", "raw_data") if key in fields}
        if location or "external_data" in fields:
            self._external(name, dims, type_, fields, bool(data) or location != 1 or not top)
            return name, None
        return name, _numbers_of(name, math.prod(dims), type_, data)

    def _external(self, name: str, dims: list[int], type_: int, fields: Fields, odd: bool) -> None:
        entries = [self.reader.message(entry, "Entry") for entry in fields.get("external_data", [])]
        said = [(_one(entry, "key"), _one(entry, "value")) for entry in entries]
        if odd or name not in self.external or name in self.supplied or said != [("location", LOCATION)] or type_ not in _TYPES:
            raise ValueError(
                f"tensor {name[:80]!r} is external data ({str(said)[:80]}), which is not among the bundle's sparse weights"
            )
        if tuple(dims) != tuple(self.external[name]):
            raise ValueError(f"external tensor {name[:80]!r} has shape {dims}, its weights {list(self.external[name])}")
        self.supplied.add(name)

    def _check_calls(self) -> None:
        """That functions written out stay small and don't contain themselves."""
        own = [0] * (len(self.functions) + 1)
        calls: list[list[int]] = [[] for _ in own]
        for holder, node in self.nodes:
            own[holder] += 1
            callee = self.functions.get((node.domain, node.operator, node.overload))
            if callee is not None:
                calls[holder].append(callee)
        open_: set[int] = set()
        total: dict[int, int] = {}
        left = [(holder, False) for holder in range(len(own))]
        while left:
            holder, done = left.pop()
            if done:
                open_.discard(holder)
                total[holder] = own[holder] + sum(total[callee] for callee in calls[holder])
                if total[holder] > MOST_NODES:
                    raise ValueError(f"its functions written out have more than {MOST_NODES:,} nodes")
            elif holder in open_:
                raise ValueError("a function contains itself")
            elif holder not in total:
                open_.add(holder)
                left.append((holder, True))
                left += [(callee, False) for callee in set(calls[holder])]


_VALUES = {
    "f": "float", "i": "int", "floats": "float", "ints": "int", "s": "bytes", "strings": "bytes", "t": "Tensor", "tensors": "Tensor",
    "g": "Graph", "graphs": "Graph", "tp": "Type", "type_protos": "Type", "sparse_tensor": "bytes", "sparse_tensors": "bytes",
}  # fmt: skip
_IN_FUNCTION = {"node": "Node", "attribute_proto": "Attribute", "value_info": "Value", "metadata_props": "Entry"}
_IN_GRAPH = {
    "input": "Value", "output": "Value", "value_info": "Value", "quantization_annotation": "Annotation", "metadata_props": "Entry",
    "node": "Node",
}  # fmt: skip
_INNER: dict[str, dict[str, str]] = {
    "Value": {"type": "Type", "metadata_props": "Entry"},
    "Annotation": {"quant_parameter_tensor_names": "Entry"},
    "Type": {
        "tensor_type": "Dense", "sparse_tensor_type": "Dense", "sequence_type": "Element", "optional_type": "Element", "map_type": "Map",
    },
    "Dense": {"shape": "Shape"},
    "Element": {"elem_type": "Type"},
    "Map": {"value_type": "Type"},
}  # fmt: skip


def _one(fields: Fields, name: str, default: Any = "") -> Any:
    """A field that is there once or not at all."""
    return fields[name][0] if name in fields else default


def _numbers_of(name: str, size: int, type_: int, data: Mapping[str, list[Any]]) -> Numbers | None:
    """The numbers of a tensor if they are few. Raises ValueError unless there are exactly as many as its shape and type say."""
    if type_ == _STRING:
        holds = len(data.get("string_data", ())) if set(data) <= {"string_data"} else -1
        if holds != size:
            raise ValueError(f"tensor {name[:80]!r} of {size:,} texts holds others")
        return None
    if type_ not in _TYPES:
        raise ValueError(f"tensor {name[:80]!r} has the unknown type {type_}")
    bits, field, numpy = _TYPES[type_]
    if set(data) == {"raw_data"}:
        raw = data["raw_data"][0]
        if len(raw) != -(-size * bits // 8):
            raise ValueError(f"tensor {name[:80]!r} of {size:,} elements of {bits} bits has {len(raw):,} bytes")
        return tuple(np.frombuffer(raw, numpy).tolist()) if numpy and 0 < size <= _SHORT else None
    per = {14: 2, 15: 2}.get(type_, 1)  # a complex number is two
    expected = -(-size * bits // 8) if bits < 8 else size * per
    values = data.get(field, [])
    if set(data) - {field} or count(values, _KINDS[field]) != expected:
        raise ValueError(f"tensor {name[:80]!r} of {size:,} elements of {bits} bits holds others, or other fields")
    return tuple(numbers(values, _KINDS[field], _SHORT)) if numpy and 0 < size <= _SHORT else None
