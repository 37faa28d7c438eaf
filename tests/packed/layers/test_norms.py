"""Packed BatchNorm, InstanceNorm and GroupNorm against M separate norms in float64: every layout, mode and option."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quorate.packed.layers.arrangement import Packing
from quorate.packed.layers.norms import (
    PackedBatchNorm1d,
    PackedBatchNorm2d,
    PackedBatchNorm3d,
    PackedGroupNorm,
    PackedInstanceNorm1d,
    PackedInstanceNorm2d,
    PackedInstanceNorm3d,
)
from separate_members import assert_isolated, assert_members_equal, filled, placed, settings_of, taken

MEMBERS, CHANNELS, ALPHA = 3, 6, 2  # four channels each
PLANES = {0: (), 1: (5,), 2: (3, 2), 3: (2, 3, 2)}
BATCH = [(PackedBatchNorm1d, 0), (PackedBatchNorm1d, 1), (PackedBatchNorm2d, 2), (PackedBatchNorm3d, 3)]
INSTANCE = [(PackedInstanceNorm1d, 1), (PackedInstanceNorm2d, 2), (PackedInstanceNorm3d, 3)]
STATISTICS: list[tuple[Any, int]] = [*BATCH, *INSTANCE]
SETTINGS = ("eps", "momentum", "affine", "track_running_stats", "num_groups")
LAYOUTS = ["channels", "rows", "gather"]


def inputs(members: int, channels: int, plane: tuple[int, ...], batch: int = 4) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(members, batch, channels, *plane, dtype=torch.float64, requires_grad=True)


def check(layer: Any, z: torch.Tensor, layout: str) -> None:
    def packed(norm: Any) -> torch.Tensor:
        return taken(norm(placed(z, layout, 1), layout), MEMBERS, layout, 1)

    assert_members_equal(layer, [z], packed, lambda norm, m: norm(z[m]))
    if any(p.dim() for p in layer.parameters()):
        assert_isolated(layer, packed)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "rank"), STATISTICS)
@pytest.mark.parametrize(
    "options",
    [
        {"affine": True, "track_running_stats": True, "momentum": 0.3, "eps": 0.02},
        {"affine": True, "bias": False, "track_running_stats": True, "momentum": None},
        {"affine": False, "track_running_stats": False},
        {"affine": True, "track_running_stats": False, "last": True},
    ],
)
def test_statistics(kind: Any, rank: int, options: dict[str, Any], layout: str, training: bool) -> None:
    layer = filled(kind(CHANNELS, MEMBERS, ALPHA, **options)).train(training)
    check(layer, inputs(MEMBERS, 6 if options.get("last") else 4, PLANES[rank]), layout)


@given(
    layout=st.sampled_from(LAYOUTS),
    rank=st.integers(0, 3),
    groups=st.sampled_from([1, 2, 4]),
    affine=st.booleans(),
    bias=st.booleans(),
    eps=st.sampled_from([1e-5, 0.1]),
    batch=st.integers(1, 3),
)
def test_groups(layout: str, rank: int, groups: int, affine: bool, bias: bool, eps: float, batch: int) -> None:
    layer = filled(PackedGroupNorm(groups, CHANNELS, MEMBERS, ALPHA, eps, affine, bias))
    assert layer.groups == MEMBERS * groups
    check(layer, inputs(MEMBERS, 4, (*PLANES[rank], 3), batch), layout)


@pytest.mark.parametrize("layout", ["channels", "spread"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [PackedBatchNorm2d, PackedGroupNorm])
def test_a_first_norm_reads_the_shared_input(kind: Any, layout: str, training: bool) -> None:
    sizes = (2, CHANNELS) if kind is PackedGroupNorm else (CHANNELS,)
    layer = filled(kind(*sizes, MEMBERS, ALPHA, first=True)).train(training)
    x = inputs(1, CHANNELS, (3, 3))[0].detach().requires_grad_()

    def packed(norm: Any) -> torch.Tensor:
        return taken(norm(x, layout), MEMBERS, layout, 1)

    assert_members_equal(layer, [x], packed, lambda norm, _: norm(x))
    assert_isolated(layer, packed)
    own = inputs(MEMBERS, CHANNELS, (3, 3))
    assert_members_equal(
        layer, [own], lambda norm: taken(norm(own.flatten(0, 1), "rows"), MEMBERS, "rows", 1), lambda n, m: n(own[m])
    )


def test_counted_batches_are_common() -> None:
    layer = PackedBatchNorm1d(CHANNELS, MEMBERS, ALPHA)
    layer(torch.randn(8, 12))
    layer(torch.randn(8 * MEMBERS, 4), "rows")
    assert [int(layer.member(m)["num_batches_tracked"]) for m in range(MEMBERS)] == [2, 2, 2]


def test_bfloat16_autocast_and_export() -> None:
    layer = PackedBatchNorm2d(CHANNELS, MEMBERS, ALPHA, layout="gather").eval()
    x = torch.randn(4, 12, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(layer(x), layer(x.float()), atol=0.05)
    dynamic = {"input": {0: torch.export.Dim("batch", min=2)}}
    program = torch.export.export(layer, (x,), dynamic_shapes=dynamic).module()
    assert torch.allclose(program(x[:3]), layer(x[:3]), atol=1e-6)


@pytest.mark.parametrize(
    "plain",
    [
        nn.BatchNorm1d(6, 0.1, 0.3),
        nn.BatchNorm2d(6, momentum=None, affine=False, dtype=torch.float64),
        nn.BatchNorm3d(6, track_running_stats=False),
        nn.InstanceNorm1d(6, 0.1, 0.3, affine=True),
        nn.InstanceNorm2d(6, track_running_stats=True),
        nn.InstanceNorm3d(6, affine=True, track_running_stats=True, dtype=torch.bfloat16),
        nn.GroupNorm(2, 6, 0.1),
        nn.GroupNorm(1, 6, affine=False),
    ],
    ids=lambda plain: f"{type(plain).__name__} {plain.extra_repr()}",
)
@pytest.mark.parametrize("end", [{}, {"first": True}, {"last": True}])
@pytest.mark.parametrize("bias", [True, False])
def test_like_carries_all(plain: Any, end: dict[str, bool], bias: bool) -> None:
    if not bias:
        plain.register_parameter("bias", None)
    kind: Any = globals()[f"Packed{type(plain).__name__}"]
    layer = kind.like(plain, Packing(MEMBERS, Fraction(ALPHA), **end))
    assert (layer.first, layer.last) == ("first" in end, "last" in end)
    again = layer.plain()
    assert type(again) is type(plain)
    assert settings_of(again, *SETTINGS) == settings_of(plain, *SETTINGS)
    assert getattr(again, "num_features", getattr(again, "num_channels", None)) == (6 if end else 4)
    assert {n: t.dtype for n, t in again.state_dict().items()} == {n: t.dtype for n, t in plain.state_dict().items()}
    assert all(kind.fan_in(plain, name) == 1 for name, _ in plain.named_parameters())
    assert f"members={MEMBERS}" in repr(layer)
    if isinstance(plain, nn.BatchNorm1d):
        assert all(bool(t.isfinite().all()) for t in layer.state_dict().values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedBatchNorm2d(7, 3, 2), "num_features: .* got 7; the nearest that do: 6 and 9"),
        (
            lambda: PackedGroupNorm(3, 6, 3, 2),
            "num_groups: expected a divisor of a member's 4 channels, got 3; legal are 1, 2, 4",
        ),
        (lambda: PackedGroupNorm(2, 7, 3, 2), "num_channels: .* got 7"),
        (lambda: PackedBatchNorm2d(6, 3, layout="spread"), "layout: .* got 'spread'"),
        (lambda: PackedBatchNorm2d(6, 3)(torch.ones(2, 12, 3)), r"expected an input \(B, 12, …\) of 4 axes .* got \(2, 12, 3\)"),
        (lambda: PackedBatchNorm1d(6, 3)(torch.ones(2, 4)), r"\(B, 12, …\) of 2 or 3 axes in layout 'channels', got \(2, 4\)"),
        (lambda: PackedBatchNorm1d(6, 3)(torch.ones(4, 4), "rows"), r"\(3 · B, 4, …\) .* in layout 'rows', got \(4, 4\)"),
        (lambda: PackedInstanceNorm1d(6, 3)(torch.ones(12, 5)), r"PackedInstanceNorm1d: .* of 3 axes .* got \(12, 5\)"),
        (
            lambda: PackedGroupNorm(2, 6, 3)(torch.ones(12)),
            r"PackedGroupNorm: expected an input \(B, 12, …\) in layout 'channels'",
        ),
        (lambda: PackedBatchNorm1d(6, 3, first=True)(torch.ones(4, 12), "spread"), r"\(B, 6, …\) .* 'spread', got \(4, 12\)"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
