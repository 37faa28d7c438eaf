"""Tuning: each layer in several forms and dense, the whole network sparse and dense, on this machine.

    layer      the fastest of its first candidates; dense where ONNX Runtime, with the way there and back, takes less
    network    sparse or dense, by layout;   a group is filled up where that takes less than so many single rows

Layers of equal geometry and about equal density are tried once. Times are the least of several, by one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.session import open_session
from quorate.runtime.sparse.choices import Choice, Weights, candidates, operation
from quorate.runtime.sparse.graphs.parts import Border, declared, message, tensor
from quorate.runtime.sparse.kernels.blocked import blocked_columns, blocked_rows
from quorate.runtime.sparse.kernels.borders import Entering, Leaving
from quorate.runtime.sparse.kernels.convolution import Bound
from quorate.runtime.sparse.kernels.fan_in import constant_fan_in
from quorate.runtime.sparse.kernels.operation import Operation
from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.machine.code import routine
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.network import Shape
from quorate.runtime.sparse.sparse import SparseNetwork
from quorate.runtime.sparse.team import Table
from quorate.runtime.sparse.tuning import LAYOUTS, Layout, Timing, Tuning

LEAST_GAIN = 1.05
"""Dense has to be so many times as fast as sparse before a layer is run so."""
NO_LOSS, LARGE = 1.02, 4
"""The same of a network; and the groups for each thread of the large batch that it is tried on, where dense engines do best."""
SHARED = 1.05
"""A form whose weights both layouts can read is taken if it takes at most so many times as long as the fastest."""
BUDGET = 0.03  # seconds of repeats
ALIKE = 20  # densities are alike if equal when rounded to 1 / 20


def tune(
    onnx: bytes,
    external: Mapping[str, NDArray[Any]] | None = None,
    *,
    threads: int = 1,
    trials: int = 8,
    where: str = "the network",
    progress: Callable[[str], None] | None = None,
) -> Tuning:
    """Find out what is fastest here; nothing else should run meanwhile.

    Args:
        onnx: the serialised graph.
        external: weights that it only declares.
        threads: that a call will use.
        trials: forms that are tried of each layer and layout, at least 1.
        where: its name, for errors.
        progress: is told what begins.

    Raises:
        ImportError: llvmlite is not installed.
        ValueError: as :class:`quorate.runtime.sparse.SparseNetwork`, or fewer trials.
    """
    if trials < 1:
        raise ValueError(f"trials={trials}: expected at least 1 form of each layer")
    say = progress or (lambda _: None)
    network = SparseNetwork(onnx, external, threads=1, where=where)
    weights = {name: held.dense() for name, held in network.weights.items()}
    choices: dict[Layout, dict[str, Choice]] = {}
    timings: dict[Layout, dict[str, Timing]] = {}
    dense: dict[Layout, tuple[str, ...]] = {}
    for layout in LAYOUTS:
        choices[layout], timings[layout] = _layers(network, weights, layout, trials, choices.get("latency", {}), say)
        dense[layout] = tuple(
            name for name, t in timings[layout].items() if t.dense is not None and t.dense * LEAST_GAIN < t.seconds
        )
    found = Tuning(dict.fromkeys(LAYOUTS, "sparse"), dense, choices, timings)
    del network, weights
    return _whole(onnx, external, found, threads, where, say)


def _layers(
    network: SparseNetwork,
    weights: Mapping[str, NDArray[np.float32]],
    layout: Layout,
    trials: int,
    other: Mapping[str, Choice],
    say: Callable[[str], None],
) -> tuple[dict[str, Choice], dict[str, Timing]]:
    host, lowered = network.host, network.lowered[layout]
    shapes, planes = lowered.network.shapes, lowered.planes
    known: dict[Any, tuple[Choice | None, Timing]] = {}
    choices, timings = {}, {}
    for layer in lowered.network.layers:
        if not isinstance(layer, Bound):
            continue
        weight = weights[layer.name]
        density = np.count_nonzero(weight) / weight.size
        here = {
            name: planes[name]
            for name in (layer.source, layer.target, layer.epilogue.add, layer.epilogue.raw)
            if name is not None
        }
        end = layer.epilogue
        like = (
            layer.kernel, layer.stride, layer.pads, layer.outputs, tuple(here.values()), end.add is None, end.raw is None,
            end.scale is None, end.activation, _structure(weight), round(density * ALIKE) if density > 1 / ALIKE else density,
            other.get(layer.name),
        )  # fmt: skip
        if like not in known:
            say(f"{layout}: {layer.name}")
            tried = dict(_tried(layer, Weights(weight), here, trials, other.get(layer.name), host))
            choice = min(tried, key=tried.__getitem__, default=None)
            shared = other.get(layer.name)
            if choice is not None and shared in tried and tried[shared] <= SHARED * tried[choice]:
                choice = shared
            seconds = math.inf if choice is None else tried[choice]
            known[like] = choice, Timing(seconds, _dense(layer, weight, here, shapes, host))
        choice, timings[layer.name] = known[like]
        if choice is not None:
            choices[layer.name] = choice
    return choices, timings


def _structure(weight: NDArray[np.float32]) -> tuple[Any, ...]:
    """What decides which kernels a weight may have, beside its shape."""
    matrix = weight.ndim == 2
    return blocked_rows(weight), matrix and blocked_columns(weight), matrix and constant_fan_in(weight) is not None


def _tried(
    layer: Bound, weights: Weights, planes: Mapping[str, Planes], trials: int, also: Choice | None, host: Host
) -> Iterator[tuple[Choice, float]]:
    """(choice, seconds) of the first candidates, and of one more."""
    rng = np.random.default_rng(0)
    buffers = {name: aligned(each.floats) for name, each in planes.items()}
    view = planes[layer.source].view(buffers[layer.source])
    view[...] = np.maximum(rng.standard_normal(view.shape, np.float32), 0)
    at = {name: buffer.ctypes.data for name, buffer in buffers.items()}
    found = list(candidates(layer, weights, planes, host))
    for choice in dict.fromkeys([*found[:trials], *([also] if also is not None and also in found else [])]):
        try:
            made = operation(layer, choice, weights, planes, host)
        except ValueError:  # no form for these planes
            continue
        yield choice, least(_alone([made], at, host).run)


def _alone(operations: Sequence[Operation], at: Mapping[str, int], host: Host, outside: Mapping[str, int] | None = None) -> Table:
    """Operations as a table of one part; ``outside`` has the arrays of borders."""
    scratch = aligned(max(each.scratch(1) for each in operations) // 4 + 16)
    calls = []
    for each in operations:
        words = np.array(each.words(at, scratch.ctypes.data, 1), np.int64)
        if isinstance(each, Entering | Leaving):
            words[each.ARRAY] = (outside or {})[each.array]
        calls.append((routine(each.ir, host).address, words))
    table = Table(calls)
    table.kept = (scratch, list(operations))
    return table


def _dense(
    layer: Bound, weight: NDArray[np.float32], planes: Mapping[str, Planes], shapes: Mapping[str, Shape], host: Host
) -> float | None:
    """Seconds of a layer in ONNX Runtime, with the ways there and back."""
    target = layer.target or layer.epilogue.raw
    assert target is not None
    source, inner = planes[layer.source], planes[layer.source].inner
    session = open_session(dense_layer(layer, weight, shapes), layer.name, threads=1)
    x = np.random.default_rng(0).standard_normal((inner, *shapes[layer.source]), np.float32)
    y = np.ascontiguousarray(session.run(None, {"x": x})[0])
    names = {"x": layer.source, "y": target}
    buffers = {name: aligned(planes[name].floats) for name in dict.fromkeys(names.values())}
    at = {name: buffer.ctypes.data for name, buffer in buffers.items()}
    out = _alone([Leaving(layer.source, source, host)], at, host, {layer.source: x.ctypes.data})
    back = _alone([Entering(target, planes[target], host)], at, host, {target: y.ctypes.data})

    def once() -> None:
        out.run()
        session.run(None, {"x": x})
        back.run()

    return least(once)


def dense_layer(layer: Bound, weight: NDArray[np.float32], shapes: Mapping[str, Shape]) -> bytes:
    """A layer with its ReLU as an ONNX file from ``x`` to ``y``; what else its epilogue does costs next to nothing."""
    target = layer.target or layer.epilogue.raw
    assert target is not None

    def ints(name: str, values: Sequence[int]) -> bytes:
        return message((1, name), *((8, value) for value in values), (20, 7))

    relu = layer.epilogue.activation in ("relu", "relu6")
    middle = "s" if relu else "y"
    if weight.ndim == 2:
        node = message((1, "x"), (1, "w"), (1, "b"), (2, middle), (4, "Gemm"), (5, message((1, "transB"), (3, 1), (20, 2))))
    else:
        node = message(
            (1, "x"),
            (1, "w"),
            (1, "b"),
            (2, middle),
            (4, "Conv"),
            (5, ints("strides", layer.stride)),
            (5, ints("pads", layer.pads)),
        )
    nodes = [node, *([message((1, "s"), (2, "y"), (4, "Relu"))] if relu else [])]
    border = [Border(name, name, (None, *shapes[array])) for name, array in (("x", layer.source), ("y", target))]
    body = message(
        *((1, each) for each in nodes), (2, "layer"), (5, tensor("w", weight)), (5, tensor("b", layer.bias)),
        (11, declared(border[0])), (12, declared(border[1])),
    )  # fmt: skip
    return message((1, 8), (7, body), (8, message((2, 17))))


def least(run: Callable[[], Any], budget: float = BUDGET, repeats: int = 5) -> float:
    """The least time of a call, in seconds."""
    run()
    found, begun = math.inf, time.perf_counter()
    while repeats > 0 or time.perf_counter() - begun < budget:
        start = time.perf_counter()
        run()
        found, repeats = min(found, time.perf_counter() - start), repeats - 1
    return found


def _whole(
    onnx: bytes, external: Mapping[str, NDArray[Any]] | None, tuning: Tuning, threads: int, where: str, say: Callable[[str], None]
) -> Tuning:
    """Whether the network runs sparse or dense, and from how many rows on a group is filled up."""
    say("the whole network")
    network = SparseNetwork(onnx, external, threads=threads, tuning=tuning, where=where)
    session = open_session(onnx, where, threads=threads, external=external)
    rng = np.random.default_rng(0)
    group = network.host.lanes * threads
    times = {rows: _both(network, session, rows, rng) for rows in (1, group, LARGE * group)}
    dense = {rows: both[1] * NO_LOSS < both[0] for rows, both in times.items()}
    engine: dict[Layout, Any] = {
        "latency": "dense" if dense[1] else "sparse",
        "throughput": "dense" if dense[group] else "sparse",
    }
    fill = max(2, math.ceil(times[group][0] / threads / times[1][0]))
    return replace(
        tuning, engine=engine, whole={"latency": times[1], "throughput": times[group]},
        pad_from=fill if fill < network.host.lanes else None, dense_from=2 * group if dense[LARGE * group] else None,
    )  # fmt: skip


def _both(network: SparseNetwork, session: Any, rows: int, rng: np.random.Generator) -> tuple[float, float]:
    """Seconds of a batch, sparse and dense, in turns: what else the machine does meets both."""
    feed = {port.name: drawn(rng, (rows, *port.shape[1:]), port.type) for port in network.get_inputs()}
    times = [math.inf, math.inf]
    for _ in range(2):
        for k, each in enumerate((network, session)):
            times[k] = min(times[k], least(partial(each.run, None, feed), repeats=2))
    return times[0], times[1]


def drawn(rng: np.random.Generator, shape: tuple[Any, ...], kind: str) -> NDArray[Any]:
    """Normal numbers, or 0 and 1 where an input of ONNX Runtime's type ``kind`` takes whole ones, which may be places in a table."""
    from quorate.runtime.session import TYPES

    dtype = np.dtype(TYPES[kind])
    return rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else rng.integers(0, 2, shape).astype(dtype)
