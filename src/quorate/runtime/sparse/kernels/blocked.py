"""y = W x + b for one input and a W of blocks: r consecutive rows share their live inputs, which come q at a time.

    sum[row] += Σ over the live blocks of r × q weights of the row's r:   weight[row, block] · x[first input of the block …]

Source: block-sparse growth, :class:`quorate.tickets.patterns.Blocks`. With r ≥ V an input is spread over a vector and serves r / V
multiply-adds of V rows each. With r < V a vector is r rows by V / r inputs; its lanes are added up at the end of the rows. Either way
a block's values lie in memory as they are multiplied, column after column, and there is one number of 16 bits for each block: an input
is loaded once for r weights, and a live weight takes 4 + 2 / (r · q) bytes. Several sums hide the latency of multiply-adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.kernels.row_ends import FIRST, RowEnd, added, check_vectors
from quorate.runtime.sparse.machine.emitting import SIGNATURE, Writer
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.network import Floats, Linear

SOURCE, UNITS, STARTS, INDICES, VALUES = range(FIRST, FIRST + 5)
"""Words of a call after those of the epilogue. STARTS: of each r rows and their end, in turns of the loop."""

SUMS = 8
"""Multiply-adds of a turn of the loop, none of which waits for another; 4 where a turn would be so many blocks that filling counts."""

SIZES = (16, 8, 4, 2)


def blocked_rows(weight: Floats) -> int:
    """How many consecutive outputs share their live places: the largest of 16, 8, 4, 2 that holds throughout, else 1.

    Args:
        weight: (O, F) or (O, C, Kh, Kw); O must be a multiple.
    """
    live = weight != 0
    for rows in SIZES if weight.size else ():
        if len(live) % rows == 0:
            groups = live.reshape(len(live) // rows, rows, -1)
            if np.array_equal(groups.all(1), groups.any(1)):
                return rows
    return 1


def blocked_columns(weight: Floats) -> int:
    """How many consecutive inputs are live or dead together in every row (and at every kernel position), as :func:`blocked_rows`."""
    return blocked_rows(np.moveaxis(weight, 1, 0))


class BlockedLinear:
    """A matrix of blocks over the vector of one input.

    Args:
        layer: weight (O, F), dead ones 0.
        source, target: vectors of one input; ``target`` None where only the sums are kept.
        host: the machine.
        rows, columns: of a block, powers of 2 up to 16, not both 1; by default the largest that the weight has. Dead weights in a live
            block are multiplied as zeros.

    Attributes:
        live: weights that are not 0.
        rows, columns: of a block.

    Raises:
        ValueError: planes that aren't such vectors; blocks that don't divide the weight, or of a single weight.
    """

    def __init__(
        self,
        layer: Linear,
        source: Planes,
        target: Planes | None,
        host: Host,
        *,
        rows: int | None = None,
        columns: int | None = None,
    ) -> None:
        check_vectors(layer, source, target)
        outputs, inputs = layer.weight.shape
        r = blocked_rows(layer.weight) if rows is None else rows
        q = blocked_columns(layer.weight) if columns is None else columns
        if r not in (*SIZES, 1) or q not in (*SIZES, 1) or r * q == 1 or outputs % r or inputs % q:
            raise ValueError(
                f"{layer.name}: blocks of {r} × {q} in a weight of {outputs} × {inputs}: expected 1, 2, 4, 8 or 16 of each, not both "
                "1, that divide it; a weight without blocks is for Gathered"
            )
        self.name, self._source, self.rows, self.columns, self._shape = layer.name, layer.source, r, q, layer.weight.shape
        self.live = int(np.count_nonzero(layer.weight))
        self._turn = turn = _turn(r, q, host.lanes)
        cut = layer.weight.reshape(outputs // r, r, inputs // q, q)
        unit, column = np.nonzero(cut.any((1, 3)))
        count = np.bincount(unit, minlength=outputs // r)
        starts = np.concatenate([[0], np.cumsum(-(-count // turn))])
        at = np.arange(len(unit)) + np.repeat(turn * starts[:-1] - (np.cumsum(count) - count), count)
        self._starts: NDArray[np.int64] = starts.astype(np.int64)
        self._indices = aligned(int(starts[-1]) * turn, np.uint32 if inputs > 65_536 else np.uint16)
        self._indices[at] = column * q
        self._values = aligned(int(starts[-1]) * turn * r * q)
        self._values.reshape(-1, q, r)[at] = cut[unit, :, column].transpose(0, 2, 1)
        self._end = RowEnd(layer)
        self.ir = (
            self._end.declared(min(r, host.lanes))
            + _declared(r, host.lanes)
            + _code(self._end, r, q, inputs > 65_536, host.lanes)
        )

    @property
    def nbytes(self) -> int:
        """Of the weights: indices and values."""
        return self._indices.nbytes + self._values.nbytes

    @property
    def bytes(self) -> int:
        """Of all else that it holds."""
        return self._end.bytes + self._starts.nbytes

    def dense(self) -> Floats:
        """The weight, bit for bit but for −0."""
        r, q = self.rows, self.columns
        weight = np.zeros(self._shape, np.float32)
        blocks = self._values.reshape(-1, q, r)
        kept = np.flatnonzero(blocks.any((1, 2)))
        units = np.repeat(np.arange(len(self._starts) - 1), np.diff(self._starts) * self._turn)[kept]
        columns = self._indices[kept].astype(np.int64) // q
        weight.reshape(self._shape[0] // r, r, self._shape[1] // q, q)[units, :, columns] = blocks[kept].transpose(0, 2, 1)
        return weight

    def scratch(self, parts: int) -> int:  # noqa: ARG002
        """None."""
        return 0

    def words(self, at: Mapping[str, int], scratch: int, parts: int) -> list[int]:  # noqa: ARG002
        """The words of a call."""
        arrays = [a.ctypes.data for a in (self._starts, self._indices, self._values)]
        return [*self._end.words(at), at[self._source], len(self._starts) - 1, *arrays]


def _turn(r: int, q: int, lanes: int) -> int:
    """Blocks of a turn of the loop: whole vectors, about as many as hide the latency."""
    area = r * q
    return max(1, (SUMS if r > lanes else SUMS // 2) * lanes // area)


def _declared(r: int, lanes: int) -> str:
    v = f"<{lanes} x float>"
    return "" if r >= lanes else f"declare {v} @llvm.fmuladd.v{lanes}f32({v}, {v}, {v})\n"


def _code(end: RowEnd, r: int, q: int, wide: bool, lanes: int) -> str:
    """The routine: its part of the rows, r at a time."""
    v, w, turn = f"<{lanes} x float>", Writer(), _turn(r, q, lanes)
    side = max(1, r // lanes)  # vectors of rows
    count = turn * r * q // lanes  # multiply-adds of a turn
    sums = min(count, SUMS)
    w.lines.append(SIGNATURE.format(name="run"))
    w.label("entry")
    source, starts, indices, values = (w.word(k, "ptr") for k in (SOURCE, STARTS, INDICES, VALUES))
    units, following = w.word(UNITS), w("add i64 %part, 1")
    start = w(f"udiv i64 {w(f'mul i64 {units}, %part')}, %parts")
    stop = w(f"udiv i64 {w(f'mul i64 {units}, {following}')}, %parts")
    w.do(f"%any = icmp ult i64 {start}, {stop}")
    w.do("br i1 %any, label %unit, label %end")
    w.label("unit")
    w.do(f"%u = phi i64 [{start}, %entry], [%unext, %finish]")
    head = w(f"getelementptr i64, ptr {starts}, i64 %u")
    first, last = w(f"load i64, ptr {head}, align 8"), w(f"load i64, ptr {w.step(head, 8)}, align 8")
    size = turn * (4 if wide else 2)
    begin = [
        w(f"getelementptr i8, ptr {p}, i64 {w(f'mul i64 {first}, {n}')}")
        for p, n in ((indices, size), (values, 4 * turn * r * q))
    ]
    w.do(f"%empty = icmp eq i64 {first}, {last}")
    w.do("br i1 %empty, label %finish, label %turn")
    w.label("turn")
    w.do(f"%i = phi i64 [{first}, %unit], [%inext, %turn]")
    w.do(f"%ip = phi ptr [{begin[0]}, %unit], [%ipnext, %turn]")
    w.do(f"%vp = phi ptr [{begin[1]}, %unit], [%vpnext, %turn]")
    chain = [f"%s{k}" for k in range(sums)]
    for name in chain:
        w.do(f"{name} = phi {v} [zeroinitializer, %unit], [{name.replace('s', 't')}, %turn]")
    inputs, x = _inputs(w, source, r, q, turn, wide, lanes), ""
    for k in range(count):
        x = next(inputs) if k % side == 0 else x
        weights = w(f"load {v}, ptr {w.step('%vp', 4 * lanes * k)}, align 4")
        form = f"call {v} @llvm.fmuladd.v{lanes}f32({v} {x}, {v} {weights}, {v} {chain[k % sums]})"
        if k + sums >= count:
            w.do(f"%t{k % sums} = {form}")
        else:
            chain[k % sums] = w(form)
    w.do("%inext = add i64 %i, 1")
    w.do(f"%ipnext = getelementptr i8, ptr %ip, i64 {size}")
    w.do(f"%vpnext = getelementptr i8, ptr %vp, i64 {4 * turn * r * q}")
    w.do(f"%more = icmp ult i64 %inext, {last}")
    w.do("br i1 %more, label %turn, label %finish")
    w.label("finish")
    for k in range(sums):
        w.do(f"%e{k} = phi {v} [zeroinitializer, %unit], [%t{k}, %turn]")
    place = w(f"mul i64 %u, {r}")
    for k in range(side):
        total = added(w, [f"%e{i}" for i in range(k, sums, side)], lanes)
        width = lanes
        while width > r:
            width //= 2
            low, high = (", ".join(f"i32 {i}" for i in range(b, b + width)) for b in (0, width))
            wider, half = f"<{2 * width} x float>", f"<{width} x float>"
            parts = [w(f"shufflevector {wider} {total}, {wider} undef, <{width} x i32> <{pick}>") for pick in (low, high)]
            total = w(f"fadd {half} {parts[0]}, {parts[1]}")
        end.emit(w, total, width, w(f"add i64 {place}, {k * lanes}"))
    w.do("%unext = add i64 %u, 1")
    w.do(f"%again = icmp ult i64 %unext, {stop}")
    w.do("br i1 %again, label %unit, label %end")
    w.label("end")
    w.do("ret void")
    w.lines.append("}")
    return w.text()


def _inputs(w: Writer, source: str, r: int, q: int, turn: int, wide: bool, lanes: int) -> Iterator[str]:
    """The vectors of inputs of a turn, in the order of its values, each made when it is asked for."""
    v, across = f"<{lanes} x float>", max(1, lanes // r)  # inputs in a vector
    kind, size = ("i32", 4) if wide else ("i16", 2)
    together = min(q, across)  # inputs that one load brings
    few, spread = f"<{together} x float>", ", ".join(f"i32 {k // r % together}" for k in range(lanes))
    several = across // together  # loads that make a vector
    block, vector = "", ""
    for k in range(turn * q // together):
        column = k * together % q
        if column == 0:
            number = w(f"load {kind}, ptr {w.step('%ip', size * (k * together // q))}, align {size}")
            block = w(f"getelementptr float, ptr {source}, i64 {w(f'zext {kind} {number} to i64')}")
        x = w(f"load {few}, ptr {w.step(block, 4 * column)}, align 4")
        x = w(f"shufflevector {few} {x}, {few} undef, <{lanes} x i32> <{spread}>")
        begin = k % several * together * r
        mine = range(begin, begin + together * r)
        pick = ", ".join(f"i32 {i + lanes if i in mine else i}" for i in range(lanes))
        vector = w(f"shufflevector {v} {vector}, {v} {x}, <{lanes} x i32> <{pick}>") if begin else x
        if (k + 1) % several == 0:
            yield vector
