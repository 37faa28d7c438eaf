"""A convolution, or a matrix over several images side by side, as an operation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.kernels.convolving import Ending, code
from quorate.runtime.sparse.kernels.planes import LINE, Planes, up
from quorate.runtime.sparse.kernels.streams import Stream
from quorate.runtime.sparse.kernels.tiles import Form, Tile, Window, tile
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.network import Conv, Epilogue, Floats, Linear


@dataclass(frozen=True, eq=False)
class Bound:
    """A layer without its weight: what stays when the weight is a stream.

    Attributes:
        name, source, target: of the layer.
        bias: (O,).
        kernel, stride, pads: 1 × 1 of a matrix.
        channels, outputs: C and O.
        epilogue: of the layer.
    """

    name: str
    source: str
    target: str | None
    bias: Floats
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    channels: int
    outputs: int
    epilogue: Epilogue

    @staticmethod
    def of(layer: Conv | Linear) -> Bound:
        """Of a convolution or a matrix."""
        outputs, channels = layer.weight.shape[:2]
        kernel, stride, pads = (1, 1), (1, 1), (0, 0, 0, 0)
        if isinstance(layer, Conv):
            kernel, stride, pads = (layer.weight.shape[2], layer.weight.shape[3]), layer.stride, layer.pads
        return Bound(layer.name, layer.source, layer.target, layer.bias, kernel, stride, pads, channels, outputs, layer.epilogue)

    def window(self, height: int, width: int) -> Window:
        """Its geometry over such planes."""
        return Window.of(self.kernel, self.stride, self.pads, height, width)

    def margin(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of zeros that it reads around such planes."""
        window = self.window(height, width)
        rows = (window.height - 1) * self.stride[0] + self.kernel[0] - self.pads[0] - height
        columns = (window.width - 1) * self.stride[1] + self.kernel[1] - self.pads[1] - width
        return max(self.pads[0], rows, 0), max(self.pads[1], columns, 0)


class Convolution:
    """One layer in one form on given planes.

    Args:
        layer: without weight.
        form: how it is cut into tiles.
        planes: {array: its planes} of all that it reads and writes.
        host: the machine.

    Raises:
        ValueError: planes that can't be cut so.
    """

    def __init__(self, layer: Bound, form: Form, planes: Mapping[str, Planes], host: Host) -> None:
        self.name, self.layer, self.form = layer.name, layer, form
        source = planes[layer.source]
        self.window = layer.window(source.height, source.width)
        self.tile: Tile = tile(form, self.window, source, host)
        _check_margins(layer, source)
        end = layer.epilogue
        self._arrays = (layer.target, end.add, end.raw)
        target, add, raw = (None if name is None else planes[name] for name in self._arrays)
        self.ending = Ending(end.activation, target, add, raw, end.scale is not None)
        blocks = -(-layer.channels // form.block)
        self.ir = self.written(source, blocks, host)
        self._coefficients = [np.ascontiguousarray(a, np.float32) for a in (layer.bias, end.scale, end.shift) if a is not None]
        self._tiles = np.array(
            [
                [source.at(0, y * layer.stride[0] - layer.pads[0], x * layer.stride[1] - layer.pads[1])]
                + [0 if p is None else p.at(0, y, x) for p in (target, add, raw)]
                for y, x in self.tile.corners
            ],
            np.int64,
        )
        self._plane, self._sums = 4 * source.inner * source.plane, up(4 * layer.outputs * len(self.tile.reads) * host.lanes, LINE)
        # a pad of three lines keeps the parts' tiles, and sums and tile of one part, out of each other's way in the cache
        self._packed = up(self.tile.packed * min(form.block, layer.channels), LINE) + 3 * LINE if self.tile.copies else 0
        self._tables: dict[int, NDArray[np.int64]] = {}
        self.stream: Stream | None = None

    def written(self, source: Planes, blocks: int, host: Host) -> str:
        """The module's text."""
        return code(self.tile, source, self.ending, blocks, host)

    def with_stream(self, stream: Stream) -> Self:
        """Give it the weights, which other operations may share."""
        if not self.takes(stream):
            raise ValueError(f"{self.name}: a stream of another form")
        self.stream = stream
        return self

    def takes(self, stream: Stream) -> bool:
        """Whether a stream is of its form."""
        return stream.fits(self.form.block, self.tile.taps, self.tile.packed)

    def made(self, weight: NDArray[Any]) -> Stream:
        """A stream of this form. ``weight``: (O, C, Kh, Kw), or (O, C)."""
        shaped = weight.reshape(self.layer.outputs, self.layer.channels, *self.layer.kernel)
        return Stream(shaped, self.form.block, self.tile.taps, self.tile.packed)

    @property
    def bytes(self) -> int:
        """Of tables and coefficients; the stream's are counted by its owner."""
        return self._tiles.nbytes + sum(a.nbytes for a in self._coefficients) + sum(a.nbytes for a in self._tables.values())

    def splits(self, parts: int) -> int:
        """Into how many ranges of outputs a tile's work is cut, so that all parts have some."""
        tiles = len(self._tiles)
        return 1 if parts == 1 or tiles % parts == 0 or tiles >= 4 * parts else min(parts, self.layer.outputs)

    def scratch(self, parts: int) -> int:
        return parts * (self._sums + self._packed)

    def words(self, at: Mapping[str, int], scratch: int, parts: int) -> list[int]:
        assert self.stream is not None
        splits = self.splits(parts)
        blocks = self._tables.setdefault(splits, self._blocks(splits))
        target, add, raw = (0 if name is None else at[name] for name in self._arrays)
        bias = self._coefficients[0].ctypes.data
        scale, shift = (a.ctypes.data for a in self._coefficients[1:]) if self.ending.affine else (bias, bias)
        return [
            at[self.layer.source], target, add, raw, self._tiles.ctypes.data, len(self._tiles), blocks.ctypes.data, blocks.shape[1], splits,
            self.stream.data.ctypes.data, bias, scale, shift, scratch, scratch + parts * self._sums, self._sums, self._packed,
        ]  # fmt: skip

    def _blocks(self, splits: int) -> NDArray[np.int64]:
        """(splits, blocks, 4): first channel as a byte of the source, channels, byte of the stream, rows."""
        assert self.stream is not None
        starts, outputs = self.stream.starts, self.layer.outputs
        work = np.concatenate([[0], np.cumsum(np.diff(starts, axis=1).sum(0))])  # by row, of all blocks
        cuts = np.searchsorted(work, work[-1] * np.arange(splits + 1) / splits)
        cuts[0], cuts[-1] = 0, outputs
        first = np.arange(len(starts)) * self.form.block
        channels = np.minimum(self.layer.channels - first, self.form.block)
        table = [
            np.stack([first * self._plane, channels, starts[:, a], np.full(len(starts), b - a)], 1)
            for a, b in itertools.pairwise(cuts)
        ]
        return np.ascontiguousarray(np.stack(table).astype(np.int64))


def _check_margins(layer: Bound, source: Planes) -> None:
    """That the planes have the zeros that it reads around them. Raises ValueError."""
    above, beside = layer.margin(source.height, source.width)
    if above > source.above or beside > source.beside:
        raise ValueError(
            f"{layer.name} reads margins of {above} and {beside}, the planes have {source.above} and {source.beside}"
        )
