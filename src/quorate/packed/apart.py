"""The members of a packed ensemble run one after the other, each as the plain network that it is.

The same parameters, the same numbers to rounding: a member's layers read views of the packed tensors, and gradients come back into
them whole. One pass together saves calls, and wins where calls cost most: small batches, accelerators, compiled graphs. On a CPU grouped
convolutions on large batches are slower than dense ones of the same multiply-adds, and M small sets of activations fit caches that one
wide set does not.

    execution    "together" · "apart" · "auto": apart in PyTorch's eager mode on a CPU, if the network has convolutions and the
                 batch is large (`LARGE` pixels); a rule of shapes alone, so that nothing is timed and a run resumes bit for bit

Shapes: as of the ensemble, (B, …) → (M, B, classes); with inputs of the members' own (M, B, …) → (M, B, classes).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from quorate.packed.members import adopt_modes_, alone, named, part

if TYPE_CHECKING:
    from quorate.packed.ensemble import PackedEnsemble

EXECUTIONS = ("auto", "together", "apart")
LARGE = 16 * 32 * 32  # rows · height · width from which convolutions run apart on a CPU


def hooked(network: nn.Module) -> bool:
    """Whether a hook waits for a call of one of the packed modules, which would not come."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in network.modules())


def large(ensemble: PackedEnsemble, x: Tensor) -> bool:
    """Whether shared inputs of this shape run apart under "auto"."""
    if x.device.type != "cpu" or x.dim() < 3 or x.numel() // max(1, x.shape[1]) < LARGE:
        return False
    graph = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    if graph or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return any(isinstance(module, _ConvNd) for module in ensemble.network.modules()) and not hooked(ensemble.network)


def skeleton(ensemble: PackedEnsemble) -> nn.Module:
    """A plain member without values, one per thread because calls put values into it for a while."""
    key = threading.current_thread()
    if ensemble._skeletons is None:
        ensemble._skeletons = WeakKeyDictionary()
    kept = ensemble._skeletons
    if key not in kept:
        kept[key] = alone(ensemble, 0).to("meta")
    member = kept[key]
    member.training = ensemble.network.training
    adopt_modes_(member, ensemble.network)
    return member


def _split(packed: Tensor, views: list[Tensor]) -> list[Tensor]:
    """The members' views of one packed parameter, made in one step where they are its blocks: their gradients come back in one too."""
    members = len(views)
    if packed.dim() and packed.shape[0] % members == 0:
        blocks = packed.unflatten(0, (members, packed.shape[0] // members)).unbind(0)
        same = all(b.data_ptr() == v.data_ptr() and b.numel() == v.numel() for b, v in zip(blocks, views, strict=True))
        if same and packed.is_contiguous():
            return [b.reshape(v.shape) for b, v in zip(blocks, views, strict=True)]
        if same and blocks[0].shape == views[0].shape:
            return list(blocks)
    return views


def values(ensemble: PackedEnsemble) -> list[dict[str, Tensor]]:
    """For each member: its plain network's parameters and buffers, by name. What all share is copied in training for all but one."""
    network, members = ensemble.network, ensemble.members
    found: list[dict[str, Tensor]] = [{} for _ in range(members)]
    packed: list[str] = []
    for row in ensemble._rows:
        owner = named(network, row.name)
        packed.append(row.name)
        if isinstance(owner, Tensor):
            for m, view in enumerate(owner.unbind(0)):
                found[m][row.name] = view
            continue
        own = dict(owner.named_parameters())
        views = [part(owner, m) for m in range(members)]
        for key in views[0]:
            mine = [view[key] for view in views]
            split = _split(own[key], mine) if key in own else mine
            for m in range(members):
                found[m][f"{row.name}.{key}"] = split[m]
    inside = tuple(f"{name}." for name in packed)
    for name, tensor in (*network.named_buffers(), *network.named_parameters()):
        for m in range(members):
            if name.startswith(inside) or name in packed:
                if name.endswith("num_batches_tracked"):
                    found[m][name] = tensor.clone() if m else tensor
            else:
                found[m][name] = tensor.clone() if m and network.training and not tensor.requires_grad else tensor
    return found


def run_apart(ensemble: PackedEnsemble, inputs: list[Tensor]) -> Tensor:
    """One input per member → (M, B, classes)."""
    member = skeleton(ensemble)
    logits = [functional_call(member, own, (x,)) for own, x in zip(values(ensemble), inputs, strict=True)]
    return torch.stack(logits)
