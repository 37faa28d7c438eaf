"""From a model to the packed network: trace, analyse, make the layers, lower.

γ is given to interior Linear and convolution layers only: not to the first and the last ones, nor to the first of a residual branch
(Laurent et al., ICLR 2023, arXiv:2210.09184, §3). The new layers are uninitialised, the new norms fresh.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, fx, nn

from quorate.packed.analysis import attribute, walk_
from quorate.packed.ensemble import LayerRow, PackedEnsemble, Program
from quorate.packed.flow import Learned, Own, Raw
from quorate.packed.kinds import CONVOLUTIONS, PACKED
from quorate.packed.layers.arrangement import PackedLayer, Packing
from quorate.packed.layers.linear import PackedLinear
from quorate.packed.layers.widths import Alpha
from quorate.packed.layout import Layout, layout
from quorate.packed.lower import lower
from quorate.packed.members import adopt_modes_, freeze_alike_, read_off
from quorate.packed.registry import MemberCopies, registered, rewritten
from quorate.packed.rules.walking import Walk
from quorate.packed.trace import WAY_OUT, Traced, inside, trace

Pairs = list[tuple[str, nn.Module | Tensor, nn.Module | Tensor]]  # (name, packed, what it replaces)
DIVIDED = (nn.Linear, PackedLinear, *CONVOLUTIONS)  # layers that γ may divide


@dataclass(frozen=True)
class Plan:
    """A member's graph with the flow out of each of its steps and the place of each layer. whole: modules kept whole."""

    traced: Traced
    walk: Walk
    layout: Layout
    whole: frozenset[str]


@dataclass(frozen=True)
class Built:
    """A packed network with its programs, a row for each packed layer, and (name, packed, what it replaces)."""

    network: nn.Module
    program: Program
    rows: list[LayerRow]
    pairs: Pairs = field(default_factory=list)


def check_plain(name: str, model: object) -> None:
    """ValueError unless this is a module that is not packed yet."""
    if not isinstance(model, nn.Module) or isinstance(model, PackedEnsemble):
        raise ValueError(f"{name}: expected a plain nn.Module, got {type(model).__name__}; give the model itself, unpacked")


def kept_whole(model: nn.Module, skip: Collection[str]) -> frozenset[str]:
    """Names of the modules that are kept whole: those in `skip`, and those registered by `narrow`. ValueError for unknown names."""
    names = dict(model.named_modules())
    if isinstance(skip, str) or not all(isinstance(name, str) for name in skip):
        raise ValueError(f'skip: expected names of modules, got {skip!r}; pass for example skip=["blocks.0.attn"]')
    if unknown := sorted(name for name in skip if name not in names or not name):
        some = ", ".join(repr(name) for name in list(names)[1:6])
        raise ValueError(f"skip: expected names of the model's modules, got {unknown[0]!r}; its modules are {some}, …")
    narrowed = {name for name, module in names.items() if name and (known := registered(module)) and known.narrow}
    return frozenset({*skip, *narrowed})


def plan(model: nn.Module, members: int, alpha: Fraction, example: Tensor | None = None, skip: Collection[str] = ()) -> Plan:
    """Trace `model` and check every step. Raises ValueError naming what cannot be packed."""
    kept_whole(model, skip)
    spelt = rewritten(model, skip)
    whole = kept_whole(spelt, skip)
    traced = trace(spelt, whole)
    if example is not None:
        _check_traced(model, traced, example)
    places = layout(traced, whole)
    return Plan(traced, walk_(traced, places, members, alpha / members, example, whole), places, whole)


