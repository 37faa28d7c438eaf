"""y = W x + b for one input and a sparse W: a lane is an output row, and each lane has its own input (no gather instruction).

Two ways to bring a row's inputs into its lane. Of V inputs that lie in one register a lane takes the one that it wants by a permutation:

    window of V inputs; step s = 0, 1, … steps − 1:   sum[k] += value[k] · x[window · V + pick[k]],   the (s + 1)th live one of row k

3 bits (AVX2, V = 8) or 4 bits (AVX-512, V = 16) and a value for each lane, whether it has such a one or not: at density d a step is
P(Binomial(V, d) > s) full. What is left goes through a list: V numbers of inputs, V values, the inputs loaded one by one. There a group of
V rows is as long as its longest row, so that rows are sorted by what is left of them. Machines of 4 lanes have the list alone.

    bytes   (4.375 or 4.5) / fullness for a live weight in a step, 6 in the list (8 with more than 65 536 inputs)

``steps`` is chosen by counting: cycles = STEP · windows · steps + ENTRY · V · length of the list, summed over groups, at no more than 8
bytes for a live weight: 1 at a density of .1, 2 at .2, none below about .08. The code depends on
the number of steps and the epilogue, on no size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.kernels.row_ends import FIRST, RowEnd, added, check_vectors
from quorate.runtime.sparse.machine.emitting import SIGNATURE, Writer
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.network import Floats, Linear

SOURCE, GROUPS, ROWS, STARTS, WINDOWS, INDICES, VALUES = range(FIRST, FIRST + 7)
"""Words of a call after those of the epilogue. STARTS: per group the first word of indices, the first value, the list's length."""

FOLD = 4
"""Windows of one turn of the loop, each with a sum of its own."""

PAIR = 2
"""Entries of the list that are taken at a time, each with a sum of its own."""

STEP, ENTRY = 2.0, 0.8
"""Cycles of a step of V rows, and of one weight in the list; measured on Zen 3."""

MOST_STEPS, MOST_BYTES = 4, 8
"""The most that is chosen, and bytes for a live weight in it."""


