"""What steps do to channels where the outputs may change: sizes written anew, products of matrices, sums over channels.

    view, reshape, unflatten    an axis in several: one of them is followed, the heads of queries, keys and values (3, heads, D); several in
                                one: as in quorate.graphs.moving; sizes that are given are written anew
    matmul, attention           (…, n, k)(…, k, m): rows, columns or a common axis before go through; k that goes on both sides is free
    mean, sum … over channels   free

Modules are known by their exact class; what quorate.graphs.rules knows is known here.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from quorate.graphs.flow import Feature, Flow, Rule
from quorate.graphs.modes import ByMode
from quorate.graphs.moving import MOVING, argument, repeated
from quorate.graphs.rows import Rows
from quorate.graphs.rules import ACTIVATIONS, BINARY, FUNCTIONS, MODULES, UNARY, rule_of
from quorate.graphs.structure import FREE, Structure
from quorate.graphs.structure_layers import LAYERS, multihead_attention
from quorate.graphs.tracing import Traced

REDUCING = ("mean", "sum", "var", "std", "norm", "vector_norm", "amax", "amin", "logsumexp", "prod")


def _structure(flow: Flow) -> Structure:
    assert isinstance(flow, Structure)
    return flow


def _same(flow: Flow, node: fx.Node) -> Feature | None:
    """Elementwise along the channels, or over them."""
    return flow.read(node.args[0], node)


def _elementwise(flow: Flow, node: fx.Node) -> Feature | None:
    """An elementwise function whose other arguments are numbers."""
    return flow.read(node.args[0], node) if len(node.all_input_nodes) == 1 else None


def _linear(flow: Flow, node: fx.Node) -> Feature | None:
    """Along the channels as ever; along positions (token mixing) the channels go through and the layer keeps its width."""
    x = flow.read(node.args[0], node)
    return x if x is not None and x.axis != len(flow.shape(node)) - 1 else MODULES[nn.Linear](flow, node)  # type: ignore[return-value]


# — two tensors —


def _binary(flow: Flow, node: fx.Node) -> Any:
    """Broadcast: channels that meet are tied, parameters get the channels they meet; a single channel goes with any number."""
    if len(node.args) != 2 or any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return None
    shape = flow.shape(node)
    tensors = [arg for arg in node.args if isinstance(arg, fx.Node) and arg in flow.traced.tensors]
    features = {arg: found for arg in tensors if (found := flow.read(arg, node)) is not None}
    axes = {arg: feature.axis + len(shape) - len(flow.shape(arg)) for arg, feature in features.items()}
    wide = {axes[arg] for arg in features if len(features[arg].atoms) == shape[axes[arg]]}
    if len(wide) != 1:
        return None
    (axis,) = wide
    meeting = [arg for arg in features if axes[arg] == axis and len(features[arg].atoms) == shape[axis]]
    met = [features[arg] for arg in meeting]
    for arg in [arg for arg in tensors if arg not in meeting]:
        dim = axis - len(shape) + len(flow.shape(arg))
        if arg in features:
            if dim >= 0 and flow.shape(arg)[dim] > 1:
                return None
            flow.keep(features[arg])
        elif not _structure(flow).adopt(arg, dim, met[0]) and dim >= 0 and flow.shape(arg)[dim] > 1:
            return None
    flow.keep_sizes(node)
    for other in met[1:]:
        flow.atoms.tie(met[0].atoms, other.atoms)
    return Feature(axis, met[0].atoms, np.full(len(met[0].atoms), np.nan))


def _cat(flow: Flow, node: fx.Node) -> Any:
    """Along another axis than the channels', tensors made of parameters get them."""
    tensors, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int):
        return None
    features = [flow.read(tensor, node) for tensor in tensors]
    followed = [feature for feature in features if feature is not None]
    if not followed or followed[0].axis == dim % len(flow.shape(node)) or len(followed) == len(tensors):
        return MOVING[torch.cat](flow, node)
    if len({feature.axis for feature in followed}) > 1:
        return None
    for tensor, feature in zip(tensors, features, strict=True):
        if feature is None and not _structure(flow).adopt(tensor, followed[0].axis, followed[0]):
            return None
    for other in followed[1:]:
        flow.atoms.tie(followed[0].atoms, other.atoms)
    return followed[0].unknown()


