"""Packed convolutions and transposed ones: counts, M separate plain layers in float64 in every layout and backend, refusals."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.packed.layers.arrangement import Packing, spread, to_channels, to_rows
from quorate.packed.layers.convolution import (
    PackedConv1d,
    PackedConv2d,
    PackedConv3d,
    PackedConvTranspose1d,
    PackedConvTranspose2d,
    PackedConvTranspose3d,
)

CONV: dict[int, Any] = {1: PackedConv1d, 2: PackedConv2d, 3: PackedConv3d}
TRANSPOSED: dict[int, Any] = {1: PackedConvTranspose1d, 2: PackedConvTranspose2d, 3: PackedConvTranspose3d}
EVERY = [*CONV.values(), *TRANSPOSED.values()]
SIZES = {1: (7,), 2: (5, 6), 3: (4, 3, 5)}


@pytest.mark.parametrize(
    ("into", "out", "options", "weights", "gamma"),
    [
        (64, 128, {"gamma": 2}, 73_728, 1),
        (256, 256, {"gamma": 2}, 294_912, 2),
        (3, 64, {"first": True}, 3 * 128 * 9, 1),
        (64, 10, {"last": True}, 40 * 32 * 9, 1),
        (64, 64, {"groups": 64}, 128 * 9, 1),  # depthwise
        (64, 64, {"groups": 64, "gamma": 2}, 128 * 9, 1),
        (64, 192, {"groups": 64}, 3 * 128 * 9, 1),  # with a depth multiplier
        (64, 64, {"groups": 4}, 128 * 8 * 9, 1),
        (6, 66, {"groups": 3, "first": True}, 132 * 2 * 9, 1),
    ],
)
@pytest.mark.parametrize("kind", [PackedConv2d, PackedConvTranspose2d])
def test_counts(kind: Any, into: int, out: int, options: dict[str, Any], weights: int, gamma: int) -> None:
    layer = kind(into, out, 3, members=4, alpha=2, bias=False, **options)
    assert sum(p.numel() for p in layer.parameters()) == weights
    assert layer.gamma == gamma
    assert bool(layer.lowered) == (gamma != options.get("gamma", 1))


def plains(layer: Any) -> list[Any]:
    """Every member as a plain layer with copies of its values."""
    each = [layer.plain() for _ in range(layer.members)]
    for m, plain in enumerate(each):
        with torch.no_grad():
            for name, view in layer.member(m).items():
                plain.get_parameter(name).copy_(view)
    return each


def draw(layer: Any, layout: str, batch: int = 2) -> tuple[Tensor, Tensor]:
    """An input for a layout, and the members' inputs as rows."""
    size, members = SIZES[len(layer.kernel_size)], layer.members
    into = layer.in_channels // layer.repeats
    if layout == "rows":
        x = torch.randn(batch * members, into if layer.first else into // members, *size, dtype=torch.float64)
        return x, x
    x = torch.randn(batch, into, *size, dtype=torch.float64)
    return x, spread(x, members) if layer.first else to_rows(x, members)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_layout_and_backend_is_separate_plain_layers(data: st.DataObject) -> None:
    rank, members, alpha = (data.draw(st.sampled_from(v)) for v in ((1, 2, 3), (1, 2, 3), (1, 2, Fraction(3, 2))))
    transposed, first, last, bias = (data.draw(st.booleans()) for _ in range(4))
    own = data.draw(st.sampled_from([1, 2, "depthwise"]))
    alpha = members if own == "depthwise" and (first or last) else alpha  # so that all widths divide
    into = members * 4
    out = into * data.draw(st.integers(1, 2))
    kernel, stride, dilation = (tuple(data.draw(st.integers(1, 2)) for _ in range(rank)) for _ in range(3))
    padding: Any = tuple(data.draw(st.integers(0, 1)) for _ in range(rank))
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    if transposed:
        options["output_padding"] = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    else:
        options["padding_mode"] = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    if not transposed and data.draw(st.booleans()):
        options |= {"stride": 1, "padding": data.draw(st.sampled_from(["same", "valid"])), "dilation": 1}
        kernel = tuple(data.draw(st.sampled_from([1, 3])) for _ in range(rank))
    groups = into if own == "depthwise" else own
    kind = (TRANSPOSED if transposed else CONV)[rank]
    ends = {"bias": bias, "first": first, "last": last, "dtype": torch.float64}
    layout: Any = data.draw(st.sampled_from(["channels", "rows", "spread" if first else "gather"]))
    layer = kind(into, out, kernel, members, alpha, groups=groups, layout=layout, **options, **ends)
    layer.set_backend_(data.draw(st.sampled_from(kind.BACKENDS)))
    x, rows = draw(layer, layout, data.draw(st.integers(0, 2)))
    each = plains(layer)
    assert type(each[0]) is kind.PLAIN
    assert each[0].in_channels == (into if first else into * alpha / members)
    assert each[0].out_channels == (out if last else out * alpha / members)
    assert each[0].groups == (groups if first or own != "depthwise" else each[0].in_channels)
    expected = torch.cat([plain(part) for plain, part in zip(each, rows.chunk(members), strict=True)])
    expected = to_channels(expected, members) if layout == "channels" else expected
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [PackedConv2d, PackedConvTranspose1d])
@pytest.mark.parametrize(
    ("first", "groups", "layout"), [(False, 2, "channels"), (False, 1, "gather"), (True, 1, "spread"), (True, 2, "rows")]
)
@pytest.mark.parametrize("backend", ["grouped", "loop"])
def test_gradients_and_isolation_are_those_of_separate_layers(
    kind: Any, first: bool, groups: int, layout: Any, backend: str
) -> None:
    layer = kind(12, 24, 3, 3, 1, groups=groups, first=first, layout=layout, dtype=torch.float64).set_backend_(backend)
    x, rows = draw(layer, layout)
    each = plains(layer)
    for m, plain in enumerate(each):
        layer.zero_grad()
        out = layer(x)
        (out.chunk(3, 1) if layout == "channels" else out.chunk(3))[m].sin().sum().backward()
        plain(rows.chunk(3)[m]).sin().sum().backward()
        gradient = copy.deepcopy(layer)
        for name, parameter in gradient.named_parameters():
            parameter.data = layer.get_parameter(name).grad  # so that `member` shows the gradients
        for other in range(3):
            for name, view in gradient.member(other).items():
                if other == m:
                    torch.testing.assert_close(view, plain.get_parameter(name).grad, rtol=1e-12, atol=1e-13)
                else:
                    assert not view.any()


