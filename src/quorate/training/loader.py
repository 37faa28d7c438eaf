"""A loader that knows where it is: the same batches after a resume, whatever the step it was stopped at.

The order of epoch e is a permutation drawn from (seed, e) alone, and augmentation from (seed, e, id), so the loader's whole state is
two numbers, also where every member has a seed, and so an order or augmentation, of its own (:mod:`quorate.training.inputs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quorate.data import Augmentation, Split
from quorate.training.inputs import member_seed
from quorate.training.settings import OPTIONS, Inputs


class Loader:
    """Batches (x (B, …) raw, y (B,)) of a split; x (M, B, …), or both, for members that have inputs of their own.

    Args:
        split: the rows.
        batch_size: rows per batch, of each member.
        seed: of order and augmentation.
        shuffle: a new order every epoch, and the last incomplete batch left out if there is a full one (training); else in
            order and complete.
        augmentation: applied to every batch; None for none.
        inputs: ``"shared"``; ``"own_augmentation"``, x is (M, B, …); ``"own_order"``, x is (M, B, …) and y (M, B), shuffled only.
        members: M, for other than ``"shared"`` inputs.

    Iterating begins where the last iteration or :meth:`load_state_dict` stopped: what was left of an epoch comes first.

    Raises:
        ValueError: a batch size or a number of members below 1, a negative seed, one beyond 32 bits for inputs of their own, other
            inputs, or orders that are not shuffled.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        augmentation: Augmentation | None = None,
        inputs: Inputs = "shared",
        members: int = 1,
    ) -> None:
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size={batch_size}, seed={seed}: expected at least one row per batch and a seed ≥ 0")
        if inputs not in OPTIONS["inputs"] or (inputs == "own_order" and not shuffle):
            raise ValueError(
                f"inputs={inputs!r}, shuffle={shuffle}: expected 'shared', 'own_augmentation', or 'own_order' with shuffle=True"
            )
        if members < 1 or (inputs != "shared" and seed >= 2**32):
            raise ValueError(f"members={members}, seed={seed}: expected at least one member, and a seed < 2³² for its own inputs")
        self.split, self.batch_size, self.seed, self.shuffle, self.augmentation = split, batch_size, seed, shuffle, augmentation
        self.inputs, self.members = inputs, members
        self.epoch, self.step = 0, 0

    def __len__(self) -> int:
        whole = len(self.split) // self.batch_size
        return whole if self.shuffle and whole else -(-len(self.split) // self.batch_size)

    def order(self, epoch: int, member: int = 0) -> np.ndarray:
        """Row numbers (N,) in the order of an epoch; member 0's is the one that is shared."""
        if not self.shuffle:
            return np.arange(len(self.split))
        return np.random.default_rng([member_seed(self.seed, member), epoch]).permutation(len(self.split))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.step >= len(self):
            self.epoch, self.step = self.epoch + 1, 0
        orders = [self.order(self.epoch, m) for m in range(self.members if self.inputs == "own_order" else 1)]
        while self.step < len(self):
            taken = slice(self.step * self.batch_size, (self.step + 1) * self.batch_size)
            batch = self._batch([order[taken] for order in orders])
            self.step += 1
            yield batch
        if not self.shuffle:
            self.step = 0

    def _batch(self, rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The batch of one order's rows that members share, or of each member's."""
        drawn = [self.split.batch(part) for part in rows]
        if self.inputs == "shared":
            return self._augmented(drawn[0][0], rows[0], 0), drawn[0][1]
        if self.inputs == "own_augmentation":
            x, y = drawn[0]
            return torch.stack([self._augmented(x, rows[0], m) for m in range(self.members)]), y
        x = torch.stack([self._augmented(x, part, m) for m, ((x, _), part) in enumerate(zip(drawn, rows, strict=True))])
        return x, torch.stack([y for _, y in drawn])

    def _augmented(self, x: Tensor, rows: np.ndarray, member: int) -> Tensor:
        if self.augmentation is None:
            return x
        return self.augmentation.apply(x, member_seed(self.seed, member), self.epoch, self.split.ids[rows])

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batches given out in it."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
