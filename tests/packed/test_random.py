"""Random sequential and residual convolution networks: isolation and unpacking hold whatever is drawn."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.packed import pack, unpack


class Block(nn.Module):
    """act(main(x) + side(x))."""

    def __init__(self, main: nn.Module, side: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.main, self.side, self.act = main, side, act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.main(x) + self.side(x))
        return y


@st.composite
def networks(draw: Any) -> tuple[nn.Module, int, Fraction, int]:
    """(model for (B, 3, 6, 6), members, alpha, gamma), with widths that divide."""
    members, gamma = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    alpha = Fraction(draw(st.integers(1, 6)), draw(st.integers(1, 2)))
    unit = (members * gamma * alpha.denominator) * 2

    def act() -> nn.Module:
        return draw(st.sampled_from([nn.ReLU, nn.GELU, nn.Tanh, nn.Identity]))()

    def conv(into: int, out: int, size: int) -> nn.Module:
        own = draw(st.sampled_from([1, 1, 2, into])) if into % 2 == 0 and out % into == 0 else 1
        bias, norm = draw(st.booleans()), draw(st.booleans())
        layer = nn.Conv2d(into, out, size, padding=size // 2, groups=own, bias=bias)
        return nn.Sequential(layer, *([nn.BatchNorm2d(out)] if norm else []))

    width = unit * draw(st.integers(1, 2))
    layers: list[nn.Module] = [conv(3, width, 3), act()]
    for _ in range(draw(st.integers(0, 3))):
        out = draw(st.sampled_from([width, width, unit, 2 * unit]))
        kind = draw(st.sampled_from(["plain", "residual", "pool", "drop"]))
        if kind == "pool":
            layers.append(draw(st.sampled_from([nn.MaxPool2d(2, 1), nn.AvgPool2d(3, 1, 1)])))
        elif kind == "drop":
            layers.append(nn.Dropout2d(0.3))
        elif kind == "plain":
            layers += [conv(width, out, draw(st.sampled_from([1, 3]))), act()]
            width = out
        else:
            side = nn.Identity() if out == width else conv(width, out, 1)
            layers.append(Block(nn.Sequential(conv(width, width, 3), act(), conv(width, out, 1)), side, act()))
            width = out
    layers += [nn.AdaptiveAvgPool2d(draw(st.sampled_from([1, 2]))), nn.Flatten()]
    features = width * layers[-2].output_size ** 2  # type: ignore[operator]
    if draw(st.booleans()):
        layers += [nn.Linear(features, unit), nn.BatchNorm1d(unit), act()]
        features = unit
    return nn.Sequential(*layers, nn.Linear(features, 3)), members, alpha, gamma


@settings(max_examples=30, deadline=None)
@given(drawn=networks(), seed=st.integers(0, 99))
def test_members_are_isolated_and_are_what_unpacking_gives(drawn: tuple[nn.Module, int, Fraction, int], seed: int) -> None:
    model, members, alpha, gamma = drawn
    torch.manual_seed(seed)
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    packed = pack(model.double(), members, alpha, gamma, example=x).eval()
    for parameter in packed.parameters():
        nn.init.normal_(parameter, std=0.3)
    rows = packed(x)
    alone = [unpack(packed, m) for m in range(members)]
    torch.testing.assert_close(torch.stack([member(x) for member in alone]), rows, rtol=0, atol=1e-11)
    for i in range(members):
        gradients = torch.autograd.grad(rows[i].sum(), tuple(packed.parameters()), retain_graph=True)
        for gradient in gradients:
            blocks = gradient.unflatten(0, (members, -1)).flatten(1)
            assert not blocks[torch.arange(members) != i].any()
    for parameter, single in zip(packed.parameters(), alone[0].parameters(), strict=True):
        assert parameter.numel() == members * single.numel()
