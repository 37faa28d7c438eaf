"""Fresh values for packed modules at the scale that the given model has.

Each group is drawn anew from a uniform distribution that gives its outputs the variance the source layer's weights give
theirs (Laurent et al., ICLR 2023, arXiv:2210.09184; the fan-in rule is He et al. 2015, arXiv:1502.01852, eq. 7–10):

    bound = min(√3 · rms(w), max |w|) · √(fan-in of w / fan-in of the group)

For PyTorch's own scheme, uniform within ± 1/√fan-in, this is that scheme at the group's fan-in, and never beyond its bound. Models
that initialise themselves otherwise (He, Xavier, zeros) keep their scale from layer to layer. Biases follow the same rule;
biases and BatchNorm weights that are all one value keep it; BatchNorm statistics start anew.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from quorate.packed.layers import PackedConv2d, PackedLinear


def fan_in(layer: nn.Module) -> int:
    """Inputs that one output of a Linear, Conv2d or packed layer reads."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[-1] if weight.dim() < 4 else weight[0].numel()


def drawn(like: Tensor, source: Tensor, ratio: float) -> Tensor:
    """Uniform values in the shape of `like`, at the scale of `source` times `ratio`."""
    size = source.detach().abs()
    rms = size.square().mean().sqrt()
    bound = torch.minimum(math.sqrt(3) * rms, size.max()) * ratio
    return (2 * torch.rand_like(like) - 1) * bound


def _constant_or(source: Tensor, otherwise: Tensor) -> Tensor:
    """The one value that `source` consists of, or `otherwise`."""
    return torch.where((source == source[0]).all(), source[0], otherwise)


@torch.no_grad()
def fresh_(packed: nn.Module, source: nn.Module) -> None:
    """Draw the parameters of a packed module (torch's global generator) at the scale of the source layer's."""
    weight, bias = source.weight, source.bias
    if isinstance(packed, PackedLinear | PackedConv2d):
        assert isinstance(weight, Tensor)
        ratio = math.sqrt(fan_in(source) / fan_in(packed))
        packed.weight.copy_(drawn(packed.weight, weight, ratio))
        if packed.bias is not None:
            assert isinstance(bias, Tensor)
            values = drawn(packed.bias, bias, ratio)
            packed.bias.copy_(_constant_or(bias, values) if bias.numel() > 1 else values)
    elif isinstance(weight, Tensor) and isinstance(bias, Tensor):
        assert isinstance(packed, nn.BatchNorm1d | nn.BatchNorm2d)
        packed.weight.copy_(_constant_or(weight, torch.ones_like(packed.weight)))
        packed.bias.copy_(_constant_or(bias, torch.zeros_like(packed.bias)))
