"""ResNets: published counts, closed forms, structure, initialisation, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from quorate import cost
from quorate.models import ResNet, resnet8, resnet14, resnet18, resnet20, resnet34, resnet50


def image(channels, size):
    return torch.zeros(1, channels, size, size, device="meta")


@pytest.mark.parametrize(
    ("make", "arguments", "size", "parameters", "macs"),
    [
        (resnet18, {}, 32, 11_173_962, 555_422_720),
        (resnet18, {"classes": 1000, "stem": "imagenet"}, 224, 11_689_512, 1_814_073_344),
        (resnet34, {"classes": 1000, "stem": "imagenet"}, 224, 21_797_672, 3_663_761_408),
        (resnet50, {"classes": 1000, "stem": "imagenet"}, 224, 25_557_032, 4_089_184_256),
        (resnet50, {}, 32, 23_520_842, 1_297_829_888),
    ],
)
def test_published_counts(make, arguments, size, parameters, macs):
    with torch.device("meta"):
        model = make(**arguments)
    assert cost.parameters(model) == parameters
    assert cost.macs(model, image(3, size)) == macs


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("make", "blocks"), [(resnet8, 1), (resnet14, 2), (resnet20, 3)])
def test_small_counts_written_out(make, blocks, channels):
    model = make(7, channels)
    # weights of the 3×3 convolutions per stage, of the two 1×1 shortcuts, and channels of all normalisations
    same = (9 * 16 * 16 * 2 * blocks, 9 * 32 * 32 * (2 * blocks - 1), 9 * 64 * 64 * (2 * blocks - 1))
    change = (9 * 16 * 32, 9 * 32 * 64)
    short = (16 * 32, 32 * 64)
    stem = 9 * channels * 16
    normalised = 16 + 2 * blocks * (16 + 32 + 64) + 32 + 64
    assert cost.parameters(model) == stem + sum(same) + sum(change) + sum(short) + 2 * normalised + 64 * 7 + 7
    half, quarter = 16 * 16, 8 * 8
    expected = 32 * 32 * (stem + same[0]) + half * (change[0] + same[1] + short[0]) + quarter * (change[1] + same[2] + short[1])
    assert cost.macs(model, torch.zeros(1, channels, 32, 32)) == expected + 64 * 7


def test_known_small_counts():
    assert [cost.parameters(make()) for make in (resnet8, resnet14, resnet20)] == [78_042, 175_258, 272_474]


@pytest.mark.parametrize(("depth", "layers"), [(8, 7), (26, 25), (44, 43), (18, 17), (34, 33), (50, 49)])
def test_depth_is_the_number_of_weighted_layers(depth, layers):
    model = ResNet((1, 8, 8), 3, depth=depth, width=2)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    assert len(convolutions) == layers  # and one linear layer


def test_fifty_has_bottlenecks_with_the_stride_on_the_3x3():
    model = ResNet((1, 8, 8), 3, depth=50, width=2)
    block = model.layer3[0]
    assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == [(1, 1), (2, 2), (1, 1)]
    assert [block.conv1.kernel_size, block.conv2.kernel_size, block.conv3.kernel_size] == [(1, 1), (3, 3), (1, 1)]
    assert block.conv3.out_channels == 4 * block.conv2.out_channels == 4 * 2 * 4


@pytest.mark.parametrize(("depth", "stem", "sizes"), [(8, "cifar", [32, 16, 8]), (18, "cifar", [32, 16, 8, 4])])
def test_sizes_of_the_stages(depth, stem, sizes):
    model, seen = ResNet((3, 32, 32), 3, depth=depth, stem=stem, width=2), []
    for name in model.layer_names:
        getattr(model, name).register_forward_hook(lambda *args: seen.append(args[2].shape[-1]))
    model(torch.zeros(2, 3, 32, 32))
    assert seen == sizes


def test_imagenet_stem_divides_by_four():
    model = ResNet((3, 64, 64), 3, depth=18, stem="imagenet", width=2)
    assert model.maxpool(model.conv1(torch.zeros(1, 3, 64, 64))).shape == (1, 2, 16, 16)
    assert (model.conv1.kernel_size, model.conv1.stride, model.maxpool.kernel_size) == ((7, 7), (2, 2), 3)


def test_shortcuts_only_where_the_shape_changes():
    def changed(model):
        return [n for n, m in model.named_modules() if n.endswith("downsample") and isinstance(m, nn.Sequential)]

    assert changed(ResNet(depth=14, width=2)) == [f"layer{i}.0.downsample" for i in (2, 3)]
    assert changed(ResNet(depth=18, width=2)) == [f"layer{i}.0.downsample" for i in (2, 3, 4)]
    assert changed(ResNet(depth=50, width=2)) == [f"layer{i}.0.downsample" for i in (1, 2, 3, 4)]


def test_parameter_names_are_torchvision_s():
    names = set(resnet18(1000, "imagenet").state_dict())
    expected = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.1.bn2.bias", "layer2.0.downsample.0.weight"}
    assert expected | {"layer2.0.downsample.1.weight", "layer4.1.conv2.weight", "fc.weight", "fc.bias"} <= names
    assert len(names) == 122


def test_a_basic_block_is_its_equation():
    torch.manual_seed(0)
    block = ResNet((3, 8, 8), 3, depth=8, width=4).double().train().layer2[0]
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)

    def normal(h):
        return (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()

    inner = normal(nn.functional.conv2d(x, block.conv1.weight, stride=2, padding=1)).clamp(min=0)
    outer = normal(nn.functional.conv2d(inner, block.conv2.weight, padding=1))
    short = normal(nn.functional.conv2d(x, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block(x), (outer + short).clamp(min=0), rtol=0, atol=1e-12)


def test_initialisation():
    torch.manual_seed(0)
    model = ResNet((3, 32, 32), 10, depth=18, width=32)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_out = module.out_channels * math.prod(module.kernel_size)
            spread = module.weight.std().item() * math.sqrt(fan_out / 2)
            assert abs(spread - 1) < 4 / math.sqrt(2 * module.weight.numel()), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 19}, "depth: expected 6n \\+ 2 or one of 18, 34, 50, got 19; the nearest is 18 or 20"),
        ({"depth": 2}, "got 2; the nearest is 8"),
        ({"depth": 35}, "got 35; the nearest is 34 or 38"),
        ({"depth": 101}, "got 101; the nearest is 98 or 104"),
        ({"depth": 0}, "depth: expected an int of at least 1, got 0"),
        ({"depth": "18"}, "depth: expected an int of at least 1, got '18'"),
        ({"stem": "mnist"}, 'stem: expected "cifar" or "imagenet", got \'mnist\''),
        ({"depth": 20, "stem": "imagenet"}, 'stem: depth 20 has "cifar" only, got "imagenet"; use depth 18, 34 or 50'),
        ({"width": 0}, "width: expected an int of at least 1, got 0"),
        ({"classes": -1}, "classes: expected an int of at least 1, got -1"),
        ({"shape": (32, 32)}, r"shape: expected \(channels, height, width\), got \(32, 32\)"),
        ({"shape": (0, 32, 32)}, r"shape\[0\]: expected an int of at least 1, got 0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        ResNet(**arguments)
    assert "\n" not in str(error.value)


def test_functions_pass_their_arguments_on():
    with torch.device("meta"):
        assert resnet18(7, "imagenet", 2).conv1.weight.shape == (64, 2, 7, 7)
        assert resnet18(7).fc.out_features == resnet8(7).fc.out_features == 7
        assert resnet20(channels=1).conv1.in_channels == 1
        assert len(resnet34(channels=1).layer3) == len(resnet50(channels=1).layer3) == 6
    with pytest.raises(ValueError, match="channels: expected an int of at least 1, got 0"):
        resnet14(channels=0)
