"""What a program may hold, by files written by hand: each thing that is refused, and next to it the one that is not."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

import tiny_onnx
from onnx_checks import IO, W, function, graph, of, ok, refused, subgraph, whole
from quorate.runtime import onnx_file, wire
from quorate.runtime.manifest import BundleError
from quorate.runtime.onnx_file import check_program
from tiny_onnx import attribute, field, info, linear, model, node, tensor, varint

pytestmark = pytest.mark.deciding


def test_honest_programs() -> None:
    ok(linear(W, np.zeros(2)))
    ok(linear(np.stack([W.T, W.T])))
    every = [np.ones((2, 2), dtype) for dtype in tiny_onnx.CODES]
    ok(of(node("Identity", ["x"], ["y"]), weights=[tensor(str(k), array) for k, array in enumerate(every)]))


def test_every_truncation_is_refused() -> None:
    data = linear(W, np.zeros(2))
    ends = [k for k in range(len(data)) if not _fails(data[:k])]
    assert ends == [len(data) - len(field(8, field(1, "") + field(2, 17)))]  # without the opset, which ONNX Runtime asks for


def _fails(data: bytes) -> bool:
    try:
        check_program(data, "p", {})
    except BundleError:
        return True
    return False


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no graph"),
        (b"\x00", "unknown field 0"),
        (field(1, 8), "no graph"),
        (field(7, b""), "no version"),
        (b"\x80" * 11, "cut off or too large"),
        (b"\xff" * 9 + b"\x02", "cut off or too large"),
        (whole(graph()) + field(99, 1), "unknown field 99"),
        (whole(graph()) + varint((1 << 32) | (1 << 3)) + b"\x01", "unknown field"),
        (whole(graph()) + field(7, graph()), "graph twice"),
        (whole(graph()) + b"\x3b\x3c", "graph of a Model twice|wire type 3|has graph twice"),
        (field(1, 8) + b"\x3b\x3c", "graph of a Model has wire type 3"),
        (field(1, b"8") + field(7, b""), "ir_version of a Model has wire type 2"),
        (field(1, 8) + field(7, 3), "graph of a Model has wire type 0"),
        (field(1, 8) + varint(7 << 3 | 2) + varint(2**63), "graph of a Model is cut off"),
        (field(1, 8) + varint(7 << 3 | 2) + varint(5) + b"1234", "graph of a Model is cut off"),
        (whole(graph()) + field(2, b"\xff"), "producer_name is no UTF-8"),
        (whole(graph(), field(20, b"")), "training information"),
        (whole(graph(), field(26, b"")), "unknown field 26"),
        (whole(graph(field(15, b""))), "sparse initialisers"),
    ],
)
def test_malformed(data: bytes, why: str) -> None:
    refused(why, data)


def test_its_own_format_is_not_taken_for_onnx() -> None:
    """ONNX Runtime looks at bytes 4 to 8; a text field can hold them in an honest ONNX file."""
    data = field(2, "ORTMabcd")
    assert data[2:6] == b"ORTM"
    ok(data + whole(graph()))
    refused("ONNX Runtime's own format", field(2, "ab" + "ORTMabcd") + whole(graph()))


def test_nesting() -> None:
    def nested(levels: int) -> bytes:
        body = graph()
        for _ in range(levels):
            body = graph(nodes=[node("If", ["c"], ["y"]) + subgraph("then_branch", body)])
        return whole(body)

    ok(nested(10))
    refused("more than 32 messages deep", nested(11))
    refused("more than 32", nested(1500))
    type_ = field(1, field(1, 1))
    for _ in range(40):
        type_ = field(4, field(1, type_))
    refused("more than 32", whole(graph(field(11, field(1, "x") + field(2, type_)))))


def test_time_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.perf_counter()
    monkeypatch.setattr(onnx_file, "MOST_NODES", 50_000)
    refused("more than 50,000 nodes", whole(graph(nodes=[b""] * 60_000)))
    monkeypatch.setattr(wire, "MOST_FIELDS", 50_000)
    refused("more than 50,000 fields", whole(graph(*[field(16, b"")] * 60_000)))
    refused("more than 50,000 fields", raw([60_000], 1, field(4, 1.0) * 60_000))
    assert time.perf_counter() - began < 10


# External data


def elsewhere(name: str = "w", shape: Sequence[int] = (2, 3), *, location: str = "ticket", more: bytes = b"") -> bytes:
    return tiny_onnx.external(name, "float32", shape, location) + more


def using(weight: bytes) -> bytes:
    return of(node("Gemm", ["x", "w"], ["y"], transB=1), weights=[weight])


def test_sparse_weights_are_external() -> None:
    ok(using(elsewhere()), w=(2, 3))
    refused(r"has shape \[2, 3\], its weights \[3, 2\]", using(elsewhere()), w=(3, 2))
    refused("'w' is external data", using(elsewhere()))
    refused("no external initialiser 'v'", using(elsewhere()), w=(2, 3), v=(1,))
    refused("no external initialiser 'w'", using(tensor("w", W)), w=(2, 3))


@pytest.mark.parametrize(
    "weight",
    [
        elsewhere(location="/etc/passwd"), elsewhere(location="../w"), elsewhere(location="w.bin"), elsewhere(location=""),
        elsewhere(location="ticket\n"), elsewhere(location="*/_ORT_MEM_ADDR_/*"),
        elsewhere(more=field(13, field(1, "offset") + field(2, "0"))), elsewhere(more=field(13, field(1, "location") + field(2, "ticket"))),
        elsewhere(more=field(9, b"\0" * 24)), elsewhere(more=field(4, b"\0" * 24)),
        elsewhere().replace(field(14, 1), b""), elsewhere().replace(field(14, 1), field(14, 0)),
        elsewhere().replace(field(14, 1), field(14, 2)),
        elsewhere().replace(field(2, 1), field(2, 99)),
    ],
)  # fmt: skip
def test_other_external_data(weight: bytes) -> None:
    refused("is external data", using(weight), w=(2, 3))


def test_external_data_in_other_places() -> None:
    refused("is external data", model([node("Gemm", ["x", "w"], ["y"])], *IO, [elsewhere(), elsewhere()]), w=(2, 3))
    refused("is external data", of(node("Constant", [], ["w"], value=elsewhere())), w=(2, 3))
    inner = graph(field(5, elsewhere()))
    refused("is external data", whole(graph(nodes=[node("If", ["c"], ["y"]) + subgraph("then_branch", inner)])), w=(2, 3))
    default = field(11, attribute("a", elsewhere()))
    refused("is external data", whole(graph(), function("f", [], "own", default)), w=(2, 3))


# Tensors


def raw(dims: Sequence[int], type_: int, *data: bytes) -> bytes:
    return whole(graph(field(5, b"".join(field(1, size) for size in dims) + field(2, type_) + field(8, "w") + b"".join(data))))


@pytest.mark.parametrize(
    ("data", "fine"),
    [
        (raw([2], 1, field(9, b"\0" * 8)), True),
        (raw([2], 1, field(9, b"\0" * 7)), False),
        (raw([2], 1, field(9, b"\0" * 9)), False),
        (raw([2], 1), False),
        (raw([0], 1), True),
        (raw([0], 1, field(9, b"")), True),
        (raw([], 1, field(9, b"\0" * 4)), True),
        (raw([2**40], 1, field(9, b"\0" * 8)), False),
        (raw([2**31, 2**31, 2**31], 1), False),
        (raw([0, 2**40, 2], 1), False),
        (raw([-2], 1, field(9, b"")), False),
        (raw([-1, -2], 1, field(9, b"\0" * 8)), False),
        (raw([1] * 65, 1, field(9, b"\0" * 4)), False),
        (raw([2], 0, field(9, b"\0" * 8)), False),
        (raw([2], 27, field(9, b"\0" * 8)), False),
        (raw([2], 2**32 + 1, field(9, b"\0" * 8)), False),
        (raw([2], 1, field(4, b"\0" * 8)), True),
        (raw([2], 1, field(4, 1.0), field(4, 2.0)), True),
        (raw([2], 1, field(4, 1.0)), False),
        (raw([2], 1, field(4, b"\0" * 7)), False),
        (raw([2], 1, field(4, b"\0" * 8), field(9, b"\0" * 8)), False),
        (raw([2], 1, field(5, b"\0" * 2)), False),
        (raw([2], 10, field(5, b"\0" * 2)), True),
        (raw([3], 7, field(7, b"\x81\x01\x02\x03")), True),
        (raw([3], 7, field(7, b"\x81\x01\x02\x83")), False),
        (raw([1], 7, field(7, b"\x81" * 11 + b"\x01")), False),
        (raw([1], 7, field(7, 5)), True),
        (raw([1], 13, field(11, 5)), True),
        (raw([1], 11, field(10, b"\0" * 8)), True),
        (raw([1], 11, field(10, b"\0" * 7)), False),
        (raw([1], 14, field(4, b"\0" * 8)), True),
        (raw([1], 14, field(4, b"\0" * 4)), False),
        (raw([3], 22, field(9, b"\0" * 2)), True),
        (raw([3], 22, field(9, b"\0" * 3)), False),
        (raw([5], 25, field(9, b"\0" * 2)), True),
        (raw([2], 8, field(6, b"a"), field(6, b"b")), True),
        (raw([2**30], 8, field(6, b"a")), False),
        (raw([1], 8, field(9, b"a")), False),
        (raw([2], 1, field(9, b"\0" * 8), field(3, b"")), False),
    ],
)  # fmt: skip
def test_tensors_hold_what_they_declare(data: bytes, fine: bool) -> None:
    if fine:
        ok(data)
    else:
        refused("tensor 'w'|packed numbers|64 numbers", data)


def test_attributes() -> None:
    refused("is a sparse tensor", of(node("Constant", [], ["y"]) + field(5, field(1, "sparse_value") + field(22, b""))))
    refused("is a sparse tensor", of(node("Constant", [], ["y"]) + field(5, field(1, "sparse_value") + field(23, b""))))
    refused("has the values i, ints", of(node("Constant", [], ["y"]) + field(5, attribute("a", 1) + field(8, 1))))
    refused("'w' of 1,099,511,627,776 elements", of(node("Constant", [], ["y"], value=raw_tensor(2**40))))
    refused(
        "'w' of 1,099,511,627,776 elements", of(node("A", [], ["y"]) + field(5, field(1, "a") + field(10, raw_tensor(2**40))))
    )


def raw_tensor(size: int) -> bytes:
    return field(1, size) + field(2, 1) + field(8, "w") + field(9, b"\0\0\0\0")


def test_declared_shapes_of_values() -> None:
    ok(whole(graph(field(11, info("x", "float32", (2**16, 2**16, "n"))))))
    refused("declares the shape", whole(graph(field(11, info("x", "float32", (2**16, 2**16, "n", 2))))))
    refused("declares the shape", whole(graph(field(13, info("x", "float32", (-1,))))))
    sequence = field(1, "x") + field(2, field(4, field(1, field(1, field(1, 1) + field(2, field(1, field(1, 2**40)))))))
    refused("declares the shape", whole(graph(field(12, sequence))))
