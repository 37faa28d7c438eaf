"""What each kind of step does to the channels of its tensors: one rule per kind, from a node to the Feature that it gives.

    dense           Linear, convolutions of one group: read channels, make new ones
    through         grouped convolutions (a group stands and falls as a whole), BatchNorm, PReLU, activations, dropout, pooling
    together        sums, products and other elementwise steps of two tensors, with broadcasting
    moving          flatten, view, reshape, transpose, permute, indexing of other axes, mean and extremes over other axes, cat, chunk

A rule returns None where it does not apply, which makes the step a barrier. Modules are known by their exact class.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from quorate.graphs.flow import Feature, Flow, Rule, array
from quorate.graphs.moving import MOVING, MOVING_MODULES
from quorate.graphs.tracing import Traced

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold,
)  # fmt: skip
SAME: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
POOLS: dict[type[nn.Module], int] = {
    nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3, nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3,
    nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3,
    nn.AdaptiveMaxPool1d: 1, nn.AdaptiveMaxPool2d: 2, nn.AdaptiveMaxPool3d: 3,
}  # fmt: skip
UNARY: set[Any] = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus,
    F.softsign, F.logsigmoid, F.tanhshrink, F.softshrink, F.hardshrink, F.threshold, F.sigmoid, F.tanh, F.relu_, torch.relu, torch.relu_,
    torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.neg, torch.square, torch.sqrt, torch.clamp, operator.neg, operator.pow,
    torch.pow, "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "abs", "neg", "square", "sqrt", "clamp", "clamp_", "pow",
}  # fmt: skip
BINARY: set[Any] = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.add,
    torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, "add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "maximum",
    "minimum",
}  # fmt: skip
FUNCTION_POOLS: dict[Any, int] = {
    F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3, F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3,
    F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3,
    F.adaptive_max_pool1d: 1, F.adaptive_max_pool2d: 2, F.adaptive_max_pool3d: 3,
}  # fmt: skip
PLAIN_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
DROPOUTS: set[Any] = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}


# — layers —


def _row_values(module: nn.Module, reads: np.ndarray, sums: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values of rows (G, O) that read (G, O, I) channels of values (G, I): known where all that a row reads is."""
    known = ~(reads & np.isnan(values)[:, None, :]).any(-1)
    bias = module._parameters.get("bias")
    with np.errstate(all="ignore"):
        total = np.where(reads, sums * np.nan_to_num(values)[:, None, :], 0.0).sum(-1)
        found = np.where(known, total if bias is None else total + array(bias).reshape(total.shape), np.nan)
    return np.where(np.isfinite(found), found, np.nan)


def _pads_zeros(module: _ConvNd) -> bool:
    """Whether zeros surround the input. "same" padding may be of 0 pixels."""
    if module.padding_mode != "zeros" or module.padding == "valid":
        return False
    if module.padding == "same":
        return any((kernel - 1) * step for kernel, step in zip(module.kernel_size, module.dilation, strict=True))
    return any(amount != 0 for amount in module.padding)


def _dense(flow: Flow, node: fx.Node, module: Any, x: Feature | None, axis: int, padded: bool) -> Feature:
    """A layer of weight (out, in, …) that reads x (None: not followed) and gives channels on `axis`."""
    weight = module.weight.detach()
    reads = (weight != 0).flatten(2).any(-1).cpu().numpy() if weight.dim() > 2 else (weight != 0).cpu().numpy()
    sums = array(weight).reshape(*reads.shape, -1).sum(-1)
    inputs = np.full(reads.shape[1], np.nan) if x is None else x.values
    if padded:
        inputs = np.where(inputs == 0, 0.0, np.nan)
    values = _row_values(module, reads[None], sums[None], inputs[None])[0]
    outputs = Feature(axis, flow.atoms.fresh(len(reads)), values)
    return flow.add(node, inputs=x, outputs=outputs, reads=reads, sums=sums, padded=padded)


def _linear(flow: Flow, node: fx.Node) -> Feature | None:
    x, last = flow.read(node.args[0], node), len(flow.shape(node)) - 1
    if x is not None and x.axis != last:
        flow.keep(x)
        x = None
    return _dense(flow, node, flow.traced.module(node), x, last, False)


def _convolution(flow: Flow, node: fx.Node) -> Feature | None:
    module: Any = flow.traced.module(node)
    x, axis = flow.read(node.args[0], node), len(flow.shape(node)) - module.weight.dim() + 1
    if x is not None and x.axis != axis:
        flow.keep(x)
        x = None
    if module.groups == 1:
        return _dense(flow, node, module, x, axis, _pads_zeros(module))
    return None if x is None else _grouped(flow, node, module, x)


def _grouped(flow: Flow, node: fx.Node, module: Any, x: Feature) -> Feature:
    """All channels of a group, in and out, are of one set."""
    groups = module.groups
    atoms = x.atoms.reshape(groups, -1)
    for column in range(1, atoms.shape[1]):
        flow.atoms.tie(atoms[:, 0], atoms[:, column])
    weight = array(module.weight).reshape(groups, module.out_channels // groups, atoms.shape[1], -1)
    inputs = x.zeros_only() if _pads_zeros(module) else x
    values = _row_values(module, (weight != 0).any(-1), weight.sum(-1), inputs.values.reshape(groups, -1)).reshape(-1)
    return flow.add(node, inputs=x, outputs=Feature(x.axis, atoms[:, 0].repeat(module.out_channels // groups), values))


def _batch_norm(flow: Flow, node: fx.Node) -> Feature | None:
    module: Any = flow.traced.module(node)
    x = flow.read(node.args[0], node)
    if x is None or x.axis != 1:
        return None
    gain = np.ones(len(x.atoms)) if module.weight is None else array(module.weight)
    shift = np.zeros(len(x.atoms)) if module.bias is None else array(module.bias)
    if module.running_mean is None or module.running_var is None:  # statistics of the batch
        values = np.full(len(x.atoms), np.nan)
    else:
        with np.errstate(all="ignore"):
            values = shift + gain * (x.values - array(module.running_mean)) / np.sqrt(array(module.running_var) + module.eps)
    values = np.where(gain == 0, shift, values)
    return flow.add(node, inputs=x, outputs=Feature(1, x.atoms, np.where(np.isfinite(values), values, np.nan)))


def _prelu(flow: Flow, node: fx.Node) -> Feature | None:
    module: Any = flow.traced.module(node)
    x = flow.read(node.args[0], node)
    if x is None or (module.num_parameters > 1 and x.axis != 1):
        return None
    outputs = Feature(x.axis, x.atoms, np.where(x.values < 0, array(module.weight) * x.values, x.values))
    return flow.add(node, inputs=x, outputs=outputs) if module.num_parameters > 1 else outputs


# — elementwise —


def _applied(call: Callable[..., Any], *values: np.ndarray) -> np.ndarray:
    """`call` on float64 values, NaN wherever one of them is or the result is not finite."""
    known = ~np.isnan(values).any(0)
    with torch.no_grad():
        found = call(*(torch.from_numpy(np.where(known, v, 1.0)) for v in values)).numpy()
    return np.where(known & np.isfinite(found), found, np.nan)


def _call(node: fx.Node, *tensors: Any) -> Any:
    """The function or method of a node with other first arguments."""
    args = (*tensors, *node.args[len(tensors) :])
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **node.kwargs)
    return node.target(*args, **node.kwargs)  # type: ignore[operator]


def _activation(flow: Flow, node: fx.Node) -> Feature | None:
    x, module = flow.read(node.args[0], node), flow.traced.module(node)
    return None if x is None else Feature(x.axis, x.atoms, _applied(module, x.values))


def _same(flow: Flow, node: fx.Node) -> Feature | None:
    return flow.read(node.args[0], node)


def _unary(flow: Flow, node: fx.Node) -> Feature | None:
    """An elementwise function whose other arguments are numbers."""
    x = flow.read(node.args[0], node)
    if x is None or len(node.all_input_nodes) > 1:
        return None
    return Feature(x.axis, x.atoms, _applied(lambda v: _call(node, v), x.values))


def _functional_dropout(flow: Flow, node: fx.Node) -> Feature | None:
    training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
    return flow.read(node.args[0], node) if training is False else None


def _binary(flow: Flow, node: fx.Node) -> Feature | None:
    """Two tensors, broadcast, or a tensor and a number: channels that meet are tied; what has a single channel keeps it."""
    if len(node.args) != 2 or any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return None
    features = [flow.read(arg, node) for arg in node.args]
    followed = [f for f in features if f is not None]
    if not followed:
        return None
    shape = flow.shape(node)
    tensors = [isinstance(arg, fx.Node) and type(flow.traced.noted[arg]) is tuple for arg in node.args]
    axes = [f.axis + len(shape) - len(flow.shape(arg)) for arg, f in zip(node.args, features, strict=True) if f is not None]  # type: ignore[arg-type]
    wide = [axis for axis, f in zip(axes, followed, strict=True) if len(f.atoms) == shape[axis]]
    if len(set(wide)) != 1:
        return None
    axis = wide[0]
    values: list[np.ndarray | None] = []
    met: list[Feature] = []
    for arg, feature, tensor in zip(node.args, features, tensors, strict=True):
        dim = axis - len(shape) + len(flow.shape(arg)) if tensor else -1  # type: ignore[arg-type]
        size = flow.shape(arg)[dim] if dim >= 0 else 1  # type: ignore[arg-type]
        if feature is not None and feature.axis == dim and size == shape[axis]:
            met.append(feature)
            values.append(feature.values)
        elif size > 1:
            return None
        else:
            flow.keep(feature)
            values.append(None if isinstance(arg, fx.Node) else np.full(shape[axis], float(arg)) if _number(arg) else None)  # type: ignore[arg-type]
    flow.keep_sizes(node)
    for other in met[1:]:
        flow.atoms.tie(met[0].atoms, other.atoms)
    return Feature(axis, met[0].atoms, _combined(node, values))


def _number(value: object) -> bool:
    return isinstance(value, (int, float))


def _combined(node: fx.Node, values: list[np.ndarray | None]) -> np.ndarray:
    """The values of an elementwise step of two tensors; 0 times anything is 0."""
    name = str(getattr(node.target, "__name__", node.target)).rstrip("_")
    size = next(len(v) for v in values if v is not None)
    one, two = (np.full(size, np.nan) if v is None else v for v in values)
    found = _applied(lambda a, b: _call(node, a, b), one, two)
    return np.where((one == 0) | (two == 0), 0.0, found) if name in ("mul", "imul") else found


# — pooling —


def _pool(flow: Flow, node: fx.Node) -> Feature | None:
    """Channels as they are. A constant stays one unless an average counts padding or positions outside."""
    module: Any = flow.traced.module(node)
    x = flow.read(node.args[0], node)
    if x is None or getattr(module, "return_indices", False) or x.axis >= len(flow.shape(node)) - POOLS[type(module)]:
        return None
    if not isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)):
        return x
    padding = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    counted = any(padding) and module.count_include_pad
    return x.zeros_only() if counted or module.ceil_mode or getattr(module, "divisor_override", None) else x


def _functional_pool(flow: Flow, node: fx.Node) -> Feature | None:
    x = flow.read(node.args[0], node)
    if x is None or node.kwargs.get("return_indices") or x.axis >= len(flow.shape(node)) - FUNCTION_POOLS[node.target]:
        return None
    plain = len(node.args) <= 3 and not node.kwargs.keys() - {"kernel_size", "stride"}
    return x.zeros_only() if node.target in PLAIN_AVERAGES and not plain else x


# — which rule —

MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _batch_norm),
    nn.PReLU: _prelu,
    **dict.fromkeys(ACTIVATIONS, _activation),
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(POOLS, _pool),
    **MOVING_MODULES,
}
FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(DROPOUTS, _functional_dropout),
    **dict.fromkeys(FUNCTION_POOLS, _functional_pool),
    **MOVING,
}
FRESH: tuple[Any, ...] = (nn.Linear, _ConvNd, _BatchNorm, nn.PReLU, *ACTIVATIONS, *POOLS)


def rule_of(flow: Flow, node: fx.Node) -> tuple[Rule | None, bool]:
    """The rule of a node, None where there is none, and whether its result may share memory with what it reads."""
    if node.op == "call_module":
        module = flow.traced.module(node)
        rule = MODULES.get(type(module)) if flow.usable(node) and len(node.args) == 1 and not node.kwargs else None
        return rule, not isinstance(module, FRESH)
    if node.op in ("call_function", "call_method") and node.args:
        return FUNCTIONS.get(node.target), node.target not in UNARY and node.target not in BINARY
    return None, True


def follow(traced: Traced) -> Flow:
    """The channels of every tensor in a graph."""
    flow = Flow(traced)
    for node in traced.graph.nodes:
        flow.step(node, *rule_of(flow, node))
    return flow
