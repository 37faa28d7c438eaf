"""torch-uncertainty's packed networks of the same architectures and sizes, to compare with; how to install it: packed_speed.py.

It has ResNet-18 and the MLP as models of its own; the vision transformer is built from its layers: PackedConv2d for the patches,
PackedTransformerEncoderLayer (norm first, GELU), PackedLayerNorm, PackedLinear. Its outputs are (M · B, classes), member-major.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # they last as long as it does


def available() -> bool:
    """Whether torch-uncertainty can be imported; two operators that a CUDA-built torchvision lacks beside a CPU PyTorch are declared."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return False
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import torch_uncertainty  # noqa: F401
    except ImportError as error:
        print(f"torch-uncertainty can't be imported ({error}): its rows are left out", file=sys.stderr)
        return False
    return True


def resnet18(members: int, alpha: int) -> nn.Module:
    """Its packed ResNet-18 with the CIFAR stem."""
    from torch_uncertainty.models.classification.resnet.packed import packed_resnet

    network: nn.Module = packed_resnet(
        in_channels=3, num_classes=10, arch=18, num_estimators=members, alpha=alpha, gamma=1, style="cifar"
    )
    return network


def mlp(members: int, alpha: int) -> nn.Module:
    """Its packed MLP of the benchmark's sizes."""
    from torch_uncertainty.models.mlp import packed_mlp

    network: nn.Module = packed_mlp(256, 10, hidden_dims=[512, 512, 512], num_estimators=members, alpha=alpha)
    return network


class ViT(nn.Module):
    """Its layers in the order of quorate's ViT: patches of 4, width 192, 6 blocks of 4 heads, a class token."""

    def __init__(self, members: int, alpha: int, width: int = 192, depth: int = 6, heads: int = 4, patch: int = 4) -> None:
        super().__init__()
        from torch_uncertainty.layers import PackedConv2d, PackedLayerNorm, PackedLinear, PackedTransformerEncoderLayer

        packing: dict[str, Any] = {"alpha": alpha, "num_estimators": members}
        self.patches = PackedConv2d(3, width, patch, stride=patch, first=True, **packing)
        self.token = nn.Parameter(torch.zeros(1, 1, alpha * width))
        self.positions = nn.Parameter(torch.zeros(1, (32 // patch) ** 2 + 1, alpha * width))
        options: dict[str, Any] = {"dropout": 0.0, "activation": F.gelu, "batch_first": True, "norm_first": True}
        blocks = (
            PackedTransformerEncoderLayer(width, heads, dim_feedforward=4 * width, **packing, **options) for _ in range(depth)
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm = PackedLayerNorm(width, **packing)
        self.head = PackedLinear(width, 10, last=True, **packing)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) → (M · B, 10)."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


NETWORKS = {"resnet18": resnet18, "mlp": mlp, "vit": ViT}
