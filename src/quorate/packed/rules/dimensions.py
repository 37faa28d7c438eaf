"""Steps along named dimensions: reductions, softmax, pooling functions, and other orders of the dimensions.

None may run along the batch. Those that leave the channels where they are may run on members in the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from quorate.packed.flow import BATCH_FIRST, EXAMPLE, Dims, Flow, Group, Learned, Number, Own, Raw, refuse
from quorate.packed.rules.walking import Rule, Walk, argument, at, free_of_batch, kept, literals, name_of, stuck, subject
from quorate.packed.sizes import Size


def own(node: fx.Node, walk: Walk) -> Own | None:
    """The members' tensor that a step acts on; None for what all members share."""
    flow = subject(node, walk, "input")
    if isinstance(flow, Own):
        return flow
    if isinstance(flow, Learned):
        stuck(node, walk, "combine the parameter with the members' tensors first")
    return None


def without(flow: Own, dims: Sequence[int], keep: bool) -> Own:
    """The members' tensor with some dimensions reduced to one, or gone."""
    assert flow.dims is not None
    if keep:
        sizes: Dims = tuple(Size() if i in dims else d for i, d in enumerate(flow.dims))
        return Own(sizes, None if flow.axis in dims else flow.axis, flow.batch, flow.head)
    left = [i for i in range(len(flow.dims)) if i not in dims]
    axis = None if flow.axis is None or flow.axis in dims else left.index(flow.axis)
    return Own(tuple(flow.dims[i] for i in left), axis, left.index(flow.batch), flow.head)


def spatial(flow: Own, dims: Sequence[int]) -> bool:
    """Whether all dimensions lie behind channels at dimension 1."""
    return flow.axis == 1 and flow.batch == 0 and all(d >= 2 for d in dims)


def shared(node: fx.Node, walk: Walk) -> Flow:
    """A step on what all members share."""
    flows = [walk[i] for i in node.all_input_nodes]
    return next((Raw(None, flow.batch) for flow in flows if isinstance(flow, Raw)), flows[0] if flows else Raw())


def _reduce(node: fx.Node, walk: Walk) -> Flow:
    """mean, sum, amax, var, norm, … over dimensions that are named."""
    flow = own(node, walk)
    if flow is None:
        return shared(node, walk)
    place = 2 if name_of(node) in ("norm", "normalize") else 1
    given = argument(node, place, "dim")
    if given is None:
        refuse(node, "a reduction over dimensions that are named", "one over all of them, the batch too", BATCH_FIRST)
    dims = [at(node, flow.dims, d) for d in literals(node, given, "dimensions")]
    free_of_batch(node, flow, dims)
    keep = bool(argument(node, place + 1, "keepdim", False))
    result = without(flow, dims, keep)
    return kept(walk, node, result) if spatial(flow, dims) else result


def _pick(node: fx.Node, walk: Walk) -> Flow:
    """max(dim), min(dim), sort, topk, median: values and their indices."""
    result = _reduce(node, walk)
    walk.keeps.discard(node)
    return Group((result, result))


def _order(node: fx.Node, walk: Walk) -> Flow:
    """sort and topk: the dimension stays, its size may change."""
    flow = own(node, walk)
    if flow is None:
        return Group((shared(node, walk),) * 2)
    place = 2 if name_of(node) == "topk" else 1
    dim = at(node, flow.dims, argument(node, place, "dim", -1))
    free_of_batch(node, flow, [dim])
    result = without(flow, [dim], True)
    assert result.dims is not None
    count = argument(node, 1, "k") if name_of(node) == "topk" else None
    size = Size(count) if isinstance(count, int) else flow.dims[dim] if flow.dims else Size()
    if dim == flow.axis and name_of(node) == "sort":
        return Group((flow, flow))
    sized = Own((*result.dims[:dim], size, *result.dims[dim + 1 :]), result.axis, flow.batch, flow.head)
    return Group((sized, sized))


