"""Fresh values for packed layers at the scale that the given model has.

Each group is drawn anew from a uniform distribution that gives its outputs the variance the source layer's weights give
theirs (Laurent et al., ICLR 2023, arXiv:2210.09184; the fan-in rule is He et al. 2015, arXiv:1502.01852, eq. 7–10):

    bound = min(√3 · rms(w), max |w|) · √(fan-in of w / fan-in of the group)

For PyTorch's own scheme, uniform within ± 1/√fan-in, this is that scheme at the group's fan-in, and never beyond its bound. Models
that initialise themselves otherwise (He, Xavier, zeros) keep their scale from layer to layer. Biases follow the same rule; biases,
weights of norms and bare parameters that are all one value keep it; other bare parameters keep their scale; statistics start anew.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from quorate.packed.layers.arrangement import PackedLayer
from quorate.packed.members import part
from quorate.packed.registry import MemberCopies

NORMS = (_NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def drawn(like: Tensor, source: Tensor, ratio: float) -> Tensor:
    """Uniform values in the shape of `like`, at the scale of `source` times `ratio`."""
    size = source.detach().abs()
    rms = size.square().mean().sqrt()
    bound = torch.minimum(math.sqrt(3) * rms, size.max()) * ratio
    return (2 * torch.rand_like(like) - 1) * bound


def _constant_or(source: Tensor, otherwise: Tensor) -> Tensor:
    """The one value that `source` consists of, or `otherwise`."""
    first = source.flatten()[0]
    return torch.where((source == first).all(), first, otherwise)


def _owner(source: nn.Module, name: str) -> nn.Module:
    return source.get_submodule(name.rpartition(".")[0])


def _values(view: Tensor, source: nn.Module, name: str, ratio: float) -> Tensor:
    """A member's fresh values of one parameter."""
    given, owner = source.get_parameter(name), _owner(source, name)
    if isinstance(owner, NORMS):
        return _constant_or(given, torch.zeros_like(view) if name.endswith("bias") else torch.ones_like(view))
    if isinstance(owner, nn.PReLU):
        return _constant_or(given, given.mean().expand_as(view))
    values = drawn(view, given, ratio)
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.padding_idx is not None:
        values[owner.padding_idx] = 0
    return _constant_or(given, values) if given.dim() == 1 and given.numel() > 1 else values


@torch.no_grad()
def fresh_(packed: nn.Module | Tensor, source: nn.Module | Tensor) -> None:
    """Draw the parameters of a packed layer (torch's global generator) at the scale of the source layer's.

    Modules that are kept whole have the values they were made with.
    """
    if isinstance(packed, Tensor):
        assert isinstance(source, Tensor)
        for m in range(len(packed)):
            packed[m].copy_(_constant_or(source, drawn(packed[m], source, 1.0)))
        return
    if isinstance(packed, MemberCopies):
        return
    assert isinstance(packed, PackedLayer)
    assert isinstance(source, nn.Module)
    plain, kind = packed.plain(), type(packed)
    members = [part(packed, m) for m in range(packed.members)]
    for name, _ in source.named_parameters():
        norm = isinstance(_owner(source, name), (*NORMS, nn.PReLU))
        ratio = 1.0 if norm else math.sqrt(kind.fan_in(source, name) / kind.fan_in(plain, name))
        for views in members:
            views[name].copy_(_values(views[name], source, name, ratio))
