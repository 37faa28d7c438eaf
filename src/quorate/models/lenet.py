"""LeNet-5 with ReLU and max pooling (LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998, §II.B).

Shapes, for an image of H × W (⌊·⌋ throughout):

    conv1 5×5, padding 2   (width[0], H, W)
    pool 2                 (width[0], H/2, W/2)
    conv2 5×5, padding 1   (width[1], H/2 - 2, W/2 - 2)
    pool 2                 (width[1], H/4 - 1, W/4 - 1)
    linear layers          hidden, classes

The original's second convolution has no padding, which needs 12×12. One pixel is the least padding with which 8×8 images
(scikit-learn's digits) leave one position; 28×28 leaves 6×6, where the original has 5×5.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from quorate.models.shape import image_shape, whole, widths

LEAST = 8


class LeNet(nn.Module):
    """Two convolutions with pooling, then linear layers.

    Args:
        shape: (channels, height, width) of one image, from 8×8 up.
        classes: number of logits.
        width: channels of the two convolutions.
        hidden: widths of the hidden linear layers.

    Raises:
        ValueError: a size that is not a positive int, or an image smaller than 8×8.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        width: Sequence[int] = (6, 16),
        hidden: Sequence[int] = (120, 84),
    ) -> None:
        super().__init__()
        channels, rows, columns = image_shape(shape)
        if min(rows, columns) < LEAST:
            raise ValueError(
                f"shape: expected an image of at least {LEAST}×{LEAST}, got {rows}×{columns}; enlarge the images or use MLP"
            )
        first, second = widths("width", width, count=2)
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, first, 5, padding=2),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(first, second, 5, padding=1),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
            )
        )
        self.flatten = nn.Flatten()
        features = second * (rows // 4 - 1) * (columns // 4 - 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, units in enumerate(widths("hidden", hidden), start=1):
            layers[f"linear{i}"] = nn.Linear(features, units)
            layers[f"relu{i}"] = nn.ReLU()
            features = units
        layers["head"] = nn.Linear(features, whole("classes", classes))
        self.classifier = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) → logits (B, classes)."""
        logits: Tensor = self.classifier(self.flatten(self.features(x)))
        return logits
