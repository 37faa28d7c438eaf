"""Random crop and flip as a pure function of (seed, epoch, sample id).

The usual augmentation of small images (He et al., arXiv 1512.03385, §4.2: pad, random crop of the original size,
horizontal flip with p = ½). With u_k the k-th uniform number of a sample (`quorate.data.counter`) and p the padding

    dy = ⌊u₀ (2p + 1)⌋,  dx = ⌊u₁ (2p + 1)⌋,  flipped = u₂ < ½
    out[c, i, j] = padded[c, dy + i, dx + (W − 1 − j if flipped else j)]

so neither batch, order, worker nor a resume changes what a sample looks like in an epoch.

Shapes: x (B, C, H, W) raw values, ids (B,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quorate.data.counter import counter, uniforms

__all__ = ["Augmentation", "crop_flip", "uniforms"]


def crop_flip(x: Tensor, pad: int, fill: float, dy: Tensor, dx: Tensor, flipped: Tensor) -> Tensor:
    """Pad by `pad` with `fill`, cut the H×W window at (dy, dx) out of each image, mirror it where `flipped`.

    x: (B, C, H, W); its dtype and device are kept. dy, dx: (B,) int64 in [0, 2·pad]. flipped: (B,) bool. A new tensor.
    """
    if x.device.type == "cpu" and x.dtype is not torch.bfloat16:
        return torch.from_numpy(_crop_flip(x.detach().numpy(), pad, fill, dy.numpy(), dx.numpy(), flipped.numpy()))
    height, width = x.shape[2:]
    padded = F.pad(x, (pad, pad, pad, pad), value=fill)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, 2·pad + 1, 2·pad + 1, H, W)
    crops = windows[torch.arange(len(x), device=x.device), :, dy, dx]
    return torch.where(flipped[:, None, None, None], crops.flip(3), crops)


def _crop_flip(x: np.ndarray, pad: int, fill: float, dy: np.ndarray, dx: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """The same in NumPy: a few small copies, which PyTorch's thread pool only slows down."""
    batch, channels, height, width = x.shape
    padded = np.full((batch, channels, height + 2 * pad, width + 2 * pad), fill, x.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    crops = windows[np.arange(batch), :, dy, dx]
    crops[flipped] = crops[flipped, ..., ::-1]
    return np.ascontiguousarray(crops)


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding by `pad` pixels of raw value `fill`, and horizontal flip with p = ½ if `flip`.

    Raises ValueError for a negative or non-integer pad, a flip that is no bool, a fill that is not finite.
    """

    pad: int = 0
    flip: bool = False
    fill: float = 0

    def __post_init__(self) -> None:
        counter(self.pad, "pad")
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be True or False, got {self.flip!r}")
        if isinstance(self.fill, bool) or not isinstance(self.fill, (int, float)) or not math.isfinite(self.fill):
            raise ValueError(f"fill must be a finite number, a raw pixel value, got {self.fill!r}")

    def check(self, shape: tuple[int, ...], integer: bool) -> None:
        """ValueError unless inputs of `shape` (without the batch), uint8 if `integer`, can be augmented so."""
        if len(shape) != 3:
            raise ValueError(
                f"augmentation needs images of shape (C, H, W), got {tuple(shape)}: use augmentation=None for other inputs"
            )
        if self.pad >= min(shape[1:]):
            raise ValueError(
                f"pad must be less than height and width, got pad={self.pad} for {shape[1]}×{shape[2]} images: "
                "a crop could miss the image altogether; choose a smaller pad"
            )
        if integer and not (self.fill == int(self.fill) and 0 <= self.fill <= 255):
            raise ValueError(f"fill must be a whole number in 0..255 for uint8 images, got {self.fill!r}")

    def apply(self, x: Tensor, seed: int, epoch: int, ids: np.ndarray) -> Tensor:
        """The augmented batch: a new tensor of x's shape, dtype and device.

        x: (B, C, H, W) uint8 or floating, raw values. seed, epoch: ints ≥ 0. ids: (B,) integers, the samples' ids.
        Raises ValueError for another shape or dtype, a pad or fill that does not suit x, or not one id per image.
        """
        if x.dtype is not torch.uint8 and not x.dtype.is_floating_point:
            raise ValueError(f"images must be uint8 or floating point, got {x.dtype}: convert them first")
        self.check(tuple(x.shape[1:]), integer=x.dtype is torch.uint8)
        if np.shape(ids) != (len(x),):
            raise ValueError(f"ids must hold one id per image, shape ({len(x)},), got shape {np.shape(ids)}")
        vertical, horizontal, mirror = (uniforms(seed, epoch, ids, draw) for draw in range(3))

        def offset(u: np.ndarray) -> Tensor:
            return torch.from_numpy((u * (2 * self.pad + 1)).astype(np.int64)).to(x.device)

        flipped = torch.from_numpy(self.flip & (mirror < 0.5)).to(x.device)
        return crop_flip(x, self.pad, self.fill, offset(vertical), offset(horizontal), flipped)
