"""Mutations of bundles for fuzzing: of bytes, of JSON, and of protobuf fields, each said by a few numbers, so that a case can be repeated.

An edit is (what, where, value): ``where`` counts round the places there are, ``value`` round the values that are tried.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from quorate.runtime.wire import TABLES, Reader
from quorate.runtime.wire import varint as decoded
from tiny_onnx import field as encoded
from tiny_onnx import varint

Edit = tuple[str, int, int]
BYTES = ("flip", "set", "cut", "insert", "drop", "double", "zeros", "front")
JSON = ("put", "drop", "add", "double", "swap", "nest", "text")
WIRE = ("remove", "repeat", "number", "length", "value", "renumber", "exchange", "swap")
BLOBS = (b"\0", b"\xff", b"\n", b"{}", b"\x80\x80", b"\0" * 16, b"\xff" * 16, b"A" * 1000, b'"', b"../")
NUMBERS = (0, 1, 2, 3, 7, 8, 9, 16, 63, 64, 127, 128, 255, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1,
           2**63, 2**64 - 1, 2**64 - 2)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, -1, 4, 40, 0.5, -0.0, 1.0, 1e-300, 1e300, 2**31, 2**40, 2**63, 2**64, 10**300, -(2**63), "", "x",
    "members", "../x", "/etc/passwd", "a\nb", "\u202e", "\ud800", "content-000000000000/stage0.onnx", "NUL", "float64", "int8", "replace",
    "probs", "values", "gaussian", "logits", "last", "a" * 400, [], {}, [[]], [1], [None], [2**40, 2**40], [0, 1], ["a"], {"a": 1},
    {"name": "x"},
)  # fmt: skip


def of_bytes(data: bytes, edit: Edit) -> bytes:
    """Some bytes changed, more or fewer of them."""
    what, where, value = edit
    place = where % (len(data) + 1)
    blob = BLOBS[value % len(BLOBS)]
    if what == "flip" and data:
        place %= len(data)
        return data[:place] + bytes([data[place] ^ (1 << value % 8)]) + data[place + 1 :]
    if what == "set":
        return data[:place] + blob + data[place + len(blob) :]
    if what == "cut":
        return data[:place]
    if what == "insert":
        return data[:place] + blob + data[place:]
    if what == "drop":
        return data[:place] + data[place + 1 + value % 64 :]
    if what == "double":
        return data[:place] + data[place : place + 1 + value % 64] + data[place:]
    if what == "zeros":
        return data + b"\0" * (1 + value % 5000)
    return data[-(1 + value % 64) :] + data if data else blob


def of_json(data: Any, edit: Edit) -> Any:
    """One value of the tree changed; the whole is returned."""
    what, where, value = edit
    data = copy.deepcopy(data)
    places = _places(data)
    holder, key = places[where % len(places)]
    other, theirs = places[value % len(places)]
    if what == "put":
        holder[key] = copy.deepcopy(VALUES[value % len(VALUES)])
    elif what == "drop":
        del holder[key]
    elif what == "add" and isinstance(holder, dict):
        holder[("more", "", "digest", "a" * 2000, "__class__")[value % 5]] = copy.deepcopy(VALUES[value % len(VALUES)])
    elif what == "double" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif what == "swap":
        mine, their = copy.deepcopy(holder[key]), copy.deepcopy(other[theirs])
        holder[key] = their
        if isinstance(other, dict) or theirs < len(other):
            other[theirs] = mine
    elif what == "nest":
        for _ in range((1, 5, 60, 70)[value % 4]):
            holder[key] = [holder[key]] if value % 2 else {"a": holder[key]}
    elif isinstance(holder[key], str):
        changed = of_bytes(holder[key].encode("utf-8", "replace"), (BYTES[value % len(BYTES)], where // 7, value))
        holder[key] = changed.decode("utf-8", "replace") if value % 3 else holder[key].upper()
    else:
        holder[key] = str(holder[key])[:1000]
    return data


def _places(data: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of every value in the tree."""
    found: list[tuple[Any, Any]] = []
    left = [data]
    while left:
        holder = left.pop()
        for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
            found.append((holder, key))
            if isinstance(value, dict | list):
                left.append(value)
    return found


