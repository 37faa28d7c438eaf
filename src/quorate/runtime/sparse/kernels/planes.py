"""Where the numbers of an array lie: zero-padded planes, of one image or of several images side by side.

    float (c, y, x) of image i      lead + c · plane + (y + above) · pitch + x    times `inner`, plus i

Latency layout: inner = 1, a vector is some pixels of one row; the right margin of a row is the left one of the next, and rows begin at
whole vectors. Throughput layout: inner = the vector's lanes, a vector is one pixel of as many images. The margins hold zeros and are
never written otherwise. A vector (F,) is F planes of one float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE = 64  # bytes of a cache line


def aligned(count: int, dtype: Any = np.float32, at: int = LINE) -> NDArray[Any]:
    """(count,) zeros that begin at a multiple of ``at`` bytes."""
    size = count * np.dtype(dtype).itemsize
    raw = np.zeros(size + at, np.uint8)
    start = -raw.ctypes.data % at
    return raw[start : start + size].view(dtype)


def up(value: int, to: int) -> int:
    """The least multiple of ``to`` that is not below ``value``."""
    return -(-value // to) * to


@dataclass(frozen=True)
class Planes:
    """One array's layout; lengths in floats of one image.

    Attributes:
        channels, height, width: of the array.
        above: rows of zeros above and below each plane.
        beside: columns of zeros at the left and the right.
        pitch: from one row to the next.
        lead: before the first row, for the first left margin.
        plane: from one channel to the next.
        inner: images side by side.
        slack: floats after the last plane that may be read, never written.
    """

    channels: int
    height: int
    width: int
    above: int
    beside: int
    pitch: int
    lead: int
    plane: int
    inner: int
    slack: int

    @staticmethod
    def latency(channels: int, height: int, width: int, above: int, beside: int, lanes: int) -> Planes:
        """Planes of one image, for vectors of so many lanes."""
        pitch, lead = up(width + beside, lanes), up(beside, lanes)
        plane = up(lead + (height + 2 * above) * pitch, LINE // 4)
        plane += LINE // 4 * (plane // (LINE // 4) % 2 == 0)  # an odd number of cache lines: planes spread over the sets of L1
        return Planes(channels, height, width, above, beside, pitch, lead, plane, 1, 16 * lanes)

    @staticmethod
    def throughput(channels: int, height: int, width: int, above: int, beside: int, inner: int) -> Planes:
        """Planes of ``inner`` images side by side."""
        pitch = width + 2 * beside
        plane = (height + 2 * above) * pitch
        plane += plane % 2 == 0 and plane > 1
        return Planes(channels, height, width, above, beside, pitch, beside, plane, inner, 0)

    @staticmethod
    def vector(size: int, inner: int, lanes: int) -> Planes:
        """A vector of ``inner`` images; after it there is room to read whole vectors, and one float more to write to."""
        return Planes(size, 1, 1, 0, 0, 1, 0, 1, inner, up(size, 8 * lanes) - size + 8 * lanes)

    def at(self, c: int, y: int, x: int) -> int:
        """Byte of an element, of the first image."""
        return 4 * self.inner * (self.lead + c * self.plane + (y + self.above) * self.pitch + x)

    @property
    def floats(self) -> int:
        """Floats of a buffer of all images."""
        return self.inner * (self.channels * self.plane + self.lead) + self.slack

    @property
    def pixels(self) -> int:
        """Of a plane, without margins."""
        return self.height * self.width

    def view(self, buffer: NDArray[Any]) -> NDArray[Any]:
        """(C, H, W, inner) view of the elements in a buffer of :attr:`floats`."""
        s, start = 4 * self.inner, self.at(0, 0, 0) // 4
        shape, strides = (self.channels, self.height, self.width, self.inner), (self.plane * s, self.pitch * s, s, 4)
        return np.lib.stride_tricks.as_strided(buffer[start:], shape, strides)
