"""What each layer does and takes, measured where it runs: between its neighbours, with their traces in the caches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from quorate.runtime.sparse.kernels.convolution import Bound
from quorate.runtime.sparse.network import Foreign
from quorate.runtime.sparse.planning import Workspace
from quorate.runtime.sparse.sparse import SparseNetwork
from quorate.runtime.sparse.trials import drawn
from quorate.runtime.sparse.tuning import LAYOUTS, Layout

REPEATS = 5


@dataclass(frozen=True)
class Line:
    """One layer.

    Attributes:
        name, kind: of the layer.
        density: live weights of all; None where it has none.
        choice: how it runs.
        seconds: of one job, by one thread.
        macs: live multiply-adds of a job.
        dense_seconds: in ONNX Runtime, as tuned; None where that was not tried.
    """

    name: str
    kind: str
    density: float | None
    choice: str
    seconds: float
    macs: int
    dense_seconds: float | None = None

    @property
    def gflops(self) -> float | None:
        """Live floating-point operations per nanosecond; None where there are no weights."""
        return 2 * self.macs / self.seconds / 1e9 if self.macs else None


@dataclass(frozen=True)
class Explanation:
    """All layers of a network in one layout; ``str`` makes a table of it.

    Attributes:
        layout: latency or throughput.
        rows: of a job.
        host: the processor.
        lines: by layer, in order.
        reason: why the whole network runs dense; "" where it does not.
        tuned: whether the choices were tuned.
        bytes_per_live: bytes of weights per live weight, in all forms that are in use.
    """

    layout: Layout
    rows: int
    host: str
    lines: tuple[Line, ...]
    reason: str
    tuned: bool
    bytes_per_live: float

    @property
    def seconds(self) -> float:
        """Of a job by one thread, in all."""
        return sum(line.seconds for line in self.lines)

    def __str__(self) -> str:
        tuned = "tuned" if self.tuned else "by rule, not tuned"
        head = f"{self.layout}: {self.rows} row{'s' * (self.rows > 1)} a job, {self.host}, {tuned}"
        if self.reason:
            return f"{head}\nruns dense in ONNX Runtime: {self.reason}"
        table = [("layer", "kind", "density", "how", "ms", "GFLOP/s", "dense ms")]
        table += [
            (
                line.name, line.kind, "" if line.density is None else f"{line.density:.3f}", line.choice, _ms(line.seconds),
                "" if line.gflops is None else f"{line.gflops:.1f}", _ms(line.dense_seconds),
            )
            for line in self.lines
        ]  # fmt: skip
        macs = sum(line.macs for line in self.lines)
        table.append(("all", "", "", "", f"{self.seconds * 1e3:.3f}", f"{2 * macs / self.seconds / 1e9:.1f}" if macs else "", ""))
        widths = [max(len(row[k]) for row in table) for k in range(7)]
        text = [
            "  ".join(
                cell.ljust(w) if k in (0, 1, 3) else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        return "\n".join([head, *text, f"weights: {self.bytes_per_live:.2f} bytes per live one"])


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3f}"


def explain(network: SparseNetwork, layout: Layout = "latency") -> Explanation:
    """Run a network layer by layer and tell what each took.

    Args:
        network: to look at.
        layout: ``"latency"``, rows one by one, or ``"throughput"``, as many as a vector has lanes side by side.

    Raises:
        ValueError: another layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: expected one of {', '.join(LAYOUTS)}")
    rows = network.host.lanes if layout == "throughput" else 1
    if layout in network.reason:
        return Explanation(layout, rows, network.host.name, (), network.reason[layout], bool(network.tuning.engine), 0.0)
    lines = tuple(_lines(network, layout))
    live = sum(weights.live for weights in network.weights.values())
    return Explanation(
        layout, rows, network.host.name, lines, "", bool(network.tuning.choices.get(layout)), network.nbytes / max(live, 1)
    )


def _lines(network: SparseNetwork, layout: Layout) -> Iterator[Line]:
    plan = network.spaces(layout).plan
    by_name = {layer.name: layer for layer in network.lowered[layout].network.layers}
    timings = network.tuning.timings.get(layout, {})
    for name, seconds in _seconds(network, layout):
        layer: Any = by_name.get(name)
        timing = timings.get(name)
        if isinstance(layer, Bound):
            weights, target = network.weights[name], plan.shapes[layer.target or layer.epilogue.raw or ""]
            pixels = math.prod(target[1:])
            kind = "matrix"
            if len(weights.shape) > 2:
                kind = "×".join(map(str, layer.kernel)) + (f"/{layer.stride[0]}" if max(layer.stride) > 1 else "")
            choice = str(network.choice(layer, layout))
            yield Line(
                name, f"{kind} {layer.channels}→{layer.outputs}", weights.live / math.prod(weights.shape),
                choice, seconds, weights.live * pixels * plan.inner, None if timing is None else timing.dense,
            )  # fmt: skip
        elif isinstance(layer, Foreign):
            yield Line(name, "+".join(dict.fromkeys(layer.operators)), None, f"ONNX Runtime: {layer.reason}", seconds, 0)
        else:
            yield Line(name, "border" if layer is None else type(layer).__name__.lower(), None, "", seconds, 0)


def _seconds(network: SparseNetwork, layout: Layout) -> Iterator[tuple[str, float]]:
    """(layer or border, seconds) in order, the least of several runs of the whole."""
    plan = network.spaces(layout).plan
    space = Workspace(plan, 1)
    rng = np.random.default_rng(0)
    found: dict[int, tuple[str, float]] = {}
    given = {port.name: drawn(rng, (plan.inner, *port.shape[1:]), port.type) for port in network.get_inputs()}
    for _ in range(REPEATS):
        for k, (name, seconds) in enumerate(space.timed(given)):
            found[k] = (name, min(seconds, found.get(k, (name, math.inf))[1]))
    yield from found.values()
