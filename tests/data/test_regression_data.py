"""Targets of a regression: splits, standardisation in the model's last layer, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from quorate.data import Data, GaussianOutput, Split, arrays

Y = np.random.default_rng(0).normal([3, -700], [2, 50], (80, 2))
X = np.random.default_rng(1).normal(size=(80, 5))


def test_targets_are_kept_and_described() -> None:
    data = arrays((X, Y), targets=["width", "height"])
    assert (data.task, data.targets, data.width, data.classes) == ("regression", ("width", "height"), 4, ())
    _, y = data.test.batch([1, 0])
    assert (y.dtype, tuple(y.shape)) == (torch.float32, (2, 2))
    np.testing.assert_allclose(y.numpy(), Y[data.test.ids[[1, 0]]].astype(np.float32))
    assert (data.test[0][1] == y[1]).all()
    np.testing.assert_allclose(data.target_mean, Y[data.train.ids].mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.target_std, Y[data.train.ids].std(0), rtol=1e-6)
    assert data.summary()["targets"] == ["width", "height"]
    assert "targets width, height" in repr(data)
    assert "2 targets" in repr(data.train)
    other = Y.copy()
    other[data.test.ids[0], 1] += 1
    assert arrays((X, other), targets=["width", "height"]).fingerprint() != data.fingerprint()
    assert arrays((X, Y), targets=["height", "width"]).fingerprint() != data.fingerprint()


def test_one_target_and_a_constant_one() -> None:
    data = arrays((X, np.full(80, 4.0)), targets=["y"])
    assert (data.train.targets, data.target_mean, data.target_std, data.width) == (1, (4.0,), (1.0,), 2)


def test_output_layer() -> None:
    layer = GaussianOutput([3.0, -700.0], [2.0, 50.0])
    raw = torch.tensor([[0.5, -1.0, 0.3, -40.0]])
    out = layer(raw)
    variances = [math.log(math.log1p(math.exp(b)) + 1e-6) + 2 * math.log(s) for b, s in ((0.3, 2.0), (-40.0, 50.0))]
    torch.testing.assert_close(out, torch.tensor([[4.0, -750.0, *variances]]))
    torch.testing.assert_close(layer(raw.expand(3, 1, 4)), out.expand(3, 1, 4))
    assert "targets=2" in repr(layer)


@pytest.mark.parametrize("width", [2, 3, 5])
def test_output_layer_wants_two_values_per_target(width: int) -> None:
    with pytest.raises(ValueError, match=rf"outputs for 2 targets must be 4, .* got {width}: build it with classes=data.width"):
        GaussianOutput([3.0, -700.0], [2.0, 50.0])(torch.zeros(7, width))


@pytest.mark.parametrize("y", [1.7e9 + np.random.default_rng(0).normal(size=80), np.stack([Y[:, 0], 1e12 + np.arange(80.0)], 1)])
def test_targets_that_float32_would_blur(y: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"target [01] of y has values around .* which float32 would blur: subtract a constant"):
        arrays((X, y), targets=["a", "b"][: 1 if y.ndim == 1 else 2])
    Split(X[:2], np.array([50.0, 50.0001]), np.arange(2))  # too few rows to tell


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((), (), "one value per target, got 0 and 0"),
        ((1.0,), (1.0, 2.0), "one value per target, got 1 and 2"),
        ((1.0,), (0.0,), "std finite and positive"),
        ((math.nan,), (1.0,), "mean must be finite"),
    ],
)
def test_output_layer_refuses(mean: Any, std: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GaussianOutput(mean, std)


def split(y: np.ndarray | None, start: int) -> Split:
    return Split(X[:4], y, np.arange(start, start + 4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": ("a",)}, r"train split has 2 targets: expected float y of 1 targets \(a\)"),
        ({"classes": ("p", "q")}, r"data have classes or targets, got \['p', 'q'\] and \['a', 'b'\]"),
        ({"targets": (), "classes": ("p", "q")}, "train split has targets .* the data have classes"),
        ({"test": split(np.arange(4), 30)}, "test split has integer labels: expected float y of 2 targets"),
        ({"test": split(None, 30)}, "test split has no y"),
        ({"targets": ("a", "a")}, "targets: names must be non-empty strings without repeats"),
    ],
)
def test_data_refuse(change: dict[str, Any], said: str) -> None:
    parts = {part: split(Y[:4], 10 * k) for k, part in enumerate(("train", "validation", "calibration", "test"))}
    with pytest.raises(ValueError, match=said):
        Data.build(**({"name": "toy", **parts, "ood": {}, "classes": (), "targets": ("a", "b")} | change))


def test_float_labels_need_names_and_classifications_have_no_output_layer() -> None:
    with pytest.raises(ValueError, match=r"y holds floats, of 2 targets: name them \(targets=…\) for a regression"):
        arrays((X, Y))
    with pytest.raises(ValueError, match=r"targets \['a'\] need float y, got whole numbers: convert y with astype\(float\)"):
        arrays((X, np.arange(80)), targets=["a"])
    with pytest.raises(ValueError, match=r"got classes \['u', 'v'\] and targets \['a', 'b'\]: give one of them"):
        arrays((X, Y), targets=["a", "b"], classes=["u", "v"])
    with pytest.raises(ValueError, match="targets must be a sequence of names, got the one string 'ab'"):
        arrays((X, Y), targets="ab")
    for wrong in (5, None):
        with pytest.raises(ValueError, match=r"train must be a pair \(x, y\) of arrays, got"):
            arrays(wrong, groups=[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="arrays has classes: its models end in logits"):
        arrays((X, np.arange(80) % 2)).output()
    assert arrays((X, np.arange(80) % 2)).task == "classification"


def test_groups_may_not_be_on_two_sides() -> None:
    y = np.arange(4) % 2
    parts = {
        part: Split(X[:4], y, np.arange(4) + 10 * k, np.arange(4) + (3 if part == "test" else 10 * k))
        for k, part in enumerate(("train", "validation", "calibration", "test"))
    }
    with pytest.raises(ValueError, match=r"got 1 groups in both train and test, such as \[3\]: split by groups"):
        Data.build("toy", **parts, ood={}, classes=("a", "b"))
