"""Which taps go together: tables worked by hand for students of other widths, depths and resolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quorate.distil.links import Incompatible
from quorate.distil.matching import first_features, joints, matching, positions
from quorate.distil.student import Joint
from quorate.graphs.segments import Boundary, chain


def b(*shape: int, axis: int | None = 1) -> Boundary:
    return Boundary(shape, axis)


def test_taps_match_by_positions_and_then_by_relative_depth() -> None:
    taps = [
        b(8, 16, 16),
        b(8, 16, 16),
        b(8, 8, 8),
        b(8, 4, 4),
        b(8, 4, 4),
        b(
            8,
        ),
    ]
    for target, depth, expected in (
        (b(4, 16, 16), 0.1, 0),
        (b(4, 16, 16), 0.3, 1),
        (b(4, 8, 8), 0.9, 2),  # stride before depth
        (b(4, 4, 4), 0.99, 4),
        (b(4, 4, 4), 0.5, 3),
        (b(4, 2, 2), 0.1, 3),  # the nearest number of positions; of equal ones the depth
        (b(4, 10, 10), 0.9, 1),  # 16 × 16 rather than 8 × 8, though that is nearer
        (b(4, 32, 32), 0.1, 0),  # there is none with as many
        (b(5), 0.2, 5),
        (b(4, 6, axis=2), 0.5, None),
    ):
        assert matching(target, depth, taps) == expected
    assert matching(b(4, 16, 16), 0.1, taps, 1) == 1
    assert matching(b(4, 16, 16), 0.1, taps, 2) == 2
    assert matching(b(5), 0.1, taps, 6) is None
    assert [positions(t) for t in (taps[0], taps[5], b(7, 3, axis=2), b(7, 3, axis=None))] == [256, 1, 7, 1]


def test_joints_of_students_of_other_sizes() -> None:
    one = (b(8, 16, 16), b(16, 8, 8), b(32, 4, 4), b(32))
    two = (b(4, 16, 16), b(4, 16, 16), b(8, 8, 8), b(8, 8, 8), b(8))  # deeper and narrower
    coarse = (b(4, 8, 8), b(8, 4, 4), b(16, 2, 2), b(16))
    assert joints("all", two, [one]) == [Joint(0, 0, 0), Joint(1, 0, 0), Joint(2, 0, 1), Joint(3, 0, 1), Joint(4, 0, 3)]
    assert joints("all", coarse, [one]) == [Joint(0, 0, 1), Joint(1, 0, 2), Joint(2, 0, 2), Joint(3, 0, 3)]
    assert joints("all", one, [coarse], least=1) == [Joint(1, 0, 0), Joint(2, 0, 1), Joint(3, 0, 3)]
    assert joints("all", coarse, [one, two], [2, 5]) == [Joint(0, 0, 2), Joint(1, 0, 2), Joint(2, 0, 2), Joint(3, 0, 3)]
    assert joints("last", two, [coarse, one]) == [Joint(4, 1, 3)]
    assert joints("last", two[:4], [coarse, one]) == [Joint(3, 1, 1)]  # the last of theirs that fits, to the last of its own
    assert joints("last", (b(4, 2, 2),), [one]) == [Joint(0, 0, 2)]
    assert joints("last", (b(4, 32, 32),), [one]) == []  # never from fewer positions
    assert joints("last", two, [one], [3], least=5) == []
    for none in (joints("none", two, [one]), joints("all", two, []), joints("all", (), [one]), joints("last", two, [one, ()])):
        assert none == []


def test_a_stem_that_does_not_fit_is_left_out() -> None:
    flat = chain(nn.Sequential(nn.Flatten(), nn.Linear(120, 6), nn.Linear(6, 3)), torch.randn(2, 4, 30))
    with pytest.raises(Incompatible, match="same positions"):
        first_features(flat, [(b(4, 30),)], [0])
    for earlier, first in (([], []), ([()], [0]), ([(b(6),)], [1])):
        with pytest.raises(Incompatible, match="same positions"):
            first_features(flat, earlier, first)
