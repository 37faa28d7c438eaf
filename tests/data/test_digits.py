"""The built-in digits against scikit-learn's own arrays, and their golden fingerprint."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from quorate.data import Augmentation, digits

IMAGES, TARGET = load_digits().images, load_digits().target


def test_default() -> None:
    data = digits()
    assert data.shape == (1, 8, 8)
    assert data.classes == tuple("01234567")
    assert data.augmentation == Augmentation(pad=1)
    assert data.train.x.dtype == np.uint8
    ids = np.concatenate([s.ids for s in data.splits().values()])
    np.testing.assert_array_equal(np.sort(ids), np.flatnonzero(TARGET < 8))
    for s in data.splits().values():
        np.testing.assert_array_equal(s.x[:, 0], IMAGES[s.ids])
        np.testing.assert_array_equal(s.y, TARGET[s.ids])
    assert list(data.ood) == ["held_out"]
    assert data.ood["held_out"].y is None
    np.testing.assert_array_equal(data.ood["held_out"].ids, np.flatnonzero(TARGET >= 8))
    np.testing.assert_array_equal(data.ood["held_out"].x[:, 0], IMAGES[TARGET >= 8])
    for name, share in zip(data.splits(), (0.45, 0.2, 0.1, 0.25), strict=True):
        assert abs(len(data.splits()[name]) - share * (TARGET < 8).sum()) < 8


def test_golden_fingerprint() -> None:
    assert digits().fingerprint() == GOLDEN


GOLDEN = "6703c96d68e68f4ac4ea3bee16fe5adcfb406e9bd2f38f8c046ea642555d5598"


def test_other_classes_fractions_and_seed() -> None:
    data = digits(held_out=(5, 0), fractions=(0.2, 0.1, 0.1, 0.1), seed=4)
    assert data.classes == ("1", "2", "3", "4", "6", "7", "8", "9")
    for s in data.splits().values():
        assert s.y is not None
        np.testing.assert_array_equal([int(data.classes[c]) for c in s.y], TARGET[s.ids])
    assert abs(sum(map(len, data.splits().values())) - 0.5 * (~np.isin(TARGET, (0, 5))).sum()) < 8
    np.testing.assert_array_equal(data.ood["held_out"].ids, np.flatnonzero(np.isin(TARGET, (0, 5))))
    other = digits(held_out=(5, 0), fractions=(0.2, 0.1, 0.1, 0.1), seed=5)
    assert len(np.intersect1d(data.train.ids, other.train.ids)) < 0.4 * len(data.train)


def test_nothing_held_out() -> None:
    data = digits(held_out=())
    assert data.ood == {}
    assert len(data.classes) == 10
    assert sum(map(len, data.splits().values())) == 1797


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out": (10,)}, r"different classes in 0\.\.9"),
        ({"held_out": range(9)}, "at least two of 10"),
        ({"fractions": (0.5, 0.5)}, "four, for train, validation, calibration, test"),
        ({"fractions": (0.5, 0.5, 0.5, 0.5)}, "at most 1"),
        ({"fractions": (0.99, 0.001, 0.001, 0.001)}, "it needs at least"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_refuses(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        digits(**changes)


def test_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "quorate\[train\]"'):
        digits()
