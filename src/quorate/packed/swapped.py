"""Packing module by module, for models that torch.fx cannot trace.

The model's own forward runs as it is, on a batch in which the members lie one behind the other (M · B, …): the shared input is spread,
every layer is replaced by a packed one that treats each member's rows with that member's parameters, and all else treats rows one
by one. Whether it does is proved on the example, by NaN and against each member alone, so an example is needed.

Which layers are first and last is found by running the single network: a first layer reads nothing that has a gradient, a last
one is met first on the way back from the output.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from quorate.packed.build import Pairs, kept_whole, packed_layer, row_of
from quorate.packed.ensemble import LayerRow, PackedEnsemble, Program
from quorate.packed.flow import remedy
from quorate.packed.kinds import LAYERS, PACKED
from quorate.packed.layers.arrangement import Packing
from quorate.packed.layers.widths import Alpha
from quorate.packed.members import adopt_modes_, freeze_alike_
from quorate.packed.registry import rewritten
from quorate.packed.trace import WAY_OUT, check_hooks


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def layers_of(model: nn.Module, whole: Collection[str]) -> dict[str, nn.Module]:
    """The modules to replace, by name: those of known kinds and those kept whole. ValueError for others that hold parameters."""
    found: dict[str, nn.Module] = {}
    users: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if name in whole or type(module) in PACKED:
            found[name] = module
            for tensor in module.parameters():
                if id(tensor) in users:
                    raise ValueError(
                        f"module {name!r}: expected weights of its own, but module {users[id(tensor)]!r} has the same; give each "
                        f"place a module of its own, {WAY_OUT}"
                    )
                users[id(tensor)] = name
            continue
        if own := [key for key, value in module._parameters.items() if value is not None]:
            raise ValueError(
                f"cannot pack module {name!r} ({type(module).__name__}): expected parameters inside layers only, got {own[0]!r}; "
                f"{remedy(type(module).__name__)}"
            )
    if not found:
        raise ValueError(f"{type(model).__name__}: expected layers with parameters, got none that can be packed; {WAY_OUT}")
    return found


def _roles(model: nn.Module, layers: dict[str, nn.Module], whole: Collection[str], example: Tensor) -> tuple[set[str], set[str]]:
    """Names of the first and the last layers, found by running the single network."""
    calls: Counter[str] = Counter()
    first: set[str] = set()
    made: dict[Any, str] = {}
    counted = {name for name, module in layers.items() if type(module) in LAYERS or name in whole}
    hooks = []
    for name, module in layers.items():

        def after(_: nn.Module, args: Any, kwargs: Any, out: Any, name: str = name) -> None:
            calls[name] += 1
            if name not in counted:
                return
            if not any(t.requires_grad for t in _tensors([args, kwargs])):
                first.add(name)
            made.update({t.grad_fn: name for t in _tensors(out) if t.grad_fn is not None})

        hooks.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        with torch.enable_grad():
            output = model(example.clone())
    except Exception as error:
        reason = " ".join(str(error).partition("While executing")[0].split())[:300]
        raise ValueError(
            f"example: expected a batch that the model takes, but it fails on {tuple(example.shape)} with "
            f"{type(error).__name__}: {reason}; pass raw inputs (B, …) as in training"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    for name in layers:
        if calls[name] != 1:
            what = "does not use it" if not calls[name] else f"uses it {calls[name]} times"
            raise ValueError(
                f"module {name!r}: expected forward to use it once, but it {what}; give each place a module of its own"
            )
    last, seen, todo = set(), set(), [t.grad_fn for t in _tensors(output)]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            last.add(made[node])
        else:
            todo += [parent for parent, _ in node.next_functions]
    return first, last


def swapped(
    model: nn.Module, members: int, widen: Fraction, alpha: Alpha, gamma: int, example: Tensor, skip: Collection[str]
) -> tuple[PackedEnsemble, Pairs]:
    """The ensemble, uninitialised, with what each of its layers replaces. Raises ValueError naming what cannot be packed."""
    if gamma > 1:
        raise ValueError(
            f"gamma: expected 1 for {type(model).__name__}, which torch.fx cannot trace, got {gamma}: which layers are interior is "
            "not known; rewrite its forward without branches on tensors, or use gamma=1"
        )
    check_hooks(model)
    network = rewritten(model, skip)
    whole = kept_whole(network, skip)
    layers = layers_of(network, whole)
    trial = copy.deepcopy(network).eval().requires_grad_(True)
    first, last = _roles(trial, {name: trial.get_submodule(name) for name in layers}, whole, example)
    rows: list[LayerRow] = []
    pairs: Pairs = []
    for name, module in layers.items():
        ends = {"first": name in first, "last": name in last and widen != members}
        layer = packed_layer(name, module, Packing(members, widen, **ends), name in whole)
        assert isinstance(layer, nn.Module)
        layer.layout = "rows"
        freeze_alike_(layer, module)
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, layer)
        role = " and ".join(r for r in ("first", "last") if name in (first if r == "first" else last))
        known = type(module) in LAYERS or name in whole
        rows.append(row_of(name, layer, role or ("interior" if known else "norm"), 1, 1))
        pairs.append((name, layer, module))
    adopt_modes_(network, model)
    ensemble = PackedEnsemble(network, members, alpha, gamma, None, rows, Program())
    ensemble.training = model.training
    return ensemble, pairs
