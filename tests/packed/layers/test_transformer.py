"""Packed transformer layers against M separate torch.nn ones in float64: options, masks, layouts, both halves."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.packed.layers.arrangement import Packing
from quorate.packed.layers.transformer import PackedTransformerDecoderLayer, PackedTransformerEncoderLayer
from separate_members import assert_isolated, assert_members_equal, close, filled, placed, separate, settings_of, taken

MEMBERS, WIDTH, HEADS, HIDDEN = 3, 12, 6, 9  # features, heads and hidden units of the single network
BATCH, LENGTH, MEMORY = 2, 4, 5
LAYOUTS = ["channels", "rows", "gather"]
ACTIVATIONS: list[Any] = ["relu", "gelu", F.silu, nn.ELU(0.7), lambda x: x.softmax(-1)]
Layer = PackedTransformerEncoderLayer | PackedTransformerDecoderLayer


def tokens(length: int, seed: int = 1) -> Tensor:
    """(M, B, L, E′) of α = 2."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(MEMBERS, BATCH, length, 8, dtype=torch.float64, generator=generator).requires_grad_()


def padding(length: int, rows: int = BATCH) -> Tensor:
    mask = torch.rand(rows, length, generator=torch.Generator().manual_seed(length)) > 0.6
    mask[:, 0] = False
    return mask


def causal(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).triu(1)


def run(layer: Any, inputs: list[Tensor], layout: str, masks: dict[str, Any]) -> Tensor:
    batch = 0 if layer.batch_first else 1
    tensors = [placed(z if layer.batch_first else z.transpose(1, 2), layout, -1, batch) for z in inputs]
    return taken(layer(*tensors, **masks, layout=layout), MEMBERS, layout, -1, batch)


def alone(plain: Any, inputs: list[Tensor], m: int, masks: dict[str, Any], batch_first: bool) -> Tensor:
    out: Tensor = plain(*(z[m] if batch_first else z[m].transpose(0, 1) for z in inputs), **masks)
    return out


def check(layer: Any, inputs: list[Tensor], layout: str, masks: dict[str, Any], own: list[dict[str, Any]] | None = None) -> None:
    each = [masks] * MEMBERS if own is None else own

    def single(plain: Any, m: int) -> Tensor:
        return alone(plain, inputs, m, each[m], layer.batch_first)

    assert_members_equal(layer, inputs, lambda packed: run(packed, inputs, layout, masks), single)
    assert_isolated(layer, lambda packed: run(packed, inputs, layout, masks))


FLAGS = st.fixed_dictionaries({name: st.booleans() for name in ("batch_first", "norm_first", "bias")})


@settings(max_examples=15)
@given(
    flags=FLAGS,
    activation=st.sampled_from(ACTIVATIONS),
    layout=st.sampled_from(LAYOUTS),
    masks=st.sampled_from(["", "causal", "mask", "padding", "both"]),
    training=st.booleans(),
)
def test_encoder_layer(flags: dict[str, bool], activation: Any, layout: str, masks: str, training: bool) -> None:
    options = {"dim_feedforward": HIDDEN, "dropout": 0.0, "activation": activation, "layer_norm_eps": 0.01}
    layer = filled(PackedTransformerEncoderLayer(WIDTH, HEADS, MEMBERS, 2, **options, **flags)).train(training)
    given: dict[str, Any] = {}
    if masks in ("causal", "mask", "both"):
        given["src_mask"] = causal(LENGTH, LENGTH)
    if masks == "causal":
        given["is_causal"] = True
    if masks in ("padding", "both"):
        given["src_key_padding_mask"] = padding(LENGTH)
    check(layer, [tokens(LENGTH)], layout, given)


@settings(max_examples=15)
@given(
    flags=FLAGS,
    activation=st.sampled_from(ACTIVATIONS),
    layout=st.sampled_from(LAYOUTS),
    masks=st.sampled_from(["", "causal", "own", "memory", "all"]),
)
def test_decoder_layer(flags: dict[str, bool], activation: Any, layout: str, masks: str) -> None:
    options = {"dim_feedforward": HIDDEN, "dropout": 0.0, "activation": activation, "layer_norm_eps": 0.01}
    layer = filled(PackedTransformerDecoderLayer(WIDTH, HEADS, MEMBERS, 2, **options, **flags))
    given: dict[str, Any] = {}
    if masks in ("causal", "own", "all"):
        given["tgt_mask"] = causal(LENGTH, LENGTH)
    if masks == "causal":
        given |= {"tgt_is_causal": True, "memory_mask": causal(LENGTH, MEMORY), "memory_is_causal": True}
    if masks in ("own", "all"):
        given["tgt_key_padding_mask"] = padding(LENGTH)
    if masks in ("memory", "all"):
        given |= {"memory_mask": causal(LENGTH, MEMORY), "memory_key_padding_mask": padding(MEMORY)}
    check(layer, [tokens(LENGTH), tokens(MEMORY, 3)], layout, given)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_member_may_bring_its_own_padding(layout: str) -> None:
    layer = filled(PackedTransformerEncoderLayer(WIDTH, HEADS, MEMBERS, 2, HIDDEN, 0.0))
    mask = padding(LENGTH, MEMBERS * BATCH)
    own = [{"src_key_padding_mask": part} for part in mask.chunk(MEMBERS)]
    check(layer, [tokens(LENGTH)], layout, {"src_key_padding_mask": mask}, own)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_evaluation_equals_the_fast_path(activation: str, norm_first: bool) -> None:
    options: dict[str, Any] = {"activation": activation, "norm_first": norm_first, "batch_first": True}
    layer = filled(PackedTransformerEncoderLayer(WIDTH, HEADS, MEMBERS, 2, HIDDEN, **options)).eval()
    z, masks = tokens(LENGTH), {"src_key_padding_mask": padding(LENGTH)}
    with torch.no_grad():
        expected = torch.stack([alone(plain, [z], m, masks, True) for m, plain in enumerate(separate(layer))])
        close(run(layer, [z], "channels", masks), expected)


@pytest.mark.parametrize("kind", [PackedTransformerEncoderLayer, PackedTransformerDecoderLayer])
def test_dropout_differs_between_members(kind: Any) -> None:
    torch.manual_seed(0)
    layer = filled(kind(WIDTH, HEADS, MEMBERS, 2, HIDDEN, 0.5))
    inputs = [tokens(LENGTH)] * (1 + (kind is PackedTransformerDecoderLayer))
    for name, parameter in layer.named_parameters():  # all members the same
        flat = parameter.shape[0] != MEMBERS
        part = parameter.detach()[: len(parameter) // MEMBERS]
        parameter.detach().copy_(part.repeat(MEMBERS) if flat else part.expand_as(parameter)), name
    same = [tokens(LENGTH)[:1].expand(MEMBERS, -1, -1, -1)] * len(inputs)
    y = run(layer, same, "rows", {})
    assert not torch.equal(y[0], y[1])
    y = run(layer.eval(), same, "rows", {})
    assert torch.equal(y[0], y[1])


PLAIN_OPTIONS: list[dict[str, Any]] = [
    {},
    {"dim_feedforward": HIDDEN, "dropout": 0.3, "activation": "gelu", "layer_norm_eps": 0.1, "batch_first": True},
    {"activation": F.silu, "norm_first": True, "bias": False, "dtype": torch.float64},
    {"activation": nn.LeakyReLU(0.3), "dim_feedforward": 6},
]


@pytest.mark.parametrize("options", PLAIN_OPTIONS)
@pytest.mark.parametrize("kind", [PackedTransformerEncoderLayer, PackedTransformerDecoderLayer])
def test_like_carries_all(kind: Any, options: dict[str, Any]) -> None:
    plain = kind.PLAIN(WIDTH, HEADS, **options)
    for i, part in enumerate(p for p in plain.modules() if isinstance(p, nn.Dropout | nn.LayerNorm)):
        if isinstance(part, nn.Dropout):
            part.p = 0.01 * i  # each of its own
        else:
            part.eps = 0.001 * i
    plain.self_attn.dropout, plain.self_attn.add_zero_attn, plain.dropout.inplace = 0.77, True, True
    layer = kind.like(plain, Packing(MEMBERS, Fraction(MEMBERS)))
    again = layer.plain()  # with alpha = M a member has the size of the single network
    assert {n: (t.shape, t.dtype) for n, t in again.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in plain.state_dict().items()
    }
    assert set(layer.member(0)) == set(plain.state_dict()) == {name for name, _ in layer.named_parameters()}
    names = ("p", "eps", "dropout", "inplace", "batch_first", "norm_first", "num_heads", "add_zero_attn", "negative_slope")
    for module, twin in zip(plain.modules(), again.modules(), strict=True):
        given, expected = settings_of(twin, *names), settings_of(module, *names)
        assert {k: v for k, v in given.items() if not isinstance(v, nn.Module) and k != "batch_first"} == {
            k: v for k, v in expected.items() if not isinstance(v, nn.Module) and k != "batch_first"
        }
    assert again.self_attn.batch_first == plain.self_attn.batch_first == layer.batch_first
    assert type(again.activation) is type(plain.activation)
    if isinstance(plain.activation, nn.Module):
        assert layer.activation is not plain.activation
    else:
        assert layer.activation is again.activation is plain.activation
    for name, parameter in plain.named_parameters():
        wide = {"linear2.weight": plain.linear1.out_features, "linear2.bias": plain.linear1.out_features}
        assert kind.fan_in(plain, name) == (1 if "norm" in name else wide.get(name, WIDTH)), (name, parameter.shape)
    assert f"members={MEMBERS}" in repr(layer)


def changed(name: str, part: nn.Module) -> nn.TransformerEncoderLayer:
    plain = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN)
    setattr(plain, name, part)
    return plain


