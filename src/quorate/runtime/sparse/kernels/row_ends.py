"""The end of a matrix's rows over one vector: sums in registers → arrays.

    s = sum + bias (+ add);   raw = s;   target = activation(scale · s + shift)

A vector of sums is of consecutive rows, or of rows in any order, whose numbers lie in memory. What belongs to a row (bias, scale, shift)
is kept in the order in which rows are worked on, so that it is always loaded as a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.kernels.activations import activation, definitions
from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.machine.emitting import Writer, declarations
from quorate.runtime.sparse.network import Linear

TARGET, ADD, RAW, BIAS, SCALE, SHIFT = range(6)
FIRST = 6
"""The first words of a call; those of the routine itself begin after them."""


class RowEnd:
    """The epilogue of one matrix.

    Args:
        layer: whose epilogue it is; nothing of it but small arrays is kept.
        order: (R,) the row at each place, or None where place and row are the same.
    """

    def __init__(self, layer: Linear, order: NDArray[np.int64] | None = None) -> None:
        end = layer.epilogue
        self._names = (layer.target, end.add, end.raw)
        self._activation = end.activation
        given = [layer.bias, end.scale, end.shift] if end.scale is not None else [layer.bias]
        self._coefficients: list[NDArray[Any]] = []
        for array in given:
            assert array is not None
            kept = aligned(len(array) if order is None else len(order))
            kept[...] = array if order is None else array[order]
            self._coefficients.append(kept)

    @property
    def bytes(self) -> int:
        """Of what it keeps."""
        return sum(a.nbytes for a in self._coefficients)

    def words(self, at: Mapping[str, int]) -> list[int]:
        """The first :data:`FIRST` words of a call."""
        addresses = [a.ctypes.data for a in self._coefficients]
        return [0 if name is None else at[name] for name in self._names] + addresses + [0] * (3 - len(addresses))

    def declared(self, lanes: int) -> str:
        """What a module must declare and define for :meth:`emit`."""
        return declarations(lanes) + "\n" + definitions([self._activation], lanes) + "\n"

    def emit(self, w: Writer, total: str, lanes: int, place: str, rows: str | None = None) -> None:
        """Finish a vector of sums.

        Args:
            total: the sums of ``lanes`` rows.
            place: (i64) the first row's place.
            rows: address of the rows' numbers (i32 each), or None where they are place, place + 1, ….
        """
        v = f"<{lanes} x float>"

        def vector(word: int) -> str:
            base = w.word(word, "ptr")
            return w(f"load {v}, ptr {w(f'getelementptr float, ptr {base}, i64 {place}')}, align 4")

        narrow = [] if rows is None else [w(f"load i32, ptr {w.step(rows, 4 * k)}, align 4") for k in range(lanes)]
        numbers = [w(f"zext i32 {row} to i64") for row in narrow]

        def store(word: int, value: str) -> None:
            base = w.word(word, "ptr")
            if rows is None:
                w.do(f"store {v} {value}, ptr {w(f'getelementptr float, ptr {base}, i64 {place}')}, align 4")
            for k, row in enumerate(numbers):
                one = w(f"extractelement {v} {value}, i32 {k}")
                w.do(f"store float {one}, ptr {w(f'getelementptr float, ptr {base}, i64 {row}')}, align 4")

        target, add, raw = self._names
        value = w(f"fadd {v} {total}, {vector(BIAS)}")
        if add is not None:
            other = vector(ADD) if rows is None else "undef"
            base = w.word(ADD, "ptr") if numbers else ""
            for k, row in enumerate(numbers):
                one = w(f"load float, ptr {w(f'getelementptr float, ptr {base}, i64 {row}')}, align 4")
                other = w(f"insertelement {v} {other}, float {one}, i32 {k}")
            value = w(f"fadd {v} {value}, {other}")
        if raw is not None:
            store(RAW, value)
        if target is not None:
            if len(self._coefficients) > 1:
                value = w(f"call {v} @llvm.fmuladd.v{lanes}f32({v} {value}, {v} {vector(SCALE)}, {v} {vector(SHIFT)})")
            store(TARGET, activation(w, lanes, value, self._activation))


def check_vectors(layer: Linear, source: Planes, target: Planes | None) -> None:
    """That both are vectors of one input. Raises ValueError."""
    outputs, inputs = layer.weight.shape
    for which, planes, size in (("source", source, inputs), ("target", target, outputs)):
        if planes is not None and (planes.channels, planes.pixels, planes.inner, planes.plane) != (size, 1, 1, 1):
            raise ValueError(
                f"{layer.name}: {which} is {planes.channels} channels of {planes.height} × {planes.width}, {planes.inner} images side by "
                f"side: expected a vector of {size} numbers of one image"
            )


def added(w: Writer, terms: list[str], lanes: int) -> str:
    """The sum of vectors, in pairs."""
    while len(terms) > 1:
        pairs = [w(f"fadd <{lanes} x float> {a}, {b}") for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[2 * len(pairs) :]
    return terms[0]
