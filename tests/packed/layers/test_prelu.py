"""PackedPReLU against M separate nn.PReLU in float64, and every refusal."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn

from quorate.packed.layers.arrangement import Packing
from quorate.packed.layers.prelu import PackedPReLU
from separate_members import assert_isolated, assert_members_equal, filled, placed, taken

MEMBERS, CHANNELS, ALPHA = 3, 6, 2  # four channels each


@pytest.mark.parametrize("layout", ["channels", "rows", "gather"])
@pytest.mark.parametrize("plane", [(), (5,), (3, 2)])
@pytest.mark.parametrize(("slopes", "axis", "last"), [(1, 1, False), (1, -1, False), (CHANNELS, 1, False), (CHANNELS, 1, True)])
def test_equals_separate_layers(layout: str, plane: tuple[int, ...], slopes: int, axis: int, last: bool) -> None:
    layer, width = filled(PackedPReLU(slopes, MEMBERS, ALPHA, last=last, axis=axis)), CHANNELS if last else 4
    shape = (2, width, *plane) if axis == 1 else (2, *plane, width)
    z = torch.randn(MEMBERS, *shape, dtype=torch.float64)
    z[0, 0] = 0
    z[:, 1] = -z[:, 1].abs()  # where slopes matter
    z.requires_grad_()

    def packed(prelu: Any) -> torch.Tensor:
        return taken(prelu(placed(z, layout, axis), layout), MEMBERS, layout, axis)

    assert_members_equal(layer, [z], packed, lambda prelu, m: prelu(z[m]))
    assert_isolated(layer, packed)


@pytest.mark.parametrize("plain", [nn.PReLU(), nn.PReLU(6, 0.1), nn.PReLU(6, dtype=torch.float64)])
@pytest.mark.parametrize("last", [False, True])
def test_like_carries_all(plain: nn.PReLU, last: bool) -> None:
    layer = PackedPReLU.like(plain, Packing(MEMBERS, Fraction(ALPHA), last=last))
    again = layer.plain()
    assert isinstance(again, nn.PReLU)
    assert again.num_parameters == (1 if plain.num_parameters == 1 else 6 if last else 4)
    assert (again.init, again.weight.dtype) == (plain.init, plain.weight.dtype)
    assert bool((layer.weight == plain.weight[0]).all())
    assert PackedPReLU.fan_in(plain, "weight") == 1
    assert f"members={MEMBERS}" in repr(layer)


def test_exports_with_a_dynamic_batch() -> None:
    layer, x = PackedPReLU(CHANNELS, MEMBERS, ALPHA), torch.randn(4, 12, 3)
    program = torch.export.export(layer, (x,), dynamic_shapes={"input": {0: torch.export.Dim("batch", min=2)}}).module()
    assert torch.equal(program(x[:3]), layer(x[:3]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedPReLU(7, 3), "num_parameters: .* got 7; the nearest that do: 6 and 9"),
        (lambda: PackedPReLU(6, 3, axis=-1), "axis: expected 1, or -1 with one slope, got -1 with 6"),
        (lambda: PackedPReLU(1, 3, axis=2), "axis: expected 1, or -1 with one slope, got 2"),
        (lambda: PackedPReLU(1, 3, layout="spread"), "layout: .* got 'spread'"),
        (lambda: PackedPReLU(6, 3)(torch.ones(2, 4)), r"expected an input \(B, 12, …\) in layout 'channels', got \(2, 4\)"),
        (lambda: PackedPReLU(6, 3)(torch.ones(3, 12), "rows"), r"\(3 · B, 4, …\) in layout 'rows', got \(3, 12\)"),
        (lambda: PackedPReLU(1, 3)(torch.ones(4, 4), "rows"), r"\(3 · B, C′, …\)"),
        (lambda: PackedPReLU(1, 3, axis=-1)(torch.ones(2, 3, 4)), r"\(B, …, 3 · C′\) in layout 'channels', got \(2, 3, 4\)"),
        (lambda: PackedPReLU(1, 3)(torch.ones(3)), r"got \(3,\)"),
        (lambda: PackedPReLU.like(nn.PReLU(), Packing(3, Fraction(2), first=True)), "got a first layer; put a Linear"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
