"""Wide ResNets: the published counts, closed forms, the block's equation, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quorate import cost
from quorate.models import WideResNet


def counted(model, *shape):
    return cost.parameters(model), cost.macs(model, torch.zeros(1, *shape, device="meta"))


@pytest.mark.parametrize(
    ("depth", "width", "classes", "parameters", "macs"),
    [
        (28, 10, 10, 36_479_194, 5_243_328_768),
        (28, 10, 100, 36_536_884, 5_243_386_368),
        (16, 8, 10, 10_961_370, None),
        (40, 4, 10, 8_949_210, None),
    ],
)
def test_published_counts(depth, width, classes, parameters, macs):
    """Sizes as in the paper's Tables 3 and 4: 36.5, 11.0 and 8.9 million."""
    with torch.device("meta"):
        model = WideResNet((3, 32, 32), classes, depth, width)
    assert cost.parameters(model) == parameters
    assert macs in (None, counted(model, 3, 32, 32)[1])


@settings(max_examples=6)
@given(n=st.integers(1, 3), k=st.integers(1, 3), channels=st.integers(1, 3), rows=st.integers(1, 13), columns=st.integers(1, 13))
def test_counts_written_out(n, k, channels, rows, columns):
    with torch.device("meta"):
        model = WideResNet((channels, rows, columns), 7, 6 * n + 4, k)
    shape = (channels, rows, columns)
    parameters, inputs = 9 * channels * 16, 16
    macs = parameters * rows * columns
    for g, width in enumerate((16 * k, 32 * k, 64 * k)):
        rows, columns = (-(-rows // 2), -(-columns // 2)) if g else (rows, columns)
        kernels = 9 * inputs * width + 9 * width * width * (2 * n - 1) + (inputs * width if g or inputs != width else 0)
        parameters += kernels + 2 * (inputs + width + (n - 1) * 2 * width)
        macs += kernels * rows * columns
        inputs = width
    assert counted(model, *shape) == (parameters + 2 * inputs + inputs * 7 + 7, macs + inputs * 7)


def test_depth_is_the_number_of_weighted_layers():
    for depth in (10, 16, 28):
        with torch.device("meta"):
            model = WideResNet(depth=depth, width=2)
        assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()) == depth - 3  # 6n + 1
        assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in model.modules()) == 3


@pytest.mark.parametrize("where", ["group1", "group2", "within"])
def test_a_block_is_its_equation(where):
    torch.manual_seed(0)
    model = WideResNet((3, 8, 8), 3, depth=16, width=2).double().train()
    block = model.groups.group2[1] if where == "within" else getattr(model.groups, where)[0]
    stride = 2 if where == "group2" else 1
    x = torch.randn(3, block.bn1.num_features, 6, 5, dtype=torch.float64)

    def active(h):
        return ((h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()).clamp(
            min=0
        )

    inner = active(nn.functional.conv2d(active(x), block.conv1.weight, stride=stride, padding=1))
    outer = nn.functional.conv2d(inner, block.conv2.weight, padding=1)
    short = x if where == "within" else nn.functional.conv2d(active(x), block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(x), outer + short, rtol=0, atol=1e-12)


def test_dropout_lies_between_the_convolutions():
    model = WideResNet(depth=10, width=1, dropout=0.3)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3] * 3
    names = [name for name, _ in model.groups.group1[0].named_children()]
    assert names.index("relu2") < names.index("dropout") < names.index("conv2")
    assert not any(isinstance(m, nn.Dropout) for m in WideResNet(depth=10, width=1).modules())


def test_sizes_of_the_groups():
    model, seen = WideResNet((3, 32, 32), depth=10, width=1), []
    for group in model.groups:
        group.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert seen == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, "depth: expected 6n \\+ 4, at least 10, got 20; the nearest is 16 or 22"),
        ({"depth": 27}, "got 27; the nearest is 22 or 28"),
        ({"depth": 4}, "got 4; the nearest is 10"),
        ({"depth": 3}, "got 3; the nearest is 10"),
        ({"depth": 0}, "depth: expected an int of at least 1, got 0"),
        ({"width": 0}, "width: expected an int of at least 1, got 0"),
        ({"width": 1.5}, "width: expected an int of at least 1, got 1.5"),
        ({"dropout": 1}, r"dropout: expected a probability in \[0, 1\), got 1"),
        ({"classes": 0}, "classes: expected an int of at least 1, got 0"),
        ({"shape": (3, 32)}, r"shape: expected \(channels, height, width\), got \(3, 32\)"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        WideResNet(**{"depth": 10, "width": 1, **arguments})
    assert "\n" not in str(error.value)
