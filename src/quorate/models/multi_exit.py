"""A residual network with several exits: an ensemble whose members are the exits, each a stage that goes on from the one before.

Sources: Teerapittayanon, McDanel & Kung, BranchyNet, ICPR 2016 (arXiv:1709.01686), §III: exits after some of the layers, trained
together on the weighted sum of their losses, run in order until one is sure. Huang et al., Multi-Scale Dense Networks, ICLR 2018
(arXiv:1703.09844), §4: equal weights, and the last exit that was computed gives the prediction.

    f₀ = stem(x),    f_k = blocks_k(f_{k−1}),    logits_k = exit_k(f_k),    k = 1 … K

    stage    reads       writes      drops
    exit0    –           features    –           f₁, from the raw input
    exitk    features    features    –           f_{k+1}
    last     features    –           features

so that no block runs twice. Exit k averages f_k over its positions for a linear layer, behind a 3×3 convolution with normalisation
and ReLU if `branch` gives its channels; the last exit is the plain network's head. The network is :class:`quorate.models.ResNet`.

A later exit replaces the earlier ones (`combine="last"`), as in both papers; `combine="probs"` or `"logits"` averages all exits so
far. Trained with :func:`quorate.member_loss` all exits weigh the same.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from quorate.combination import COMBINES, Combine
from quorate.models.resnet import ResNet, blocks_per_stage, conv
from quorate.models.shape import choice, whole, widths

FEATURES = "features"


def exits_of(depth: int, exits: Sequence[int] | None) -> tuple[int, ...]:
    """After how many blocks each exit lies, rising to all of them; by default the end of every residual stage. Raises ValueError."""
    ends = tuple(itertools.accumulate(blocks_per_stage(depth)))
    if exits is None:
        return ends
    after = widths("exits", exits)
    if not after or after[-1] != ends[-1] or any(a >= b for a, b in itertools.pairwise(after)):
        raise ValueError(
            f"exits: expected rising numbers of blocks that end with {ends[-1]}, all of depth {depth}, got {after}; "
            f"pass for example {ends}"
        )
    return after


def head(channels: int, classes: int, branch: int | None) -> nn.Sequential:
    """(B, channels, H, W) → (B, classes): a convolution if `branch`, then the average over positions and a linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if branch is not None:
        layers["conv"], layers["norm"], layers["relu"] = conv(channels, branch, 3), nn.BatchNorm2d(branch), nn.ReLU()
        channels = branch
    layers["avgpool"], layers["flatten"], layers["fc"] = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    return nn.Sequential(layers)


class ExitStage(nn.Module):
    """The blocks between two exits and the exit behind them: (x, carry) → (logits (1, B, C), written)."""

    def __init__(self, index: int, last: bool, trunk: nn.Sequential, exit_: nn.Module) -> None:
        super().__init__()
        self.name = f"exit{index}"
        self.reads: tuple[str, ...] = (FEATURES,) if index else ()
        self.writes: tuple[str, ...] = () if last else (FEATURES,)
        self.drops: tuple[str, ...] = (FEATURES,) if index and last else ()
        self.trunk, self.exit = trunk, exit_

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Raw x (B, *shape) for the first stage, the carried features for the others."""
        features = self.trunk(carry[FEATURES] if self.reads else x)
        return self.exit(features)[None], ({FEATURES: features} if self.writes else {})


class MultiExitResNet(nn.Module):
    """Residual network with exits: x → (K, B, classes), one member per exit, with :meth:`stages`.

    Args:
        shape: (channels, height, width) of one image; the size plays no part.
        classes: number of logits.
        depth, stem, width: of the network, as :class:`quorate.models.ResNet` takes them.
        exits: after how many blocks each exit lies, rising, the last after all of them; by default at the end of every residual stage.
        branch: channels of a 3×3 convolution in each exit but the last; none by default.
        combine: which prediction the exits so far make: the "last" one alone, or the mean of "probs" or of "logits".
        normalise: a module for the raw input, such as ``data.normalise()``; the first stage applies it.

    Attributes:
        shared: names of the parameters that more than one exit reads.

    Raises:
        ValueError: exits that do not rise to all blocks, an unknown combine, or what :class:`quorate.models.ResNet` refuses.
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        depth: int = 20,
        stem: Literal["cifar", "imagenet"] = "cifar",
        width: int | None = None,
        exits: Sequence[int] | None = None,
        branch: int | None = None,
        combine: Combine = "last",
        normalise: nn.Module | None = None,
    ) -> None:
        super().__init__()
        choice("combine", combine, COMBINES)
        self.combine: Combine = combine
        after = exits_of(depth, exits)
        if branch is not None:
            branch = whole("branch", branch)
        network = ResNet(shape, classes, depth, stem, width)
        blocks = [block for name in network.layer_names for block in getattr(network, name)]
        parts: OrderedDict[str, nn.Module] = OrderedDict() if normalise is None else OrderedDict(normalise=normalise)
        parts |= {"conv1": network.conv1, "bn1": network.bn1, "relu": network.relu, "maxpool": network.maxpool}
        segments: list[ExitStage] = []
        for k, (start, stop) in enumerate(itertools.pairwise((0, *after))):
            parts |= {f"block{i}": blocks[i] for i in range(start, stop)}
            last = stop == len(blocks)
            channels = blocks[stop - 1].conv1.out_channels * blocks[stop - 1].expansion
            exit_ = nn.Sequential(OrderedDict(avgpool=network.avgpool, flatten=network.flatten, fc=network.fc))
            segments.append(ExitStage(k, last, nn.Sequential(parts), exit_ if last else head(channels, classes, branch)))
            parts = OrderedDict()
        self.segments = nn.ModuleList(segments)
        self.shared = tuple(
            f"segments.{k}.trunk.{name}" for k, part in enumerate(segments[:-1]) for name, _ in part.trunk.named_parameters()
        )

    def stages(self) -> list[nn.Module]:
        """One stage per exit, ``exit0`` …; run in order they compute what :meth:`forward` does, bit for bit."""
        return list(self.segments)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → logits (K, B, classes), from the first exit to the last."""
        logits: list[Tensor] = []
        carry: dict[str, Tensor] = {}
        for stage in self.segments:
            members, carry = stage(x, carry)
            logits.append(members)
        return torch.cat(logits)
