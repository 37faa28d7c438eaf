"""Arrays between the sparse parts of a network and those that ONNX Runtime runs, and outputs that are several things at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("llvmlite")
pytest.importorskip("onnx")

from onnx import TensorProto

from drafted_graphs import Draft
from quorate.runtime.session import open_session
from quorate.runtime.sparse.explaining import explain
from quorate.runtime.sparse.machine.host import here
from quorate.runtime.sparse.sparse import SparseNetwork
from quorate.runtime.sparse.tuning import Tuning

SPARSE = Tuning(engine={"latency": "sparse", "throughput": "sparse"})


def check(draft: Draft, *outputs: str, dense: Sequence[str] = ()) -> None:
    """Every output alone, all of them in both orders, rows one by one and in groups, by one thread and two, against ONNX Runtime."""
    program = draft.model(*outputs)
    session = open_session(program, "the draft", threads=1)
    tuning = Tuning(SPARSE.engine, {"latency": tuple(dense), "throughput": tuple(dense)})
    for threads in (1, 2):
        network = SparseNetwork(program, threads=threads, tuning=tuning)
        for rows in (1, here().lanes + 3):
            feed = draft.feed(rows)
            for names in ([*outputs], [*reversed(outputs)], *([name] for name in outputs)):
                for found, want in zip(network.run(names, feed), session.run(names, feed), strict=True):
                    assert found.shape == want.shape
                    assert np.abs(found - want).max() <= 1e-5 * max(1, np.abs(want).max())


def test_an_output_of_a_sequence_that_a_foreign_part_reads() -> None:
    d = Draft(x=[9, 33])
    a = d.add("Relu", d.conv("x", 9, 12, [5]))
    b = d.conv(d.add("Sigmoid", a), 12, 7, [3])
    check(d, a, b)


def test_an_input_of_a_sequence_that_both_read() -> None:
    d = Draft(x=[5, 12])
    a = d.add("Sigmoid", "x")
    check(d, d.add("Add", d.conv("x", 5, 7, [3]), d.conv(a, 5, 7, [3])), a, d.add("Identity", "x"))


def test_a_mean_that_is_planes_and_vector_output_and_foreign() -> None:
    d = Draft(x=[6, 9, 9])
    planes = d.add("GlobalAveragePool", d.conv("x", 6, 12))
    vector = d.add("Flatten", planes)
    check(d, d.add("Sigmoid", planes), d.add("Softmax", vector), d.gemm(vector, 12, 5), planes, vector)


def test_margins_that_differ_between_readers() -> None:
    d = Draft(x=[4, 9, 9], z=[4, 9, 9])
    a = d.conv("x", 4, 8, 3, name="a.weight")
    b = d.conv(a, 8, 8, 7, name="b.weight")
    c = d.add("Relu", d.add("Add", d.add("Add", b, a), d.conv("z", 4, 8, 1, name="c.weight")))
    e = d.conv(c, 8, 8, 5, name="e.weight")
    f = d.add("Add", e, a)
    check(d, e, f, a)
    check(d, f, c, dense=("b", "c"))


def test_a_foreign_part_of_which_several_layers_read() -> None:
    d = Draft(x=[4, 9, 9])
    a = d.conv("x", 4, 8)
    b = d.add("Sigmoid", a)
    c = d.add("Tanh", d.add("Add", d.conv(b, 8, 8, 1), d.add("Add", d.conv(b, 8, 8, 5), b)))
    check(d, d.conv(d.add("Add", c, a), 8, 8), b, c)


def test_numbers_of_rows_in_a_table_are_explained() -> None:
    """Inputs that are not float32 get values that a table has."""
    d = Draft(x=[4, 9, 9])
    d.take("index", [3], TensorProto.INT64)
    taken = d.add("ReduceSum", d.add("Gather", d.drawn(2, 5), "index"), d.hold(np.array([1])), keepdims=0)
    program = d.model(d.add("Add", d.gemm(d.add("Flatten", d.add("GlobalAveragePool", d.conv("x", 4, 8))), 8, 5), taken))
    network = SparseNetwork(program, tuning=SPARSE)
    assert any(line.choice.startswith("ONNX Runtime") for line in explain(network).lines)


class Other:
    """A session that gives other arrays than it should."""

    def __init__(self, session: Any, change: Any) -> None:
        self.session, self.change = session, change

    def run(self, *given: Any) -> Any:
        return [self.change(array) for array in self.session.run(*given)]


@pytest.mark.parametrize("change", [lambda a: a[:, :1], lambda a: a.astype(np.float64)])
def test_what_a_foreign_part_may_not_give(change: Any) -> None:
    """Planes would be filled from beyond its end. The memory of a job that failed is not used again, the next one is as ever."""
    d = Draft(x=[4, 9, 9])
    program = d.model(d.conv(d.add("Sigmoid", d.conv("x", 4, 8)), 8, 8))
    network, feed = SparseNetwork(program, tuning=SPARSE), d.feed(1)
    want = network.run(None, feed)[0]
    sessions = network.spaces("latency").plan.sessions
    broken = {name: Other(session, change) for name, session in sessions.items()}
    with (
        mock.patch.dict(sessions, broken),
        pytest.raises(ValueError, match=r"ONNX Runtime gave .*, expected float32 .*: run it dense"),
    ):
        network.run(None, feed)
    assert network.spaces("latency")._free[1] == []
    assert np.array_equal(network.run(None, feed)[0], want)
