"""Where arrays of the caller become planes, and planes arrays: (inner, *shape) contiguous float32 outside.

    one image       rows are copied
    V images        for each row, for each V pixels: V vectors (image i, V pixels) ↔ V vectors (pixel, V images), transposed in registers

The transpose is Eklundh's (1972, IEEE Transactions on Computers C-21): blocks of h lanes change places between vectors i and i + h, for
h = V/2 … 1. Nothing of an array outside is touched beyond its last number, and its address need be a multiple of 4 only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.machine.emitting import Writer
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.machine.walking import begun, contiguous, copied, ended, read, row, rowed, units, vectors, write

RAW, PLANES, STRIDE = range(3)
"""The words of a call: address of the array outside, of the planes, bytes from one image outside to the next."""


class _Border:
    """An array's way in or out; see the two below."""

    ARRAY = RAW
    """The word that is the address of the array outside: 0 in :meth:`words`, to be set before a call."""

    def __init__(self, array: str, planes: Planes, host: Host, inward: bool) -> None:
        if planes.inner not in (1, host.lanes):
            raise ValueError(f"{array}: expected 1 or {host.lanes} images side by side, got {planes.inner}")
        self.name = self.array = array
        self.stride = 4 * planes.channels * planes.pixels
        if planes.inner > 1:
            self.ir = _transposing(planes, host.lanes, inward)
        else:
            outer = contiguous(planes)
            self.ir = (
                copied(outer, planes, host.lanes, (RAW, PLANES)) if inward else copied(planes, outer, host.lanes, (PLANES, RAW))
            )

    @property
    def bytes(self) -> int:
        """None: it has no tables."""
        return 0

    def scratch(self, parts: int) -> int:  # noqa: ARG002
        return 0

    def words(self, at: Mapping[str, int], scratch: int, parts: int) -> list[int]:  # noqa: ARG002
        return [0, at[self.array], self.stride]


class Entering(_Border):
    """(inner, *shape) outside → planes.

    Args:
        array: its name.
        planes: of the array, of 1 image or as many as a vector has lanes.
        host: the machine.

    Raises:
        ValueError: another number of images.
    """

    def __init__(self, array: str, planes: Planes, host: Host) -> None:
        super().__init__(array, planes, host, inward=True)


class Leaving(_Border):
    """Planes → (inner, *shape) outside.

    Args:
        array: its name.
        planes: of the array, of 1 image or as many as a vector has lanes.
        host: the machine.

    Raises:
        ValueError: another number of images.
    """

    def __init__(self, array: str, planes: Planes, host: Host) -> None:
        super().__init__(array, planes, host, inward=False)


def _transposing(planes: Planes, lanes: int, inward: bool) -> str:
    """A routine between V images outside and planes of V images side by side."""
    planes = rowed(planes)
    outer = contiguous(planes)
    w = begun()
    raw, inner, stride = w.word(RAW, "ptr"), w.word(PLANES, "ptr"), w.word(STRIDE)
    with units(w, planes.channels * planes.height) as unit:
        c, y = w(f"udiv i64 {unit}, {planes.height}"), w(f"urem i64 {unit}, {planes.height}")
        pixels = row(w, inner, planes, c, y)
        first = w(f"getelementptr i8, ptr {raw}, i64 {w(f'mul i64 {unit}, {4 * outer.pitch}')}")
        for place, count in vectors(w, planes.width, lanes):
            images = [w.step(first, place)]
            for _ in range(lanes - 1):
                images.append(w(f"getelementptr i8, ptr {images[-1]}, i64 {stride}"))
            at = w.step(pixels, w(f"mul i64 {place}, {lanes}"))
            places = [w.step(at, 4 * lanes * k) for k in range(count)]
            if inward:
                for pointer, value in zip(
                    places, _transposed(w, [read(w, p, lanes, count) for p in images], lanes), strict=False
                ):
                    write(w, pointer, value, lanes, lanes)
            else:
                held = [read(w, p, lanes, lanes) for p in places] + ["zeroinitializer"] * (lanes - count)
                for pointer, value in zip(images, _transposed(w, held, lanes), strict=True):
                    write(w, pointer, value, lanes, count)
    return ended(w)


def _transposed(w: Writer, values: Sequence[str], lanes: int) -> list[str]:
    """V vectors of V floats: float j of vector i becomes float i of vector j."""
    v, found = f"<{lanes} x float>", list(values)
    h = lanes // 2
    while h:
        for i in (i for i in range(lanes) if not i & h):
            a, b = found[i], found[i + h]
            for k, start in ((i, 0), (i + h, h)):
                pick = ", ".join(f"i32 {start + j if not j & h else lanes + start + j - h}" for j in range(lanes))
                found[k] = w(f"shufflevector {v} {a}, {v} {b}, <{lanes} x i32> <{pick}>")
        h //= 2
    return found