Wire = list[Any]
"""A message as a list of [number, wire type, value]; an inner message as such a list again."""


def of_onnx(data: bytes, edits: Sequence[Edit]) -> bytes:
    """Fields of the model changed at any depth; lengths are made right again."""
    tree = _tree(memoryview(data), "Model")
    for edit in edits:
        _edit(tree, edit)
    return _bytes(tree)


def _tree(data: memoryview, kind: str) -> Wire:
    Reader().message(data, kind)
    place, found = 0, []
    while place < len(data):
        key, place = decoded(data, place)
        inner = TABLES[kind][key >> 3][1]
        value: Any
        if key & 7 == 0:
            value, place = decoded(data, place)
        elif key & 7 == 2:
            size, place = decoded(data, place)
            view = data[place : place + size]
            value = _tree(view, inner) if inner in TABLES else bytes(view)
            place += size
        else:
            size = 8 if key & 7 == 1 else 4
            value = bytes(data[place : place + size])
            place += size
        found.append([key >> 3, key & 7, value])
    return found


def _bytes(tree: Wire) -> bytes:
    parts = []
    for number, wire, value in tree:
        value = _bytes(value) if isinstance(value, list) else value
        if wire == 0 and isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        elif wire in (1, 5) and isinstance(value, bytes):
            parts.append(varint(number << 3 | wire) + value)
        else:
            parts.append(encoded(number, value if isinstance(value, bytes) else varint(value)))
    return b"".join(parts)


def _edit(tree: Wire, edit: Edit) -> None:
    what, where, value = edit
    places = _fields(tree)
    if not places:
        return
    holder, k = places[where % len(places)]
    other, m = places[value % len(places)]
    entry = holder[k]
    if what == "remove":
        del holder[k]
    elif what == "repeat":
        holder.extend(copy.deepcopy(entry) for _ in range((1, 1, 2, 50)[value % 4]))
    elif what == "number" or isinstance(entry[2], int):
        entry[1], entry[2] = 0, NUMBERS[value % len(NUMBERS)]
    elif what == "renumber":
        entry[0] = value % 30
    elif what == "exchange":
        entry[2] = copy.deepcopy(other[m][2])
        entry[1] = other[m][1]
    elif what == "swap":
        holder[k], other[m] = copy.deepcopy(other[m]), copy.deepcopy(entry)
    elif isinstance(entry[2], bytes):
        old = entry[2]
        if what == "length":
            entry[2] = old[: value % (len(old) + 1)] if value % 2 else old + BLOBS[value % len(BLOBS)]
        elif old.isalnum() and value % 3:
            entry[2] = NAMES[value % len(NAMES)].encode()
        else:
            entry[2] = of_bytes(old, (BYTES[value % len(BYTES)], where // 11, value // 8))
    else:
        entry[2] = list(reversed(entry[2]))


NAMES = (
    "x", "y", "w", "members", "", "Relu", "Add", "MatMul", "Gemm", "Identity", "Conv", "Reshape", "Expand", "ConstantOfShape", "Loop", "If",
    "Tile", "Gather", "Shape", "Cast", "Softmax", "LSTM", "Concat", "Transpose", "TopK", "Unsqueeze", "ReduceSum", "QuantizeLinear",
    "Attention", "Einsum", "MaxPool", "Range", "Slice", "Split", "NonZero", "Resize", "SequenceConstruct", "com.microsoft", "evil",
    "ticket", "location",
)  # fmt: skip


def _fields(tree: Wire) -> list[tuple[Wire, int]]:
    found, left = [], [tree]
    while left:
        holder = left.pop()
        for k, (_, _, value) in enumerate(holder):
            found.append((holder, k))
            if isinstance(value, list):
                left.append(value)
    return found


def safetensors_parts(data: bytes) -> tuple[Any, bytes]:
    """(header as JSON, the rest)."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def safetensors_bytes(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest
