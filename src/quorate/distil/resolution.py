"""A chain on smaller inputs: an average pooling right before the first layer with weights.

    pooled      (B, C, H, W) → (B, C, ⌊H/d⌋, ⌊W/d⌋), (B, C, L) → (B, C, ⌊L/d⌋); channels may be on another axis

A linear layer behind a flatten, which has one weight for each position, is made anew for the fewer positions: with W (out, C, *S) its
weights by position, the new ones are the averages over the regions that a position now stands for, times how many that are,

    W′[o, c, s′] = mean over the region of s′ of W[o, c, s] · |S| / |S′|

which gives the same sum for features that are constant in each region.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quorate._optional import one_line
from quorate.graphs.segments import Boundary, Chain, weighs
from quorate.graphs.tracing import undisturbed

POOLING = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
AVERAGES: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


class Coarser(nn.Module):
    """Average pooling over all axes but the batch and the channels' axis.

    Shapes: (B, C, *S) → (B, C, *⌊S / divisor⌋), with C on any axis ≥ 1.
    """

    def __init__(self, divisor: int, axis: int, dims: int) -> None:
        super().__init__()
        self.axis, self.pool = axis, POOLING[dims - 1](divisor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → the same with fewer positions."""
        if self.axis == 1:
            pooled: Tensor = self.pool(x)
            return pooled
        return self.pool(x.transpose(1, self.axis)).transpose(1, self.axis)  # type: ignore[no-any-return]


def layered(segment: nn.Module) -> bool:
    """Whether a segment has a layer with weights (not only normalisation)."""
    return isinstance(segment, fx.GraphModule) and any(weighs(segment, node) for node in segment.graph.nodes)


def first_layer(chain: Chain) -> int:
    """The place of the first segment with weights. Raises ValueError."""
    for place, segment in enumerate(chain.segments):
        if layered(segment):
            return place
    raise ValueError("model: expected a layer with weights, got none; pass a network that is trained")


def _linear_behind(segment: nn.Module, features: int) -> tuple[str, nn.Linear] | None:
    """The linear layer that reads what a segment is given, if that is the only use of it, and its name."""
    assert isinstance(segment, fx.GraphModule)
    placeholder = next(iter(segment.graph.nodes))
    if len(placeholder.users) != 1:
        return None
    (user,) = placeholder.users
    layer = segment.get_submodule(str(user.target)) if user.op == "call_module" else None
    return (str(user.target), layer) if isinstance(layer, nn.Linear) and layer.in_features == features else None


def _called(segment: nn.Module, x: Tensor) -> Tensor:
    """What a segment gives, by its forward alone: a graph's own call prints where it fails."""
    given: Tensor = segment.forward(x)
    return given


@torch.no_grad()
def _fewer_positions(layer: nn.Linear, before: tuple[int, ...], after: tuple[int, ...]) -> nn.Linear:
    """The linear layer for flattened features (C, *after) instead of (C, *before)."""
    weight = layer.weight.reshape(layer.out_features, *before)
    pooled = AVERAGES[len(before) - 2](weight, list(after[1:])) * (math.prod(before) / math.prod(after))
    made = nn.Linear(math.prod(after), layer.out_features, layer.bias is not None, layer.weight.device, layer.weight.dtype)
    made.weight.copy_(pooled.flatten(1))
    if layer.bias is not None:
        made.bias.copy_(layer.bias)
    return made


def coarser(chain: Chain, example: Tensor, divisor: int) -> Chain:
    """The chain on inputs that are averaged over `divisor` steps, or `divisor` × `divisor` pixels.

    Raises:
        ValueError: no axis of positions before the first layer with weights, fewer positions than the divisor, or a network that does
            not run on the smaller input or gives other outputs on it.
    """
    made = copy.deepcopy(chain).eval()
    place = first_layer(made)
    at = made.boundaries[place - 1] if place else made.given
    name = f"resolution: expected a divisor that the network takes, got {divisor}"
    if len(at.shape) < 2 or len(at.shape) > 4 or at.axis is None:
        raise ValueError(
            f"{name}, but what the first layer with weights reads has no axis of steps or pixels that is known (shape {at.shape}); pass 1"
        )
    if min(size for axis, size in enumerate(at.shape, start=1) if axis != at.axis) < divisor:
        raise ValueError(f"{name}, but what the first layer with weights reads is smaller (shape {at.shape}); pass 1")
    pool = Coarser(divisor, at.axis, len(at.shape) - 1)
    segments: list[nn.Module] = list(made.segments)
    shapes = [made.given.shape, *(boundary.shape for boundary in made.boundaries)]
    with undisturbed(made, seed=0):
        x: Tensor = example[:2]
        for segment in segments[:place]:
            x = _called(segment, x)
        given = [x := pool(x)]
        for i in range(place, len(segments)):
            now = tuple(x.shape[1:])
            flat = len(now) == 1 and now != shapes[i] and i > place and len(shapes[i - 1]) > 1
            found = _linear_behind(segments[i], shapes[i][0]) if flat else None
            if found is not None and made.boundaries[i - 2].axis == 1 and math.prod(shapes[i - 1]) == shapes[i][0]:
                segments[i].set_submodule(found[0], _fewer_positions(found[1], shapes[i - 1], tuple(given[-2].shape[1:])))
            try:
                given.append(x := _called(segments[i], x))
            except Exception as error:
                raise ValueError(f"{name}, but it does not run on the smaller input ({one_line(error)}); pass 1") from error
        wanted = copy.deepcopy(chain).eval()(example[:2]).shape
    if x.shape != wanted:
        raise ValueError(f"{name}, but its outputs become {tuple(x.shape[1:])} instead of {tuple(wanted[1:])}; pass 1")
    boundaries = [Boundary(tuple(x.shape[1:]), None) for x in given[:-1]]
    return Chain([*segments[:place], pool, *segments[place:]], [*made.boundaries[:place], *boundaries], made.given)
