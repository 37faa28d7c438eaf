"""mixup and CutMix: a batch's inputs combined with those of the same batch in another order, and the losses in the same shares.

Sources: mixup, Zhang et al. 2018 (arXiv 1710.09412), §2, eq. 1; CutMix, Yun et al. 2019 (arXiv 1905.04899), §3.1, eqs. 1 and 2.
Once per batch a share λ ~ Beta(α, α) and a permutation π of its rows are drawn; for members with inputs of their own, once per member.

    mixup     x̃_i = λ x_i + (1 − λ) x_π(i)
    CutMix    x̃_i = x_π(i) in a box of ⌊H √(1 − λ)⌋ × ⌊W √(1 − λ)⌋ pixels about a uniform centre, cut at the border, x_i outside;
              λ becomes the share of pixels outside

    classes   loss = λ · loss(ŷ, y) + (1 − λ) · loss(ŷ, y_π), which for cross-entropy is the loss of the mixed one-hot targets
    targets   loss(ŷ, λ y + (1 − λ) y_π), mixup only

Raw inputs are mixed; since normalisation is affine, mixup of normalised inputs is the same. uint8 inputs become float32 by mixup.
Everything is a pure function of (seed, step), or (member's seed, step), so a resumed run draws the same.

Shapes: x (B, C, H, W), for mixup (B, …); y (B,) classes or (B, D) targets; of members' own, with an M in front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quorate.data import Data
from quorate.training.inputs import member_seed
from quorate.training.settings import Settings

STREAM = 0x6D6978  # tells these draws from the loader's, which are seeded by (seed, epoch)


@dataclass(frozen=True)
class Mix:
    """What is done to one batch: the share λ of the own row, the order π (B,) of the partners, CutMix's box (rows, columns)."""

    share: float
    order: np.ndarray
    box: tuple[slice, slice] | None = None


def cut(share: float, centre: tuple[int, int], size: tuple[int, int]) -> tuple[float, tuple[slice, slice]]:
    """λ and the box's centre (row, column) in images of size (H, W) → the share of pixels outside, and the box."""
    sides = []
    for middle, length in zip(centre, size, strict=True):
        side = math.floor(length * math.sqrt(1 - share))
        first = middle - side // 2
        sides.append(slice(max(first, 0), min(first + side, length)))
    rows, columns = sides
    inside = (rows.stop - rows.start) * (columns.stop - columns.start)
    return 1 - inside / (size[0] * size[1]), (rows, columns)


def draw(settings: Settings, step: int, shape: tuple[int, ...], member: int = 0) -> Mix | None:
    """What a training step does to its batch of ``shape`` (B, …): None without mixing; with both, one of them with p = ½ each.

    Of a batch of its own, what is done to that of ``member``; member 0's draw is the one that is shared.
    """
    if not (settings.mixup or settings.cutmix):
        return None
    rng = np.random.default_rng([member_seed(settings.seed, member), step, STREAM])
    boxed = settings.cutmix > 0 and (settings.mixup == 0 or rng.random() < 0.5)
    alpha = settings.cutmix if boxed else settings.mixup
    share, order = float(rng.beta(alpha, alpha)), rng.permutation(shape[0])
    if not boxed:
        return Mix(share, order)
    height, width = shape[2:]
    share, box = cut(share, (int(rng.integers(height)), int(rng.integers(width))), (height, width))
    return Mix(share, order, box)


def mix(x: Tensor, y: Tensor, by: Mix | None) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """The mixed inputs, and the (share, targets) whose losses add up to the batch's; x and y stay as they are."""
    if by is None:
        return x, [(1.0, y)]
    order = torch.from_numpy(by.order).to(x.device)
    if by.box is None:
        x = x if x.is_floating_point() else x.float()
        mixed = by.share * x + (1 - by.share) * x[order]
    else:
        mixed = x.clone()
        mixed[:, :, by.box[0], by.box[1]] = x[order][:, :, by.box[0], by.box[1]]
    if y.is_floating_point():  # targets of a regression
        return mixed, [(1.0, by.share * y + (1 - by.share) * y[order])]
    return mixed, [(by.share, y), (1 - by.share, y[order])]


def mix_each(x: Tensor, y: Tensor, by: Sequence[Mix | None]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The same for each member's batch by itself: x (M, B, …), y (M, B, …) → the mixed inputs, and (shares (M,), targets (M, B, …))."""
    if all(member is None for member in by):
        return x, [(torch.ones(len(by), dtype=torch.float64, device=x.device), y)]
    done = [mix(*member) for member in zip(x, y, by, strict=True)]
    mixed = [inputs for inputs, _ in done]
    if any(inputs.is_floating_point() for inputs in mixed):  # mixup makes them so, CutMix doesn't
        mixed = [inputs if inputs.is_floating_point() else inputs.float() for inputs in mixed]
    parts = []
    for part in zip(*(shared for _, shared in done), strict=True):
        shares = torch.tensor([share for share, _ in part], dtype=torch.float64, device=x.device)
        parts.append((shares, torch.stack([targets for _, targets in part])))
    return torch.stack(mixed), parts


def check_mixing(settings: Settings, data: Data) -> None:
    """A ValueError if CutMix is asked for with inputs that are not images, or with targets in place of classes."""
    if settings.cutmix > 0 and len(data.shape) != 3:
        raise ValueError(
            f"cutmix={settings.cutmix} needs images (C, H, W), {data.name} has inputs of shape {data.shape}: set cutmix=0, or use mixup"
        )
    if settings.cutmix > 0 and data.task == "regression":
        raise ValueError(f"cutmix={settings.cutmix} is for classes, {data.name} is a regression: set cutmix=0, or use mixup")
