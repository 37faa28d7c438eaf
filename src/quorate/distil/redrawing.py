"""All weights of a network drawn anew from a seed.

    convolutions            N(0, 2 · groups / (k · out)), k positions of the kernel (He et al. 2015, arXiv:1502.01852, eq. 14, fan out)
    other layers            PyTorch's own `reset_parameters`; normalisations start at weight 1, bias 0 and fresh statistics
    bare parameters         N(mean, std²) of the given values: positions, tokens, scales stay at their scale

Values are drawn on the CPU in float32's generator, whatever the device, so that a seed gives the same network everywhere.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@torch.no_grad()
def redraw_(module: nn.Module, seed: int) -> None:
    """Draw all weights anew, in place; the global generators stay as they are."""
    places = {name: tensor.device for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    module.to("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        for part in reversed(list(module.modules())):  # a module's own rule comes after those of its parts
            _redraw_part_(part)
    for device in set(places.values()):
        module.to(device)


def _redraw_part_(part: nn.Module) -> None:
    reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
    if reset is None:
        for parameter in part._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                std, mean = torch.std_mean(parameter.float(), correction=0)
                parameter.copy_(mean + std * torch.randn(parameter.shape))
        return
    reset()
    if isinstance(part, _ConvNd):
        outputs: int = part.weight.shape[1] * part.groups if isinstance(part, _ConvTransposeNd) else part.weight.shape[0]
        spread = math.sqrt(2 * part.groups / (math.prod(part.kernel_size) * outputs))
        part.weight.copy_(torch.randn(part.weight.shape) * spread)
