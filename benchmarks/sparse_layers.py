"""Single layers for sparse_runtime.py: on the sparse side their own planes, on the dense side a session or a module that has nothing else.

    convolution   3 × 3, as many outputs as inputs, bias, ReLU           matrix   1024 × 1024, bias, ReLU, one row

Sparse: the layer's form of all that the runtime may choose, tuned on the batch itself. Input and output lie as its neighbours want them,
as in a network. A batch of 16 is as many groups as it takes, each with buffers of its own; what is one job is four layers in a row with
the time of one of them, so that threads are called once for all, as in a network. Dense: ONNX Runtime on one layer and on four in a row,
where reordering at the borders counts a quarter; PyTorch, whose input lies as the engine wants it. Live weights are drawn uniformly, or
in the patterns that structured growth has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from quorate.runtime.session import open_session
from quorate.runtime.sparse.choices import Choice, Weights, candidates, operation
from quorate.runtime.sparse.kernels.convolution import Bound, Convolution
from quorate.runtime.sparse.kernels.operation import Operation
from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.machine.code import routine
from quorate.runtime.sparse.machine.host import Host, here
from quorate.runtime.sparse.network import Conv, Epilogue, Linear
from quorate.runtime.sparse.team import Table, Team
from quorate.runtime.sparse.trials import least
from quorate.tickets import Blocks, ConstantFanIn, Pattern, Unstructured
from runtime_cases import SEED
from runtime_speed import ENGINES, engine
from sparse_cases import ERROR

CHAIN = 4
Call = Callable[[], Any]
Array = NDArray[np.float32]


class Geometry(NamedTuple):
    """A 3 × 3 convolution of ``size`` to ``size`` channels over ``side`` × ``side`` pixels; 0: a matrix."""

    size: int
    side: int

    def __str__(self) -> str:
        return f"{self.size} channels, {self.side}×{self.side}" if self.side else f"matrix {self.size}×{self.size}"

    @property
    def weight(self) -> tuple[int, ...]:
        """Its shape."""
        return (self.size, self.size, 3, 3) if self.side else (self.size, self.size)

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of an input."""
        return (self.size, self.side, self.side) if self.side else (self.size,)


LAYERS = tuple(Geometry(*pair) for pair in ((64, 32), (128, 16), (256, 8), (512, 4), (160, 32), (320, 16), (640, 8)))
STRUCTURED = (Geometry(1024, 0), Geometry(256, 8), Geometry(320, 16))
QUICK_LAYERS, QUICK_STRUCTURED = (Geometry(16, 8), Geometry(24, 4)), (Geometry(64, 0), Geometry(16, 8))
PATTERNS: dict[str, Pattern] = {
    "unstructured": Unstructured(),
    "constant fan-in": ConstantFanIn(),
    "blocks 4×1": Blocks(4, 1),
    "blocks 8×1": Blocks(8, 1),
    "blocks 16×1": Blocks(16, 1),
    "blocks 4×4": Blocks(4, 4),
}


def weight_of(geometry: Geometry, density: float = 1.0, pattern: Pattern = PATTERNS["unstructured"]) -> Array:
    """He-distributed live weights."""
    shape, rng = geometry.weight, np.random.default_rng(SEED)
    live = pattern.live("weight", shape, round(density * math.prod(shape)))
    mask = pattern.draw(shape, live, rng).numpy()
    scale = (2 * geometry.size / live) ** 0.5
    return (scale * rng.standard_normal(shape, np.float32) * mask).astype(np.float32)


def given(geometry: Geometry, batch: int) -> tuple[Array, Array]:
    """An input (B, *row), positive as behind a ReLU, and a bias."""
    rng = np.random.default_rng(SEED + 1)
    x = np.maximum(rng.standard_normal((batch, *geometry.row), np.float32), 0)
    return x, (0.1 * rng.standard_normal(geometry.size, np.float32)).astype(np.float32)


