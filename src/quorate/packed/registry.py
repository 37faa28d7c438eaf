"""How modules of the user's own are packed.

    rewrite    an equivalent module that is made of what `pack` knows: it is put in the module's place before tracing
    narrow     the same module at a member's width: M of them run one after the other, each on its member's rows

A module that is neither registered nor known is stepped into by tracing; what it does is then packed step by step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing, spread, to_channels, to_rows

Rewrite = Callable[[Any], nn.Module]
Narrow = Callable[[Any, Packing], nn.Module]


@dataclass(frozen=True)
class Registered:
    """One of the two is given."""

    rewrite: Rewrite | None = None
    narrow: Narrow | None = None


_REGISTRY: dict[type[nn.Module] | str, Registered] = {}


def register_packing(kind: type[nn.Module] | str, *, rewrite: Rewrite | None = None, narrow: Narrow | None = None) -> None:
    """Say how modules of a class are packed; a later call for the same class replaces an earlier one.

    Args:
        kind: the class, or its full name ``"package.module.Class"`` where importing it would cost. Subclasses are not meant.
        rewrite: module → an equivalent module of `torch.nn` layers and traceable steps. Give it the module's own layers, so that
            no value is lost.
        narrow: (module, packing) → a module of the same kind for one member, freshly initialised; `pack` brings it to the module's
            device and dtype. ``packing.ratio`` is α/M, by which its widths are multiplied (``packing.first``: not those it reads,
            ``packing.last``: not those it gives). Its output must have the batch first; `pack` then needs an example.

    Raises:
        ValueError: neither or both of rewrite and narrow, or a kind that is no module class.
    """
    if not isinstance(kind, str) and not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"kind: expected an nn.Module class or its full name, got {kind!r}; pass the class of the layer")
    if isinstance(kind, str) and "." not in kind:
        raise ValueError(f'kind: expected a full name such as "package.module.Class", got {kind!r}; pass the class itself')
    if (rewrite is None) == (narrow is None):
        raise ValueError("register_packing: expected one of rewrite and narrow, got neither or both; pass one function")
    _REGISTRY[kind] = Registered(rewrite, narrow)


def registered(module: nn.Module) -> Registered | None:
    """What was registered for a module's class, if anything."""
    kind = type(module)
    return _REGISTRY.get(kind) or _REGISTRY.get(f"{kind.__module__}.{kind.__qualname__}")


def rewritten(model: nn.Module, skip: Collection[str] = ()) -> nn.Module:
    """A copy of `model` with every module replaced for which a rewrite is registered, the insides of its replacement too.

    Modules under a name in `skip` stay as they are.
    """
    model = copy.deepcopy(model)
    if (known := registered(model)) and known.rewrite and "" not in skip:
        model = _checked(known.rewrite(model), model)
    todo = [("", model)]
    while todo:
        path, parent = todo.pop()
        for name, child in list(parent._modules.items()):  # also those that have two names
            here = f"{path}.{name}".strip(".")
            if child is None or here in skip:
                continue
            known = registered(child)
            if known is not None and known.rewrite is not None:
                training = child.training
                child = _checked(known.rewrite(child), child).train(training)
                setattr(parent, name, child)
            todo.append((here, child))
    return model


def _checked(new: object, module: nn.Module) -> nn.Module:
    """ValueError unless a rewrite gave a module of another class."""
    if not isinstance(new, nn.Module) or type(new) is type(module):
        kind = type(module).__name__
        raise ValueError(
            f"rewrite of {kind}: expected another nn.Module, got {type(new).__name__}; return its equivalent in layers"
        )
    return new


class MemberCopies(nn.Module, PackedLayer):
    """M modules of a member's width that run one after the other, each on its member's rows.

    Shapes: rows (M · B, …) → rows; shared inputs (B, …) → rows; channels at dimension 1 → the same.
    """

    def __init__(self, copies: list[nn.Module], layout: Layout = "rows") -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self.members = self.groups = len(copies)
        self.layout = layout

    @classmethod
    def like(cls, module: nn.Module, packing: Packing) -> Self:
        """By what is registered for the module's class, otherwise M copies of it, which are all like it."""
        known = registered(module)
        if known is None or known.narrow is None:
            return cls([copy.deepcopy(module) for _ in range(packing.members)])
        like = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
        copies = [known.narrow(module, packing) for _ in range(packing.members)]
        return cls(copies if like is None else [new.to(like.device, like.dtype) for new in copies])

    def forward(self, *inputs: Tensor, layout: Layout | None = None) -> Tensor:
        """Each tensor in rows, or shared ("spread"), or in channels; the output in rows (in channels for "channels")."""
        layout = layout or self.layout
        if layout == "spread":
            inputs = tuple(spread(x, self.members) for x in inputs)
        elif layout in ("channels", "gather"):
            inputs = tuple(to_rows(x, self.members) for x in inputs)
        parts = zip(*(x.unflatten(0, (self.members, x.shape[0] // self.members)).unbind(0) for x in inputs), strict=True)
        out = torch.cat([module(*x) for module, x in zip(self.copies, parts, strict=True)])
        return to_channels(out, self.members) if layout == "channels" else out

    def plain(self) -> nn.Module:
        """A copy of the first one."""
        return copy.deepcopy(self.copies[0])

    def member(self, m: int) -> dict[str, Tensor]:
        """The state of member m's module."""
        return dict(self.copies[m].state_dict(keep_vars=True))