def test_gamma_subgroups_see_only_their_own_channels() -> None:
    layer = PackedConv2d(256, 128, 1, members=2, alpha=1, gamma=2, bias=False, dtype=torch.float64)
    assert layer.groups == 4
    x = torch.randn(1, 256, 2, 2, dtype=torch.float64)
    blocks = [F.conv2d(a, w) for a, w in zip(x.chunk(4, 1), layer.weight.chunk(4), strict=True)]
    torch.testing.assert_close(layer(x), torch.cat(blocks, 1), rtol=0, atol=1e-12)
    assert layer.plain().groups == 2
    torch.testing.assert_close(layer(to_rows(x, 2), "rows"), to_rows(layer(x), 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["channels", "rows", "gather"])
def test_a_transposed_convolution_takes_an_output_size(layout: Any) -> None:
    layer = PackedConvTranspose2d(4, 6, 3, 2, 2, stride=(3, 2), padding=1, layout=layout, dtype=torch.float64)
    x, rows = draw(layer, layout)
    size = (15, 12)
    expected = torch.cat([p(part, output_size=size) for p, part in zip(plains(layer), rows.chunk(2), strict=True)])
    expected = to_channels(expected, 2) if layout == "channels" else expected
    assert expected.shape[2:] == size
    torch.testing.assert_close(layer(x, size), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x, output_size=(9, 9, *size)), expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="valid sizes range"):
        layer(x, (20, 12))


