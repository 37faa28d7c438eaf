"""Which tap of an earlier student goes with which tap of a new one.

Source: Dennis et al. 2023 (arXiv 2302.10093), §4, where links join layers of students of different sizes. Taps match by stage and stride:
of the taps that a projection can reach the one whose positions are as many (or the nearest number, never fewer if it can be helped), and
of those the one at the nearest relative depth,

    tap = argmin_{k: P exists} (n_k < n, |ln n_k / n|, |(k + 1)/T_s − (l + 1)/T|)        n positions, of T taps the one at l

the first of equal ones. Taps in front of a student's first layer with weights hold its input, which every student has: they are not linked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from quorate.distil.links import Incompatible, check
from quorate.distil.student import ChainStudent, Joint
from quorate.graphs.segments import Boundary, Chain

Links = Literal["none", "last", "all"]
LINKS: tuple[Links, ...] = ("none", "last", "all")


def feature_tap(student: Chain | Any) -> int:
    """The first tap of a student (or a chain) with features, behind a layer with weights; past all taps if there is none."""
    first = student.first if isinstance(student, ChainStudent) else 0
    if first:  # what it starts from are features already
        return first
    return next(
        (tap for tap, segment in enumerate(student.segments) if any(True for _ in segment.parameters())), len(student.segments)
    )


def joints(
    kind: Links,
    own: Sequence[Boundary],
    earlier: Sequence[Sequence[Boundary]],
    first: Sequence[int] | None = None,
    least: int = 0,
) -> list[Joint]:
    """The links of a kind from earlier students' taps to a student's own; none where no tap fits.

    Args:
        own, earlier: taps of the student and of those before it.
        first: the first tap of each earlier student that is linked; None for 0.
        least: the same of the student's own.
    """
    if kind == "none" or not earlier:
        return []
    begins = [0] * len(earlier) if first is None else list(first)
    if kind == "last":
        for tap in reversed(range(begins[-1], len(earlier[-1]))):
            for at in reversed(range(least, len(own))):
                if fits(earlier[-1][tap], own[at]) and positions(earlier[-1][tap]) >= positions(own[at]):
                    return [Joint(at, len(earlier) - 1, tap)]
        return []
    found = []
    for at in range(least, len(own)):
        for student, taps in enumerate(earlier):
            theirs = matching(own[at], (at + 1) / len(own), taps, begins[student])
            if theirs is not None:
                found.append(Joint(at, student, theirs))
    return found


def first_features(made: Chain, earlier: Sequence[Sequence[Boundary]], first: Sequence[int]) -> Joint:
    """The joint by which a student starts from the first features of the student before. Raises Incompatible where none fits."""
    if earlier and len(earlier[-1]) > first[-1]:
        tap = next((tap for tap in range(first[-1], len(earlier[-1])) if positions(earlier[-1][tap]) > 1), first[-1])
        source = earlier[-1][tap]
        for at in range(feature_tap(made), len(made.boundaries) - 1):
            if fits(source, made.boundaries[at]) and positions(made.boundaries[at]) == positions(source):
                return Joint(at, len(earlier) - 1, tap)
    raise Incompatible("no features of the student before fit into this student: expected activations of the same positions")


def fits(source: Boundary, target: Boundary) -> bool:
    """Whether a link leads from one to the other."""
    try:
        check(source, target)
    except Incompatible:
        return False
    return True


def positions(boundary: Boundary) -> int:
    """How many positions (pixels, steps, tokens) an activation has; 1 where its channels are all there is, or not known."""
    if boundary.axis is None:
        return 1
    return math.prod(size for axis, size in enumerate(boundary.shape, 1) if axis != boundary.axis)


def matching(target: Boundary, depth: float, taps: Sequence[Boundary], first: int = 0) -> int | None:
    """The tap, from ``first`` on, that goes with a target at a relative depth in (0, 1]; None where no projection leads there."""
    reachable = [tap for tap in range(first, len(taps)) if fits(taps[tap], target)]

    def strangeness(tap: int) -> tuple[bool, float, float]:
        ratio = math.log(positions(taps[tap]) / positions(target))
        return ratio < 0, abs(ratio), abs((tap + 1) / len(taps) - depth)

    return min(reachable, key=strangeness, default=None)
