"""Residual networks (He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385).

A block is y = relu(F(x) + s(x)), eq. 1–2; the shortcut s is the identity, or a 1×1 convolution with batch normalisation where the
shape changes (option B). Two families, told apart by the depth:

    6n + 2 (8, 14, 20, 32, 44, 56, 110, …)   §4.2: 3 stages of n basic blocks, widths w, 2w, 4w (w = 16), 3×3 stem
    18, 34, 50                               Table 1: 4 stages, widths w, 2w, 4w, 8w (w = 64), basic blocks or, at 50, bottlenecks

50 is also 6·8 + 2; it means the bottleneck network. Bottlenecks have their stride on the 3×3 convolution ("v1.5"). The stem
of the second family is "imagenet" (7×7 stride 2, 3×3 max pooling stride 2) or "cifar" (3×3 stride 1, no pooling).
Convolutions are drawn from N(0, 2 / (k² · out)) (He et al. 2015, eq. 14, fan out); normalisation starts at weight 1, bias 0.

Parameter names of the second family are torchvision's (conv1, bn1, layer1.0.conv1, …, fc): its state dicts load.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from quorate.models.shape import image_shape, whole

STEMS = ("cifar", "imagenet")
LARGE: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size at stride 1 (odd `kernel`), He-initialised over the fan out."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Identity where a block keeps the shape, else a strided 1×1 convolution with batch normalisation."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


def blocks_per_stage(depth: int) -> tuple[int, ...]:
    """Blocks in each stage of a ResNet of this depth. Raises ValueError that names the nearest legal depths."""
    depth = whole("depth", depth)
    if depth in LARGE:
        return LARGE[depth]
    if depth >= 8 and depth % 6 == 2:
        return ((depth - 2) // 6,) * 3
    legal = sorted({*LARGE, *range(8, depth + 13, 6)})
    below, above = [d for d in legal if d < depth][-1:], [d for d in legal if d > depth][:1]
    nearest = " or ".join(str(d) for d in below + above)
    raise ValueError(f"depth: expected 6n + 2 or one of 18, 34, 50, got {depth}; the nearest is {nearest}")


class BasicBlock(nn.Module):
    """relu(bn(conv3×3(relu(bn(conv3×3(x))))) + s(x)); the first convolution carries the stride."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(in_channels, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu2(out + self.downsample(x))
        return result


class Bottleneck(nn.Module):
    """1×1 to `width`, 3×3 with the stride, 1×1 to 4 · `width`, each with batch normalisation, plus s(x)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(in_channels, 4 * width, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, 4 · width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        result: Tensor = self.relu3(self.bn3(self.conv3(out)) + self.downsample(x))
        return result


class ResNet(nn.Module):
    """Residual network for images of any size; the head averages over the positions that are left.

    Args:
        shape: (channels, height, width) of one image.
        classes: number of logits.
        depth: 6n + 2, or 18, 34, 50 (see above).
        stem: "cifar" or, for 18, 34 and 50 only, "imagenet".
        width: channels of the first stage; by default 16 (6n + 2) or 64 (18, 34, 50).

    Raises:
        ValueError: a size that is not a positive int, an illegal depth, or a stem that the depth does not have.
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        depth: int = 18,
        stem: str = "cifar",
        width: int | None = None,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape(shape)
        blocks = blocks_per_stage(depth)
        large = depth in LARGE
        if stem not in STEMS:
            raise ValueError(f'stem: expected "cifar" or "imagenet", got {stem!r}; pass one of the two')
        if stem == "imagenet" and not large:
            raise ValueError(f'stem: depth {depth} has "cifar" only, got "imagenet"; use depth 18, 34 or 50')
        width = whole("width", width) if width is not None else (64 if large else 16)
        block = Bottleneck if depth == 50 else BasicBlock
        self.conv1 = conv(channels, width, 7, 2) if stem == "imagenet" else conv(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        self.layer_names = tuple(f"layer{i}" for i in range(1, len(blocks) + 1))
        features = width
        for i, (name, count) in enumerate(zip(self.layer_names, blocks, strict=True)):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for j in range(count):
                stage[str(j)] = block(features, width * 2**i, stride=2 if i > 0 and j == 0 else 1)
                features = width * 2**i * block.expansion
            self.add_module(name, nn.Sequential(stage))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(features, whole("classes", classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → logits (B, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.layer_names:
            x = getattr(self, name)(x)
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def _resnet(depth: int, classes: int, stem: str, channels: int) -> ResNet:
    """The network of this depth for images of any size (the size in `shape` plays no part)."""
    return ResNet((whole("channels", channels), 32, 32), classes, depth, stem)


def resnet8(classes: int = 10, channels: int = 3) -> ResNet:
    """ResNet-8: three stages of one basic block, widths 16, 32, 64; 78,042 parameters at the defaults."""
    return _resnet(8, classes, "cifar", channels)


def resnet14(classes: int = 10, channels: int = 3) -> ResNet:
    """ResNet-14: three stages of two basic blocks, widths 16, 32, 64."""
    return _resnet(14, classes, "cifar", channels)


def resnet20(classes: int = 10, channels: int = 3) -> ResNet:
    """ResNet-20: three stages of three basic blocks, widths 16, 32, 64."""
    return _resnet(20, classes, "cifar", channels)


def resnet18(classes: int = 10, stem: str = "cifar", channels: int = 3) -> ResNet:
    """ResNet-18: 11,173,962 parameters and 555,422,720 MACs at 3×32×32 at the defaults."""
    return _resnet(18, classes, stem, channels)


def resnet34(classes: int = 10, stem: str = "cifar", channels: int = 3) -> ResNet:
    """ResNet-34: basic blocks, 3 + 4 + 6 + 3."""
    return _resnet(34, classes, stem, channels)


def resnet50(classes: int = 10, stem: str = "cifar", channels: int = 3) -> ResNet:
    """ResNet-50 v1.5: bottlenecks; with 1000 classes and the "imagenet" stem 25,557,032 parameters."""
    return _resnet(50, classes, stem, channels)