class Sparse:
    """A layer in one form on a batch, each group of images in buffers of its own; of one job so many in a row, as behind each other.

    Attributes:
        count: layers that a call runs.
        arrays: of each job the input and what follows from it.
    """

    def __init__(self, made: Operation, planes: Planes, x: Array, team: Team, host: Host) -> None:
        self.operation, self.planes, self.team = made, planes, team
        jobs, inner = len(x) // planes.inner, planes.inner
        self.count = CHAIN if jobs == 1 else 1
        self.parts = 1 if jobs % team.threads == 0 else team.threads
        self.arrays = [[aligned(planes.floats) for _ in range(self.count + 1)] for _ in range(jobs)]
        self.tables = []
        address = routine(made.ir, host).address
        for k, arrays in enumerate(self.arrays):
            view = planes.view(arrays[0])
            view[...] = x[k * inner : (k + 1) * inner].reshape(inner, *view.shape[:3]).transpose(1, 2, 3, 0)
            scratch = aligned(made.scratch(self.parts) // 4 + 16)
            pairs = [{"x": a.ctypes.data, "y": b.ctypes.data} for a, b in itertools.pairwise(arrays)]
            words = [np.array(made.words(at, scratch.ctypes.data, self.parts), np.int64) for at in pairs]
            self.tables.append(Table([(address, each) for each in words]))
            self.tables[-1].kept = scratch

    def __call__(self) -> None:
        if not self.team.take():
            for table in self.tables:
                table.run()
            return
        try:
            if self.parts == 1:
                self.team.share(lambda k: self.tables[k].run(), len(self.tables))
            else:
                for table in self.tables:
                    table.run(self.team, self.parts)
        finally:
            self.team.leave()

    def result(self) -> Array:
        """(B, O, H, W) of the first layer in the last run."""
        return np.concatenate([self.planes.view(arrays[1]).transpose(3, 0, 1, 2) for arrays in self.arrays])


class Tuned(NamedTuple):
    """The fastest form of a layer."""

    call: Sparse
    choice: Choice
    live: int


def tuned(geometry: Geometry, weight: Array, batch: int, team: Team, trials: int, quick: bool = False) -> Tuned:
    """Try so many forms. A RuntimeError where what the chosen one gives is not what float64 says."""
    host, (x, bias) = here(), given(geometry, batch)
    inner = 1 if batch % host.lanes else host.lanes
    end = Epilogue(activation="relu")
    whole = (
        Conv("layer", "x", "y", weight, bias, (1, 1), (1, 1, 1, 1), end)
        if geometry.side
        else Linear("layer", "x", "y", weight, bias, end)
    )
    layer = Bound.of(whole)
    plane = _planes(geometry, inner, host)
    planes = {"x": plane, "y": plane}
    found: tuple[float, Tuned] | None = None
    for choice in itertools.islice(candidates(layer, Weights(weight.copy()), planes, host), trials):
        try:
            made = operation(layer, choice, Weights(weight.copy()), planes, host)
        except ValueError:  # no form for these planes
            continue
        call = Sparse(made, plane, x, team, host)
        seconds = least(call, budget=0 if quick else 0.06)
        if found is None or seconds < found[0]:
            found = seconds, Tuned(call, choice, int(np.count_nonzero(weight)))
    if found is None:
        raise RuntimeError(f"{geometry}, batch {batch}: expected a kernel, the runtime has none")
    best = found[1]
    best.call()
    off = error(best.call.result().reshape(batch, *geometry.row), reference(geometry, weight, x, bias))
    if not off <= ERROR:
        raise RuntimeError(f"{geometry}, batch {batch}, {best.choice}: relative error {off:.3g}, expected at most {ERROR:g}")
    return best


def _planes(geometry: Geometry, inner: int, host: Host) -> Planes:
    if not geometry.side:
        return Planes.vector(geometry.size, inner, host.lanes)
    if inner == 1:
        return Planes.latency(geometry.size, geometry.side, geometry.side, 1, 1, host.lanes)
    return Planes.throughput(geometry.size, geometry.side, geometry.side, 1, 1, inner)


def reference(geometry: Geometry, weight: Array, x: Array, bias: Array) -> NDArray[np.float64]:
    """In float64."""
    w, b, rows = (torch.from_numpy(array).double() for array in (weight, bias, x))
    made = F.conv2d(rows, w, b, padding=1) if geometry.side else F.linear(rows, w, b)
    result: NDArray[np.float64] = made.relu().numpy()
    return result


def error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference over the largest number; NaN counts as infinitely far."""
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    return off if math.isfinite(off) else math.inf


def loads(made: Operation) -> float | None:
    """Loads per multiply-add in the innermost loop: of its input, and of the weights, four at a time; None of other kernels than rows."""
    return 1 + 2 / (4 * len(made.tile.reads)) if type(made) is Convolution else None


# — dense —


def dense_calls(geometry: Geometry, batch: int, threads: int, engines: Sequence[str]) -> dict[str, tuple[Call, int]]:
    """{name: (call, layers that it runs)}."""
    weight, (x, bias) = weight_of(geometry), given(geometry, batch)
    calls: dict[str, tuple[Call, int]] = {}
    for count in (1, CHAIN):
        session = open_session(onnx_file(geometry, weight, bias, count), str(geometry), threads=threads)
        name = "onnxruntime" if count == 1 else f"onnxruntime, {count} in a row"
        calls[name] = lambda session=session: session.run(None, {"x": x}), count
    module = module_of(geometry, weight, bias)
    for name in engines:
        made, last = engine(name, module), ENGINES[name][1] and geometry.side > 0
        rows = torch.from_numpy(x).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        calls[f"pytorch, {name}"] = inference(made, rows), 1
    return calls


def inference(module: nn.Module, x: torch.Tensor) -> Call:
    """A call without gradients."""

    def call() -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = module(x)
            return result

    return call


def module_of(geometry: Geometry, weight: Array, bias: Array) -> nn.Module:
    """The layer in PyTorch."""
    layer: Any = (
        nn.Conv2d(geometry.size, geometry.size, 3, padding=1) if geometry.side else nn.Linear(geometry.size, geometry.size)
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return nn.Sequential(layer, nn.ReLU()).eval()


def onnx_file(geometry: Geometry, weight: Array, bias: Array, count: int) -> bytes:
    """So many equal layers in a row as an ONNX file from ``x`` to ``y``."""
    nodes = []
    for k in range(count):
        source, target = "x" if k == 0 else f"y{k}", "y" if k == count - 1 else f"y{k + 1}"
        if geometry.side:
            nodes.append(helper.make_node("Conv", [source, "w", "b"], [f"s{k}"], pads=[1] * 4, kernel_shape=[3, 3]))
        else:
            nodes.append(helper.make_node("Gemm", [source, "w", "b"], [f"s{k}"], transB=1))
        nodes.append(helper.make_node("Relu", [f"s{k}"], [target]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *geometry.row]) for name in "xy")
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    model = helper.make_model(
        helper.make_graph(nodes, "layer", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    data: bytes = model.SerializeToString()
    return data
