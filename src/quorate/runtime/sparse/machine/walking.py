"""Loops over the rows of arrays, and rows as vectors: how layers without weights are walked.

    for each row (c, y) of this part:  for each vector of the row, the last of which may be ragged:  …

A row of `inner` images is a row of width · inner floats. Ragged vectors are written whole, zeros beyond the row, where the layout keeps
room for that (:func:`room`), else lane by lane; likewise read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from quorate.runtime.sparse.kernels.planes import Planes, up
from quorate.runtime.sparse.machine.emitting import SIGNATURE, Writer


@dataclass
class Loop:
    """A loop while its body is being written.

    Attributes:
        index: of the round.
        values: what is carried from round to round; after the loop, what came out.
        following: to be set in the body: what the next round gets.
    """

    index: str
    values: tuple[str, ...]
    following: Sequence[str] = ()


@contextmanager
def loop(w: Writer, stop: str | int, start: str | int = 0, carried: Sequence[tuple[str, str]] = ()) -> Iterator[Loop]:
    """What is written within is done for each index in [start, stop). ``carried``: the type and first value of each thing carried."""
    w.count += 1
    name = f"loop{w.count}"
    w.do(f"br label %{name}.from")
    w.label(f"{name}.from")
    w.do(f"br label %{name}")
    w.label(name)
    made = Loop(f"%{name}.i", tuple(f"%{name}.c{k}" for k in range(len(carried))))
    w.do(f"{made.index} = phi i64 [{start}, %{name}.from], [{made.index}next, %{name}.to]")
    phis = len(w.lines)
    w.lines += [""] * len(carried)
    w.do(f"%{name}.more = icmp ult i64 {made.index}, {stop}")
    w.do(f"br i1 %{name}.more, label %{name}.body, label %{name}.done")
    w.label(f"{name}.body")
    yield made
    for k, ((kind, first), value, following) in enumerate(zip(carried, made.values, made.following, strict=True)):
        w.lines[phis + k] = f"  {value} = phi {kind} [{first}, %{name}.from], [{following}, %{name}.to]"
    w.do(f"br label %{name}.to")
    w.label(f"{name}.to")
    w.do(f"{made.index}next = add nuw i64 {made.index}, 1")
    w.do(f"br label %{name}")
    w.label(f"{name}.done")


def begun() -> Writer:
    """A writer at the begin of ``@run``, whose loops must not become calls of a library's ``memset`` or ``memcpy``."""
    w = Writer()
    w.lines.append(SIGNATURE.format(name="run"))
    w.label("entry")
    return w


def ended(w: Writer) -> str:
    """The text of a routine that ends here."""
    w.do("ret void")
    w.lines.append("}")
    return w.text()


@contextmanager
def units(w: Writer, count: int) -> Iterator[str]:
    """What is written within is done for each of this part's units of so many."""
    start = w(f"udiv i64 {w(f'mul i64 %part, {count}')}, %parts")
    following = w("add i64 %part, 1")
    stop = w(f"udiv i64 {w(f'mul i64 {following}, {count}')}, %parts")
    with loop(w, stop, start) as each:
        yield each.index


def vectors(w: Writer, floats: int, lanes: int) -> Iterator[tuple[str, int]]:
    """What is written between two of these is done for the vectors of a row of so many floats: (byte of the vector, floats in it)."""
    full, rest = divmod(floats, lanes)
    if full:
        with loop(w, full) as each:
            yield w(f"mul nuw i64 {each.index}, {4 * lanes}"), lanes
    if rest:
        yield str(4 * lanes * full), rest


def row(w: Writer, pointer: str, planes: Planes, c: str, y: str) -> str:
    """Address of the first float of a row."""
    s = 4 * planes.inner
    plane = w(f"getelementptr i8, ptr {w.step(pointer, planes.at(0, 0, 0))}, i64 {w(f'mul i64 {c}, {s * planes.plane}')}")
    return w(f"getelementptr i8, ptr {plane}, i64 {w(f'mul i64 {y}, {s * planes.pitch}')}")


def room(planes: Planes, lanes: int) -> bool:
    """Whether whole vectors fit into every row: what lies beyond its end is margin."""
    return up(planes.width * planes.inner, lanes) <= planes.pitch * planes.inner


def read(w: Writer, pointer: str, lanes: int, count: int, whole: bool = False) -> str:
    """A vector of ``count`` floats; in its other lanes zeros, or what lies there where it may be read ``whole``."""
    if count == lanes or whole:
        return w(f"load <{lanes} x float>, ptr {pointer}, align 4")
    part = w(f"load <{count} x float>, ptr {pointer}, align 4")
    pick = ", ".join(f"i32 {min(i, count)}" for i in range(lanes))
    return w(f"shufflevector <{count} x float> {part}, <{count} x float> zeroinitializer, <{lanes} x i32> <{pick}>")


def write(w: Writer, pointer: str, value: str, lanes: int, count: int, whole: bool = False) -> None:
    """Store ``count`` floats of a vector, and zeros in place of the others where it may be stored ``whole``."""
    kind = f"<{lanes} x float>"
    if count < lanes and whole:
        value = kept(w, value, lanes, count, "zeroinitializer")
    elif count < lanes:
        pick = ", ".join(f"i32 {i}" for i in range(count))
        value = w(f"shufflevector {kind} {value}, {kind} undef, <{count} x i32> <{pick}>")
        kind = f"<{count} x float>"
    w.do(f"store {kind} {value}, ptr {pointer}, align 4")


def kept(w: Writer, value: str, lanes: int, count: int, other: str) -> str:
    """The first ``count`` lanes of a vector, and those of another one."""
    keep = ", ".join(f"i1 {'true' if i < count else 'false'}" for i in range(lanes))
    return w(f"select <{lanes} x i1> <{keep}>, <{lanes} x float> {value}, <{lanes} x float> {other}")


def contiguous(planes: Planes) -> Planes:
    """The same array without margins, (C, H, W, inner) in memory."""
    return Planes(planes.channels, planes.height, planes.width, 0, 0, planes.width, 0, planes.pixels, planes.inner, 0)


def rowed(planes: Planes) -> Planes:
    """A vector as a single row; other planes as they are."""
    if planes.plane != 1:
        return planes
    size = planes.channels
    return replace(planes, channels=1, width=size, pitch=size, plane=size)


def copied(source: Planes, target: Planes, lanes: int, words: tuple[int, int] = (0, 1)) -> str:
    """A routine that copies an array from one layout to another of as many images. ``words``: places of their addresses in a call."""
    if source.plane == target.plane == 1:
        source, target = rowed(source), rowed(target)
    w = begun()
    pointers = [w.word(place, "ptr") for place in words]
    with units(w, source.channels * source.height) as unit:
        c, y = w(f"udiv i64 {unit}, {source.height}"), w(f"urem i64 {unit}, {source.height}")
        ends = [row(w, pointer, planes, c, y) for pointer, planes in zip(pointers, (source, target), strict=True)]
        for place, count in vectors(w, source.width * source.inner, lanes):
            value = read(w, w.step(ends[0], place), lanes, count, room(source, lanes))
            write(w, w.step(ends[1], place), value, lanes, count, room(target, lanes))
    return ended(w)
