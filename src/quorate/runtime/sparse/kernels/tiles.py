"""How a convolution is cut into tiles: what a tile reads, where it is packed, where its sums are stored.

    a tile = T vectors of sums in registers, rows × columns of them; a vector is V pixels of a row (latency) or one of V images (throughput)
    out[o, tile] = Σ over blocks of channels, over live (c, ky, kx) of the block: w · packed[c][tap(ky, kx) + reads[t]]

A tile's input is packed for each block of channels: one copy of the rows for each kx, so that every later load is aligned and of unit
stride whatever the convolution's, all offsets are below 2¹⁶, and the block stays in L1. Both layouts pack in the same order, so that a
layer cut into the same tiles has one weight stream for both. Forms:

    packed    rows × columns of vectors, by kx and input row
    flat      (latency) rows of exactly W' pixels one after the other, so that a vector spans rows: planes narrower than a vector
    direct    (throughput) nothing is packed: planes of one pixel, where the array itself is the block

All offsets are in bytes. What is computed is a masked convolution, Liu et al. 2022 (arXiv 2106.14568), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from quorate.runtime.sparse.kernels.planes import Planes, up
from quorate.runtime.sparse.machine.host import Host

MOST_OFFSET = 65_535  # bytes: offsets are 16 bits
SETS = (1, 2, 4)
L1 = 22 * 1024
"""Bytes of a block's tile: of 32 KiB the rest is for weights and sums."""
LEAST_DIRECT = 32
"""Channels of a block below which one pixel is rather packed out of its plane than read where it is."""


