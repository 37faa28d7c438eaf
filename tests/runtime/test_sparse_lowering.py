"""Graphs become layers: what is folded and fused, what stays foreign, each compared with ONNX Runtime on the whole program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drafted_graphs import Draft, checked, kinds
from quorate.runtime.sparse.graphs.lowering import DENSE
from quorate.runtime.sparse.network import Conv, Foreign, Linear, Merge, Pool, live


def only(network: Any, kind: type) -> Any:
    (found,) = [layer for layer in network.layers if isinstance(layer, kind)]
    return found


def test_a_post_activation_block_with_a_downsample() -> None:
    d = Draft(x=[4, 8, 8])
    first = d.add("Relu", d.norm(d.conv("x", 4, 6, strides=[2, 2]), 6))
    second = d.norm(d.conv(first, 6, 6, bias=False), 6)
    short = d.norm(d.conv("x", 4, 6, 1, strides=[2, 2], bias=False), 6)
    network = checked(d, d.add("Relu", d.add("Add", second, short)))
    assert kinds(network) == ["Conv"] * 3
    last = network.layers[-1]
    assert last.weight.shape[2:] == (1, 1)  # the later one adds
    assert last.epilogue.add == network.layers[1].target
    assert (last.epilogue.activation, last.epilogue.scale) == ("relu", None)


def test_a_bottleneck_adds_what_other_layers_read_too() -> None:
    d = Draft(x=[8, 6, 6])
    x = d.add("Relu", d.conv("x", 8, 8))
    for _ in range(2):
        inner = d.add("Relu", d.norm(d.conv(d.add("Relu", d.norm(d.conv(x, 8, 4, 1), 4)), 4, 4), 4))
        x = d.add("Relu", d.add("Add", x, d.norm(d.conv(inner, 4, 8, 1), 8)))
    network = checked(d, x)
    assert kinds(network) == ["Conv"] * 7
    assert [layer.epilogue.add is not None for layer in network.layers] == [False] + [False, False, True] * 2


def test_a_pre_activation_network_keeps_the_sums_raw() -> None:
    d = Draft(x=[3, 8, 8])
    total = d.conv("x", 3, 4, bias=False)
    sums = [total]
    for _ in range(2):
        inner = d.conv(d.add("Relu", d.norm(total, 4)), 4, 4)
        total = d.add("Add", d.conv(d.add("Relu", d.norm(inner, 4)), 4, 4), total)
        sums.append(total)
    network = checked(d, d.add("GlobalAveragePool", d.add("Relu", d.norm(total, 4))))
    assert kinds(network) == ["Conv"] * 5 + ["Mean"]
    assert [layer.epilogue.raw for layer in network.layers[:5]] == [sums[0], None, sums[1], None, None]
    assert [layer.epilogue.scale is None for layer in network.layers[:5]] == [False, True, False, True, False]


def test_dead_weights_stay_dead_when_constants_are_folded() -> None:
    d = Draft(x=[3, 5, 5])
    x = d.norm(d.conv("x", 3, 4, bias=False, name="stage.module.stem.weight"), 4)
    for operator in ("Mul", "Add", "Div", "Sub"):
        x = d.add(operator, x, d.hold(np.array([0.5, -2, 3, 4], "f4").reshape(4, 1, 1)))
    x = d.add("Sub", d.hold(np.float32(1.5)), d.add("Mul", d.hold(np.float32(-0.3)), x))
    network = checked(d, d.add("Clip", x, d.hold(np.float32(0)), d.hold(np.float32(6))))
    layer = only(network, Conv)
    assert (layer.name, layer.epilogue.activation, layer.epilogue.scale) == ("stem", "relu6", None)
    np.testing.assert_array_equal(layer.weight != 0, d.weights["stage.module.stem.weight"] != 0)
    assert live(layer) == np.count_nonzero(d.weights["stage.module.stem.weight"])
    assert layer.weight.dtype == layer.bias.dtype == np.float32


def test_a_vgg_like_network_and_its_vector() -> None:
    d = Draft(x=[3, 9, 7])
    x = d.add("MaxPool", d.add("Relu", d.conv("x", 3, 4)), kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])
    x = d.add("AveragePool", x, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], count_include_pad=1)
    flat = d.add("Flatten", x)
    network = checked(d, d.gemm(d.add("Gelu", d.gemm(flat, 4 * 3 * 4, 10), approximate="none"), 10, 5))
    assert kinds(network) == ["Conv", "Pool", "Pool", "Flatten", "Linear", "Linear"]
    assert network.layers[4].epilogue.activation == "gelu"
    assert [layer.counted for layer in network.layers if isinstance(layer, Pool)] == [False, True]


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
def test_automatic_and_uneven_padding(auto: str, counted: int) -> None:
    d = Draft(x=[2, 7, 6])
    how: dict[str, Any] = {"auto_pad": auto, "strides": [2, 3]} | ({"pads": [0, 1, 2, 0]} if auto == "NOTSET" else {})
    weight = d.drawn(3, 2, 4, 3)
    conv = d.add("Conv", "x", weight, **how)
    pools = [d.add("MaxPool", "x", kernel_shape=[4, 3], **how)]
    pools.append(d.add("AveragePool", "x", kernel_shape=[4, 3], count_include_pad=counted, **how))
    network = checked(d, conv, *pools)
    assert sorted(kinds(network)) == ["Conv", "Pool", "Pool"]


def test_a_sequence_is_planes_of_one_row() -> None:
    d = Draft(x=[5, 11])
    x = d.add("Relu", d.conv("x", 5, 4, [3], strides=[2], pads=[2, 1]))
    x = d.add("MaxPool", x, kernel_shape=[2], strides=[2], pads=[0, 1])
    axes = d.hold(np.array([-1]))
    mean = d.add(
        "Squeeze", d.add("ReduceMean", d.add("Unsqueeze", x, d.hold(np.array([-2]))), d.hold(np.array([-1, -2]))), d.hold([2, 3])
    )
    network = checked(d, d.gemm(mean, 4, 3), d.add("ReduceMean", x, axes, keepdims=0))
    assert sorted(kinds(network)) == ["Conv", "Linear", "Mean", "Mean", "Pool"]
    conv = only(network, Conv)
    assert (conv.weight.shape, conv.stride, conv.pads) == ((4, 5, 1, 3), (1, 2), (0, 2, 0, 1))
    assert (network.inputs["x"], network.shapes["x"]) == ((5, 11), (5, 1, 11))


@pytest.mark.parametrize(("groups", "kind"), [(1, Conv), (2, Conv), (4, Conv), (16, Conv), (32, Foreign)])
def test_groups_become_zeros_unless_too_many(groups: int, kind: type) -> None:
    d = Draft(x=[32, 4, 4])
    network = checked(d, d.add("Relu", d.conv("x", 32, 64, group=groups, name="k.weight")))
    layer = only(network, kind)
    assert live(layer) == np.count_nonzero(d.weights["k.weight"])
    if kind is Conv:
        assert (layer.groups, layer.weight.shape) == (groups, (64, 32, 3, 3))
    else:
        assert layer.operators == ("Conv", "Relu")
        assert "32 groups" in layer.reason


def test_matrices_in_every_form() -> None:
    d = Draft(x=[6])
    a = d.add("Gemm", "x", d.drawn(6, 5, name="a.weight"), d.drawn(1, 5), alpha=0.5, beta=-2.0)
    b = d.add("Relu", d.add("Add", d.drawn(4), d.add("MatMul", a, d.drawn(5, 4))))
    c = d.norm(d.add("Gemm", b, d.drawn(3, 4), d.hold(np.float32(0.7)), transB=1), 3)
    network = checked(d, d.add("Unsqueeze", c, d.hold([0])), a)
    assert kinds(network) == ["Linear"] * 3
    assert network.layers[0].name == "a"
    assert list(network.unsqueezed) == [next(iter(network.outputs))]
    higher = Draft(x=[3, 6])
    network = checked(higher, higher.add("MatMul", "x", higher.drawn(6, 4)))
    assert kinds(network) == ["Foreign"]
    assert "expected a vector" in network.layers[0].reason


def test_sums_of_one_array_and_of_shapes_that_differ() -> None:
    d = Draft(x=[4, 5, 5])
    a = d.conv("x", 4, 4)
    twice = d.add("Add", a, a)
    network = checked(d, twice)
    assert kinds(network) == ["Conv"]
    wide = Draft(x=[4, 5, 5])
    a = wide.conv("x", 4, 4)
    network = checked(wide, wide.add("Add", a, wide.add("GlobalAveragePool", a)), wide.add("Add", a, wide.drawn(4, 5, 5)))
    assert sorted(kinds(network)) == ["Conv", "Foreign", "Mean"]
    assert "of two shapes; a constant [4, 5, 5]" in only(network, Foreign).reason


def test_sums_of_three_and_of_inputs_are_merged() -> None:
    d = Draft(x=[4, 5, 5], y=[4, 5, 5])
    a, b = d.conv("x", 4, 4), d.conv("y", 4, 4)
    three = d.add("Relu", d.norm(d.add("Sum", d.add("Add", a, b), "x"), 4))
    network = checked(d, d.conv(three, 4, 2), d.conv(d.add("Relu", d.norm("y", 4)), 4, 3, 1))
    assert sorted(kinds(network)) == ["Conv"] * 4 + ["Merge"] * 2
    merged = next(layer for layer in network.layers if isinstance(layer, Merge) and layer.epilogue.add)
    assert (merged.epilogue.activation, merged.epilogue.scale is None) == ("relu", False)


def test_carried_arrays_integers_and_inner_outputs() -> None:
    d = Draft(x=[3, 6, 6], carry=[4])
    index = d.take("index", [2], dtype=7)
    h = d.add("Relu", d.conv("x", 3, 4))
    logits = d.add("Add", d.gemm(d.add("Flatten", d.add("GlobalAveragePool", h)), 4, 4), "carry")
    looked = d.add("Gather", d.drawn(9, 4), d.add("Abs", index))
    network = checked(d, d.add("Unsqueeze", logits, d.hold([0])), h, looked, "carry", index)
    assert sorted(kinds(network)) == ["Conv", "Foreign", "Linear", "Mean"]
    assert network.dtypes == {"index": "int64"}
    assert only(network, Foreign).dtypes == {"index": "int64"}
    assert only(network, Linear).epilogue.add == "carry"


def test_reshapes_that_the_program_computes_are_resolved() -> None:
    d = Draft(x=[3, 4, 4])
    h = d.add("Relu", d.conv("x", 3, 2))
    size = d.add("Concat", d.add("Shape", h, start=0, end=1), d.hold(np.array([-1])), axis=0)
    network = checked(d, d.gemm(d.add("Reshape", h, size), 32, 3))
    assert kinds(network) == ["Conv", "Flatten", "Linear"]
    d = Draft(x=[16])
    image = d.add("Reshape", "x", d.hold(np.array([-1, 1, 4, 4])))
    network = checked(d, d.conv(image, 1, 2))
    assert kinds(network) == ["Foreign", "Conv"]


def test_layers_can_be_asked_to_run_dense() -> None:
    d = Draft(x=[3, 6, 6])
    a = d.add("Relu", d.norm(d.conv("x", 3, 4, name="a.weight"), 4))
    b = d.conv(a, 4, 4, name="b.weight")
    y = d.add("Relu", d.norm(d.add("Add", b, a), 4))
    out = d.gemm(d.add("Flatten", d.conv(y, 4, 4, name="c.weight")), 144, 3, name="d.weight")
    assert [layer.name for layer in checked(d, out).layers if isinstance(layer, Conv | Linear)] == ["a", "b", "c", "d"]
    network = checked(d, out, dense=["b"])
    assert kinds(network) == ["Conv", "Foreign", "Conv", "Flatten", "Linear"]
    assert (network.layers[1].name, network.layers[1].reason) == ("b", DENSE)
    assert network.layers[1].live == np.count_nonzero(d.weights["b.weight"])
    assert kinds(checked(d, out, dense=["b", "c", "d"])) == ["Conv", "Foreign"]
    assert kinds(checked(d, out, dense=["a", "d"])) == ["Foreign", "Conv", "Conv", "Foreign"]
    whole = checked(d, out, dense=["a", "b", "c", "d"])
    assert (kinds(whole), whole.layers[0].name) == (["Foreign"], "a")


def test_names_are_unique_and_don_t_repeat_a_shared_weight() -> None:
    d = Draft(x=[4, 5, 5])
    weight = d.drawn(4, 4, 3, 3, name="stage.module.shared.weight")
    a = d.add("Conv", "x", weight, pads=[1] * 4, name="first")
    network = checked(d, d.add("Conv", a, weight, pads=[1] * 4, name="second"))
    assert [layer.name for layer in network.layers] == ["shared", "second"]


STEPS = ("conv", "norm", "relu", "gelu", "residual", "scale", "sigmoid", "pool", "shift", "branch")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=9), st.integers(0, 99), st.data())
def test_drawn_chains(steps: list[str], seed: int, data: st.DataObject) -> None:
    d = Draft(seed, x=[3, 8, 8])
    x = d.conv("x", 3, 4)
    arrays = {8: [x]}
    size = 8
    for step in steps:
        earlier = data.draw(st.sampled_from(arrays[size]))
        if step == "conv":
            x = d.conv(x, 4, 4, data.draw(st.sampled_from([1, 3])), bias=data.draw(st.booleans()))
        elif step == "norm":
            x = d.norm(x, 4)
        elif step in ("relu", "gelu", "sigmoid"):
            x = d.add(step.capitalize(), x)
        elif step == "residual":
            x = d.add("Add", x, earlier)
        elif step == "branch":
            x = d.add("Add", d.conv(earlier, 4, 4, 1), x)
        elif step == "pool" and size > 2:
            x, size = d.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), size // 2
        elif step in ("scale", "shift"):
            x = d.add("Mul" if step == "scale" else "Add", x, d.drawn(4, 1, 1))
        arrays.setdefault(size, []).append(x)
    inner = data.draw(st.sampled_from(arrays[8]))
    outputs = list(dict.fromkeys((d.add("Flatten", x), inner)))
    names = [layer.name for layer in checked(d, *outputs).layers if isinstance(layer, Conv | Merge)]
    checked(d, *outputs, dense=data.draw(st.sets(st.sampled_from(names))) if names else ())
