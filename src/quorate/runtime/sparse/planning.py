"""One layout of a network: where its arrays lie, and which calls compute it.

    layers → operations, with borders where arrays come from outside or leave  → parts: tables of calls, and what ONNX Runtime runs between

A plan is of one layout: ``inner`` images side by side. A workspace is the memory that one job needs; arrays of equal planes that are not
alive at the same time share it, others never, since margins have to stay zero.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.kernels.borders import Entering, Leaving
from quorate.runtime.sparse.kernels.convolution import Bound
from quorate.runtime.sparse.kernels.operation import Operation
from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.machine.code import Routine, routine
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.network import Foreign, Pool, Shape, reads, writes
from quorate.runtime.sparse.team import Table, Team


def layouts(layers: Sequence[Any], shapes: Mapping[str, Shape], inner: int, host: Host) -> dict[str, Planes]:
    """The planes of every array that a layer here reads or writes, with the margins that its readers need.

    Args:
        layers: of a network, convolutions and matrices as :class:`quorate.runtime.sparse.kernels.convolution.Bound`.
        shapes: of the arrays, (C, H, W) or (F,).
        inner: 1, or the images side by side.
        host: the machine.
    """
    margins: dict[str, tuple[int, int]] = {}
    native = [layer for layer in layers if not isinstance(layer, Foreign)]
    for layer in native:
        if len(shapes[layer.source]) == 3:
            _, height, width = shapes[layer.source]
            needs = (0, 0)
            if isinstance(layer, Bound):
                needs = layer.margin(height, width)
            elif isinstance(layer, Pool):
                needs = (max(layer.pads[0], layer.pads[2]), max(layer.pads[1], layer.pads[3]))
            held = margins.get(layer.source, (0, 0))
            margins[layer.source] = (max(held[0], needs[0]), max(held[1], needs[1]))
    found = {}
    for layer in native:
        for name in (*reads(layer), *writes(layer)):
            shape, (above, beside) = shapes[name], margins.get(name, (0, 0))
            if len(shape) == 1:
                found[name] = Planes.vector(shape[0], inner, host.lanes)
            elif inner == 1:
                found[name] = Planes.latency(shape[0], shape[1], shape[2], above, beside, host.lanes)
            else:
                found[name] = Planes.throughput(shape[0], shape[1], shape[2], above, beside, inner)
    return found


Patches = list[tuple[str, NDArray[np.int64]]]
"""Arrays outside, and the words of the call that wants their address."""


@dataclass(eq=False)
class Native:
    """Operations that run one after the other, and what they take from arrays outside, or give to them."""

    operations: list[Operation] = field(default_factory=list)
    reads: list[Sequence[str]] = field(default_factory=list)
    writes: list[Sequence[str]] = field(default_factory=list)
    routines: list[Routine] = field(default_factory=list)


class Plan:
    """One layout of a network.

    Args:
        layers: in order; those that are not :class:`Foreign` are in ``operations``.
        operations: {layer's name: its operation}.
        planes: of :func:`layouts`.
        shapes: of all arrays, of outer ones as they are outside.
        outputs: arrays that are asked for.
        sessions: {name of a foreign part: its session}.
        host: the machine.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        operations: Mapping[str, Operation],
        planes: Mapping[str, Planes],
        shapes: Mapping[str, Shape],
        outputs: Sequence[str],
        sessions: Mapping[str, Any],
        inner: int,
        host: Host,
    ) -> None:
        self.inner, self.host, self.planes, self.shapes, self.sessions = inner, host, dict(planes), dict(shapes), sessions
        self.outputs = tuple(dict.fromkeys(outputs))
        self.parts: list[Native | Foreign] = []
        written: set[str] = set()  # arrays that lie in planes
        outside: set[str] = set()  # arrays that were brought outside
        native = {name for layer in layers if not isinstance(layer, Foreign) for name in writes(layer)}

        def leave(name: str) -> None:
            if name in native and name not in outside:
                self._add(Leaving(name, self.planes[name], host), (name,), ())
                outside.add(name)

        for layer in layers:
            if isinstance(layer, Foreign):
                for name in layer.sources:
                    leave(name)
                self.parts.append(layer)
                continue
            for name in reads(layer):
                if name not in written and name not in native:
                    self._add(Entering(name, self.planes[name], host), (), (name,))
                    written.add(name)
            self._add(operations[layer.name], reads(layer), writes(layer))
        for name in self.outputs:
            leave(name)
        for part in self.parts:
            if isinstance(part, Native):
                part.routines = [routine(operation.ir, host) for operation in part.operations]

    def _add(self, operation: Operation, read: Sequence[str], wrote: Sequence[str]) -> None:
        if not self.parts or isinstance(self.parts[-1], Foreign):
            self.parts.append(Native())
        part = self.parts[-1]
        assert isinstance(part, Native)
        part.operations.append(operation)
        part.reads.append(read)
        part.writes.append(wrote)

    @property
    def foreign(self) -> bool:
        """Whether ONNX Runtime runs some of it."""
        return any(isinstance(part, Foreign) for part in self.parts)


