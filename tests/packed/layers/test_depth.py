"""Stochastic depth: each draw's place and size, statistics, the plain layer, other libraries' layers, and every refusal."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.packed.layers.arrangement import Packing, to_channels
from quorate.packed.layers.depth import PackedStochasticDepth, StochasticDepth

M, B, C = 3, 5, 2


def dropped(y: Tensor, kept: float) -> Tensor:
    """Where the rows (leading axis) of an output of ones are dropped; each must be all 0 or all `kept`."""
    flat = y.flatten(1)
    assert (flat == flat[:, :1]).all()
    assert ((flat == 0) | ((flat - kept).abs() < 1e-15)).all()
    return flat[:, 0] == 0


@settings(max_examples=40, deadline=None)
@given(
    members=st.integers(1, 4),
    p=st.sampled_from([0.25, 0.5, 1.0]),
    scale=st.booleans(),
    mode=st.sampled_from(["row", "batch"]),
    where=st.sampled_from(["channels", "tokens", "rows"]),
    rank=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_every_element_of_a_draw_is_alike(
    members: int, p: float, scale: bool, mode: Any, where: str, rank: int, seed: int
) -> None:
    layout: Any = "rows" if where == "rows" else "channels"
    layer = PackedStochasticDepth(p, members, scale, mode, layout, axis=-1 if where == "tokens" else 1)
    extra = (4,) * (rank - 2)
    size = {"channels": (B, members * C, *extra), "tokens": (B, *extra, members * C), "rows": (members * B, C, *extra)}[where]
    x = torch.ones(size, dtype=torch.float64)
    torch.manual_seed(seed)
    y = layer(x)
    if where != "rows":
        y = y.unflatten(layer.axis, (members, C)).movedim(1 if where == "channels" else -2, 0).flatten(0, 1)
    out = dropped(y, 1 / (1 - p) if scale and p < 1 else 1.0).reshape(members, B)
    assert out.all() or p < 1
    if mode == "batch":
        assert (out == out[:, :1]).all()


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("layout", ["channels", "rows"])
def test_rate_and_independence(mode: Any, layout: Any) -> None:
    torch.manual_seed(0)
    layer = PackedStochasticDepth(0.3, M, mode=mode, layout=layout)
    rows = torch.ones(M * 4, C)
    x = rows if layout == "rows" else to_channels(rows, M)
    seen = []
    for _ in range(2000):
        y = layer(x)
        seen.append((y if layout == "rows" else y.unflatten(1, (M, C)).transpose(0, 1).flatten(0, 1))[:, 0] == 0)
    out = torch.stack(seen).double().unflatten(1, (M, 4))
    assert abs(out.mean().item() - 0.3) < 0.02
    members = torch.corrcoef(out[:, :, 0].T)
    assert (members - torch.eye(M)).abs().max() < 0.1
    rows_of_one = torch.corrcoef(out[:, 0].T)
    assert ((rows_of_one - torch.eye(4)).abs().max() < 0.1) == (mode == "row")


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("scale", [True, False])
def test_one_member_is_the_plain_layer(mode: Any, scale: bool) -> None:
    plain = StochasticDepth(0.4, scale, mode)
    x = torch.randn(6, C, 3, dtype=torch.float64)
    for layout in ("channels", "rows"):
        torch.manual_seed(4)
        expected = plain(x)
        torch.manual_seed(4)
        assert torch.equal(PackedStochasticDepth(0.4, 1, scale, mode)(x, layout=layout), expected)
    assert dropped(plain(torch.ones(50, 2)), 1 / 0.6 if scale else 1.0).any()


def test_gradient_is_the_draw() -> None:
    layer = PackedStochasticDepth(0.5, M)
    x = torch.randn(B, M * C, 3, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad * x, y)


def test_nothing_happens_in_evaluation_or_at_zero() -> None:
    x = torch.randn(6, 6)
    for layer in (PackedStochasticDepth(0.5, M).eval(), PackedStochasticDepth(0.0, M), StochasticDepth(0.0)):
        assert layer(x) is x


def test_memory_format_is_kept() -> None:
    x = torch.randn(2, M * 4, 5, 5).to(memory_format=torch.channels_last)
    assert PackedStochasticDepth(0.5, M)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_like_and_plain_carry_every_setting(mode: Any) -> None:
    packing = Packing(M, Fraction(2))
    packed = PackedStochasticDepth.like(StochasticDepth(0.3, False, mode), packing)
    assert (packed.p, packed.scale, packed.mode, packed.members, packed.groups) == (0.3, False, mode, M, M)
    plain = packed.plain()
    assert type(plain) is StochasticDepth
    assert (plain.p, plain.scale, plain.mode) == (0.3, False, mode)
    assert packed.member(0) == {}
    assert "mode='" + mode in repr(packed)


def foreign(package: str, name: str, **settings: object) -> nn.Module:
    """A module that looks like another library's."""
    module: nn.Module = type(name, (nn.Module,), {"__module__": f"{package}.layers"})()
    for key, value in settings.items():
        setattr(module, key, value)
    return module


def test_layers_of_torchvision_and_timm() -> None:
    packing = Packing(M, Fraction(2))
    packed = PackedStochasticDepth.like(foreign("torchvision", "StochasticDepth", p=0.2, mode="batch"), packing)
    assert (packed.p, packed.scale, packed.mode) == (0.2, True, "batch")
    packed = PackedStochasticDepth.like(foreign("timm", "DropPath", drop_prob=0.2, scale_by_keep=False), packing)
    assert (packed.p, packed.scale, packed.mode) == (0.2, False, "row")
    assert PackedStochasticDepth.like(foreign("timm", "DropPath", drop_prob=None, scale_by_keep=True), packing).p == 0.0
    with pytest.raises(ValueError, match=r"module: expected StochasticDepth .* got Dropout of torch.nn.modules.dropout"):
        PackedStochasticDepth.like(nn.Dropout(0.1), packing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.5}, r"p: expected a probability in \[0, 1\], got 1.5"),
        ({"p": True}, "p: expected a probability"),
        ({"mode": "rows"}, 'mode: expected "row" or "batch", got \'rows\''),
        ({"axis": 2}, "axis: expected 1 or -1, got 2"),
        ({"layout": "spread"}, 'layout: expected "channels" or "rows", got \'spread\''),
        ({"members": 0}, "members: expected a positive int, got 0"),
    ],
)
def test_refused_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedStochasticDepth(**{"p": 0.1, "members": M} | options)


def test_refused_inputs() -> None:
    layer = PackedStochasticDepth(0.5, M)
    with pytest.raises(ValueError, match=r"expected an input \(B, M · C, …\) of M = 3, got \(2, 4\)"):
        layer(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"expected an input \(M · B, …\) of M = 3, got \(4, 3\)"):
        layer(torch.randn(4, 3), layout="rows")
    with pytest.raises(ValueError, match=r"expected an input \(B, …, M · C\)"):
        PackedStochasticDepth(0.5, M, axis=-1)(torch.randn(3, 3, 4))
    with pytest.raises(ValueError, match="got 'gather'"):
        layer(torch.randn(2, 3), layout="gather")


def test_compiled_in_training() -> None:
    layer = PackedStochasticDepth(0.5, M)
    x = torch.ones(4, M * C, 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for rows in (4, 6):
        y = compiled(torch.ones(rows, M * C, 2)).unflatten(1, (M, C)).transpose(0, 1).flatten(0, 1)
        dropped(y, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.bfloat16
