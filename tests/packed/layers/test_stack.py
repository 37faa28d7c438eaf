"""Packed transformer stacks against M separate torch.nn ones in float64: norms, masks, layouts, both halves."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.packed.layers.arrangement import Packing
from quorate.packed.layers.layernorm import PackedLayerNorm, PackedRMSNorm
from quorate.packed.layers.stack import PackedTransformerDecoder, PackedTransformerEncoder
from quorate.packed.layers.transformer import PackedTransformerDecoderLayer, PackedTransformerEncoderLayer
from separate_members import assert_isolated, assert_members_equal, filled, placed, separate, taken

MEMBERS, WIDTH, HEADS, HIDDEN = 3, 12, 6, 9
BATCH, LENGTH = 2, 4
LAYOUTS = ["channels", "rows", "gather"]
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False, False, True, False], [False, False, False, True]])
HALVES: list[tuple[Any, Any]] = [
    (PackedTransformerEncoder, PackedTransformerEncoderLayer),
    (PackedTransformerDecoder, PackedTransformerDecoderLayer),
]


def tokens(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(MEMBERS, BATCH, LENGTH, 8, dtype=torch.float64, generator=generator).requires_grad_()


def run(stack: Any, inputs: list[Tensor], layout: str, masks: dict[str, Any]) -> Tensor:
    batch = 0 if stack.batch_first else 1
    tensors = [placed(z if stack.batch_first else z.transpose(1, 2), layout, -1, batch) for z in inputs]
    return taken(stack(*tensors, **masks, layout=layout), MEMBERS, layout, -1, batch)


def built(kind: Any, layer: Any, norm: PackedLayerNorm | None = None, **options: Any) -> Any:
    return kind(layer(WIDTH, HEADS, MEMBERS, 2, HIDDEN, 0.0, **options), 2, norm)


def masks_of(kind: Any, name: str) -> dict[str, Any]:
    if kind is PackedTransformerEncoder:
        return {
            "": {},
            "causal": {"mask": CAUSAL, "is_causal": True},
            "found": {"mask": nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)},
            "padded": {"mask": CAUSAL, "src_key_padding_mask": PADDING},
        }[name]
    return {
        "": {},
        "causal": {"tgt_mask": CAUSAL, "tgt_is_causal": True, "memory_mask": CAUSAL, "memory_is_causal": True},
        "found": {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)},
        "padded": {
            "tgt_mask": CAUSAL,
            "tgt_key_padding_mask": PADDING,
            "memory_mask": CAUSAL.mT,
            "memory_key_padding_mask": PADDING,
        },
    }[name]


@settings(max_examples=12)
@given(
    half=st.sampled_from(HALVES),
    batch_first=st.booleans(),
    norm=st.sampled_from([None, PackedLayerNorm, PackedRMSNorm]),
    layout=st.sampled_from(LAYOUTS),
    masks=st.sampled_from(["", "causal", "found", "padded"]),
)
def test_equals_separate_stacks(half: Any, batch_first: bool, norm: Any, layout: str, masks: str) -> None:
    kind, layer = half
    last = None if norm is None else norm(WIDTH, MEMBERS, 2, eps=0.1)
    stack = filled(built(kind, layer, last, batch_first=batch_first, norm_first=norm is not None))
    held, inputs = masks_of(kind, masks), [tokens(), tokens(3)][: 1 + (kind is PackedTransformerDecoder)]

    def single(plain: Any, m: int) -> Tensor:
        out: Tensor = plain(*(z[m] if batch_first else z[m].transpose(0, 1) for z in inputs), **held)
        return out

    assert_members_equal(stack, inputs, lambda packed: run(packed, inputs, layout, held), single)
    assert_isolated(stack, lambda packed: run(packed, inputs, layout, held))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_evaluation_equals_the_nested_path_where_nothing_is_padded() -> None:
    stack = filled(built(*HALVES[0], batch_first=True)).eval()
    padding, z = torch.zeros(BATCH, LENGTH, dtype=torch.bool), tokens()
    padding[:, 3] = True
    with torch.no_grad():
        packed = run(stack, [z], "channels", {"src_key_padding_mask": padding})
        for m, plain in enumerate(separate(stack)):
            plain.use_nested_tensor = plain.enable_nested_tensor = True
            expected = plain(z[m], src_key_padding_mask=padding)
            assert torch.allclose(packed[m][:, :3], expected[:, :3], atol=1e-12)


@pytest.mark.parametrize(("kind", "layer"), HALVES)
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(WIDTH, 0.2), nn.RMSNorm(WIDTH, 0.2), nn.LayerNorm(WIDTH, bias=False)])
def test_like_carries_all(kind: Any, layer: Any, norm: nn.Module | None) -> None:
    single: Any = layer.PLAIN(WIDTH, HEADS, HIDDEN, 0.25, "gelu", batch_first=True, norm_first=True)
    plain: Any = (nn.TransformerEncoder if kind is PackedTransformerEncoder else nn.TransformerDecoder)(
        single, 3, norm, **({"enable_nested_tensor": False} if kind is PackedTransformerEncoder else {})
    )
    plain.layers[2].dropout.p, plain.layers[1].norm1.eps = 0.5, 0.3
    stack = kind.like(plain, Packing(MEMBERS, Fraction(MEMBERS)))
    again = stack.plain()
    assert (stack.num_layers, again.num_layers, len(again.layers)) == (3, 3, 3)
    assert [(layer.dropout.p, layer.norm1.eps, layer.norm_first) for layer in again.layers] == [
        (layer.dropout.p, layer.norm1.eps, layer.norm_first) for layer in plain.layers
    ]
    assert repr(again.norm) == repr(plain.norm)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    assert set(stack.member(0)) == set(plain.state_dict())
    for name, parameter in plain.named_parameters():
        fan_in = 1 if "norm" in name else HIDDEN if "linear2" in name else WIDTH
        assert kind.fan_in(plain, name) == fan_in, (name, parameter.shape)
    assert all(bool(p.isfinite().all()) for n, p in stack.named_parameters() if "norm" in n)
    assert f"members={MEMBERS}" in repr(stack)


def test_layers_are_copies() -> None:
    layer = PackedTransformerEncoderLayer(WIDTH, HEADS, MEMBERS, 2, HIDDEN, layout="rows")
    stack = PackedTransformerEncoder(layer, 2)
    assert stack.layout == "rows"
    assert all(torch.equal(a, b) and a is not b for a, b in zip(layer.parameters(), stack.layers[1].parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_with_a_dynamic_batch(layout: str) -> None:
    torch.manual_seed(0)
    stack = built(*HALVES[0], PackedLayerNorm(WIDTH, MEMBERS, 2), batch_first=True).eval()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = stack

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y: Tensor = self.stack(x.repeat(MEMBERS, 1, 1) if layout == "rows" else x, mask, layout=layout)
            return y

    x = torch.randn(4, LENGTH, 8 if layout == "rows" else 24)
    dynamic = {"x": {0: torch.export.Dim("batch", min=2)}, "mask": None}
    program = torch.export.export(Network(), (x, CAUSAL), dynamic_shapes=dynamic).module()
    assert torch.allclose(program(x[:3], CAUSAL), Network()(x[:3], CAUSAL), atol=1e-5)


def like(norm: nn.Module, **end: bool) -> Any:
    plain = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN), 2, norm)
    return PackedTransformerDecoder.like(plain, Packing(MEMBERS, Fraction(2), **end))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedTransformerEncoder(nn.ReLU(), 2), "expected a PackedTransformerEncoderLayer, got ReLU"),  # type: ignore[arg-type]
        (lambda: built(PackedTransformerDecoder, PackedTransformerEncoderLayer), "expected a PackedTransformerDecoderLayer, got"),
        (
            lambda: built(*HALVES[0], PackedLayerNorm(WIDTH, 2, 2)),
            r"expected a norm of 3 members over \(8,\), got 2 over \(12,\)",
        ),
        (
            lambda: PackedTransformerEncoder(PackedTransformerEncoderLayer(WIDTH, HEADS, MEMBERS, 2, HIDDEN), 0),
            "num_layers: expected a positive int",
        ),
        (lambda: built(*HALVES[0])(torch.ones(4, 2, 8)), r"src: expected \(L, B, 24\) in layout 'channels', got \(4, 2, 8\)"),
        (lambda: built(*HALVES[0])(torch.ones(4, 2, 24), is_causal=True), "is_causal: expected an attn_mask"),
        (lambda: built(*HALVES[1])(torch.ones(4, 2, 24), torch.ones(4, 2, 8)), r"memory: expected \(L, B, 24\)"),
        (lambda: built(*HALVES[1])(torch.ones(4, 2, 24), torch.ones(4, 2, 24), layout="spread"), "layout: .* got 'spread'"),
        (
            lambda: like(nn.BatchNorm1d(WIDTH)),
            "PackedTransformerDecoder: expected a LayerNorm, RMSNorm or no norm, got BatchNorm1d",
        ),
        (lambda: like(nn.LayerNorm(WIDTH), last=True), "PackedTransformerDecoder: .* got its last one; put a Linear behind it"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