@torch.no_grad()
def _check_traced(model: nn.Module, traced: Traced, example: Tensor) -> None:
    """ValueError unless the traced steps give what the model gives, unless it draws or does not run."""
    try:
        expected, again = (copy.deepcopy(model).eval()(example.clone()) for _ in range(2))
    except Exception:  # the analysis tells what fails
        return
    if not isinstance(expected, Tensor) or not torch.equal(expected, again):
        return
    given = fx.Interpreter(copy.deepcopy(traced.root).eval(), graph=traced.graph).run(example.clone())
    if given.shape != expected.shape or not torch.allclose(given, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ValueError(
            f"{type(model).__name__}: expected that its traced steps give what it gives, but on the example they differ: torch.fx has "
            f"missed a step, or a registered rewrite is not equivalent; {WAY_OUT}"
        )


def _check_whole(name: str, module: nn.Module, packing: Packing) -> None:
    """ValueError for a module that is as wide as the single network where members are narrower."""
    known = registered(module)
    if (known is None or known.narrow is None) and packing.ratio != 1 and any(True for _ in module.parameters()):
        raise ValueError(
            f"skip: module {name!r} ({type(module).__name__}) has parameters of the single network's width, but members are "
            f"{packing.ratio} of it; pack with alpha = members, or register_packing({type(module).__name__}, narrow=…)"
        )


def packed_layer(name: str, module: nn.Module, packing: Packing, whole: bool) -> PackedLayer:
    """The packed layer for a module, uninitialised. Raises ValueError naming it."""
    kind = MemberCopies if whole else PACKED[type(module)]
    if whole:
        _check_whole(name, module, packing)
    try:
        layer: PackedLayer = kind.like(module, packing)
    except ValueError as error:
        raise ValueError(f"cannot pack module {name!r} ({type(module).__name__}): {error}") from error
    return layer


def row_of(name: str, layer: PackedLayer, role: str, asked: int, used: int) -> LayerRow:
    """A layer's line in `explain()`."""
    assert isinstance(layer, nn.Module)
    spared = "interior layers" if role != "interior" else "Linear and convolution layers"
    why = layer.lowered or (f"gamma {asked} is for {spared}" if asked > used else "")
    size = sum(p.numel() for p in layer.parameters())
    return LayerRow(name, type(layer).__name__, role, layer.groups, layer.gamma, bool(layer.lowered), why, size)


def _role(plan: Plan, node: fx.Node, module: nn.Module) -> str:
    is_layer = type(module) in PACKED and type(module) not in (nn.PReLU,) and plan.layout.known(node.name)
    return plan.layout.role(node.name) if is_layer or str(node.target) in plan.whole else "norm"


def _stacked(name: str, value: Tensor, plan: Plan, members: int, ratio: Fraction) -> nn.Parameter:
    """A bare parameter of the single network for M members, uninitialised."""
    axis = plan.walk.widths.get(name)
    shape = list(value.shape)
    if axis is not None:
        width = shape[axis] * ratio
        if width.denominator != 1:
            step = ratio.denominator
            raise ValueError(
                f"cannot pack parameter {name!r}: expected a width that α/M = {ratio} divides, got {shape[axis]}; "
                f"the nearest that do: {max(step, shape[axis] // step * step)} and {(shape[axis] // step + 1) * step}"
            )
        shape[axis] = width.numerator
    return nn.Parameter(torch.empty(members, *shape, device=value.device, dtype=value.dtype), value.requires_grad)


def build(plan: Plan, members: int, alpha: Fraction, gamma: int) -> Built:
    """Replace the layers. Raises ValueError naming a layer whose widths do not divide, with the nearest that do."""
    parts: dict[str, nn.Module | Tensor] = {}
    rows: list[LayerRow] = []
    pairs: Pairs = []
    for node in plan.traced.graph.nodes:
        name = str(node.target)
        if node.op not in ("call_module", "get_attr") or name in parts or (node.op == "get_attr" and inside(node)):
            continue
        flow = plan.walk[node]
        if node.op == "get_attr":
            value = attribute(plan.traced.root, node)
            assert isinstance(value, Tensor)
            parts[name] = value
            if isinstance(flow, Learned):
                stacked = _stacked(name, value, plan, members, alpha / members)
                parts[name] = stacked
                rows.append(LayerRow(name, "Parameter", "parameter", members, 1, False, "", stacked.numel()))
                pairs.append((name, stacked, value))
            continue
        module = plan.traced.module(node)
        parts[name] = module
        whole = name in plan.whole
        if isinstance(flow, Raw) or not (whole or type(module) in PACKED):
            continue
        role = "across" if node in plan.walk.across else _role(plan, node, module)
        asked = 1 if role == "norm" else gamma
        used = gamma if role == "interior" and type(module) in DIVIDED else 1
        across = node in plan.walk.across
        first = across or node.name in plan.layout.first
        last = across or node.name in plan.layout.last or _behind_head(flow, alpha, members)
        layer = packed_layer(name, module, Packing(members, alpha, used, first, last), whole)
        assert isinstance(layer, nn.Module)
        parts[name] = layer
        rows.append(row_of(name, layer, role, asked, used))
        pairs.append((name, layer, module))
    layers = {name: layer for name, layer, _ in pairs if isinstance(layer, nn.Module)}
    parts |= read_off(plan.traced.graph, parts)
    shared, each = (lower(plan.traced, plan.walk, layers, each) for each in (False, True))
    network = fx.GraphModule(parts, shared.graph, "PackedNetwork")
    program = Program(plan.traced.graph, each.graph, shared.places, each.places, shared.output, each.output)
    return Built(network, program, rows, pairs)


def _behind_head(flow: object, alpha: Fraction, members: int) -> bool:
    """Whether a norm lies behind the last layer, where members are as wide as the single network."""
    return isinstance(flow, Own) and flow.head and alpha != members


def finished(built: Built, plan: Plan, members: int, alpha: Alpha, gamma: int) -> PackedEnsemble:
    """The ensemble, in the modes of the planned model and with its frozen parameters frozen."""
    output = plan.walk[next(reversed(plan.traced.graph.nodes))]
    classes = None
    if isinstance(output, Own) and output.dims is not None and output.axis is not None and output.dims[output.axis].known:
        size = output.dims[output.axis]
        mine = size if output.head else size.times(plan.walk.ratio)
        classes = None if mine is None else mine.number
    ensemble = PackedEnsemble(built.network, members, alpha, gamma, classes, built.rows, built.program)
    ensemble.training = plan.traced.root.training
    adopt_modes_(built.network, plan.traced.root)
    for _, packed, layer in built.pairs:
        if isinstance(packed, nn.Module):
            assert isinstance(layer, nn.Module)
            freeze_alike_(packed, layer)
    return ensemble
