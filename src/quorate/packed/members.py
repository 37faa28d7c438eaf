"""One member's part of a packed network: views of it, the plain module that it amounts to, and both ways of copying.

A packed layer tells what belongs to member m (`PackedLayer.member`); of a bare parameter (M, *shape) it is [m].
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from quorate.packed.layers.arrangement import PackedLayer
from quorate.packed.trace import inside

if TYPE_CHECKING:
    from quorate.packed.ensemble import PackedEnsemble

COPY = re.compile(r"^copies\.\d+\.")  # of a layer that is M modules


def named(root: nn.Module, name: str) -> nn.Module | Tensor:
    """The module, parameter or buffer of this name."""
    found: nn.Module | Tensor = reduce(getattr, name.split("."), root)
    return found


def part(found: nn.Module | Tensor, m: int) -> dict[str, Tensor]:
    """Views of member m's parameters and statistics, in the shapes of the plain module (of a bare parameter: under "")."""
    if isinstance(found, Tensor):
        return {"": found[m]}
    assert isinstance(found, PackedLayer)
    return found.member(m)


def adopt_modes_(network: nn.Module, source: nn.Module) -> None:
    """Put every module into the mode (training or evaluation) that the one of its name has in `source`."""
    modes = {name: module.training for name, module in source.named_modules()}

    def mode(name: str) -> bool:
        while name not in modes and name:
            name = name.rpartition(".")[0]
        return bool(modes.get(name, source.training))

    for name, module in network.named_modules():
        module.training = mode(name)


def freeze_alike_(module: nn.Module, source: nn.Module) -> None:
    """Freeze the parameters that are frozen in `source`, and only those."""
    given = dict(source.named_parameters())
    for name, parameter in module.named_parameters():
        like = given.get(name, given.get(COPY.sub("", name)))
        if like is not None:
            parameter.requires_grad_(like.requires_grad)


@torch.no_grad()
def fill_(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into a plain module by the names of its state dict."""
    state = module.state_dict(keep_vars=True)
    for name, value in values.items():
        state[name].copy_(value)


def frozen_like(plain: nn.Module, packed: nn.Module) -> nn.Module:
    """A plain module with the frozen parameters of the packed one that it comes from."""
    given = {COPY.sub("", name): p.requires_grad for name, p in packed.named_parameters()}
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(given.get(name, True))
    return plain


@torch.no_grad()
def taken(found: nn.Module | Tensor, m: int) -> nn.Module | Tensor:
    """Member m of a packed layer, as a plain one with copies of its values; of a bare parameter a parameter."""
    if isinstance(found, Tensor):
        return nn.Parameter(found[m].clone(), found.requires_grad)
    assert isinstance(found, PackedLayer)
    plain = found.plain()
    fill_(plain, part(found, m))
    seen, mine = dict(found.named_buffers()), dict(plain.named_buffers())
    for name in mine:
        if name.endswith("num_batches_tracked") and name in seen:
            mine[name].copy_(seen[name])
    return frozen_like(plain, found)


@torch.no_grad()
def put_(found: nn.Module | Tensor, m: int, source: nn.Module | Tensor) -> None:
    """Copy a plain module's values into member m's part of a packed one (batches seen: those of the last one put)."""
    if isinstance(source, Tensor):
        part(found, m)[""].copy_(source)
        return
    given = source.state_dict()
    for name, view in part(found, m).items():
        view.copy_(given[name])
    assert isinstance(found, nn.Module)
    for name, seen in found.named_buffers():
        if name.endswith("num_batches_tracked") and name in given:
            seen.copy_(given[name])


def parts(network: nn.Module, names: Iterable[str], m: int) -> Iterator[Tensor]:
    """Views of all that belongs to member m in the packed layers and bare parameters of these names."""
    for name in names:
        yield from part(named(network, name), m).values()


def put_back(network: nn.Module, m: int) -> nn.Module:
    """Member m of a network that was packed module by module, as a plain model."""
    member = copy.deepcopy(network)
    done: list[str] = []
    for name, module in network.named_modules():
        if not isinstance(module, PackedLayer) or any(name.startswith(f"{outer}.") for outer in done):
            continue
        assert isinstance(module, nn.Module)
        done.append(name)
        plain = taken(module, m)
        assert isinstance(plain, nn.Module)
        parent, _, leaf = name.rpartition(".")
        setattr(member.get_submodule(parent), leaf, plain.train(module.training))
    return member


def read_off(graph: fx.Graph, parts: Mapping[str, nn.Module | Tensor]) -> dict[str, Tensor]:
    """Tensors of layers that steps read a dtype or a device off, by name. parts: the layers by name."""
    names = [str(node.target) for node in graph.nodes if node.op == "get_attr" and inside(node)]
    found = {name: getattr(parts[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def alone(packed: PackedEnsemble, m: int) -> nn.Module:
    """Member m as a plain model, with copies of its values."""
    if packed.program.member is None:
        return put_back(packed.network, m)
    names = {row.name for row in packed.explain()}
    found: dict[str, nn.Module | Tensor] = {}
    for node in packed.program.member.nodes:
        name = str(node.target)
        if node.op in ("call_module", "get_attr") and name not in found and not (node.op == "get_attr" and inside(node)):
            value = named(packed.network, name)
            found[name] = taken(value, m) if name in names else copy.deepcopy(value)
    found |= read_off(packed.program.member, found)
    member = fx.GraphModule(found, copy.deepcopy(packed.program.member), "Member")
    member.training = packed.network.training
    adopt_modes_(member, packed.network)
    return member
