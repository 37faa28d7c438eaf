"""LeNet: parameters and MACs in closed form, sizes from 8×8 up, its refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate import cost
from quorate.models import LeNet


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 3),
    rows=st.integers(8, 19),
    columns=st.integers(8, 19),
    width=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    hidden=st.lists(st.integers(1, 5), max_size=2),
)
def test_counts(channels, rows, columns, width, hidden):
    model = LeNet((channels, rows, columns), 3, width, hidden)
    first, second = width
    sizes = [second * ((rows // 2 - 2) // 2) * ((columns // 2 - 2) // 2), *hidden, 3]
    linear = sum(a * b for a, b in itertools.pairwise(sizes))
    kernels = 25 * channels * first, 25 * first * second
    assert cost.parameters(model) == sum(kernels) + first + second + linear + sum(hidden) + 3
    positions = rows * columns, (rows // 2 - 2) * (columns // 2 - 2)
    macs = kernels[0] * positions[0] + kernels[1] * positions[1] + linear
    assert cost.macs(model, torch.zeros(1, channels, rows, columns)) == macs


def test_defaults_on_digits_of_28():
    model = LeNet((1, 28, 28), 10)
    assert cost.parameters(model) == (150 + 6) + (2400 + 16) + (576 * 120 + 120) + (120 * 84 + 84) + (840 + 10)
    assert cost.macs(model, torch.zeros(1, 1, 28, 28)) == 150 * 784 + 2400 * 144 + 576 * 120 + 120 * 84 + 840


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (1, 7, 8)}, "shape: expected an image of at least 8×8, got 7×8; enlarge the images or use MLP"),
        ({"shape": (1, 28, 7)}, "at least 8×8, got 28×7"),
        ({"shape": (28, 28)}, r"shape: expected \(channels, height, width\), got \(28, 28\)"),
        ({"width": (6, 16, 32)}, "width: expected 2 ints, got 3"),
        ({"width": (6, 0)}, r"width\[1\]: expected an int of at least 1, got 0"),
        ({"hidden": 84}, "hidden: expected a tuple of ints, got 84"),
        ({"classes": 2.5}, "classes: expected an int of at least 1, got 2.5"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        LeNet(**{"shape": (1, 28, 28), "classes": 10, **arguments})
