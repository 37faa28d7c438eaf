"""Which module is packed by which layer, and what each kind of module makes of what flows into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import fx, nn

from quorate.packed.flow import EXAMPLE, Flow, Group, Learned, Own, Raw, refuse, remedy, told
from quorate.packed.layers import convolution, norms, stack, transformer
from quorate.packed.layers.arrangement import PackedLayer
from quorate.packed.layers.attention import PackedMultiheadAttention
from quorate.packed.layers.depth import PackedStochasticDepth, StochasticDepth
from quorate.packed.layers.embedding import PackedEmbedding, PackedEmbeddingBag
from quorate.packed.layers.layernorm import PackedLayerNorm, PackedRMSNorm
from quorate.packed.layers.linear import PackedLinear
from quorate.packed.layers.prelu import PackedPReLU
from quorate.packed.layers.recurrent import PackedGRU, PackedLSTM, PackedRNN
from quorate.packed.rules.dimensions import pooled
from quorate.packed.rules.shapes import flattened, unflattened
from quorate.packed.rules.walking import Walk, at, free_of_batch, has_batch, kept
from quorate.packed.sizes import Size
from quorate.packed.trace import WAY_OUT

PACKED: dict[type[nn.Module], type[PackedLayer]] = {
    nn.Linear: PackedLinear,
    PackedLinear: PackedLinear,
    nn.Conv1d: convolution.PackedConv1d,
    nn.Conv2d: convolution.PackedConv2d,
    nn.Conv3d: convolution.PackedConv3d,
    nn.ConvTranspose1d: convolution.PackedConvTranspose1d,
    nn.ConvTranspose2d: convolution.PackedConvTranspose2d,
    nn.ConvTranspose3d: convolution.PackedConvTranspose3d,
    nn.BatchNorm1d: norms.PackedBatchNorm1d,
    nn.BatchNorm2d: norms.PackedBatchNorm2d,
    nn.BatchNorm3d: norms.PackedBatchNorm3d,
    nn.InstanceNorm1d: norms.PackedInstanceNorm1d,
    nn.InstanceNorm2d: norms.PackedInstanceNorm2d,
    nn.InstanceNorm3d: norms.PackedInstanceNorm3d,
    nn.GroupNorm: norms.PackedGroupNorm,
    nn.LayerNorm: PackedLayerNorm,
    nn.RMSNorm: PackedRMSNorm,
    nn.PReLU: PackedPReLU,
    nn.Embedding: PackedEmbedding,
    nn.EmbeddingBag: PackedEmbeddingBag,
    nn.MultiheadAttention: PackedMultiheadAttention,
    nn.TransformerEncoderLayer: transformer.PackedTransformerEncoderLayer,
    nn.TransformerDecoderLayer: transformer.PackedTransformerDecoderLayer,
    nn.TransformerEncoder: stack.PackedTransformerEncoder,
    nn.TransformerDecoder: stack.PackedTransformerDecoder,
    nn.LSTM: PackedLSTM,
    nn.GRU: PackedGRU,
    nn.RNN: PackedRNN,
    StochasticDepth: PackedStochasticDepth,
}
CONVOLUTIONS = {kind: n for n in (1, 2, 3) for kind in (getattr(nn, f"Conv{n}d"), getattr(nn, f"ConvTranspose{n}d"))}
NORMS = {kind: n for n in (1, 2, 3) for kind in (getattr(nn, f"BatchNorm{n}d"), getattr(nn, f"InstanceNorm{n}d"))}
RECURRENT: tuple[type[nn.Module], ...] = (nn.LSTM, nn.GRU, nn.RNN)
TOKENS: tuple[type[nn.Module], ...] = (
    *(nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
    *(nn.TransformerEncoder, nn.TransformerDecoder),
)
SEVERAL = (*TOKENS, *RECURRENT, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # that take more than one argument
OVER_LAST = (nn.Linear, PackedLinear, nn.LayerNorm, nn.RMSNorm)  # that read the last dimension
# that can be first, last, or begin a branch
LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, PackedLinear, *CONVOLUTIONS, nn.Embedding, nn.EmbeddingBag, *TOKENS, *RECURRENT)

ELEMENT = (
    *("Identity", "Dropout", "AlphaDropout", "ReLU", "ReLU6", "LeakyReLU", "RReLU", "ELU", "SELU", "CELU", "GELU", "SiLU"),
    *("Mish", "Hardswish", "Hardsigmoid", "Hardtanh", "Hardshrink", "Softshrink", "Tanhshrink", "Softplus", "Softsign"),
    *("LogSigmoid", "Sigmoid", "Tanh", "Threshold"),
)
POOLS = (
    *("MaxPool{}d", "AvgPool{}d", "AdaptiveMaxPool{}d", "AdaptiveAvgPool{}d", "LPPool{}d", "Dropout{}d"),
    *("ZeroPad{}d", "ConstantPad{}d", "ReflectionPad{}d", "ReplicationPad{}d", "CircularPad{}d"),
)
ELEMENTS = {getattr(nn, name) for name in ELEMENT}
SPATIAL = {
    **{getattr(nn, name.format(n)): n for name in POOLS for n in (1, 2, 3)},
    **dict.fromkeys((nn.FeatureAlphaDropout, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), 2),
}


@dataclass(frozen=True)
class Place:
    """A module in the graph: its node, itself, and whether it is a last layer."""

    node: fx.Node
    module: nn.Module
    last: bool


def _check_width(place: Place, flow: Own, size: int, axis: int) -> None:
    """ValueError unless the width lies on this axis and is the module's."""
    if flow.dims is None:
        if axis not in (-1, 1):
            refuse(place.node, "a tensor whose dimensions are known", "one of unknown shape", EXAMPLE)
        return
    here = at(place.node, flow.dims, axis)
    if flow.axis != here:
        came = f"{told(flow)} with dimension {flow.axis} narrower in a member"
        refuse(place.node, f"the channels at dimension {here}", came, WAY_OUT)
    if flow.dims[here].known and flow.dims[here].number != size:
        refuse(place.node, f"{size} channels", f"{flow.dims[here]}", "correct the model, which cannot run as it is")


