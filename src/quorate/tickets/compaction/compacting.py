"""Channels that ended empty, cut out for good: the same network with smaller dense layers.

What dynamic sparse training leaves of a layer has rows and columns without a live weight. A channel that no layer reads any more, or that
is the same number for every input, need not be computed:

    y = W x + b,   x_c = v for every input    ⇒    y = W₋c x₋c + (b + W_c v)

The rules are exact, for every input and not only for the example, up to the rounding of sums in another order: 1e-6 of the
output's greatest value in fp32 on the networks of this package.

Shapes: a convolution (out, in, …) becomes (out′, in′, …), a linear layer (F_out′, F_in′); batch normalisation and PReLU follow.
"""

from __future__ import annotations

import torch
from torch import nn

from quorate._optional import one_line
from quorate.cost.counting import Example
from quorate.graphs.narrowing import Kept, narrow_
from quorate.graphs.rules import follow
from quorate.graphs.tracing import Traced, check, difference, private_copy, trace
from quorate.tickets.compaction.choosing import choose


def removable(model: nn.Module, example: Example) -> dict[str, Kept]:
    """What :func:`compact` cuts: by name of each layer that gets smaller, the channels that stay. Empty where nothing can go.

    Plain data, from which masks or optimiser state of the layers can be cut alike. Arguments and errors are those of :func:`compact`.
    """
    check(model, example)
    return choose(follow(trace(model, example)))


@torch.no_grad()
def compact(model: nn.Module, example: Example) -> nn.Module:
    """A copy of the model without channels and hidden features that are of no use, with the same outputs in evaluation mode.

    Zeros in the weights are enough: no masks are needed. The class and its forward stay, the layers inside get narrower: convolutions,
    linear layers, batch normalisation and PReLU, called once each, on the channels of a convolution or the last axis of a linear layer.
    Sums and products tie channels (a residual stream loses a channel if all its readers do), a grouped convolution loses whole
    groups. A reader whose constant inputs go may get a bias that it did not have. What torch.fx shows as any other step keeps the
    channels around it: LayerNorm, GroupNorm, attention, recurrent layers, views with fixed sizes, shared, tied or parametrised weights,
    layers with hooks. A layer that is empty altogether keeps one channel.
    Inputs and outputs of the model keep their shapes.

    Members of an ensemble are compacted one by one: ``DeepEnsemble([compact(member, x) for member in ensemble.members])``. Training may go
    on with a new optimiser, but not as it would have: what was cut were constants of evaluation, and a layer that is called in training
    only has kept its width.

    Args:
        model: an eager module in any mode; it is left as it is, with its buffers and the random generators.
        example: inputs as for :func:`quorate.macs`: a tensor, a tuple of positional or a dict of keyword arguments. It gives
            the sizes of the tensors, and the proof below; any values will do.

    Returns:
        A new module of the same class, in the model's modes. Its parameters have no gradients.

    Raises:
        ValueError: no eager module with values or no example; a model that does not run on it, can't be copied or traced, or whose
            forward goes by the widths of its layers or gives other outputs than its graph; and should the outputs on the example
            differ by more than rounding after all.
    """
    check(model, example)
    traced = trace(model, example)
    plan = choose(follow(traced))
    smaller = private_copy(model)
    for parameter in smaller.parameters():
        parameter.grad = None
    for name, kept in plan.items():
        narrow_(smaller.get_submodule(name), kept)
    if plan:
        prove(traced, smaller, example)
    return smaller


def prove(traced: Traced, smaller: nn.Module, example: Example) -> None:
    """ValueError unless the smaller model has the same graph as the traced one, and on the example the same outputs."""
    try:
        again = trace(smaller, example)
        trouble = difference(traced.outputs, again.outputs)
        if trouble is None and traced.steps() != again.steps():
            trouble = "its graph has other steps or numbers"
    except ValueError as error:
        trouble = one_line(error)
    if trouble:
        raise ValueError(
            f"{type(smaller).__name__} with narrower layers: expected the outputs and the graph of the given model, but {trouble}: write a "
            "forward that does not go by its layers' widths (ask x.shape), or leave those layers without empty channels"
        )
