"""DepthwiseNet: MobileNetV2's published counts, the rule for channels, the block's equation, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quorate import cost
from quorate.models import DepthwiseNet
from quorate.models.depthwise import scaled


@pytest.mark.parametrize(
    ("width", "parameters", "macs"),
    [(1.0, 3_504_872, 300_774_272), (0.5, 1_968_680, None), (1.4, 6_108_776, None)],
)
def test_published_counts(width, parameters, macs):
    with torch.device("meta"):
        model = DepthwiseNet((3, 224, 224), 1000, width, "imagenet")
    assert cost.parameters(model) == parameters
    assert macs in (None, cost.macs(model, torch.zeros(1, 3, 224, 224, device="meta")))


@pytest.mark.parametrize(("stem", "steps"), [("cifar", (1, 1)), ("imagenet", (2, 2))])
def test_counts_written_out(stem, steps):
    """The table line by line at 32×32; the two stems differ in two strides alone."""
    lines = [(1, 16, 1, 1), (6, 24, 2, steps[1]), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    size, inputs = 32 // steps[0], 32
    parameters, macs = 27 * 32 + 64, 27 * 32 * size**2
    for expansion, channels, count, stride in lines:
        for j in range(count):
            hidden, step = inputs * expansion, stride if j == 0 else 1
            if expansion > 1:
                parameters, macs = parameters + inputs * hidden + 2 * hidden, macs + inputs * hidden * size**2
            size //= step
            parameters += 9 * hidden + 2 * hidden + hidden * channels + 2 * channels
            macs += (9 * hidden + hidden * channels) * size**2
            inputs = channels
    parameters, macs = parameters + 320 * 1280 + 2560 + 1280 * 7 + 7, macs + 320 * 1280 * size**2 + 1280 * 7
    with torch.device("meta"):
        model = DepthwiseNet((3, 32, 32), 7, stem=stem)
    assert cost.parameters(model) == parameters
    assert cost.macs(model, torch.zeros(1, 3, 32, 32, device="meta")) == macs


@given(st.integers(1, 400), st.floats(0.01, 4))
def test_channels_are_multiples_of_eight_and_lose_at_most_a_tenth(channels, width):
    got = scaled(channels, width)
    assert got % 8 == 0
    assert got >= 0.9 * channels * width
    assert got == 8 or got - 8 < channels * width  # not more than one step up
    assert scaled(8 * channels, 1) == 8 * channels


def test_channels_by_hand():
    assert [scaled(c, 0.75) for c in (32, 16, 24, 64, 1280)] == [24, 16, 24, 48, 960]  # 12 → 16, 18 → 16 would lose 11 % → 24
    assert DepthwiseNet(width=0.5).fc.in_features == 1280
    assert DepthwiseNet(width=1.5).fc.in_features == 1920


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_block_is_its_equation(index):
    """Without a first convolution; with one; with the sum."""
    torch.manual_seed(0)
    block = DepthwiseNet((3, 8, 8), 3, width=0.1, stem="imagenet").double().train().blocks[index]
    inputs = next(block.parameters()).shape[0] if index == 0 else block.layers.widen.conv.in_channels
    x = 3 * torch.randn(3, inputs, 6, 5, dtype=torch.float64)

    def normal(h):
        return (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()

    h = x if index == 0 else normal(nn.functional.conv2d(x, block.layers.widen.conv.weight)).clamp(0, 6)
    stride = 2 if index == 1 else 1
    filters = block.layers.depthwise.conv.weight
    each = [nn.functional.conv2d(h[:, c : c + 1], filters[c : c + 1], stride=stride, padding=1) for c in range(h.shape[1])]
    out = normal(nn.functional.conv2d(normal(torch.cat(each, 1)).clamp(0, 6), block.layers.narrow.conv.weight))
    assert block.keeps == (index != 1)  # width 0.1: 8 channels throughout
    torch.testing.assert_close(block(x), out + x if block.keeps else out, rtol=0, atol=1e-12)


def test_sums_only_where_the_shape_stays():
    keeps = [block.keeps for block in DepthwiseNet().blocks]
    assert keeps == [
        False,
        *[False, True],
        *[False, True, True],
        *[False, *[True] * 3],
        *[False, True, True],
        *[False, True, True],
        False,
    ]


def test_initialisation():
    torch.manual_seed(0)
    for name, module in DepthwiseNet(width=0.5).named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size) / module.groups
            assert abs(module.weight.std().item() * math.sqrt(fan_out / 2) - 1) < 4 / math.sqrt(2 * module.weight.numel()), name


def test_dropout_before_the_head():
    assert DepthwiseNet(width=0.1, dropout=0.3).dropout.p == 0.3
    assert isinstance(DepthwiseNet(width=0.1).dropout, nn.Identity)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width: expected a positive finite number, got 0; 1.0 is the paper's network"),
        ({"width": -1.0}, "width: expected a positive finite number, got -1.0"),
        ({"width": float("inf")}, "width: expected a positive finite number, got inf"),
        ({"width": "1"}, "width: expected a positive finite number, got '1'"),
        ({"stem": "mnist"}, 'stem: expected "cifar" or "imagenet", got \'mnist\''),
        ({"dropout": 1}, "dropout: expected a probability"),
        ({"classes": 0}, "classes: expected an int of at least 1, got 0"),
        ({"shape": (3,)}, r"shape: expected \(channels, height, width\), got \(3,\)"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        DepthwiseNet(**arguments)
    assert "\n" not in str(error.value)