def _no_head(place: Place, flow: Flow) -> None:
    if isinstance(flow, Own) and flow.head:
        refuse(place.node, "a layer before the last one", "one behind it", f"add no layer to class scores, {WAY_OUT}")


def _linear(place: Place, walk: Walk, flow: Flow) -> Flow:
    module = place.module
    assert isinstance(module, nn.Linear | PackedLinear)
    width = Size(module.out_features)
    _no_head(place, flow)
    if isinstance(flow, Raw):
        if flow.dims is None:
            return Own(None, -1, flow.batch, place.last)
        return Own((*flow.dims[:-1], width), len(flow.dims) - 1, flow.batch, place.last)
    assert isinstance(flow, Own)
    if flow.dims is not None and _beside(flow, 1):
        if flow.dims[-1].known and flow.dims[-1].number != module.in_features:
            refuse(
                place.node, f"{module.in_features} features", f"{flow.dims[-1]}", "correct the model, which cannot run as it is"
            )
        walk.across.add(place.node)
        return replace(flow, dims=(*flow.dims[:-1], width))
    _check_width(place, flow, module.in_features, -1)
    dims = None if flow.dims is None else (*flow.dims[:-1], width)
    return Own(dims, -1 if dims is None else len(dims) - 1, flow.batch, place.last)


def _convolution(place: Place, walk: Walk, flow: Flow) -> Flow:
    module, spatial = place.module, CONVOLUTIONS[type(place.module)]
    _no_head(place, flow)
    given = flow.dims if isinstance(flow, Raw | Own) else None
    assert isinstance(flow, Raw | Own)
    if given is not None and len(given) != spatial + 2:
        do = "keep the batch at dimension 0 and the channels at 1"
        refuse(place.node, f"an input of {spatial + 2} dimensions", f"one of {len(given)}", do)
    if isinstance(flow, Own):
        _check_width(place, flow, int(module.in_channels), 1)  # type: ignore[arg-type]
    if flow.batch != 0:
        refuse(place.node, "the batch at dimension 0", told(flow), "bring it there first")
    batch = given[0] if given else Size(1, ("batch",))
    sizes = (walk.unknown(place.node, i) for i in range(2, spatial + 2))
    return Own((batch, Size(int(module.out_channels)), *sizes), 1, 0, place.last)  # type: ignore[arg-type]


def _norm(place: Place, walk: Walk, flow: Flow) -> Flow:  # noqa: ARG001
    """BatchNorm, InstanceNorm, GroupNorm, PReLU: channels at dimension 1."""
    module = place.module
    assert isinstance(flow, Own)
    spatial = NORMS.get(type(module))
    if spatial and flow.rank is not None and flow.rank not in ((2, 3) if isinstance(module, nn.BatchNorm1d) else (spatial + 2,)):
        refuse(place.node, f"an input of {spatial + 2} dimensions", f"one of {flow.rank}", EXAMPLE)
    width = next(getattr(module, n) for n in ("num_features", "num_channels", "num_parameters") if hasattr(module, n))
    if not (isinstance(module, nn.PReLU) and width == 1):
        _check_width(place, flow, width, 1)
    return flow


def _beside(flow: Own, last: int) -> bool:
    """Whether neither width nor batch is among the last dimensions."""
    return max(flow.axis or 0, flow.batch) < (flow.rank or 0) - last


def _layer_norm(place: Place, walk: Walk, flow: Flow) -> Flow:
    assert isinstance(place.module, nn.LayerNorm | nn.RMSNorm)
    assert isinstance(flow, Own)
    shape = place.module.normalized_shape
    if flow.dims is None and len(shape) > 1:
        refuse(place.node, "a tensor whose dimensions are known", "one of unknown shape", EXAMPLE)
    if flow.dims is not None and _beside(flow, len(shape)):
        if odd := [n for n, size in zip(shape, flow.dims[-len(shape) :], strict=True) if size.known and size.number != n]:
            refuse(place.node, f"{odd[0]} features", told(flow), "correct the model, which cannot run as it is")
        walk.across.add(place.node)  # a norm of heads, say, which every member has in full
        return flow
    _check_width(place, flow, shape[0], -len(shape))
    return flow


def _embedding(place: Place, walk: Walk, flow: Flow) -> Flow:  # noqa: ARG001
    assert isinstance(place.module, nn.Embedding | nn.EmbeddingBag)
    if not isinstance(flow, Raw):
        refuse(place.node, "indices that all members share", told(flow), f"use a Linear, {WAY_OUT}")
    width = Size(place.module.embedding_dim)
    if isinstance(place.module, nn.EmbeddingBag):
        return Own((Size(1, ("batch",)), width), 1, 0)
    if flow.dims is None:
        return Own(None, -1, flow.batch)
    return Own((*flow.dims, width), len(flow.dims), flow.batch)


def _recurrent(place: Place, walk: Walk, flow: Flow) -> Flow:
    module = place.module
    assert isinstance(module, nn.LSTM | nn.GRU | nn.RNN)
    batch = 0 if module.batch_first else 1
    if isinstance(flow, Own):
        _check_width(place, flow, module.input_size, -1)
    assert isinstance(flow, Own | Raw)
    if flow.batch != batch or (flow.dims is not None and len(flow.dims) != 3):
        refuse(place.node, f"a sequence of 3 dimensions with the batch at {batch}", told(flow), "set batch_first or transpose it")
    hidden, ways = module.proj_size or module.hidden_size, 2 if module.bidirectional else 1
    rows, steps = Size(1, ("batch",)), walk.unknown(place.node, 1 - batch) if flow.dims is None else flow.dims[1 - batch]
    out = Own((rows, steps, Size(hidden * ways)) if batch == 0 else (steps, rows, Size(hidden * ways)), 2, batch)
    state = Own((Size(module.num_layers * ways), rows, Size(hidden)), 2, 1)
    cell = replace(state, dims=(Size(module.num_layers * ways), rows, Size(module.hidden_size)))
    return Group((out, Group((state, cell)) if isinstance(module, nn.LSTM) else state))


