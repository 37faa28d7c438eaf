"""Steps that treat every element by itself, and arithmetic of several tensors with broadcasting.

Members' tensors broadcast with one another where their batches and widths lie on the same axes; with bare parameters, whose axis
of the width is found here; and with what all members share, where that has no axis of the width.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from quorate.packed.flow import EXAMPLE, Constant, Dims, Flow, Group, Learned, Number, Own, Raw, refuse, told
from quorate.packed.rules.walking import Rule, Walk, kept, name_of, stuck, subject
from quorate.packed.sizes import Size


def unary(node: fx.Node, walk: Walk) -> Flow:
    """One tensor, element by element."""
    name = "input" if "input" in node.kwargs else "self"
    flow = subject(node, walk, name)
    if isinstance(flow, Own):
        return kept(walk, node, flow)
    if isinstance(flow, Learned):
        walk.sources[node] = walk.sources[node.all_input_nodes[0]]
    return flow


def like_first(node: fx.Node, walk: Walk) -> Flow:
    """One tensor, element by element; of another one only the dtype matters."""
    flow = walk.flow(node.args[0])
    return kept(walk, node, flow) if isinstance(flow, Own) else flow


def _width(node: fx.Node, flows: list[Own]) -> tuple[int | None, bool]:
    """The axis of the width from the right, and whether the tensors lie behind a last layer."""
    wide = [(flow.axis - flow.rank, flow.head) for flow in flows if flow.axis is not None and flow.rank is not None]
    if len(set(wide)) > 1:
        came = " and ".join(told(flow) for flow in flows)
        came += " of one behind a last layer" if len({head for _, head in wide}) > 1 else ""
        refuse(node, "operands of the same channels and dimensions", came, "bring both to one width with a layer each")
    return wide[0] if wide else (None, False)


def _shape(node: fx.Node, shapes: list[Dims]) -> Dims:
    """The broadcast shape. Two sizes that are not known to be equal are taken to be, the better known one."""
    rank, dims = max(map(len, shapes)), []
    for i in range(-rank, 0):
        sizes = [shape[i] for shape in shapes if len(shape) >= -i and shape[i] != Size()]
        numbers = {size for size in sizes if size.known}
        if len(numbers) > 1:
            came = " and ".join(f"{number}" for number in sorted(numbers, key=str))
            refuse(node, "operands of the same channels and dimensions", came, "correct the model, which cannot run as it is")
        dims.append(next(iter(numbers), sizes[0] if sizes else Size()))
    return tuple(dims)


def broadcast(node: fx.Node, walk: Walk) -> Flow:
    """Any number of operands, at least one of them the members'."""
    inputs = list(node.all_input_nodes)
    flows = [walk[i] for i in inputs]
    own = [flow for flow in flows if isinstance(flow, Own)]
    if not own:
        return _without_members(node, walk, flows)
    target = node.args[0] if node.args else None
    if isinstance(target, fx.Node) and isinstance(walk[target], Constant) and name_of(node).endswith("_"):
        stuck(node, walk, "write it so that it gives a new tensor: members would share what it changes")
    if any(flow.dims is None for flow in own):
        if not all(isinstance(flow, Own | Number) or flow == Constant(()) for flow in flows):
            stuck(node, walk)
        return kept(walk, node, own[0])
    axis, head = _width(node, own)
    shapes: list[Dims] = []
    for source, flow in zip(inputs, flows, strict=True):
        if isinstance(flow, Number):
            continue
        dims = None if isinstance(flow, Group) else flow.dims
        if dims is None:
            refuse(node, "operands with the members' channels", f"{told(flow)} ({source.name})", EXAMPLE)
        shapes.append(dims)
    whole = _shape(node, shapes)
    width = None if axis is None else whole[axis]
    for source, flow in zip(inputs, flows, strict=True):
        if isinstance(flow, Own | Number | Group) or flow.dims is None:
            if isinstance(flow, Own) and flow.axis is None and axis is not None:
                _no_width(node, walk, flow, axis, width, head)
            continue
        here = axis is not None and len(flow.dims) >= -axis and flow.dims[axis] != Size()
        if isinstance(flow, Learned):
            walk.resolve(source, len(flow.dims) + axis if here and axis is not None and not head else None)
        elif here and not head and walk.ratio != 1:
            do = f"make it a layer's parameter, or pack with alpha = members, {EXAMPLE}" if flow.dims else EXAMPLE
            refuse(node, "operands with the members' channels", f"{told(flow)} ({source.name}) as wide as the channels", do)
    batches = {flow.batch - flow.rank for flow in own if flow.rank is not None}
    if len(batches) > 1:
        refuse(node, "operands whose batches lie on one axis", " and ".join(told(flow) for flow in own), EXAMPLE)
    batch = batches.pop()
    result = Own(whole, None if axis is None else axis + len(whole), batch + len(whole), head)
    return kept(walk, node, result)


