"""A ticket: one sparse network as plain data. Its tensors hold zeros where its masks are False.

tensors   {name: tensor}          the network's state dict, whole
masks     {weight: bool tensor}   of the weight's shape, True = live; a live weight may be zero (it has just been grown)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from quorate._validation import nearest
from quorate.tickets.masks import Masks


@dataclass(frozen=True)
class Ticket:
    """One sparse network.

    Attributes:
        tensors: parameters and buffers by their names in the state dict; names of one shared parameter give one tensor.
        masks: True = live, for each sparse weight by its name among the model's parameters.
        about: what was said about it (JSON values).
    """

    tensors: dict[str, Tensor]
    masks: Masks
    about: dict[str, Any] = field(default_factory=dict)


def state_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's state dict, and the other names of shared tensors, each with the first. Raises ValueError for state that is no tensor."""
    state: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or is_lazy(value) or value.is_meta or value.layout != torch.strided:
            kind = (
                "a lazy tensor"
                if is_lazy(value)
                else f"a {value.layout} tensor on {value.device}"
                if isinstance(value, Tensor)
                else ""
            )
            raise ValueError(
                f"{name!r}: expected dense tensors with values, got {kind or type(value).__name__}; a ticket can't hold it"
            )
        if (known := first.setdefault(id(value), name)) != name:
            shared[name] = known
        state[name] = value.detach()
    return state, shared


def check_masks(tensors: Mapping[str, Tensor], masks: Masks, of: str) -> None:
    """Refuse masks that aren't those of the tensors `of` something.

    Raises:
        ValueError: no such weight, a mask that is not bool or of another shape or device, or a weight that is not 0 where it is dead.
    """
    for name, mask in masks.items():
        if name not in tensors:
            raise ValueError(
                f"{of} has no weight {name!r}{nearest(name, list(tensors))}; name weights as model.named_parameters() does"
            )
        weight = tensors[name]
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != weight.shape or mask.device != weight.device:
            got = f"{mask.dtype} {tuple(mask.shape)} on {mask.device}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"the mask of {name!r} of {of}: expected torch.bool {tuple(weight.shape)} on {weight.device}, got {got}; True means live"
            )
        if wrong := int(((weight != 0) & ~mask).sum()):
            raise ValueError(
                f"{name!r} of {of}: expected 0 where its mask is False, got {wrong} other values; apply the masks first"
            )


def check_fits(given: Mapping[str, Tensor], held: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that aren't those of a model's state. Raises ValueError: names, shapes or dtypes that differ."""
    if absent := [name for name in held if name not in given]:
        raise ValueError(f"{what} has no tensor {absent[0]!r}, the model has; build the model as the one that was saved")
    if extra := [name for name in given if name not in held]:
        raise ValueError(f"{what} has a tensor {extra[0]!r}, the model has none; build the model as the one that was saved")
    for name, tensor in given.items():
        if tensor.shape != held[name].shape:
            raise ValueError(
                f"{what} has {name!r} of shape {tuple(tensor.shape)}, the model of {tuple(held[name].shape)}; build it as it was saved"
            )
        if tensor.dtype != held[name].dtype:
            raise ValueError(
                f"{what} has {name!r} in {tensor.dtype}, the model in {held[name].dtype}; convert the model first, as with model.to(dtype)"
            )
