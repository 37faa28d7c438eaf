"""Code for a tile of a sparse convolution, and for all tiles of a layer.

    for each tile, for each block of channels:  pack the tile; for each output row:  sums += Σ over its live weights  w · input
    after the last block:  s = sums (+ add);  raw = s;  target = activation(scale · s + shift)

The sums of a tile stay in registers while a row's weights of a block are read: per weight one multiply-add for each vector, whose input
is an operand in memory at a constant distance. Four weights are loaded by two instructions, one for the offsets, one for the values,
which are spread inside the register. Between blocks the sums wait in a scratch that stays in L2. The code depends on the geometry alone,
never on weights or on the number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quorate.runtime.sparse.kernels.activations import activation, definitions
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.kernels.tiles import WIDEST, Copy, Piece, Tile
from quorate.runtime.sparse.machine.emitting import SIGNATURE, Writer, declarations
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.network import Activation

(
    SOURCE,
    TARGET,
    ADD,
    RAW,
    TILES,
    COUNT,
    BLOCKS,
    MANY,
    SPLITS,
    STREAM,
    BIAS,
    SCALE,
    SHIFT,
    SUMS,
    SCRATCH,
    SUMS_SIZE,
    SCRATCH_SIZE,
) = range(17)
"""The words of a call. TILES: per tile the bytes of source, target, add and raw; BLOCKS: per split and block the first channel as a byte of
the source, channels, byte of the stream, rows; the last two: bytes of sums and scratch for each part."""


@dataclass(frozen=True)
class Ending:
    """What code is made for the end of a row of sums.

    Attributes:
        activation: of the network.
        target, add, raw: the planes of these arrays; None where there is none.
        affine: whether there are scale and shift.
    """

    activation: Activation
    target: Planes | None
    add: Planes | None = None
    raw: Planes | None = None
    affine: bool = False


def code(tile: Tile, source: Planes, ending: Ending, blocks: int, host: Host) -> str:
    """The module of a layer's routine. ``blocks``: how many there are matters only in being one or more."""
    names = [("only", True, True)] if blocks == 1 else [("begin", True, False), ("middle", False, False), ("finish", False, True)]
    parts = [declarations(host.lanes), definitions([ending.activation], host.lanes)]
    parts += [_rows(name, tile, ending, first, last, host) for name, first, last in names]
    if tile.copies:
        parts.append(packer(tile.copies, 4 * source.inner * source.plane, tile.packed))
    parts.append(driver(bool(tile.copies), blocks == 1))
    return "\n".join(parts)


def _rows(name: str, tile: Tile, ending: Ending, first: bool, last: bool, host: Host) -> str:
    """void name(args, source, stream, rows, sums, target, add, raw): all rows of one block on one tile."""
    lanes, count, sets = host.lanes, len(tile.reads), tile.form.sets
    v, w = f"<{lanes} x float>", Writer()
    w.lines.append(
        f"define internal void @{name}(ptr noalias %args, ptr noalias %source, ptr noalias %stream, i64 %rows, ptr noalias %sums, "
        'ptr noalias %target, ptr noalias %add, ptr noalias %raw) nounwind "no-builtins" {'
    )
    w.label("entry")
    bias, scale, shift = (w.word(place, "ptr") for place in (BIAS, SCALE, SHIFT))
    w.do("%none = icmp eq i64 %rows, 0")
    w.do("br i1 %none, label %end, label %row")
    w.label("row")
    w.do("%r = phi i64 [0, %entry], [%rnext, %flush]")
    w.do("%head = phi ptr [%stream, %entry], [%tail, %flush]")
    n = w("load i32, ptr %head, align 4")
    number = w(f"load i32, ptr {w.step('%head', 4)}, align 4")
    o = w(f"zext i32 {number} to i64")
    pairs = w.step("%head", 8)
    size = w(f"mul i64 {w(f'zext i32 {n} to i64')}, 6")
    w.do(f"%tail = getelementptr i8, ptr {pairs}, i64 {size}")
    sums = w(f"getelementptr i8, ptr %sums, i64 {w(f'mul i64 {o}, {4 * count * lanes}')}")
    if first:
        begin = w.spread(w(f"load float, ptr {w(f'getelementptr float, ptr {bias}, i64 {o}')}"), lanes)
        initial = [begin] * count
    else:
        initial = [w(f"load {v}, ptr {w.step(sums, 4 * lanes * t)}, align 4") for t in range(count)]
    initial += ["zeroinitializer"] * (count * (sets - 1))
    w.do(f"%empty = icmp eq i32 {n}, 0")
    w.do("br i1 %empty, label %flush, label %body")
    _multiply(w, tile, initial, pairs, host)
    w.label("flush")
    for i in range(count * sets):
        w.do(f"%e{i} = phi {v} [{initial[i]}, %row], [%b{i}, %body]")
    total = [f"%e{t}" for t in range(count)]
    for s in range(1, sets):
        total = [w(f"fadd {v} {total[t]}, %e{s * count + t}") for t in range(count)]
    if last:
        end_rows(w, tile.pieces, total, ending, o, (scale, shift), lanes)
    else:
        for t in range(count):
            w.do(f"store {v} {total[t]}, ptr {w.step(sums, 4 * lanes * t)}, align 4")
    w.do("%rnext = add i64 %r, 1")
    w.do("%done = icmp eq i64 %rnext, %rows")
    w.do("br i1 %done, label %end, label %row")
    w.label("end")
    w.do("ret void")
    w.lines.append("}")
    return w.text()


