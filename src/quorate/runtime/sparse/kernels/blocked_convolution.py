"""Convolutions whose consecutive outputs share their live places: several rows of sums at once.

    for each tile, block of channels, R outputs:   sums[k][t] += weight[k] · input[t],   k < R, t < T, over the live (c, ky, kx) of the R

An input vector is loaded once for R multiply-adds, a live place has one offset, and what a row costs beside its weights (its head, the
end of its loop that no processor foresees) is shared by R rows. A place takes T + R loads for T · R multiply-adds, .58 with 3 × 4 instead
of 1.03, so that multiply-adds alone bind. Tiles, packing, blocks of channels and the ends of rows are those of :mod:`convolving`.

    stream: for each block of channels, for each R rows: n, o (int32 each), then n / G times G offsets (uint16) and G · R values (float32)

with G = 2, or as many as there are sets of sums if these are more. A live weight takes 4 + 2 / R bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.kernels.activations import definitions
from quorate.runtime.sparse.kernels.convolution import Bound, Convolution
from quorate.runtime.sparse.kernels.convolving import BIAS, SCALE, SHIFT, Ending, driver, end_rows, packer
from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.kernels.streams import HEAD, Stream
from quorate.runtime.sparse.kernels.tiles import Form, Tile, Window, forms
from quorate.runtime.sparse.machine.emitting import Writer, declarations
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.network import Floats

ROWS = (4, 2)
"""Rows of sums at once that are worth a trial; the tile shrinks by as much."""


def blocked_forms(
    window: Window, channels: int, outputs: int, density: float, source: Planes, host: Host, rows: int
) -> Iterator[Form]:
    """Forms worth a trial for so many rows at once, the one that is best as a rule first: all sums in registers, and a quarter to spare."""
    for form in forms(window, channels, outputs, density, source, replace(host, registers=host.registers * 3 // 4 // rows + 2)):
        yield replace(form, sets=max(1, 8 // rows)) if form.mode == "direct" else form


def _together(sets: int) -> int:
    """Places of a turn of the loop."""
    return max(2, sets)


class BlockedStream(Stream):
    """The weight stream of blocks of R rows.

    Args:
        weight: (O, C, Kh, Kw) float32; O a multiple of ``rows``. A place that is live in one of R rows is stored for all.
        block: channels of a block.
        taps: byte of each (ky, kx) in a packed channel.
        packed: bytes of a packed channel.
        rows: R.
        together: G.

    Attributes:
        data: the stream, uint16 words.
        starts: (blocks, O + 1) byte of the head of each row's R, and of the block's end.
        live: weights that are not 0.
    """

    def __init__(self, weight: Floats, block: int, taps: Sequence[Sequence[int]], packed: int, rows: int, together: int) -> None:
        outputs, channels = weight.shape[:2]
        self.shape, self.block, self.packed = weight.shape, block, packed
        self.rows, self.together, self.taps = rows, together, np.array(taps, np.int64)
        blocks, places, units = -(-channels // block), self.taps.size, outputs // rows
        whole = np.zeros((outputs, blocks * block * places), np.float32)
        whole[:, : channels * places] = weight.reshape(outputs, -1)
        ordered = (
            whole.reshape(units, rows, blocks, block * places).transpose(2, 0, 3, 1).reshape(blocks * units, block * places, rows)
        )
        unit, place = np.nonzero(ordered.any(2))
        count = np.bincount(unit, minlength=blocks * units)
        turns = -(-count // together)
        starts = np.concatenate([[0], np.cumsum(2 * HEAD + self._turn * turns)])  # in words of 16 bits
        data = aligned(int(starts[-1]), np.uint16)
        data[starts[:-1, None] + np.arange(4)] = (
            np.stack([together * turns, rows * np.tile(np.arange(units), blocks)], 1).astype(np.int32).view(np.uint16)
        )
        rank = np.arange(len(unit)) - np.repeat(np.cumsum(count) - count, count)
        at = np.repeat(starts[:-1] + 2 * HEAD, count) + rank // together * self._turn
        data[at + rank % together] = self._offsets().astype(np.uint16)[place]
        values = (at + together + 2 * rows * (rank % together))[:, None] + np.arange(2 * rows)
        data[values] = np.ascontiguousarray(ordered[unit, place]).view(np.uint16)
        self.data, self.live = data, int(np.count_nonzero(weight))
        heads = np.repeat(starts[:-1].reshape(blocks, units), rows, axis=1)
        self.starts: NDArray[np.int64] = 2 * np.concatenate([heads, starts[units::units, None]], axis=1).astype(np.int64)

    @property
    def _turn(self) -> int:
        """Words of 16 bits."""
        return self.together * (1 + 2 * self.rows)

    def fits(self, block: int, taps: Sequence[Sequence[int]], packed: int, rows: int = 1, together: int = 4) -> bool:
        """Whether a stream of these would be this one; one of single rows never is."""
        return (rows, together) == (self.rows, self.together) and super().fits(block, taps, packed)

    def dense(self) -> Floats:
        """The weight (O, C, Kh, Kw), bit for bit but for −0."""
        outputs, channels, *kernel = self.shape
        blocks, places = len(self.starts), self.taps.size
        inverse = np.zeros(65_536, np.int64)
        inverse[self._offsets()] = np.arange(self.block * places)
        heads = np.concatenate([self.starts[:, : -1 : self.rows], self.starts[:, -1:]], axis=1) // 2
        turns = (np.diff(heads, axis=1).reshape(-1) - 2 * HEAD) // self._turn
        unit = np.repeat(np.arange(len(turns)), turns)
        first = np.repeat(heads[:, :-1].reshape(-1) + 2 * HEAD, turns)
        at = first + self._turn * (np.arange(len(unit)) - np.repeat(np.cumsum(turns) - turns, turns))
        offsets = self.data[at[:, None] + np.arange(self.together)].reshape(-1)
        words = self.data[at[:, None] + self.together + np.arange(2 * self.rows * self.together)]
        values = np.ascontiguousarray(words).view(np.float32).reshape(-1, self.rows)
        kept = values.any(1)
        ordered = np.zeros((blocks * outputs // self.rows, self.block * places, self.rows), np.float32)
        ordered[np.repeat(unit, self.together)[kept], inverse[offsets[kept]]] = values[kept]
        whole = ordered.reshape(blocks, outputs // self.rows, -1, self.rows).transpose(1, 3, 0, 2).reshape(outputs, -1)
        return np.ascontiguousarray(whole[:, : channels * places]).reshape(outputs, channels, *kernel)


class BlockedConvolution(Convolution):
    """One layer whose outputs share their live places in blocks, in one form on given planes.

    Args:
        layer: without weight.
        form: how it is cut into tiles, of :func:`blocked_forms`.
        planes: {array: its planes} of all that it reads and writes.
        host: the machine.
        rows: sums of how many rows are kept at once; the outputs must be a multiple.

    Raises:
        ValueError: planes that can't be cut so; outputs that are no multiple; more sums than registers.
    """

    def __init__(self, layer: Bound, form: Form, planes: Mapping[str, Planes], host: Host, rows: int) -> None:
        if rows < 2 or layer.outputs % rows:
            raise ValueError(
                f"{layer.name}: {rows} rows at once of {layer.outputs}: expected at least 2, that divide the outputs"
            )
        self.rows = rows
        super().__init__(layer, form, planes, host)

    def written(self, source: Planes, blocks: int, host: Host) -> str:
        sums = self.rows * len(self.tile.reads) * self.form.sets
        if sums > host.registers:
            raise ValueError(f"{self.name}: {sums} sums of {self.rows} rows at once, there are {host.registers} registers")
        return _code(self.tile, source, self.ending, blocks, host, self.rows)

    def takes(self, stream: Stream) -> bool:
        return isinstance(stream, BlockedStream) and stream.fits(
            self.form.block, self.tile.taps, self.tile.packed, self.rows, _together(self.form.sets)
        )

    def made(self, weight: NDArray[Any]) -> BlockedStream:
        """A stream of this form. ``weight``: (O, C, Kh, Kw), or (O, C)."""
        shaped = weight.reshape(self.layer.outputs, self.layer.channels, *self.layer.kernel)
        return BlockedStream(shaped, self.form.block, self.tile.taps, self.tile.packed, self.rows, _together(self.form.sets))


def _code(tile: Tile, source: Planes, ending: Ending, blocks: int, host: Host, rows: int) -> str:
    """The module, as :func:`quorate.runtime.sparse.kernels.convolving.code`."""
    names = [("only", True, True)] if blocks == 1 else [("begin", True, False), ("middle", False, False), ("finish", False, True)]
    parts = [declarations(host.lanes), definitions([ending.activation], host.lanes)]
    parts += [_rows(name, tile, ending, first, last, host, rows) for name, first, last in names]
    if tile.copies:
        parts.append(packer(tile.copies, 4 * source.inner * source.plane, tile.packed))
    parts.append(driver(bool(tile.copies), blocks == 1))
    return "\n".join(parts)


def _rows(name: str, tile: Tile, ending: Ending, first: bool, last: bool, host: Host, rows: int) -> str:
    """void name(args, source, stream, count, sums, target, add, raw): all rows of one block on one tile, ``rows`` at once."""
    lanes, count, sets = host.lanes, len(tile.reads), tile.form.sets
    v, w, together = f"<{lanes} x float>", Writer(), _together(tile.form.sets)
    turn = 2 * together * (1 + 2 * rows)
    w.lines.append(
        f"define internal void @{name}(ptr noalias %args, ptr noalias %source, ptr noalias %stream, i64 %count, ptr noalias %sums, "
        'ptr noalias %target, ptr noalias %add, ptr noalias %raw) nounwind "no-builtins" {'
    )
    w.label("entry")
    bias, scale, shift = (w.word(place, "ptr") for place in (BIAS, SCALE, SHIFT))
    w.do("%none = icmp eq i64 %count, 0")
    w.do("br i1 %none, label %end, label %row")
    w.label("row")
    w.do("%r = phi i64 [0, %entry], [%rnext, %flush]")
    w.do("%head = phi ptr [%stream, %entry], [%tail, %flush]")
    n = w("load i32, ptr %head, align 2")
    number = w(f"load i32, ptr {w.step('%head', 4)}, align 2")
    o = w(f"zext i32 {number} to i64")
    begin = w.step("%head", 8)
    turns = w(f"udiv exact i64 {w(f'zext i32 {n} to i64')}, {together}")
    w.do(f"%tail = getelementptr i8, ptr {begin}, i64 {w(f'mul i64 {turns}, {turn}')}")
    sums = w(f"getelementptr i8, ptr %sums, i64 {w(f'mul i64 {o}, {4 * count * lanes}')}")
    initial = []
    for k in range(rows):
        if first:
            address = w.step(w(f"getelementptr float, ptr {bias}, i64 {o}"), 4 * k)
            initial += [w.spread(w(f"load float, ptr {address}, align 4"), lanes)] * count
        else:
            initial += [w(f"load {v}, ptr {w.step(sums, 4 * lanes * (k * count + t))}, align 4") for t in range(count)]
    width = count * rows
    initial += ["zeroinitializer"] * (width * (sets - 1))
    w.do(f"%empty = icmp eq i32 {n}, 0")
    w.do("br i1 %empty, label %flush, label %body")
    w.label("body")
    w.do(f"%at = phi ptr [{begin}, %row], [%atnext, %body]")
    for i, start in enumerate(initial):
        w.do(f"%a{i} = phi {v} [{start}, %row], [%b{i}, %body]")
    _multiply(w, tile, rows, together, lanes)
    w.do(f"%atnext = getelementptr i8, ptr %at, i64 {turn}")
    w.do("%more = icmp ult ptr %atnext, %tail")
    w.do("br i1 %more, label %body, label %flush")
    w.label("flush")
    for i, start in enumerate(initial):
        w.do(f"%e{i} = phi {v} [{start}, %row], [%b{i}, %body]")
    total = [f"%e{i}" for i in range(width)]
    for s in range(1, sets):
        total = [w(f"fadd {v} {total[i]}, %e{s * width + i}") for i in range(width)]
    for k in range(rows):
        mine = total[k * count : (k + 1) * count]
        if last:
            end_rows(w, tile.pieces, mine, ending, w(f"add i64 {o}, {k}"), (scale, shift), lanes)
        else:
            for t in range(count):
                w.do(f"store {v} {mine[t]}, ptr {w.step(sums, 4 * lanes * (k * count + t))}, align 4")
    w.do(f"%rnext = add i64 %r, {rows}")
    w.do("%again = icmp ult i64 %rnext, %count")
    w.do("br i1 %again, label %row, label %end")
    w.label("end")
    w.do("ret void")
    w.lines.append("}")
    return w.text()


def _multiply(w: Writer, tile: Tile, rows: int, together: int, lanes: int) -> None:
    """The places of one turn: inputs and weights come to registers once each, the fewer of them first."""
    count, sets, v = len(tile.reads), tile.form.sets, f"<{lanes} x float>"
    sums = {i: f"%a{i}" for i in range(count * rows * sets)}
    kind = f"i{16 * together}"
    offsets = w(f"load {kind}, ptr %at, align 2")
    for j in range(together):
        shifted = w(f"lshr {kind} {offsets}, {16 * j}") if j else offsets
        narrow = w(f"trunc {kind} {shifted} to i16")
        base = w(f"getelementptr i8, ptr %source, i64 {w(f'zext i16 {narrow} to i64')}")

        def weight(k: int, j: int = j) -> str:
            return w.spread(w(f"load float, ptr {w.step('%at', 2 * together + 4 * (rows * j + k))}, align 2"), lanes)

        def read(t: int, base: str = base) -> str:
            return w(f"load {v}, ptr {w.step(base, tile.reads[t])}, align 4")

        few, many = (count, rows) if count <= rows else (rows, count)
        kept = [read(t) if count <= rows else weight(t) for t in range(few)]
        for m in range(many):
            other = weight(m) if count <= rows else read(m)
            for f in range(few):
                t, k = (f, m) if count <= rows else (m, f)
                i = (j % sets * rows + k) * count + t
                form = f"call {v} @llvm.fmuladd.v{lanes}f32({v} {kept[f]}, {v} {other}, {v} {sums[i]})"
                if j + sets >= together:
                    w.do(f"%b{i} = {form}")
                else:
                    sums[i] = w(form)
