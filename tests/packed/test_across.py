"""Layers along another dimension than the width, layers of an expanded parameter, and padding that goes by sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.packed import pack, unpack


class Mixer(nn.Module):
    """Tokens mixed by a linear layer, heads normed one by one, a query that is learned, an edge padded by its size."""

    def __init__(self, ahead: int = 1) -> None:
        super().__init__()
        self.stem, self.tokens, self.norm = nn.Linear(6, 16), nn.Linear(5, 5), nn.RMSNorm(4)
        self.query, self.read, self.smooth = nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(16, 16), nn.LayerNorm(16)
        self.head, self.ahead = nn.Linear(16, 3), ahead

    def forward(self, x: Tensor) -> Tensor:
        """(B, 5, 6) → (B, 3)."""
        x = self.stem(x)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        x = self.norm(x.unflatten(-1, (4, 4)).transpose(1, 2)).transpose(1, 2).flatten(2)
        x = F.pad(x, (0, 0, 0, x.shape[self.ahead] % 2))
        query = self.read(self.smooth(self.query.expand(x.shape[0], -1, -1)))
        return self.head((x * query).sum(1))


@pytest.mark.parametrize(("members", "alpha"), [(2, 1), (4, 2), (2, 2), (3, 3)])
def test_values_and_gradients(members: int, alpha: int) -> None:
    torch.manual_seed(0)
    net, x = Mixer().double(), torch.randn(4, 5, 6, dtype=torch.float64)
    packed = pack(net, members, alpha, example=x)
    roles = {row.name: row.role for row in packed.explain()}
    assert roles["tokens"] == roles["norm"] == "across"
    logits = packed(x)
    for m in range(members):
        alone = unpack(packed, m)
        assert alone.get_submodule("norm").weight.shape == (4,)
        assert (alone(x) - logits[m]).abs().max() < 1e-12
    parts = torch.autograd.grad(logits[0].square().sum(), tuple(packed.parameters()))
    for gradient in parts:
        rows = gradient.unflatten(0, (members, -1)).flatten(1)
        assert [bool(row.any()) for row in rows] == [True] + [False] * (members - 1)


def test_copies() -> None:
    torch.manual_seed(0)
    net, x = Mixer(), torch.randn(4, 5, 6)
    assert (pack(net, 2, 2, init="copy", example=x)(x) - net(x)).abs().max() < 1e-5


def test_padding_by_the_width_is_refused() -> None:
    with pytest.raises(ValueError, match="expected pad of the members' tensors and plain numbers") as error:
        pack(Mixer(ahead=2), 2, 1, example=torch.randn(4, 5, 6))
    assert "\n" not in str(error.value)


def test_a_norm_of_other_features_is_refused() -> None:
    net = Mixer()
    net.norm = nn.RMSNorm(3)
    with pytest.raises(ValueError, match=r"3 features|fails on"):
        pack(net, 2, 1, example=torch.randn(4, 5, 6))
