"""The flow along every edge of a traced model: modules here, functions and methods by their rules.

A Linear or Conv2d that reads what all members share is a first layer; BatchNorm keeps the width of what it reads; the output must
be class scores (B, M · classes), member-major.
"""

from __future__ import annotations

from functools import reduce

from torch import Tensor, fx, nn

from quorate.packed.flow import LAYOUT, USE, Constant, Flow, Flows, Number, Raw, Sizes, Wide, refuse, remedy
from quorate.packed.layers import PackedLinear
from quorate.packed.layout import Layout
from quorate.packed.rules import called, flatten
from quorate.packed.trace import WAY_OUT, Traced

ELEMENT = (
    *("Identity", "Dropout", "AlphaDropout", "ReLU", "ReLU6", "LeakyReLU", "RReLU", "ELU", "SELU", "CELU", "GELU", "SiLU"),
    *("Mish", "Hardswish", "Hardsigmoid", "Hardtanh", "Hardshrink", "Softshrink", "Tanhshrink", "Softplus", "Softsign"),
    *("LogSigmoid", "Sigmoid", "Tanh", "Threshold", "Flatten"),
)
LINE = ("MaxPool1d", "AvgPool1d", "AdaptiveMaxPool1d", "AdaptiveAvgPool1d")
PLANE = (
    *("MaxPool2d", "AvgPool2d", "AdaptiveMaxPool2d", "AdaptiveAvgPool2d", "LPPool2d", "Dropout2d", "FeatureAlphaDropout"),
    *("ZeroPad2d", "ConstantPad2d", "ReflectionPad2d", "ReplicationPad2d", "CircularPad2d"),
    *("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d"),
)
RANKS: dict[type[nn.Module], tuple[int, ...]] = {  # of the tensors that a module takes; no other module is packed
    **{getattr(nn, name): (2, 3, 4) for name in ELEMENT},
    **{getattr(nn, name): (3,) for name in LINE},
    **{getattr(nn, name): (4,) for name in PLANE},
    nn.Linear: (2,),
    PackedLinear: (2,),
    nn.Conv2d: (4,),
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
}


def width_in_and_out(module: nn.Module) -> tuple[int, int] | None:
    """Channels in and out of a layer, twice the same for BatchNorm, None for a module without parameters of its own."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear | PackedLinear):
        return module.in_features, module.out_features
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module.num_features, module.num_features
    return None


def _module(node: fx.Node, module: nn.Module, flows: Flows, last: bool) -> Flow:
    """Through a module: its rank, its width, and what it makes of the flow."""
    kind = type(module)
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        refuse(node, "one tensor as input", f"{len(node.all_input_nodes)} arguments or more", remedy(kind.__name__))
    flow = flows[node.args[0]]
    if isinstance(flow, Raw) and next(module.parameters(), None) is None:
        return flow
    packed = isinstance(module, PackedLinear) and module.members > 1
    if kind not in RANKS or packed:
        refuse(node, "a module that can be packed", kind.__name__, remedy(kind.__name__))
    layer = isinstance(module, nn.Linear | nn.Conv2d | PackedLinear)
    if not isinstance(flow, Wide) and not (layer and isinstance(flow, Raw)):
        came = f"{kind.__name__} of {'what all members share' if isinstance(flow, Raw) else 'a constant'}"
        refuse(node, "a Linear or Conv2d first", came, "normalise inputs by a module with buffers only")
    widths = width_in_and_out(module)
    if isinstance(flow, Wide):
        if flow.rank not in RANKS[kind]:
            refuse(node, f"an input of {RANKS[kind][0]} dimensions", f"one of {flow.rank}", LAYOUT)
        if widths and flow.width not in (None, widths[0]):
            refuse(node, f"{widths[0]} channels", f"{flow.width}", "correct the model, which cannot run as it is")
        if layer and flow.head:
            refuse(node, "a layer before the last one", "one behind it", f"add no layer to class scores, {WAY_OUT}")
        if getattr(module, "return_indices", False):
            refuse(node, "one output", "return_indices=True", USE)
        if isinstance(module, nn.Flatten):
            return flatten(node, flow, module.start_dim, module.end_dim)
        if not widths:
            return flow
    assert widths is not None
    if layer:
        return Wide(4 if isinstance(module, nn.Conv2d) else 2, widths[1], last)
    assert isinstance(flow, Wide)
    return Wide(flow.rank, widths[1], flow.head)


def _attribute(node: fx.Node, root: nn.Module) -> Flow:
    """A buffer; a parameter outside a layer would be shared by all members."""
    value: object = reduce(getattr, str(node.target).split("."), root)
    if isinstance(value, nn.Parameter) or not isinstance(value, Tensor):
        do = f"keep parameters in Linear, Conv2d and BatchNorm modules (a bare layer: nn.Sequential(layer)), {WAY_OUT}"
        refuse(node, "parameters inside layers only", str(node.target), do)
    return Constant(scalar=value.numel() == 1 and value.dim() < 2)


def _output(node: fx.Node, flows: Flows) -> Flow:
    source = node.args[0]
    if not isinstance(source, fx.Node):
        refuse(node, "one tensor (B, classes)", type(source).__name__, "wrap the model so that it returns its logits alone")
    flow = flows[source]
    if not isinstance(flow, Wide) or flow.rank != 2:
        came = f"a tensor of {flow.rank} dimensions" if isinstance(flow, Wide) else "one that no Linear or Conv2d made"
        refuse(node, "logits (B, classes)", came, "end the model with flatten and a Linear layer")
    return flow


def walk_(traced: Traced, layout: Layout, same_width: bool) -> Flows:
    """The flow out of every node. Rewrites view and reshape, and drops sizes that are then unused.

    same_width: α = M, where a last layer is as wide as any other. Raises ValueError naming a step that cannot be packed.
    """
    flows: Flows = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            flows[node] = Raw()
        elif node.op == "get_attr":
            flows[node] = _attribute(node, traced.root)
        elif node.op == "call_module":
            flows[node] = _module(node, traced.module(node), flows, node.name in layout.last and not same_width)
        else:
            flows[node] = _output(node, flows) if node.op == "output" else called(node, flows)
    for node in reversed(list(traced.graph.nodes)):
        if isinstance(flows[node], Number | Sizes) and not node.users:
            traced.graph.erase_node(node)
            del flows[node]
    return flows