class Gathered:
    """A sparse matrix over the vector of one input.

    Args:
        layer: weight (O, F), dead ones 0.
        source, target: vectors of one input; ``target`` None where only the sums are kept.
        host: the machine.
        steps: permutations of each window, 0 for none; by default chosen by counting.

    Attributes:
        live: weights that are not 0.
        steps: as chosen.

    Raises:
        ValueError: planes that aren't such vectors; ``steps`` below 0 or where the machine has no permutation of a register.
    """

    def __init__(self, layer: Linear, source: Planes, target: Planes | None, host: Host, *, steps: int | None = None) -> None:
        check_vectors(layer, source, target)
        lanes = host.lanes
        if steps is not None and not 0 <= steps <= (MOST_STEPS if lanes > 4 else 0):
            raise ValueError(f"{layer.name}: steps={steps} on {host.name}: expected 0 … {MOST_STEPS if lanes > 4 else 0}")
        self.name, self._source, self._lanes, self._shape = layer.name, layer.source, lanes, layer.weight.shape
        outputs, inputs = layer.weight.shape
        windows = -(-inputs // (FOLD * lanes)) * FOLD
        row, column = np.nonzero(layer.weight)
        rank = _ranks(row * windows + column // lanes)
        self.live = len(row)
        self.steps = _best_steps(row, rank, outputs, windows, lanes) if steps is None else steps
        self._wide = wide = inputs > 65_536
        left = np.bincount(row[rank >= self.steps], minlength=outputs)
        order = _sorted(left, lanes)
        self._rows = order.astype(np.int32)
        self._windows = windows if self.steps else 0
        self._starts, self._indices, self._values = _stream(
            row, column, layer.weight[row, column], rank, order, left, self.steps, self._windows, lanes, wide
        )
        self._end = RowEnd(layer, order)
        self.ir = self._end.declared(lanes) + _code(self._end, self.steps, wide, lanes)

    @property
    def nbytes(self) -> int:
        """Of the weights: indices and values."""
        return self._indices.nbytes + self._values.nbytes

    @property
    def bytes(self) -> int:
        """Of all else that it holds."""
        return self._end.bytes + self._rows.nbytes + self._starts.nbytes

    def dense(self) -> Floats:
        """The weight, bit for bit but for −0."""
        weight, lanes, picks = np.zeros(self._shape, np.float32), self._lanes, self._windows * self.steps
        lane, bits = np.arange(lanes), lanes.bit_length() - 1
        window = np.repeat(np.arange(self._windows), self.steps)[:, None] * lanes
        for (first, base, length), rows in zip(self._starts, self._rows.reshape(-1, lanes), strict=True):
            words = self._indices[first : first + picks * lanes // 8].reshape(picks, max(1, lanes // 8))
            picked = window + (words[:, lane // 8] >> (bits * (lane % 8)).astype(np.uint32) & (lanes - 1))
            numbers = self._indices[first + picks * lanes // 8 :].view(np.uint32 if self._wide else np.uint16)
            column = np.concatenate([picked, numbers[: length * lanes].reshape(length, lanes)])
            value = self._values[base : base + column.size].reshape(column.shape)
            live = value != 0
            weight[np.broadcast_to(rows, column.shape)[live], column[live]] = value[live]
        return weight

    def scratch(self, parts: int) -> int:  # noqa: ARG002
        """None."""
        return 0

    def words(self, at: Mapping[str, int], scratch: int, parts: int) -> list[int]:  # noqa: ARG002
        """The words of a call."""
        arrays = [a.ctypes.data for a in (self._rows, self._starts)]
        return [
            *self._end.words(at), at[self._source], len(self._starts), *arrays, self._windows,
            self._indices.ctypes.data, self._values.ctypes.data,
        ]  # fmt: skip


def _ranks(key: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of ascending keys: how many equal ones are before each."""
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return np.arange(len(key)) - np.repeat(first, np.diff(first, append=len(key)))


def _sorted(left: NDArray[np.int64], lanes: int) -> NDArray[np.int64]:
    """Rows in groups of one length each, the last row again and again in what its group lacks; short and long groups by turns.

    Any range of groups, such as a thread gets, then has about its share of the work.
    """
    order = np.argsort(left, kind="stable")
    groups = np.pad(order, (0, -len(order) % lanes), mode="edge").reshape(-1, lanes)
    turns = np.empty(len(groups), np.int64)
    turns[::2], turns[1::2] = np.arange(-(-len(groups) // 2)), np.arange(len(groups) - 1, -(-len(groups) // 2) - 1, -1)
    return groups[turns].reshape(-1)


def _best_steps(row: NDArray[np.int64], rank: NDArray[np.int64], outputs: int, windows: int, lanes: int) -> int:
    """The number of steps of the least cycles, of those that keep to :data:`MOST_BYTES`."""
    best, least = 0, math.inf
    for steps in range(MOST_STEPS + 1 if lanes > 4 else 1):
        left = np.sort(np.bincount(row[rank >= steps], minlength=outputs))
        longest = int(left[::-1][::lanes].sum())
        taken = -(-outputs // lanes) * windows * steps
        cycles = STEP * taken + ENTRY * lanes * longest
        if cycles < least and (steps == 0 or (4 * lanes + lanes // 2) * taken + 6 * lanes * longest <= MOST_BYTES * len(row)):
            best, least = steps, cycles
    return best


def _stream(
    row: NDArray[np.int64], column: NDArray[np.int64], value: NDArray[np.float32], rank: NDArray[np.int64], order: NDArray[np.int64],
    left: NDArray[np.int64], steps: int, windows: int, lanes: int, wide: bool,
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:  # fmt: skip
    """Per group (first word of indices, first value, length of the list); the indices, in words of 32 bits; the values."""
    groups = len(order) // lanes
    length = -(-left[order].reshape(groups, lanes).max(1) // PAIR) * PAIR
    words, entry = lanes // 8, lanes if wide else lanes // 2  # of a step's picks, of an entry's numbers
    value_starts = np.concatenate([[0], np.cumsum(lanes * (windows * steps + length))])
    index_starts = np.concatenate([[0], np.cumsum(windows * steps * words + entry * length)])
    counts = np.bincount(row, minlength=len(left))
    firsts = np.cumsum(counts) - counts
    many = counts[order]  # live weights by place
    take = np.repeat(firsts[order] - (np.cumsum(many) - many), many) + np.arange(many.sum())
    place = np.repeat(np.arange(len(order)), many)
    column, value, rank = column[take], value[take], rank[take]
    values, indices = aligned(int(value_starts[-1])), aligned(int(index_starts[-1]), np.uint32)
    group, lane = place // lanes, place % lanes
    if steps:
        picked = rank < steps
        g, k, c = group[picked], lane[picked], column[picked]
        step = c // lanes * steps + rank[picked]
        values[value_starts[g] + step * lanes + k] = value[picked]
        bits = lanes.bit_length() - 1
        at = index_starts[g] + step * words + k // 8
        np.add.at(indices, at, (c % lanes << bits * (k % 8)).astype(np.uint32))
        group, place, column, value = group[~picked], place[~picked], column[~picked], value[~picked]
    number = _ranks(place)
    values[value_starts[group] + (windows * steps + number) * lanes + place % lanes] = value
    kind = indices if wide else indices.view(np.uint16)
    kind[(index_starts[group] + windows * steps * words) * (1 if wide else 2) + number * lanes + place % lanes] = column
    return np.stack([index_starts[:-1], value_starts[:-1], length], 1), indices, values


def _code(end: RowEnd, steps: int, wide: bool, lanes: int) -> str:
    """The routine: its part of the groups."""
    v, w = f"<{lanes} x float>", Writer()
    permute = {8: "llvm.x86.avx2.permps", 16: "llvm.x86.avx512.permvar.sf.512"}.get(lanes, "")
    if steps:
        w.lines.append(f"declare {v} @{permute}({v}, <{lanes} x i32>)")
    w.lines.append(SIGNATURE.format(name="run"))
    w.label("entry")
    source, rows, starts, indices, values = (w.word(k, "ptr") for k in (SOURCE, ROWS, STARTS, INDICES, VALUES))
    groups, windows = w.word(GROUPS), w.word(WINDOWS)
    start = w(f"udiv i64 {w(f'mul i64 {groups}, %part')}, %parts")
    following = w("add i64 %part, 1")
    stop = w(f"udiv i64 {w(f'mul i64 {groups}, {following}')}, %parts")
    w.do(f"%any = icmp ult i64 {start}, {stop}")
    w.do("br i1 %any, label %group, label %end")
    w.label("group")
    w.do(f"%g = phi i64 [{start}, %entry], [%gnext, %finish]")
    head = w(f"getelementptr [3 x i64], ptr {starts}, i64 %g")
    first, base, length = (w(f"load i64, ptr {w.step(head, 8 * k)}, align 8") for k in range(3))
    first, base = w(f"getelementptr i32, ptr {indices}, i64 {first}"), w(f"getelementptr float, ptr {values}, i64 {base}")
    before, total = "%group", "zeroinitializer"
    if steps:
        first, base, total = _picking(w, source, windows, first, base, steps, lanes, permute)
        before = "%picked"
    w.do(f"%empty = icmp eq i64 {length}, 0")
    w.do("br i1 %empty, label %finish, label %list")
    w.label("list")
    w.do(f"%i = phi i64 [0, {before}], [%inext, %list]")
    begin = [total] + ["zeroinitializer"] * (PAIR - 1)
    for k in range(PAIR):
        w.do(f"%l{k} = phi {v} [{begin[k]}, {before}], [%m{k}, %list]")
    kind = f"[{lanes} x {'i32' if wide else 'i16'}]"
    for k in range(PAIR):
        entry = w(f"add i64 %i, {k}")
        x = gathered(w, source, w(f"getelementptr {kind}, ptr {first}, i64 {entry}"), wide, lanes)
        weights = w(f"load {v}, ptr {w(f'getelementptr {v}, ptr {base}, i64 {entry}')}, align 4")
        w.do(f"%m{k} = call {v} @llvm.fmuladd.v{lanes}f32({v} {x}, {v} {weights}, {v} %l{k})")
    w.do(f"%inext = add i64 %i, {PAIR}")
    w.do(f"%more = icmp ult i64 %inext, {length}")
    w.do("br i1 %more, label %list, label %finish")
    w.label("finish")
    for k in range(PAIR):
        w.do(f"%e{k} = phi {v} [{begin[k]}, {before}], [%m{k}, %list]")
    total = added(w, [f"%e{k}" for k in range(PAIR)], lanes)
    place = w(f"mul i64 %g, {lanes}")
    end.emit(w, total, lanes, place, w(f"getelementptr i32, ptr {rows}, i64 {place}"))
    w.do("%gnext = add i64 %g, 1")
    w.do(f"%again = icmp ult i64 %gnext, {stop}")
    w.do("br i1 %again, label %group, label %end")
    w.label("end")
    w.do("ret void")
    w.lines.append("}")
    return w.text()


def gathered(w: Writer, source: str, indices: str, wide: bool, lanes: int) -> str:
    """A vector of the inputs whose numbers (16 bits each, 32 if ``wide``) lie at ``indices``; two numbers of 16 bits in one load."""
    v, x = f"<{lanes} x float>", "undef"
    for k in range(lanes):
        if wide or k % 2 == 0:
            loaded = w(f"load i32, ptr {w.step(indices, (4 if wide else 2) * k)}, align 4")
        number = loaded if wide else w(f"lshr i32 {loaded}, 16") if k % 2 else w(f"and i32 {loaded}, 65535")
        address = w(f"getelementptr float, ptr {source}, i64 {w(f'zext i32 {number} to i64')}")
        x = w(f"insertelement {v} {x}, float {w(f'load float, ptr {address}, align 4')}, i32 {k}")
    return x


def _picking(
    w: Writer, source: str, windows: str, indices: str, values: str, steps: int, lanes: int, permute: str
) -> tuple[str, str, str]:
    """The loop over windows. Returns where indices and values of the list begin, and the sum."""
    v, words, bits = f"<{lanes} x float>", lanes // 8, lanes.bit_length() - 1
    shifts = ", ".join(f"i32 {bits * (k % 8)}" for k in range(lanes))
    w.do("br label %pick")
    w.label("pick")
    w.do("%w = phi i64 [0, %group], [%wnext, %pick]")
    for name, begin in (("%x", source), ("%ip", indices), ("%vp", values)):
        w.do(f"{name} = phi ptr [{begin}, %group], [{name}next, %pick]")
    for f in range(FOLD):
        w.do(f"%s{f} = phi {v} [zeroinitializer, %group], [%t{f}, %pick]")
    for f in range(FOLD):
        window = w(f"load {v}, ptr {w.step('%x', 4 * lanes * f)}, align 4")
        total = f"%s{f}"
        for s in range(steps):
            t = f * steps + s
            packed = w(f"load <{words} x i32>, ptr {w.step('%ip', 4 * words * t)}, align 4")
            spread = ", ".join(f"i32 {k // 8}" for k in range(lanes))
            repeated = w(f"shufflevector <{words} x i32> {packed}, <{words} x i32> undef, <{lanes} x i32> <{spread}>")
            pick = w(f"lshr <{lanes} x i32> {repeated}, <{shifts}>")
            x = w(f"call {v} @{permute}({v} {window}, <{lanes} x i32> {pick})")
            weights = w(f"load {v}, ptr {w.step('%vp', 4 * lanes * t)}, align 4")
            form = f"call {v} @llvm.fmuladd.v{lanes}f32({v} {x}, {v} {weights}, {v} {total})"
            if s == steps - 1:
                w.do(f"%t{f} = {form}")
            else:
                total = w(form)
    w.do(f"%wnext = add i64 %w, {FOLD}")
    for name, size in (("%x", 4 * lanes * FOLD), ("%ip", 4 * words * steps * FOLD), ("%vp", 4 * lanes * steps * FOLD)):
        w.do(f"{name}next = getelementptr i8, ptr {name}, i64 {size}")
    w.do(f"%wmore = icmp ult i64 %wnext, {windows}")
    w.do("br i1 %wmore, label %pick, label %picked")
    w.label("picked")
    return "%ipnext", "%vpnext", added(w, [f"%t{f}" for f in range(FOLD)], lanes)
