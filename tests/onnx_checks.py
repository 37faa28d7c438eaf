"""Programs written by hand, and what the check of programs says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from quorate.runtime.manifest import BundleError
from quorate.runtime.onnx_file import check_program
from tiny_onnx import field, model, node, tensor

W = np.arange(6, dtype=np.float32).reshape(2, 3)
IO = {"x": ("float32", ("n", 3))}, {"y": ("float32", ("n", 2))}


def graph(*fields: bytes, nodes: Sequence[bytes] = ()) -> bytes:
    """A GraphProto."""
    return b"".join(field(1, each) for each in nodes) + b"".join(fields)


def whole(body: bytes, *more: bytes) -> bytes:
    """A ModelProto."""
    return field(1, 8) + field(7, body) + field(8, field(1, "") + field(2, 17)) + b"".join(more)


def of(*nodes: bytes, weights: Sequence[bytes] = ()) -> bytes:
    return model(nodes, *IO, weights)


def constant(name: str, *values: int) -> bytes:
    return tensor(name, np.array(values, np.int64))


def subgraph(name: str, *bodies: bytes) -> bytes:
    """An attribute that holds graphs."""
    return field(5, field(1, name) + b"".join(field(6 if len(bodies) == 1 else 11, body) for body in bodies))


def function(name: str, nodes: Sequence[bytes], domain: str = "own", *more: bytes) -> bytes:
    body = field(1, name) + field(10, domain) + b"".join(field(7, each) for each in nodes) + b"".join(more)
    return field(25, body)


def ok(data: bytes, **external: tuple[int, ...]) -> None:
    check_program(data, "p", external)


def refused(why: str, data: bytes, **external: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match=why) as error:
        check_program(data, "content/stage0.onnx", external)
    said = str(error.value)
    assert said.startswith("content/stage0.onnx is no program that a bundle may hold: ")
    assert "\n" not in said
    assert len(said) < 500


def called(kind: str, domain: str = "", inputs: Sequence[str] = ("x",), **attributes: Any) -> bytes:
    return node(kind, inputs, ["y"], **attributes) + field(7, domain)