def _no_width(node: fx.Node, walk: Walk, flow: Own, axis: int, width: Size | None, head: bool) -> None:
    """Members' tensors without a width may lie across it where they broadcast along it."""
    across = flow.rank is not None and flow.rank >= -axis and flow.dims is not None and flow.dims[axis] == Size()
    if not across and not head and walk.ratio != 1 and flow.rank is not None and flow.rank >= -axis:
        refuse(node, "operands of the same channels and dimensions", f"{told(flow)} across a width of {width}", EXAMPLE)


def _without_members(node: fx.Node, walk: Walk, flows: list[Flow]) -> Flow:
    """Arithmetic of numbers, of shared tensors, or of a parameter and numbers."""
    learned = [flow for flow in flows if isinstance(flow, Learned)]
    if not learned:
        return number_or_shared(node, flows)
    if len(learned) > 1 or not all(isinstance(flow, Number) or flow is learned[0] for flow in flows):
        stuck(node, walk, "keep parameters in layers, or combine them with the members' tensors first")
    walk.sources[node] = walk.sources[next(i for i in node.all_input_nodes if isinstance(walk[i], Learned))]
    return learned[0]


def number_or_shared(node: fx.Node, flows: list[Flow]) -> Flow:
    """Steps without members: a number where all inputs are numbers, otherwise a tensor that all members share."""
    numbers = [flow for flow in flows if isinstance(flow, Number)]
    if len(numbers) < len(flows):
        raw = next((flow for flow in flows if isinstance(flow, Raw)), None)
        return Constant(None) if raw is None else Raw(None, raw.batch)
    return Number(_arithmetic(node, flows), any(n.own for n in numbers), any(n.scaled for n in numbers))


def _arithmetic(node: fx.Node, flows: list[Flow]) -> Size | None:
    """The value of a product or a quotient of sizes, of a sum of known ones."""
    if len(node.args) != 2:
        return None
    values = {n: f.size for n, f in zip(node.all_input_nodes, flows, strict=True) if isinstance(f, Number)}
    a, b = (values.get(v) if isinstance(v, fx.Node) else Size(v) if type(v) is int and v > 0 else None for v in node.args)
    if a is None or b is None:
        return None
    name = name_of(node).strip("_")
    if name in ("mul", "imul"):
        return a * b
    if name in ("floordiv", "truediv"):
        return a.over(b)
    if name in ("add", "sub") and a.known and b.known:
        return Size(a.number + b.number if name == "add" else a.number - b.number)
    return None


ACTIVATIONS = (F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid)
SMOOTH = (F.hardtanh, F.softplus, F.softsign, F.logsigmoid, F.tanhshrink, F.hardshrink, F.softshrink, F.dropout, F.alpha_dropout)
FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((*ACTIVATIONS, *SMOOTH, F.sigmoid, F.tanh, F.threshold), unary),
    **dict.fromkeys((torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.exp, torch.sqrt, torch.rsqrt, torch.square), unary),
    **dict.fromkeys((torch.neg, operator.neg, torch.clamp, torch.clamp_min, torch.clamp_max, torch.log, torch.log1p), unary),
    **dict.fromkeys((torch.erf, torch.sin, torch.cos, torch.sign, torch.nan_to_num, torch.clone, torch.reciprocal), unary),
    **dict.fromkeys((torch.zeros_like, torch.ones_like, torch.rand_like, torch.randn_like, torch.full_like), unary),
    **dict.fromkeys((torch.isnan, torch.isfinite, torch.logical_not, operator.pos, torch.bernoulli), unary),
    **dict.fromkeys((operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul), broadcast),
    **dict.fromkeys((operator.truediv, operator.itruediv, operator.pow, operator.floordiv, operator.mod), broadcast),
    **dict.fromkeys((operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge), broadcast),
    **dict.fromkeys((torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.maximum, torch.minimum), broadcast),
    **dict.fromkeys((torch.where, torch.addcmul, torch.lerp, torch.multiply, torch.divide, torch.subtract), broadcast),
    **dict.fromkeys((torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge, torch.fmod, torch.atan2), broadcast),
}
METHODS: dict[str, Rule] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "abs", "neg", "exp", "sqrt", "rsqrt"), unary),
    **dict.fromkeys(("square", "clamp", "clamp_", "clamp_min", "clamp_max", "log", "sin", "cos", "erf", "detach"), unary),
    **dict.fromkeys(("contiguous", "clone", "to", "type", "float", "double", "half", "bfloat16", "bool", "long"), unary),
    **dict.fromkeys(("bernoulli", "bernoulli_", "isnan", "logical_not", "reciprocal", "sign", "cuda", "cpu"), unary),
    **dict.fromkeys(("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "pow", "pow_", "maximum"), broadcast),
    **dict.fromkeys(("minimum", "eq", "ne", "lt", "le", "gt", "ge", "masked_fill", "masked_fill_", "where"), broadcast),
    **dict.fromkeys(("addcmul", "lerp"), broadcast),
    "type_as": like_first,
}