def _multiply(w: Writer, tile: Tile, initial: Sequence[str], pairs: str, host: Host) -> None:
    """The loop over a row's live weights, four at a time: 4 offsets in one load, 4 values in another, spread in the register."""
    lanes, count, sets = host.lanes, len(tile.reads), tile.form.sets
    v = f"<{lanes} x float>"
    w.label("body")
    w.do(f"%at = phi ptr [{pairs}, %row], [%atnext, %body]")
    sums = [f"%a{i}" for i in range(count * sets)]
    for i, start in enumerate(initial):
        w.do(f"%a{i} = phi {v} [{start}, %row], [%b{i}, %body]")
    offsets = w("load i64, ptr %at, align 4")
    four = w(f"load <4 x float>, ptr {w.step('%at', 8)}, align 4")
    repeated = ", ".join(f"i32 {i % 4}" for i in range(lanes))
    values = w(f"shufflevector <4 x float> {four}, <4 x float> undef, <{lanes} x i32> <{repeated}>")
    if host.x86:  # hides from LLVM where it comes from, or it loads each value by itself again
        values = w(f'call {v} asm "", "={"v" if lanes == 16 else "x"},0"({v} {values})')
    for j in range(4):
        part = w(f"lshr i64 {offsets}, {16 * j}") if j else offsets
        offset = w(f"and i64 {part}, 65535") if j < 3 else part
        base = w(f"getelementptr i8, ptr %source, i64 {offset}")
        pick = ", ".join(f"i32 {i // 4 * 4 + j}" for i in range(lanes))
        weight = w(f"shufflevector {v} {values}, {v} undef, <{lanes} x i32> <{pick}>")
        for t in range(count):
            i = j % sets * count + t
            x = w(f"load {v}, ptr {w.step(base, tile.reads[t])}, align 4")
            form = f"call {v} @llvm.fmuladd.v{lanes}f32({v} {x}, {v} {weight}, {v} {sums[i]})"
            if j + sets >= 4:
                w.do(f"%b{i} = {form}")
            else:
                sums[i] = w(form)
    w.do("%atnext = getelementptr i8, ptr %at, i64 24")
    w.do("%more = icmp ult ptr %atnext, %tail")
    w.do("br i1 %more, label %body, label %flush")


