"""Bundles of hand-written ONNX programs: independent stages, stages with a carry, parts of a sequence, a ticket; no PyTorch is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.cascade import Policy, StagePolicy
from quorate.runtime import Manifest, Port, Ports, Program, Sparse, write_bundle
from tiny_onnx import external, linear, model, node, tensor

FEATURES, CLASSES = 6, 3


def weights(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rows(count: int, seed: int = 0, *shape: int) -> NDArray[np.float32]:
    return weights(1000 + seed, count, *(shape or (FEATURES,)))


def member(name: str, seed: int, members: int = 2, macs: float | None = 18.0) -> Program:
    """x (B, 6) → (m, B, 3)."""
    onnx = linear(weights(seed, members, FEATURES, CLASSES), y="members")
    ports = Ports(name, Port("members", "float32", (members, CLASSES)), Port("x", "float32", (FEATURES,)), macs=macs)
    return Program(ports, onnx)


def chained() -> list[Program]:
    """first: x → members, h (B, 4); second, which does not look at x: h → members."""
    w, v, u = weights(1, 1, FEATURES, CLASSES), weights(2, FEATURES, 4), weights(3, 1, 4, CLASSES)
    one = model(
        [node("MatMul", ["x", "w"], ["members"]), node("MatMul", ["x", "v"], ["write.h"])],
        {"x": ("float32", ("n", FEATURES))},
        {"members": ("float32", (1, "n", CLASSES)), "write.h": ("float32", ("n", 4))},
        [tensor("w", w), tensor("v", v)],
    )
    two = linear(u, x="read.h", y="members")
    port = Port("members", "float32", (1, CLASSES))
    return [
        Program(
            Ports("first", port, Port("x", "float32", (FEATURES,)), {}, {"h": Port("write.h", "float32", (4,))}, macs=10.0), one
        ),
        Program(Ports("second", port, None, {"h": Port("read.h", "float32", (4,))}, {}, ("h",), macs=5.0), two),
    ]


def parts(channels: int = 2) -> list[Program]:
    """Of sequences (B, 2, 8), steps [0, 3) and [3, 8): members from the sum of a part and of the sum before."""
    made = []
    for name, (start, stop), before in (("early", (0, 3), None), ("late", (3, 8), "early")):
        axes = tensor("axes", np.array([2], np.int64))
        nodes = [node("ReduceSum", ["part", "axes"], ["sum"], keepdims=0)]
        total = "sum"
        inputs: dict[str, Any] = {"part": ("float32", ("n", channels, stop - start))}
        reads = {}
        if before is not None:
            inputs["read.sum"] = ("float32", ("n", channels))
            reads = {"sum": Port("read.sum", "float32", (channels,))}
            nodes.append(node("Add", ["sum", "read.sum"], ["total"]))
            total = "total"
        nodes += [node("MatMul", [total, "w"], ["members"]), node("Identity", [total], ["write.sum"])]
        onnx = model(
            nodes,
            inputs,
            {"members": ("float32", (1, "n", CLASSES)), "write.sum": ("float32", ("n", channels))},
            [tensor("w", weights(7, 1, channels, CLASSES)), axes],
        )
        ports = Ports(
            name, Port("members", "float32", (1, CLASSES)), Port("part", "float32", (channels, stop - start)), reads,
            {"sum": Port("write.sum", "float32", (channels,))}, (), (start, stop), macs=4.0,
        )  # fmt: skip
        made.append(Program(ports, onnx))
    return made


def ticket(name: str = "sparse", seed: int = 5) -> Program:
    """x (B, 6) → (1, B, 40) with a weight (1, 6, 40) of which a fifth is live."""
    mask = np.random.default_rng(seed).random((1, FEATURES, 40)) < 0.2
    values = weights(seed, int(mask.sum()))
    onnx = model(
        [node("MatMul", ["x", "w"], ["members"])],
        {"x": ("float32", ("n", FEATURES))},
        {"members": ("float32", (1, "n", 40))},
        [external("w", "float32", mask.shape, "ticket")],
    )
    ports = Ports(name, Port("members", "float32", (1, 40)), Port("x", "float32", (FEATURES,)), macs=48.0)
    return Program(ports, onnx, {"w": Sparse(values, mask)})


def dense(program: Program, name: str = "w") -> NDArray[np.float32]:
    """A sparse weight, by default that of :func:`ticket`, with its zeros."""
    sparse = program.sparse[name]
    whole = np.zeros(sparse.mask.shape, np.float32)
    whole[sparse.mask] = sparse.values
    return whole


def run(programs: Sequence[Program], x: NDArray[Any]) -> list[tuple[NDArray[Any], dict[str, NDArray[Any]]]]:
    """Every stage's answer, by ONNX Runtime itself."""
    from quorate.runtime.session import OnnxStage, open_session

    carry: dict[str, NDArray[Any]] = {}
    answers = []
    for program in programs:
        external_ = {name: dense(program, name) for name in program.sparse}
        stage = OnnxStage(open_session(program.onnx, "test", external=external_), program.ports)
        members, written = stage(x, {name: carry[name] for name in stage.reads})
        answers.append((members, written))
        carry |= written
    return answers


def policy_of(programs: Sequence[Program], window: Any = (None, None), tau: float | None = None, **options: Any) -> Policy:
    """A policy over these stages; one window for all."""
    last = len(programs) - 1
    join = "replace" if options.get("combine") == "last" else "mean"
    stages = [
        StagePolicy(p.ports.stage, join, window=None if k == last else window, tau=tau, cost=p.ports.macs or 1.0)  # type: ignore[arg-type]
        for k, p in enumerate(programs)
    ]
    return Policy(tuple(stages), **options)


def bundle(path: Path, programs: Sequence[Program], x: NDArray[Any] | None = None, **options: Any) -> Manifest:
    """Written with the programs' own answers as golden outputs."""
    inputs = rows(4) if x is None else x
    said: Mapping[str, Any] = {"policy": policy_of(programs), "card": "# Test\n", "name": "test"} | options
    return write_bundle(path, programs, golden=(inputs, run(programs, inputs)), **said)
