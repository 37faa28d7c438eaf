"""The forms that the live weights of a layer may take, and how masks move within them.

Sources: dropping by magnitude and growing by score, Evci et al. 2020 (RigL, arXiv 1911.11134, algorithm 1); N:M sparsity, Mishra et al.
2021 (arXiv 2104.08378). Constant fan-in is in :mod:`quorate.tickets.fan_in`. One move at a rate r of a mask A with nnz live weights:

    n = ⌈r · nnz⌉,    B = A without its n of least |w|,    new mask = B with the n places outside B of the highest scores

so that the count stays exact. What was dropped may be grown at once. Ties go to the lowest index, in row-major order. In a pattern, only
masks of its form are drawn, and growth fills what the form leaves open:

    Unstructured   any mask
    NM             n live ones in each m consecutive inputs, at every kernel position; a group grows as many as it lost
    Blocks         blocks of rows × columns (outputs × inputs), at every kernel position, live or dead in whole; |w| and scores are
                   summed over a block and blocks are moved

Shapes: weights, masks and scores are (out, in, …); a layer whose weights are all live belongs to every pattern and never moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from quorate.tickets.density import sizes
from quorate.tickets.masks import check_mask, draw
from quorate.tickets.selection import count_of, highest_among, highest_of_rows


class Pattern(Protocol):
    """A form of masks. Frozen and without state: what a move needs is given to it."""

    def live(self, name: str, shape: Sequence[int], wanted: int) -> int:
        """The legal count of live weights nearest to the wanted one.

        Raises:
            ValueError: a wanted count outside 1 … N, or a shape that can't have the pattern; the layer is named.
        """

    def draw(self, shape: Sequence[int], live: int, rng: np.random.Generator) -> Tensor:
        """A random mask of the form, on the CPU, with ``live`` live weights, a count that :meth:`live` gave.

        Raises:
            ValueError: another count, or a shape that can't have the pattern.
        """

    def fits(self, mask: Tensor) -> bool:
        """Whether a mask has the form."""

    def move(self, weight: Tensor, mask: Tensor, rate: float, score: Tensor, *, live: int | None = None) -> Tensor:
        """The mask after one move; on the weight's device, a new tensor, or the mask itself if all of it is live.

        Args:
            weight: (out, in, …).
            mask: bool, of the form, as is the result.
            rate: the share of live weights to drop, in [0, 1]; 0 moves nothing.
            score: ≥ 0 (:mod:`quorate.tickets.growth`), the higher the sooner grown.
            live: what :meth:`live` gave for this layer; by default the mask's own count.

        Raises:
            ValueError: a rate out of range; a mask or score that is not of the weight's shape; a mask that lacks the form or has
                another count than ``live``; NaN among scores or weights, a score below 0.
        """


def check_wanted(name: str, shape: Sequence[int], wanted: int) -> int:
    """N of a layer, of whose weights 1 … N are wanted live."""
    size = sizes({name: shape})[name]
    if not 1 <= wanted <= size:
        raise ValueError(f"weight {name!r} of shape {tuple(shape)} is to keep {wanted} live weights: expected 1 … {size}")
    return size


def check_drawn(pattern: Pattern, shape: Sequence[int], live: int) -> None:
    """A count to be drawn is one the pattern can have."""
    nearest = pattern.live("drawn", shape, live)
    if nearest != live:
        raise ValueError(
            f"{pattern} can't have {live} live weights in shape {tuple(shape)}: the nearest legal count is {nearest}"
        )


def check_move(pattern: Pattern, weight: Tensor, mask: Tensor, rate: float, score: Tensor) -> int:
    """The live count of a mask that can be moved."""
    check_mask(mask, "mask", weight.shape)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate={rate!r}: expected the share of live weights to drop, in [0, 1]")
    if score.shape != weight.shape:
        raise ValueError(f"score has shape {tuple(score.shape)}: expected {tuple(weight.shape)}, one per weight")
    if not bool((score >= 0).all()):
        raise ValueError("score has NaN or values below 0: expected scores ≥ 0, such as |gradient| of a step without overflow")
    if bool(weight.isnan().any()):
        raise ValueError("weight has NaN: expected numbers, the training has diverged")
    if not pattern.fits(mask):
        raise ValueError(f"mask of shape {tuple(mask.shape)} has not the form of {pattern}: expected one that it drew or moved")
    return int(mask.count_nonzero())


def check_count(count: int, live: int | None) -> None:
    """The count of a mask is the one its layer was given."""
    if live not in (None, count):
        raise ValueError(f"mask has {count} live weights: expected live={live}, counts never change")


def dropped(weight: Tensor, mask: Tensor, n: int) -> Tensor:
    """The mask without its n live weights of least magnitude."""
    return mask & ~highest_among(-weight.abs(), mask, n)


def grown(mask: Tensor, score: Tensor, n: int) -> Tensor:
    """The mask with its n dead places of the highest scores."""
    return mask | highest_among(score, ~mask, n)


def filled(mask: Tensor, score: Tensor, fan_in: Tensor | int) -> Tensor:
    """Every row of an (R, F) mask with dead places of the highest scores, up to ``fan_in`` (R, 1) live ones."""
    return mask | highest_of_rows(score.masked_fill(mask, -1), fan_in - mask.sum(1, keepdim=True))


def random_rows(rows: int, width: int, fan_in: int, rng: np.random.Generator) -> Tensor:
    """(rows, width) with ``fan_in`` live ones in each row, at random."""
    mask = np.zeros((rows, width), bool)
    np.put_along_axis(mask, rng.random((rows, width)).argsort(1, kind="stable")[:, :fan_in], True, 1)
    return torch.from_numpy(mask)


@dataclass(frozen=True)
class Unstructured:
    """Any weight may be live: the form of SET, ITOP and RigL."""

    def live(self, name: str, shape: Sequence[int], wanted: int) -> int:
        """``wanted`` itself; see :class:`Pattern`, as for all of the following."""
        check_wanted(name, shape, wanted)
        return wanted

    def draw(self, shape: Sequence[int], live: int, rng: np.random.Generator) -> Tensor:
        """All masks of this count are equally likely."""
        check_drawn(self, shape, live)
        return draw(shape, live, rng)

    def fits(self, mask: Tensor) -> bool:  # noqa: ARG002
        """Every mask does."""
        return True

    def move(self, weight: Tensor, mask: Tensor, rate: float, score: Tensor, *, live: int | None = None) -> Tensor:
        """Least magnitudes are dropped and highest scores grown, over the whole layer."""
        count = check_move(self, weight, mask, rate, score)
        check_count(count, live)
        if count == mask.numel():
            return mask
        n = count_of(rate, count)
        return grown(dropped(weight, mask, n), score, n)


@dataclass(frozen=True)
class NM:
    """n live weights in every m consecutive inputs, for kernels that skip the rest; 2:4 is what NVIDIA's sparse tensor cores run.

    The density of its layers is n / m: ask for the uniform distribution at this density, other layers being dense.

    Args:
        n: live weights per group.
        m: inputs per group; a layer's inputs (dimension 1 of its weight) must be a multiple.

    Raises:
        ValueError: unless 0 < n < m.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ValueError(f"NM(n={self.n}, m={self.m}): expected 0 < n < m, such as NM(2, 4)")

    def live(self, name: str, shape: Sequence[int], wanted: int) -> int:
        """N · n / m, which must be what is wanted, or N."""
        size = check_wanted(name, shape, wanted)
        if wanted == size:
            return size
        if shape[1] % self.m:
            raise ValueError(
                f"weight {name!r} of shape {tuple(shape)} has {shape[1]} inputs: expected a multiple of {self.m} for {self}, or pass "
                f"{name!r} in dense=[...]"
            )
        if wanted != size * self.n // self.m:
            raise ValueError(
                f"weight {name!r} is to keep {wanted} of {size} weights: {self} keeps {size * self.n // self.m}, ask for the uniform "
                f"density {self.n / self.m:.6g}, or pass {name!r} in dense=[...]"
            )
        return wanted

    def draw(self, shape: Sequence[int], live: int, rng: np.random.Generator) -> Tensor:
        """Each group's live weights are drawn alike and independently."""
        check_drawn(self, shape, live)
        if live == math.prod(shape):
            return torch.ones(tuple(shape), dtype=torch.bool)
        return self._joined(random_rows(math.prod(shape) // self.m, self.m, self.n, rng), shape)

    def _groups(self, tensor: Tensor) -> Tensor:
        """(out, in, …) as (groups, m)."""
        return tensor.movedim(1, -1).reshape(-1, self.m)

    def _joined(self, groups: Tensor, shape: Sequence[int]) -> Tensor:
        return groups.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()

    def fits(self, mask: Tensor) -> bool:
        """Whether every group has n live ones, or all of the mask is live."""
        if bool(mask.all()):
            return True
        return mask.shape[1] % self.m == 0 and bool((self._groups(mask).sum(1) == self.n).all())

    def move(self, weight: Tensor, mask: Tensor, rate: float, score: Tensor, *, live: int | None = None) -> Tensor:
        """Least magnitudes of the whole layer are dropped; each group grows as many as it lost."""
        count = check_move(self, weight, mask, rate, score)
        check_count(count, live)
        if count == mask.numel():
            return mask
        kept = dropped(weight, mask, count_of(rate, count))
        return self._joined(filled(self._groups(kept), self._groups(score), self.n), mask.shape)


@dataclass(frozen=True)
class Blocks:
    """Blocks of weights live or dead in whole, so that a kernel reads several inputs for several outputs at a time.

    A block is ``rows`` consecutive outputs by ``columns`` consecutive inputs at one kernel position.

    Args:
        rows: of a block; a layer's outputs (dimension 0 of its weight) must be a multiple.
        columns: of a block; a layer's inputs (dimension 1) must be a multiple.

    Raises:
        ValueError: rows or columns below 1.
    """

    rows: int = 4
    columns: int = 4

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"Blocks(rows={self.rows}, columns={self.columns}): expected at least 1 of each")

    def _grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0] // self.rows, shape[1] // self.columns, *shape[2:])

    def live(self, name: str, shape: Sequence[int], wanted: int) -> int:
        """The nearest number of whole blocks, at least one; N if N is wanted."""
        size = check_wanted(name, shape, wanted)
        if wanted == size:
            return size
        if shape[0] % self.rows or shape[1] % self.columns:
            fitting = f"Blocks({math.gcd(shape[0], self.rows)}, {math.gcd(shape[1], self.columns)})"
            raise ValueError(
                f"weight {name!r} of shape {tuple(shape)} does not divide into {self}: expected multiples of {self.rows} outputs and "
                f"{self.columns} inputs, {fitting} would fit, or pass {name!r} in dense=[...]"
            )
        area = self.rows * self.columns
        return max(round(wanted / area), 1) * area

    def draw(self, shape: Sequence[int], live: int, rng: np.random.Generator) -> Tensor:
        """All masks of so many blocks are equally likely."""
        check_drawn(self, shape, live)
        if live == math.prod(shape):
            return torch.ones(tuple(shape), dtype=torch.bool)
        return self._spread(draw(self._grid(shape), live // (self.rows * self.columns), rng))

    def _spread(self, blocks: Tensor) -> Tensor:
        return blocks.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)

    def _split(self, tensor: Tensor) -> Tensor:
        """(out, in, …) as (out / rows, in / columns, …, rows · columns)."""
        grid = self._grid(tensor.shape)
        cut = tensor.reshape(grid[0], self.rows, grid[1], self.columns, *tensor.shape[2:])
        return cut.movedim((1, 3), (-2, -1)).flatten(-2)

    def fits(self, mask: Tensor) -> bool:
        """Whether every block is live or dead in whole, or all of the mask is live."""
        if bool(mask.all()):
            return True
        if mask.shape[0] % self.rows or mask.shape[1] % self.columns:
            return False
        blocks = self._split(mask)
        return torch.equal(blocks.all(-1), blocks.any(-1))

    def move(self, weight: Tensor, mask: Tensor, rate: float, score: Tensor, *, live: int | None = None) -> Tensor:
        """⌈rate · live blocks⌉ of the least sums of |w| are dropped, as many of the highest sums of scores grown."""
        count = check_move(self, weight, mask, rate, score)
        check_count(count, live)
        if count == mask.numel():
            return mask
        wide = torch.promote_types(weight.dtype, torch.float32)
        blocks = self._split(mask).all(-1)
        n = count_of(rate, int(blocks.count_nonzero()))
        kept = dropped(self._split(weight).abs().sum(-1, dtype=wide), blocks, n)
        return self._spread(grown(kept, self._split(score).sum(-1, dtype=wide), n))
