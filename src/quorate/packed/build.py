"""The packed network of a traced model: the same graph, with Linear, Conv2d and BatchNorm replaced.

γ is given to interior layers only: not to the first and the last ones, nor to the first of a residual branch (Laurent et al.,
ICLR 2023, arXiv:2210.09184, §3). The new layers are uninitialised, the new BatchNorms fresh.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import reduce

from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

from quorate.packed.ensemble import LayerRow, PackedEnsemble
from quorate.packed.flow import Flows, Wide
from quorate.packed.layers import PackedConv2d, PackedLinear
from quorate.packed.layout import Layout, layout
from quorate.packed.members import adopt_modes_, freeze_alike_, norm
from quorate.packed.trace import Traced, trace
from quorate.packed.walk import walk_
from quorate.packed.widths import Alpha, widened


@dataclass(frozen=True)
class Plan:
    """A traced model with the flow out of each of its steps and the place of each layer."""

    traced: Traced
    flows: Flows
    layout: Layout

    @property
    def wide(self) -> frozenset[str]:
        """Names of the steps whose output holds the members' channels."""
        return frozenset(node.name for node, flow in self.flows.items() if isinstance(flow, Wide) and node.op != "output")


@dataclass(frozen=True)
class Built:
    """A packed network, a row for each packed module, and (name, packed module, the module that it replaces)."""

    network: fx.GraphModule
    rows: list[LayerRow]
    pairs: list[tuple[str, nn.Module, nn.Module]]


def check_plain(name: str, model: object) -> None:
    """ValueError unless this is a module that is not packed yet."""
    if not isinstance(model, nn.Module) or isinstance(model, PackedEnsemble):
        raise ValueError(f"{name}: expected a plain nn.Module, got {type(model).__name__}; give the model itself, unpacked")


def plan(model: nn.Module, members: int, alpha: Fraction) -> Plan:
    """Trace `model` and check every step. Raises ValueError naming what cannot be packed."""
    traced = trace(model)
    places = layout(traced)
    return Plan(traced, walk_(traced, places, alpha == members), places)


def packed_layer(
    module: nn.Linear | PackedLinear | nn.Conv2d, members: int, alpha: Fraction, gamma: int, first: bool, last: bool
) -> PackedLinear | PackedConv2d:
    """The packed layer for a Linear or Conv2d, uninitialised."""
    ends = {"bias": module.bias is not None, "first": first, "last": last}
    like = {"device": module.weight.device, "dtype": module.weight.dtype}
    if isinstance(module, nn.Conv2d):
        options = {n: getattr(module, n) for n in ("stride", "padding", "dilation", "groups", "padding_mode")}
        widths = (module.in_channels, module.out_channels)
        conv: PackedConv2d = skip_init(
            PackedConv2d, *widths, module.kernel_size, members, alpha, gamma, **options, **ends, **like
        )
        return conv
    own = module.gamma if isinstance(module, PackedLinear) else 1  # subgroups inside a member taken out by `unpack`
    widths = (module.in_features, module.out_features)
    linear: PackedLinear = skip_init(PackedLinear, *widths, members, alpha, gamma * own, **ends, **like)
    return linear


def _replacement(node: fx.Node, plan: Plan, members: int, alpha: Fraction, gamma: int) -> tuple[nn.Module, LayerRow] | None:
    """The packed module for a call_module step and its row; None for a module that stays."""
    module, role = plan.traced.module(node), plan.layout.role(node.name)
    flow, name = plan.flows[node], str(node.target)
    if not isinstance(flow, Wide):
        return None
    new: nn.Module
    try:
        if isinstance(module, nn.Linear | PackedLinear | nn.Conv2d):
            used = gamma if role == "interior" else 1
            new = packed_layer(module, members, alpha, used, node.name in plan.layout.first, node.name in plan.layout.last)
            lowered = new.lowered if isinstance(new, PackedConv2d) else ""
            why = lowered or (f"gamma {gamma} is for interior layers" if gamma > used else "")
            groups, used = new.groups, new.gamma
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            factor = Fraction(members) if flow.head else alpha
            new = norm(module, widened("num_features", module.num_features, factor, members))
            role, groups, used, lowered, why = "norm", members, 1, "", ""
        else:
            return None
    except ValueError as error:
        raise ValueError(f"cannot pack module {name!r} ({type(module).__name__}): {error}") from error
    size = sum(p.numel() for p in new.parameters())
    return new, LayerRow(name, type(new).__name__, role, groups, used, bool(lowered), why, size)


def build(plan: Plan, members: int, alpha: Fraction, gamma: int) -> Built:
    """Replace the layers. Raises ValueError naming a layer whose widths do not divide, with the nearest that do."""
    parts: dict[str, nn.Module | Tensor] = {}
    rows, pairs = [], []
    for node in plan.traced.graph.nodes:
        name = str(node.target)
        if node.op == "get_attr":
            parts[name] = reduce(getattr, name.split("."), plan.traced.root)
        if node.op != "call_module" or name in parts:
            continue
        module = plan.traced.module(node)
        parts[name] = module
        if found := _replacement(node, plan, members, alpha, gamma):
            parts[name], row = found
            rows.append(row)
            pairs.append((name, found[0], module))
    return Built(fx.GraphModule(parts, plan.traced.graph, "PackedNetwork"), rows, pairs)


def finished(built: Built, plan: Plan, members: int, alpha: Alpha, gamma: int) -> PackedEnsemble:
    """The ensemble, in the modes of the planned model and with its frozen parameters frozen."""
    output = plan.flows[next(reversed(plan.traced.graph.nodes))]
    classes = output.width if isinstance(output, Wide) else None
    ensemble = PackedEnsemble(built.network, members, alpha, gamma, classes, built.rows)
    ensemble.training = plan.traced.root.training
    adopt_modes_(built.network, plan.traced.root)
    for _, packed, layer in built.pairs:
        freeze_alike_(packed, layer)
    return ensemble
