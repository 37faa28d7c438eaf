"""PackedLinear and PackedConv2d: published counts, against member-by-member references in float64, and every refusal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.packed import PackedConv2d, PackedLinear


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "parameters", "weight", "out"),
    [
        ({}, 33_280, (4, 128, 64), 512),
        ({"first": True}, 66_048, (4, 128, 128), 512),
        ({"last": True}, 66_560, (4, 256, 64), 1024),
        ({"gamma": 2}, 16_896, (8, 64, 32), 512),
        ({"bias": False}, 32_768, (4, 128, 64), 512),
        ({"first": True, "last": True}, 132_096, (4, 256, 128), 1024),
        ({"alpha": 1.5}, 18_816, (4, 96, 48), 384),
    ],
)
def test_linear_counts(options: dict[str, Any], parameters: int, weight: tuple[int, ...], out: int) -> None:
    layer = PackedLinear(128, 256, members=4, **{"alpha": 2} | options)
    assert size(layer) == parameters
    assert layer.weight.shape == weight
    assert layer(torch.randn(3, layer.in_features)).shape == (3, out)


@pytest.mark.parametrize(
    ("into", "out", "options", "weights", "gamma"),
    [
        (64, 128, {"gamma": 2}, 73_728, 1),
        (256, 256, {"gamma": 2}, 294_912, 2),
        (3, 64, {"first": True}, 3 * 128 * 9, 1),
        (64, 10, {"last": True}, 40 * 32 * 9, 1),
        (64, 64, {"groups": 64}, 128 * 9, 1),  # depthwise
        (64, 64, {"groups": 64, "gamma": 2}, 128 * 9, 1),
        (64, 64, {"groups": 4}, 128 * 8 * 9, 1),
        (6, 66, {"groups": 3, "first": True}, 132 * 2 * 9, 1),
    ],
)
def test_conv_counts(into: int, out: int, options: dict[str, Any], weights: int, gamma: int) -> None:
    layer = PackedConv2d(into, out, 3, members=4, alpha=2, bias=False, **options)
    assert size(layer) == weights
    assert layer.gamma == gamma
    assert bool(layer.lowered) == (gamma != options.get("gamma", 1))


def linear_reference(layer: PackedLinear, x: Tensor) -> Tensor:
    """Each output unit of each group by its definition."""
    rows = layer.weight.reshape(layer.out_features, -1)
    per = layer.out_features // layer.groups
    into = layer.in_features // layer.groups
    units = []
    for j in range(layer.out_features):
        group = j // per
        bias = 0 if layer.bias is None else layer.bias[j]
        units.append(x[:, group * into : (group + 1) * into] @ rows[j] + bias)
    return torch.stack(units, 1)


@settings(max_examples=40, deadline=None)
@given(
    members=st.integers(1, 4),
    alpha=st.integers(1, 4),
    gamma=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    place=st.sampled_from(["first", "last", "both", "interior"]),
    bias=st.booleans(),
    batch=st.integers(0, 3),
)
def test_linear_is_its_definition(
    members: int, alpha: int, gamma: int, widths: tuple[int, int], place: str, bias: bool, batch: int
) -> None:
    first, last = place in ("first", "both"), place in ("last", "both")
    gamma = 1 if first or last else gamma
    into, out = (w * members * gamma for w in widths)
    layer = PackedLinear(into, out, members, alpha, gamma, bias, first, last, dtype=torch.float64)
    assert layer.in_features == into * (1 if first else alpha)
    assert layer.out_features == out * (members if last else alpha)
    x = torch.randn(batch, layer.in_features, dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear_reference(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("place", ["first", "interior", "last"])
@pytest.mark.parametrize(
    ("groups", "options"),
    [(1, {}), (2, {"stride": 2, "padding": 1}), (8, {"dilation": 2}), (4, {"padding": "same", "padding_mode": "circular"})],
)
def test_conv_members_are_plain_convolutions(members: int, place: str, groups: int, options: dict[str, Any]) -> None:
    layer = PackedConv2d(
        8, 16, 3, members, 2, groups=groups, first=place == "first", last=place == "last", dtype=torch.float64, **options
    )
    channels = 8 if place == "first" else layer.in_channels
    x = torch.randn(2, channels, 9, 7, dtype=torch.float64)
    out = layer(x).unflatten(1, (members, -1))
    for m in range(members):
        plain = layer.plain()
        assert type(plain) is nn.Conv2d
        assert plain.out_channels == (16 if place == "last" else 32 // members)
        with torch.no_grad():
            for name, view in layer.member(m).items():
                getattr(plain, name).copy_(view)
        mine = x if place == "first" else x.unflatten(1, (members, -1))[:, m]
        torch.testing.assert_close(plain(mine), out[:, m], rtol=0, atol=1e-12)


def test_conv_gamma_subgroups_see_only_their_own_channels() -> None:
    layer = PackedConv2d(256, 128, 1, members=2, alpha=1, gamma=2, bias=False, dtype=torch.float64)
    assert layer.groups == 4
    x = torch.randn(1, 256, 2, 2, dtype=torch.float64)
    blocks = [F.conv2d(a, w) for a, w in zip(x.chunk(4, 1), layer.weight.chunk(4), strict=True)]
    torch.testing.assert_close(layer(x), torch.cat(blocks, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [1, 2])
@pytest.mark.parametrize("place", ["first", "interior", "last"])
def test_linear_members_are_plain_layers(place: str, gamma: int) -> None:
    gamma = gamma if place == "interior" else 1
    layer = PackedLinear(12, 24, 3, 1, gamma, first=place == "first", last=place == "last", dtype=torch.float64)
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    for m in range(3):
        plain = layer.plain()
        assert type(plain) is (nn.Linear if gamma == 1 else PackedLinear)
        with torch.no_grad():
            for name, view in layer.member(m).items():
                getattr(plain, name).copy_(view)
        mine = x if place == "first" else x.unflatten(1, (3, -1))[:, m]
        torch.testing.assert_close(plain(mine), layer(x).unflatten(1, (3, -1))[:, m], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (lambda: PackedLinear(64, 512, 4, 2), 32),
        (lambda: PackedLinear(64, 512, 4, 2, gamma=2), 16),
        (lambda: PackedLinear(64, 512, 4, 2, first=True), 64),
        (lambda: PackedConv2d(16, 64, 3, 4, 2), 8 * 9),
        (lambda: PackedConv2d(16, 64, 3, 4, 2, first=True), 16 * 9),
        (lambda: PackedConv2d(16, 64, 3, 4, 2, groups=16), 9),
    ],
)
def test_initial_values_fill_the_bound_of_the_groups_fan_in(layer: Any, fan_in: int, seed: int) -> None:
    torch.manual_seed(seed)
    made = layer()
    bound = 1 / math.sqrt(fan_in)
    for parameter in (made.weight, made.bias):
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.9 * bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_reset_draws_anew() -> None:
    layer = PackedLinear(8, 8, 2)
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PackedLinear(64, 63, 4),
            r"out_features: expected a width that times 2 divides into 4 equal groups, got 63; .*62 and 64",
        ),
        (lambda: PackedLinear(64, 64, 3), r"in_features: .* got 64; the nearest that do: 63 and 66"),
        (lambda: PackedLinear(64, 64, 4, 2, gamma=3), r"in_features: .* into 12 equal groups, got 64; .*: 60 and 66"),
        (lambda: PackedLinear(5, 64, 4, 1.5), r"in_features: .* times 3/2 .* got 5; the nearest that do: 8"),
        (lambda: PackedLinear(64, 64, 4, gamma=2, first=True), "gamma: expected 1 for a first layer, got 2"),
        (lambda: PackedConv2d(64, 64, 3, 4, gamma=2, last=True), "gamma: expected 1 for a last layer, got 2"),
        (lambda: PackedLinear(64, 64, 0), "members: expected a positive int, got 0"),
        (lambda: PackedLinear(64, 64, 4, -2), "alpha: expected a positive number, got -2"),
        (lambda: PackedConv2d(9, 64, 3, 4), "in_channels: .* got 9; the nearest that do: 8 and 10"),
        (lambda: PackedConv2d(8, 63, 3, 4), "out_channels: .* got 63; the nearest that do: 62 and 64"),
        (lambda: PackedConv2d(8, 9, 3, 4, groups=2), "groups: expected a divisor of 8 and 9 channels, got 2"),
        (lambda: PackedConv2d(8, 12, 3, 4, 2, groups=4), "out_channels: .* into 16 equal groups"),
        (lambda: PackedLinear(8, 8, 2)(torch.zeros(3, 4, 4)), r"expected an input \(B, 16\), got \(3, 4, 4\)"),
        (lambda: PackedLinear(8, 8, 2)(torch.zeros(3, 8)), r"expected an input \(B, 16\), got \(3, 8\)"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_repr_names_what_is_packed() -> None:
    assert "members=4, gamma=2" in repr(PackedLinear(64, 64, 4, gamma=2))
    assert "groups=4, members=4, gamma=1" in repr(PackedConv2d(8, 8, 3, 4))
