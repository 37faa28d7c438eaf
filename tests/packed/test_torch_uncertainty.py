"""Linear and convolution layers against torch-uncertainty's with copied weights (its attention and token norms are not right)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.packed import PackedConv1d, PackedConv2d, PackedConv3d, PackedConvTranspose2d, PackedLinear

theirs = pytest.importorskip("torch_uncertainty.layers")


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def copy_(mine: nn.Module, other: nn.Module) -> None:
    """Parameters and statistics in the order in which both register them."""
    with torch.no_grad():
        for a, b in zip(mine.parameters(), other.parameters(), strict=True):
            a.copy_(b.reshape(a.shape))
        for a, b in zip(mine.buffers(), other.buffers(), strict=True):
            a.copy_(b)


@pytest.mark.parametrize("place", [{}, {"gamma": 2}, {"first": True}, {"last": True}])
def test_linear(place: dict[str, Any]) -> None:
    options = {"alpha": 2, **place}
    mine = PackedLinear(24, 16, members=4, **options).double()
    other = theirs.PackedLinear(24, 16, num_estimators=4, **options).double()
    copy_(mine, other)
    x = draw(5, 24 if "first" in place else 48)
    expected = _joined(other(x), 5)
    torch.testing.assert_close(mine(x), expected, rtol=0, atol=1e-12)


def _joined(rows: Tensor, batch: int) -> Tensor:
    """Their last layers give (M · B, out), ours (B, M · out)."""
    return rows.unflatten(0, (-1, batch)).transpose(0, 1).flatten(1) if len(rows) != batch else rows


@pytest.mark.parametrize("place", [{}, {"first": True}, {"last": True}])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_convolution(spatial: int, place: dict[str, Any]) -> None:
    kind = {1: PackedConv1d, 2: PackedConv2d, 3: PackedConv3d}[spatial]
    options = {"kernel_size": 3, "stride": 2, "padding": 1, "alpha": 2, **place}
    mine = kind(8, 12, members=4, **options).double()
    other = getattr(theirs, kind.__name__)(8, 12, num_estimators=4, **options).double()
    copy_(mine, other)
    x = draw(3, 8 if "first" in place else 16, *(7,) * spatial)
    torch.testing.assert_close(mine(x), _joined(other(x), 3).reshape(mine(x).shape), rtol=0, atol=1e-12)


def test_transposed_convolution() -> None:
    mine = PackedConvTranspose2d(8, 12, 3, 4, 2, stride=2).double()
    other = theirs.PackedConvTranspose2d(8, 12, 3, alpha=2, num_estimators=4, stride=2).double()
    copy_(mine, other)
    x = draw(3, 16, 5, 5)
    torch.testing.assert_close(mine(x), other(x), rtol=0, atol=1e-12)
