"""Pooling: the largest or the mean of windows, of whole planes; planes laid out as a vector.

    target[c, y, x] = max or Σ over ky, kx of source[c, y·s − top + ky, x·s − left + kx], of pixels inside the plane; Σ over their number

For each row of the target, first down, then across: the rows of a window are reduced pixel by pixel into one line of scratch memory, which
has −∞ (or 0) where the window reads padding; then the line is read at each kx, strided, and reduced to the row. So the inner loops know
nothing of borders, and one routine serves both layouts and every geometry. Rows of the target are independent: results do not depend on how
they are shared among parts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quorate.runtime.sparse.kernels.planes import LINE, Planes, up
from quorate.runtime.sparse.kernels.tiles import Window
from quorate.runtime.sparse.machine.emitting import Writer, constant
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.machine.walking import (
    begun,
    contiguous,
    copied,
    ended,
    kept,
    loop,
    read,
    room,
    row,
    units,
    vectors,
    write,
)
from quorate.runtime.sparse.network import Flatten, Mean, Pool

SOURCE, TARGET, SCRATCH, ROWS, DIVISORS = range(5)
"""The words of a call. ROWS: per row of the target the byte of its first source row in a plane, and how many there are; DIVISORS: per float
of the target's row the columns that count."""
GROUP = 4
"""Vectors that go down the rows together."""


