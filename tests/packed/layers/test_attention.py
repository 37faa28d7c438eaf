"""PackedMultiheadAttention against M separate nn.MultiheadAttention in float64: every call pattern, option, mask and layout."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.packed.layers.arrangement import Packing
from quorate.packed.layers.attention import PackedMultiheadAttention
from separate_members import assert_isolated, assert_members_equal, close, filled, placed, separate, settings_of, taken

MEMBERS, HEADS, WIDTH = 3, 6, 12
BATCH, QUERIES, KEYS = 2, 4, 5
ALPHAS = [Fraction(1), Fraction(3, 2), Fraction(2), Fraction(3)]
LAYOUTS = ["channels", "rows", "gather"]


def tokens(length: int, width: int, seed: int = 1) -> Tensor:
    """(M, B, L, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(MEMBERS, BATCH, length, width, dtype=torch.float64, generator=generator).requires_grad_()


def mask_of(*shape: int, boolean: bool = True, seed: int = 2) -> Tensor:
    """Bool with its first key kept, or float."""
    drawn = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kept = drawn > 0.3
    kept[..., 0] = False
    return kept if boolean else drawn


def called(
    layer: Any, parts: list[Tensor], layout: str, masks: dict[str, Any], need_weights: bool = False, average: bool = True
) -> Tensor:
    """Outputs (M, B, L, E′), and weights behind them, all flat: (M, …). `parts` are (M, B, L, width), and given again where the same."""
    batch_first, made = layer.batch_first, {}
    for part in parts:
        made[id(part)] = placed(part if batch_first else part.transpose(1, 2), layout, -1, 0 if batch_first else 1)
    options = {"need_weights": need_weights, "average_attn_weights": average, "layout": layout}
    y, weights = layer(*(made[id(part)] for part in parts), **masks, **options)
    y = taken(y, MEMBERS, layout, -1, 0 if batch_first else 1)
    y = (y if batch_first else y.transpose(1, 2)).flatten(1)
    assert (weights is not None) == need_weights
    if weights is None:
        return y
    heads = () if average else (layer.num_heads,)
    length, keys = parts[0].shape[2], weights.shape[-1]
    lead = (BATCH, MEMBERS) if layout == "channels" else (MEMBERS * BATCH,)
    assert weights.shape == (*lead, *heads, length, keys)
    weights = weights.transpose(0, 1) if layout == "channels" else weights.unflatten(0, (MEMBERS, BATCH))
    return torch.cat([y, weights.flatten(1)], 1)


def alone(plain: Any, parts: list[Tensor], masks: dict[str, Any], need_weights: bool = False, average: bool = True) -> Tensor:
    """A plain layer's outputs and weights, flat. `parts` are (B, L, width)."""
    made = {id(part): part if plain.batch_first else part.transpose(0, 1) for part in parts}
    if masks.get("attn_mask") is not None and masks.get("key_padding_mask") is not None:  # of one type, or PyTorch warns
        masks = masks | {
            name: torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, -torch.inf)
            for name, mask in masks.items()
            if isinstance(mask, Tensor) and mask.dtype == torch.bool
        }
    y, weights = plain(*(made[id(p)] for p in parts), **masks, need_weights=need_weights, average_attn_weights=average)
    y = (y if plain.batch_first else y.transpose(0, 1)).flatten()
    return y if weights is None else torch.cat([y, weights.flatten()])


def check(layer: Any, parts: list[Tensor], layout: str, masks: dict[str, Any], own: list[dict[str, Any]], **how: bool) -> None:
    """Values, gradients and isolation; `own` are the masks of each member."""

    def single(plain: Any, m: int) -> Tensor:
        views = {id(part): part[m] for part in parts}
        return alone(plain, [views[id(part)] for part in parts], own[m], **how)

    leaves = list({id(part): part for part in parts}.values())
    assert_members_equal(layer, leaves, lambda attention: called(attention, parts, layout, masks, **how), single)
    assert_isolated(layer, lambda attention: called(attention, parts, layout, masks, **how))


def both_masks(layer: Any, keys: int, attention: str, padding: str, boolean: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The masks for the packed call, and those of each member."""
    rows, each, mask, pad = MEMBERS * BATCH, layer.num_heads, None, None
    own: list[dict[str, Any]] = [{} for _ in range(MEMBERS)]
    if attention == "flat":
        mask = mask_of(QUERIES, keys, boolean=boolean)
        own = [{"attn_mask": mask} for _ in own]
    elif attention.startswith("shared"):
        full = mask_of(BATCH, HEADS, QUERIES, keys, boolean=boolean)
        own = [{"attn_mask": full[:, [(m * each + j) % HEADS for j in range(each)]].flatten(0, 1)} for m in range(MEMBERS)]
        mask = full if attention.endswith("4") else full.flatten(0, 1)
    elif attention.startswith("own"):
        full = mask_of(MEMBERS, BATCH, each, QUERIES, keys, boolean=boolean)
        own = [{"attn_mask": full[m].flatten(0, 1)} for m in range(MEMBERS)]
        mask = full.reshape(rows, each, QUERIES, keys) if attention.endswith("4") else full.flatten(0, 2)
    if padding == "shared":
        pad = mask_of(BATCH, keys, boolean=boolean, seed=3)
        own = [masks | {"key_padding_mask": pad} for masks in own]
    elif padding == "own":
        pad = mask_of(rows, keys, boolean=not boolean, seed=3)
        own = [masks | {"key_padding_mask": pad.chunk(MEMBERS)[m]} for m, masks in enumerate(own)]
    return {"attn_mask": mask, "key_padding_mask": pad}, own


@settings(max_examples=50)
@given(
    pattern=st.sampled_from(["self", "memory", "distinct", "query is key", "widths"]),
    attention=st.sampled_from(["", "flat", "shared", "shared4", "own", "own4"]),
    padding=st.sampled_from(["", "shared", "own"]),
    layout=st.sampled_from(LAYOUTS),
    alpha=st.sampled_from(ALPHAS),
    need_weights=st.booleans(),
    flags=st.fixed_dictionaries(
        {
            name: st.booleans()
            for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first", "average", "boolean", "training")
        }
    ),
)
def test_equals_separate_layers(
    pattern: str, attention: str, padding: str, layout: str, alpha: Fraction, need_weights: bool, flags: dict[str, bool]
) -> None:
    if alpha == 1 and attention in ("shared", "own"):
        attention += "4"
    options: dict[str, Any] = {name: flags[name] for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    if pattern == "widths":
        options |= {"kdim": 6, "vdim": 18}
    layer = filled(PackedMultiheadAttention(WIDTH, HEADS, MEMBERS, alpha, **options)).train(flags["training"])
    assert layer.num_heads == alpha * HEADS / MEMBERS
    width = layer.embed_dim
    q = tokens(QUERIES, width)
    k = q if pattern in ("self", "query is key") else tokens(KEYS, layer.kdim, 4)
    v = k if pattern in ("self", "memory") else tokens(k.shape[2], layer.vdim, 5)
    masks, own = both_masks(layer, k.shape[2], attention, padding, flags["boolean"])
    check(layer, [q, k, v], layout, masks, own, need_weights=need_weights, average=flags["average"])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_causal(options: dict[str, bool], need_weights: bool, pad: bool, layout: str, batch_first: bool) -> None:
    layer = filled(PackedMultiheadAttention(WIDTH, HEADS, MEMBERS, 2, batch_first=batch_first, **options))
    x = tokens(QUERIES, layer.embed_dim)
    masks: dict[str, Any] = {"attn_mask": torch.ones(QUERIES, QUERIES, dtype=torch.bool).triu(1), "is_causal": True}
    if pad:
        masks["key_padding_mask"] = mask_of(BATCH, QUERIES)
    check(layer, [x, x, x], layout, masks, [masks] * MEMBERS, need_weights=need_weights)


def test_evaluation_equals_the_fast_path() -> None:
    layer = filled(PackedMultiheadAttention(WIDTH, HEADS, MEMBERS, 2, batch_first=True)).eval()
    x, masks = tokens(QUERIES, layer.embed_dim), {"key_padding_mask": mask_of(BATCH, QUERIES)}
    with torch.no_grad():
        expected = [alone(plain, [x[m]] * 3, masks) for m, plain in enumerate(separate(layer))]
        close(called(layer, [x, x, x], "rows", masks), torch.stack(expected))


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_differs_between_members_and_keeps_the_mean(need_weights: bool) -> None:
    torch.manual_seed(0)
    layer = PackedMultiheadAttention(WIDTH, HEADS, MEMBERS, 3, dropout=0.5, batch_first=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter) if parameter.dim() > 1 else parameter[:12].repeat(3))
    x = torch.randn(1, 6, WIDTH).repeat(4000 * MEMBERS, 1, 1)
    y = layer(x, x, x, need_weights=need_weights, layout="rows")[0].unflatten(0, (MEMBERS, -1))
    still = layer.eval()(x[:MEMBERS], x[:MEMBERS], x[:MEMBERS], layout="rows")[0]
    assert not torch.equal(y[0], y[1])
    assert (y.std(1) > 0.01).all()
    assert torch.allclose(y.mean(1), still, atol=0.05)


def test_initial_values_are_those_of_the_members_size() -> None:
    torch.manual_seed(0)
    layer = PackedMultiheadAttention(256, 8, 4, 2, add_bias_kv=True)
    plain = layer.plain()
    plain._reset_parameters()
    plain.out_proj.reset_parameters()
    for m in range(4):
        for name, view in layer.member(m).items():
            own = plain.state_dict()[name]
            assert view.shape == own.shape
            if "bias" in name and "_k" not in name and "_v" not in name:
                assert not view.any()
            else:
                assert torch.isclose(view.std(), own.std(), rtol=0.4)
                assert view.abs().max() < own.abs().max() * 1.5


class Rows(nn.Module):
    """A shared input, brought into the layout and attended to itself."""

    def __init__(self, layer: PackedMultiheadAttention, need_weights: bool) -> None:
        super().__init__()
        self.layer, self.need_weights = layer, need_weights

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, M · E′), or (B, L, E′) for the rows layout."""
        x = x.repeat(MEMBERS, 1, 1) if self.layer.layout == "rows" else x
        y: Tensor = self.layer(x, x, x, need_weights=self.need_weights, attn_mask=mask)[0]
        return y


SLOW = [("channels", False), *(pytest.param(*case, marks=pytest.mark.slow) for case in [("rows", True), ("gather", False)])]


def given_layout(layout: Any, need_weights: bool) -> tuple[Rows, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = PackedMultiheadAttention(WIDTH, HEADS, MEMBERS, 2, batch_first=True, add_bias_kv=True, layout=layout).eval()
    return Rows(layer, need_weights), torch.randn(4, 5, 8 if layout == "rows" else 24), mask_of(5, 5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("need_weights", [False, True])
def test_autocast(layout: str, need_weights: bool) -> None:
    network, x, mask = given_layout(layout, need_weights)
    with torch.autocast("cpu", torch.bfloat16):
        given = network(x, mask)
    assert given.dtype == torch.bfloat16
    assert torch.allclose(given.float(), network(x, mask), atol=0.05)


@pytest.mark.parametrize(("layout", "need_weights"), SLOW)
def test_compile(layout: str, need_weights: bool) -> None:
    network, x, mask = given_layout(layout, need_weights)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x, mask), network(x, mask), atol=1e-5)


@pytest.mark.parametrize(("layout", "need_weights"), SLOW)
def test_export_with_a_dynamic_batch(layout: str, need_weights: bool) -> None:
    network, x, mask = given_layout(layout, need_weights)
    dynamic = {"x": {0: torch.export.Dim("batch", min=2)}, "mask": None}
    program = torch.export.export(network, (x, mask), dynamic_shapes=dynamic).module()
    assert torch.allclose(program(x[:3], mask), network(x[:3], mask), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.3, "bias": False, "batch_first": True},
        {"add_bias_kv": True, "add_zero_attn": True, "dtype": torch.float64},
        {"kdim": 6, "vdim": 18, "bias": False},
    ],
)
def test_like_carries_all(options: dict[str, Any]) -> None:
    plain = nn.MultiheadAttention(WIDTH, HEADS, **options)
    layer = PackedMultiheadAttention.like(plain, Packing(MEMBERS, Fraction(3)))
    again = layer.plain()  # with alpha = M a member has the size of the single network
    names = ("embed_dim", "num_heads", "kdim", "vdim", "dropout", "add_zero_attn", "batch_first", "_qkv_same_embed_dim")
    assert settings_of(again, *names) == settings_of(plain, *names)
    shapes = [{name: (t.shape, t.dtype) for name, t in module.state_dict().items()} for module in (plain, again)]
    assert shapes[0] == shapes[1]
    assert {name for name, _ in layer.named_parameters()} == set(shapes[0])
    for name, parameter in plain.named_parameters():
        wide = {"k_proj_weight": plain.kdim, "v_proj_weight": plain.vdim}
        assert PackedMultiheadAttention.fan_in(plain, name) == wide.get(name, WIDTH)
        assert parameter.dim() < 2 or "bias" in name or parameter.shape[1] == wide.get(name, WIDTH)
    assert f"members={MEMBERS}" in repr(layer)


def attention(**options: Any) -> PackedMultiheadAttention:
    return PackedMultiheadAttention(WIDTH, HEADS, MEMBERS, **({"alpha": 2, "batch_first": True} | options))


X, ROWS, VALUES = torch.ones(2, 4, 24), torch.ones(6, 4, 8), torch.ones(2, 3, 24)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PackedMultiheadAttention(192, 3, 4),
            "times 2 divide among 4 members, got 3; legal are members of 1, 2, 3, 6, num_heads",
        ),
        (lambda: PackedMultiheadAttention(192, 3, 4), "num_heads of 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 192, alpha of 4"),
        (lambda: PackedMultiheadAttention(9, 3, 2, Fraction(1, 7)), "got 3; legal are alpha of 2"),
        (
            lambda: PackedMultiheadAttention(12, 5, 4),
            "num_heads: expected a divisor of embed_dim 12, got 5; legal are 1, 2, 3, 4, 6, 12",
        ),
        (lambda: attention(kdim=7), "kdim: .* got 7; the nearest that do: 6 and 9"),
        (lambda: attention(vdim=7), "vdim: .* got 7"),
        (lambda: attention(layout="spread"), "layout: .* got 'spread'"),
        (
            lambda: attention()(X[0], X[0], X[0]),
            r"query: expected \(B, L, 24\) in layout 'channels', got \(4, 24\); add a batch axis",
        ),
        (lambda: attention()(X, X, X, layout="rows"), r"query: expected \(3 · B, L, 8\) in layout 'rows'"),
        (
            lambda: attention(batch_first=False)(ROWS, ROWS, ROWS, layout="rows"),
            r"query: expected \(L, 3 · B, 8\) .* got \(6, 4, 8\)",
        ),
        (lambda: attention()(X, X[..., :8], X), r"key: expected \(B, L, 24\)"),
        (lambda: attention(vdim=6)(X, X, X), r"value: expected \(B, L, 12\)"),
        (lambda: attention()(X, X, VALUES), r"key and value: expected one length .* got \(2, 4, 24\) and \(2, 3, 24\)"),
        (lambda: attention()(X, VALUES[:1], VALUES[:1]), "key and value: expected one length and the batch of query"),
        (lambda: attention()(X, X, X, is_causal=True), "is_causal: expected an attn_mask"),
        (lambda: attention()(X, X, X, attn_mask=torch.ones(4, 4).int()), "attn_mask: expected a bool mask .* got torch.int32"),
        (lambda: attention()(X, X, X, torch.ones(2, 4).int()), "key_padding_mask: expected a bool mask"),
        (
            lambda: attention()(X, X, X, torch.ones(3, 4)),
            r"key_padding_mask: expected \(2, 4\) shared .* \(6, 4\) .* got \(3, 4\)",
        ),
        (
            lambda: attention()(X, X, X, attn_mask=torch.ones(4, 5)),
            r"attn_mask: expected \(4, 4\), shared \(12, 4, 4\) or own \(24, 4, 4\)",
        ),
        (lambda: attention()(X, X, X, attn_mask=torch.ones(2, 4, 4)), r"got \(2, 4, 4\); count in the heads"),
        (
            lambda: attention(alpha=1)(*[X[..., :12]] * 3, attn_mask=torch.ones(12, 4, 4)),
            r"expected four axes .* \(2, 6, L, S\) .* \(6, 2, L",
        ),
        (
            lambda: PackedMultiheadAttention.like(nn.MultiheadAttention(12, 6), Packing(3, Fraction(2), first=True)),
            "got its first one",
        ),
        (
            lambda: PackedMultiheadAttention.like(nn.MultiheadAttention(12, 6), Packing(3, Fraction(2), last=True)),
            "put a Linear behind it",
        ),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
