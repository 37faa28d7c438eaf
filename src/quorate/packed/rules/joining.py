"""Steps that put tensors together or take parts of them: cat, stack, chunk, split, unbind, indexing.

Along the width every member's own channels are put together or cut: of (B, C₁, …) and (B, C₂, …) a member has α/M · (C₁ + C₂)
channels, never another's.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from quorate.packed.flow import BATCH_FIRST, EXAMPLE, Constant, Flow, Group, Learned, Number, Own, Raw, refuse, told
from quorate.packed.rules.dimensions import own, shared, without
from quorate.packed.rules.shapes import read
from quorate.packed.rules.walking import CUT, Rule, Walk, argument, at, free_of_batch, has_batch, kept, put_, stuck
from quorate.packed.sizes import Size

NAMED = ("values", "indices")  # of max, sort, topk
ONE = (slice(1), slice(0, 1))  # the first channel alone: a member's first


def _parts(node: fx.Node, walk: Walk) -> list[Flow]:
    """The flows of the tensors in a list."""
    given = argument(node, 0, "tensors")
    flow = walk.flow(given)
    if not isinstance(flow, Group):
        stuck(node, walk)
    return list(flow.items)


def _members(node: fx.Node, walk: Walk, flows: list[Flow]) -> list[Own]:
    """The members' tensors among them, parameters with a batch counted in; ValueError for others."""
    found = [flow for flow in flows if isinstance(flow, Own)]
    for flow, source in zip(flows, node.all_input_nodes, strict=False):
        if isinstance(flow, Learned) and has_batch(flow.dims) and found:
            like = next((f for f in found if f.axis is not None and f.rank == len(flow.dims)), None)
            axis = None if like is None or like.axis is None or flow.dims[like.axis] == Size() else like.axis
            walk.resolve(source, axis)
            found.append(Own(flow.dims, axis, has_batch(flow.dims)[0], False))
        elif not isinstance(flow, Own):
            do = f"put a layer on it first; a parameter: expand it to the batch, {EXAMPLE}"
            refuse(node, "the members' tensors alone", told(flow), do)
    return found


def _cat(node: fx.Node, walk: Walk) -> Flow:
    flows = _parts(node, walk)
    if not any(isinstance(flow, Own) for flow in flows):
        return shared(node, walk)
    parts = _members(node, walk, flows)
    first = parts[0]
    dim = at(node, first.dims, argument(node, 1, "dim", node.kwargs.get("axis", 0)))
    axes = {part.axis for part in parts}
    if any(part.rank != first.rank or part.batch != first.batch or part.head != first.head for part in parts):
        refuse(
            node, "tensors of one kind", " and ".join(told(part) for part in parts), "bring them to one shape with a layer each"
        )
    if len(axes) > 1 and (walk.ratio != 1 or first.head):
        refuse(node, "tensors whose widths lie on one axis", " and ".join(told(p) for p in parts), "give each a layer of its own")
    free_of_batch(node, first, [dim])
    assert first.dims is not None
    along = [part.dims[dim] for part in parts if part.dims is not None]
    size = Size(sum(s.number for s in along)) if all(s.known for s in along) else walk.unknown(node, dim)
    result = Own((*first.dims[:dim], size, *first.dims[dim + 1 :]), first.axis, first.batch, first.head)
    ahead = first.axis == 1 and first.batch == 0 and dim >= 1
    return kept(walk, node, result) if ahead and all(isinstance(flow, Own) for flow in flows) else result


def _stack(node: fx.Node, walk: Walk) -> Flow:
    flows = _parts(node, walk)
    if not any(isinstance(flow, Own) for flow in flows):
        return shared(node, walk)
    parts = _members(node, walk, flows)
    first = parts[0]
    if any(part != first for part in parts) or first.dims is None:
        refuse(node, "tensors of one shape", " and ".join(told(part) for part in parts), EXAMPLE)
    dim = argument(node, 1, "dim", 0) % (len(first.dims) + 1)
    sizes = (*first.dims[:dim], Size(len(parts)), *first.dims[dim:])
    axis = None if first.axis is None else first.axis + (dim <= first.axis)
    return Own(sizes, axis, first.batch + (dim <= first.batch), first.head)


