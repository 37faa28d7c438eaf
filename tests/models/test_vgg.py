"""VGG: published counts, closed forms, its layers, sizes too small for the poolings."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quorate import cost
from quorate.models import VGG
from quorate.models.vgg import CONVOLUTIONS, MULTIPLES


@pytest.mark.parametrize(
    ("depth", "parameters", "macs"),
    [(11, 132_863_336 + 5504 - 2752, 7_609_090_048), (13, 133_047_848 + 5888 - 2944, 11_308_466_176),
     (16, 138_357_544 + 8448 - 4224, 15_470_264_320), (19, 143_667_240 + 11008 - 5504, 19_632_062_464)],
)  # fmt: skip
def test_the_paper_s_networks(depth, parameters, macs):
    """The plain networks' counts (133, 133, 138, 144 million in Table 2), plus normalisation, less the convolutions' biases."""
    with torch.device("meta"):
        model = VGG((3, 224, 224), 1000, depth, positions=7, hidden=(4096, 4096), dropout=0.5)
    assert cost.parameters(model) == parameters
    assert cost.macs(model, torch.zeros(1, 3, 224, 224, device="meta")) == macs


@settings(max_examples=8)
@given(
    depth=st.sampled_from(sorted(CONVOLUTIONS)),
    width=st.integers(1, 4),
    channels=st.integers(1, 3),
    pools=st.integers(1, 5),
    positions=st.integers(1, 3),
    hidden=st.lists(st.integers(1, 9), max_size=2),
    more=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_counts_written_out(depth, width, channels, pools, positions, hidden, more):
    rows, columns = 2**pools + more[0], 2**pools + more[1]
    with torch.device("meta"):
        model = VGG((channels, rows, columns), 7, depth, width, pools, positions, hidden)
    example = torch.zeros(1, channels, rows, columns, device="meta")
    parameters, macs = 0, 0
    for stage, (count, multiple) in enumerate(zip(CONVOLUTIONS[depth], MULTIPLES, strict=True)):
        for _ in range(count):
            kernels = 9 * channels * width * multiple
            channels = width * multiple
            parameters += kernels + 2 * channels
            macs += kernels * rows * columns
        if stage < pools:
            rows, columns = rows // 2, columns // 2
    sizes = [channels * positions**2, *hidden, 7]
    linear = sum(a * b for a, b in itertools.pairwise(sizes))
    assert cost.parameters(model) == parameters + linear + sum(sizes[1:])
    assert cost.macs(model, example) == macs + linear


@pytest.mark.parametrize("depth", CONVOLUTIONS)
def test_depth_is_the_number_of_weighted_layers_of_the_paper(depth):
    with torch.device("meta"):
        model = VGG(depth=depth, hidden=(8, 8))
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth


def test_order_of_layers():
    model = VGG((3, 32, 32), 5, 11, width=2, pools=4, hidden=(6,), dropout=0.25)
    names = [name for name, _ in model.features.named_children()]
    assert names[:8] == ["conv1_1", "norm1_1", "relu1_1", "pool1", "conv2_1", "norm2_1", "relu2_1", "pool2"]
    assert "pool4" in names
    assert names[-1] == "relu5_2"
    assert [name for name, _ in model.classifier.named_children()] == ["linear1", "relu1", "dropout1", "head"]
    assert model.classifier.dropout1.p == 0.25
    assert [m.bias for m in model.modules() if isinstance(m, nn.Conv2d)] == [None] * 8


def test_positions_are_averaged_before_the_linear_layers():
    torch.manual_seed(0)
    model, x = VGG((1, 64, 64), 3, 11, width=2, positions=2).double().eval(), torch.randn(2, 1, 64, 64, dtype=torch.float64)
    features = model.features(x)
    assert features.shape == (2, 16, 2, 2)
    head = model.classifier.head
    torch.testing.assert_close(model(x), features.reshape(2, 64) @ head.weight.T + head.bias, rtol=0, atol=1e-12)
    larger = torch.randn(2, 1, 128, 128, dtype=torch.float64)
    quarters = torch.stack([model.features(larger)[..., i : i + 2, j : j + 2].mean((2, 3)) for i in (0, 2) for j in (0, 2)], 2)
    torch.testing.assert_close(model(larger), quarters.reshape(2, 64) @ head.weight.T + head.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 17}, "depth: expected one of 11, 13, 16, 19, got 17"),
        ({"depth": 0}, "depth: expected an int of at least 1, got 0"),
        (
            {"shape": (3, 28, 40)},
            "shape: expected an image of at least 32×32 for 5 poolings, got 28×40; enlarge the images or set pools=4",
        ),
        ({"shape": (3, 32, 15)}, "got 32×15; enlarge the images or set pools=3"),
        ({"shape": (3, 1, 32), "pools": 1}, "at least 2×2 for 1 poolings, got 1×32; enlarge the images or use MLP"),
        ({"pools": 6}, "pools: expected 1 … 5, one per stage at most, got 6"),
        ({"pools": 0}, "pools: expected an int of at least 1, got 0"),
        ({"positions": 0}, "positions: expected an int of at least 1, got 0"),
        ({"width": 0}, "width: expected an int of at least 1, got 0"),
        ({"hidden": 4096}, "hidden: expected a tuple of ints, got 4096"),
        ({"dropout": 0.5}, r"dropout: expected 0 without hidden layers, got 0.5; pass for example hidden=\(512,\)"),
        ({"dropout": -1, "hidden": (3,)}, "dropout: expected a probability"),
        ({"classes": True}, "classes: expected an int of at least 1, got True"),
        ({"shape": (32, 32)}, r"shape: expected \(channels, height, width\)"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error, torch.device("meta"):
        VGG(**arguments)
    assert "\n" not in str(error.value)


def test_the_least_size_works():
    for pools in (1, 3, 5):
        assert VGG((1, 2**pools, 2**pools), 3, 11, 1, pools).eval()(torch.zeros(1, 1, 2**pools, 2**pools)).shape == (1, 3)
