"""Live weights in the order in which a convolution's kernel reads them.

    for each block of channels, for each output row: n, o (int32 each), then n / 4 times 4 offsets (uint16) and 4 values (float32)

An offset is the byte of (c, ky, kx) in the packed block. A row's n is a multiple of 4; what fills it up has value 0 and offset 0. So a
live weight takes 6 bytes, and with heads and filling 6.3 to 7 at densities of .1 and .2. Memory is that of the stream alone: the dense
weight is had back from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.kernels.planes import aligned

HEAD, FOUR = 2, 6  # in words of 4 bytes


class Stream:
    """The weight stream of one layer.

    Args:
        weight: (O, C, Kh, Kw) float32.
        block: channels of a block.
        taps: byte of each (ky, kx) in a packed channel.
        packed: bytes of a packed channel.

    Attributes:
        data: the stream, uint32 words.
        starts: (blocks, O + 1) byte of each row's head, and of the block's end.
        live: weights that are not 0.
    """

    def __init__(self, weight: NDArray[np.float32], block: int, taps: Sequence[Sequence[int]], packed: int) -> None:
        outputs, channels = weight.shape[:2]
        self.shape, self.block, self.packed = weight.shape, block, packed
        self.taps = np.array(taps, np.int64)
        blocks, places = -(-channels // block), self.taps.size
        whole = weight.reshape(outputs, channels * places)
        if channels % block:
            whole = np.pad(whole, ((0, 0), (0, (blocks * block - channels) * places)))
        ordered = whole.reshape(outputs, blocks, block * places).transpose(1, 0, 2).reshape(blocks * outputs, block * places)
        row, place = np.nonzero(ordered)
        values = ordered[row, place]
        count = np.bincount(row, minlength=blocks * outputs)
        fours = -(-count // 4)
        starts = np.concatenate([[0], np.cumsum(HEAD + FOUR * fours)])
        data = aligned(int(starts[-1]), np.uint32)
        heads = data.view(np.int32)
        heads[starts[:-1]] = 4 * fours
        heads[starts[:-1] + 1] = np.tile(np.arange(outputs), blocks)
        rank = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        at = np.repeat(starts[:-1] + HEAD, count) + rank // 4 * FOUR
        data.view(np.float32)[at + 2 + rank % 4] = values
        data.view(np.uint16)[2 * at + rank % 4] = self._offsets().astype(np.uint16)[place]
        self.data, self.live = data, len(row)
        ends = np.concatenate([starts[:-1].reshape(blocks, outputs), starts[outputs::outputs, None]], axis=1)
        self.starts: NDArray[np.int64] = 4 * ends.astype(np.int64)

    def _offsets(self) -> NDArray[np.int64]:
        """(block · Kh · Kw,) the byte of each place of a block."""
        return (np.arange(self.block)[:, None] * self.packed + self.taps.reshape(-1)).reshape(-1)

    @property
    def nbytes(self) -> int:
        """Bytes of the stream."""
        return self.data.nbytes

    def fits(self, block: int, taps: Sequence[Sequence[int]], packed: int) -> bool:
        """Whether a stream of these would be this one."""
        return (block, packed) == (self.block, self.packed) and np.array_equal(self.taps, np.array(taps))

    def dense(self) -> NDArray[np.float32]:
        """The weight (O, C, Kh, Kw), bit for bit but for −0."""
        outputs, channels, *kernel = self.shape
        blocks, places = len(self.starts), self.taps.size
        inverse = np.zeros(65_536, np.int64)
        inverse[self._offsets()] = np.arange(self.block * places)
        heads = self.starts[:, :-1].reshape(-1) // 4
        fours = (np.diff(self.starts, axis=1).reshape(-1) // 4 - HEAD) // FOUR
        row = np.repeat(np.arange(len(heads)), fours)
        at = np.repeat(heads + HEAD, fours) + FOUR * (np.arange(len(row)) - np.repeat(np.cumsum(fours) - fours, fours))
        offsets: Any = self.data.view(np.uint16)[2 * at[:, None] + np.arange(4)]
        values = self.data.view(np.float32)[at[:, None] + 2 + np.arange(4)]
        kept = values != 0
        ordered = np.zeros((blocks * outputs, self.block * places), np.float32)
        ordered[np.repeat(row, 4).reshape(-1, 4)[kept], inverse[offsets[kept]]] = values[kept]
        whole = ordered.reshape(blocks, outputs, -1).transpose(1, 0, 2).reshape(outputs, -1)
        return np.ascontiguousarray(whole[:, : channels * places]).reshape(outputs, channels, *kernel)
