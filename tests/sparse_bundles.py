"""Bundles of tickets that kernels can run, in hand-written ONNX; no PyTorch is needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quorate.runtime import Port, Ports, Program, Sparse
from tiny_bundles import CLASSES, FEATURES, dense, weights
from tiny_onnx import external, model, node, tensor

HIDDEN = 40


def live(seed: int, *shape: int, density: float = 0.2) -> Sparse:
    """A weight of which so many are live, at least one."""
    mask = np.random.default_rng(seed).random(shape) < density
    mask.reshape(-1)[0] = True
    return Sparse(weights(seed, int(mask.sum())), mask)


def perceptron(name: str, seed: int, density: float = 0.2, outputs: int = CLASSES) -> Program:
    """x (B, 6) → relu(x Aᵀ + b) Cᵀ = members (1, B, C), with sparse A (40, 6) and C (C, 40)."""
    sparse = {"a": live(seed, HIDDEN, FEATURES, density=density), "c": live(seed + 1, outputs, HIDDEN, density=density)}
    onnx = model(
        [
            node("Gemm", ["x", "a", "b"], ["s"], transB=1), node("Relu", ["s"], ["h"]), node("Gemm", ["h", "c"], ["y"], transB=1),
            node("Unsqueeze", ["y", "axes"], ["members"]),
        ],
        {"x": ("float32", ("n", FEATURES))},
        {"members": ("float32", (1, "n", outputs))},
        [
            *(external(key, "float32", weight.mask.shape, "ticket") for key, weight in sparse.items()),
            tensor("b", weights(seed + 2, HIDDEN)), tensor("axes", np.array([0], np.int64)),
        ],
    )  # fmt: skip
    ports = Ports(name, Port("members", "float32", (1, outputs)), Port("x", "float32", (FEATURES,)), macs=72.0)
    return Program(ports, onnx, sparse)


def answer(program: Program, seed: int, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """What :func:`perceptron` of this seed gives, in fp64."""
    a, c = (dense(program, name).astype(np.float64) for name in "ac")
    return np.asarray((np.maximum(x @ a.T + weights(seed + 2, HIDDEN), 0) @ c.T)[None])


def carrying() -> list[Program]:
    """first: x → members, h (B, 40) by a sparse A; second: h → members by a sparse C."""
    a, c, v = live(1, HIDDEN, FEATURES), live(2, CLASSES, HIDDEN), weights(3, CLASSES, HIDDEN)
    axes, port = tensor("axes", np.array([0], np.int64)), Port("members", "float32", (1, CLASSES))
    one = model(
        [
            node("Gemm", ["x", "a"], ["s"], transB=1), node("Relu", ["s"], ["write.h"]), node("Gemm", ["write.h", "v"], ["y"], transB=1),
            node("Unsqueeze", ["y", "axes"], ["members"]),
        ],
        {"x": ("float32", ("n", FEATURES))},
        {"members": ("float32", (1, "n", CLASSES)), "write.h": ("float32", ("n", HIDDEN))},
        [external("a", "float32", a.mask.shape, "ticket"), tensor("v", v), axes],
    )  # fmt: skip
    two = model(
        [node("Gemm", ["read.h", "c"], ["y"], transB=1), node("Unsqueeze", ["y", "axes"], ["members"])],
        {"read.h": ("float32", ("n", HIDDEN))},
        {"members": ("float32", (1, "n", CLASSES))},
        [external("c", "float32", c.mask.shape, "ticket"), axes],
    )
    hidden = {"h": Port("write.h", "float32", (HIDDEN,))}
    first = Ports("first", port, Port("x", "float32", (FEATURES,)), {}, hidden, macs=60.0)
    second = Ports("second", port, None, {"h": Port("read.h", "float32", (HIDDEN,))}, {}, ("h",), macs=24.0)
    return [Program(first, one, {"a": a}), Program(second, two, {"c": c})]
