"""Steps that give the same values another shape: view, reshape, flatten, unflatten, squeeze, unsqueeze, expand, repeat.

A reshape turns groups of neighbouring dimensions into others of the same product. The width goes along: joined with others it stays
one axis; cut into several, α/M narrows one of them:

    tokens (B, …, C)     C → (…, heads, d)    the heads, the last but one: a member has fewer heads of the same size
    images (B, C, H, W)  C → (groups, c)      the last: a member has as many groups of fewer channels

and sizes of the single network that were written into the model become a member's.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from quorate.packed.flow import BATCH_FIRST, EXAMPLE, Constant, Dims, Flow, Group, Learned, Number, Own, Raw, refuse, told
from quorate.packed.rules.dimensions import own, shared
from quorate.packed.rules.walking import Rule, Walk, argument, at, has_batch, kept, literals, name_of, stuck, subject
from quorate.packed.sizes import BATCH, Size, product, regroup

Entry = Any  # of a shape: an int or a node


def _sizes(node: fx.Node, walk: Walk, entries: Sequence[Entry], total: Dims) -> list[Size]:
    """The value of every entry of a shape, −1 found from the others."""
    sizes: list[Size | None] = []
    for entry in entries:
        flow = walk.flow(entry)
        sizes.append(None if type(entry) is int and entry == -1 else flow.size if isinstance(flow, Number) else None)
        if sizes[-1] is None and entry != -1:
            refuse(node, "sizes that can be followed", f"{entry}", f"write the sizes out, use -1 for one of them, {EXAMPLE}")
    missing = [i for i, size in enumerate(sizes) if size is None]
    if len(missing) > 1:
        refuse(node, "at most one -1", f"{tuple(entries)}", "correct the model, which cannot run as it is")
    whole = product(total)
    if missing:
        rest = whole.over(product(size for size in sizes if size is not None))
        if rest is None and len(entries) == 2 and missing == [0]:  # (-1, a number): the batch and the rest
            rest = Size(1, (BATCH,))
        if rest is None:
            came = f"{tuple(str(e) for e in entries)} of {whole} values"
            refuse(node, "a shape that can be followed", came, EXAMPLE)
        sizes[missing[0]] = rest
    return [size for size in sizes if size is not None]


def _cut(node: fx.Node, walk: Walk, group: list[int], sizes: list[Size], last: bool) -> int:
    """Which of the dimensions that a width is cut into is the narrower one in a member."""
    wide = [j for j in group if sizes[j] != Size()]
    if not wide:
        return group[-1]
    chosen = wide[-2] if last and len(wide) > 1 else wide[-1]
    if sizes[chosen].times(walk.ratio) is None:
        number, step = sizes[chosen].number, walk.ratio.denominator
        what = "heads" if last and len(wide) > 1 else "channels"
        legal = sorted({max(step, number // step * step), (number // step + 1) * step})
        refuse(
            node,
            f"{what} that α/M = {walk.ratio} divides",
            f"{number}",
            f"legal are {' and '.join(map(str, legal))}; change their number, alpha or members",
        )
    return chosen


def reshaped(node: fx.Node, walk: Walk, flow: Own, entries: Sequence[Entry]) -> tuple[Own, list[Entry]]:
    """The flow out of a reshape, and the entries of its shape for a member."""
    if flow.dims is None:
        refuse(node, "a tensor whose dimensions are known", "one of unknown shape", EXAMPLE)
    sizes = _sizes(node, walk, entries, flow.dims)
    groups = regroup(list(flow.dims), sizes)
    if groups is None and len(entries) == 2 and flow.batch == 0 and has_batch((sizes[0],)) and flow.axis is not None:
        groups = [([0], [0]), (list(range(1, len(flow.dims))), [1])]  # a number for what no rule knows: all but the batch
    if groups is None:
        refuse(node, f"as many values as in {told(flow)}", f"({', '.join(map(str, sizes))})", EXAMPLE)
    new, axis, batch = list(entries), None, 0
    for before, after in groups:
        if flow.batch in before:
            ahead = [i for i in before[: before.index(flow.batch)] if flow.dims[i] != Size()]
            fore = [j for j in after if sizes[j] != Size()]
            if ahead or flow.axis in before or (fore and BATCH not in sizes[fore[0]].unknown):
                refuse(node, "a shape that leaves the batch in front of what it is joined with", told(flow), BATCH_FIRST)
            batch = fore[0] if fore else after[0]
        elif flow.axis in before:
            cut = len([j for j in after if sizes[j] != Size()]) > 1
            last = flow.axis == len(flow.dims) - 1
            axis = _cut(node, walk, after, sizes, last) if cut or len(after) > 1 else after[0]
            if cut and len([i for i in before if flow.dims[i] != Size()]) > 1:
                refuse(node, "a shape that either joins the width with others or cuts it", f"{tuple(map(str, sizes))}", EXAMPLE)
            for j in after:
                mine = walk.narrow(node, sizes[j], flow.head) if j == axis else sizes[j]
                if entries[j] != -1 and (mine.known or isinstance(entries[j], int)):
                    new[j] = mine.number
    return Own(tuple(sizes), axis, batch, flow.head), new


def _stays(flow: Own, result: Own) -> bool:
    """Whether a step may run on members in the channels: channels at dimension 1 before and after, all behind them alone."""
    return (flow.axis, flow.batch, result.axis, result.batch) == (1, 0, 1, 0)


def _view(node: fx.Node, walk: Walk) -> Flow:
    given = node.args[1:] or (node.kwargs.get("shape", node.kwargs.get("size")),)
    listed = len(given) == 1 and isinstance(given[0], tuple | list)
    if len(given) == 1 and isinstance(given[0], fx.Node) and isinstance(walk[given[0]], Group):
        return _view_like(node, walk, given[0])
    entries: list[Entry] = list(given[0]) if isinstance(given[0], tuple | list) and listed else list(given)
    flow = walk.flow(argument(node, 0, "input"))
    if isinstance(flow, Learned):
        return _learned(node, walk, flow, entries)
    if not isinstance(flow, Own):
        return shared(node, walk)
    result, new = reshaped(node, walk, flow, entries)
    if node.args[1:]:
        node.args = (node.args[0], tuple(new)) if listed else (node.args[0], *new)
    else:
        node.kwargs = {k: tuple(new) if k in ("shape", "size") else v for k, v in node.kwargs.items()}
    flat = result.rank == 2 and _stays(flow, result)
    if flat:  # a flatten: what it does to members in the channels needs no size
        node.op, node.target, node.args, node.kwargs = "call_function", torch.flatten, (node.args[0], 1), {}
        return kept(walk, node, result)
    return result


def _view_like(node: fx.Node, walk: Walk, shape: fx.Node) -> Flow:
    """view(other.shape): the sizes are read off a tensor of the same member."""
    flow, group = walk.flow(node.args[0]), walk[shape]
    assert isinstance(group, Group)
    if not isinstance(flow, Own):
        return shared(node, walk)
    sizes = [item.size for item in group.items if isinstance(item, Number)]
    if flow.dims is None or any(size is None for size in sizes) or tuple(sizes) != flow.dims:
        stuck(node, walk)
    return flow


def _learned(node: fx.Node, walk: Walk, flow: Learned, entries: Sequence[Entry]) -> Flow:
    """A parameter with dimensions of one added or taken away."""
    sizes = _sizes(node, walk, entries, flow.dims)
    groups = regroup(list(flow.dims), sizes) or []
    name, axes = walk.sources[node.all_input_nodes[0]]
    source: list[int | None] = [None] * len(sizes)
    for before, after in groups:
        here = [i for i in before if flow.dims[i] != Size()]
        there = [j for j in after if sizes[j] != Size()]
        if len(here) > 1 or len(there) > 1:
            groups = []
            break
        if here and there:
            source[there[0]] = axes[here[0]]
    if not groups:
        stuck(node, walk, "give the parameter the shape in which it is used")
    if walk.ratio != 1 and any(s is not None and type(e) is int and e > 1 for s, e in zip(source, entries, strict=True)):
        stuck(node, walk, "use -1 for its width, or give the parameter the shape in which it is used")
    walk.sources[node] = (name, tuple(source))
    return Learned(tuple(sizes))


def _flatten(node: fx.Node, walk: Walk) -> Flow:
    flow = own(node, walk)
    if flow is None:
        return shared(node, walk)
    return flattened(node, walk, flow, argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1))


def flattened(node: fx.Node, walk: Walk, flow: Own, start: int, end: int) -> Own:
    """flatten(start, end)."""
    if flow.dims is None and (start, end) == (1, -1):
        return flow  # of two dimensions, where it does nothing: more would have needed an example before
    first, final = at(node, flow.dims, start), at(node, flow.dims, end)
    assert flow.dims is not None
    if final < first:
        refuse(node, "dimensions in order", f"{start} to {end}", "correct the model, which cannot run as it is")
    if first <= flow.batch < final and (flow.batch > first or (flow.axis is not None and first <= flow.axis <= final)):
        refuse(node, "flattening from dimension 1 on", f"dimensions {start} to {end}", BATCH_FIRST)
    joined = product(flow.dims[first : final + 1])
    sizes = (*flow.dims[:first], joined, *flow.dims[final + 1 :])

    def moved(axis: int) -> int:
        return axis if axis < first else max(first, axis - (final - first))

    result = Own(sizes, None if flow.axis is None else moved(flow.axis), moved(flow.batch), flow.head)
    return kept(walk, node, result) if _stays(flow, result) and first >= 1 else result


def _unflatten(node: fx.Node, walk: Walk) -> Flow:
    flow, dim, entries = own(node, walk), argument(node, 1, "dim"), list(argument(node, 2, "sizes"))
    if flow is None:
        return shared(node, walk)
    result, new = unflattened(node, walk, flow, dim, entries)
    node.args, node.kwargs = (node.all_input_nodes[0], dim, tuple(new)), {}
    return result


def unflattened(node: fx.Node, walk: Walk, flow: Own, dim: int, entries: list[Entry]) -> tuple[Own, list[Entry]]:
    """unflatten(dim, sizes), and the sizes for a member."""
    place = at(node, flow.dims, dim)
    assert flow.dims is not None
    part = _sizes(node, walk, entries, (flow.dims[place],))
    if product(part) != flow.dims[place]:
        came = f"{tuple(map(str, part))} of {flow.dims[place]}"
        refuse(node, "sizes whose product is the dimension's", came, EXAMPLE)
    new, axis = list(entries), flow.axis
    shift = len(entries) - 1
    if place == flow.axis:
        inner = _cut(node, walk, list(range(len(part))), part, place == len(flow.dims) - 1)
        axis = place + inner
        if entries[inner] != -1:
            new[inner] = walk.narrow(node, part[inner], flow.head).number
    elif axis is not None and axis > place:
        axis += shift
    sizes = (*flow.dims[:place], *part, *flow.dims[place + 1 :])
    result = Own(sizes, axis, flow.batch + (shift if flow.batch > place else 0), flow.head)
    if place > 1 and flow.axis == 1 and flow.batch == 0:
        kept(walk, node, result)
    return result, new


def _squeeze(node: fx.Node, walk: Walk) -> Flow:
    """squeeze(dim) and unsqueeze(dim)."""
    flow, given = subject(node, walk), argument(node, 1, "dim")
    if not isinstance(flow, Own | Learned):
        return shared(node, walk)
    if given is None:
        refuse(node, "a dimension that is named", "squeeze of all of size 1, the batch too if it is one row", "write its dim")
    if flow.dims is None:
        refuse(node, "a tensor whose dimensions are known", "one of unknown shape", EXAMPLE)
    before = list(range(len(flow.dims)))
    places: list[int | None]
    if name_of(node) == "unsqueeze":
        places = [*before]
        places.insert(given % (len(before) + 1), None)
    else:
        gone = [at(node, flow.dims, d) for d in literals(node, given, "dimensions")]
        if odd := [d for d in gone if flow.dims[d] != Size()]:
            refuse(node, "dimensions of size 1", f"dimension {odd[0]} of {told(flow)}", EXAMPLE)
        places = [i for i in before if i not in gone]
    sizes = tuple(Size() if i is None else flow.dims[i] for i in places)
    if isinstance(flow, Learned):
        name, axes = walk.sources[node.all_input_nodes[0]]
        walk.sources[node] = (name, tuple(None if i is None else axes[i] for i in places))
        return Learned(sizes)
    axis = None if flow.axis is None else places.index(flow.axis)
    result = Own(sizes, axis, places.index(flow.batch), flow.head)
    return kept(walk, node, result) if _stays(flow, result) else result


def _expand(node: fx.Node, walk: Walk) -> Flow:
    """expand and repeat: of a parameter to the batch, of members' tensors along dimensions of size 1."""
    flow = walk.flow(argument(node, 0, "input"))
    if not isinstance(flow, Own | Learned):
        return shared(node, walk)
    listed = len(node.args) == 2 and isinstance(node.args[1], tuple | list)
    entries: list[Entry] = list(node.args[1]) if listed else list(node.args[1:])  # type: ignore[arg-type]
    if flow.dims is None or len(entries) < len(flow.dims) or any(isinstance(walk.flow(e), Group) for e in entries):
        stuck(node, walk)
    times = name_of(node) in ("repeat", "tile")
    added = len(entries) - len(flow.dims)
    dims = (*(Size() for _ in range(added)), *flow.dims)
    width = None if isinstance(flow, Learned) or flow.axis is None else flow.axis + added
    sizes: list[Size] = []
    new = list(entries)
    for i, (entry, size) in enumerate(zip(entries, dims, strict=True)):
        value = walk.flow(entry)
        wanted = size if type(entry) is int and entry == -1 else value.size if isinstance(value, Number) else None
        if wanted is None or (size != Size() and (wanted != Size() if times else wanted != size)):
            refuse(node, "a shape that can be followed", f"{entry} at dimension {i} of {told(flow)}", EXAMPLE)
        sizes.append(size * wanted if times else wanted)
        if i == width and not times and type(entry) is int and entry != -1:
            new[i] = walk.narrow(node, wanted).number
        if isinstance(flow, Learned) and not times and size != Size() and entry != -1:
            new[i] = -1
    if node.args[1:]:
        node.args = (node.args[0], *new)
    if isinstance(flow, Learned):
        name, axes = walk.sources[node.all_input_nodes[0]]
        walk.sources[node] = (name, (*(None for _ in range(added)), *axes))
        return Learned(tuple(sizes))
    if any(BATCH in size.unknown for i, size in enumerate(sizes) if i != flow.batch + added):
        refuse(node, "one batch", f"({', '.join(map(str, sizes))})", BATCH_FIRST)
    return Own(tuple(sizes), width, flow.batch + added, flow.head)


