"""CNN1d: parameters and MACs in closed form, the blocks' equations, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quorate import cost
from quorate.models import CNN1d


@settings(max_examples=10)
@given(
    channels=st.integers(1, 3),
    length=st.integers(1, 20),
    width=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
    kernel=st.sampled_from([1, 3, 7]),
    stride=st.integers(1, 3),
    residual=st.booleans(),
)
def test_counts(channels, length, width, blocks, kernel, stride, residual):
    with torch.device("meta"):
        model = CNN1d((channels, length), 7, width, blocks, kernel, stride, residual)
    parameters, macs = kernel * channels * width[0] + 2 * width[0], kernel * channels * width[0] * length
    inputs, steps = width[0], length
    for outputs in width:
        for j in range(blocks):
            step = stride if j == 0 else 1
            steps = -(-steps // step)
            weights = [kernel * inputs * outputs]
            if residual:
                changes = step != 1 or inputs != outputs
                weights += [kernel * outputs * outputs, *([inputs * outputs] if changes else [])]
            parameters += sum(weights) + 2 * outputs * len(weights)
            macs += sum(weights) * steps
            inputs = outputs
    assert cost.parameters(model) == parameters + 7 * inputs + 7
    assert cost.macs(model, torch.zeros(1, channels, length, device="meta")) == macs + 7 * inputs


def normal(h):
    return (h - h.mean((0, 2), keepdim=True)) / (h.var((0, 2), unbiased=False, keepdim=True) + 1e-5).sqrt()


def slide(x, weight, stride=1):
    """The convolution as a sum over kernel positions."""
    kernel, half = weight.shape[2], weight.shape[2] // 2
    padded = nn.functional.pad(x, (half, half))
    steps = range(0, x.shape[2], stride)
    return torch.stack([sum(padded[:, :, s + k] @ weight[:, :, k].T for k in range(kernel)) for s in steps], 2)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("at", [0, 1])
def test_a_block_is_its_equation(residual, at):
    torch.manual_seed(0)
    model = CNN1d((2, 9), 3, (4, 6), blocks=2, kernel=5, stride=3, residual=residual).double().train()
    block = model.layers[1][at]
    x, stride = torch.randn(3, 4 if at == 0 else 6, 10, dtype=torch.float64), 3 if at == 0 else 1
    if residual:
        inner = normal(slide(x, block.first.conv.weight, stride)).clamp(min=0)
        short = normal(slide(x, block.shortcut[0].weight, stride)) if at == 0 else x
        expected = (normal(slide(inner, block.conv.weight)) + short).clamp(min=0)
    else:
        expected = normal(slide(x, block.conv.weight, stride)).clamp(min=0)
    assert expected.shape[2] == math.ceil(10 / stride)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


def test_the_head_averages_over_the_steps():
    torch.manual_seed(0)
    model, x = CNN1d((2, 12), 3, (4,), kernel=3).double().eval(), torch.randn(5, 2, 12, dtype=torch.float64)
    features = model.layers(model.stem(x))
    assert features.shape == (5, 4, 6)
    torch.testing.assert_close(model(x), features.mean(2) @ model.fc.weight.T + model.fc.bias, rtol=0, atol=1e-12)


def test_dropout_lies_between_the_convolutions_not_in_the_stem():
    model = CNN1d((2, 12), 3, (4, 4), blocks=2, dropout=0.3)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Dropout)]
    assert names == [f"layers.{s}.{b}.first.dropout" for s in (0, 1) for b in (0, 1)]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3] * 4
    plain = CNN1d((2, 12), 3, (4,), residual=False, dropout=0.3)
    assert [name for name, m in plain.named_modules() if isinstance(m, nn.Dropout)] == ["layers.0.0.dropout"]


def test_initialisation():
    torch.manual_seed(0)
    for name, module in CNN1d((9, 50), 5).named_modules():
        if isinstance(module, nn.Conv1d):
            assert module.bias is None
            fan_out = module.out_channels * module.kernel_size[0]
            assert abs(module.weight.std().item() * math.sqrt(fan_out / 2) - 1) < 4 / math.sqrt(2 * module.weight.numel()), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": 8}, "kernel: expected an odd number of steps, got 8; the nearest are 7 and 9"),
        ({"kernel": 0}, "kernel: expected an int of at least 1, got 0"),
        ({"width": ()}, r"width: expected at least one stage, got \(\); pass for example \(64, 128\)"),
        ({"width": 64}, "width: expected a tuple of ints, got 64"),
        ({"width": (64, 0)}, r"width\[1\]: expected an int of at least 1, got 0"),
        ({"blocks": 0}, "blocks: expected an int of at least 1, got 0"),
        ({"stride": 0}, "stride: expected an int of at least 1, got 0"),
        ({"dropout": 1}, "dropout: expected a probability"),
        ({"classes": 0}, "classes: expected an int of at least 1, got 0"),
        (
            {"shape": (3, 8, 8)},
            r"shape: expected \(channels, length\), got \(3, 8, 8\); pass the shape of one sequence, no batch",
        ),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        CNN1d(**{"shape": (2, 20), "classes": 3, **arguments})
    assert "\n" not in str(error.value)