def _matmul(flow: Flow, node: fx.Node) -> Any:
    """(…, n, k)(…, k, m) → (…, n, m)."""
    if len(node.args) != 2 or any(arg not in flow.traced.tensors for arg in node.args):
        return None
    rank = len(flow.shape(node))
    if rank < 2 or any(len(flow.shape(arg)) != rank for arg in node.args):  # type: ignore[arg-type]
        return None
    a, b = (flow.read(arg, node) for arg in node.args)
    summed_a, summed_b = a is not None and a.axis == rank - 1, b is not None and b.axis == rank - 2
    if summed_a != summed_b:
        return None
    if summed_a and summed_b:
        assert a is not None
        assert b is not None
        flow.atoms.tie(a.atoms, b.atoms)
        return FREE
    before = [f for f in (a, b) if f is not None and f.axis < rank - 2]
    if before:
        return _batched(flow, before, [flow.shape(arg) for arg in node.args])  # type: ignore[arg-type]
    if a is not None and b is not None:
        flow.keep(a)
    return b if b is not None else a


def _batched(flow: Flow, features: list[Feature], shapes: list[tuple[int, ...]]) -> Feature | None:
    """Channels on an axis along which tensors go side by side; all that are longer than 1 there have them."""
    axis = features[0].axis
    if any(f.axis != axis for f in features) or sum(shape[axis] > 1 for shape in shapes) != len(features):
        return None
    for other in features[1:]:
        flow.atoms.tie(features[0].atoms, other.atoms)
    return features[0]


def _attention(flow: Flow, node: fx.Node) -> Any:
    """Scaled dot products: whole heads on an axis before the last two, or the channels of queries and keys, and of values, on the last."""
    if len(node.args) < 3:
        return None
    features = [flow.read(arg, node) for arg in node.args[:3]]
    q, k, v = features
    rank = len(flow.shape(node))
    mask = argument(node, 3, "attn_mask")
    if q is None or k is None or v is None or node.kwargs.get("enable_gqa"):
        return None
    if q.axis == k.axis == v.axis == rank - 1:
        flow.atoms.tie(q.atoms, k.atoms)
        return v
    dim = q.axis - rank + len(flow.shape(mask)) if isinstance(mask, fx.Node) else -1
    if q.axis >= rank - 2 or (dim >= 0 and flow.shape(mask)[dim] > 1):
        return None
    return _batched(flow, [q, k, v], [flow.shape(arg) for arg in node.args[:3]])  # type: ignore[arg-type]