def _share(node: fx.Node, flow: Own, dim: int, size: Size, walk: Walk) -> Own:
    """A part of this size along a dimension."""
    assert flow.dims is not None
    if dim == flow.axis:
        walk.narrow(node, size, flow.head)
    return Own((*flow.dims[:dim], size, *flow.dims[dim + 1 :]), flow.axis, flow.batch, flow.head)


def _chunk(node: fx.Node, walk: Walk) -> Flow:
    """chunk(n, dim) into equal parts."""
    flow, count = own(node, walk), argument(node, 1, "chunks")
    if flow is None:
        return shared(node, walk)
    dim = at(node, flow.dims, argument(node, 2, "dim", 0))
    free_of_batch(node, flow, [dim])
    assert flow.dims is not None
    size = flow.dims[dim].over(Size(count)) if isinstance(count, int) and count > 0 else None
    if size is None:
        refuse(node, "equal parts", f"{count} of {flow.dims[dim]}", f"choose sizes that divide, {EXAMPLE}")
    return Group((_share(node, flow, dim, size, walk),) * count)


def _split(node: fx.Node, walk: Walk) -> Flow:
    """split(size or sizes, dim); sizes of a width become a member's."""
    flow, given = own(node, walk), argument(node, 1, "split_size_or_sections", node.kwargs.get("split_size"))
    if flow is None:
        return shared(node, walk)
    dim = at(node, flow.dims, argument(node, 2, "dim", 0))
    free_of_batch(node, flow, [dim])
    assert flow.dims is not None
    entries = list(given) if isinstance(given, tuple | list) else [given]
    values = [walk.flow(entry) for entry in entries]
    sizes = [value.size for value in values if isinstance(value, Number) and value.size is not None]
    whole = flow.dims[dim]
    if len(sizes) != len(entries) or not all(s.known for s in sizes) or not whole.known:
        stuck(node, walk)
    numbers = [s.number for s in sizes]
    if not isinstance(given, tuple | list):
        numbers = [numbers[0]] * (whole.number // numbers[0]) + [r for r in [whole.number % numbers[0]] if r]
    mine = [walk.narrow(node, Size(n), flow.head).number if dim == flow.axis else n for n in numbers]
    put_(node, 1, "split_size" if "split_size" in node.kwargs else "split_size_or_sections", mine if len(mine) > 1 else mine[0])
    return Group(tuple(_share(node, flow, dim, Size(n), walk) for n in numbers))


def _unbind(node: fx.Node, walk: Walk) -> Flow:
    flow = own(node, walk)
    if flow is None:
        return shared(node, walk)
    dim = at(node, flow.dims, argument(node, 1, "dim", 0))
    free_of_batch(node, flow, [dim])
    assert flow.dims is not None
    if dim == flow.axis or not flow.dims[dim].known:
        refuse(node, "a dimension of a known size that is not the width", f"dimension {dim} of {told(flow)}", EXAMPLE)
    return Group((without(flow, [dim], False),) * flow.dims[dim].number)


def _item(node: fx.Node, walk: Walk) -> Flow:
    """Of a tuple an item; of a tensor some rows of other dimensions than the batch."""
    flow, index = walk.flow(node.args[0]), node.args[1]
    if isinstance(flow, Group):
        if isinstance(index, slice):
            return Group(flow.items[index])
        if not isinstance(index, int) or not -len(flow.items) <= index < len(flow.items):
            refuse(node, f"one of {len(flow.items)} items", f"[{index}]", "correct the model, which cannot run as it is")
        return flow.items[index]
    if isinstance(flow, Raw | Constant):
        return Raw(None, flow.batch) if isinstance(flow, Raw) else Constant(None)
    if isinstance(flow, Number) or flow.dims is None:
        stuck(node, walk)
    return _indexed(node, walk, flow, list(index) if isinstance(index, tuple) else [index])


def _indexed(node: fx.Node, walk: Walk, flow: Own | Learned, entries: list[Any]) -> Flow:
    real = sum(e is not None and e is not Ellipsis for e in entries)
    if Ellipsis not in entries:
        entries.append(Ellipsis)
    gap = entries.index(Ellipsis)
    entries[gap : gap + 1] = [slice(None)] * (len(flow.dims or ()) - real)
    assert flow.dims is not None
    axis = flow.axis if isinstance(flow, Own) else None
    batch = flow.batch if isinstance(flow, Own) else None
    sizes: list[Size] = []
    places: list[int | None] = []
    here = 0
    for k, entry in enumerate(entries):
        if entry is None:
            sizes.append(Size())
            places.append(None)
            continue
        whole = entry == slice(None)
        if here == batch and not whole:
            refuse(node, "all rows of the batch", f"[{entry}]", BATCH_FIRST)
        if isinstance(entry, slice):
            sizes.append(flow.dims[here] if whole else _slice(node, walk, entry, flow.dims[here], len(sizes)))
            if here == axis and not whole and entry not in ONE:
                entries[k] = _narrow(node, walk, entry, flow.dims[here], flow)
            places.append(None if here == axis and entry in ONE else here)
        elif not isinstance(entry, int) or isinstance(entry, bool) or here == axis:
            do = "take channels by slices, or a layer" if here == axis else EXAMPLE
            refuse(node, "slices and plain numbers, of other dimensions than the width", f"[{entry}]", do)
        here += 1
    node.args = (node.args[0], tuple(entries))
    if isinstance(flow, Learned):
        name, axes = walk.sources[node.all_input_nodes[0]]
        cut = [i for i, size in zip(places, sizes, strict=True) if i is not None and size != flow.dims[i]]
        walk.sources[node] = (name, tuple(None if i is None else CUT if i in cut else axes[i] for i in places))
        return Learned(tuple(sizes))
    moved = places.index(axis) if axis is not None and axis in places else None
    result = Own(tuple(sizes), moved, places.index(flow.batch), flow.head)
    plain = flow.axis == 1 and flow.batch == 0 and entries[:2] == [slice(None)] * 2
    return kept(walk, node, result) if plain else result


def _slice(node: fx.Node, walk: Walk, entry: slice, size: Size, place: int) -> Size:
    """How long a slice of a dimension is."""
    ends = (entry.start, entry.stop, entry.step)
    if size.known and all(end is None or isinstance(end, int) for end in ends):
        return Size(len(range(*entry.indices(size.number))))
    return walk.unknown(node, place)


def _narrow(node: fx.Node, walk: Walk, entry: slice, size: Size, flow: Own | Learned) -> slice:
    """A slice of the width, for a member."""
    ends = (entry.start, entry.stop)
    if not size.known or entry.step not in (None, 1) or not all(end is None or isinstance(end, int) for end in ends):
        refuse(node, "a slice of the width by plain numbers", f"{entry}", "write the numbers out, without a step")
    start, stop, _ = entry.indices(size.number)
    head = isinstance(flow, Own) and flow.head
    begin = walk.narrow(node, Size(start), head).number if start else 0
    return slice(begin, walk.narrow(node, Size(stop), head).number)


def _attribute(node: fx.Node, walk: Walk) -> Flow:
    """x.shape, x.dtype and the like."""
    flow, name = walk.flow(node.args[0]), node.args[1]
    if isinstance(flow, Group) and name in NAMED and len(flow.items) == 2:
        return flow.items[NAMED.index(name)]
    if isinstance(flow, Number | Group):
        stuck(node, walk)
    if name == "shape":
        return read(flow)
    if name in ("dtype", "device", "ndim", "requires_grad", "is_cuda", "layout"):
        return Number()
    if isinstance(flow, Own | Learned):
        refuse(node, "a size or a dtype", f".{name}", "use the method transpose(-2, -1)" if name in ("T", "mT", "H") else EXAMPLE)
    return shared(node, walk)


FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _cat),
    **dict.fromkeys((torch.chunk,), _chunk),
    **dict.fromkeys((torch.split,), _split),
    torch.stack: _stack,
    torch.unbind: _unbind,
    operator.getitem: _item,
    getattr: _attribute,
}
METHODS: dict[str, Rule] = {"chunk": _chunk, "split": _split, "unbind": _unbind}
