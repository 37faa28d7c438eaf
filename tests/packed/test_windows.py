"""Window attention under torchvision's names: members of fewer heads, and merging of patches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.packed import pack, unpack
from quorate.packed.registry import rewritten


class ShiftedWindowAttention(nn.Module):
    """Its arguments and attributes; over each image's columns, with a learned table and dropout by a function."""

    def __init__(self, dim: int, window_size: list[int], shift_size: list[int], num_heads: int, qkv_bias: bool = True,
                 proj_bias: bool = True, attention_dropout: float = 0.0, dropout: float = 0.0) -> None:  # fmt: skip
        super().__init__()
        self.window_size, self.shift_size, self.num_heads = window_size, shift_size, num_heads
        self.attention_dropout, self.dropout = attention_dropout, dropout
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim, bias=proj_bias)
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        size = x.shape[-1] // self.num_heads
        qkv = F.linear(x, self.qkv.weight, self.qkv.bias)
        q, k, v = (t.unflatten(-1, (self.num_heads, size)).movedim(-2, 1) for t in qkv.chunk(3, -1))
        bias = self.relative_position_bias_table[0].view(-1, 1, 1, 1)
        weights = F.dropout((q @ k.mT * size**-0.5 + bias).softmax(-1), self.attention_dropout, self.training)
        return F.linear((weights @ v).movedim(1, -2).flatten(-2), self.proj.weight, self.proj.bias)


class RelativePositionalMultiHeadAttention(nn.Module):
    """MaxViT's arguments and attributes."""

    def __init__(self, feat_dim: int, head_dim: int, max_seq_len: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.max_seq_len = feat_dim // head_dim, head_dim, max_seq_len
        self.to_qkv = nn.Linear(feat_dim, 3 * feat_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, G, P, C) → (B, G, P, C)."""
        q, k, v = self.to_qkv(x).chunk(3, -1)
        return q * k.sigmoid() + v


class PatchMerging(nn.Module):
    """Its parts, and its result by a loop over pixels."""

    def __init__(self, dim: int, norm: int = 4) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(4 * dim, 2 * dim, bias=False), nn.LayerNorm(norm * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 2 · C)."""
        parts = self.gathered(x)
        last = self.norm.normalized_shape[0] < parts.shape[-1]
        return self.norm(self.reduction(parts)) if last else self.reduction(self.norm(parts))

    def gathered(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 4 · C)."""
        rows, (_, high, wide, width) = [], x.shape
        for i in range(0, high, 2):
            for j in range(0, wide, 2):
                places = ((i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1))
                rows.append(
                    torch.cat([x[:, a, b] if a < high and b < wide else x.new_zeros(len(x), width) for a, b in places], -1)
                )
        return torch.stack(rows, 1).unflatten(1, (-(-high // 2), -(-wide // 2)))


SWIN = "torchvision.models.swin_transformer"
ShiftedWindowAttention.__module__ = PatchMerging.__module__ = SWIN
PatchMergingV2 = type("PatchMergingV2", (PatchMerging,), {"__module__": SWIN})
RelativePositionalMultiHeadAttention.__module__ = "torchvision.models.maxvit"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_merging(last: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = (PatchMergingV2(3, 2) if last else PatchMerging(3)).double()
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    new = rewritten(nn.Sequential(module))[0]
    assert (new(x) - module(x)).abs().max() < 1e-12
    assert set(new.state_dict()) == set(module.state_dict())


class Swin(nn.Module):
    """A patch embedding, a block, merging, a block."""

    def __init__(self, heads: int = 4, maxvit: bool = False) -> None:
        super().__init__()
        width = 4 * heads
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.one = ShiftedWindowAttention(width, [3, 3], [1, 1], heads, True, False, 0.1, 0.2)
        self.merge = PatchMerging(width)
        self.two = (
            RelativePositionalMultiHeadAttention(2 * width, 4, 9)
            if maxvit
            else ShiftedWindowAttention(2 * width, [3, 3], [0, 0], heads)
        )
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 5)."""
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.one(x)
        x = self.merge(x)
        return self.head((x + self.two(x)).mean((1, 2)))


@pytest.mark.parametrize("maxvit", [False, True])
def test_members_of_fewer_heads(maxvit: bool) -> None:
    torch.manual_seed(0)
    net, x = Swin(maxvit=maxvit).double().eval(), torch.randn(3, 3, 10, 14, dtype=torch.float64)
    net.one.proj.weight.requires_grad_(False)
    packed = pack(net, members=4, alpha=2, example=x)
    assert packed.program.member is not None
    logits = packed(x)
    for m in range(4):
        alone = unpack(packed, m)
        assert (alone(x) - logits[m]).abs().max() < 1e-12
        one = alone.get_submodule("one")
        assert type(one) is ShiftedWindowAttention
        assert (one.num_heads, one.qkv.in_features, one.proj.bias) == (2, 8, None)
        assert (one.window_size, one.shift_size, one.attention_dropout, one.dropout) == ([3, 3], [1, 1], 0.1, 0.2)
        assert one.qkv.weight.dtype == torch.float64
        assert not one.proj.weight.requires_grad
    gradients = torch.autograd.grad(packed(x)[2].square().sum(), [p for p in packed.parameters() if p.requires_grad])
    names = [n for n, p in packed.named_parameters() if p.requires_grad]
    for name, gradient in zip(names, gradients, strict=True):
        if ".copies." in name:
            assert ".copies.2." in name or not gradient.any(), name
    copies = pack(net, members=2, alpha=2, init="copy", example=x)
    assert (copies(x) - net(x)).abs().max() < 1e-12


def test_fresh_values_have_the_scale_of_the_given_ones() -> None:
    torch.manual_seed(0)
    net = Swin(16)
    nn.init.normal_(net.one.qkv.weight, 0, 0.02)
    nn.init.constant_(net.one.qkv.bias, 0.25)
    packed = pack(net, members=4, alpha=2, example=torch.randn(1, 3, 8, 8))
    one = unpack(packed, 3).get_submodule("one")
    assert 0.9 < float(one.qkv.weight.detach().std()) / (0.02 * 2**0.5) < 1.1
    assert (one.qkv.bias == 0.25).all()
    assert 0.8 < float(one.relative_position_bias_table.detach().std()) < 1.2


def test_heads_that_do_not_divide() -> None:
    message = r"'one' \(ShiftedWindowAttention\): ShiftedWindowAttention: expected heads that α/M = 1/2 divides, got 5; legal are 4 and 6"
    with pytest.raises(ValueError, match=message):
        pack(Swin(5), members=4, alpha=2, example=torch.randn(1, 3, 8, 8))
