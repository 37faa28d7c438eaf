"""Fresh values for packed layers at the scale that the given model has.

Each group is drawn anew from a uniform distribution that gives its outputs the variance the source layer's weights give
theirs (Laurent et al., ICLR 2023, arXiv:2210.09184; the fan-in rule is He et al. 2015, arXiv:1502.01852, eq. 7–10):

    bound = min(√3 · rms(w), max |w|) · √(fan-in of w / fan-in of the group)

For PyTorch's own scheme, uniform within ± 1/√fan-in, this is that scheme at the group's fan-in, and never beyond its bound. Models
that initialise themselves otherwise (He, Xavier, zeros) keep their scale from layer to layer. Where weights have one scale whatever
their sizes (the normal values of standard deviation 0.02 of ViT and BERT), members keep that scale, as a narrower model would. Biases
follow the same rule; biases, weights of norms and bare parameters that are all one value keep it; other bare parameters keep their
scale; statistics start anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from quorate.packed.layers.arrangement import PackedLayer
from quorate.packed.members import part
from quorate.packed.registry import MemberCopies

ALIKE = 0.1  # by how much, relative, two layers' scales may differ that are taken for one
NORMS = (_NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def _rms(weight: Tensor) -> Tensor:
    """Root mean square."""
    return weight.detach().square().mean().sqrt()


def drawn(like: Tensor, source: Tensor, ratio: float) -> Tensor:
    """Uniform values in the shape of `like`, at the scale of `source` times `ratio`."""
    size = source.detach().abs()
    bound = torch.minimum(math.sqrt(3) * _rms(source), size.max()) * ratio
    return (2 * torch.rand_like(like) - 1) * bound


def fixed_scale(sources: Iterable[nn.Module | Tensor]) -> float | None:
    """The one root mean square of a model's weights that does not follow their sizes, None if there is none.

    At least three weights have it (to a tenth) whose fan-in, fan-out, and both together and the larger of the two differ by half or more:
    no scheme that follows any of these would give them one scale.
    """
    found: list[tuple[float, int, int]] = []
    for source in sources:
        weights = () if isinstance(source, Tensor | nn.Embedding) else source.parameters()
        for weight in weights:
            if weight.dim() > 1 and weight.numel() >= 256 and not weight.is_meta:
                inner = math.prod(weight.shape[2:])
                found.append((float(_rms(weight)), weight.shape[1] * inner, weight.shape[0] * inner))
    for scale, *_ in found:
        alike = [(into, out) for rms, into, out in found if abs(rms - scale) <= ALIKE * scale]
        measures = [
            [into for into, _ in alike],
            [out for _, out in alike],
            [a + b for a, b in alike],
            [max(pair) for pair in alike],
        ]
        if scale > 0 and len(alike) > 2 and 2 * len(alike) > len(found) and all(max(m) >= 1.5 * min(m) for m in measures):
            return scale
    return None


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
def fresh_(packed: nn.Module | Tensor, source: nn.Module | Tensor, fixed: float | None = None) -> None:
    """Draw the parameters of a packed layer (torch's global generator) at the scale of the source layer's.

    fixed: the scale of the model's weights that do not follow their fan-in (`fixed_scale`).
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
    for name, given in source.named_parameters():
        norm = isinstance(_owner(source, name), (*NORMS, nn.PReLU))
        stays = norm or (fixed is not None and given.dim() > 1 and abs(float(_rms(given)) - fixed) <= ALIKE * fixed)
        ratio = 1.0 if stays else math.sqrt(kind.fan_in(source, name) / kind.fan_in(plain, name))
        for views in members:
            views[name].copy_(_values(views[name], source, name, ratio))
