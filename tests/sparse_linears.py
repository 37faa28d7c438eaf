"""A matrix over one vector, run by an operation in guarded memory, and what float64 says of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guarded import guarded
from quorate.runtime.sparse.kernels.operation import Operation
from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.machine.code import routine
from quorate.runtime.sparse.machine.host import Host, here
from quorate.runtime.sparse.network import Activation, Epilogue, Linear
from sparse_reference import results

PLAIN = Host("x86-64", "", 4, 16)
AVX512 = Host("skylake-avx512", "-prefer-256-bit", 16, 32)
NEON = Host("neoverse-n1", "", 4, 32, False, "aarch64-unknown-linux-gnu")

SIXTEEN = Host("any", "", 16, 32)
"""As wide as AVX-512: what is made for it is run in two halves where the machine is narrower."""

Make = Callable[[Linear, Planes, Planes | None, Host], Operation]


def unstructured(rng: np.random.Generator, outputs: int, inputs: int, density: float) -> NDArray[np.float32]:
    """Every weight is live with this probability."""
    return (rng.standard_normal((outputs, inputs)) * (rng.random((outputs, inputs)) < density)).astype(np.float32)


def blocks(rng: np.random.Generator, outputs: int, inputs: int, density: float, rows: int, columns: int) -> NDArray[np.float32]:
    """The same of blocks, which must divide the weight."""
    live = rng.random((outputs // rows, inputs // columns)) < density
    return (rng.standard_normal((outputs, inputs)) * live.repeat(rows, 0).repeat(columns, 1)).astype(np.float32)


def fan_in(rng: np.random.Generator, outputs: int, inputs: int, live: int, active: NDArray[np.bool_]) -> NDArray[np.float32]:
    """So many live weights in each active row."""
    rank = rng.random((outputs, inputs)).argsort(1).argsort(1)
    return (rng.uniform(0.5, 1.5, (outputs, inputs)) * ((rank < live) & active[:, None])).astype(np.float32)


def layer_of(
    weight: NDArray[np.float32], rng: np.random.Generator, activation: Activation = "none", *, add: bool = False, raw: bool = False,
    affine: bool = False, target: bool = True,
) -> Linear:  # fmt: skip
    """A layer with this weight, from x to y."""
    drawn = partial(rng.standard_normal, len(weight), dtype=np.float32)
    scale, shift = (drawn(), drawn()) if affine else (None, None)
    end = Epilogue("a" if add else None, "s" if raw else None, scale, shift, activation)
    return Linear("fc", "x", "y" if target else None, weight, drawn(), end)


def emulated(ir: str) -> str:
    """The same code with AVX-512's permutation of a register written out, so that any machine runs it."""
    name, v, n = "llvm.x86.avx512.permvar.sf.512", "<16 x float>", "<16 x i32>"
    lines = [f"define internal {v} @permuted({v} %x, {n} %p) {{", f"  %low = and {n} %p, splat (i32 15)"]
    for k in range(16):
        before = f"%r{k - 1}" if k else "undef"
        lines += [f"  %i{k} = extractelement {n} %low, i32 {k}", f"  %e{k} = extractelement {v} %x, i32 %i{k}"]
        lines += [f"  %r{k} = insertelement {v} {before}, float %e{k}, i32 {k}"]
    definition = "\n".join([*lines, f"  ret {v} %r15", "}"])
    return (
        ir.replace(f"declare {v} @{name}({v}, {n})", definition).replace(f"@{name}(", "@permuted(") if f"@{name}(" in ir else ir
    )


def outcome(
    operation: Operation, layer: Linear, x: NDArray[Any], add: NDArray[Any], host: Host, parts: int = 1, end: bool = True
) -> dict[str, Any]:
    """{array: (O,)} that the operation writes, every array in a buffer that ends (or begins) at a page without access."""
    outputs, inputs = layer.weight.shape
    wide, narrow = Planes.vector(inputs, 1, host.lanes), Planes.vector(outputs, 1, host.lanes)
    arrays = {"x": guarded(wide.floats, end=end)} | {name: guarded(narrow.floats, end=end) for name in "yas"}
    arrays["x"][:inputs], arrays["a"][:outputs] = x, add
    made = routine(emulated(operation.ir), here() if host.lanes > here().lanes else host)
    scratch = aligned(max(1, operation.scratch(parts)), np.uint8)
    words = operation.words({name: a.ctypes.data for name, a in arrays.items()}, scratch.ctypes.data, parts)
    for part in reversed(range(parts)):
        made.run(words, part, parts)
    for array, size in (("x", inputs), ("y", outputs), ("a", outputs), ("s", outputs)):
        assert not arrays[array][size:].any(), f"{array} was written beyond its {size} numbers"
    return {name: arrays[name][:outputs].copy() for name in (layer.target, layer.epilogue.raw) if name is not None}


def made(make: Make, layer: Linear, host: Host) -> Any:
    """The operation on vectors of one input."""
    outputs, inputs = layer.weight.shape
    target = None if layer.target is None else Planes.vector(outputs, 1, host.lanes)
    return make(layer, Planes.vector(inputs, 1, host.lanes), target, host)


def check(make: Make, layer: Linear, host: Host, rng: np.random.Generator) -> Any:
    """One operation against float64, in 1, 2, 3 and many parts; the weight it gives back. Returns it."""
    operation = made(make, layer, host)
    outputs, inputs = layer.weight.shape
    x, add = rng.standard_normal(inputs).astype(np.float32), rng.standard_normal(outputs).astype(np.float32)
    truth = results(layer, {"x": x[None].astype(np.float64), "a": add[None].astype(np.float64)})
    found = outcome(operation, layer, x, add, host)
    size = np.abs(layer.weight.astype(np.float64)) @ np.abs(x) + np.abs(layer.bias) + np.abs(add)
    if layer.epilogue.scale is not None:
        assert layer.epilogue.shift is not None
        size = np.abs(layer.epilogue.scale) * size + np.abs(layer.epilogue.shift)
        size = np.maximum(size, np.abs(layer.weight.astype(np.float64)) @ np.abs(x) + np.abs(layer.bias) + np.abs(add))
    assert set(found) == {name for name, value in truth.items() if value is not None}
    for name, value in found.items():
        assert (np.abs(value - truth[name][0]) <= 2e-6 * np.maximum(size, 1)).all(), name
    for parts in (2, 3, outputs + 5):
        for name, value in outcome(operation, layer, x, add, host, parts, end=parts % 2 == 0).items():
            assert value.tobytes() == found[name].tobytes(), f"{parts} parts change {name}"
    assert np.array_equal(operation.dense(), layer.weight)
    assert operation.live == np.count_nonzero(layer.weight)
    return operation
