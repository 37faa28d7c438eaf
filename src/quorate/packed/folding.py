"""BatchNorm folded into the layer before it, for inference (Ioffe & Szegedy, Batch Normalization, ICML 2015, arXiv:1502.03167, §3.1).

With its running statistics a norm is a fixed scale and shift of every channel, so a linear or convolution layer right before it can
do both at once:

    s = γ / √(variance + ε)        weight ← s · weight        bias ← β + s · (bias - mean)

Channels are packed member-major in both, so this is each member's own folding. It pays in PyTorch's eager mode, where a norm reads and
writes all activations again; torch.compile fuses norms, with freezing it folds them, and ONNX Runtime folds them when it loads a model.

Shapes: s (out',); PackedLinear's weight (blocks, out'/blocks, in'/blocks), a convolution's (out', in'/groups, *kernel), a transposed
one's (in', out'/groups, *kernel).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from quorate.packed.ensemble import PackedEnsemble
from quorate.packed.layers.arrangement import to_channels, to_rows
from quorate.packed.layers.linear import PackedLinear

MOVES = (to_channels, to_rows)
Layer = nn.Linear | PackedLinear | _ConvNd


def by_output(layer: Layer, scale: Tensor) -> Tensor:
    """A factor per output (out',) in the shape in which it multiplies the layer's weight."""
    weight = layer.weight
    if isinstance(layer, PackedLinear):
        return scale.reshape(*weight.shape[:2], 1)
    if isinstance(layer, _ConvTransposeNd):
        each = scale.reshape(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1)
        return each.reshape(weight.shape[:2] + (1,) * (weight.dim() - 2))
    return scale.reshape(-1, *(1,) * (weight.dim() - 1))


@torch.no_grad()
def fold_(layer: Layer, norm: _BatchNorm) -> None:
    """Give the layer the weight and bias that make it compute norm(layer(x)) in evaluation mode; worked out in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(variance + norm.eps) * (1.0 if norm.weight is None else norm.weight.double())
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.double()
    weight = layer.weight
    folded = (weight.double() * by_output(layer, scale)).to(weight.dtype)
    weight.copy_(folded)
    layer.bias = nn.Parameter((shift + scale * (bias - mean)).to(weight.dtype), requires_grad=weight.requires_grad)


def _maker(node: fx.Node) -> fx.Node | None:
    """The step whose output this one alone reads, seen through moves of the members between channels and rows."""
    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node) and len(source.users) == 1:
        if source.target not in MOVES:
            return source
        source = source.args[0]
    return None


def pairs(graph: fx.Graph, network: nn.Module) -> dict[str, str]:
    """{norm: layer} by name, for each BatchNorm with running statistics that alone reads what a linear or convolution layer gives."""
    found = {}
    for node in graph.nodes:
        if node.op != "call_module" or node.kwargs.get("layout") not in (None, "channels", "rows"):
            continue
        norm, maker = network.get_submodule(str(node.target)), _maker(node)
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or maker is None or maker.op != "call_module":
            continue
        if isinstance(network.get_submodule(str(maker.target)), Layer):
            found[str(node.target)] = str(maker.target)
    return found


def _without_(graph: fx.Graph, gone: Mapping[str, str]) -> None:
    """Take these modules out of the graph: what read them reads what they read."""
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target in gone:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def fold(ensemble: PackedEnsemble) -> PackedEnsemble:
    """A copy for inference, in which every BatchNorm right behind a layer is folded into it; the others stay. `ensemble` is untouched.

    A norm is folded if it has running statistics and its layer's output goes nowhere else. Outputs agree to rounding (1e-5 relative
    in float32), with `each` and of members taken out by `unpack` too. Do not train the copy: it has nothing left to normalise by.

    Raises:
        ValueError: not a PackedEnsemble, one that torch.fx could not trace, or one in training mode, where norms use the statistics of
            the batch.
    """
    if not isinstance(ensemble, PackedEnsemble):
        raise ValueError(f"ensemble: expected a PackedEnsemble, got {type(ensemble).__name__}; make one with pack(model)")
    program = ensemble.program
    if program.member is None or program.each is None or not isinstance(ensemble.network, fx.GraphModule):
        raise ValueError(
            "ensemble: expected one whose model torch.fx traced, got one packed module by module, whose steps are not known; "
            "run it as it is, or compile it"
        )
    training = [name for name, module in ensemble.named_modules() if module.training]
    if training:
        raise ValueError(
            f"ensemble: expected evaluation mode, got {training[0] or 'the ensemble'!r} in training mode; call ensemble.eval() first"
        )
    folded = copy.deepcopy(ensemble)
    network, program = folded.network, folded.program
    assert isinstance(network, fx.GraphModule)
    assert program.member is not None
    assert program.each is not None
    graphs = (network.graph, program.each, program.member)
    shared, own, member = (pairs(graph, network) for graph in graphs)
    gone = {norm: layer for norm, layer in shared.items() if own.get(norm) == member.get(norm) == layer}
    for name, layer in gone.items():
        norm, into = network.get_submodule(name), network.get_submodule(layer)
        assert isinstance(norm, _BatchNorm)
        assert isinstance(into, Layer)
        fold_(into, norm)
    for graph in graphs:
        _without_(graph, gone)
    for name in gone:
        network.delete_submodule(name)
    network.recompile()
    folded._rows = tuple(row for row in folded.explain() if row.name not in gone)
    return folded
