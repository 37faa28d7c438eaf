"""Inverted residuals with depthwise convolutions (Sandler et al., MobileNetV2, CVPR 2018, arXiv:1801.04381, §3 and Table 2).

A block widens by a factor t, filters each channel by itself, and narrows without a non-linearity (Table 1):

    F(x) = bn(conv1×1(relu6(bn(depthwise3×3(relu6(bn(conv1×1(x))))))))

It is x + F(x) where shape and stride allow it. Blocks with t = 1 have no first convolution. Table 2, as (t, channels, blocks, stride):

    (1, 16, 1, 1)  (6, 24, 2, 2)  (6, 32, 3, 2)  (6, 64, 4, 2)  (6, 96, 3, 1)  (6, 160, 3, 2)  (6, 320, 1, 1)

between a 3×3 stem of 32 channels and a 1×1 convolution to 1280, which are averaged over the positions for the linear head. Channels are
multiplied by `width` and rounded to the nearest multiple of 8, or to the one above where that would lose more than a tenth; the last
convolution does not get narrower than 1280 (§5 of the paper and its published code). The stem "imagenet" has stride 2; "cifar"
has stride 1 there and in the second line of the table, for images about 32×32. Convolutions are drawn from N(0, 2 / (k² · out / groups)).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from quorate.models.shape import choice, image_shape, probability, real, whole

TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, LAST, STEP = 32, 1280, 8


def scaled(channels: int, width: float) -> int:
    """channels · width as a multiple of 8: the nearest (a half goes up), or the next where that is below nine tenths of it."""
    wanted = channels * width
    rounded = max(STEP, int(wanted + STEP / 2) // STEP * STEP)
    return rounded if rounded >= 0.9 * wanted else rounded + STEP


def unit(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """Convolution that keeps the size at stride 1, batch normalisation, and ReLU6 if `active`."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(2 * groups / (kernel**2 * out_channels)))
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=layer, norm=nn.BatchNorm2d(out_channels))
    if active:
        layers["relu"] = nn.ReLU6()
    return nn.Sequential(layers)


class InvertedResidual(nn.Module):
    """x + F(x), or F(x) where the shape changes; the depthwise convolution carries the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion > 1:
            layers["widen"] = unit(in_channels, hidden, 1)
        layers["depthwise"] = unit(hidden, hidden, 3, stride, groups=hidden)
        layers["narrow"] = unit(hidden, out_channels, 1, active=False)
        self.layers = nn.Sequential(layers)
        self.keeps = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out: Tensor = self.layers(x)
        return x + out if self.keeps else out


class DepthwiseNet(nn.Module):
    """MobileNetV2 for images of any size; the head averages over the positions that are left.

    With 1000 classes and the "imagenet" stem 3,504,872 parameters and 300,774,272 MACs at 3×224×224.

    Args:
        shape: (channels, height, width) of one image; the size plays no part.
        classes: number of logits.
        width: multiplier of the channels, > 0; the paper's are 0.35 … 1.4.
        stem: "cifar" (the image is divided by 8 in all) or "imagenet" (by 32).
        dropout: probability that an averaged feature is zeroed in training, in [0, 1).

    Raises:
        ValueError: a width that is not a positive finite number, another stem, a size that is not a positive int, a dropout
            outside [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        width: float = 1.0,
        stem: Literal["cifar", "imagenet"] = "cifar",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape(shape)
        if not 0 < real(width) < math.inf:
            raise ValueError(f"width: expected a positive finite number, got {width!r}; 1.0 is the paper's network")
        small = choice("stem", stem, ("cifar", "imagenet")) == "cifar"
        dropout = probability("dropout", dropout)
        features = scaled(STEM, width)
        self.stem = unit(channels, features, 3, stride=1 if small else 2)
        blocks: list[nn.Module] = []
        for i, (expansion, out_channels, count, stride) in enumerate(TABLE):
            for j in range(count):
                step = stride if j == 0 and not (small and i == 1) else 1
                blocks.append(InvertedResidual(features, scaled(out_channels, width), step, expansion))
                features = scaled(out_channels, width)
        self.blocks = nn.Sequential(*blocks)
        last = scaled(LAST, max(1.0, width))
        self.last = unit(features, last, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(last, whole("classes", classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → logits (B, classes)."""
        features = self.flatten(self.avgpool(self.last(self.blocks(self.stem(x)))))
        logits: Tensor = self.fc(self.dropout(features))
        return logits