def _tokens(place: Place, walk: Walk, flow: Flow) -> Flow:
    """MultiheadAttention and Transformer layers: the shape of the queries."""
    module = place.module
    for source in place.node.all_input_nodes:
        if isinstance(other := walk[source], Learned):
            walk.resolve(source, len(other.dims) - 1)
    if isinstance(flow, Learned):
        flow = Own(flow.dims, len(flow.dims) - 1, 0)
    inner = next((m for m in module.modules() if isinstance(m, nn.MultiheadAttention)), None)
    batch = 0 if inner is not None and inner.batch_first else 1
    if isinstance(flow, Raw):
        dims = flow.dims
    else:
        assert isinstance(flow, Own)
        dims = flow.dims
        if inner is not None:
            _check_width(place, flow, inner.embed_dim, -1)
    assert isinstance(flow, Own | Raw)
    if flow.batch != batch or (dims is not None and len(dims) != 3):
        refuse(
            place.node, f"tokens of 3 dimensions with the batch at {batch}", told(flow), "set batch_first=True or transpose them"
        )
    out = Own(dims, 2 if dims else -1, batch)
    if not isinstance(module, nn.MultiheadAttention):
        return out
    sizes = (Size(1, ("batch",)), walk.unknown(place.node, 0), walk.unknown(place.node, 1))
    return Group((out, Own(sizes, None, 0)))


def _free(place: Place, walk: Walk, flow: Flow) -> Flow:
    """Modules without parameters."""
    node, module, kind = place.node, place.module, type(place.module)
    if not isinstance(flow, Own):
        return flow
    if kind in ELEMENTS or kind is StochasticDepth:
        return kept(walk, node, flow)
    if kind in SPATIAL or kind is nn.Upsample:
        if getattr(module, "return_indices", False):
            refuse(node, "one output", "return_indices=True", "leave the indices out")
        return pooled(node, walk, flow, SPATIAL.get(kind, (flow.rank or 4) - 2))
    if isinstance(module, nn.Flatten):
        return flattened(node, walk, flow, module.start_dim, module.end_dim)
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Softmin):
        if module.dim is None:
            refuse(node, "a dimension that is named", "none", "write dim=")
        free_of_batch(node, flow, [at(node, flow.dims, module.dim)])
        return flow
    if not isinstance(module, nn.Unflatten):
        refuse(node, "a module that can be packed", kind.__name__, remedy(kind.__name__))
    result, new = unflattened(node, walk, flow, int(module.dim), list(module.unflattened_size))
    module.unflattened_size = tuple(new)
    return result


FLOWS: dict[type[nn.Module], Callable[[Place, Walk, Flow], Flow]] = {
    nn.Linear: _linear,
    PackedLinear: _linear,
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys((*NORMS, nn.GroupNorm, nn.PReLU), _norm),
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(TOKENS, _tokens),
}


def _with_batch(place: Place, walk: Walk, flow: Learned) -> Own:
    """A bare parameter that was expanded to the batch: its width is the last dimension."""
    axis = len(flow.dims) - 1
    walk.resolve(place.node.all_input_nodes[0], axis)
    return Own(flow.dims, axis, has_batch(flow.dims)[0])


def through(place: Place, walk: Walk, flow: Flow) -> Flow:
    """The flow out of a module whose first input this is. Raises ValueError naming what cannot be packed."""
    node, kind = place.node, type(place.module)
    if isinstance(flow, Raw) and next(place.module.parameters(), None) is None:
        return Raw(None, flow.batch) if kind is not nn.Identity else flow
    rule = FLOWS.get(kind, _free)
    if kind in OVER_LAST and isinstance(flow, Learned) and has_batch(flow.dims):
        flow = _with_batch(place, walk, flow)
    if kind in PACKED and not isinstance(flow, Own) and kind not in LAYERS and kind is not StochasticDepth:
        refuse(
            node,
            "a Linear or convolution first",
            f"{kind.__name__} of {told(flow)}",
            "normalise inputs by a module with buffers only",
        )
    if not isinstance(flow, Own | Raw) and not (kind in TOKENS and isinstance(flow, Learned)):
        refuse(node, "the members' tensors", told(flow), f"put a layer on what the members share, {WAY_OUT}")
    if place.last and kind in (*RECURRENT, *TOKENS, nn.Embedding, nn.EmbeddingBag):
        refuse(node, "a Linear or a convolution as last layer", kind.__name__, "end the model with a Linear layer")
    if isinstance(place.module, PackedLinear) and place.module.members > 1:
        refuse(node, "a module that can be packed", kind.__name__, remedy(kind.__name__))
    return rule(place, walk, flow)
