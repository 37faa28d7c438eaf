"""Classifiers to start from: modules that map (B, *shape) to logits (B, classes), and one that maps to the exits' (M, B, classes).

For regression `classes` is the number of outputs.
"""

from quorate.models.adapters import from_huggingface, from_timm, from_torchvision
from quorate.models.cnn1d import CNN1d
from quorate.models.depthwise import DepthwiseNet
from quorate.models.lenet import LeNet
from quorate.models.mlp import MLP
from quorate.models.multi_exit import MultiExitResNet
from quorate.models.resnet import (
    ResNet,
    resnet8,
    resnet14,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
)
from quorate.models.rnn import RNN
from quorate.models.vgg import VGG
from quorate.models.vit import ViT
from quorate.models.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "RNN",
    "VGG",
    "CNN1d",
    "DepthwiseNet",
    "LeNet",
    "MultiExitResNet",
    "ResNet",
    "ViT",
    "WideResNet",
    "from_huggingface",
    "from_timm",
    "from_torchvision",
    "resnet8",
    "resnet14",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
]
