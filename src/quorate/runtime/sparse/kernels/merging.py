"""Sums of two arrays and what follows them, where no convolution can do it at the end of its sums.

    target = activation(scale · (source + add) + shift)

Row by row in planes of whatever margins; a vector of one image is a single row whose scale and shift change from float to float.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quorate.runtime.sparse.kernels.activations import activation, definitions
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.machine.emitting import declarations
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.machine.walking import begun, ended, read, room, row, rowed, units, vectors, write
from quorate.runtime.sparse.network import Merge

SOURCE, ADD, TARGET, SCALE, SHIFT = range(5)
"""The words of a call; the address of the source where there is no other."""


class Merging:
    """One merge on given planes.

    Args:
        layer: the merge.
        source, add, target: layouts of its arrays; ``add`` is None where the layer adds nothing.
        host: the machine.

    Raises:
        ValueError: layouts of different shapes or of different numbers of images; an ``add`` without or against the layer's; an epilogue
            that keeps the raw sum, has only one of scale and shift, or has them for another number of channels.
    """

    def __init__(self, layer: Merge, source: Planes, add: Planes | None, target: Planes, host: Host) -> None:
        self.name, self.layer = layer.name, layer
        end = layer.epilogue
        if (end.add is None) != (add is None):
            raise ValueError(f"{layer.name}: the layer adds {end.add}, expected its planes and nothing else, got {add}")
        if end.raw is not None:
            raise ValueError(f"{layer.name}: a merge keeps no raw sum, expected raw=None, got {end.raw!r}")
        for other in (target,) if add is None else (add, target):
            _check_alike(layer.name, source, other, host)
        if (end.scale is None) != (end.shift is None):
            raise ValueError(f"{layer.name}: expected scale and shift or neither, got one of them")
        given = [] if end.scale is None or end.shift is None else [end.scale, end.shift]
        for values in given:
            if values.shape != (source.channels,):
                raise ValueError(f"{layer.name}: expected scale and shift of shape ({source.channels},), got {values.shape}")
        self._coefficients = [np.ascontiguousarray(values, np.float32) for values in given]
        self.ir = self._code(source, add, target, host.lanes)

    @property
    def bytes(self) -> int:
        """Of scale and shift."""
        return sum(values.nbytes for values in self._coefficients)

    def scratch(self, parts: int) -> int:  # noqa: ARG002
        return 0

    def words(self, at: Mapping[str, int], scratch: int, parts: int) -> list[int]:  # noqa: ARG002
        source, add = at[self.layer.source], self.layer.epilogue.add
        scale, shift = (values.ctypes.data for values in self._coefficients) if self._coefficients else (source, source)
        return [source, source if add is None else at[add], at[self.layer.target], scale, shift]

    def _code(self, source: Planes, add: Planes | None, target: Planes, lanes: int) -> str:
        planes = {SOURCE: source, TARGET: target} | ({} if add is None else {ADD: add})
        single = source.inner == 1 and all(each.plane == 1 for each in planes.values())
        if single:
            planes = {word: rowed(each) for word, each in planes.items()}
        v, w, kind = f"<{lanes} x float>", begun(), self.layer.epilogue.activation
        at = {word: w.word(word, "ptr") for word in planes}
        affine = [w.word(word, "ptr") for word in (SCALE, SHIFT)[: len(self._coefficients)]]
        height, width = planes[SOURCE].height, planes[SOURCE].width * source.inner
        with units(w, planes[SOURCE].channels * height) as unit:
            c, y = w(f"udiv i64 {unit}, {height}"), w(f"urem i64 {unit}, {height}")
            rows = {word: row(w, at[word], each, c, y) for word, each in planes.items()}
            if not single:
                factors = [
                    w.spread(w(f"load float, ptr {w(f'getelementptr float, ptr {p}, i64 {c}')}, align 4"), lanes) for p in affine
                ]
            for place, count in vectors(w, width, lanes):
                here = {word: w.step(rows[word], place) for word in planes}
                value = read(w, here[SOURCE], lanes, count, room(planes[SOURCE], lanes))
                if ADD in planes:
                    value = w(f"fadd {v} {value}, {read(w, here[ADD], lanes, count, room(planes[ADD], lanes))}")
                if single:
                    factors = [read(w, w.step(p, place), lanes, count) for p in affine]
                if factors:
                    value = w(f"call {v} @llvm.fmuladd.v{lanes}f32({v} {value}, {v} {factors[0]}, {v} {factors[1]})")
                write(w, here[TARGET], activation(w, lanes, value, kind), lanes, count, room(planes[TARGET], lanes))
        return "\n".join([declarations(lanes), definitions([kind], lanes), ended(w)])


def _check_alike(name: str, source: Planes, other: Planes, host: Host) -> None:
    shapes = [(each.channels, each.height, each.width, each.inner) for each in (source, other)]
    if shapes[0] != shapes[1] or source.inner not in (1, host.lanes):
        raise ValueError(
            f"{name}: expected layouts of one shape, 1 or {host.lanes} images side by side, got {shapes[0]} and {shapes[1]}"
        )
