"""y = W x + b for one input and a W of constant fan-in: every row that has live weights has n of them.

    sum[row] = Σ over s < n:   weight[row, s] · x[input[row, s]]

Source: the condensed form of Lasby et al. 2024 (SRigL, arXiv 2305.02299, section 3), where weight and input are (active rows, n) matrices.
A vector is V active rows, each lane gathers its own input. Nothing is sorted or filled up, n is a constant of the code and several sums
are kept. A live weight takes 6 bytes (8 with more than 65 536 inputs). Ablated rows come last and are only finished.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quorate.runtime.sparse.kernels.gathered import gathered
from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.kernels.row_ends import FIRST, RowEnd, added, check_vectors
from quorate.runtime.sparse.machine.emitting import SIGNATURE, Writer
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.network import Floats, Linear

SOURCE, GROUPS, LIVE, ROWS, INDICES, VALUES = range(FIRST, FIRST + 6)
"""Words of a call after those of the epilogue. GROUPS of V rows, of which the first LIVE have weights."""

SUMS = 4
"""Multiply-adds of a turn of the loop, none of which waits for another."""


def constant_fan_in(weight: Floats) -> int | None:
    """Live weights of a row, if they are as many in every row that has any (O, …); None where they differ or where all is dead."""
    count = np.count_nonzero(weight.reshape(len(weight), -1), axis=1) if weight.size else np.zeros(0, np.int64)
    some = count[count > 0]
    return int(some[0]) if len(some) and (some == some[0]).all() else None


class FanInLinear:
    """A matrix of constant fan-in over the vector of one input.

    Args:
        layer: weight (O, F), dead ones 0.
        source, target: vectors of one input; ``target`` None where only the sums are kept.
        host: the machine.

    Attributes:
        live: weights that are not 0.
        fan_in: n.

    Raises:
        ValueError: planes that aren't such vectors; a weight without constant fan-in.
    """

    def __init__(self, layer: Linear, source: Planes, target: Planes | None, host: Host) -> None:
        check_vectors(layer, source, target)
        n, lanes = constant_fan_in(layer.weight), host.lanes
        if n is None:
            raise ValueError(
                f"{layer.name}: rows of different numbers of live weights: expected a constant fan-in, or use Gathered"
            )
        self.name, self._source, self.fan_in, self._shape = layer.name, layer.source, n, layer.weight.shape
        inputs = layer.weight.shape[1]
        active = layer.weight.any(1)
        rows = [np.pad(r, (0, -len(r) % lanes), mode="edge") for r in (np.flatnonzero(active), np.flatnonzero(~active)) if len(r)]
        order = np.concatenate(rows)
        self._rows = order.astype(np.int32)
        self._groups, self._active = len(order) // lanes, len(rows[0]) // lanes
        column = np.nonzero(layer.weight)[1].reshape(-1, n)
        self.live = column.size
        place = np.cumsum(active)[rows[0]] - 1  # of a row among the active ones
        self._indices = aligned(self._active * n * lanes, np.uint32 if inputs > 65_536 else np.uint16)
        self._values = aligned(self._active * n * lanes)
        self._indices.reshape(self._active, n, lanes)[...] = column[place].reshape(self._active, lanes, n).transpose(0, 2, 1)
        values = np.take_along_axis(layer.weight[rows[0]], column[place], 1)
        self._values.reshape(self._active, n, lanes)[...] = values.reshape(self._active, lanes, n).transpose(0, 2, 1)
        self._end = RowEnd(layer, order)
        self.ir = self._end.declared(lanes) + _code(self._end, n, inputs > 65_536, lanes)

    @property
    def nbytes(self) -> int:
        """Of the weights: indices and values."""
        return self._indices.nbytes + self._values.nbytes

    @property
    def bytes(self) -> int:
        """Of all else that it holds."""
        return self._end.bytes + self._rows.nbytes

    def dense(self) -> Floats:
        """The weight, bit for bit but for −0."""
        weight = np.zeros(self._shape, np.float32)
        rows = self._rows.reshape(self._groups, 1, -1)[: self._active]
        shape = (self._active, self.fan_in, rows.shape[2])
        weight[np.broadcast_to(rows, shape), self._indices.reshape(shape)] = self._values.reshape(shape)
        return weight

    def scratch(self, parts: int) -> int:  # noqa: ARG002
        """None."""
        return 0

    def words(self, at: Mapping[str, int], scratch: int, parts: int) -> list[int]:  # noqa: ARG002
        """The words of a call."""
        arrays = [a.ctypes.data for a in (self._rows, self._indices, self._values)]
        return [*self._end.words(at), at[self._source], self._groups, self._active, *arrays]


def _code(end: RowEnd, n: int, wide: bool, lanes: int) -> str:
    """The routine: its part of the groups."""
    v, w = f"<{lanes} x float>", Writer()
    number, value = (4 if wide else 2) * lanes, 4 * lanes  # bytes of an entry
    turns, rest = divmod(n, SUMS)
    w.lines.append(SIGNATURE.format(name="run"))
    w.label("entry")
    source, rows, indices, values = (w.word(k, "ptr") for k in (SOURCE, ROWS, INDICES, VALUES))
    groups, live, following = w.word(GROUPS), w.word(LIVE), w("add i64 %part, 1")
    start = w(f"udiv i64 {w(f'mul i64 {groups}, %part')}, %parts")
    stop = w(f"udiv i64 {w(f'mul i64 {groups}, {following}')}, %parts")
    w.do(f"%any = icmp ult i64 {start}, {stop}")
    w.do("br i1 %any, label %group, label %end")
    w.label("group")
    w.do(f"%g = phi i64 [{start}, %entry], [%gnext, %finish]")
    first, base = (
        w(f"getelementptr i8, ptr {p}, i64 {w(f'mul i64 %g, {n * size}')}") for p, size in ((indices, number), (values, value))
    )
    w.do(f"%active = icmp ult i64 %g, {live}")
    w.do(f"br i1 %active, label %{'turn' if turns else 'rest'}, label %finish")
    sums, ip, vp = ["zeroinitializer"] * SUMS, first, base

    def multiply(k: int, total: str) -> str:
        x = gathered(w, source, w.step(ip, number * k), wide, lanes)
        weights = w(f"load {v}, ptr {w.step(vp, value * k)}, align 4")
        return f"call {v} @llvm.fmuladd.v{lanes}f32({v} {x}, {v} {weights}, {v} {total})"

    if turns:
        w.label("turn")
        w.do("%t = phi i64 [0, %group], [%tnext, %turn]")
        w.do(f"%ip = phi ptr [{first}, %group], [%ipnext, %turn]")
        w.do(f"%vp = phi ptr [{base}, %group], [%vpnext, %turn]")
        ip, vp = "%ip", "%vp"
        for k in range(SUMS):
            w.do(f"%s{k} = phi {v} [zeroinitializer, %group], [%n{k}, %turn]")
        for k in range(SUMS):
            w.do(f"%n{k} = {multiply(k, f'%s{k}')}")
        w.do("%tnext = add i64 %t, 1")
        w.do(f"%ipnext = getelementptr i8, ptr %ip, i64 {number * SUMS}")
        w.do(f"%vpnext = getelementptr i8, ptr %vp, i64 {value * SUMS}")
        w.do(f"%more = icmp ult i64 %tnext, {turns}")
        w.do("br i1 %more, label %turn, label %rest")
        ip, vp, sums = "%ipnext", "%vpnext", [f"%n{k}" for k in range(SUMS)]
    w.label("rest")
    for k in range(rest):
        sums[k] = w(multiply(k, sums[k]))
    total = added(w, sums, lanes)
    w.do("br label %finish")
    w.label("finish")
    w.do(f"%total = phi {v} [zeroinitializer, %group], [{total}, %rest]")
    place = w(f"mul i64 %g, {lanes}")
    end.emit(w, "%total", lanes, place, w(f"getelementptr i32, ptr {rows}, i64 {place}"))
    w.do("%gnext = add i64 %g, 1")
    w.do(f"%again = icmp ult i64 %gnext, {stop}")
    w.do("br i1 %again, label %group, label %end")
    w.label("end")
    w.do("ret void")
    w.lines.append("}")
    return w.text()