def end_rows(
    w: Writer, pieces: Sequence[Piece], total: Sequence[str], ending: Ending, o: str, affine: tuple[str, str], lanes: int
) -> None:
    """The sums of output ``o`` on a tile → the arrays."""
    v = f"<{lanes} x float>"
    rows = {
        name: w(f"getelementptr i8, ptr %{name}, i64 {w(f'mul i64 {o}, {4 * planes.inner * planes.plane}')}")
        for name, planes in (("target", ending.target), ("add", ending.add), ("raw", ending.raw))
        if planes is not None
    }
    if ending.affine:
        scale, shift = (w.spread(w(f"load float, ptr {w(f'getelementptr float, ptr {p}, i64 {o}')}"), lanes) for p in affine)
    values = list(total)
    if ending.add is not None:
        for piece in pieces:
            other = _gathered(w, rows["add"], ending.add, piece, lanes)
            values[piece.vector] = w(f"fadd {v} {values[piece.vector]}, {other}")
    if ending.raw is not None:
        for piece in pieces:
            _store(w, rows["raw"], ending.raw, piece, values[piece.vector], lanes)
    if ending.target is not None:
        if ending.affine:
            values = [w(f"call {v} @llvm.fmuladd.v{lanes}f32({v} {x}, {v} {scale}, {v} {shift})") for x in values]
        values = [activation(w, lanes, x, ending.activation) for x in values]
        for piece in pieces:
            _store(w, rows["target"], ending.target, piece, values[piece.vector], lanes)


def _place(planes: Planes, piece: Piece) -> int:
    return planes.at(0, piece.row, piece.column) - planes.at(0, 0, 0)


def _gathered(w: Writer, row: str, planes: Planes, piece: Piece, lanes: int) -> str:
    """A vector with a piece's pixels in its lanes; what lies in the others is of no matter where the piece is stored whole."""
    v, p = f"<{lanes} x float>", w.step(row, _place(planes, piece))
    if piece.count == lanes:
        return w(f"load {v}, ptr {p}, align 4")
    part = f"<{piece.count} x float>"
    x = w(f"load {part}, ptr {p}, align 4")
    inside = range(piece.first, piece.first + piece.count)
    pick = ", ".join(f"i32 {i - piece.first if i in inside else piece.count}" for i in range(lanes))
    return w(f"shufflevector {part} {x}, {part} zeroinitializer, <{lanes} x i32> <{pick}>")


def _store(w: Writer, row: str, planes: Planes, piece: Piece, value: str, lanes: int) -> None:
    v = f"<{lanes} x float>"
    kind = v
    if piece.live < lanes:
        keep = ", ".join(f"i1 {'true' if i < piece.live else 'false'}" for i in range(lanes))
        value = w(f"select <{lanes} x i1> <{keep}>, {v} {value}, {v} zeroinitializer")
    if piece.count < lanes:
        kind = f"<{piece.count} x float>"
        pick = ", ".join(f"i32 {piece.first + i}" for i in range(piece.count))
        value = w(f"shufflevector {v} {value}, {v} undef, <{piece.count} x i32> <{pick}>")
    w.do(f"store {kind} {value}, ptr {w.step(row, _place(planes, piece))}, align 4")


def packer(copies: Sequence[Copy], plane: int, packed: int) -> str:
    """``void pack(source, target, channels)``: the tile's input of each channel as the kernel reads it."""
    w = Writer()
    w.lines.append('define internal void @pack(ptr noalias %source, ptr noalias %target, i64 %channels) nounwind "no-builtins" {')
    w.label("entry")
    w.do("br label %loop")
    w.label("loop")
    w.do("%c = phi i64 [0, %entry], [%cn, %loop]")
    w.do("%s = phi ptr [%source, %entry], [%sn, %loop]")
    w.do("%t = phi ptr [%target, %entry], [%tn, %loop]")
    for copy in copies:
        kind, p = f"<{copy.count} x float>", w.step("%s", copy.source)
        if copy.stride == 1:
            x = w(f"load {kind}, ptr {p}, align 4")
        elif copy.stride <= WIDEST:
            wide = copy.count * copy.stride  # whole vectors: what is read too much lies in the planes' slack at worst
            y = w(f"load <{wide} x float>, ptr {p}, align 4")
            pick = ", ".join(f"i32 {i * copy.stride}" for i in range(copy.count))
            x = w(f"shufflevector <{wide} x float> {y}, <{wide} x float> undef, <{copy.count} x i32> <{pick}>")
        else:
            x = "undef"
            for i in range(copy.count):
                one = w(f"load float, ptr {w.step(p, 4 * i * copy.stride)}, align 4")
                x = w(f"insertelement {kind} {x}, float {one}, i32 {i}")
        w.do(f"store {kind} {x}, ptr {w.step('%t', copy.target)}, align 4")
    w.do("%cn = add i64 %c, 1")
    w.do(f"%sn = getelementptr i8, ptr %s, i64 {plane}")
    w.do(f"%tn = getelementptr i8, ptr %t, i64 {packed}")
    w.do("%m = icmp ult i64 %cn, %channels")
    w.do("br i1 %m, label %loop, label %end")
    w.label("end")
    w.do("ret void")
    w.lines.append("}")
    return w.text()


