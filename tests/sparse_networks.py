"""Small sparse networks as ONNX files, written without a package."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tiny_onnx import model, node, tensor


def sparse_weight(rng: np.random.Generator, shape: Sequence[int], density: float) -> NDArray[np.float32]:
    """Normal numbers of which all but this share are 0."""
    weight = (rng.standard_normal(shape) / np.sqrt(max(density, 0.01) * np.prod(shape[1:]))).astype(np.float32).reshape(-1)
    weight[rng.permutation(weight.size)[round(density * weight.size) :]] = 0
    return weight.reshape(tuple(shape))


def residual(
    density: float = 0.1, *, channels: int = 16, side: int = 16, classes: int = 5, sigmoid: bool = False, seed: int = 0
) -> bytes:
    """A stem, two residual blocks (pre- and post-activation, the second of stride 2), a pool and a matrix; ``sigmoid``: one in the middle.

    Input ``x`` (batch, 3, side, side), outputs ``members`` (1, batch, classes) and ``write.h`` (batch, 2 · channels, side / 2, side / 2).
    """
    rng = np.random.default_rng(seed)
    weights, nodes = [], []

    def conv(name: str, source: str, target: str, inputs: int, outputs: int, k: int, stride: int) -> None:
        weights.append(tensor(f"{name}.weight", sparse_weight(rng, (outputs, inputs, k, k), density)))
        weights.append(tensor(f"{name}.bias", rng.standard_normal(outputs).astype(np.float32)))
        nodes.append(
            node(
                "Conv",
                [source, f"{name}.weight", f"{name}.bias"],
                [target],
                strides=[stride] * 2,
                pads=[k // 2] * 4,
                kernel_shape=[k, k],
            )
        )

    c, wide = channels, 2 * channels
    conv("stem", "x", "s", 3, c, 3, 1)
    for name in ("scale", "shift", "mean"):
        weights.append(tensor(f"bn.{name}", rng.standard_normal(c).astype(np.float32)))
    weights.append(tensor("bn.var", rng.uniform(0.5, 2, c).astype(np.float32)))
    nodes.append(node("BatchNormalization", ["s", "bn.scale", "bn.shift", "bn.mean", "bn.var"], ["n"]))
    nodes.append(node("Relu", ["n"], ["r"]))
    conv("one", "r", "a", c, c, 3, 1)
    nodes.append(node("Relu", ["a"], ["b"]))
    conv("two", "b", "d", c, c, 3, 1)
    nodes.append(node("Add", ["d", "s"], ["e"]))
    if sigmoid:
        nodes.append(node("Sigmoid", ["e"], ["f"]))
    else:
        nodes.append(node("Relu", ["e"], ["f"]))
    conv("three", "f", "g", c, wide, 3, 2)
    conv("short", "f", "i", c, wide, 1, 2)
    nodes.append(node("Add", ["g", "i"], ["j"]))
    nodes.append(node("Relu", ["j"], ["write.h"]))
    nodes.append(node("MaxPool", ["write.h"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
    nodes.append(node("GlobalAveragePool", ["p"], ["q"]))
    nodes.append(node("Flatten", ["q"], ["v"]))
    weights.append(tensor("fc.weight", sparse_weight(rng, (classes, wide), 0.5)))
    weights.append(tensor("fc.bias", rng.standard_normal(classes).astype(np.float32)))
    nodes.append(node("Gemm", ["v", "fc.weight", "fc.bias"], ["y"], transB=1))
    weights.append(tensor("axis", np.array([0], np.int64)))
    nodes.append(node("Unsqueeze", ["y", "axis"], ["members"]))
    return model(
        nodes,
        {"x": ("float32", ["batch", 3, side, side])},
        {"members": ("float32", [1, "batch", classes]), "write.h": ("float32", ["batch", wide, side // 2, side // 2])},
        weights,
    )


def perceptron(sizes: Sequence[int], density: float = 0.1, seed: int = 0) -> bytes:
    """Matrices with ReLUs between them: ``x`` (batch, sizes[0]) → ``members`` (batch, sizes[-1])."""
    rng = np.random.default_rng(seed)
    weights, nodes, source = [], [], "x"
    for k, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weights.append(tensor(f"l{k}.weight", sparse_weight(rng, (outputs, inputs), density)))
        weights.append(tensor(f"l{k}.bias", rng.standard_normal(outputs).astype(np.float32)))
        last = k == len(sizes) - 2
        target = "members" if last else f"s{k}"
        nodes.append(node("Gemm", [source, f"l{k}.weight", f"l{k}.bias"], [target], transB=1))
        if not last:
            nodes.append(node("Relu", [target], [f"r{k}"]))
            source = f"r{k}"
    return model(nodes, {"x": ("float32", ["batch", sizes[0]])}, {"members": ("float32", ["batch", sizes[-1]])}, weights)