class Pooling:
    """The largest or the mean of windows.

    Args:
        layer: the pooling.
        source, target: planes of its arrays, of as many images side by side.
        host: the machine.

    Raises:
        ValueError: planes that do not fit the layer or each other; a window that lies wholly in the padding.
    """

    def __init__(self, layer: Pool, source: Planes, target: Planes, host: Host) -> None:
        self.name, self.layer = layer.name, layer
        _check_images(layer.name, source, target, host)
        window = Window.of(layer.kernel, layer.stride, layer.pads, source.height, source.width)
        if (target.channels, target.height, target.width) != (source.channels, window.height, window.width):
            raise ValueError(
                f"{layer.name}: expected a target of {source.channels} × {window.height} × {window.width}, "
                f"got {target.channels} × {target.height} × {target.width}"
            )
        down = _inside(layer, 0, source.height, target.height)
        across = _inside(layer, 1, source.width, target.width)
        s = 4 * source.inner
        self._rows = np.stack([down[:, 0] * source.pitch * s, down[:, 1]], 1)
        counting = np.repeat(across[:, 1] if not layer.counted else np.full(target.width, layer.kernel[1]), source.inner)
        self._divisors = np.ones(up(len(counting), host.lanes), np.float32)
        self._divisors[: len(counting)] = counting
        # The line in floats: the plane's row begins at a whole vector, its padding before it and what the last vector reads after it
        self._first = up(layer.pads[1] * source.inner, host.lanes)
        last = up(target.width * source.inner, host.lanes) // source.inner * layer.stride[1] + layer.kernel[1]
        end = max(up(source.width * source.inner, host.lanes), (last - layer.pads[1]) * source.inner)
        self._line = up(4 * (self._first + end), LINE)
        self.ir = self._code(source, target, host.lanes)

    @property
    def bytes(self) -> int:
        """Of its tables."""
        return self._rows.nbytes + self._divisors.nbytes

    def scratch(self, parts: int) -> int:
        return parts * self._line

    def words(self, at: Mapping[str, int], scratch: int, parts: int) -> list[int]:  # noqa: ARG002
        return [at[self.layer.source], at[self.layer.target], scratch, self._rows.ctypes.data, self._divisors.ctypes.data]

    def _code(self, source: Planes, target: Planes, lanes: int) -> str:
        w, v = begun(), f"<{lanes} x float>"
        source_at, target_at, scratch, rows, divisors = (
            w.word(place, "ptr") for place in (SOURCE, TARGET, SCRATCH, ROWS, DIVISORS)
        )
        line = w(f"getelementptr i8, ptr {scratch}, i64 {w(f'mul i64 %part, {self._line}')}")
        with loop(w, self._line // (4 * lanes)) as each:
            place = w(f"mul i64 {each.index}, {4 * lanes}")
            w.do(f"store {v} {self._nothing(lanes)}, ptr {w.step(line, place)}, align 4")
        with units(w, target.channels * target.height) as unit:
            c, y = w(f"udiv i64 {unit}, {target.height}"), w(f"urem i64 {unit}, {target.height}")
            table = w(f"getelementptr [2 x i64], ptr {rows}, i64 {y}")
            begin, count = w(f"load i64, ptr {table}, align 8"), w(f"load i64, ptr {w.step(table, 8)}, align 8")
            self._down(w, w.step(row(w, source_at, source, c, "0"), begin), count, w.step(line, 4 * self._first), source, lanes)
            first = w.step(line, 4 * (self._first - self.layer.pads[1] * source.inner))
            height = str(self.layer.kernel[0]) if self.layer.counted else count
            self._across(w, first, row(w, target_at, target, c, y), (divisors, height), target, lanes)
        return ended(w)

    def _nothing(self, lanes: int) -> str:
        """What padding is: it changes no result."""
        return constant(-np.inf if self.layer.kind == "max" else 0, lanes)

    def _combined(self, w: Writer, x: str, y: str, lanes: int) -> str:
        v = f"<{lanes} x float>"
        if self.layer.kind == "mean":
            return w(f"fadd {v} {x}, {y}")
        return w(
            f"select <{lanes} x i1> {w(f'fcmp ogt {v} {y}, {x}')}, {v} {y}, {v} {x}"
        )  # one instruction on x86, unlike maxnum

    def _down(self, w: Writer, source: str, count: str, line: str, planes: Planes, lanes: int) -> None:
        """``count`` rows of the source, reduced to a row of the line."""
        v, floats = f"<{lanes} x float>", planes.width * planes.inner
        whole, many = room(planes, lanes), -(-floats // lanes)
        groups = (many - 1) // GROUP

        def reduce(place: str, live: list[int]) -> None:
            with loop(w, count, carried=[(v, self._nothing(lanes))] * len(live)) as rows:
                at = w.step(w.step(source, place), w(f"mul i64 {rows.index}, {4 * planes.inner * planes.pitch}"))
                rows.following = [
                    self._combined(w, sofar, read(w, w.step(at, 4 * lanes * k), lanes, n, whole), lanes)
                    for k, (sofar, n) in enumerate(zip(rows.values, live, strict=True))
                ]
            for k, (value, n) in enumerate(zip(rows.values, live, strict=True)):
                inside = value if n == lanes else kept(w, value, lanes, n, self._nothing(lanes))
                w.do(f"store {v} {inside}, ptr {w.step(w.step(line, place), 4 * lanes * k)}, align 4")

        if groups:
            with loop(w, groups) as each:
                reduce(w(f"mul i64 {each.index}, {4 * lanes * GROUP}"), [lanes] * GROUP)
        left = range(groups * GROUP, many)
        reduce(str(4 * lanes * groups * GROUP), [min(lanes, floats - lanes * k) for k in left])

    def _across(self, w: Writer, line: str, target: str, divisors: tuple[str, str], planes: Planes, lanes: int) -> None:
        """The line, reduced to a row of the target. ``divisors``: columns that count, of each float; rows that count."""
        v, stride = f"<{lanes} x float>", self.layer.stride[1]
        if self.layer.kind == "mean":
            height = w.spread(w(f"sitofp i64 {divisors[1]} to float"), lanes)
        for place, count in vectors(w, planes.width * planes.inner, lanes):
            at = w.step(line, w(f"mul i64 {place}, {stride}"))
            with loop(w, self.layer.kernel[1], carried=[(v, self._nothing(lanes))]) as columns:
                p = w.step(at, w(f"mul i64 {columns.index}, {4 * planes.inner}"))
                columns.following = [
                    self._combined(w, columns.values[0], _strided(w, p, lanes, stride if planes.inner == 1 else 1), lanes)
                ]
            value = columns.values[0]
            if self.layer.kind == "mean":
                width = w(f"load {v}, ptr {w.step(divisors[0], place)}, align 4")
                value = w(f"fdiv {v} {value}, {w(f'fmul {v} {width}, {height}')}")
            write(w, w.step(target, place), value, lanes, count, room(planes, lanes))


class Averaging:
    """The mean of each plane, summed in float64.

    Args:
        layer: (C, H, W) → (C,).
        source, target: layouts of its arrays, of as many images side by side.
        host: the machine.

    Raises:
        ValueError: layouts that do not fit each other.
    """

    def __init__(self, layer: Mean, source: Planes, target: Planes, host: Host) -> None:
        self.name, self.layer = layer.name, layer
        _check_images(layer.name, source, target, host)
        if (target.channels, target.pixels) != (source.channels, 1):
            raise ValueError(
                f"{layer.name}: expected a target of {source.channels} numbers, got {target.channels} × {target.pixels}"
            )
        self.ir = _averaged(source, target, host.lanes)

    @property
    def bytes(self) -> int:
        """None: it has no tables."""
        return 0

    def scratch(self, parts: int) -> int:  # noqa: ARG002
        return 0

    def words(self, at: Mapping[str, int], scratch: int, parts: int) -> list[int]:  # noqa: ARG002
        return [at[self.layer.source], at[self.layer.target]]


class Flattening:
    """Planes as a vector, in the order channel, row, column.

    Args:
        layer: (C, H, W) → (C · H · W,).
        source, target: layouts of its arrays, of as many images side by side; the target's is a vector's.
        host: the machine.

    Raises:
        ValueError: layouts that do not fit each other.
    """

    def __init__(self, layer: Flatten, source: Planes, target: Planes, host: Host) -> None:
        self.name, self.layer = layer.name, layer
        _check_images(layer.name, source, target, host)
        size = source.channels * source.pixels
        if (target.channels, target.pixels, target.plane) != (size, 1, 1):
            got = f"{target.channels} planes of {target.pixels}, {target.plane} floats apart"
            raise ValueError(f"{layer.name}: expected a vector of {size} numbers, got {got}")
        self.ir = copied(source, contiguous(source), host.lanes)

    @property
    def bytes(self) -> int:
        """None: it has no tables."""
        return 0

    def scratch(self, parts: int) -> int:  # noqa: ARG002
        return 0

    def words(self, at: Mapping[str, int], scratch: int, parts: int) -> list[int]:  # noqa: ARG002
        return [at[self.layer.source], at[self.layer.target]]


def _inside(layer: Pool, axis: int, size: int, count: int) -> np.ndarray:
    """(count, 2): the first pixel of each window that lies inside the plane along an axis, and how many do."""
    start = np.arange(count, dtype=np.int64) * layer.stride[axis] - layer.pads[axis]
    first, stop = np.maximum(start, 0), np.minimum(start + layer.kernel[axis], size)
    if (stop <= first).any():
        raise ValueError(
            f"{layer.name}: a window lies wholly in the padding of {layer.pads}; give pads smaller than the kernel {layer.kernel}"
        )
    return np.stack([first, stop - first], 1)


def _check_images(name: str, source: Planes, target: Planes, host: Host) -> None:
    if source.inner != target.inner or source.inner not in (1, host.lanes):
        raise ValueError(
            f"{name}: expected 1 or {host.lanes} images side by side in all layouts, got {source.inner} and {target.inner}"
        )


def _strided(w: Writer, pointer: str, lanes: int, stride: int) -> str:
    """A vector of floats ``stride`` apart; ``lanes · stride`` floats may be read."""
    v = f"<{lanes} x float>"
    if stride == 1:
        return w(f"load {v}, ptr {pointer}, align 4")
    if stride <= 4:
        wide = f"<{lanes * stride} x float>"
        pick = ", ".join(f"i32 {i * stride}" for i in range(lanes))
        return w(f"shufflevector {wide} {w(f'load {wide}, ptr {pointer}, align 4')}, {wide} undef, <{lanes} x i32> <{pick}>")
    value = "undef"
    for i in range(lanes):
        one = w(f"load float, ptr {w.step(pointer, 4 * i * stride)}, align 4")
        value = w(f"insertelement {v} {value}, float {one}, i32 {i}")
    return value


def _averaged(source: Planes, target: Planes, lanes: int) -> str:
    w, v = begun(), f"<{lanes} x double>"
    source_at, target_at = w.word(SOURCE, "ptr"), w.word(TARGET, "ptr")
    full, rest = divmod(source.width * source.inner, lanes)

    def added(sofar: str, pointer: str, count: int) -> str:
        x = read(w, pointer, lanes, count, room(source, lanes))  # beyond the row are zeros of its margin
        return w(f"fadd {v} {sofar}, {w(f'fpext <{lanes} x float> {x} to {v}')}")

    with units(w, source.channels) as c:
        plane = row(w, source_at, source, c, "0")
        with loop(w, source.height, carried=[(v, "zeroinitializer")]) as rows:
            line = w.step(plane, w(f"mul i64 {rows.index}, {4 * source.inner * source.pitch}"))
            with loop(w, full, carried=[(v, rows.values[0])]) as each:
                each.following = [added(each.values[0], w.step(line, w(f"mul i64 {each.index}, {4 * lanes}")), lanes)]
            total = each.values[0]
            rows.following = [added(total, w.step(line, 4 * lanes * full), rest) if rest else total]
        total, width = rows.values[0], lanes
        while source.inner == 1 and width > 1:
            half = width // 2
            parts: list[str] = []
            for first in (0, half):
                pick = ", ".join(f"i32 {first + i}" for i in range(half))
                parts.append(w(f"shufflevector <{width} x double> {total}, <{width} x double> undef, <{half} x i32> <{pick}>"))
            total, width = w(f"fadd <{half} x double> {parts[0]}, {parts[1]}"), half
        number = "<" + ", ".join([f"double {float(source.pixels)!r}"] * width) + ">"
        mean = w(f"fdiv <{width} x double> {total}, {number}")
        single = w(f"fptrunc <{width} x double> {mean} to <{width} x float>")
        w.do(f"store <{width} x float> {single}, ptr {row(w, target_at, target, c, '0')}, align 4")
    return ended(w)