def _expand_as(node: fx.Node, walk: Walk) -> Flow:
    """x.expand_as(y), of two tensors of the members."""
    one, two = (walk.flow(a) for a in node.args[:2])
    if not isinstance(one, Own) or not isinstance(two, Own) or one.dims is None or two.dims is None or one.rank != two.rank:
        stuck(node, walk)
    if one.axis not in (None, two.axis) or one.batch != two.batch or one.head != two.head:
        stuck(node, walk)
    return kept(walk, node, two)


def read(flow: Own | Raw | Constant | Learned) -> Flow:
    """The shape of a tensor."""
    if flow.dims is None:
        batch = flow.batch if isinstance(flow, Own | Raw) else None
        sizes: list[Size | None] = [Size(1, (BATCH,)) if i == batch else None for i in range(8)]
        return Group(tuple(Number(size, isinstance(flow, Own)) for size in sizes))
    axis = flow.axis if isinstance(flow, Own) and not flow.head else None
    return Group(tuple(Number(size, isinstance(flow, Own), i == axis) for i, size in enumerate(flow.dims)))


def _size(node: fx.Node, walk: Walk) -> Flow:
    """x.size(), x.size(dim)."""
    flow, dim = walk.flow(node.args[0]), argument(node, 1, "dim")
    if isinstance(flow, Number | Group):
        stuck(node, walk)
    group = read(flow)
    assert isinstance(group, Group)
    return group if dim is None else group.items[at(node, group.items, dim)]


def _value(node: fx.Node, walk: Walk) -> Flow:  # noqa: ARG001
    """dim(), numel() and the like: plain numbers."""
    return Number()


FUNCTIONS: dict[Any, Rule] = {
    torch.reshape: _view,
    torch.flatten: _flatten,
    torch.unflatten: _unflatten,
    torch.squeeze: _squeeze,
    torch.unsqueeze: _squeeze,
    torch.ravel: _flatten,
    operator.length_hint: _value,
}
METHODS: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape"), _view),
    **dict.fromkeys(("squeeze", "unsqueeze"), _squeeze),
    **dict.fromkeys(("expand", "repeat", "tile"), _expand),
    "expand_as": _expand_as,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "size": _size,
    "dim": _value,
    "ndimension": _value,
}
