"""PackedLayerNorm and PackedRMSNorm against M separate norms in float64: tokens, images, every layout, backend and option."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quorate.packed.layers.arrangement import Packing
from quorate.packed.layers.layernorm import PackedLayerNorm, PackedRMSNorm
from separate_members import assert_isolated, assert_members_equal, filled, placed, settings_of, taken

MEMBERS, CHANNELS, ALPHA = 3, 6, 2  # four channels each
LAYOUTS = st.sampled_from(["channels", "rows", "gather"])


def inputs(*shape: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@given(
    layout=LAYOUTS,
    plane=st.sampled_from([(), (3, 2)]),
    between=st.sampled_from([(), (5,), (2, 3)]),
    affine=st.booleans(),
    bias=st.booleans(),
    rms=st.booleans(),
    last=st.booleans(),
    eps=st.sampled_from([1e-5, 0.1]),
)
def test_equals_separate_norms(
    layout: str,
    plane: tuple[int, ...],
    between: tuple[int, ...],
    affine: bool,
    bias: bool,
    rms: bool,
    last: bool,
    eps: float,
) -> None:
    options: dict[str, Any] = {"eps": eps, "elementwise_affine": affine, "last": last} | ({} if rms else {"bias": bias})
    layer = filled((PackedRMSNorm if rms else PackedLayerNorm)((CHANNELS, *plane), MEMBERS, ALPHA, **options))
    width = CHANNELS if last else 4
    z, axis = inputs(MEMBERS, 2, *between, width, *plane), -1 - len(plane)

    def packed(norm: Any) -> torch.Tensor:
        return taken(norm(placed(z, layout, axis), layout), MEMBERS, layout, axis)

    assert_members_equal(layer, [z], packed, lambda norm, m: norm(z[m]))
    if affine:
        assert_isolated(layer, packed)


@pytest.mark.parametrize("layout", ["channels", "spread", "rows"])
@pytest.mark.parametrize("plane", [(), (3, 2)])
def test_a_first_norm(layout: str, plane: tuple[int, ...]) -> None:
    layer = filled(PackedLayerNorm((CHANNELS, *plane), MEMBERS, ALPHA, first=True))
    x, own, axis = inputs(2, 5, CHANNELS, *plane), inputs(MEMBERS, 2, 5, CHANNELS, *plane), -1 - len(plane)
    given = own.flatten(0, 1) if layout == "rows" else x

    def packed(norm: Any) -> torch.Tensor:
        return taken(norm(given, layout), MEMBERS, layout, axis)

    leaf = own if layout == "rows" else x
    assert_members_equal(layer, [leaf], packed, lambda norm, m: norm(own[m] if layout == "rows" else x))
    assert_isolated(layer, packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_without_eps_takes_that_of_the_dtype(dtype: torch.dtype) -> None:
    layer = PackedRMSNorm(CHANNELS, MEMBERS, ALPHA, dtype=dtype)
    x = torch.full((2, 12), 1e-4, dtype=dtype)
    assert torch.allclose(layer(x)[:, :4], nn.RMSNorm(4, dtype=dtype)(x[:, :4]))


def test_autocast_and_export() -> None:
    layer = PackedLayerNorm(CHANNELS, MEMBERS, ALPHA)
    x = torch.randn(4, 5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(layer(x).float(), layer(x), atol=0.05)
        assert layer(x.bfloat16()).isfinite().all()
    dynamic = {"input": {0: torch.export.Dim("batch", min=2)}, "layout": None}
    program = torch.export.export(layer, (x, "gather"), dynamic_shapes=dynamic).module()
    assert torch.allclose(program(x[:3], "gather"), layer(x[:3], "gather"), atol=1e-6)


@pytest.mark.parametrize(
    "plain",
    [
        nn.LayerNorm(6, 0.1),
        nn.LayerNorm((6, 3, 2), elementwise_affine=False),
        nn.LayerNorm(6, bias=False, dtype=torch.float64),
        nn.RMSNorm(6, 0.1),
        nn.RMSNorm((6, 3, 2), elementwise_affine=False),
        nn.RMSNorm(6, dtype=torch.bfloat16),
    ],
    ids=repr,
)
@pytest.mark.parametrize("end", [{}, {"first": True}, {"last": True}])
def test_like_carries_all(plain: Any, end: dict[str, bool]) -> None:
    kind: Any = globals()[f"Packed{type(plain).__name__}"]
    layer = kind.like(plain, Packing(MEMBERS, Fraction(ALPHA), **end))
    assert (layer.first, layer.last) == ("first" in end, "last" in end)
    again = layer.plain()
    assert type(again) is type(plain)
    assert again.normalized_shape == (6 if end else 4, *plain.normalized_shape[1:])
    assert settings_of(again, "eps", "elementwise_affine") == settings_of(plain, "eps", "elementwise_affine")
    assert {n: t.dtype for n, t in again.state_dict().items()} == {n: t.dtype for n, t in plain.state_dict().items()}
    assert all(kind.fan_in(plain, name) == 1 for name, _ in plain.named_parameters())
    assert all(bool((p == float(name == "weight")).all()) for name, p in layer.named_parameters())
    assert f"members={MEMBERS}" in repr(layer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedLayerNorm(7, 3), "normalized_shape: .* got 7; the nearest that do: 6 and 9"),
        (lambda: PackedLayerNorm((5, 6), 3), r"expected \(C,\) of tokens or \(C, H, W\) of images, got \(5, 6\)"),
        (lambda: PackedRMSNorm((6, 2, 2, 2), 3), r"got \(6, 2, 2, 2\), in which the channels could be any axis"),
        (lambda: PackedLayerNorm((6, 0, 2), 3), "normalized_shape: expected a positive int, got 0"),
        (
            lambda: PackedLayerNorm(6, 3, layout="rows")(torch.ones(3, 5, 12)),
            r"\(3 · B, …, 4\) in layout 'rows', got \(3, 5, 12\)",
        ),
        (lambda: PackedLayerNorm(6, 3)(torch.ones(4, 4), "rows"), r"got \(4, 4\)"),
        (lambda: PackedLayerNorm(6, 3)(torch.ones(12)), r"expected an input \(B, …, 12\) in layout 'channels', got \(12,\)"),
        (lambda: PackedRMSNorm((6, 2, 2), 3)(torch.ones(2, 4, 2, 2)), r"PackedRMSNorm: .* \(B, …, 12, 2, 2\)"),
        (lambda: PackedLayerNorm(6, 3)(torch.ones(2, 12), "spread"), "layout: .* got 'spread'"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