def _along(node: fx.Node, walk: Walk) -> Flow:
    """softmax, normalize, cumsum, flip, roll: along dimensions that keep their sizes."""
    flow = own(node, walk)
    if flow is None:
        return shared(node, walk)
    name = name_of(node)
    place = 2 if name in ("normalize", "roll") else 1
    given = argument(node, place, "dims" if name in ("flip", "roll") else "dim", 1 if name == "normalize" else None)
    if given is None:
        refuse(node, "a dimension that is named", "none", "write dim=")
    dims = [at(node, flow.dims, d) for d in literals(node, given, "dimensions")]
    free_of_batch(node, flow, dims)
    return kept(walk, node, flow) if spatial(flow, dims) else flow


def pooled(node: fx.Node, walk: Walk, flow: Own, spatial_dims: int) -> Own:
    """Pooling and the like over the last dimensions: channels before them, which stay."""
    if flow.rank != spatial_dims + 2:
        came = "one of unknown shape" if flow.rank is None else f"one of {flow.rank} dimensions"
        refuse(node, f"a tensor of {spatial_dims + 2} dimensions, channels at dimension 1", came, EXAMPLE)
    assert flow.dims is not None
    free_of_batch(node, flow, range(1, flow.rank))
    sizes = (*flow.dims[:2], *(walk.unknown(node, i) for i in range(2, flow.rank)))
    return kept(walk, node, Own(sizes, flow.axis, flow.batch, flow.head))


def pooling(spatial_dims: int) -> Rule:
    """The rule of a pooling function over this many dimensions."""

    def rule(node: fx.Node, walk: Walk) -> Flow:
        flow = own(node, walk)
        if argument(node, 99, "return_indices", False):
            refuse(node, "one output", "return_indices=True", "leave the indices out")
        return shared(node, walk) if flow is None else pooled(node, walk, flow, spatial_dims)

    return rule


