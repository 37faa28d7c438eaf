"""ViT: published counts, closed forms, PyTorch's encoder layer with the same weights, stochastic depth, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quorate import cost
from quorate.models import ViT
from quorate.models.vit import StochasticDepth


@pytest.mark.parametrize(
    ("width", "heads", "patch", "parameters"),
    [(192, 3, 16, 5_717_416), (384, 6, 16, 22_050_664), (768, 12, 16, 86_567_656), (768, 12, 32, 88_224_232)],
)
def test_published_counts(width, heads, patch, parameters):
    """DeiT-Tiny, DeiT-Small, ViT-B/16, ViT-B/32."""
    with torch.device("meta"):
        model = ViT((3, 224, 224), 1000, patch=patch, width=width, heads=heads)
    assert cost.parameters(model) == parameters


@settings(max_examples=8)
@given(
    patch=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    heads=st.integers(1, 3),
    each=st.integers(1, 4),
    depth=st.integers(1, 2),
    ratio=st.sampled_from([1, 2.0, 4]),
    pool=st.sampled_from(["class", "mean"]),
)
def test_counts_written_out(patch, grid, heads, each, depth, ratio, pool):
    shape, d = (2, grid[0] * patch, grid[1] * patch), heads * each
    with torch.device("meta"):
        model = ViT(shape, 7, patch, d, depth, heads, ratio, pool)
    extra = pool == "class"
    patches, n, hidden = grid[0] * grid[1], grid[0] * grid[1] + extra, int(ratio * d)
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * hidden + hidden) + (hidden * d + d)
    assert cost.parameters(model) == 2 * patch**2 * d + d + n * d + extra * d + depth * block + 2 * d + 7 * d + 7
    per_block = n * (4 * d * d + 2 * d * hidden) + 2 * n * n * d
    macs = cost.macs(model, torch.zeros(1, *shape, device="meta"))
    assert macs == patches * 2 * patch**2 * d + depth * per_block + 7 * d


def reference(block, heads):
    """PyTorch's encoder layer with the block's weights."""
    width, hidden = block.linear1.in_features, block.linear1.out_features
    layer = nn.TransformerEncoderLayer(width, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True).double()
    attention = block.attention
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": attention.qkv.weight,
            "self_attn.in_proj_bias": attention.qkv.bias,
            **{f"self_attn.out_proj.{k}": v for k, v in attention.proj.state_dict().items()},
            **{
                f"{n}.{k}": v for n in ("norm1", "norm2", "linear1", "linear2") for k, v in getattr(block, n).state_dict().items()
            },
        }
    )
    return layer


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_equals_pytorch_s_encoder(pool):
    torch.manual_seed(0)
    model = ViT((2, 6, 9), 5, patch=3, width=12, depth=2, heads=3, mlp_ratio=1.5, pool=pool).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    x = torch.randn(4, 2, 6, 9, dtype=torch.float64, requires_grad=True)
    patches = [x[:, :, i : i + 3, j : j + 3].reshape(4, -1) for i in (0, 3) for j in (0, 3, 6)]
    z = torch.stack(patches, 1) @ model.embed.weight.reshape(12, -1).T + model.embed.bias
    if pool == "class":
        z = torch.cat([model.token.expand(4, 1, 12), z], 1)
    z = z + model.positions
    for block in model.blocks:
        z = reference(block, 3)(z)
    z = nn.functional.layer_norm(z, (12,), model.norm.weight, model.norm.bias)
    expected = (z[:, 0] if pool == "class" else z.mean(1)) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(model(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(slope, wanted, rtol=1e-10, atol=1e-10)


def test_every_patch_and_position_counts():
    torch.manual_seed(0)
    model = ViT((1, 4, 4), 3, patch=2, width=8, depth=1, heads=2).double().eval()
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    swapped = torch.cat([x[..., 2:], x[..., :2]], -1)  # the same patches elsewhere
    assert not torch.allclose(model(x), model(swapped))
    with torch.no_grad():
        model.positions.zero_()
    torch.testing.assert_close(model(x), model(swapped), rtol=0, atol=1e-12)


def test_stochastic_depth_rises_linearly_and_drops_whole_rows():
    model = ViT((1, 4, 4), 3, 2, 8, depth=5, heads=2, stochastic_depth=0.4)
    shares = [getattr(block.skip1, "mask", nn.Dropout(0.0)).p for block in model.blocks]
    assert shares == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [getattr(block.skip2, "mask", nn.Dropout(0.0)).p for block in model.blocks] == shares
    torch.manual_seed(0)
    skip, branch = StochasticDepth(0.25), torch.rand(4000, 3, 2) + 1
    factor = skip.train()(branch) / branch
    per_row = factor[:, 0, 0]
    torch.testing.assert_close(factor, per_row[:, None, None].expand_as(factor))
    torch.testing.assert_close(per_row[per_row > 0], torch.full_like(per_row[per_row > 0], 4 / 3))
    assert abs(float((per_row == 0).double().mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert torch.equal(skip.eval()(branch), branch)


def test_dropout_lies_behind_linear_layers_and_positions():
    model = ViT((1, 4, 4), 3, 2, 8, depth=2, heads=2, dropout=0.2)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Dropout)]
    each = ["attention.dropout", "dropout1", "dropout2"]
    assert names == ["dropout", *(f"blocks.{i}.{name}" for i in (0, 1) for name in each)]
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.2}
    assert not any(isinstance(m, nn.Dropout) for m in ViT((1, 4, 4), 3, 2, 8, 2, 2).modules())


def test_initialisation():
    torch.manual_seed(0)
    model = ViT((3, 32, 32), 10, width=96, depth=2)
    assert abs(model.embed.weight.std().item() * 48**0.5 - 1) < 4 / (2 * model.embed.weight.numel()) ** 0.5
    for weight in (model.positions, *(m.weight for m in model.modules() if isinstance(m, nn.Linear))):
        assert weight.abs().max() <= 0.04
        assert abs(weight.std().item() / (0.02 * 0.8796) - 1) < 0.1  # the deviation of a normal cut at two deviations
    assert all((m.bias == 0).all() for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    assert "token" not in dict(ViT((1, 4, 4), 3, 2, 8, 1, 2, pool="mean").named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 5}, "patch: expected a divisor of height and width of the 32×24 images, got 5; legal are 1, 2, 4, 8$"),
        ({"patch": 16}, "got 16; legal are 1, 2, 4, 8$"),
        ({"patch": 0}, "patch: expected an int of at least 1, got 0"),
        ({"heads": 5}, "heads: expected a divisor of width 12, got 5; legal are 1, 2, 3, 4, 6, 12$"),
        ({"mlp_ratio": 0.3}, "mlp_ratio: expected a number that makes whole hidden units at width 12, got 0.3"),
        ({"mlp_ratio": 0}, "mlp_ratio: expected .* got 0; pass for example 4"),
        ({"mlp_ratio": "4"}, "mlp_ratio: expected .* got '4'"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio: expected .* got inf"),
        ({"pool": "max"}, 'pool: expected "class" or "mean", got \'max\''),
        ({"dropout": 1.5}, "dropout: expected a probability"),
        ({"stochastic_depth": 1.0}, "stochastic_depth: expected a probability .* 0 is no stochastic_depth"),
        ({"depth": 0}, "depth: expected an int of at least 1, got 0"),
        ({"width": 12.0}, "width: expected an int of at least 1, got 12.0"),
        ({"classes": 0}, "classes: expected an int of at least 1, got 0"),
        ({"shape": (32, 32)}, r"shape: expected \(channels, height, width\)"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        ViT(**{"shape": (1, 32, 24), "classes": 3, "patch": 4, "width": 12, "depth": 1, **arguments})
    assert "\n" not in str(error.value)