# — sizes —


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[range, range]]:
    """The least groups of axes of two shapes, in order, that hold as many entries."""
    found: list[tuple[range, range]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        start, stop = (i, j), (i + 1, j + 1)
        left, right = old[i], new[j]
        i, j = stop
        while left != right:
            if left < right and i < len(old):
                left, i = left * old[i], i + 1
            elif j < len(new):
                right, j = right * new[j], j + 1
            else:
                return []
        found.append((range(start[0], i), range(start[1], j)))
    if found and (i < len(old) or j < len(new)):  # axes of length 1 that are left
        last = found.pop()
        found.append((range(last[0].start, len(old)), range(last[1].start, len(new))))
    return found


def _followed_part(sizes: tuple[int, ...]) -> int:
    """Which of the axes into which channels are taken apart is followed: the only long one, the heads of (3, heads, D), else the first."""
    long = [place for place, size in enumerate(sizes) if size > 1]
    if len(long) > 2 and sizes[long[0]] in (2, 3):
        return long[1]
    return long[0] if long else 0


def _taken_apart(flow: Flow, x: Feature, sizes: tuple[int, ...], part: int) -> np.ndarray:
    """The atoms of one of the axes (sizes) into which channels are taken apart: what differs in the others alone is tied."""
    atoms = np.moveaxis(x.atoms.reshape(sizes), part, 0).reshape(sizes[part], -1)
    for other in atoms.T[1:]:
        flow.atoms.tie(atoms[:, 0], other)
    first: np.ndarray = atoms[:, 0]
    return first


def _resized(flow: Flow, node: fx.Node, x: Feature, given: list[Any], places: list[tuple[int, ...]]) -> Feature | None:
    """A tensor in another shape: `given` are the sizes of the new axes, at these places of the arguments."""
    old, new = flow.shape(node.args[0]), flow.shape(node)  # type: ignore[arg-type]
    block = next((block for block in _blocks(old, new) if x.axis in block[0]), None)
    if block is None or len(given) != len(new) or x.axis == 0:
        return None
    before, after = block
    write = _structure(flow).write
    long = [axis for axis in before if old[axis] > 1 or axis == x.axis]
    if len(long) > 1:
        if before.start == 0 or len([axis for axis in after if new[axis] > 1]) > 1:
            return None
        axis = next((axis for axis in after if new[axis] > 1), after.start)
        inner, outer = math.prod(old[x.axis + 1 : before.stop]), math.prod(old[before.start : x.axis])
        merged = repeated(x, axis, outer, inner)
        if given[axis] != -1:
            write(node, places[axis], merged)
        return merged
    sizes = tuple(new[axis] for axis in after)
    part = _followed_part(sizes)
    axis = after.start + part
    feature = Feature(axis, _taken_apart(flow, x, sizes, part), np.full(sizes[part], np.nan))
    for other in after:
        if other == axis and given[other] != -1:
            write(node, places[other], feature)
        elif other != axis and given[other] == -1:
            write(node, places[other], new[other])
    return feature


def _reshape(flow: Flow, node: fx.Node) -> Feature | None:
    x = flow.read(node.args[0], node)
    if x is None or node.kwargs:
        return None
    nested = len(node.args) == 2 and isinstance(node.args[1], (tuple, list))
    given = list(node.args[1] if nested else node.args[1:])  # type: ignore[arg-type]
    places: list[tuple[int, ...]] = [(1, i) if nested else (1 + i,) for i in range(len(given))]
    return _resized(flow, node, x, given, places)


def _unflatten(flow: Flow, node: fx.Node) -> Feature | None:
    """One axis in several."""
    x = flow.read(node.args[0], node)
    if x is None or len(node.args) != 3 or node.kwargs or not isinstance(node.args[2], (tuple, list)):
        return None
    old, sizes = flow.shape(node.args[0]), node.args[2]  # type: ignore[arg-type]
    dim = int(node.args[1]) % len(old)  # type: ignore[arg-type]
    if dim != x.axis:
        return x.on(x.axis + (len(sizes) - 1 if dim < x.axis else 0))
    new = flow.shape(node)[dim : dim + len(sizes)]
    part = _followed_part(new)
    feature = Feature(dim + part, _taken_apart(flow, x, new, part), np.full(new[part], np.nan))
    for i, size in enumerate(sizes):
        if i == part and size != -1:
            _structure(flow).write(node, (2, i), feature)
        elif i != part and size == -1:
            _structure(flow).write(node, (2, i), new[i])
    return feature


def _expand(flow: Flow, node: fx.Node) -> Feature | None:
    x = flow.read(node.args[0], node)
    if x is None or node.kwargs:
        return None
    nested = len(node.args) == 2 and isinstance(node.args[1], (tuple, list))
    given = list(node.args[1] if nested else node.args[1:])  # type: ignore[arg-type]
    axis = x.axis + len(given) - len(flow.shape(node.args[0]))  # type: ignore[arg-type]
    if len(given) != len(flow.shape(node)) or flow.shape(node)[axis] != len(x.atoms):
        return None
    if given[axis] != -1:
        _structure(flow).write(node, (1, axis) if nested else (1 + axis,), x)
    return x.on(axis)


def _split(flow: Flow, node: fx.Node) -> Any:
    """Parts of the channels of given sizes."""
    x, size, dim = flow.read(node.args[0], node), argument(node, 1, "split_size_or_sections"), argument(node, 2, "dim", 0)
    if x is None or not isinstance(dim, int) or len(node.args) < 2:
        return None
    if dim % len(flow.shape(node.args[0])) != x.axis:  # type: ignore[arg-type]
        return [x] * len(flow.traced.noted[node])
    sizes = [shape[x.axis] for shape in flow.traced.noted[node]]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [Feature(x.axis, x.atoms[a : a + n], x.values[a : a + n]) for a, n in zip(starts, sizes, strict=True)]
    if isinstance(size, (tuple, list)):
        for i, part in enumerate(parts):
            _structure(flow).write(node, (1, i), part)
        return parts
    if len(set(sizes)) > 1:
        return None
    for part in parts[1:]:
        flow.atoms.tie(parts[0].atoms, part.atoms)
    _structure(flow).write(node, (1,), parts[0])
    return parts


def _unbind(flow: Flow, node: fx.Node) -> Any:
    x, dim = flow.read(node.args[0], node), argument(node, 1, "dim", 0)
    if x is None or not isinstance(dim, int):
        return None
    dim %= len(flow.shape(node.args[0]))  # type: ignore[arg-type]
    return None if dim == x.axis else [x.on(x.axis - (dim < x.axis))] * len(flow.traced.noted[node])


def _index(flow: Flow, node: fx.Node) -> Any:
    """One of several results, which may be several again; or part of a tensor."""
    source, index = node.args
    held = flow.at.get(source) if isinstance(source, fx.Node) else None
    if isinstance(held, list) and held and isinstance(index, int) and -len(held) <= index < len(held):
        return held[index]
    return MOVING[operator.getitem](flow, node)


def _reduced(flow: Flow, node: fx.Node) -> Any:
    """Over other axes the channels stay; over the channels there are none."""
    x, dims = flow.read(node.args[0], node), argument(node, 1, "dim")
    if node.target in (torch.norm, "norm", torch.linalg.vector_norm):
        dims = node.kwargs.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if x is None or not dims or not all(isinstance(dim, int) for dim in dims):
        return None
    rank = len(flow.shape(node.args[0]))  # type: ignore[arg-type]
    axes = {dim % rank for dim in dims}
    if x.axis in axes:
        return FREE
    return x.on(x.axis if len(flow.shape(node)) == rank else x.axis - sum(axis < x.axis for axis in axes))


def _padded(flow: Flow, node: fx.Node) -> Feature | None:
    x, amounts = flow.read(node.args[0], node), argument(node, 1, "pad")
    if x is None or not isinstance(amounts, (tuple, list)) or x.axis >= len(flow.shape(node)) - len(amounts) // 2:
        return None
    return x


def _spatial(flow: Flow, node: fx.Node) -> Feature | None:
    """A step on the positions behind axis 1."""
    x = flow.read(node.args[0], node)
    return x if x is not None and x.axis == 1 else None


def _along(flow: Flow, node: fx.Node) -> Feature | None:
    """A step along named axes other than the channels'."""
    x, dims = flow.read(node.args[0], node), argument(node, 1 if "flip" in str(node.target) else 2, "dims")
    dims = [dims] if isinstance(dims, int) else dims
    if x is None or not dims or x.axis in {dim % len(flow.shape(node)) for dim in dims}:
        return None
    return x


def _halved(flow: Flow, node: fx.Node) -> Feature | None:
    """A gated linear unit: the second half of the channels gates the first."""
    x = flow.read(node.args[0], node)
    dim = flow.traced.module(node).dim if node.op == "call_module" else argument(node, 1, "dim", -1)
    if x is None or dim % len(flow.shape(node)) != x.axis:  # type: ignore[operator]
        return x
    half = len(x.atoms) // 2
    flow.atoms.tie(x.atoms[:half], x.atoms[half:])
    return Feature(x.axis, x.atoms[:half], x.values[:half])


STRUCTURAL_MODULES: dict[type[nn.Module], Rule] = {
    **MODULES,
    **LAYERS,
    nn.Linear: _linear,
    **dict.fromkeys((*ACTIVATIONS, nn.Softmax, nn.LogSoftmax), _same),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ZeroPad1d, nn.ZeroPad2d), _spatial),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d), _spatial),
    nn.GLU: _halved,
}
OWN_FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(UNARY, _elementwise),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    **dict.fromkeys((torch.matmul, torch.bmm, operator.matmul, "matmul", "bmm"), _matmul),
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys(
        (F.softmax, torch.softmax, "softmax", F.log_softmax, "log_softmax", F.normalize, torch.rsqrt, "rsqrt"), _same
    ),
    **dict.fromkeys((torch.reshape, "reshape", "view"), _reshape),
    **dict.fromkeys((torch.unflatten, "unflatten"), _unflatten),
    "expand": _expand,
    **dict.fromkeys((torch.split, "split"), _split),
    **dict.fromkeys((torch.unbind, "unbind"), _unbind),
    operator.getitem: _index,
    **dict.fromkeys([f for name in REDUCING if (f := getattr(torch, name, None)) is not None], _reduced),
    **dict.fromkeys((*REDUCING, torch.linalg.vector_norm), _reduced),
    F.pad: _padded,
    F.interpolate: _spatial,
    **dict.fromkeys((torch.roll, "roll", torch.flip, "flip"), _along),
    F.glu: _halved,
}
STRUCTURAL_FUNCTIONS: dict[Any, Rule] = {**FUNCTIONS, **OWN_FUNCTIONS}


def structural_rule(flow: Structure, node: fx.Node) -> tuple[Rule | None, bool]:
    """The rule of a node, None where there is none, and whether its result may share memory with what it reads."""
    views = rule_of(flow, node)[1]
    if node.op != "call_module":
        called = node.op in ("call_function", "call_method") and node.args
        return (STRUCTURAL_FUNCTIONS.get(node.target) if called else None), views
    module = flow.traced.module(node)
    if isinstance(module, ByMode):
        return OWN_FUNCTIONS.get(module.target), views
    if not flow.usable(node):
        return None, views
    if type(module) is nn.MultiheadAttention:
        return multihead_attention, views
    return (STRUCTURAL_MODULES.get(type(module)) if len(node.args) == 1 and not node.kwargs else None), views


def structure(traced: Traced, rows: Rows) -> Structure:
    """The channels of every tensor in a graph whose outputs may change."""
    flow = Structure(traced, rows)
    for node in traced.graph.nodes:
        flow.step(node, *structural_rule(flow, node))
    return flow