def _pad(node: fx.Node, walk: Walk) -> Flow:
    flow, sides = own(node, walk), argument(node, 1, "pad")
    if flow is None:
        return shared(node, walk)
    sides = _sides(node, walk, sides)
    rank = flow.rank
    if rank is None:
        refuse(node, "a tensor whose dimensions are known", "one of unknown shape", EXAMPLE)
    assert flow.dims is not None
    changed = [rank - 1 - i for i in range(len(sides) // 2) if sides[2 * i] != 0 or sides[2 * i + 1] != 0]
    if flow.batch in changed or (flow.axis in changed and walk.ratio != 1 and not flow.head):
        refuse(
            node,
            "padding of other dimensions than batch and channels",
            f"pad=({', '.join(map(str, sides))})",
            "add channels by a 1×1 convolution",
        )
    sizes = tuple(walk.unknown(node, i) if i in changed else d for i, d in enumerate(flow.dims))
    result = Own(sizes, flow.axis, flow.batch, flow.head)
    return kept(walk, node, result) if spatial(flow, changed) else result


def _sides(node: fx.Node, walk: Walk, sides: Sequence[Any]) -> list[Any]:
    """How much is put on each side: plain numbers, or such as follow from sizes that packing leaves alone."""
    plain = [s for s in sides if not isinstance(s, fx.Node)]
    literals(node, plain, "pad")
    if any(not isinstance(flow := walk[s], Number) or flow.scaled for s in sides if isinstance(s, fx.Node)):
        stuck(node, walk)
    return list(sides)


def _reorder(node: fx.Node, walk: Walk) -> Flow:
    """permute, transpose, movedim and their kin."""
    source = argument(node, 0, "input")
    flow = subject(node, walk)
    if isinstance(flow, Raw):
        return _raw_order(node, flow)
    if not isinstance(flow, Own | Learned) or flow.dims is None:
        stuck(node, walk)
    order = _order_of(node, flow.dims)
    sizes = tuple(flow.dims[i] for i in order)
    if isinstance(flow, Learned):
        name, axes = walk.sources[source]
        walk.sources[node] = (name, tuple(axes[i] for i in order))
        return Learned(sizes)
    return Own(sizes, None if flow.axis is None else order.index(flow.axis), order.index(flow.batch), flow.head)


def _raw_order(node: fx.Node, flow: Raw) -> Raw:
    """A shared tensor in another order: where its batch comes to lie."""
    rank = 8 if flow.dims is None else len(flow.dims)
    if flow.dims is None and any(d < 0 for d in _given(node)):
        moved = {d for d in _given(node) if d >= 0}
        if name_of(node) not in ("mT", "adjoint") and flow.batch in moved:
            refuse(node, "a tensor whose dimensions are known", "one of unknown shape", EXAMPLE)
        return flow
    dims = flow.dims or tuple(Size(1, (f"{node.name}.{i}",)) for i in range(rank))
    order = _order_of(node, dims, loose=flow.dims is None)
    return Raw(None if flow.dims is None else tuple(dims[i] for i in order), order.index(flow.batch))


def _given(node: fx.Node) -> list[int]:
    values = node.args[1:] if node.args[1:] else tuple(v for k, v in node.kwargs.items() if k != "input")
    flat: list[int] = []
    for value in values:
        given: tuple[Any, ...] = tuple(value) if isinstance(value, tuple | list) else (value,)
        flat += [v for v in given if isinstance(v, int)]
    return flat


def _order_of(node: fx.Node, dims: Dims, loose: bool = False) -> list[int]:
    """The dimensions in their new order."""
    rank, name, given = len(dims), name_of(node), _given(node)
    places = [at(node, dims, d) for d in given]
    order = list(range(rank))
    if name == "permute":
        if loose:
            return places + [i for i in order if i not in places]
        if sorted(places) != order:
            refuse(node, f"each of {rank} dimensions once", f"{tuple(given)}", "correct the model, which cannot run as it is")
        return places
    if name in ("movedim", "moveaxis"):
        half = len(places) // 2
        return _moved(order, places[:half], places[half:])
    if name in ("mT", "adjoint", "t", "T"):
        places = [rank - 2, rank - 1]
        if name in ("t", "T") and rank != 2:
            refuse(node, "two dimensions", f"{rank}", "use transpose or mT")
    order[places[0]], order[places[1]] = order[places[1]], order[places[0]]
    return order


def _moved(order: list[int], source: list[int], target: list[int]) -> list[int]:
    rest = [i for i in order if i not in source]
    for to, i in sorted(zip(target, source, strict=True)):
        rest.insert(to, i)
    return rest


POOLS = ("max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d", "lp_pool{}d", "dropout{}d")
FUNCTIONS: dict[Any, Rule] = {
    **{getattr(F, name.format(n)): pooling(n) for name in POOLS for n in (1, 2, 3)},
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin, torch.var, torch.std, torch.logsumexp, torch.prod), _reduce),
    **dict.fromkeys((torch.norm, torch.any, torch.all, torch.argmax, torch.argmin), _reduce),
    **dict.fromkeys((torch.max, torch.min, torch.median), _pick),
    **dict.fromkeys((torch.sort, torch.topk), _order),
    **dict.fromkeys((F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, F.softmin, F.normalize), _along),
    **dict.fromkeys((torch.cumsum, torch.flip, torch.roll), _along),
    **dict.fromkeys((torch.permute, torch.transpose, torch.swapaxes, torch.movedim, torch.moveaxis, torch.t), _reorder),
    F.feature_alpha_dropout: pooling(2),
    F.interpolate: pooling(2),
    F.pad: _pad,
}
METHODS: dict[str, Rule] = {
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "prod", "norm", "any", "all"), _reduce),
    **dict.fromkeys(("argmax", "argmin"), _reduce),
    **dict.fromkeys(("max", "min", "median"), _pick),
    **dict.fromkeys(("sort", "topk"), _order),
    **dict.fromkeys(("softmax", "log_softmax", "cumsum", "flip", "roll"), _along),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "movedim", "moveaxis", "t"), _reorder),
}
ATTRIBUTES: dict[str, Rule] = {"mT": _reorder, "T": _reorder}
