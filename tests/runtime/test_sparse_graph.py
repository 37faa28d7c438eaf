"""Reading and writing of ONNX graphs without the onnx package, against the onnx package."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from drafted_graphs import Draft
from quorate.runtime.session import open_session
from quorate.runtime.sparse.graphs.graph import TYPES, read_graph
from quorate.runtime.sparse.graphs.parts import Border, write_part


def model(nodes: list[Any], weights: list[Any] = [], **how: Any) -> bytes:  # noqa: B006
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["B", 3, 4])], [value("y", 1, None)], weights)
    return bytes(
        helper.make_model(graph, **({"opset_imports": [helper.make_opsetid("", 20)], "ir_version": 10} | how)).SerializeToString()
    )


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("code", sorted(TYPES))
def test_tensors_of_every_dtype(code: int, raw: bool) -> None:
    dtype = np.dtype(TYPES[code][2])
    values = np.array([[0, 1, 100], [3, 0, 7]]).astype(dtype) if dtype.kind != "b" else np.array([[0, 1, 1], [0, 0, 1]], bool)
    if dtype.kind in "fi":
        values[0, 1] = -5 if dtype.kind == "i" else -1.5
    tensor = helper.make_tensor("w", code, values.shape, values.tobytes() if raw else values.ravel().tolist(), raw=raw)
    graph = read_graph(model([helper.make_node("Identity", ["x"], ["y"])], [tensor]))
    assert graph.constants["w"].dtype == dtype
    np.testing.assert_array_equal(graph.constants["w"], values)


def test_tensors_that_numpy_does_not_have_are_kept_as_bytes() -> None:
    tensors = [
        helper.make_tensor("b", TensorProto.BFLOAT16, [2], [1.0, 2.0]),
        helper.make_tensor("s", TensorProto.STRING, [1], [b"t"]),
    ]
    graph = read_graph(model([helper.make_node("Identity", ["x"], ["y"])], tensors))
    assert graph.constants == {}
    assert {name: onnx.TensorProto.FromString(raw) for name, raw in graph.tensors.items()} == {t.name: t for t in tensors}


def test_attributes_and_constants() -> None:
    values = {
        "i": -3,
        "f": 0.5,
        "s": "text",
        "ints": [1, -2, 3],
        "floats": [0.5, -1.5],
        "strings": ["a", "b"],
        "zero": 0,
        "none": 0.0,
    }
    table = numpy_helper.from_array(np.arange(6, dtype=np.int64).reshape(2, 3))
    nodes = [
        helper.make_node("Custom", ["x", "", "x"], ["y", "", "z"], name="n", domain="ai.onnx.ml", t=table, **values),
        helper.make_node("Constant", [], ["c"], value=table),
        helper.make_node("Constant", [], ["d"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["e"], value_int=7),
    ]
    graph = read_graph(model(nodes))
    node = graph.nodes[0]
    assert (node.operator, node.name, node.inputs, node.reads, node.writes) == (
        "ai.onnx.ml.Custom", "n", ("x", "", "x"), ("x",), ("y", "z"),
    )  # fmt: skip
    assert {k: v for k, v in node.attributes.items() if k != "t"} == values | {"s": b"text", "strings": [b"a", b"b"]}
    np.testing.assert_array_equal(node.attributes["t"], np.arange(6).reshape(2, 3))
    assert {name: (array.dtype.name, array.tolist()) for name, array in graph.constants.items()} == {
        "c": ("int64", [[0, 1, 2], [3, 4, 5]]), "d": ("float32", [1.0, 2.0]), "e": ("int64", 7),
    }  # fmt: skip
    assert (graph.inputs["x"].dtype, graph.inputs["x"].shape, graph.outputs["y"].shape) == ("float32", (None, 3, 4), None)


def branches(name: str) -> Any:
    """A part whose branches read ``name`` and the weight w from outside."""
    value = helper.make_tensor_value_info("r", 1, None)
    then = helper.make_graph([helper.make_node("Mul", [name, "w"], ["r"])], "then", [], [value])
    inner = helper.make_graph([helper.make_node("Neg", [name], ["r"])], "inner", [], [value])
    both = [helper.make_node("If", ["low"], ["r"], then_branch=inner, else_branch=inner)]
    return helper.make_node("If", ["low"], ["y"], then_branch=then, else_branch=helper.make_graph(both, "else", [], [value]))


def test_a_part_with_inner_graphs_takes_other_shapes_than_it_has() -> None:
    held = [numpy_helper.from_array(np.float32([3]), "w"), numpy_helper.from_array(np.float32(0), "zero")]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["low"]),
        branches("x"),
    ]
    graph = read_graph(model(nodes, held))
    assert set(graph.nodes[2].captured) == {"x", "w", "low"}
    part = write_part(
        graph, graph.nodes, [Border("x", "x", (None, 3, 1, 4), view=(-1, 3, 4))], [Border("y", "y", (None, 12), view=(-1, 12))]
    )
    onnx.checker.check_model(part, full_check=True)
    session = open_session(part, "part", threads=1)
    for sign in (1, -1):
        x = sign * np.arange(1, 25, dtype=np.float32).reshape(2, 3, 1, 4)
        np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], (3 * x if sign == 1 else -x).reshape(2, 12))


def test_parts_of_a_graph_run_alone() -> None:
    d = Draft(x=[3, 4])
    a = d.add("Sigmoid", "x")
    flat = d.add("Reshape", a, d.hold(np.array([0, 12])))
    y = d.add("Add", flat, d.hold(np.float32([2.5])))
    graph = read_graph(d.model(y))
    nodes = [graph.nodes[0], graph.nodes[2]]
    inside = {flat: (a, (-1, 12))}
    part = write_part(
        graph, nodes, [Border("x", "x", (None, 3, 4))], [Border(y, y, (None, 12)), Border("all", a, (None, 3, 4))], inside
    )
    onnx.checker.check_model(part, full_check=True)
    x = d.feed(5)["x"]
    found = open_session(part, "part", threads=1).run([y, "all"], {"x": x})
    np.testing.assert_allclose(found[1], 1 / (1 + np.exp(-x)), rtol=1e-5)
    np.testing.assert_allclose(found[0], found[1].reshape(5, 12) + 2.5, rtol=1e-6)
    with pytest.raises(ValueError, match="'Add' reads 'reshape1', which nothing before it writes"):
        write_part(graph, nodes, [Border("x", "x", (None, 3, 4))], [Border(y, y, (None, 12))])


def test_functions_of_the_file_stay_theirs() -> None:
    twice = helper.make_function(
        "", "Relu", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    own = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="own")]
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    graph = read_graph(model(nodes, functions=[own], opset_imports=imports))
    assert (graph.nodes[0].operator, graph.opset) == ("function own.Twice", 20)
    part = write_part(graph, graph.nodes, [Border("x", "x", (None, 3, 4))], [Border("y", "y", (None, 3, 4))])
    x = np.ones((2, 3, 4), np.float32)
    np.testing.assert_array_equal(open_session(part, "part", threads=1).run(None, {"x": x})[0], 2 * x)
    shadowed = read_graph(model([helper.make_node("Relu", ["x"], ["y"])], functions=[twice]))
    assert shadowed.nodes[0].operator == "function Relu"


def test_weights_from_outside() -> None:
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="ticket")
    made = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])
    given = np.arange(8, dtype=np.float32).reshape(4, 2)
    graph = read_graph(made, {"w": given})
    part = write_part(graph, graph.nodes, [Border("x", "x", (None, 3, 4))], [Border("y", "y", (None, 3, 2))])
    x = np.ones((2, 3, 4), np.float32)
    np.testing.assert_array_equal(open_session(part, "part", threads=1).run(None, {"x": x})[0], x @ given)
    with pytest.raises(ValueError, match="'w' are not in the file: expected them in external"):
        read_graph(made)
    with pytest.raises(ValueError, match=r"'w' is float32 \[4, 2\] in the program, float64 \[4, 2\] in external"):
        read_graph(made, {"w": given.astype(np.float64)})
    with pytest.raises(ValueError, match=r"float32 \[2, 4\] in external: give the weights"):
        read_graph(made, {"w": given.T})


def test_what_is_malformed_is_refused() -> None:
    with pytest.raises(ValueError, match="no graph: expected a serialised ONNX model"):
        read_graph(b"")
    wrong = numpy_helper.from_array(np.ones(4, np.float32), "w")
    wrong.dims[0] = 5
    with pytest.raises(ValueError, match=r"tensor 'w' of shape \[5\] holds 4 values"):
        read_graph(model([helper.make_node("Identity", ["x"], ["y"])], [wrong]))
