"""Graphs as no exporter writes them: read by the rules of ONNX, or refused in one line; never slow, never larger than the file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from drafted_graphs import Draft, checked, kinds
from quorate.runtime.sparse.graphs import fusing, lowering
from quorate.runtime.sparse.graphs.lowering import lower
from quorate.runtime.sparse.network import Conv, Foreign, Linear


def reasons(draft: Draft, *outputs: str) -> str:
    return " ".join(layer.reason for layer in lower(draft.model(*outputs)).layers if isinstance(layer, Foreign))


@pytest.mark.parametrize("axis", [1, -2, -1])
def test_axes_of_flatten_count_from_behind(axis: int) -> None:
    d = Draft(x=[4, 1])
    y = d.add("Flatten", "x", axis=axis)
    size = {1: 4, -2: 4, -1: 1}[axis]
    if axis == -1:
        with pytest.raises(ValueError, match=r"\[8, 1\] for two rows"):
            lower(d.model(y))
    else:
        assert kinds(checked(d, d.gemm(y, size, 3))) == ["Flatten", "Linear"]


def test_numbers_without_an_axis_are_vectors_of_one() -> None:
    d = Draft(x=[4])
    y = d.add("Squeeze", d.gemm("x", 4, 1), d.hold(np.array([-1])))
    assert kinds(checked(d, y)) == ["Linear"]
    assert "0 axes beside the batch" in reasons(d, d.add("Mul", y, d.hold(np.float32(2))), d.add("Relu", y))


def _edit(edit: Callable[[Draft], None]) -> Draft:
    d = Draft(x=[4])
    d.gemm("x", 4, 4)
    edit(d)
    return d


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d.nodes.append(helper.make_node("Relu", ["x"], ["gemm0"])), "writes 'gemm0', which is written before"),
        (lambda d: d.nodes.append(helper.make_node("Relu", ["gemm0"], ["x"])), "writes 'x', which is written before"),
        (lambda d: d.nodes.append(helper.make_node("Relu", ["gemm0"], ["w0"])), "writes 'w0', which is written before"),
        (lambda d: (d.add("Relu", "gemm0"), d.nodes.reverse()), "reads 'gemm0', which nothing before it writes"),
    ],
)
def test_names_are_written_once_before_they_are_read(edit: Callable[[Draft], None], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        lower(_edit(edit).model("gemm0"))


@pytest.mark.parametrize(
    ("operator", "more", "how"),
    [
        ("BatchNormalization", [], {}),
        ("BatchNormalization", [np.ones(1, "f4")] * 4, {}),
        ("BatchNormalization", [np.ones(4, "f4")] * 4, {"epsilon": "a"}),
        ("Conv", [np.ones((2, 4, 1, 1), "f4"), np.ones(1, "f4")], {}),
        ("Conv", [np.ones((2, 4, 1, 1), "f4")], {"kernel_shape": [3, 3]}),
        ("Conv", [np.ones((0, 4, 1, 1), "f4")], {}),
        ("Conv", [np.ones((2, 4, 1, 1), "f4")], {"group": 1.5}),
        ("Conv", [np.ones((2, 4, 1, 1), "f4")], {"pads": [0, 10**6, 0, 0]}),
        ("Clip", [np.zeros(0, "f4")], {}),
        ("Gelu", [], {"approximate": 3}),
        ("MaxPool", [], {"kernel_shape": [-1, 1]}),
    ],
)
def test_what_does_not_fit_its_operator_is_left_to_onnx_runtime(operator: str, more: list[Any], how: dict[str, Any]) -> None:
    d = Draft(x=[4, 5, 5])
    y = d.add(operator, d.conv("x", 4, 4), *(d.hold(value) for value in more), **how)
    network = lower(d.model(y))
    assert kinds(network) == ["Conv", "Foreign"]
    assert "\n" not in network.layers[1].reason


def test_normalisation_with_statistics_trains() -> None:
    d = Draft(opset=13, x=[3, 4, 4])
    y = d.add("BatchNormalization", d.conv("x", 3, 4), *(d.hold(np.full(4, k, "f4")) for k in (1, 2, 3, 4)), outputs=5)
    assert "normalises as in training" in reasons(d, y)


def test_strides_beyond_the_planes() -> None:
    d = Draft(x=[3, 4, 4])
    conv = d.conv("x", 3, 4, strides=[2**40, 2**40])
    network = checked(d, conv, d.add("MaxPool", "x", kernel_shape=[2, 3], strides=[2**40, 7]))
    assert [layer.stride for layer in network.layers] == [(6, 6), (4, 4)]


@pytest.mark.parametrize("first", ["Sigmoid", "Relu"])
def test_names_of_the_program_that_look_like_ours(first: str) -> None:
    d = Draft(x=[5, 12])
    for name in ("a", "a/inside", "x/inside"):
        d.nodes.append(helper.make_node(first, ["x"], [name]))
    table = d.hold(np.full((5, 12), 2, "f4"), "shape/-1x5x12")
    network = checked(d, d.conv("a", 5, 5, [3]), d.conv("a/inside", 5, 5, [3]), "x/inside", d.add("Mul", "a", table))
    assert "Foreign" in kinds(network)
    d = Draft(x=[3, 4, 4])
    one = d.conv("x", 3, 4, [4, 4], pads=[0] * 4)
    d.nodes.append(helper.make_node("Neg", [one], [f"{one}/flat"]))
    total = d.add("Add", one, d.add("GlobalAveragePool", d.conv("x", 3, 4)))
    checked(d, total, f"{one}/flat")


def test_what_overflows_when_it_is_folded_is_not_folded() -> None:
    d = Draft(x=[4])
    huge = d.hold(np.full(4, 1e30, "f4"))
    network = lower(d.model(d.add("Mul", d.add("Mul", d.gemm("x", 4, 4), huge), huge)))
    assert kinds(network) == ["Linear", "Merge"]
    assert np.isfinite(network.layers[0].weight).all()
    for operator, value in (("Div", 1e-42), ("Mul", np.inf)):
        d = Draft(x=[4])
        y = d.add(operator, d.gemm("x", 4, 4), d.hold(np.full(4, value, "f4")))
        assert "finite" in reasons(d, y)
    d = Draft(x=[4])
    assert "alpha or beta" in reasons(d, d.add("Gemm", "x", d.drawn(4, 4), alpha=float("inf")))


@pytest.mark.parametrize(
    ("kernel", "strides", "kind"),
    [
        ([7, 7], [2, 2], Conv),
        ([5, 5], [2, 2], Conv),
        ([1, 10], [1, 5], Foreign),
        ([16, 16], [16, 16], Foreign),
        ([1, 300], [1, 1], Foreign),
    ],
)
def test_kernels_that_would_need_much_code(kernel: list[int], strides: list[int], kind: type) -> None:
    d = Draft(x=[2, 64, 310])
    network = lower(d.model(d.conv("x", 2, 3, kernel, strides=strides, pads=[0] * 4)))
    assert isinstance(network.layers[0], kind)
    if kind is Foreign:
        assert "too much code" in network.layers[0].reason


def test_shared_weights_are_bounded() -> None:
    d = Draft(x=[128])
    weight, y = d.drawn(128, 128), "x"
    for _ in range(70):
        y = d.add("Gemm", y, weight)
    network = lower(d.model(y))
    assert sum(isinstance(layer, Linear) for layer in network.layers) < 60
    assert "many times those of the program" in network.layers[-1].reason


def test_few_parts_and_few_kinds_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    d = Draft(x=[2])
    weight, y = d.drawn(2, 2), "x"
    for _ in range(4):
        y = d.add("Sigmoid", d.add("Gemm", y, weight))
    assert kinds(checked(d, y)) == ["Linear", "Foreign"] * 4
    monkeypatch.setattr(lowering, "MOST_PARTS", 3)
    network = checked(d, y)
    assert (kinds(network), network.layers[0].reason) == (["Foreign"], "ONNX Runtime would run more than 3 parts of it")
    d = Draft(x=[2])
    y = d.gemm(d.gemm(d.gemm("x", 2, 2), 2, 2), 2, 5)
    monkeypatch.setattr(lowering, "MOST_KINDS", 2)
    assert kinds(checked(d, y)) == ["Linear"] * 3
    monkeypatch.setattr(lowering, "MOST_KINDS", 1)
    assert "more than 1 sizes" in checked(d, y).layers[0].reason


def test_parts_are_not_many_times_the_program() -> None:
    d = Draft(x=[2])
    weight, table, y = d.drawn(2, 2), d.drawn(200_000, 2), "x"
    for _ in range(50):
        rows = d.add("Gather", table, d.add("Cast", y, to=7))
        y = d.add("Gemm", d.add("ReduceMax", rows, d.hold(np.array([1]), "axis"), keepdims=0), weight)
    assert "many times the program" in reasons(d, y)


def _alternating(d: Draft, count: int) -> str:
    weight, y = d.drawn(4, 4), "x"
    for _ in range(count // 2):
        y = d.add("Sigmoid", d.add("Gemm", y, weight))
    return y


def _branches(d: Draft, count: int) -> str:
    y = first = d.gemm("x", 4, 4)
    for _ in range(count // 2):
        y = d.add("Add", y, d.add("Sigmoid", "x"))
    return d.add("Add", d.add("Sigmoid", y), first)


def _chain(d: Draft, count: int) -> str:
    y = "x"
    for _ in range(count):
        y = d.add("Relu", y)
    return y


@pytest.mark.parametrize("made", [_alternating, _branches, _chain])
def test_time_is_about_linear(made: Callable[[Draft, int], str]) -> None:
    d = Draft(x=[4])
    model = d.model(made(d, 6000))
    begun = time.thread_time()
    lower(model)
    assert time.thread_time() - begun < 5  # half a second; minutes if it were quadratic


def test_chains_of_tables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing, "MOST_VISITS", 1000)
    d = Draft(x=[4])
    table, y = d.drawn(4), "x"
    for _ in range(100):
        table = d.add("Sigmoid", table)
        y = d.add("Mul", y, table)
    with pytest.raises(ValueError, match="too many sizes and tables"):
        lower(d.model(y))
