"""One member's part of packed modules: views of it, the plain module that it amounts to, and both ways of copying.

Channels are member-major, so member m's part of any parameter or statistic over n channels of M members is the block
[m · n/M, (m + 1) · n/M) along dimension 0. All functions take a PackedLinear, a PackedConv2d or a widened BatchNorm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from quorate.packed.layers import PackedConv2d, PackedLinear

Norm = nn.BatchNorm1d | nn.BatchNorm2d
Packed = PackedLinear | PackedConv2d | Norm
STATE = ("weight", "bias", "running_mean", "running_var")


def part(module: nn.Module, m: int, members: int) -> dict[str, Tensor]:
    """Views of member m's parameters and statistics, in the shapes of the plain module."""
    if isinstance(module, PackedLinear | PackedConv2d):
        return module.member(m)
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    width = module.num_features // members
    tensors = {name: getattr(module, name) for name in STATE}
    return {name: t[m * width : (m + 1) * width] for name, t in tensors.items() if t is not None}


def norm(like: Norm, features: int) -> Norm:
    """A BatchNorm with the settings of `like` over `features` channels, fresh."""
    tensor = next((t for t in (like.weight, like.running_mean) if t is not None), None)
    return type(like)(
        features,
        like.eps,
        like.momentum,
        like.affine,
        like.track_running_stats,
        device=None if tensor is None else tensor.device,
        dtype=None if tensor is None else tensor.dtype,
    )


def adopt_modes_(network: nn.Module, source: nn.Module) -> None:
    """Put every module into the mode (training or evaluation) that the one of its name has in `source`."""
    modes = {name: module.training for name, module in source.named_modules()}
    for name, module in network.named_modules():
        module.training = modes.get(name, source.training)


def freeze_alike_(module: nn.Module, source: nn.Module) -> None:
    """Freeze the parameters that are frozen in `source`, and only those."""
    given = dict(source.named_parameters())
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(given[name].requires_grad)


@torch.no_grad()
def taken(module: nn.Module, m: int, members: int) -> nn.Module:
    """Member m of a packed module, as a plain one with copies of its values."""
    if isinstance(module, PackedLinear | PackedConv2d):
        plain = module.plain()
    else:
        assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        plain = norm(module, module.num_features // members)
        if module.num_batches_tracked is not None and plain.num_batches_tracked is not None:
            plain.num_batches_tracked.copy_(module.num_batches_tracked)
    for name, view in part(module, m, members).items():
        getattr(plain, name).copy_(view)
    freeze_alike_(plain, module)
    return plain


@torch.no_grad()
def put_(module: nn.Module, m: int, members: int, source: nn.Module) -> None:
    """Copy a plain module's values into member m's part of a packed one (batches seen: those of the last one put)."""
    for name, view in part(module, m, members).items():
        view.copy_(getattr(source, name))
    seen, given = getattr(module, "num_batches_tracked", None), getattr(source, "num_batches_tracked", None)
    if isinstance(seen, Tensor) and isinstance(given, Tensor):
        seen.copy_(given)


def parts(network: nn.Module, names: Iterable[str], m: int, members: int) -> Iterator[Tensor]:
    """Views of all that belongs to member m in the packed modules of these names."""
    for name in names:
        yield from part(network.get_submodule(name), m, members).values()
