"""A model with fewer channels everywhere: the first ⌈width · n⌉ of each n that stand by themselves.

Channels that are tied (the two sides of a sum, a group of a grouped convolution, a head) stay or go together, quorate.graphs.flow.
Sets of tied channels that are made by the same layers are one family, of which the first ⌈width · n⌉ stay, at least one; so every layer
keeps some, whatever its channels are tied to. What is not
followed keeps its width; so do the model's inputs and outputs. The weights that stay have their values: nothing is made up for those that
go, so that the narrower model computes something else. That is the difference to tickets.compaction, which is exact.

    before      conv 3 → 64, conv 64 → 64, + , linear 64 → 10       width ½
    after       conv 3 → 32, conv 32 → 32, + , linear 32 → 10
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, fx, nn

from quorate._optional import one_line
from quorate.graphs.flow import Feature, Flow, Layer
from quorate.graphs.modes import in_both_modes
from quorate.graphs.narrowing import Kept, narrow_
from quorate.graphs.rows import Rows
from quorate.graphs.segments import check_input, flat
from quorate.graphs.structure import Structure
from quorate.graphs.structure_steps import structure
from quorate.graphs.tracing import undisturbed


def share(fraction: float, count: int) -> int:
    """⌈fraction · count⌉, at least 1; what rounding of the product adds does not count."""
    return max(1, math.ceil(fraction * count - 1e-9))


def families(flow: Flow) -> list[list[int]]:
    """The sets of tied channels (their representatives) that are made by the same layers, in the order of their first channel."""
    roots = flow.atoms.roots()
    makers: dict[int, set[int]] = {}
    for maker, atoms in enumerate(flow.atoms.made):
        for root in roots[atoms].tolist():
            makers.setdefault(root, set()).add(maker)
    found: dict[frozenset[int], list[int]] = {}
    for root, made_by in makers.items():
        found.setdefault(frozenset(made_by), []).append(root)
    return list(found.values())


class Staying:
    """Which channels stay at a width."""

    def __init__(self, flow: Flow, width: float) -> None:
        self.roots = flow.atoms.roots()
        self.stays = np.ones(len(self.roots), dtype=bool)
        for family in families(flow):
            if not any(flow.atoms.kept[root] for root in family):
                self.stays[family[share(width, len(family)) :]] = False

    def __call__(self, feature: Feature) -> list[int]:
        """The channels of a tensor that stay."""
        found: list[int] = np.flatnonzero(self.stays[self.roots[feature.atoms]]).tolist()
        return found


def _narrow_layer_(layer: Layer, staying: Staying) -> None:
    """Cut one of the layers that quorate.graphs.rules follows."""
    outputs, columns = staying(layer.outputs), None if layer.inputs is None else staying(layer.inputs)
    if columns is None:
        assert layer.reads is not None
        columns = list(range(layer.reads.shape[1]))
    before = (len(columns) if layer.inputs is None else len(layer.inputs.atoms), len(layer.outputs.atoms))
    kept = Kept(tuple(columns), tuple(outputs), before, {})
    if (len(columns), len(outputs)) != before:
        narrow_(layer.module, kept)


@torch.no_grad()
def _narrow_(flow: Structure, staying: Staying) -> None:
    """Cut all layers, and write the new numbers of channels into the graph."""
    for layer in flow.layers:
        _narrow_layer_(layer, staying)
    for cut in flow.cuts:
        cut(staying)
    flow.freeze_numbers_(lambda feature: len(staying(feature)))


def narrowed(model: nn.Module, example: Tensor, width: float) -> fx.GraphModule:
    """A narrower copy of a model: of each set of channels that can go the first ⌈width · n⌉ stay, at least one.

    Followed are convolutions (transposed, grouped and depthwise ones too), linear layers, embeddings, LSTM and GRU (every layer and
    direction), attention by whole heads (nn.MultiheadAttention, nn.TransformerEncoderLayer, products and scaled dot products of reshaped
    projections), normalisations, parameters that are added, multiplied or put beside a tensor, and steps that move or combine channels.
    Everything else keeps its width.

    Args:
        model: an eager module of one tensor to one tensor; it is left as it is.
        example: an input (B, *shape).
        width: in (0, 1].

    Returns:
        A module of the graph's steps, in the model's mode.

    Raises:
        ValueError: what :func:`quorate.graphs.segments.chain` refuses; a width outside (0, 1]; a width below 1 at which nothing gets
            narrower; a model that does not run narrower.
    """
    if not isinstance(width, (int, float)) or isinstance(width, bool) or not 0 < width <= 1:
        raise ValueError(f"width: expected a share of the channels in (0, 1], got {width!r}; pass for example 0.5")
    example = check_input(example)
    traced = in_both_modes(model, example)
    rows = Rows(traced, example)
    flow = structure(traced, rows)
    staying = Staying(flow, width)
    if width < 1 and staying.stays.all():
        raise ValueError(
            f"width: expected channels that can go, got none in {type(model).__name__} at {width}: all are inputs, outputs or beside steps "
            "that are not known; leave the width at 1"
        )
    _narrow_(flow, staying)
    made = flat(traced, rows, flow)
    made.eval()
    try:
        with undisturbed(made, seed=0):
            given = made.forward(example.clone())
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} does not run at width {width} ({one_line(error)}): leave the width at 1"
        ) from error
    if given.shape != traced.outputs.shape:
        raise ValueError(
            f"{type(model).__name__} at width {width}: expected outputs of shape {tuple(traced.outputs.shape)}, got {tuple(given.shape)}; "
            "leave the width at 1"
        )
    return made.train(model.training)
