"""A corrupted test set that is made batch by batch, when asked for, and never kept.

Shapes: as the split's; a corruption is a function (x (B, *shape), severity, seed, ids (B,)) → array of x's shape and dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quorate.data.corruptions.catalogue import check_white, corruption
from quorate.data.corruptions.image import ImageCorruption, check_severity
from quorate.data.counter import counter
from quorate.data.split import Split

Function = Callable[[NDArray, int, int, NDArray], NDArray]


class Corrupted:
    """The rows of a split under one corruption; goes wherever rows are taken: `quorate.collect(ensemble, Corrupted(…))`.

    Args:
        split: the clean rows, in memory or on disk.
        name: of a corruption (`quorate.data.corruptions.CORRUPTIONS`), or any function (x, severity, seed, ids) → new x.
        severity: 1 … 5.
        seed: ≥ 0; a row depends on (seed, name, severity, id, its values) alone.
        high: images: the raw value that is white; 255 for uint8 by default.
        mean, std: sequences and spectrograms: per channel, `data.mean` and `data.std`.
        decibel: spectrograms: raw values per decibel, where the corruption is told in decibels.

    What a corruption does not need of the last four is passed over. Raises ValueError for unknown names, other severities or seeds, inputs
    that can't be corrupted so, missing units; and later, from a function of yours, for another shape or dtype than it got.
    """

    def __init__(
        self,
        split: Split,
        name: str | Function,
        severity: int,
        seed: int = 0,
        *,
        high: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        decibel: float | None = None,
    ) -> None:
        self.split, self.severity, self.seed = split, check_severity(severity), counter(seed, "seed")
        self.ids, self.y, self.groups = split.ids, split.y, split.groups
        self.apply: Callable[..., NDArray[Any]]
        if not isinstance(name, str):
            if not callable(name):
                raise ValueError(f"a corruption must be a name or a function (x, severity, seed, ids), got {name!r}")
            self.name, self.apply = getattr(name, "__name__", type(name).__name__), name
            return
        found = corruption(name)
        found.check_shape(split.shape)
        if isinstance(found, ImageCorruption):
            check_white(split.x, high)
            self.apply = partial(found, high=high)
        else:
            found.units(np.asarray(split.x[:1]), mean, std, decibel)
            self.apply = partial(found, mean=mean, std=std, decibel=decibel)
        self.name = name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return self.split.shape

    def __len__(self) -> int:
        return len(self.split)

    def __repr__(self) -> str:
        return f"Corrupted({self.split!r}, {self.name!r}, severity {self.severity}, seed {self.seed})"

    def batch(self, rows: Sequence[int] | NDArray | Tensor) -> tuple[Tensor, Tensor]:
        """(x corrupted, y) of the rows asked for, as `Split.batch` gives them clean."""
        x, y = self.split.batch(rows)
        index = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows, np.int64)
        clean = x.numpy()
        result = self.apply(clean, self.severity, self.seed, self.ids[index])
        if not isinstance(result, np.ndarray) or result.shape != clean.shape or result.dtype != clean.dtype:
            got = f"{result.shape} of {result.dtype}" if isinstance(result, np.ndarray) else type(result).__name__
            raise ValueError(f"corruption {self.name} must return an array {clean.shape} of {clean.dtype}, got {got}")
        return torch.from_numpy(np.ascontiguousarray(result)), y
