"""ONNX files become networks of layers, and of foreign parts that ONNX Runtime runs between them.

    graph → what each node is (rules) → layers that absorbed what follows them (fusing) → Network

What no layer can be, and layers that are asked to run dense, are foreign; so are pools, sums and activations of what foreign parts give,
since ONNX Runtime fuses them and what crosses to the layers gets smaller. All foreign nodes that can run one after the other without a
layer in between are one part. A graph in which an array with the batch anywhere but ahead would cross from a part to a later one is
foreign as a whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.graphs.fusing import fused, needed, read_by, with_fixed, written_by
from quorate.runtime.sparse.graphs.graph import Graph, read_graph
from quorate.runtime.sparse.graphs.parts import Border, write_part
from quorate.runtime.sparse.graphs.rules import OLDEST, steps_of
from quorate.runtime.sparse.graphs.shapes import Known, known_arrays
from quorate.runtime.sparse.graphs.steps import Item, Steps
from quorate.runtime.sparse.network import (
    Conv,
    Epilogue,
    Foreign,
    Layer,
    Linear,
    Mean,
    Merge,
    Network,
    Pool,
    Shape,
    reads,
    writes,
)

DENSE = "it is asked to run dense"
BESIDE = "it stands beside a foreign part"
MOST_REASONS = 4
MOST_PARTS = 256
"""Foreign parts, each a session of ONNX Runtime; a network that is cut into more gains nothing."""
MOST_KINDS = 512
"""Layers of different sizes, each with code of its own."""
MOST_ROUNDS = 10
"""How often it is looked for layers beside foreign parts: what stays is right, if slower."""
WEIGHTED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
"""Which input of these operators is the weight."""


class _Crossing(Exception):
    """An array that would have to leave a part and can't."""


def lower(onnx: bytes, external: Mapping[str, NDArray[Any]] | None = None, dense: Collection[str] = ()) -> Network:
    """The layers of a program.

    Args:
        onnx: the serialised graph, checked by :func:`quorate.runtime.onnx_file.check_program`.
        external: the values of initialisers that it only declares.
        dense: names of layers that ONNX Runtime shall run.

    Returns:
        Layers in an order in which they can run. Their names don't depend on ``dense``. Rows of a batch may be run apart: a program whose
        rows depend on each other is none for it.

    Raises:
        ValueError: a malformed graph; inputs without a free batch or with other free sizes; outputs without a batch, or of several
            members; a name in ``dense`` of no layer; a graph that ONNX Runtime can't run, or of which it takes too long to find the parts.
    """
    graph = read_graph(onnx, external)
    known = known_arrays(graph)
    _check_outputs(graph, known)
    old = "" if graph.opset >= OLDEST else f"its operators are of version {graph.opset}: expected {OLDEST} or newer"
    steps = steps_of(graph, known, old)
    items = fused(steps)
    names = {item.layer.name: item for item in items if item.layer is not None and item.nodes}
    if absent := sorted(set(dense) - names.keys()):
        raise ValueError(f"layer {absent[0]!r} is none of the network's: expected some of {', '.join(names)[:200]}; name it so")
    called = {}
    for name in dense:
        called[id(names[name])] = name
        names[name].layer, names[name].reason = None, DENSE
    try:
        return _network(steps, _settled(steps, needed(steps, items)), called)
    except _Crossing as crossing:
        steps = steps_of(graph, known, str(crossing))
        return _network(steps, needed(steps, steps.items), {})


def _settled(steps: Steps, items: Sequence[Item]) -> list[Item]:
    """The items that are left when layers without weights beside foreign parts have become foreign."""
    foreign = {name for item in items if item.layer is None for name in written_by(steps, item)}
    outputs = {steps.root(name) for name in steps.graph.outputs}
    for _ in range(MOST_ROUNDS):
        before, native = len(foreign), set(outputs)
        for enough, order in ((all, items), (any, items[::-1])):
            for item in order:
                beside = isinstance(item.layer, Merge | Pool | Mean) and enough(name in foreign for name in read_by(steps, item))
                if beside and (enough is all or native.isdisjoint(written_by(steps, item))):
                    foreign.update(written_by(steps, item))
                    item.layer, item.reason = None, BESIDE
                if enough is any and item.layer is not None:
                    native.update(read_by(steps, item))
        if len(foreign) == before:
            break
    return needed(steps, items)


def _check_outputs(graph: Graph, known: Mapping[str, Known]) -> None:
    for name in graph.outputs:
        found = known.get(name)
        if found is None or found.row is None:
            got = "an unknown type" if found is None else f"{list(found.two)} for two rows, {list(found.three)} for three"
            raise ValueError(
                f"output {name[:80]!r} is {got}: expected (B, …) or (1, B, …); run the program in ONNX Runtime alone"
            )


def _network(steps: Steps, items: Sequence[Item], called: Mapping[int, str]) -> Network:
    graph, known = steps.graph, steps.known
    layers: list[Layer] = []
    readers: dict[str, list[Item]] = {}
    for item in items:
        for name in read_by(steps, item):
            readers.setdefault(name, []).append(item)
    size = 0
    for each in _ordered(steps, items):
        layers.append(_part(steps, each, readers, called) if isinstance(each, list) else each)
        size += len(layers[-1].onnx) if isinstance(layers[-1], Foreign) else 0
        if size > steps.most:
            raise _Crossing("its parts that ONNX Runtime runs would be many times the program")
    if len({_kind(layer, steps.shapes) for layer in layers if not isinstance(layer, Foreign)}) > MOST_KINDS:
        raise _Crossing(f"its layers are of more than {MOST_KINDS} sizes, each of which needs code of its own")
    outputs = {name: (steps.root(name), known[name].row or ()) for name in graph.outputs}
    used = {*graph.inputs, *(name for layer in layers for name in (*reads(layer), *writes(layer)))}
    types = {name: known[name].dtype for name in (*graph.inputs, *graph.outputs) if known[name].dtype != "float32"}
    inputs: dict[str, Shape] = {name: known[name].row or () for name in graph.inputs}
    stacked = frozenset(name for name in graph.outputs if known[name].stacked)
    return Network(inputs, {name: steps.shapes[name] for name in sorted(used)}, layers, outputs, stacked, types)


