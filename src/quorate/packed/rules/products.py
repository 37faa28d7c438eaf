"""Products of the members' tensors with one another: matmul, einsum, scaled dot-product attention.

Row by row of the batch, so that a member's queries meet its own keys alone (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from quorate.packed.flow import BATCH_FIRST, EXAMPLE, Constant, Flow, Group, Learned, Number, Own, Raw, refuse, told
from quorate.packed.rules.dimensions import shared
from quorate.packed.rules.walking import Rule, Walk, argument, stuck
from quorate.packed.sizes import BATCH, Size


def _own(node: fx.Node, flow: Flow) -> Own:
    """A members' tensor of known shape; ValueError for another."""
    if not isinstance(flow, Own):
        refuse(node, "the members' tensors", told(flow), f"use a Linear for a product with parameters, {EXAMPLE}")
    if flow.dims is None:
        refuse(node, "a tensor whose dimensions are known", "one of unknown shape", EXAMPLE)
    return flow


def _joint(node: fx.Node, axes: list[int | None]) -> int | None:
    """The one axis of the width of several, None if none has one."""
    found = {axis for axis in axes if axis is not None}
    if len(found) > 1:
        refuse(node, "one axis of the width", f"axes {sorted(found)}", EXAMPLE)
    return next(iter(found), None)


def _matmul(node: fx.Node, walk: Walk) -> Flow:
    """(…, n, k) · (…, k, p), the batch among the dimensions before."""
    flows = [walk.flow(a) for a in (argument(node, 0, "input"), argument(node, 1, "other", node.kwargs.get("mat2")))]
    if not any(isinstance(flow, Own | Learned) for flow in flows):
        return shared(node, walk)
    if any(isinstance(flow, Raw | Constant) for flow in flows):
        return _with_shared(node, walk, flows)
    left, right = (_own(node, flow) for flow in flows)
    assert left.dims is not None
    assert right.dims is not None
    rank = len(left.dims)
    if rank < 3 or rank != len(right.dims) or left.batch != right.batch or left.batch >= rank - 2:
        came = f"{told(left)} and {told(right)}"
        refuse(node, "two batches of matrices, the batch before their dimensions", came, BATCH_FIRST)
    outer = [flow.axis for flow in (left, right) if flow.axis is not None and flow.axis < rank - 2]
    inner = {left.axis == rank - 1, right.axis == rank - 2} if not outer else set()
    if len(inner) > 1 and walk.ratio != 1:
        refuse(node, "a product over the width of both", f"{told(left)} and {told(right)}", EXAMPLE)
    ends = [rank - 2 if left.axis == rank - 2 else None, rank - 1 if right.axis == rank - 1 else None]
    axis = _joint(node, [*outer, *ends])
    return Own((*left.dims[:-1], right.dims[-1]), axis, left.batch, left.head)


def _with_shared(node: fx.Node, walk: Walk, flows: list[Flow]) -> Flow:
    """A product with a matrix that all members share, over another dimension than the width."""
    left, right = flows
    own, other = (left, right) if isinstance(left, Own) else (right, left)
    own = _own(node, own)
    assert own.dims is not None
    if not isinstance(other, Constant) or other.dims is None or len(other.dims) != 2:
        stuck(node, walk)
    place = len(own.dims) - (1 if own is left else 2)
    if place in (own.batch, own.axis) and not (place == own.axis and walk.ratio == 1):
        refuse(node, "a product over other dimensions than batch and width", told(own), EXAMPLE)
    size = other.dims[1] if own is left else other.dims[0]
    return Own((*own.dims[:place], size, *own.dims[place + 1 :]), own.axis, own.batch, own.head)


