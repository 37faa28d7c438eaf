"""ONNX graphs written down one call after the other, and both answers to them: ONNX Runtime's and the lowered network's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quorate.runtime.session import open_session
from quorate.runtime.sparse.graphs.lowering import lower
from quorate.runtime.sparse.network import Network
from sparse_reference import evaluate


class Draft:
    """Nodes and weights; every call of :meth:`add` gives the name of what the node gives."""

    def __init__(self, seed: int = 0, opset: int = 20, **inputs: Sequence[int | str]) -> None:
        self.rng, self.opset = np.random.default_rng(seed), opset
        self.nodes: list[Any] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.inputs: dict[str, tuple[int, list[int | str]]] = {}
        for name, shape in inputs.items():
            self.take(name, shape)
        self.outputs: list[str] = []

    def take(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs[name] = dtype, ["B", *shape]
        return name

    def add(self, operator: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any) -> str:
        given = [f"{operator.lower()}{len(self.nodes)}{'' if k == 0 else f'_{k}'}" for k in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), given, name=name, **attributes))
        return given[0]

    def hold(self, value: Any, name: str = "") -> str:
        name = name or f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def drawn(self, *shape: int, name: str = "", density: float = 1.0, dtype: Any = np.float32) -> str:
        weight = self.rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))
        return self.hold((weight * (self.rng.random(shape) < density)).astype(dtype), name)

    def conv(
        self, x: str, channels: int, outputs: int, kernel: int | Sequence[int] = 3, bias: bool = True, name: str = "", **how: Any
    ) -> str:
        kernel = [kernel, kernel] if isinstance(kernel, int) else list(kernel)
        how = {"pads": [k // 2 for k in kernel] * 2} | how
        weight = self.drawn(outputs, channels // how.get("group", 1), *kernel, name=name, density=0.5)
        return self.add("Conv", x, weight, *([self.drawn(outputs)] if bias else []), **how)

    def norm(self, x: str, channels: int, epsilon: float = 1e-3) -> str:
        variance = self.hold(self.rng.uniform(0.5, 2, channels).astype("f4"))
        return self.add("BatchNormalization", x, *(self.drawn(channels) for _ in range(3)), variance, epsilon=epsilon)

    def gemm(self, x: str, features: int, outputs: int, name: str = "") -> str:
        return self.add("Gemm", x, self.drawn(outputs, features, name=name, density=0.5), self.drawn(outputs), transB=1)

    def model(self, *outputs: str) -> bytes:
        values = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in self.inputs.items()]
        gives = [onnx.ValueInfoProto(name=name) for name in outputs]
        held = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "g", values, gives, held)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())

    def feed(self, rows: int = 3) -> dict[str, NDArray[Any]]:
        """Drawn rows of every input."""
        found = {}
        for name, (kind, shape) in self.inputs.items():
            sizes = [rows, *(int(size) for size in shape[1:])]
            drawn = self.rng.normal(size=sizes) * 2
            found[name] = drawn.astype(helper.tensor_dtype_to_np_dtype(kind))
        return found


def checked(draft: Draft, *outputs: str, dense: Collection[str] = (), rows: int = 3) -> Network:
    """The lowered network, after its answer was compared with ONNX Runtime's."""
    model = draft.model(*outputs)
    network, feed = lower(model, dense=dense), draft.feed(rows)
    session = open_session(model, "the draft", threads=1)
    wanted = dict(zip([each.name for each in session.get_outputs()], session.run(None, feed), strict=True))
    compare(evaluate(network, feed), wanted)
    return network


def compare(found: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-6 * max(1.0, float(np.abs(value).max(initial=0))))


def kinds(network: Network) -> list[str]:
    return [type(layer).__name__ for layer in network.layers]
