"""What layers do to channels where the outputs may change: normalisations over channels, recurrent layers, attention, embeddings.

    LayerNorm, RMSNorm      through; of several normalised axes the channels' gets shorter
    GroupNorm               whole groups; with one group every channel by itself
    LSTM, GRU, RNN          H hidden units, the same ones in every layer, direction and gate: rows (G·H, in), columns (G·H, H)
    MultiheadAttention      whole heads of the stream: channels j·D/heads … of every j stand together, in query, key, value and output
    TransformerEncoder…     as its attention, and the hidden units of its MLP
    Embedding, ConvTranspose make channels

Shapes: recurrent layers and attention have channels on the last axis of (B, L, C) or (L, B, C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx, nn
from torch.nn.modules.rnn import RNNBase

from quorate.graphs.flow import Feature, Flow
from quorate.graphs.structure import FREE, Staying, Structure, cut_tensor_

GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


def made(flow: Flow, axis: int, count: int) -> Feature:
    """New channels."""
    return Feature(axis, flow.atoms.fresh(count), np.full(count, np.nan))


def _structure(flow: Flow) -> Structure:
    assert isinstance(flow, Structure)
    return flow


# — normalisations —


def cut_norm_(module: Any, place: int, rows: list[int]) -> None:
    """Shorten one of the normalised axes of a LayerNorm or RMSNorm."""
    cut_tensor_(module, "weight", place, rows)
    cut_tensor_(module, "bias", place, rows)
    shape = list(module.normalized_shape)
    shape[place] = len(rows)
    module.normalized_shape = tuple(shape)


def layer_norm(flow: Flow, node: fx.Node) -> Feature | None:
    """LayerNorm and RMSNorm."""
    x, module = flow.read(node.args[0], node), flow.traced.module(node)
    if x is None:
        return None
    place = x.axis - len(flow.shape(node)) + len(module.normalized_shape)  # type: ignore[arg-type]
    if place >= 0:
        _structure(flow).cuts.append(lambda staying: cut_norm_(module, place, staying(x)))
    return x


def group_norm(flow: Flow, node: fx.Node) -> Feature | None:
    """GroupNorm: whole groups."""
    x, module = flow.read(node.args[0], node), flow.traced.module(node)
    if x is None or x.axis != 1:
        return None
    groups: int = module.num_groups  # type: ignore[assignment]
    if groups > 1:
        for other in x.atoms.reshape(groups, -1).T[1:]:
            flow.atoms.tie(x.atoms.reshape(groups, -1)[:, 0], other)

    def cut_(staying: Staying) -> None:
        rows, layer = staying(x), module
        layer.num_groups = groups * len(rows) // len(x.atoms) if groups > 1 else 1  # type: ignore[assignment]
        layer.num_channels = len(rows)  # type: ignore[assignment]
        for name in ("weight", "bias"):
            cut_tensor_(layer, name, 0, rows)

    _structure(flow).cuts.append(cut_)
    return x


def instance_norm(flow: Flow, node: fx.Node) -> Feature | None:
    """InstanceNorm: each channel by itself."""
    x, module = flow.read(node.args[0], node), flow.traced.module(node)
    if x is None or x.axis != 1:
        return None

    def cut_(staying: Staying) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            cut_tensor_(module, name, 0, staying(x))
        module.num_features = len(staying(x))  # type: ignore[assignment]

    _structure(flow).cuts.append(cut_)
    return x


# — layers that make channels —


def embedding(flow: Flow, node: fx.Node) -> Feature | None:
    """A table of vectors; its indices are no channels."""
    module: Any = flow.traced.module(node)
    outputs = made(flow, len(flow.shape(node)) - 1, module.embedding_dim)

    def cut_(staying: Staying) -> None:
        cut_tensor_(module, "weight", 1, staying(outputs))
        module.embedding_dim = len(staying(outputs))

    _structure(flow).cuts.append(cut_)
    return outputs


def transposed_convolution(flow: Flow, node: fx.Node) -> Feature | None:
    """A transposed convolution of one group: its weight is (in, out, …)."""
    module: Any = flow.traced.module(node)
    x, axis = flow.read(node.args[0], node), len(flow.shape(node)) - module.weight.dim() + 1
    if module.groups != 1 or (x is not None and x.axis != axis):
        return None
    outputs = made(flow, axis, module.out_channels)

    def cut_(staying: Staying) -> None:
        if x is not None:
            cut_tensor_(module, "weight", 0, staying(x))
            module.in_channels = len(staying(x))
        cut_tensor_(module, "weight", 1, staying(outputs))
        cut_tensor_(module, "bias", 0, staying(outputs))
        module.out_channels = len(staying(outputs))

    _structure(flow).cuts.append(cut_)
    return outputs


def recurrent(flow: Flow, node: fx.Node) -> Any:
    """Hidden units of an LSTM, GRU or RNN from zero states: (outputs, (h, c)) or (outputs, h)."""
    module: Any = flow.traced.module(node)
    x, last = flow.read(node.args[0], node), len(flow.traced.noted[node][0]) - 1
    if module.proj_size or (x is not None and x.axis != last):
        return None
    units = made(flow, last, module.hidden_size)
    directions = 2 if module.bidirectional else 1
    outputs = Feature(last, np.tile(units.atoms, directions), np.tile(units.values, directions))

    def cut_(staying: Staying) -> None:
        cut_recurrent_(module, None if x is None else staying(x), staying(units))

    _structure(flow).cuts.append(cut_)
    return [outputs, [units, units] if isinstance(module, nn.LSTM) else units]


def cut_recurrent_(module: RNNBase, inputs: list[int] | None, units: list[int]) -> None:
    """Keep these inputs (None: all) and hidden units of every layer and direction."""
    hidden, directions = module.hidden_size, 2 if module.bidirectional else 1
    rows = [gate * hidden + unit for gate in range(GATES[type(module)]) for unit in units]
    below = [direction * hidden + unit for direction in range(directions) for unit in units]
    for name in [name for names in module._all_weights for name in names]:
        cut_tensor_(module, name, 0, rows)
        if name.startswith("weight_hh"):
            cut_tensor_(module, name, 1, units)
        elif name.startswith("weight_ih"):
            columns = inputs if name.startswith("weight_ih_l0") else below
            if columns is not None:
                cut_tensor_(module, name, 1, columns)
    module.input_size = module.input_size if inputs is None else len(inputs)
    module.hidden_size = len(units)
    module.flatten_parameters()


# — attention —


def _heads(flow: Flow, x: Feature, heads: int) -> None:
    """Tie the channels of each head."""
    atoms = x.atoms.reshape(heads, -1)
    for other in atoms.T[1:]:
        flow.atoms.tie(atoms[:, 0], other)


def cut_attention_(module: Any, rows: list[int]) -> None:
    """Keep these channels of the stream and the heads that they are."""
    before = module.embed_dim
    three = [part * before + row for part in range(3) for row in rows]
    cut_tensor_(module, "in_proj_weight", 0, three)
    cut_tensor_(module, "in_proj_weight", 1, rows)
    cut_tensor_(module, "in_proj_bias", 0, three)
    cut_tensor_(module.out_proj, "weight", 0, rows)
    cut_tensor_(module.out_proj, "weight", 1, rows)
    cut_tensor_(module.out_proj, "bias", 0, rows)
    module.out_proj.in_features = module.out_proj.out_features = len(rows)
    module.num_heads = module.num_heads * len(rows) // before
    module.embed_dim = module.kdim = module.vdim = len(rows)


def _plain(module: Any) -> bool:
    """Whether an attention is of one width, without rows of its own."""
    return bool(module._qkv_same_embed_dim) and module.bias_k is None and module.bias_v is None


def multihead_attention(flow: Flow, node: fx.Node) -> Any:
    """nn.MultiheadAttention: query, key and value are of the stream, the output is too."""
    module: Any = flow.traced.module(node)
    streams = [*node.args[:3], *(node.kwargs[name] for name in ("query", "key", "value") if name in node.kwargs)]
    masks = [n for n in node.all_input_nodes if n not in streams]
    features = [flow.read(stream, node) for stream in streams]
    if len(features) != 3 or any(feature is None for feature in features) or not _plain(module):
        return None
    last = len(flow.traced.noted[node][0]) - 1
    if any(f.axis != last for f in features if f is not None) or any(len(flow.shape(mask)) > 2 for mask in masks):
        return None
    x = features[0]
    assert x is not None
    for other in features[1:]:
        assert other is not None
        flow.atoms.tie(x.atoms, other.atoms)
    _heads(flow, x, module.num_heads)
    _structure(flow).cuts.append(lambda staying: cut_attention_(module, staying(x)))
    return [x, FREE]


def _encoder_layer(flow: Flow, layer: Any, x: Feature) -> Callable[[Staying], None]:
    """What is to be done to an encoder layer."""
    _heads(flow, x, layer.self_attn.num_heads)
    hidden = made(flow, 0, layer.linear1.out_features)

    def cut_(staying: Staying) -> None:
        rows, units = staying(x), staying(hidden)
        cut_attention_(layer.self_attn, rows)
        cut_norm_(layer.norm1, 0, rows)
        cut_norm_(layer.norm2, 0, rows)
        for linear, outputs, inputs in ((layer.linear1, units, rows), (layer.linear2, rows, units)):
            cut_tensor_(linear, "weight", 0, outputs)
            cut_tensor_(linear, "weight", 1, inputs)
            cut_tensor_(linear, "bias", 0, outputs)
            linear.out_features, linear.in_features = len(outputs), len(inputs)

    return cut_


def _exact_encoder_layer(layer: nn.Module) -> bool:
    return type(layer) is nn.TransformerEncoderLayer and _plain(layer.self_attn)


def encoder_layer(flow: Flow, node: fx.Node) -> Feature | None:
    """nn.TransformerEncoderLayer, and nn.TransformerEncoder of such layers."""
    module: Any = flow.traced.module(node)
    x = flow.read(node.args[0], node)
    layers = list(module.layers) if isinstance(module, nn.TransformerEncoder) else [module]
    norm = module.norm if isinstance(module, nn.TransformerEncoder) else None
    if x is None or x.axis != len(flow.shape(node)) - 1 or not all(_exact_encoder_layer(layer) for layer in layers):
        return None
    if norm is not None and type(norm) not in (nn.LayerNorm, nn.RMSNorm):
        return None
    cuts = _structure(flow).cuts
    cuts.extend(_encoder_layer(flow, layer, x) for layer in layers)
    if norm is not None:
        cuts.append(lambda staying: cut_norm_(norm, 0, staying(x)))
    return x


LAYERS: dict[type[nn.Module], Any] = {
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), layer_norm),
    nn.GroupNorm: group_norm,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), instance_norm),
    nn.Embedding: embedding,
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), transposed_convolution),
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), recurrent),
    **dict.fromkeys((nn.TransformerEncoderLayer, nn.TransformerEncoder), encoder_layer),
}
