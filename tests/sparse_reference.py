"""A sparse network's layers in float64 NumPy, one formula each: what every kernel is compared with.

    s = weight ∗ source + bias (+ add)      target = activation(scale · s + shift)

Foreign parts run in ONNX Runtime, in the precision that they have. Source of the Gaussian error linear unit: Hendrycks & Gimpel 2016
(arXiv 1606.08415), x · Φ(x).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from quorate.runtime.session import open_session
from quorate.runtime.sparse.network import Conv, Epilogue, Flatten, Foreign, Layer, Linear, Mean, Merge, Network, Pool

Array = NDArray[Any]


def evaluate(network: Network, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """{the program's output: its value} of inputs (B, *shape) as the program takes them; float64 where the program says float32."""
    found = arrays(network, inputs)
    outputs = {}
    for name, (array, shape) in network.outputs.items():
        value = found[array].reshape(-1, *shape)
        outputs[name] = value[None] if name in network.unsqueezed else value
    return outputs


def arrays(network: Network, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """{name: (B, *network.shapes[name])} of every array."""
    found = {name: wide(np.asarray(inputs[name])).reshape(-1, *network.shapes[name]) for name in network.inputs}
    for layer in network.layers:
        for name, value in results(layer, found).items():
            assert name not in found, f"{name} is written twice"
            assert value.shape[1:] == tuple(network.shapes[name]), (layer.name, name, value.shape, network.shapes[name])
            found[name] = value
    return found


def results(layer: Layer, found: Mapping[str, Array]) -> dict[str, Array]:
    """{array that a layer writes: (B, *shape)}, from the arrays (B, *shape) that it reads."""
    if isinstance(layer, Foreign):
        feed = {name: found[name].astype(layer.dtypes.get(name, "float32")) for name in layer.sources}
        ran = open_session(layer.onnx, layer.name, threads=1).run(list(layer.targets), feed)
        return {name: wide(value) for name, value in zip(layer.targets, ran, strict=True)}
    x = found[layer.source]
    match layer:
        case Conv():
            return finished(layer, convolution(x, layer.weight, layer.bias, layer.stride, layer.pads), found)
        case Linear():
            return finished(layer, x @ layer.weight.T.astype(np.float64) + layer.bias, found)
        case Merge():
            assert layer.epilogue.raw is None
            return finished(layer, x, found)
        case Pool():
            return {layer.target: pooled(x, layer)}
        case Mean():
            return {layer.target: x.mean((2, 3))}
        case Flatten():
            return {layer.target: x.reshape(len(x), -1)}
    raise TypeError(type(layer))


def wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def finished(layer: Conv | Linear | Merge, sums: Array, found: Mapping[str, Array]) -> dict[str, Array]:
    """What the epilogue makes of the sums (B, O, …)."""
    epilogue: Epilogue = layer.epilogue
    if epilogue.add is not None:
        assert found[epilogue.add].shape == sums.shape
        sums = sums + found[epilogue.add]
    written = {} if epilogue.raw is None else {epilogue.raw: sums}
    if layer.target is not None:
        each = (-1,) + (1,) * (sums.ndim - 2)
        scaled = sums
        if epilogue.scale is not None and epilogue.shift is not None:
            scaled = sums * wide(epilogue.scale).reshape(each) + wide(epilogue.shift).reshape(each)
        written[layer.target] = activated(scaled, epilogue.activation)
    return written


def activated(x: Array, kind: str) -> Array:
    return {"none": lambda: x, "relu": lambda: np.maximum(x, 0), "relu6": lambda: np.clip(x, 0, 6), "gelu": lambda: x * ndtr(x)}[
        kind
    ]()


def convolution(x: Array, weight: Array, bias: Array, stride: tuple[int, int], pads: tuple[int, int, int, int]) -> Array:
    """(B, C, H, W), (O, C, Kh, Kw), (O,) → (B, O, H', W'), one place of the kernel after the other."""
    taps = windows(padded(x, pads, 0.0), weight.shape[2:], stride)
    return np.asarray(np.einsum("bchwij,ocij->bohw", taps, wide(weight), optimize=True) + wide(bias)[:, None, None])


def pooled(x: Array, layer: Pool) -> Array:
    """(B, C, H, W) → (B, C, H', W')."""
    if layer.kind == "max":
        return np.asarray(windows(padded(x, layer.pads, -np.inf), layer.kernel, layer.stride).max((-2, -1)))
    sums = windows(padded(x, layer.pads, 0.0), layer.kernel, layer.stride).sum((-2, -1))
    ones = np.ones((1, 1, *x.shape[2:]))
    divisor = windows(padded(ones, layer.pads, float(layer.counted)), layer.kernel, layer.stride).sum((-2, -1))
    return np.asarray(sums / divisor)


def padded(x: Array, pads: tuple[int, int, int, int], value: float) -> Array:
    above, left, below, right = pads
    return np.pad(x, ((0, 0), (0, 0), (above, below), (left, right)), constant_values=value)


def windows(x: Array, kernel: tuple[int, ...], stride: tuple[int, int]) -> Array:
    """(B, C, H, W) → (B, C, H', W', Kh, Kw)."""
    found = np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))
    return found[:, :, :: stride[0], :: stride[1]]