@dataclass(frozen=True)
class Window:
    """A convolution's geometry.

    Attributes:
        kernel, stride: down and across.
        pads: above, left, below, right.
        height, width: of the output.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    height: int
    width: int

    @staticmethod
    def of(kernel: tuple[int, int], stride: tuple[int, int], pads: tuple[int, int, int, int], height: int, width: int) -> Window:
        """Over planes of height × width pixels."""
        top, left, below, right = pads
        return Window(
            kernel, stride, pads, (height + top + below - kernel[0]) // stride[0] + 1,
            (width + left + right - kernel[1]) // stride[1] + 1,
        )  # fmt: skip

    @property
    def taps(self) -> int:
        """Places of the kernel."""
        return self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class Form:
    """What can be chosen of a layer's tiles.

    Attributes:
        mode: packed, flat or direct.
        rows, columns: of a tile; columns in vectors.
        block: channels of a block.
        sets: sums that are kept apart for each vector, 1, 2 or 4: they hide the latency of multiply-adds where a tile is small.
    """

    mode: Literal["packed", "flat", "direct"]
    rows: int
    columns: int
    block: int
    sets: int = 1


@dataclass(frozen=True)
class Piece:
    """Lanes [first, first + count) of a vector: count pixels from (row, column) of the tile on; those from ``live`` on become 0."""

    vector: int
    first: int
    count: int
    row: int
    column: int
    live: int


@dataclass(frozen=True)
class Copy:
    """``count`` floats of an input plane, ``stride`` floats apart, go from byte ``source`` to byte ``target`` of a packed channel."""

    source: int
    target: int
    count: int
    stride: int


@dataclass(frozen=True)
class Tile:
    """A form on given planes.

    Attributes:
        form: it was made of.
        reads: of each vector, relative to a tap.
        pieces: of the output.
        copies: of one channel; none in direct.
        packed: bytes of a packed channel, or of a plane.
        taps: [ky][kx], in a packed channel.
        corners: (y, x) of each tile in the output.
    """

    form: Form
    reads: tuple[int, ...]
    pieces: tuple[Piece, ...]
    copies: tuple[Copy, ...]
    packed: int
    taps: tuple[tuple[int, ...], ...]
    corners: tuple[tuple[int, int], ...]


MOST_LOADS = 512
"""Of a packed channel: they are written out one by one, and LLVM takes many seconds for thousands."""
WIDEST = 4
"""Strides up to which a run is read by one wide load."""


def tile(form: Form, window: Window, source: Planes, host: Host) -> Tile:
    """The geometry of a form. ValueError where these planes can't be cut so."""
    if min(window.height, window.width) < 1:
        raise ValueError(f"{form}: the kernel {window.kernel} is larger than the padded planes")
    count = form.rows * form.columns if form.mode != "flat" else -(-form.rows * window.width // host.lanes)
    if form.sets not in SETS or count * form.sets > host.registers:
        raise ValueError(f"{form}: {count} vectors of {form.sets} sums; expected 1, 2 or 4 sums, in {host.registers} registers")
    made = {"packed": _packed, "flat": _flat, "direct": _direct}[form.mode](form, window, source, host.lanes)
    if made.packed * form.block > MOST_OFFSET:
        raise ValueError(f"{form}: a block has {made.packed * form.block} bytes, offsets of 16 bits reach {MOST_OFFSET}")
    beyond = _beyond(made, window, source)
    if beyond > 0:
        raise ValueError(f"{form}: strides of {window.stride[1]} read too far, by {beyond} floats")
    return made


def _pointwise(window: Window, source: Planes) -> bool:
    """Whether planes are read where they are."""
    return source.inner > 1 and (window.taps, window.height, window.width) == (1, 1, 1)


def _beyond(made: Tile, window: Window, source: Planes) -> int:
    """How many floats behind the buffer the last tile reads, of the last channel: its last vector may reach beyond its row."""
    y, x = made.corners[-1]
    (down, across), (above, left, _, _) = window.stride, window.pads
    start = source.at(0, y * down - above, x * across - left) // 4
    ends = [each.source // 4 + _reach(each) for each in made.copies]
    return start + max(ends, default=source.inner) - source.inner * (source.plane + source.lead) - source.slack


def _reach(copy: Copy) -> int:
    """Floats from the first to behind the last one that is read."""
    return copy.count * copy.stride if copy.stride <= WIDEST else (copy.count - 1) * copy.stride + 1


def _corners(window: Window, rows: int, columns: int) -> tuple[tuple[int, int], ...]:
    """Tiles of rows × columns pixels; the last ones end at the border and overlap their neighbours."""
    down = [min(y, window.height - rows) for y in range(0, window.height, rows)]
    across = [min(x, max(0, window.width - columns)) for x in range(0, window.width, columns)]
    return tuple((y, x) for y in down for x in across)


def _packed(form: Form, window: Window, source: Planes, lanes: int) -> Tile:
    wide = 1 if source.inner > 1 else lanes  # pixels of a vector
    (kh, kw), (down, across) = window.kernel, window.stride
    vectors = -(-window.width // wide)
    rows, columns = form.rows, form.columns
    if rows > window.height or columns > vectors:
        raise ValueError(f"{form}: the output has {window.height} rows of {vectors} vectors")
    ragged = window.width < columns * wide  # then a row is one tile, whose last vector is not full
    span, line, pixel = (rows - 1) * down + kh, 4 * lanes * columns, 4 * source.inner
    reads = tuple(r * down * line + 4 * lanes * c for r in range(rows) for c in range(columns))
    pieces = tuple(
        Piece(r * columns + c, 0, lanes, r, c * wide, min(lanes, window.width - c * wide) if ragged else lanes)
        for r in range(rows)
        for c in range(columns)
    )  # fmt: skip
    apart = across if source.inner == 1 else 1
    copies = tuple(
        Copy(pixel * (r * source.pitch + c * wide * across + kx), (kx * span + r) * line + 4 * lanes * c, lanes, apart)
        for kx in range(kw)
        for r in range(span)
        for c in range(columns)
    )  # fmt: skip
    taps = tuple(tuple((kx * span + ky) * line for kx in range(kw)) for ky in range(kh))
    return Tile(form, reads, pieces, copies, kw * span * line, taps, _corners(window, rows, columns * wide))


def _flat(form: Form, window: Window, source: Planes, lanes: int) -> Tile:
    if source.inner > 1:
        raise ValueError(f"{form}: of images side by side every pixel is a vector already")
    (kh, kw), (down, across) = window.kernel, window.stride
    rows, width = form.rows, window.width
    if rows > window.height:
        raise ValueError(f"{form}: the output has {window.height} rows")
    count = -(-rows * width // lanes)
    phases = [
        (f, rows + (kh - 1 - f) // down) for f in range(min(down, kh))
    ]  # input rows f, f + s, f + 2s …: unit stride in ky // s
    lines: dict[tuple[int, int], int] = {}
    size = 0
    for kx in range(kw):
        for phase, n in phases:
            lines[kx, phase] = size
            size += 4 * (up(n * width, lanes) + lanes)
    pieces = []
    for i in range(rows * width):
        if i % width == 0 or i % lanes == 0:
            pieces.append(Piece(i // lanes, i % lanes, min(width - i % width, lanes - i % lanes), i // width, i % width, lanes))
    copies = tuple(
        Copy(
            4 * ((r * down + phase) * source.pitch + kx + x * across),
            lines[kx, phase] + 4 * (r * width + x), min(lanes, width - x), across,
        )
        for kx in range(kw) for phase, n in phases for r in range(n) for x in range(0, width, lanes)
    )  # fmt: skip
    taps = tuple(tuple(lines[kx, ky % down] + 4 * (ky // down) * width for kx in range(kw)) for ky in range(kh))
    return Tile(
        form, tuple(4 * lanes * i for i in range(count)), tuple(pieces), copies, size, taps, _corners(window, rows, width)
    )


def _direct(form: Form, window: Window, source: Planes, lanes: int) -> Tile:
    if not _pointwise(window, source) or (form.rows, form.columns) != (1, 1):
        raise ValueError(f"{form}: only planes of one pixel, of images side by side, are read where they are")
    return Tile(form, (0,), (Piece(0, 0, lanes, 0, 0, lanes),), (), 4 * source.inner * source.plane, ((0,),), ((0, 0),))


SIZES = (1.25, 1.0, 0.75, 0.5)
"""Blocks that are worth a trial, as parts of :data:`L1`."""


def forms(window: Window, channels: int, outputs: int, density: float, source: Planes, host: Host) -> Iterator[Form]:
    """Forms worth a trial, by what they are expected to cost. There may be none: the layer can't be run here.

    With n live weights of an output in a block, T vectors in a tile, in cycles, fitted by hand to tiles measured on Zen 3:

        row      (n + 1.5) · (.53 T + .3) + 2.5 T + 12        1.5: a row's weights are filled up to fours
        pack     2 · copies · block / O                       of all rows of a block one packs the tile

    per n · T. Blocks beyond L1 cost more by how much. Both layouts yield the same ``packed`` forms where they can.

    Args:
        window, channels, outputs: of the layer.
        density: of its live weights.
        source: planes that it reads.
        host: the machine; twice as many registers, twice as many vectors in a tile.
    """
    lanes, most = host.lanes, host.registers - 2  # registers for sums: one is for the weight, one may be for an input
    if _pointwise(window, source):
        blocks = [min(channels, limit // (4 * source.inner * source.plane)) for limit in (L1, MOST_OFFSET)]
        if blocks[0] >= min(channels, LEAST_DIRECT):
            for block in dict.fromkeys(blocks):
                yield Form("direct", 1, 1, _even(channels, block), 4)
            return
    wide = lanes if source.inner == 1 else 1
    vectors = -(-window.width // wide)
    whole = -(-window.width // lanes)  # vectors of a row in the latency layout
    shapes: list[tuple[Literal["packed", "flat"], int, int, int, float]] = []
    for rows in range(1, min(window.height, most) + 1):
        for columns in sorted({1, 2, 3, 4, min(whole, most)}):
            if columns <= vectors and rows * columns <= most:
                used = window.height * window.width / (up(window.height, rows) * up(window.width, wide * columns))
                shapes.append(("packed", rows, columns, rows * columns, used))
    if source.inner == 1 and window.width % lanes:
        for rows in range(1, min(window.height, most * lanes) + 1):
            count = -(-rows * window.width // lanes)
            if count > most:
                break
            shapes.append(
                ("flat", rows, 1, count, window.height * rows * window.width / (up(window.height, rows) * count * lanes))
            )
    found: list[tuple[float, Form]] = []
    for mode, rows, columns, count, used in shapes:
        found += (
            (cost / used, form)
            for cost, form in _costs(mode, rows, columns, count, window, channels, outputs, density, source, host)
        )
    yield from dict.fromkeys(form for _, form in sorted(found, key=lambda each: each[0]))


def _costs(
    mode: Literal["packed", "flat"], rows: int, columns: int, count: int, window: Window, channels: int, outputs: int, density: float,
    source: Planes, host: Host,
) -> Iterator[tuple[float, Form]]:  # fmt: skip
    """A tile of so many vectors, with sets of sums enough to hide latency and blocks of several sizes; cycles per weight and vector."""
    best = host.registers // 2
    sets = 1 if count >= best * 3 // 4 else 2 if count >= best * 3 // 8 else 4
    if count * sets > host.registers - 2:
        return
    try:
        made = tile(Form(mode, rows, columns, 1, sets), window, source, host)
    except ValueError:
        return
    if count > 1 and sum(each.count if each.stride > WIDEST else 1 for each in made.copies) > MOST_LOADS:
        return
    blocks = (min(channels, max(4, int(L1 * size / made.packed)), MOST_OFFSET // made.packed) for size in SIZES)
    for block in dict.fromkeys(_even(channels, block) for block in blocks if block):
        live = max(density * block * window.taps, 0.01)
        beyond = max(0.0, block * made.packed / L1 - 1)
        weight = max(0.53 * count + 0.3 + 0.15 * (sets > 1), 4 / sets) * (1 + 0.3 * beyond)
        row = (live + 1.5 * min(1.0, live)) * weight + 2.5 * count + 12
        pack = 2 * len(made.copies) * block * (1.5 if window.stride[1] > 1 else 1) / outputs
        yield (row + pack) / (live * count), Form(mode, rows, columns, block, sets)


def _even(channels: int, block: int) -> int:
    """The least block that needs no more blocks."""
    return -(-channels // -(-channels // block))
