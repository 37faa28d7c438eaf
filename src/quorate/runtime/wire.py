"""The wire format of ONNX files: one message at a time, by tables of the fields that ONNX has.

Sources: protobuf.dev/programming-guides/encoding; onnx/onnx-ml.proto, IR version 14.

    message  =  (key value)*          key = field number · 8 + wire type, a varint
    value    =  varint (0) | 8 bytes (1) | length and bytes (2) | 4 bytes (5)

Nothing is copied: bytes, inner messages and packed numbers stay views of the file. Read strictly, so that every reader sees the same:
a field that is not in the table, of another type, or given twice where ONNX has it once is refused, which no writer of ONNX does. The
time is linear in the bytes, and at most :data:`MOST_FIELDS` fields are read.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

MOST_FIELDS = 4_000_000
"""Fields of one file: a network of 100,000 nodes has fewer; more would take longer than to run it."""

Field = tuple[str, str, bool]  # name, type, whether it is repeated

_MESSAGES = """
Model      1 int ir_version; 2 text producer_name; 3 text producer_version; 4 text domain; 5 int model_version; 6 text doc_string;
           7 Graph graph; 8 Opset* opset_import; 14 Entry* metadata_props; 20 bytes* training_info; 25 Function* functions
Opset      1 text domain; 2 int version
Entry      1 text key; 2 text value
Graph      1 Node* node; 2 text name; 5 Tensor* initializer; 10 text doc_string; 11 Value* input; 12 Value* output; 13 Value* value_info;
           14 Annotation* quantization_annotation; 15 bytes* sparse_initializer; 16 Entry* metadata_props
Annotation 1 text tensor_name; 2 Entry* quant_parameter_tensor_names
Node       1 text* input; 2 text* output; 3 text name; 4 text op_type; 5 Attribute* attribute; 6 text doc_string; 7 text domain;
           8 text overload; 9 Entry* metadata_props
Attribute  1 text name; 2 float f; 3 int i; 4 bytes s; 5 Tensor t; 6 Graph g; 7 float* floats; 8 int* ints; 9 bytes* strings;
           10 Tensor* tensors; 11 Graph* graphs; 13 text doc_string; 14 Type tp; 15 Type* type_protos; 20 int type; 21 text ref_attr_name;
           22 bytes sparse_tensor; 23 bytes* sparse_tensors
Function   1 text name; 4 text* input; 5 text* output; 6 text* attribute; 7 Node* node; 8 text doc_string; 9 Opset* opset_import;
           10 text domain; 11 Attribute* attribute_proto; 12 Value* value_info; 13 text overload; 14 Entry* metadata_props
Tensor     1 int* dims; 2 int data_type; 3 bytes segment; 4 float* float_data; 5 int* int32_data; 6 bytes* string_data; 7 int* int64_data;
           8 text name; 9 bytes raw_data; 10 double* double_data; 11 int* uint64_data; 12 text doc_string; 13 Entry* external_data;
           14 int data_location; 16 Entry* metadata_props
Value      1 text name; 2 Type type; 3 text doc_string; 4 Entry* metadata_props
Type       1 Dense tensor_type; 4 Element sequence_type; 5 Map map_type; 6 text denotation; 8 Dense sparse_tensor_type;
           9 Element optional_type
Dense      1 int elem_type; 2 Shape shape
Element    1 Type elem_type
Map        1 int key_type; 2 Type value_type
Shape      1 Size* dim
Size       1 int dim_value; 2 text dim_param; 3 text denotation
"""
_WIRE = {"int": 0, "double": 1, "float": 5}
_WIDTH = {"float": 4, "double": 8}


def _tables() -> dict[str, dict[int, Field]]:
    tables: dict[str, dict[int, Field]] = {}
    for line in _MESSAGES.strip().splitlines():
        if not line.startswith(" "):
            message, _, line = line.partition(" ")
            tables[message] = {}
        for field in filter(None, (part.strip() for part in line.split(";"))):
            number, kind, name = field.split()
            tables[message][int(number)] = name, kind.rstrip("*"), kind.endswith("*")
    return tables


TABLES = _tables()


class Reader:
    """Reads messages of one file and counts their fields."""

    def __init__(self) -> None:
        self.left = MOST_FIELDS

    def message(self, data: memoryview, kind: str) -> dict[str, list[Any]]:
        """The fields of a message by name, each a list in the file's order; absent ones are not there.

        ``int`` as signed 64-bit int, ``text`` as str, ``bytes`` and inner messages as views; packed numbers, and single floats, as views
        that :func:`numbers` decodes. Raises ValueError for what is malformed.
        """
        table = TABLES[kind]
        found: dict[str, list[Any]] = {}
        place, end = 0, len(data)
        while place < end:
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"it has more than {MOST_FIELDS:,} fields")
            key, place = varint(data, place)
            number, wire = key >> 3, key & 7
            field = table.get(number) if key < 2**32 else None
            if field is None:
                raise ValueError(f"a {kind} has the unknown field {number}")
            name, type_, repeated = field
            values = found.setdefault(name, [])
            if values and not repeated:
                raise ValueError(f"a {kind} has {name} twice")
            if wire == 2 and (type_ not in _WIRE or repeated):
                size, place = varint(data, place)
                if size > end - place:
                    raise ValueError(f"{name} of a {kind} is cut off")
                view = data[place : place + size]
                place += size
                values.append(_text(view, name) if type_ == "text" else view)
            elif wire != _WIRE.get(type_):
                raise ValueError(f"{name} of a {kind} has wire type {wire}")
            elif wire == 0:
                value, place = varint(data, place)
                values.append(_signed(value))
            else:
                width = _WIDTH[type_]
                if width > end - place:
                    raise ValueError(f"{name} of a {kind} is cut off")
                values.append(data[place : place + width])
                place += width
        return found


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """The number at a place, below 2⁶⁴, and the place after it. Raises ValueError."""
    value = shift = 0
    for byte in data[place : place + 10]:
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 2**64:
                break
            return value, place
        shift += 7
    raise ValueError("a number is cut off or too large")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _text(view: memoryview, name: str) -> str:
    try:
        return str(view, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no UTF-8") from error


def count(values: list[Any], kind: str) -> int:
    """How many numbers of a kind these entries hold. Raises ValueError for packed ones that end inside a number."""
    total = 0
    for value in values:
        if isinstance(value, int):
            total += 1
        elif kind == "int":
            total += _packed(value)
        else:
            if len(value) % _WIDTH[kind]:
                raise ValueError("packed numbers are cut off")
            total += len(value) // _WIDTH[kind]
    return total


def _packed(view: memoryview) -> int:
    """The number of packed varints, each of at most 10 bytes."""
    if not len(view):
        return 0
    ends = np.flatnonzero(np.frombuffer(view, np.uint8) < 128)
    if not len(ends) or ends[-1] != len(view) - 1 or ends[0] > 9 or bool((ends[1:] - ends[:-1] > 10).any()):
        raise ValueError("packed numbers are cut off or too large")
    return len(ends)


def numbers(values: list[Any], kind: str, most: int) -> list[Any]:
    """The numbers that these entries hold. Raises ValueError where there are more than ``most``."""
    if count(values, kind) > most:
        raise ValueError(f"more than {most} numbers where few are expected")
    found: list[Any] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
        elif kind == "int":
            place = 0
            while place < len(value):
                number, place = varint(value, place)
                found.append(_signed(number))
        else:
            found += [x for (x,) in struct.iter_unpack("<f" if kind == "float" else "<d", value)]
    return found
