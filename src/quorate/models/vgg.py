"""VGG with batch normalisation (Simonyan & Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
arXiv:1409.1556, Table 1; normalisation: Ioffe & Szegedy 2015).

Five stages of 3×3 convolutions of w, 2w, 4w, 8w, 8w channels (w = 64), each convolution followed by batch normalisation and ReLU, each
stage by 2×2 max pooling; then an average over `positions` × `positions` regions, hidden linear layers, and the linear head:

    depth   convolutions per stage      configuration
    11      1, 1, 2, 2, 2               A
    13      2, 2, 2, 2, 2               B
    16      2, 2, 3, 3, 3               D
    19      2, 2, 4, 4, 4               E

The paper's network for 224×224 is positions=7, hidden=(4096, 4096), dropout=0.5. Without hidden layers, as is usual at 32×32, the head
reads the 8w averaged channels. The convolutions have no bias, which normalisation would remove; they are drawn as in
:mod:`quorate.models.resnet`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from quorate.models.resnet import conv
from quorate.models.shape import image_shape, probability, whole, widths

CONVOLUTIONS: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
MULTIPLES = (1, 2, 4, 8, 8)


def _features(channels: int, width: int, convolutions: Sequence[int], pools: int) -> nn.Sequential:
    """The convolutional stages, the first `pools` of them with max pooling."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (count, multiple) in enumerate(zip(convolutions, MULTIPLES, strict=True), start=1):
        for j in range(1, count + 1):
            layers[f"conv{i}_{j}"] = conv(channels, width * multiple, 3)
            layers[f"norm{i}_{j}"] = nn.BatchNorm2d(width * multiple)
            layers[f"relu{i}_{j}"] = nn.ReLU()
            channels = width * multiple
        if i <= pools:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


class VGG(nn.Module):
    """Stages of 3×3 convolutions and poolings, then linear layers.

    Args:
        shape: (channels, height, width) of one image, at least 2^pools high and wide: 32×32 at the default.
        classes: number of logits.
        depth: 11, 13, 16 or 19.
        width: channels of the first stage.
        pools: how many of the five stages, from the first on, end in a pooling, 1 … 5; 4 for images of 16×16 to 31×31.
        positions: the features are averaged to positions × positions before the linear layers.
        hidden: widths of the hidden linear layers.
        dropout: probability that a unit of a hidden linear layer is zeroed in training, in [0, 1).

    Raises:
        ValueError: another depth, an image too small for its poolings (the least size is named), a size that is not a positive int,
            or a dropout that is outside [0, 1) or has no hidden layer to act on.
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        depth: int = 16,
        width: int = 64,
        pools: int = 5,
        positions: int = 1,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, rows, columns = image_shape(shape)
        if whole("depth", depth) not in CONVOLUTIONS:
            listed = ", ".join(str(d) for d in CONVOLUTIONS)
            raise ValueError(f"depth: expected one of {listed}, got {depth}; pass one of them")
        if whole("pools", pools) > len(MULTIPLES):
            raise ValueError(f"pools: expected 1 … 5, one per stage at most, got {pools}; pass 5")
        if min(rows, columns) < 2**pools:
            fits = min(rows, columns).bit_length() - 1
            remedy = f"or set pools={fits}" if fits else "or use MLP"
            raise ValueError(
                f"shape: expected an image of at least {2**pools}×{2**pools} for {pools} poolings, got {rows}×{columns}; "
                f"enlarge the images {remedy}"
            )
        units, dropout = widths("hidden", hidden), probability("dropout", dropout)
        if dropout and not units:
            raise ValueError(f"dropout: expected 0 without hidden layers, got {dropout!r}; pass for example hidden=(512,)")
        self.features = _features(channels, whole("width", width), CONVOLUTIONS[depth], pools)
        self.avgpool = nn.AdaptiveAvgPool2d(whole("positions", positions))
        self.flatten = nn.Flatten()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = MULTIPLES[-1] * width * positions**2
        for i, outputs in enumerate(units, start=1):
            layers[f"linear{i}"] = nn.Linear(inputs, outputs)
            layers[f"relu{i}"] = nn.ReLU()
            if dropout:
                layers[f"dropout{i}"] = nn.Dropout(dropout)
            inputs = outputs
        layers["head"] = nn.Linear(inputs, whole("classes", classes))
        self.classifier = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → logits (B, classes)."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits
