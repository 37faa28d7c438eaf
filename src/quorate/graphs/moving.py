"""Steps that move channels without changing them: to another axis, side by side, repeated for every position, or apart.

A view or reshape is followed only where the size of the channels' axis is left open (−1) or asked of a tensor with the same channels;
with a fixed number it would not fit a narrower tensor, and the channels stay.

Shapes: flattening (B, C, H, W) from axis 1 repeats each channel H·W times; flattening (B, H, W, C) gives all channels H·W times over.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from quorate.graphs.flow import Feature, Flow, Rule


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """A positional or keyword argument."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def repeated(x: Feature, axis: int, before: int, after: int) -> Feature:
    """The channels when `before` positions in front of their axis and `after` behind it are merged into it."""
    return Feature(axis, np.tile(x.atoms.repeat(after), before), np.tile(x.values.repeat(after), before))


def _merged(x: Feature, shape: tuple[int, ...], first: int, last: int) -> Feature | None:
    """`shape` with the axes first … last merged. None where rows of the batch would be."""
    first, last = first % len(shape), last % len(shape)
    if not first <= x.axis <= last:
        return x.on(x.axis if x.axis < first else x.axis - (last - first))
    if first == 0:
        return None
    return repeated(x, first, math.prod(shape[first : x.axis]), math.prod(shape[x.axis + 1 : last + 1]))


def _flatten_module(flow: Flow, node: fx.Node) -> Feature | None:
    x, module = flow.read(node.args[0], node), flow.traced.module(node)
    return None if x is None else _merged(x, flow.shape(node.args[0]), module.start_dim, module.end_dim)  # type: ignore[arg-type]


def _flatten(flow: Flow, node: fx.Node) -> Feature | None:
    x = flow.read(node.args[0], node)
    first, last = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    if x is None or not isinstance(first, int) or not isinstance(last, int):
        return None
    return _merged(x, flow.shape(node.args[0]), first, last)  # type: ignore[arg-type]


def _reshape(flow: Flow, node: fx.Node) -> Feature | None:
    """The channels' axis is found by what stands before it; behind it as many whole axes as fit may be merged into it."""
    x = flow.read(node.args[0], node)
    if x is None or node.kwargs or x.axis == 0 or len(x.atoms) == 1:
        return None
    given = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    old, new = flow.shape(node.args[0]), flow.shape(node)  # type: ignore[arg-type]
    if len(given) != len(new):
        return None
    for axis in range(1, len(new)):
        size = given[axis]
        own = isinstance(size, fx.Node) and size in flow.sizes and flow.atoms.same(flow.sizes[size].atoms, x.atoms)
        if math.prod(new[:axis]) != math.prod(old[: x.axis]) or not (own or (isinstance(size, int) and size == -1)):
            continue
        for last in range(x.axis, x.axis + 1 if own else len(old)):
            if math.prod(old[x.axis : last + 1]) == new[axis]:
                flow.keep_sizes(node, but=size if own else None)
                return repeated(x, axis, 1, math.prod(old[x.axis + 1 : last + 1]))
    return None


def _transpose(flow: Flow, node: fx.Node) -> Feature | None:
    x = flow.read(node.args[0], node)
    pair = argument(node, 1, "dim0"), argument(node, 2, "dim1")
    if x is None or not all(isinstance(dim, int) for dim in pair):
        return None
    one, two = (dim % len(flow.shape(node)) for dim in pair)
    return x.on({one: two, two: one}.get(x.axis, x.axis))


def _permute(flow: Flow, node: fx.Node) -> Feature | None:
    x = flow.read(node.args[0], node)
    order = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    dims = len(flow.shape(node))
    if x is None or len(order) != dims or not all(isinstance(dim, int) for dim in order):
        return None
    return x.on([dim % dims for dim in order].index(x.axis))  # type: ignore[operator]


def _reduced(flow: Flow, node: fx.Node) -> Feature | None:
    """A mean or an extreme over axes other than the channels': of a constant it is the constant."""
    x, dims = flow.read(node.args[0], node), argument(node, 1, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    keeps = argument(node, 2, "keepdim", False)
    if x is None or not dims or not all(isinstance(dim, int) for dim in dims) or not isinstance(keeps, bool):
        return None
    axes = {dim % len(flow.shape(node.args[0])) for dim in dims}  # type: ignore[arg-type]
    if x.axis in axes:
        return None
    return x if keeps else x.on(x.axis - sum(axis < x.axis for axis in axes))


def _squeeze(flow: Flow, node: fx.Node) -> Feature | None:
    """Of named axes, other than the channels'."""
    x, dims = flow.read(node.args[0], node), argument(node, 1, "dim")
    old = flow.shape(node.args[0]) if x is not None else ()  # type: ignore[arg-type]
    dims = [dims] if isinstance(dims, int) else dims
    if x is None or not dims or not all(isinstance(dim, int) for dim in dims):
        return None
    axes = {dim % len(old) for dim in dims}
    return None if x.axis in axes else x.on(x.axis - sum(axis < x.axis and old[axis] == 1 for axis in axes))


def _unsqueeze(flow: Flow, node: fx.Node) -> Feature | None:
    x, dim = flow.read(node.args[0], node), argument(node, 1, "dim")
    if x is None or not isinstance(dim, int):
        return None
    return x.on(x.axis + (dim % len(flow.shape(node)) <= x.axis))


def _index(flow: Flow, node: fx.Node) -> Feature | None:
    """One of several tensors, or a part along other axes by whole numbers and slices."""
    source, index = node.args
    held = flow.at.get(source) if isinstance(source, fx.Node) else None
    if isinstance(held, list):
        if not isinstance(index, int) or not -len(held) <= index < len(held):
            return None
        return held[index].unknown() if flow.stale(node.all_input_nodes[0], node) else held[index]
    x = flow.read(source, node)
    parts = list(index) if isinstance(index, tuple) else [index]
    if x is None or len(node.all_input_nodes) > 1 or not all(isinstance(p, int | slice) or p in (None, Ellipsis) for p in parts):
        return None
    if any(isinstance(part, bool) for part in parts):
        return None
    dims = len(flow.shape(source))  # type: ignore[arg-type]
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (dims - sum(p is not None and p is not Ellipsis for p in parts))
    old = new = 0
    for part in parts:
        if old == x.axis and part is not None:
            return x.on(new) if part == slice(None) else None
        old += part is not None
        new += not isinstance(part, int)
    return x.on(new + x.axis - old)


def _chunk(flow: Flow, node: fx.Node) -> list[Feature] | None:
    """Equal parts of the channels stand and fall together, so that the parts stay equal."""
    x, count, dim = flow.read(node.args[0], node), argument(node, 1, "chunks"), argument(node, 2, "dim", 0)
    if x is None or not isinstance(count, int) or not isinstance(dim, int):
        return None
    if dim % len(flow.shape(node.args[0])) != x.axis:  # type: ignore[arg-type]
        return [x] * len(flow.traced.noted[node])
    if len(x.atoms) % count:
        return None
    width = len(x.atoms) // count
    parts = [slice(i * width, (i + 1) * width) for i in range(count)]
    for part in parts[1:]:
        flow.atoms.tie(x.atoms[parts[0]], x.atoms[part])
    return [Feature(x.axis, x.atoms[part], x.values[part]) for part in parts]


def _cat(flow: Flow, node: fx.Node) -> Feature | None:
    """Side by side along the channels' axis; what is not followed there stays. Along another axis channels that meet are tied."""
    tensors, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int):
        return None
    axis = dim % len(flow.shape(node))
    features = [flow.read(tensor, node) for tensor in tensors]
    followed = [feature for feature in features if feature is not None]
    if not followed:
        return None
    if all(feature.axis == axis for feature in followed):
        parts: list[Feature] = []
        for tensor, feature in zip(tensors, features, strict=True):
            if feature is None:
                atoms = flow.atoms.fresh(flow.shape(tensor)[axis])
                feature = Feature(axis, atoms, np.full(len(atoms), np.nan))
                flow.keep(feature)
            parts.append(feature)
        return Feature(axis, np.concatenate([p.atoms for p in parts]), np.concatenate([p.values for p in parts]))
    if len(followed) < len(features) or len({feature.axis for feature in followed}) > 1:
        return None
    values = followed[0].values
    for other in followed[1:]:
        flow.atoms.tie(followed[0].atoms, other.atoms)
        values = np.where(values == other.values, values, np.nan)
    return Feature(followed[0].axis, followed[0].atoms, values)


def _expand_as(flow: Flow, node: fx.Node) -> Feature | None:
    """To the shape of a tensor with as many channels on the same axis, which are tied."""
    x, other = flow.read(node.args[0], node), flow.read(node.args[1], node)
    if x is None or other is None or len(x.atoms) != len(other.atoms):
        return None
    if len(flow.shape(node)) - len(flow.shape(node.args[0])) != other.axis - x.axis:  # type: ignore[arg-type]
        return None
    flow.atoms.tie(x.atoms, other.atoms)
    return x.on(other.axis)


def _copied(flow: Flow, node: fx.Node) -> Feature | None:
    return flow.read(node.args[0], node) if len(node.all_input_nodes) == 1 else None


def _converted(flow: Flow, node: fx.Node) -> Feature | None:
    """To another type, which may round: 0 stays 0."""
    x = flow.read(node.args[0], node)
    return None if x is None or len(node.all_input_nodes) > 1 else x.zeros_only()


MOVING_MODULES: dict[type[nn.Module], Rule] = {nn.Flatten: _flatten_module}
MOVING: dict[Any, Rule] = {
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.reshape, "reshape", "view"), _reshape),
    **dict.fromkeys((torch.transpose, "transpose", torch.swapaxes, "swapaxes"), _transpose),
    **dict.fromkeys((torch.permute, "permute"), _permute),
    **dict.fromkeys((torch.mean, "mean", torch.amax, "amax", torch.amin, "amin"), _reduced),
    **dict.fromkeys((torch.squeeze, "squeeze"), _squeeze),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), _unsqueeze),
    operator.getitem: _index,
    **dict.fromkeys((torch.chunk, "chunk"), _chunk),
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    "expand_as": _expand_as,
    **dict.fromkeys(("contiguous", "clone", "detach"), _copied),
    **dict.fromkeys(("to", "float", "double", "half", "bfloat16"), _converted),
}
