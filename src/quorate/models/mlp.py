"""Multi-layer perceptron: x ↦ W_L φ(… φ(W_1 x + b_1) …) + b_L, φ = ReLU.

Shapes: (B, *shape) → (B, classes).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from quorate.models.shape import input_shape, probability, whole, widths


class MLP(nn.Module):
    """Flatten, then per hidden width: linear, batch normalisation (`norm`), ReLU, dropout (if > 0); then a linear head.

    Args:
        shape: shape of one input, without the batch; any number of dimensions, (features,) for a table.
        classes: number of logits.
        hidden: widths of the hidden layers; () is a linear classifier.
        dropout: probability that a hidden unit is zeroed in training, in [0, 1).
        norm: batch normalisation after each hidden linear layer, which then has no bias of its own.

    Raises:
        ValueError: a size that is not a positive int, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        norm: bool = False,
    ) -> None:
        super().__init__()
        features = math.prod(input_shape(shape))
        dropout = probability("dropout", dropout)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, width in enumerate(widths("hidden", hidden), start=1):
            layers[f"linear{i}"] = nn.Linear(features, width, bias=not norm)
            if norm:
                layers[f"norm{i}"] = nn.BatchNorm1d(width)
            layers[f"relu{i}"] = nn.ReLU()
            if dropout > 0:
                layers[f"dropout{i}"] = nn.Dropout(dropout)
            features = width
        layers["head"] = nn.Linear(features, whole("classes", classes))
        self.layers = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *shape) → logits (B, classes)."""
        logits: Tensor = self.layers(x)
        return logits
