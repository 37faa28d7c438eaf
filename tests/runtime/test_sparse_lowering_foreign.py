"""What no layer can be: foreign parts, the reasons for them, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drafted_graphs import Draft, checked, kinds
from quorate.runtime.sparse.graphs.lowering import BESIDE, lower
from quorate.runtime.sparse.network import Foreign


def test_a_foreign_part_of_a_sequence_takes_and_gives_planes() -> None:
    d = Draft(x=[5, 12])
    a = d.add("Sigmoid", "x")
    b = d.add("Softmax", d.conv(d.add("Add", a, d.add("Tanh", "x")), 5, 5, [3]), axis=-1)
    network = checked(d, d.conv(d.add("Add", b, a), 5, 4, [3]))
    assert kinds(network) == ["Foreign", "Conv", "Foreign", "Conv"]
    foreign = network.layers[0]
    assert (foreign.sources, foreign.operators) == (("x",), ("Sigmoid", "Tanh", "Add"))
    assert BESIDE not in foreign.reason


@pytest.mark.parametrize(
    ("operator", "how"),
    [
        ("Conv", {"dilations": [2, 2]}),
        ("ConvTranspose", {}),
        ("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 1}),
        ("LpPool", {"kernel_shape": [2, 2]}),
    ],
)
def test_what_has_no_layer_is_foreign(operator: str, how: dict[str, Any]) -> None:
    d = Draft(x=[3, 8, 8])
    x = d.add("Relu", d.conv("x", 3, 4))
    y = d.add(operator, x, *([d.drawn(4, 4, 3, 3)] if "Conv" in operator else []), **how)
    network = checked(d, d.conv(y, 4, 2))
    assert kinds(network) == ["Conv", "Foreign", "Conv"]
    assert network.layers[1].operators == (operator,)


def hold(*values: float) -> Any:
    return lambda d: d.hold(np.array(values, "f4"))


@pytest.mark.parametrize(
    ("operator", "more", "how", "reason"),
    [
        ("Gelu", (), {"approximate": "tanh"}, "Gelu approximated by tanh"),
        (
            "Clip",
            (lambda d: d.hold(np.float32(-1)), lambda d: d.hold(np.float32(1))),
            {},
            "Clip between -1.0 and 1.0: expected 0 and 6",
        ),
        ("Div", (hold(1, 0, 2, 3),), {}, "it divides by an array, or by 0"),
        ("Mul", (hold(1, np.inf, 2, 3),), {}, "is not finite"),
        ("Add", (lambda d: d.hold(np.ones((1, 1, 4), "f4")),), {}, "a constant [1, 1, 4] beside rows of [4]"),
        ("Sum", (hold(1, 2, 3, 4), hold(1, 2, 3, 4)), {}, "Sum of 3 arrays"),
        ("Sub", (lambda d: d.add("Neg", "x"),), {}, "Sub of two arrays"),
        ("MatMul", (lambda d: d.add("Tanh", d.drawn(4, 4)),), {}, "is no constant"),
        ("MatMul", (lambda d: d.drawn(4),), {}, "MatMul of rows [4] and [4]: expected a vector and a matrix"),
        ("Dropout", (lambda d: d.hold(np.float32(0)), lambda d: d.hold(True)), {}, "it drops as in training"),
        (
            "BatchNormalization",
            (hold(1, 1, 1, 1), hold(0, 0, 0, 0), hold(0, 0, 0, 0), hold(1, 1, 0, 1)),
            {"epsilon": 0.0},
            "not positive",
        ),
        ("Split", (), {"axis": 1, "num_outputs": 2, "outputs": 2}, "Split is none of the runtime's operators"),
    ],
)
def test_reasons(operator: str, more: tuple[Any, ...], how: dict[str, Any], reason: str) -> None:
    d = Draft(x=[4])
    y = d.add(operator, d.gemm("x", 4, 4), *(make(d) for make in more), **how)
    if "not positive" in reason or "by 0" in reason or "not finite" in reason:
        network = lower(d.model(y))  # the values are infinite
    else:
        network = checked(d, y)
    assert kinds(network)[0] == "Linear"
    found = " ".join(layer.reason for layer in network.layers if isinstance(layer, Foreign))
    assert reason in found


def test_gates_between_layers_are_one_part_each() -> None:
    d = Draft(x=[3, 6, 6])
    a = d.conv("x", 3, 4)
    a = d.conv(d.add("Mul", a, d.add("Sigmoid", a)), 4, 4)
    gate = d.add("Sigmoid", d.conv(d.add("Relu", d.conv(d.add("GlobalAveragePool", a), 4, 2, 1)), 2, 4, 1))
    y = d.add("Add", d.add("Mul", a, gate), d.conv("x", 3, 4))
    network = checked(d, d.add("GlobalAveragePool", d.add("Relu", y)))
    assert kinds(network).count("Foreign") == 2
    assert kinds(network).count("Linear") == 2  # convolutions of one pixel
    assert [layer.operators for layer in network.layers if isinstance(layer, Foreign)] == [("Sigmoid", "Mul")] * 2
    assert kinds(network)[-2:] == ["Conv", "Mean"]  # the last convolution adds what the gate gives


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_are_one_foreign_part(dtype: Any) -> None:
    d = Draft(x=[4])
    wide = d.add("Cast", "x", to=10 if dtype == np.float16 else 11)
    y = d.add("Relu", d.add("Gemm", wide, d.drawn(4, 3, dtype=dtype)))
    network = checked(d, d.add("Cast", y, to=1))
    assert kinds(network) == ["Foreign"]
    assert np.dtype(dtype).name in network.layers[0].reason


def test_a_batch_that_is_not_ahead_keeps_the_graph_together() -> None:
    d = Draft(x=[5, 6])
    across = d.add("Transpose", "x", perm=[1, 0, 2])
    mean = d.add("ReduceMean", across, d.hold([0]), keepdims=0)
    h = d.add("Reshape", d.gemm(mean, 6, 6), d.hold(np.array([1, -1, 6])))
    network = checked(d, d.add("Transpose", d.add("Mul", across, h), perm=[1, 0, 2]))
    assert kinds(network) == ["Foreign"]
    assert "expected the batch ahead" in network.layers[0].reason


def test_old_operators_are_foreign() -> None:
    d = Draft(opset=9, x=[3, 4, 4])
    network = checked(d, d.conv("x", 3, 2))
    assert kinds(network) == ["Foreign"]
    assert "version 9: expected 11" in network.layers[0].reason


def test_what_is_refused() -> None:
    for shape in (["L", 4], [0, 4]):
        d = Draft(x=shape)
        with pytest.raises(ValueError, match=r"input 'x' is float32 .* with a free batch ahead of sizes that are fixed"):
            lower(d.model(d.add("Relu", "x")))
    d = Draft(x=[4])
    d.inputs["x"] = (1, [2, 4])
    with pytest.raises(ValueError, match="free batch"):
        lower(d.model(d.add("Relu", "x")))
    d = Draft(x=[4])
    with pytest.raises(ValueError, match=r"output 'concat.*' is \[2, 2, 4\] for two rows, \[2, 3, 4\] for three: expected \(B"):
        lower(d.model(d.add("Concat", *(d.add("Unsqueeze", "x", d.hold([0])) for _ in range(2)), axis=0)))
    d = Draft(x=[4])
    out = d.gemm("x", 4, 3, name="a.weight")
    with pytest.raises(ValueError, match="layer 'b' is none of the network's: expected some of a; name it so"):
        lower(d.model(out), dense=["b"])
    d = Draft(x=[4])
    out = d.add("Relu", d.add("Reshape", "x", d.hold(np.array([2, 5]))))
    with pytest.raises(ValueError, match=r"can't be run by ONNX Runtime|fails on 2 rows of zeros") as error:
        lower(d.model(out))
    assert "\n" not in str(error.value)
    d = Draft(x=[4])
    with pytest.raises(ValueError, match="node 'Relu' reads 'gone', which nothing before it writes"):
        lower(d.model(d.add("Relu", "gone")))
    d = Draft(x=[4])
    d.add("Relu", "x")
    with pytest.raises(ValueError, match=r"output 'absent' is an unknown type: expected \(B, "):
        lower(d.model("absent"))
    d = Draft(x=[4])
    size = d.add("Mul", d.add("Shape", "x"), d.hold(np.array([1, 2])))
    with pytest.raises(
        ValueError, match=r"the program fails on 2 rows of zeros .* expected one that runs on any rows; export it anew"
    ) as error:
        lower(d.model(d.add("Reshape", "x", size)))
    assert "\n" not in str(error.value)
