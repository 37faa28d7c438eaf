"""A loader that knows where it is: the same batches after a resume, whatever the step it was stopped at.

The order of epoch e is a permutation drawn from (seed, e) alone, and augmentation from (seed, e, id), so the loader's whole state is
two numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from quorate.data import Augmentation, Split


class Loader:
    """Batches (x (B, …) raw, y (B,)) of a split.

    Args:
        split: the rows.
        batch_size: rows per batch.
        seed: of order and augmentation.
        shuffle: a new order every epoch, and the last incomplete batch left out if there is a full one (training); else in
            order and complete.
        augmentation: applied to every batch; None for none.

    Iterating begins where the last iteration or :meth:`load_state_dict` stopped: what was left of an epoch comes first.

    Raises:
        ValueError: a batch size below 1, or a negative seed.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int = 0, shuffle: bool = False, augmentation: Augmentation | None = None
    ) -> None:
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size={batch_size}, seed={seed}: expected at least one row per batch and a seed ≥ 0")
        self.split, self.batch_size, self.seed, self.shuffle, self.augmentation = split, batch_size, seed, shuffle, augmentation
        self.epoch, self.step = 0, 0

    def __len__(self) -> int:
        whole = len(self.split) // self.batch_size
        return whole if self.shuffle and whole else -(-len(self.split) // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Row numbers (N,) in the order of an epoch."""
        if not self.shuffle:
            return np.arange(len(self.split))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.split))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.step >= len(self):
            self.epoch, self.step = self.epoch + 1, 0
        order = self.order(self.epoch)
        while self.step < len(self):
            rows = order[self.step * self.batch_size : (self.step + 1) * self.batch_size]
            x, y = self.split.batch(rows)
            if self.augmentation is not None:
                x = self.augmentation.apply(x, self.seed, self.epoch, self.split.ids[rows])
            self.step += 1
            yield x, y
        if not self.shuffle:
            self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batches given out in it."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