@pytest.mark.parametrize("kind", EVERY)
def test_backends_agree_in_float32_and_share_a_state_dict(kind: Any) -> None:
    layer = kind(16, 16, 3, 4, padding=1)
    x, state = torch.randn(2, 32, *SIZES[len(layer.kernel_size)]), copy.deepcopy(layer.state_dict())
    expected = layer(x)
    assert layer.backend == "grouped"
    assert ("nhwc" in kind.BACKENDS) == (len(layer.kernel_size) > 1)
    for backend in kind.BACKENDS:
        twin = kind(16, 16, 3, 4, padding=1).set_backend_(backend)
        twin.load_state_dict(state)
        torch.testing.assert_close(twin(x), expected, rtol=0, atol=1e-5)
    assert sorted(state) == ["bias", "weight"]


@pytest.mark.parametrize(("rank", "form"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
@pytest.mark.parametrize("layout", ["channels", "rows", "gather"])
def test_memory_formats(layout: Any, rank: int, form: torch.memory_format) -> None:
    layer = CONV[rank](8, 8, 3, 2, layout=layout).set_backend_("nhwc")
    x = draw(layer, layout)[0].float()
    assert layer(x).is_contiguous(memory_format=form)
    layer.set_backend_("nchw")
    assert layer(x.to(memory_format=form)).is_contiguous()
    layer.set_backend_("grouped")
    assert layer(x).is_contiguous()
    assert layer.to(memory_format=form)(x.to(memory_format=form)).is_contiguous(memory_format=form)


@pytest.mark.parametrize("kind", EVERY)
def test_like_takes_all_that_a_layer_is(kind: Any) -> None:
    rank = 1 + EVERY.index(kind) % 3
    options: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 3, "groups": 2, "bias": False, "dtype": torch.float64}
    options |= {"output_padding": 1} if kind in TRANSPOSED.values() else {"padding_mode": "circular"}
    source = kind.PLAIN(8, 12, (3, 1, 2)[:rank], **options)
    layer = kind.like(source, Packing(2, Fraction(2), 5))
    for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode", "output_padding"):
        assert getattr(layer, name) == getattr(source, name) == getattr(layer.plain(), name)
    assert (layer.in_channels, layer.out_channels, layer.groups, layer.bias) == (16, 24, 4, None)
    assert layer.weight.dtype == torch.float64
    assert "gamma 5 lowered to 1: " in layer.lowered
    assert kind.like(source, Packing(2, Fraction(2), last=True)).out_channels == 24
    assert kind.like(kind.PLAIN(3, 4, 1), Packing(2, Fraction(3), first=True)).out_channels == 12
    assert kind.fan_in(source, "weight") == 4 * math.prod(source.kernel_size) == kind.fan_in(layer, "weight")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", [PackedConv2d, PackedConvTranspose2d])
@pytest.mark.parametrize(
    ("options", "fan_in"),
    [
        ({}, 32 * 9),
        ({"first": True}, 64 * 9),
        ({"first": True, "groups": 2}, 32 * 9),
        ({"groups": 64}, 9),
        ({"groups": 4}, 8 * 9),
    ],
)
def test_initial_values_fill_the_bound_of_the_groups_fan_in(kind: Any, options: dict[str, Any], fan_in: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer, bound = kind(64, 192, 3, 4, 2, **options), 1 / math.sqrt(fan_in)
    for m in range(4):
        weight, bias = layer.member(m)["weight"], layer.member(m)["bias"]
        for values in (weight, bias):
            assert values.abs().max() <= bound
            assert values.abs().max() > 0.85 * bound
            assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.weight)


@pytest.mark.parametrize("backend", PackedConv2d.BACKENDS)
def test_autocast_runs_in_bfloat16(backend: str) -> None:
    layer = PackedConv2d(4, 4, 3, 2, layout="gather").set_backend_(backend)
    x = torch.randn(2, 8, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("backend", ["nhwc", "loop"])
def test_export_with_a_dynamic_batch_and_compile(backend: str) -> None:
    layers = [
        PackedConv2d(3, 8, 3, 2, 2, first=True, layout="spread"),
        PackedConvTranspose2d(8, 4, 2, 2, 2, stride=2, layout="rows"),
        PackedConv2d(4, 8, 3, 2, 2, padding="same", padding_mode="reflect", layout="rows"),
    ]
    net, x = nn.Sequential(*(layer.set_backend_(backend) for layer in layers)).eval(), torch.randn(5, 3, 6, 6)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(net, (torch.randn(2, 3, 6, 6),), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(x), net(x))
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


MEMBERS2 = Packing(2, Fraction(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedConv2d(64, 64, 3, 4, gamma=2, last=True), "gamma: expected 1 for a last layer, got 2"),
        (lambda: PackedConv2d(9, 64, 3, 4), "in_channels: .* got 9; the nearest that do: 8 and 10"),
        (lambda: PackedConvTranspose1d(8, 63, 3, 4), "out_channels: .* got 63; the nearest that do: 62 and 64"),
        (lambda: PackedConv2d(8, 9, 3, 4, groups=2), "groups: expected a divisor of 8 and 9 channels, got 2"),
        (lambda: PackedConv2d(8, 12, 3, 4, 2, groups=4), "out_channels: .* into 16 equal groups"),
        (lambda: PackedConv2d(8, 8, 3, 2.0), "members: expected a positive int, got 2.0"),  # type: ignore[arg-type]
        (lambda: PackedConv1d(8, 8, 3, 2, layout="spread"), "layout: .* got 'spread' for a layer that is not first"),
        (
            lambda: PackedConv2d(8, 8, 3, 2).set_backend_("baddbmm"),
            "expected a backend of grouped, nhwc, nchw, loop, got 'baddbmm'",
        ),
        (
            lambda: PackedConv1d(8, 8, 3, 2).set_backend_("nhwc"),
            "PackedConv1d: expected a backend of grouped, nchw, loop, got 'nhwc'",
        ),
        (
            lambda: PackedConv2d(4, 4, 3, 2)(torch.zeros(8, 9, 9)),
            r"\(B, 8, height, width\) in layout 'channels', got \(8, 9, 9\)",
        ),
        (
            lambda: PackedConv1d(4, 4, 3, 2)(torch.zeros(2, 4, 9)),
            r"an input \(B, 8, width\) in layout 'channels', got \(2, 4, 9\)",
        ),
        (lambda: PackedConv2d(4, 4, 3, 2)(torch.zeros(3, 4, 9, 9), "rows"), r"\(2 · B, 4, height, width\) in layout 'rows'"),
        (lambda: PackedConvTranspose3d(4, 4, 3, 2, first=True)(torch.zeros(1, 8, 3, 3, 3)), r"\(B, 4, depth, height, width\)"),
        (lambda: PackedConv2d.like(nn.Conv1d(4, 4, 1), MEMBERS2), "PackedConv2d: expected an nn.Conv2d, got Conv1d"),
        (lambda: PackedConv2d.like(PackedConv2d(4, 4, 1, 2), MEMBERS2), "expected an nn.Conv2d, got PackedConv2d"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_member_that_there_is_not() -> None:
    with pytest.raises(IndexError):
        PackedConvTranspose2d(3, 4, 1, 2, first=True).member(2)


def test_repr_names_what_is_packed() -> None:
    text = "groups=4, members=4, gamma=1, first=False, last=False, layout=channels, backend=nhwc"
    assert text in repr(PackedConv2d(8, 8, 3, 4).set_backend_("nhwc"))
