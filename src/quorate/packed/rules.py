"""How each function and method acts on packed, member-major channels; a step without a rule is refused by name.

A rule reads the flows of a step's inputs and returns that of its output. No rule lets a value pass from one member's channels
to another's: steps act on each element, over dimensions ≥ 2, or are layers that packed ones replace. Flattening from
dimension 1 keeps each member's features together, because channels are outermost; `view` and `reshape` of that kind
are rewritten to it, so that sizes of the single network written into the model do not matter.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from quorate.packed.flow import LAYOUT, USE, Constant, Flow, Flows, Number, Raw, Sizes, Wide, refuse, remedy

Rule = Callable[[fx.Node, Flows], Flow]
MOST_DIMENSIONS = 8  # of a shared tensor, whose rank is not known
PLAIN = ("batch", "spatial", "raw")  # kinds of numbers that packing does not change


def name_of(node: fx.Node) -> str:
    """The function's or method's name."""
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))


def plain(flow: Flow) -> bool:
    """Whether this is a number (or part of a shape) that is the same in the packed network."""
    kinds = (flow.kind,) if isinstance(flow, Number) else flow.kinds if isinstance(flow, Sizes) else ("tensor",)
    return all(kind in PLAIN for kind in kinds)


def _argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _subject(node: fx.Node, flows: Flows) -> Wide:
    """The wide tensor that a step with one tensor acts on; its other arguments must be plain."""
    subject = _argument(node, 0, "input")
    flow = flows[subject] if isinstance(subject, fx.Node) else None
    others = [i for i in node.all_input_nodes if i is not subject]
    if not isinstance(flow, Wide) or not all(plain(flows[i]) for i in others):
        names = ", ".join(i.name for i in node.all_input_nodes)
        refuse(node, "one tensor and plain numbers", f"{name_of(node)} of {names}", remedy(name_of(node)))
    return flow


def _at_ranks(*ranks: int) -> Rule:
    """A step that keeps dimension 1 as it is, for tensors of these ranks."""

    def rule(node: fx.Node, flows: Flows) -> Flow:
        flow = _subject(node, flows)
        if flow.rank not in ranks:
            refuse(node, f"a tensor of {ranks[0]} dimensions", f"one of {flow.rank}", LAYOUT)
        return flow

    return rule


def _pair(node: fx.Node, flows: Flows) -> Flow:
    """Arithmetic of one or two operands: wide ones of equal rank and width, numbers, buffers of one element."""
    operands = [*node.args, *(v for k, v in node.kwargs.items() if k in ("other", "input", "exponent"))]
    wide = [f for f in (flows[a] for a in operands if isinstance(a, fx.Node)) if isinstance(f, Wide)]
    for source in node.all_input_nodes:
        flow = flows[source]
        if source not in operands or not (isinstance(flow, Wide) or plain(flow) or flow == Constant(scalar=True)):
            kind = "a tensor that all members share" if isinstance(flow, Raw | Constant) else "a size of the packed network"
            refuse(node, "operands with the members' channels", f"{kind} ({source.name})", f"put a layer between them, {USE}")
    if not wide:
        refuse(node, "operands with the members' channels", "sizes", LAYOUT)
    kept = next((f for f in wide if f.width is not None), wide[0])
    if any(f.rank != kept.rank or f.head != kept.head or f.width not in (None, kept.width) for f in wide):
        came = " and ".join(_shape(f) for f in wide)
        refuse(node, "operands of the same channels and dimensions", came, "bring both to one width with a layer each")
    return kept


def _shape(flow: Wide) -> str:
    width = "features" if flow.width is None else flow.width
    return f"(B, {width}{', …' if flow.rank > 2 else ''}) of {flow.rank} dimensions{' behind a last layer' if flow.head else ''}"


def _reduce(node: fx.Node, flows: Flows) -> Flow:
    """mean, sum, amax, amin over dimensions ≥ 2."""
    flow, dims = _subject(node, flows), _argument(node, 1, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    literal = isinstance(dims, list | tuple) and all(isinstance(d, int) for d in dims)
    reduced = {d % flow.rank for d in dims} if literal and dims else {0}
    if min(reduced) < 2:
        refuse(node, "a reduction over dimensions ≥ 2", f"dim={dims} of {flow.rank}", LAYOUT)
    return flow if _argument(node, 2, "keepdim", False) else Wide(flow.rank - len(reduced), flow.width, flow.head)


def _pad(node: fx.Node, flows: Flows) -> Flow:
    """Padding of dimensions ≥ 2."""
    flow, sides = _subject(node, flows), _argument(node, 1, "pad")
    if not isinstance(sides, list | tuple) or len(sides) > 2 * (flow.rank - 2):
        refuse(node, f"padding of dimensions ≥ 2 of {flow.rank}", f"pad={sides}", "use a 1×1 convolution to add channels")
    return flow


def flatten(node: fx.Node, flow: Wide, start: Any, end: Any) -> Wide:
    """Flattening from dimension 1 (or later) on."""
    if not isinstance(start, int) or not isinstance(end, int):
        refuse(node, "literal dimensions", f"{start}, {end}", LAYOUT)
    first, final = start % flow.rank, end % flow.rank
    if first == 0 or final < first:
        refuse(node, "flattening from dimension 1 on", f"dimensions {start} to {end}", LAYOUT)
    width = None if first == 1 < final else flow.width
    return Wide(flow.rank - (final - first), width, flow.head)


def _flatten(node: fx.Node, flows: Flows) -> Flow:
    return flatten(node, _subject(node, flows), _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1))


def _view_(node: fx.Node, flows: Flows) -> Flow:
    """view or reshape to (batch, the rest), which becomes flatten(1); no other is known to keep members apart."""
    subject, shape = node.args[0], node.args[1:] or (node.kwargs.get("shape", node.kwargs.get("size")),)
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
    kinds = [flows[s] if isinstance(s, fx.Node) else s for s in shape]
    flow = flows[subject] if isinstance(subject, fx.Node) else None
    batch = len(kinds) == 2 and kinds[0] in (Number("batch"), -1)
    rest = len(kinds) == 2 and (isinstance(kinds[1], int) or kinds[1] == Number("channels"))
    if not isinstance(flow, Wide) or not batch or not rest or kinds == [-1, -1]:
        came = ", ".join(str(s) for s in shape)
        refuse(node, "the shape (batch, -1)", f"({came})", LAYOUT)
    node.op, node.target, node.args, node.kwargs = "call_function", torch.flatten, (subject, 1), {}
    flat = flatten(node, flow, 1, -1)
    if kinds[1] == -1:
        return flat
    return Wide(2, kinds[1] if isinstance(kinds[1], int) else flow.width, flow.head)  # checked by what reads it


def _sizes(node: fx.Node, flows: Flows) -> Flow:
    """x.size(), x.size(dim), x.shape, x.dtype and the like."""
    flow, subject = flows[node.all_input_nodes[0]], _argument(node, 1, "dim")
    raw = ("batch", *("raw",) * MOST_DIMENSIONS)
    kinds = ("batch", "channels", *("spatial",) * (flow.rank - 2)) if isinstance(flow, Wide) else raw
    if subject in ("dtype", "device", "ndim", "requires_grad") or name_of(node) == "dim":
        return Number("raw")
    if subject is None or subject == "shape":
        return Sizes(kinds)
    if not isinstance(subject, int):
        refuse(node, "a size or a dtype", f".{subject}", remedy(str(subject)))
    return Number(_entry(node, kinds, subject))


def _entry(node: fx.Node, kinds: tuple[str, ...], index: int) -> str:
    if not -len(kinds) <= index < len(kinds):
        refuse(node, f"one of {len(kinds)} dimensions", f"dimension {index}", "correct the model, which cannot run as it is")
    return kinds[index]


def _item(node: fx.Node, flows: Flows) -> Flow:
    """shape[i] and shape[i:j]; indexing of wide tensors is refused."""
    flow, index = flows[node.all_input_nodes[0]], node.args[1]
    if not isinstance(flow, Sizes) or not isinstance(index, int | slice):
        refuse(node, "no indexing of the channels", f"[{index}]", remedy("getitem"))
    return Sizes(flow.kinds[index]) if isinstance(index, slice) else Number(_entry(node, flow.kinds, index))


def shared(node: fx.Node, flows: Flows) -> Flow:
    """Any step without parameters on values that all members share."""
    inputs = [flows[i] for i in node.all_input_nodes]
    if changed := [i.name for i in node.all_input_nodes if isinstance(flows[i], Number | Sizes) and not plain(flows[i])]:
        refuse(node, "no use of the number of channels, which packing changes", changed[0], LAYOUT)
    numbers = bool(inputs) and all(isinstance(flow, Number) for flow in inputs)
    return Number("raw") if numbers and getattr(node.target, "__module__", "") == "_operator" else Raw()


_ELEMENT, _PLANE = _at_ranks(2, 3, 4), _at_ranks(4)
FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish), _ELEMENT),
    **dict.fromkeys((F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.softsign, F.logsigmoid), _ELEMENT),
    **dict.fromkeys((F.tanhshrink, F.dropout, F.alpha_dropout), _ELEMENT),
    **dict.fromkeys((torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.exp, torch.sqrt, torch.square), _ELEMENT),
    **dict.fromkeys((torch.neg, operator.neg, torch.clamp), _ELEMENT),
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d), _PLANE),
    **dict.fromkeys((F.dropout2d, F.feature_alpha_dropout, F.interpolate), _PLANE),
    **dict.fromkeys((operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul), _pair),
    **dict.fromkeys((operator.truediv, operator.itruediv, operator.pow), _pair),
    **dict.fromkeys((torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.maximum, torch.minimum), _pair),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin), _reduce),
    F.pad: _pad,
    torch.flatten: _flatten,
    torch.reshape: _view_,
    getattr: _sizes,
    operator.getitem: _item,
}
METHODS: dict[str, Rule] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "abs", "neg", "exp", "sqrt"), _ELEMENT),
    **dict.fromkeys(("square", "clamp", "clamp_", "contiguous", "clone", "to", "float", "double"), _ELEMENT),
    **dict.fromkeys(("half", "bfloat16"), _ELEMENT),
    **dict.fromkeys(("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "pow"), _pair),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(("view", "reshape"), _view_),
    **dict.fromkeys(("size", "dim"), _sizes),
    "flatten": _flatten,
}


def called(node: fx.Node, flows: Flows) -> Flow:
    """The flow out of a call_function or call_method. Rewrites view and reshape in place. Raises ValueError without a rule."""
    inputs = [flows[i] for i in node.all_input_nodes]
    sized = node.target == "size" or (node.target is getattr and node.args[1] == "shape")
    if not sized and not any(isinstance(flow, Wide | Sizes) for flow in inputs):
        return shared(node, flows)
    table: dict[Any, Rule] = FUNCTIONS if node.op == "call_function" else METHODS
    rule = table.get(node.target)
    if rule is None:
        refuse(node, "a step that keeps members apart", name_of(node), remedy(name_of(node)))
    return rule(node, flows)