def driver(packs: bool, single: bool) -> str:
    """The routine: its part of tiles × splits, all blocks of each."""
    w = Writer()
    w.lines.append(SIGNATURE.format(name="run"))
    w.label("entry")
    names = ("source", "target", "add", "raw", "tiles", "blocks", "stream", "sums", "scratch")
    places = (SOURCE, TARGET, ADD, RAW, TILES, BLOCKS, STREAM, SUMS, SCRATCH)
    a = {name: w.word(place, "ptr") for name, place in zip(names, places, strict=True)}
    count, many, splits = w.word(COUNT), w.word(MANY), w.word(SPLITS)
    sums = w(f"getelementptr i8, ptr {a['sums']}, i64 {w(f'mul i64 %part, {w.word(SUMS_SIZE)}')}")
    scratch = w(f"getelementptr i8, ptr {a['scratch']}, i64 {w(f'mul i64 %part, {w.word(SCRATCH_SIZE)}')}")
    units = w(f"mul i64 {count}, {splits}")
    start = w(f"udiv i64 {w(f'mul i64 {units}, %part')}, %parts")
    following = w("add i64 %part, 1")
    stop = w(f"udiv i64 {w(f'mul i64 {units}, {following}')}, %parts")
    last = w(f"sub i64 {many}, 1")
    w.do(f"%any = icmp ult i64 {start}, {stop}")
    w.do("br i1 %any, label %unit, label %end")
    w.label("unit")
    w.do(f"%u = phi i64 [{start}, %entry], [%unext, %unitend]")
    tile, split = w(f"udiv i64 %u, {splits}"), w(f"urem i64 %u, {splits}")
    at = w(f"getelementptr [4 x i64], ptr {a['tiles']}, i64 {tile}")
    place = [w(f"load i64, ptr {w.step(at, 8 * k)}") for k in range(4)]
    here = [w(f"getelementptr i8, ptr {a[name]}, i64 {p}") for name, p in zip(names[:4], place, strict=True)]
    first = w(f"mul i64 {split}, {many}")
    w.do("br label %block")
    w.label("block")
    w.do("%b = phi i64 [0, %unit], [%bnext, %blockend]")
    row = w(f"getelementptr [4 x i64], ptr {a['blocks']}, i64 {w(f'add i64 {first}, %b')}")
    skip, channels, byte, rows = (w(f"load i64, ptr {w.step(row, 8 * k)}") for k in range(4))
    source = w(f"getelementptr i8, ptr {here[0]}, i64 {skip}")
    stream = w(f"getelementptr i8, ptr {a['stream']}, i64 {byte}")
    if packs:
        w.do(f"call void @pack(ptr {source}, ptr {scratch}, i64 {channels})")
        source = scratch
    call = f"(ptr %args, ptr {source}, ptr {stream}, i64 {rows}, ptr {sums}, ptr {here[1]}, ptr {here[2]}, ptr {here[3]})"
    if single:
        w.do(f"call void @only{call}")
        w.do("br label %blockend")
    else:
        w.do("%isfirst = icmp eq i64 %b, 0")
        w.do(f"%islast = icmp eq i64 %b, {last}")
        w.do("br i1 %isfirst, label %f, label %g")
        w.label("g")
        w.do("br i1 %islast, label %z, label %m")
        for label, name in (("f", "begin"), ("m", "middle"), ("z", "finish")):
            w.label(label)
            w.do(f"call void @{name}{call}")
            w.do("br label %blockend")
    w.label("blockend")
    w.do("%bnext = add i64 %b, 1")
    w.do(f"%bm = icmp ult i64 %bnext, {many}")
    w.do("br i1 %bm, label %block, label %unitend")
    w.label("unitend")
    w.do("%unext = add i64 %u, 1")
    w.do(f"%um = icmp ult i64 %unext, {stop}")
    w.do("br i1 %um, label %unit, label %end")
    w.label("end")
    w.do("ret void")
    w.lines.append("}")
    return w.text()
