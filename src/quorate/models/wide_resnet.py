"""Wide residual networks (Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016, arXiv:1605.07146).

Depth 6n + 4 with widening factor k, Table 1: a 3×3 stem of 16 channels, then three groups of n blocks B(3, 3) of widths 16k, 32k, 64k
at strides 1, 2, 2, then normalisation, ReLU, global average and a linear layer. Blocks are pre-activated (He et al., Identity
Mappings in Deep Residual Networks, 2016, eq. 2 and Fig. 4e), dropout lies between their convolutions (§2.4):

    o = relu(bn(x)),    y = s(x) + conv3×3(dropout(relu(bn(conv3×3(o)))))

The first convolution of a block has the stride. s is the identity; where the shape changes it is a strided 1×1 convolution of o, without
normalisation. Convolutions are drawn as in :mod:`quorate.models.resnet`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from quorate.models.resnet import conv
from quorate.models.shape import image_shape, probability, whole

STEM = 16


def blocks_per_group(depth: int) -> int:
    """n of depth 6n + 4. Raises ValueError that names the nearest legal depths."""
    depth = whole("depth", depth)
    if depth >= 10 and depth % 6 == 4:
        return (depth - 4) // 6
    below = (depth - 4) // 6 * 6 + 4
    nearest = " or ".join(str(d) for d in (below, below + 6) if d >= 10) or "10"
    raise ValueError(f"depth: expected 6n + 4, at least 10, got {depth}; the nearest is {nearest}")


class PreActivationBlock(nn.Module):
    """s(x) + conv3×3(dropout(relu(bn(conv3×3(relu(bn(x))))))); the first convolution carries the stride."""

    def __init__(self, in_channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = conv(width, width, 3)
        self.changes = stride != 1 or in_channels != width
        self.shortcut = conv(in_channels, width, 1, stride) if self.changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(active)))))
        result: Tensor = out + self.shortcut(active if self.changes else x)
        return result


class WideResNet(nn.Module):
    """Wide residual network for images of any size; the head averages over the positions that are left.

    WRN-28-10 with 10 classes has 36,479,194 parameters and 5,243,328,768 MACs at 3×32×32.

    Args:
        shape: (channels, height, width) of one image; the size plays no part.
        classes: number of logits.
        depth: 6n + 4: 10, 16, 22, 28, 34, 40, ….
        width: the widening factor k.
        dropout: probability that an element between a block's convolutions is zeroed in training, in [0, 1); the paper's is 0.3.

    Raises:
        ValueError: a depth that is not 6n + 4 (the nearest are named), a size that is not a positive int, a dropout outside [0, 1).
    """

    def __init__(
        self, shape: Sequence[int] = (3, 32, 32), classes: int = 10, depth: int = 28, width: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape(shape)
        blocks, factor, dropout = blocks_per_group(depth), whole("width", width), probability("dropout", dropout)
        self.conv1 = conv(channels, STEM, 3)
        groups: OrderedDict[str, nn.Module] = OrderedDict()
        features = STEM
        for g in range(3):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for j in range(blocks):
                group[str(j)] = PreActivationBlock(features, STEM * factor * 2**g, 2 if g > 0 and j == 0 else 1, dropout)
                features = STEM * factor * 2**g
            groups[f"group{g + 1}"] = nn.Sequential(group)
        self.groups = nn.Sequential(groups)
        self.bn = nn.BatchNorm2d(features)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(features, whole("classes", classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → logits (B, classes)."""
        x = self.relu(self.bn(self.groups(self.conv1(x))))
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits
