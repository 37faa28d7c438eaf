"""Members out of a packed ensemble, and plain models into one (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

    unpack          member m of a packed ensemble → a plain model of its width
    pack_members    M plain models of one architecture → a packed ensemble with α = M, γ = 1: a Deep Ensemble in one pass

Both keep every value: `unpack(pack_members(models), m)` computes what `models[m]` does, and
`pack_members([unpack(packed, m) for m in range(M)])` what `packed` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from quorate.packed.build import Plan, build, check_plain, finished, plan
from quorate.packed.ensemble import PackedEnsemble
from quorate.packed.flow import Flow, Group, Learned, Own
from quorate.packed.members import alone, named, put_
from quorate.packed.proving import check_batch, check_example
from quorate.packed.registry import rewritten
from quorate.packed.swapped import swapped
from quorate.packed.trace import Untraceable, difference, where


def unpack(packed: PackedEnsemble, m: int) -> nn.Module:
    """Member m of a packed ensemble as a plain model: `unpack(packed, m)(x)` is `packed(x)[m]`.

    Values are copies, statistics included; the steps are the model's own. A Linear with γ > 1 becomes a PackedLinear of one member,
    which keeps its subgroups. Raises ValueError if `packed` is no PackedEnsemble or has no member m.
    """
    if not isinstance(packed, PackedEnsemble):
        raise ValueError(f"packed: expected a PackedEnsemble, got {type(packed).__name__}; make one with pack(model)")
    if isinstance(m, bool) or not isinstance(m, int) or not 0 <= m < packed.members:
        raise ValueError(f"m: expected a member from 0 to {packed.members - 1}, got {m!r}; members count from 0")
    return alone(packed, m)


def _settings(module: nn.Module) -> dict[str, object]:
    """The plain settings of a module and its children: class, sizes, probabilities and the like."""
    plain = (bool, int, float, str, tuple, type(None))
    return {
        f"{name}.{key}".strip("."): value
        for name, child in module.named_modules()
        for key, value in (("class", type(child).__name__), *vars(child).items())
        if not key.startswith("_") and key != "training" and isinstance(value, plain)
    }


def _own(flow: Flow) -> bool:
    """Whether each member has values of its own there."""
    return isinstance(flow, Own | Learned | Group)


def _values(value: nn.Module | Tensor) -> dict[str, Tensor]:
    return {"value": value} if isinstance(value, Tensor) else dict(value.state_dict(keep_vars=True))


def _like(a: Tensor | None, b: Tensor | None, equal: bool) -> bool:
    """Whether two tensors have one shape, dtype and device, and, if `equal`, the same values."""
    if a is None or b is None or (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return not equal or torch.equal(a, b)


def _check_alike(number: int, other: Plan, first: Plan) -> None:
    """ValueError unless two models have one architecture, and equal values in what their members will share."""
    one, two = first.traced, other.traced
    place = difference(one.graph, two.graph)
    if place:
        raise ValueError(
            f"models: expected one architecture, but models 0 and {number} differ at {place}; build all of them alike"
        )
    for node, flow in first.walk.flows.items():
        if node.op not in ("call_module", "get_attr"):
            continue
        left, right = named(one.root, str(node.target)), named(two.root, str(node.target))
        if isinstance(left, nn.Module) and isinstance(right, nn.Module):
            a, b = _settings(left), _settings(right)
            odd = [key for key in a.keys() | b.keys() if a.get(key) != b.get(key)]
            if odd:
                key = min(odd)
                raise ValueError(
                    f"models: expected equal settings at {where(node)}, but {key} is {a.get(key)!r} in model 0 and "
                    f"{b.get(key)!r} in model {number}; build all of them alike"
                )
        mine, theirs = _values(left), _values(right)
        for key in (*mine, *(k for k in theirs if k not in mine)):
            if not _like(mine.get(key), theirs.get(key), equal=not _own(flow)):
                what = "shape, dtype and device" if _own(flow) else "values, which all members will share,"
                raise ValueError(
                    f"models: expected equal {what} of {key} at {where(node)}, but models 0 and {number} differ; "
                    "convert the models, or keep them side by side with quorate.DeepEnsemble"
                )


def pack_members(models: Sequence[nn.Module], example: Tensor | None = None) -> PackedEnsemble:
    """Pack M plain models of one architecture: row m of the ensemble's output is `models[m]`'s. The models are untouched.

    alpha is M and gamma 1. Parameters, BatchNorm statistics, dtype and device are kept; training or evaluation mode and
    frozen parameters are those of the first model. example: as for `pack`.

    Raises ValueError for an empty list, models that differ in architecture, settings, dtype or device, or in the values of what
    all members will share (normalisation of the input), and for steps that cannot be packed (see `pack`).
    """
    models = list(models)
    if not models:
        raise ValueError("models: expected at least one model, got none; pass the trained members")
    for i, model in enumerate(models):
        check_plain(f"models[{i}]", model)
    members = len(models)
    check_batch(example)
    try:
        plans = [plan(model, members, Fraction(members), example) for model in models]
    except Untraceable:
        if example is None:
            raise
        ensemble = _by_modules(models, example)
    else:
        for i, other in enumerate(plans[1:], start=1):
            _check_alike(i, other, plans[0])
        built = build(plans[0], members, Fraction(members), 1)
        for m, source in enumerate(plans):
            for name, packed, _ in built.pairs:
                put_(packed, m, named(source.traced.root, name))
        ensemble = finished(built, plans[0], members, members, 1)
    if example is not None:
        check_example(ensemble, models[0], example)
    return ensemble


def _by_modules(models: Sequence[nn.Module], example: Tensor) -> PackedEnsemble:
    """Models that torch.fx cannot trace, packed module by module."""
    states = [{name: (t.shape, t.dtype, t.device) for name, t in model.state_dict().items()} for model in models]
    kinds = [{name: type(module) for name, module in model.named_modules()} for model in models]
    plain = [_settings(model) for model in models]
    for i in range(1, len(models)):
        if (states[i], kinds[i], plain[i]) != (states[0], kinds[0], plain[0]):
            raise ValueError(f"models: expected one architecture, but models 0 and {i} differ; build all of them alike")
    members = len(models)
    ensemble, pairs = swapped(models[0], members, Fraction(members), members, 1, example, ())
    for m, model in enumerate(models):
        spelt = rewritten(model)
        for name, packed, _ in pairs:
            put_(packed, m, named(spelt, name))
    return ensemble