class Workspace:
    """The memory and the tables of one job at a time, run in so many parts."""

    def __init__(self, plan: Plan, parts: int) -> None:
        self.plan, self.count = plan, parts
        self._at, self._kept = _allocated(plan)
        operations = [op for part in plan.parts if isinstance(part, Native) for op in part.operations]
        scratch = aligned(max((op.scratch(parts) for op in operations), default=0) // 4 + 64)
        self._kept.append(scratch)
        self.nbytes = sum(array.nbytes for array in self._kept)
        self._runs: list[tuple[Table, Patches, Patches] | Foreign] = []
        for part in plan.parts:
            if isinstance(part, Foreign):
                self._runs.append(part)
                continue
            calls, entering, leaving = [], [], []
            for operation, code in zip(part.operations, part.routines, strict=True):
                words = np.array(operation.words(self._at, scratch.ctypes.data, parts), np.int64)
                calls.append((code.address, words))
                if isinstance(operation, Entering):
                    entering.append((operation.array, words))
                elif isinstance(operation, Leaving):
                    leaving.append((operation.array, words))
            self._runs.append((Table(calls), entering, leaving))

    def run(self, given: Mapping[str, NDArray[Any]], results: Mapping[str, NDArray[Any]], team: Team | None) -> None:
        """One job.

        Args:
            given: the network's inputs, (inner, *shape) contiguous.
            results: contiguous arrays of inner rows, of any shape of as many numbers, to write the outputs to.
            team: threads, where the workspace is of several parts.

        Raises:
            ValueError: a part that ONNX Runtime runs gave other arrays than the graph tells.
        """
        held: dict[str, NDArray[Any]] = dict(given)
        for run in self._runs:
            if isinstance(run, Foreign):
                self._run_foreign(run, held)
                continue
            table, entering, leaving = run
            self._set(entering, leaving, held, results)
            table.run(team, self.count, (self._kept, held))
        for name, target in results.items():
            if held[name] is not target:
                target[...] = held[name].reshape(target.shape)

    def timed(self, given: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, float]]:
        """One job of one part, call by call: (name of the layer or of the array at a border, seconds)."""
        held: dict[str, NDArray[Any]] = dict(given)
        for run, part in zip(self._runs, self.plan.parts, strict=True):
            if isinstance(part, Foreign):
                begun = time.perf_counter()
                self._run_foreign(part, held)
                yield part.name, time.perf_counter() - begun
                continue
            assert not isinstance(run, Foreign)
            table, entering, leaving = run
            self._set(entering, leaving, held, {})
            for operation, single in zip(part.operations, table.singles(), strict=True):
                begun = time.perf_counter()
                single.run()
                yield operation.name, time.perf_counter() - begun

    def _set(
        self, entering: Patches, leaving: Patches, held: dict[str, NDArray[Any]], results: Mapping[str, NDArray[Any]]
    ) -> None:
        """Tell the borders where the arrays outside are."""
        for name, words in entering:
            words[Entering.ARRAY] = held[name].ctypes.data
        for name, words in leaving:
            target = results.get(name)
            if target is None:
                target = np.empty((self.plan.inner, *self.plan.shapes[name]), np.float32)
            held[name] = target
            words[Leaving.ARRAY] = target.ctypes.data

    def _run_foreign(self, part: Foreign, held: dict[str, NDArray[Any]]) -> None:
        feed = {name: held[name].reshape(self.plan.inner, *self.plan.shapes[name]) for name in part.sources}
        for name, array in zip(part.targets, self.plan.sessions[part.name].run(list(part.targets), feed), strict=True):
            shape, dtype = (self.plan.inner, *self.plan.shapes[name]), part.dtypes.get(name, "float32")
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{part.name}: ONNX Runtime gave {name!r} as {array.dtype} {array.shape}, expected {dtype} {shape}: run it dense"
                )
            held[name] = array


def _allocated(plan: Plan) -> tuple[dict[str, int], list[NDArray[Any]]]:
    """{array: address}, and the buffers."""
    order = [pair for part in plan.parts if isinstance(part, Native) for pair in zip(part.reads, part.writes, strict=True)]
    last = {name: k for k, (read, wrote) in enumerate(order) for name in (*read, *wrote)}
    free: dict[Planes, list[NDArray[Any]]] = {}
    held: dict[str, NDArray[Any]] = {}
    buffers: list[NDArray[Any]] = []
    for k, (read, wrote) in enumerate(order):
        for name in wrote:
            if name not in held:
                planes = plan.planes[name]
                spare = free.setdefault(planes, [])
                if not spare:
                    spare.append(aligned(planes.floats))
                    buffers.append(spare[-1])
                held[name] = spare.pop()
        for name in {*read, *wrote}:
            if last[name] == k:
                free.setdefault(plan.planes[name], []).append(held[name])
    return {name: buffer.ctypes.data for name, buffer in held.items()}, buffers
