"""Sizes that may be partly unknown: a whole number times named unknowns, such as 64 · batch · conv1.2.

A traced graph knows its channels and little of the rest; products and quotients of sizes are what a reshape needs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

BATCH = "batch"


@dataclass(frozen=True)
class Size:
    """`number` times the product of `unknown`, which is sorted."""

    number: int = 1
    unknown: tuple[str, ...] = ()

    def __mul__(self, other: Size) -> Size:
        return Size(self.number * other.number, tuple(sorted(self.unknown + other.unknown)))

    def over(self, other: Size) -> Size | None:
        """The exact quotient, None where there is none."""
        mine, theirs = Counter(self.unknown), Counter(other.unknown)
        if theirs - mine or not other.number or self.number % other.number:
            return None
        return Size(self.number // other.number, tuple(sorted((mine - theirs).elements())))

    def times(self, ratio: Fraction) -> Size | None:
        """This size times `ratio`, None where that is not whole."""
        number = self.number * ratio
        return Size(number.numerator, self.unknown) if number.denominator == 1 else None

    @property
    def known(self) -> bool:
        """Whether this is a plain number."""
        return not self.unknown

    def __str__(self) -> str:
        names = " · ".join((*(() if self.number == 1 and self.unknown else (str(self.number),)), *self.unknown))
        return names or "1"


def product(sizes: Iterable[Size]) -> Size:
    """The product of any number of sizes."""
    return math.prod(sizes, start=Size())


def regroup(before: list[Size], after: list[Size]) -> list[tuple[list[int], list[int]]] | None:
    """The smallest groups of neighbouring dimensions that a reshape turns into one another; None if the totals differ.

    ((B, 6, N), (B, 2, 3, N)) → [([0], [0]), ([1], [1, 2]), ([2], [3])]. Both orders are kept, as a reshape keeps them.
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        left, right = [i], [j]
        a, b = before[i], after[j]
        i, j = i + 1, j + 1
        while a != b:
            short_after, short_before = b.over(a) is None, a.over(b) is None
            if (short_after and j == len(after)) or (short_before and i == len(before)):
                return None
            if short_after:
                b, j = b * after[j], j + 1
                right.append(j - 1)
            if short_before:
                a, i = a * before[i], i + 1
                left.append(i - 1)
        groups.append((left, right))
    for rest, sizes, side in ((range(i, len(before)), before, 0), (range(j, len(after)), after, 1)):
        for k in rest:
            if sizes[k] != Size() or not groups:
                return None
            groups[-1][side].append(k)
    return groups
