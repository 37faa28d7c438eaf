"""Convolutional networks for sequences (Wang, Yan & Oates, Time Series Classification from Scratch with Deep Neural Networks, IJCNN
2017, arXiv:1611.06455, §II.B–C), with strides.

A stem, conv-norm-ReLU of the first width, then one stage per width of `blocks` blocks, the first with the stride, then an average over the
steps that are left and a linear head. A block is plain, conv-norm-ReLU (the paper's FCN), or residual (its ResNet, with two
convolutions in place of three):

    plain       relu(bn(conv(x)))
    residual    relu(bn(conv(dropout(relu(bn(conv(x)))))) + s(x))

s is the identity, or a strided convolution of kernel 1 with normalisation where the shape changes. Kernels are odd and padded, so that
L steps become ⌈L/stride⌉. Convolutions are drawn from N(0, 2 / (kernel · out)) (He et al. 2015, eq. 14, fan out).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from quorate.models.shape import probability, sequence_shape, whole, widths


def conv1d(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv1d:
    """Convolution without bias that keeps the length at stride 1 (odd `kernel`), He-initialised over the fan out."""
    layer = nn.Conv1d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def plain_block(in_channels: int, width: int, kernel: int, stride: int, dropout: float) -> nn.Sequential:
    """conv, batch normalisation, ReLU, and dropout (if > 0)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=conv1d(in_channels, width, kernel, stride), norm=nn.BatchNorm1d(width), relu=nn.ReLU()
    )
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(layers)


class ResidualBlock1d(nn.Module):
    """relu(bn(conv(dropout(relu(bn(conv(x)))))) + s(x)); the first convolution carries the stride."""

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.first = plain_block(in_channels, width, kernel, stride, dropout)
        self.conv = conv1d(width, width, kernel)
        self.norm = nn.BatchNorm1d(width)
        same = stride == 1 and in_channels == width
        self.shortcut = nn.Identity() if same else nn.Sequential(conv1d(in_channels, width, 1, stride), nn.BatchNorm1d(width))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, L) → (B, width, ⌈L/stride⌉)."""
        out: Tensor = self.relu(self.norm(self.conv(self.first(x))) + self.shortcut(x))
        return out


class CNN1d(nn.Module):
    """1-D convolutional network for sequences of any length; the head averages over the steps that are left.

    Args:
        shape: (channels, length) of one sequence; the length plays no part.
        classes: number of logits.
        width: channels of the stages, one stage each.
        blocks: blocks per stage.
        kernel: steps a convolution sees, odd.
        stride: of each stage's first block; L steps become about L / stride^stages.
        residual: residual blocks, else plain ones.
        dropout: probability that an element behind a block's (first) ReLU is zeroed in training, in [0, 1).

    Raises:
        ValueError: an even kernel (the nearest odd ones are named), no width, a size that is not a positive int, or a dropout
            outside [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        width: Sequence[int] = (64, 128, 128),
        blocks: int = 1,
        kernel: int = 7,
        stride: int = 2,
        residual: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        features, _ = sequence_shape(shape)
        sizes, count, step = widths("width", width), whole("blocks", blocks), whole("stride", stride)
        if not sizes:
            raise ValueError("width: expected at least one stage, got (); pass for example (64, 128)")
        if whole("kernel", kernel) % 2 == 0:
            raise ValueError(
                f"kernel: expected an odd number of steps, got {kernel}; the nearest are {kernel - 1} and {kernel + 1}"
            )
        dropout = probability("dropout", dropout)
        make = ResidualBlock1d if residual else plain_block
        self.stem = plain_block(features, sizes[0], kernel, 1, 0.0)
        features = sizes[0]
        stages: list[nn.Module] = []
        for channels in sizes:
            stage: list[nn.Module] = []
            for j in range(count):
                stage.append(make(features, channels, kernel, step if j == 0 else 1, dropout))
                features = channels
            stages.append(nn.Sequential(*stage))
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool1d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(features, whole("classes", classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L) → logits (B, classes)."""
        logits: Tensor = self.fc(self.flatten(self.avgpool(self.layers(self.stem(x)))))
        return logits