def _attention(node: fx.Node, walk: Walk) -> Flow:
    """scaled_dot_product_attention(q, k, v): (B, heads, L, d), (B, heads, S, d), (B, heads, S, e) → (B, heads, L, e)."""
    names = ("query", "key", "value")
    q, k, v = (_own(node, walk.flow(argument(node, i, name))) for i, name in enumerate(names))
    assert q.dims is not None
    assert v.dims is not None
    rank = len(q.dims)
    if any(f.rank != rank or f.batch != q.batch for f in (k, v)) or rank < 3 or q.batch >= rank - 2:
        refuse(node, "queries, keys and values with the batch first", " and ".join(map(told, (q, k, v))), BATCH_FIRST)
    mask = walk.flow(argument(node, 3, "attn_mask"))
    if not isinstance(mask, Constant | Number | Own):
        refuse(node, "a mask that all members share, or their own", told(mask), EXAMPLE)
    if isinstance(mask, Own) and (mask.rank != rank or mask.batch != q.batch):
        refuse(node, "a mask of as many dimensions as queries", told(mask), EXAMPLE)
    axes = [f.axis for f in (q, k) if f.axis != rank - 1]
    axis = _joint(node, [*axes, v.axis])
    if axis == rank - 2:
        refuse(node, "heads or their size as the width", told(q), EXAMPLE)
    return Own((*q.dims[:-1], v.dims[-1]), axis, q.batch, q.head)


def _einsum(node: fx.Node, walk: Walk) -> Flow:
    """einsum of the members' tensors: the batch's letter stands in all of them and in the result."""
    equation, tensors = node.args[0], list(node.args[1:])
    if len(tensors) == 1 and isinstance(tensors[0], tuple | list):
        tensors = list(tensors[0])
    flows = [walk.flow(t) for t in tensors]
    if not any(isinstance(flow, Own | Learned) for flow in flows):
        return shared(node, walk)
    text = equation.replace(" ", "") if isinstance(equation, str) else ""
    if "->" not in text or "." in text:
        refuse(node, "an equation with letters and ->", f"{equation!r}", "write all letters out")
    inputs, output = text.split("->")
    sizes: dict[str, Size] = {}
    batches, widths = set(), set()
    for letters, flow in zip(inputs.split(","), flows, strict=True):
        own = _own(node, flow)
        assert own.dims is not None
        if len(letters) != len(own.dims):
            refuse(node, f"{len(own.dims)} letters", letters, "correct the model, which cannot run as it is")
        sizes |= dict(zip(letters, own.dims, strict=True))
        batches.add(letters[own.batch])
        widths |= {letters[own.axis]} if own.axis is not None else set()
    if len(batches) > 1 or not batches <= set(output):
        refuse(node, "the batch's letter in all tensors and in the result", f"{equation!r}", BATCH_FIRST)
    kept = [w for w in widths if w in output]
    if len(kept) > 1:
        refuse(node, "one axis of the width in the result", f"letters {' and '.join(sorted(kept))}", EXAMPLE)
    axis = output.index(kept[0]) if kept else None
    return Own(tuple(sizes[letter] for letter in output), axis, output.index(batches.pop()))


def _made(node: fx.Node, walk: Walk) -> Flow:
    """zeros, ones, arange of plain numbers: a constant, and with as many rows as the batch, what all members share."""
    flows = [walk.flow(a) for a in node.args] + [walk.flow(v) for v in node.kwargs.values()]
    flat = [f for flow in flows for f in (flow.items if isinstance(flow, Group) else (flow,)) if isinstance(f, Number)]
    rows = [i for i, f in enumerate(flat) if f.size is not None and BATCH in f.size.unknown]
    if any(f.scaled for f in flat) or len(rows) > 1:
        stuck(node, walk, "make it like a tensor of the members: torch.zeros_like(x)")
    return Raw(None, rows[0]) if rows else Constant(None)


FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((torch.matmul, torch.bmm, operator.matmul), _matmul),
    **dict.fromkeys((torch.zeros, torch.ones, torch.full, torch.arange, torch.tensor, torch.linspace, torch.eye), _made),
    F.scaled_dot_product_attention: _attention,
    torch.einsum: _einsum,
}
METHODS: dict[str, Rule] = {**dict.fromkeys(("matmul", "bmm", "__matmul__"), _matmul)}
