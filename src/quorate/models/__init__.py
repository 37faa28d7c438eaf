"""Classifiers to start from: plain modules that map (B, *shape) to logits (B, classes)."""

from quorate.models.lenet import LeNet
from quorate.models.mlp import MLP
from quorate.models.resnet import (
    ResNet,
    resnet8,
    resnet14,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
)

__all__ = ["MLP", "LeNet", "ResNet", "resnet8", "resnet14", "resnet18", "resnet20", "resnet34", "resnet50"]