def _ordered(steps: Steps, items: Sequence[Item]) -> list[Layer | list[Item]]:
    """Every layer that can run, then every foreign item that can, as one part, and so on."""
    readers: dict[str, list[int]] = {}
    waits = [0] * len(items)  # for so many arrays
    for number, item in enumerate(items):
        for name in set(read_by(steps, item)) - steps.graph.inputs.keys():
            readers.setdefault(name, []).append(number)
            waits[number] += 1
    ready: dict[bool, list[int]] = {False: [], True: []}  # by whether they are foreign; in order, so that they are heaps
    for number, item in enumerate(items):
        if not waits[number]:
            ready[item.layer is None].append(number)
    found: list[Layer | list[Item]] = []
    parts = left = 0
    while ready[False] or ready[True]:
        for foreign in (False, True):
            part: list[Item] = []
            while ready[foreign]:
                item = items[heapq.heappop(ready[foreign])]
                left += 1
                part.append(item)
                for number in (reader for name in written_by(steps, item) for reader in readers.get(name, ())):
                    waits[number] -= 1
                    if not waits[number]:
                        heapq.heappush(ready[items[number].layer is None], number)
            found += [item.layer for item in part if item.layer is not None]
            if foreign and part:
                found.append(part)
                parts += 1
                if parts > MOST_PARTS:
                    raise _Crossing(f"ONNX Runtime would run more than {MOST_PARTS} parts of it")
    assert left == len(items), "nodes are in order, and what nothing writes was refused when the graph was read"
    return found


def _kind(layer: Layer, shapes: Mapping[str, Shape]) -> tuple[object, ...]:
    """What a layer's code depends on, at most: not its weights."""
    own = {key: value for key, value in vars(layer).items() if key in ("kind", "kernel", "stride", "pads", "counted")}
    end: Epilogue = getattr(layer, "epilogue", Epilogue())
    kernel = layer.weight.shape if isinstance(layer, Conv | Linear) else ()
    arrays = *(shapes[name] for name in (*reads(layer), *writes(layer))), end.add is None, end.raw is None, end.scale is None
    return type(layer), kernel, end.activation, *own.values(), *arrays


def _part(steps: Steps, part: Sequence[Item], readers: Mapping[str, Sequence[Item]], called: Mapping[int, str]) -> Foreign:
    """The foreign part of these items. ``readers``: of every array."""
    graph = steps.graph
    numbers = with_fixed(steps, [number for item in part for number in item.nodes])
    nodes = [graph.nodes[number] for number in numbers]
    made = {name for node in nodes for name in node.writes}
    views: dict[str, tuple[str, Shape]] = {}
    sources: dict[str, None] = {}
    for name in dict.fromkeys(name for node in nodes for name in node.reads):
        if name in made or name in graph.constants or name in graph.tensors:
            continue
        root = steps.root(name)
        if root != name:
            views[name] = (root, steps.known[name].natural)
        if root not in made:
            sources[root] = None
    here = {id(item) for item in part}
    outputs = {steps.root(name) for name in graph.outputs}
    targets = [
        name
        for item in part
        for name in written_by(steps, item)
        if name in outputs or any(id(each) not in here for each in readers.get(name, ()))
    ]
    borders = {name: _border(steps, name) for name in (*sources, *targets)}
    for name in targets:
        if borders[name].view is not None:
            borders[name] = replace(borders[name], view=(-1, *steps.shapes[name]))
    types = {name: steps.known[name].dtype for name in borders if steps.known[name].dtype != "float32"}
    onnx = write_part(graph, nodes, [borders[name] for name in sources], [borders[name] for name in targets], views)
    first = called.get(id(part[0])) or steps.called(graph.nodes[part[0].nodes[0]].name, targets[0])
    reasons = list(dict.fromkeys(item.reason for item in part if item.reason != BESIDE)) or [BESIDE]
    reason = "; ".join(reasons[:MOST_REASONS] + [f"{len(reasons) - MOST_REASONS} more reasons"] * (len(reasons) > MOST_REASONS))
    operators = tuple(dict.fromkeys(node.operator for node in nodes))
    return Foreign(first, tuple(sources), tuple(targets), onnx, operators, reason, types, _live(graph, numbers))


def _border(steps: Steps, name: str) -> Border:
    known = steps.known.get(name)
    if known is None or known.row is None:
        shape = "no tensor of numbers" if known is None else f"{list(known.two)} for two rows, {list(known.three)} for three"
        raise _Crossing(f"{name[:80]!r} is {shape}: expected the batch ahead")
    outer = steps.shapes[name]
    return Border(name, name, (None, *outer), known.dtype, None if known.natural == (-1, *outer) else known.natural)


def _live(graph: Graph, numbers: Sequence[int]) -> int:
    """Live weights of convolutions and matrices."""
    nodes = [graph.nodes[number] for number in numbers]
    weights = [graph.constants.get(node.inputs[WEIGHTED[node.operator]]) for node in nodes if node.operator in WEIGHTED]
    return sum(int(np.count_nonzero(weight)) for weight in weights if weight is not None)
