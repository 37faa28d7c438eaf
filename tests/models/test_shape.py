"""The one place where model sizes are checked."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from quorate.models.shape import choice, image_shape, input_shape, probability, real, sequence_shape, whole, widths


def test_accepts_what_is_an_int_and_returns_plain_ones():
    assert [type(v) for v in widths("w", [np.int64(3), 4])] == [int, int]
    assert image_shape(torch.Size([3, 8, 9])) == (3, 8, 9)
    assert input_shape([7]) == (7,)
    assert whole("classes", np.int32(2)) == 2
    assert whole("n", 0, least=0) == 0
    assert widths("hidden", ()) == ()
    assert sequence_shape([np.int32(3), 50]) == (3, 50)
    assert [probability("p", p) for p in (0, np.float32(0.5), Fraction(1, 4))] == [0.0, 0.5, 0.25]
    assert choice("pool", "mean", ("class", "mean")) == "mean"


@pytest.mark.parametrize("value", ["3", None, True, math.nan, 1j])
def test_what_is_no_number(value):
    assert math.isnan(real(value))
    with pytest.raises(ValueError, match=r"rate: expected a probability in \[0, 1\), got .*; 0 is no rate"):
        probability("rate", value)


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True])
def test_whole_refuses(value):
    with pytest.raises(ValueError, match=r"classes: expected an int of at least 1, got .*; pass a whole number"):
        whole("classes", value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: widths("hidden", 64), r"hidden: expected a tuple of ints, got 64; pass for example \(64,\)"),
        (lambda: widths("hidden", (64, 0)), r"hidden\[1\]: expected an int of at least 1, got 0"),
        (lambda: widths("width", (6,), count=2), r"width: expected 2 ints, got 1 in \(6,\); pass one per layer"),
        (lambda: input_shape(()), r"shape: expected at least one dimension, got \(\); pass"),
        (lambda: image_shape((8, 8)), r"shape: expected \(channels, height, width\), got \(8, 8\); pass"),
        (
            lambda: sequence_shape((1, 8, 8)),
            r"shape: expected \(channels, length\), got \(1, 8, 8\); pass the shape of one sequence",
        ),
        (lambda: sequence_shape((8, 0)), r"shape\[1\]: expected an int of at least 1, got 0"),
        (lambda: probability("dropout", 1.0), r"dropout: expected a probability in \[0, 1\), got 1.0; 0 is no dropout"),
        (lambda: choice("pool", "max", ("class", "mean")), 'pool: expected "class" or "mean", got \'max\'; pass one of them'),
        (lambda: image_shape((2, 3, 8, 8)), r"got \(2, 3, 8, 8\); pass the shape of one image, no batch"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
