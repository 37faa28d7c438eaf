"""Small ONNX programs of known weights, and a two-stage classifier of random features that is good enough to fit policies on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quorate.runtime.program import Port, Ports, Program

CLASSES, WIDTH, HIDDEN = 3, 6, 32


def graph(
    nodes: list[Any], takes: dict[str, list[Any]], gives: dict[str, list[Any]], weights: dict[str, Any], input: int = 1
) -> bytes:
    """A serialised model; ``input`` is the type of what it takes."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, input, shape) for name, shape in takes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in gives.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def members(count: int = 1, classes: int = CLASSES) -> Port:
    return Port("members", "float32", (count, classes))


def linear(weights: NDArray[Any], bias: NDArray[Any], name: str = "a") -> Program:
    """x (B, I) → x Wᵀ + b (1, B, O); weights (O, I)."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
        helper.make_node("Unsqueeze", ["y", "axes"], ["members"]),
    ]
    out, width = weights.shape
    held = {"w": weights, "b": bias, "axes": np.array([0])}
    made = graph(nodes, {"x": ["B", width]}, {"members": [1, "B", out]}, held)
    return Program(Ports(name, members(1, out), Port("x", "float32", (width,)), macs=float(weights.size)), made)


def convolution(groups: int = 1, seed: int = 0) -> Program:
    """x (B, 4, 6, 6) → convolution, ReLU, mean, linear."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["x", "k", "kb"], ["h"], pads=[1, 1, 1, 1], group=groups),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
        helper.make_node("Unsqueeze", ["y", "axes"], ["members"]),
    ]
    held = {
        "k": rng.normal(size=(16, 4 // groups, 3, 3)).astype("f4"), "kb": rng.normal(size=16).astype("f4"),
        "w": rng.normal(size=(16, CLASSES)).astype("f4"), "b": rng.normal(size=CLASSES).astype("f4"), "axes": np.array([0]),
    }  # fmt: skip
    made = graph(nodes, {"x": ["B", 4, 6, 6]}, {"members": [1, "B", CLASSES]}, held)
    return Program(Ports("conv", members(), Port("x", "float32", (4, 6, 6))), made)


def recurrent(kind: str = "LSTM", seed: int = 0) -> Program:
    """x (T = 5, as the last axis) → LSTM or GRU → linear on its last state."""
    rng, gates = np.random.default_rng(seed), {"LSTM": 4, "GRU": 3}[kind]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[2, 0, 1]),
        helper.make_node(kind, ["t", "w", "r"], ["all", "last"], hidden_size=8),
        helper.make_node("Squeeze", ["last", "axes"], ["s"]),
        helper.make_node("MatMul", ["s", "o"], ["y"]),
        helper.make_node("Unsqueeze", ["y", "axes"], ["members"]),
    ]
    held = {
        "w": rng.normal(size=(1, 8 * gates, 4)).astype("f4"), "r": rng.normal(size=(1, 8 * gates, 8)).astype("f4") / 3,
        "o": rng.normal(size=(8, CLASSES)).astype("f4"), "axes": np.array([0]),
    }  # fmt: skip
    made = graph(nodes, {"x": ["B", 4, 5]}, {"members": [1, "B", CLASSES]}, held)
    return Program(Ports("rnn", members(), Port("x", "float32", (4, 5))), made)


def stacked(count: int = 4, seed: int = 0) -> Program:
    """x (B, 6) → (count, B, 3): one product with the members' stacked matrices."""
    weights = np.random.default_rng(seed).normal(size=(count, WIDTH, CLASSES)).astype("f4")
    nodes = [helper.make_node("Unsqueeze", ["x", "axes"], ["u"]), helper.make_node("MatMul", ["u", "w"], ["members"])]
    held = {"w": weights, "axes": np.array([0])}
    made = graph(nodes, {"x": ["B", WIDTH]}, {"members": [count, "B", CLASSES]}, held)
    return Program(Ports("packed", members(count), Port("x", "float32", (WIDTH,))), made)


def pixels() -> Program:
    """x (B, 6) of uint8 → cast, scaled, linear."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
        helper.make_node("Unsqueeze", ["y", "axes"], ["members"]),
    ]
    held = {"scale": np.float32(1 / 255), "w": rng.normal(size=(WIDTH, CLASSES)).astype("f4"), "axes": np.array([0])}
    made = graph(nodes, {"x": ["B", WIDTH]}, {"members": [1, "B", CLASSES]}, held, TensorProto.UINT8)
    return Program(Ports("pixels", members(), Port("x", "uint8", (WIDTH,))), made)


def rows(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(count, 6) points of three overlapping classes, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    means = np.array([[1.0, 0, 0, 0.5, 0, 0], [0, 1.0, 0, 0, 0.5, 0], [0, 0, 1.0, 0, 0, 0.5]])
    return (means[labels] + rng.normal(size=(count, WIDTH)) * 0.7).astype("f4"), labels


def classifier() -> list[Program]:
    """Two stages fitted by least squares; the second reads what the first wrote: x → hidden → (members), hidden → (members)."""
    rng = np.random.default_rng(0)
    x, labels = rows(2000, 1)
    target = np.eye(CLASSES)[labels]

    def fitted(h: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(8 * np.linalg.lstsq(h, target - 1 / CLASSES, rcond=None)[0], np.float32)

    first = rng.normal(size=(WIDTH, HIDDEN)).astype("f4") / 2
    hidden = np.maximum(x @ first, 0)
    second = rng.normal(size=(HIDDEN, 4 * HIDDEN)).astype("f4") / 4
    deeper = np.maximum(hidden @ second, 0)
    begins = graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Relu", ["z"], ["write.hidden"]),
            helper.make_node("MatMul", ["write.hidden", "o"], ["y"]), helper.make_node("Unsqueeze", ["y", "axes"], ["members"]),
        ],
        {"x": ["B", WIDTH]}, {"members": [1, "B", CLASSES], "write.hidden": ["B", HIDDEN]},
        {"w": first, "o": fitted(hidden[:, :]) + 0.05 * rng.normal(size=(HIDDEN, CLASSES)).astype("f4"), "axes": np.array([0])},
    )  # fmt: skip
    goes_on = graph(
        [
            helper.make_node("MatMul", ["read.hidden", "w"], ["z"]), helper.make_node("Relu", ["z"], ["h"]),
            helper.make_node("MatMul", ["h", "o"], ["y"]), helper.make_node("Unsqueeze", ["y", "axes"], ["members"]),
        ],
        {"read.hidden": ["B", HIDDEN]}, {"members": [1, "B", CLASSES]},
        {"w": second, "o": fitted(deeper), "axes": np.array([0])},
    )  # fmt: skip
    carried = Port("write.hidden", "float32", (HIDDEN,))
    a = Ports("first", members(), Port("x", "float32", (WIDTH,)), {}, {"hidden": carried}, macs=288.0)
    b = Ports("second", members(), None, {"hidden": Port("read.hidden", "float32", (HIDDEN,))}, drops=("hidden",), macs=4480.0)
    return [Program(a, begins), Program(b, goes_on)]
