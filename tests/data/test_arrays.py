"""Data sets from arrays: which rows end up where, under which ids, with every combination of given splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quorate.data import Augmentation, Split, arrays
from quorate.data.arrays import assemble
from quorate.data.partition import partition

RNG = np.random.default_rng(0)


def pair(rows: int, shape: tuple[int, ...] = (1, 4, 4), classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (rows, *shape)).astype(np.uint8), np.arange(rows) % classes


TRAIN, TEST, VAL, CAL = pair(90), pair(12), pair(9), pair(6)


def test_cuts_both_splits_off_the_training_rows() -> None:
    data = arrays(TRAIN, TEST)
    rows = partition(TRAIN[1], [0.8, 0.1, 0.1], 0)
    for part, expected in zip((data.train, data.validation, data.calibration), rows, strict=True):
        np.testing.assert_array_equal(part.ids, expected)
        np.testing.assert_array_equal(part.x, TRAIN[0][expected])
        np.testing.assert_array_equal(part.y, TRAIN[1][expected])
    assert data.test.ids.tolist() == list(range(90, 102))
    assert data.name == "arrays"
    assert data.classes == ("0", "1", "2")
    assert data.augmentation is None


@pytest.mark.parametrize("given", ["validation", "calibration"])
def test_cuts_the_one_that_is_missing(given: str) -> None:
    cut = {"validation": "calibration", "calibration": "validation"}[given]
    data = arrays(TRAIN, TEST, **{given: VAL})
    train, other = partition(TRAIN[1], [0.9, 0.1], 0)
    np.testing.assert_array_equal(data.train.ids, train)
    np.testing.assert_array_equal(getattr(data, cut).ids, other)
    np.testing.assert_array_equal(getattr(data, given).x, VAL[0])
    assert getattr(data, given).ids.tolist() == list(range(102, 111))


def test_cuts_nothing_when_all_are_given() -> None:
    data = arrays(TRAIN, TEST, VAL, CAL)
    assert data.train.ids.tolist() == list(range(90))
    assert data.validation.ids.tolist() == list(range(102, 111))
    assert data.calibration.ids.tolist() == list(range(111, 117))


def test_every_argument_counts() -> None:
    far = np.zeros((5, 1, 4, 4), np.uint8)
    data = arrays(
        TRAIN,
        TEST,
        fractions=(0.5, 0.2, 0.1),
        seed=9,
        ood={"far": far},
        classes=("x", "y", "z"),
        augmentation=Augmentation(pad=2, flip=True),
        name="mine",
    )
    for part, rows in zip(("train", "validation", "calibration"), partition(TRAIN[1], [0.5, 0.2, 0.1], 9), strict=True):
        np.testing.assert_array_equal(data.splits()[part].ids, rows)
    assert data.ood["far"].ids.tolist() == [0, 1, 2, 3, 4]
    assert data.ood["far"].y is None
    assert data.classes == ("x", "y", "z")
    assert data.augmentation == Augmentation(pad=2, flip=True)
    assert data.name == "mine"


def test_features_in_double_precision() -> None:
    x = RNG.standard_normal((60, 5))
    data = arrays((x, np.arange(60) % 2), (x[:4] + 1, np.zeros(4, np.int8)))
    assert data.train.x.dtype == np.float32
    assert data.shape == (5,)
    np.testing.assert_array_equal(data.train.x, x[data.train.ids].astype(np.float32))


X, Y = TRAIN
NAN = np.where(np.arange(90)[:, None] == 7, np.nan, np.zeros((90, 2)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": X}, r"train must be a pair \(x, y\) of arrays, got ndarray"),
        ({"validation": (X,)}, "validation must be a pair"),
        ({"train": (X, None)}, "train split needs labels"),
        ({"train": (X, Y[1:])}, "^train: y must be"),
        ({"train": (NAN, Y)}, "^train: x must be finite .* row 7"),
        ({"test": (X[:0], Y[:0])}, "^test: x must be .* at least one row"),
        ({"train": (X[0, 0, 0, 0], Y)}, "^train: x must be"),
        ({"ood": {"far": X.astype(int)}}, "^ood 'far': x must be uint8"),
        ({"ood": {"far": X[:, 0]}}, "in the ood 'far' split"),
        ({"fractions": (0.8, 0.2)}, "fractions must be 3, for train, validation, calibration, got"),
        ({"fractions": (0.8, 0.1, 0.1), "validation": VAL}, "must be 2, for train, calibration"),
        ({"fractions": (1.0,), "validation": VAL, "calibration": CAL}, r"no split is cut .* fractions=\(1.0,\)"),
        ({"train": (X, Y * 50)}, "without gaps, got label 100 among 90 rows"),
        ({"train": (X, Y * 2)}, r"none for 2 of 5 classes, such as \['1', '3'\]"),
        ({"test": (X[:2], np.array([0, 3]))}, "got label 3 in row 1 of the test split"),
        ({"classes": ("a", "b")}, "got label 2 in row"),
        ({"classes": "abc"}, "one string 'abc'"),
        ({"train": (X[:12], Y[:12])}, r"class 0 has 4 row\(s\)"),
    ],
)
def test_refuses(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        arrays(**{"train": TRAIN, "test": TEST, **changes})
    assert "\n" not in str(caught.value)


def test_assemble_needs_training_labels() -> None:
    bare = Split(X, None, np.arange(90))
    with pytest.raises(ValueError, match="train split needs labels"):
        assemble("a", bare, bare, None, None, None, 0, {}, None, None)
