"""A program that runs as sparse as its weights are: ONNX graph and live weights in, arrays out, without PyTorch.

    rows (B, …) → jobs: groups of V images side by side, the rest one by one, V the floats of a vector → each job runs a plan

Results don't depend on threads bit for bit; a row's do on whether it runs in a group, as rounding does. Layers that have no kernel here,
and those of which the tuning found that they are faster dense, run in ONNX Runtime in between; where nothing gains, all of it does.

The interface is that of an ONNX Runtime session: :meth:`SparseNetwork.run`, ``get_inputs``, ``get_outputs``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.session import open_session
from quorate.runtime.sparse.choices import Choice, Weights, candidates, operation, sharing
from quorate.runtime.sparse.graphs.lowering import lower
from quorate.runtime.sparse.jobs import Batch, Spaces, execute
from quorate.runtime.sparse.kernels.convolution import Bound
from quorate.runtime.sparse.kernels.operation import Operation
from quorate.runtime.sparse.kernels.others import other
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.machine.host import Host, here
from quorate.runtime.sparse.network import Conv, Foreign, Linear, Network, Shape
from quorate.runtime.sparse.planning import Plan, layouts
from quorate.runtime.sparse.team import Team
from quorate.runtime.sparse.tuning import LAYOUTS, Layout, Tuning

SPARSE_RATE, DENSE_RATE, CROSSING = 27e9, 45e9, 40e-6
"""Live and dense multiply-adds per second of a core, and seconds to go to ONNX Runtime and back: by these it is guessed without a tuning
whether a network gains."""

MOST_THREADS = 1024


@dataclass(frozen=True)
class Port:
    """An input or output, as ONNX Runtime tells it."""

    name: str
    shape: tuple[Any, ...]
    type: str


@cache
def team(threads: int) -> Team:
    """The threads of this process for so many at once."""
    return Team(threads)


@dataclass(eq=False)
class Lowered:
    """A network in one layout.

    Attributes:
        network: its layers hold no weights.
        sessions: of its foreign parts, by name.
        dense_macs, live_macs: multiply-adds of a row in what has kernels here, if it were dense, and of live weights.
        spaces: the plan and its memory, once it was asked for.
        planes: of the arrays that its kernels read and write.
    """

    network: Network
    sessions: Mapping[str, Any]
    dense_macs: int
    live_macs: int
    spaces: Spaces | None = None
    planes: Mapping[str, Planes] = field(default_factory=dict)


class SparseNetwork:
    """A callable network; any number of threads may call it.

    Args:
        onnx: the serialised graph, checked before.
        external: weights that the graph only declares.
        threads: that one call may use.
        tuning: what was found out before.
        where: its name, for errors.

    Attributes:
        tuning, threads, host: in use.
        weights: by layer.
        reason: by layout, why the whole network runs dense; empty where it does not.

    Raises:
        ImportError: llvmlite is not installed.
        ValueError: a graph that can't be run, or less than one thread.
    """

    def __init__(
        self,
        onnx: bytes,
        external: Mapping[str, NDArray[Any]] | None = None,
        *,
        threads: int = 1,
        tuning: Tuning | None = None,
        where: str = "the network",
    ) -> None:
        if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
            raise ValueError(f"threads={threads!r}: expected 1 to {MOST_THREADS}, best not more than there are cores")
        self.host: Host = here()
        self.threads, self.tuning, self.where = threads, tuning or Tuning(), where
        self.weights: dict[str, Weights] = {}
        self._lock = threading.RLock()
        external = dict(external or {})
        cut = {layout: tuple(sorted(self.tuning.dense.get(layout, ()))) for layout in LAYOUTS}
        found = {dense: self._taken(lower(onnx, external, dense)) for dense in dict.fromkeys(cut.values())}
        self.lowered: dict[Layout, Lowered] = {}
        for layout, dense in cut.items():
            layers, shapes = found[dense].network.layers, found[dense].network.shapes
            inner = self.host.lanes if layout == "throughput" else 1
            self.lowered[layout] = replace(found[dense], planes=layouts(layers, shapes, inner, self.host))
        self.network = self.lowered["latency"].network
        self.reason: dict[Layout, str] = {layout: said for layout in LAYOUTS if (said := self._why_dense(layout))}
        some_dense = self.reason or self.tuning.dense_from is not None
        self._dense = open_session(onnx, where, threads=threads, external=external) if some_dense else None
        types = self.network.dtypes
        self._inputs = [Port(name, ("batch", *shape), _type(types, name)) for name, shape in self.network.inputs.items()]
        self._outputs = [
            Port(name, ((1,) if name in self.network.unsqueezed else ()) + ("batch", *shape), _type(types, name))
            for name, (_, shape) in self.network.outputs.items()
        ]
        self._given = [(name, tuple(shape), np.dtype(types.get(name, "float32"))) for name, shape in self.network.inputs.items()]
        self._all = [port.name for port in self._outputs]
        self._taken_from = {
            name: (array, tuple(shape), np.dtype(types.get(name, "float32")), name in self.network.unsqueezed)
            for name, (array, shape) in self.network.outputs.items()
        }

    def get_inputs(self) -> list[Port]:
        """What it takes."""
        return self._inputs

    def get_outputs(self) -> list[Port]:
        """What it gives."""
        return self._outputs

    def get_providers(self) -> list[str]:
        """As of a session that runs on the processor."""
        return ["CPUExecutionProvider"]

    def __call__(self, x: Any) -> NDArray[Any]:
        """x (B, *shape), anything that :func:`numpy.asarray` takes → its first output. Raises as :meth:`run`."""
        return self.run(self._all[:1], {self._given[0][0]: np.asarray(x)})[0]

    def run(self, names: Sequence[str] | None, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """As a session's: outputs by name (None for all) of arrays (B, *shape), B ≥ 1.

        Raises:
            ValueError: other inputs than it takes, of another dtype or shape, no rows, or outputs that it does not have.
        """
        wanted = self._all if names is None else names
        rows = self.checked(feed)
        if rows in (1, self.host.lanes) and self._dense is None:
            spaces = self.spaces("latency" if rows == 1 else "throughput")
            if self.threads == 1 or not (spaces.large or spaces.plan.foreign):
                return self._run_small(spaces, wanted, feed, rows)
        return run_together([self], wanted, feed)[0]

    def _run_small(
        self, spaces: Spaces, wanted: Sequence[str], feed: Mapping[str, NDArray[Any]], rows: int
    ) -> list[NDArray[Any]]:
        """What :func:`run_together` does, for one job by one thread, without what that needs for more."""
        results: dict[str, NDArray[Any]] = {}
        found = []
        for name in wanted:
            array, shape, dtype, unsqueezed = self._kept(name)
            result = results.get(array)
            if result is None:
                result = results[array] = np.empty((rows, *shape), dtype)
            elif result.shape[1:] != shape:
                result = result.reshape(rows, *shape)
            found.append(result[None] if unsqueezed else result)
        given = {name: array if array.flags.c_contiguous else np.ascontiguousarray(array) for name, array in feed.items()}
        spaces.run(given, results, None, 1)
        return found

    def _kept(self, name: str) -> tuple[str, Shape, Any, bool]:
        """The array that an output is taken from, its shape of a row, dtype, and whether it gets an axis ahead. Raises ValueError."""
        try:
            return self._taken_from[name]
        except KeyError:
            raise ValueError(f"{self.where} has no output {name!r}: expected some of {self._all}") from None

    def checked(self, feed: Mapping[str, NDArray[Any]]) -> int:
        """The number of rows. Raises ValueError."""
        rows = None
        for name, shape, dtype in self._given:
            array = feed.get(name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape[1:] != shape or not array.ndim:
                kind = "nothing" if array is None else f"a {type(array).__name__}"
                got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else kind
                raise ValueError(
                    f"{self.where}: input {name!r} is {got}, expected {dtype} {('B', *shape)}; convert or reshape it"
                )
            if rows not in (None, len(array)):
                raise ValueError(f"{self.where}: input {name!r} has {len(array)} rows, the others {rows}: expected equally many")
            rows = len(array)
        if len(feed) != len(self._given) or not rows:
            raise ValueError(
                f"{self.where} got {rows or 'no'} rows of {sorted(feed)}: expected at least one, of {[name for name, *_ in self._given]}"
            )
        return rows

    def batch(
        self, feed: Mapping[str, NDArray[Any]], rows: int, wanted: Sequence[str]
    ) -> tuple[Batch | None, dict[str, NDArray[Any]]]:
        """What is to be done here (None: nothing), and by output the arrays (B, *shape) of the results; what runs dense was run."""
        lanes, fill = self.host.lanes, self.tuning.pad_from
        groups, left = divmod(rows, lanes)
        if fill is not None and left >= fill:
            groups, left = groups + 1, 0
        held: dict[str, NDArray[Any]] = {}
        arrays = {}
        for name in wanted:  # one array may be several outputs
            inner, shape, dtype, _ = self._kept(name)
            if inner not in held:
                held[inner] = np.empty((rows, *shape), dtype)
            arrays[name] = held[inner].reshape(rows, *shape)
        if self._dense is not None:
            start, stop = self._dense_rows(rows, groups, left)
            if stop > start:
                self._run_dense(feed, arrays, start, stop)
                groups, left, rows = (groups, 0, start) if start else (0, 0, 0)
        if not rows:
            return None, arrays
        given = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        results = {name: array[:rows] for name, array in held.items()}
        grouped = self.spaces("throughput") if groups else None
        return Batch(given, results, rows, groups, lanes, grouped, self.spaces("latency") if left else None), arrays

    def _dense_rows(self, rows: int, groups: int, left: int) -> tuple[int, int]:
        """Which rows [start, stop) of a batch run dense as a whole: all, those outside of groups, or none."""
        most = self.tuning.dense_from
        if (most is not None and rows >= most) or (groups and "throughput" in self.reason):
            return 0, rows
        return (rows - left, rows) if "latency" in self.reason else (0, 0)

    def spaces(self, layout: Layout) -> Spaces:
        """The plan of a layout, made when it is first asked for."""
        lowered = self.lowered[layout]
        if lowered.spaces is None:
            with self._lock:
                if lowered.spaces is None:
                    lowered.spaces = Spaces(self._planned(layout), lowered.live_macs)
        return lowered.spaces

    def prepare(self, rows: Sequence[int] = (1,)) -> None:
        """Make code and weights ready for batches of so many rows, so that the first call is as fast as later ones."""
        for count in rows:
            if count >= self.host.lanes and "throughput" not in self.reason:
                self.spaces("throughput")
            if count % self.host.lanes and "latency" not in self.reason:
                self.spaces("latency")

    @property
    def nbytes(self) -> int:
        """Bytes of weights in all forms that are in use."""
        return sum(weights.nbytes for weights in self.weights.values())

    def __reduce__(self) -> Any:
        raise TypeError(f"{self.where} holds code and memory of this process: make a network of its graph where it is wanted")

    def _taken(self, network: Network) -> Lowered:
        """A network whose weights are kept here, and whose foreign parts are sessions."""
        layers: list[Any] = []
        sessions: dict[str, Any] = {}
        dense = live = 0
        for layer in network.layers:
            if isinstance(layer, Foreign):
                sessions[layer.name] = open_session(layer.onnx, f"{self.where}: {layer.name}", threads=self.threads)
                layers.append(replace(layer, onnx=b""))
            elif isinstance(layer, Conv | Linear):
                bound, shape = Bound.of(layer), network.shapes[layer.source]
                window = bound.window(*(shape[1:] if len(shape) == 3 else (1, 1)))
                held = self.weights.setdefault(layer.name, Weights(layer.weight))
                dense += layer.weight.size // getattr(layer, "groups", 1) * window.height * window.width
                live += held.live * window.height * window.width
                layers.append(bound)
            else:
                layers.append(layer)
        return Lowered(replace(network, layers=layers), sessions, dense, live)

    def _why_dense(self, layout: Layout) -> str:
        lowered, tuned = self.lowered[layout], self.tuning.engine.get(layout)
        if not any(isinstance(layer, Bound) for layer in lowered.network.layers):
            reasons = dict.fromkeys(layer.reason for layer in lowered.network.layers if isinstance(layer, Foreign) and layer.live)
            return "no layer has a kernel here" + (f" ({'; '.join(reasons)})" if reasons else "")
        if tuned == "dense":
            seconds = self.tuning.whole.get(layout)
            return "dense was faster when it was tuned" + (
                f" ({seconds[1] * 1e3:.3g} against {seconds[0] * 1e3:.3g} ms)" if seconds else ""
            )
        crossings = sum(isinstance(layer, Foreign) for layer in lowered.network.layers)
        if tuned is None and lowered.live_macs / SPARSE_RATE + crossings * CROSSING > lowered.dense_macs / DENSE_RATE:
            parts = f", and {crossings} parts of it have no kernel here" if crossings else ""
            return f"{lowered.live_macs / lowered.dense_macs:.0%} of its multiply-adds are live{parts}: too many to gain"
        return ""

    def _run_dense(self, feed: Mapping[str, NDArray[Any]], arrays: Mapping[str, NDArray[Any]], start: int, stop: int) -> None:
        part = {name: array[start:stop] for name, array in feed.items()}
        assert self._dense is not None
        for (name, target), found in zip(arrays.items(), self._dense.run(list(arrays), part), strict=True):
            target[start:stop] = found[0] if name in self.network.unsqueezed else found

    def _planned(self, layout: Layout) -> Plan:
        lowered, inner = self.lowered[layout], self.host.lanes if layout == "throughput" else 1
        network, planes = lowered.network, lowered.planes
        operations: dict[str, Operation] = {}
        for layer in lowered.network.layers:
            if isinstance(layer, Bound):
                choice = self.choice(layer, layout)
                operations[layer.name] = operation(layer, choice, self.weights[layer.name], planes, self.host)
            elif not isinstance(layer, Foreign | Conv | Linear):
                operations[layer.name] = other(layer, planes, self.host)
        outputs = [array for array, _ in network.outputs.values()]
        return Plan(lowered.network.layers, operations, planes, network.shapes, outputs, lowered.sessions, inner, self.host)

    def choice(self, layer: Bound, layout: Layout) -> Choice:
        """What a layer becomes: as tuned, or by the rules. ValueError where it can't be run here."""
        tuned = self.tuning.choices.get(layout, {}).get(layer.name)
        if tuned is not None:
            return tuned
        found = candidates(layer, self.weights[layer.name], self.lowered[layout].planes, self.host)
        other = None
        if layout == "throughput" and layer.source in self.lowered["latency"].planes:
            other = next(candidates(layer, self.weights[layer.name], self.lowered["latency"].planes, self.host), None)
        choice = sharing(other, found)
        if choice is None:
            raise ValueError(f"{self.where}: {layer.name} has no kernel for its geometry; name it in Tuning.dense")
        return choice


def run_together(
    networks: Sequence[SparseNetwork], names: Sequence[str], feed: Mapping[str, NDArray[Any]]
) -> list[list[NDArray[Any]]]:
    """Several networks of equal inputs and outputs on one batch, jobs shared by the threads of the first one; outputs by network."""
    rows = [network.checked(feed) for network in networks]
    made = [network.batch(feed, count, names) for network, count in zip(networks, rows, strict=True)]
    batches = [batch for batch, _ in made if batch is not None]
    if batches:
        execute(batches, team(networks[0].threads))
    return [
        [arrays[name][None] if name in network.network.unsqueezed else arrays[name] for name in names]
        for network, (_, arrays) in zip(networks, made, strict=True)
    ]


def _type(types: Mapping[str, str], name: str) -> str:
    from quorate.runtime.session import TYPES

    kind = types.get(name, "float32")
    return next(key for key, value in TYPES.items() if value == kind)