PACKING = Packing(MEMBERS, Fraction(2))
LIKE = PackedTransformerEncoderLayer.like
X = torch.ones(LENGTH, BATCH, 24)


def encoder(**options: Any) -> PackedTransformerEncoderLayer:
    return PackedTransformerEncoderLayer(WIDTH, HEADS, MEMBERS, 2, HIDDEN, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedTransformerEncoderLayer(192, 3, 4), "num_heads: .* got 3; legal are members of 1, 2, 3, 6"),
        (
            lambda: PackedTransformerDecoderLayer(WIDTH, HEADS, MEMBERS, 2, 7),
            "out_features: .* got 7; the nearest that do: 6 and 9",
        ),
        (lambda: encoder(activation="tanh"), "activation: expected relu, gelu or a callable, got 'tanh'"),
        (lambda: encoder(activation=nn.PReLU()), "activation: expected one without parameters, .* got PReLU"),
        (lambda: encoder(layout="spread"), "layout: .* got 'spread'"),
        (lambda: encoder()(X, layout="spread"), "layout: .* got 'spread'"),
        (lambda: encoder()(X[:, 0]), r"src: expected \(L, B, 24\) in layout 'channels', got \(4, 24\)"),
        (lambda: encoder(batch_first=True)(X, layout="rows"), r"src: expected \(3 · B, L, 8\)"),
        (lambda: encoder()(X, is_causal=True), "is_causal: expected an attn_mask"),
        (
            lambda: PackedTransformerDecoderLayer(WIDTH, HEADS, MEMBERS, 2, HIDDEN)(X, X[..., :8]),
            r"memory: expected \(L, B, 24\)",
        ),
        (
            lambda: PackedTransformerDecoderLayer(WIDTH, HEADS, MEMBERS, 2, HIDDEN)(X, X[:, :1]),
            "key and value: expected one length and the batch",
        ),
        (lambda: LIKE(changed("norm2", nn.RMSNorm(WIDTH)), PACKING), "TransformerEncoderLayer: .* got another norm2; write it"),
        (lambda: LIKE(changed("linear2", nn.Linear(HIDDEN, WIDTH, bias=False)), PACKING), "got another linear2.bias"),
        (lambda: LIKE(changed("linear2", nn.Linear(3, WIDTH)), PACKING), "got another linear2.weight"),
        (lambda: LIKE(changed("activation", nn.PReLU()), PACKING), "activation: expected one without parameters"),
        (
            lambda: LIKE(changed("norm1", nn.LayerNorm(WIDTH)), Packing(3, Fraction(2), first=True)),
            "got its first one; put a Linear before",
        ),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
