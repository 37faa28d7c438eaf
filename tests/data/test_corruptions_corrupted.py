"""Corrupted test sets: lazy, row for row the function's, collected as any split; which corruptions apply to what data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quorate import collect
from quorate.data import Data, Split, arrays, digits
from quorate.data.corruptions import CORRUPTIONS, Corrupted, corruption, corruptions_for
from quorate.data.store import cached
from quorate.ensemble import DeepEnsemble

NAMES = {kind: list(named) for kind, named in CORRUPTIONS.items()}


def split(*shape: int, rows: int = 6, dtype: type = np.uint8, seed: int = 0) -> Split:
    x = np.random.default_rng(seed).integers(0, 256, (rows, *shape)).astype(dtype)
    return Split(x, np.arange(rows) % 2, 10 + np.arange(rows))


def data(*shape: int, dtype: type = np.uint8) -> Data:
    parts = [split(*shape, rows=20, dtype=dtype, seed=seed) for seed in range(4)]
    pairs = [(part.x, part.y) for part in parts]
    return arrays(*pairs, classes=("a", "b"))  # type: ignore[arg-type]


def test_rows_are_the_functions() -> None:
    clean = split(3, 16, 16)
    shifted = Corrupted(clean, "fog", 4, 7)
    assert (len(shifted), shifted.shape, shifted.name, shifted.severity) == (6, (3, 16, 16), "fog", 4)
    np.testing.assert_array_equal(shifted.ids, clean.ids)
    np.testing.assert_array_equal(shifted.y, clean.y)
    assert "'fog', severity 4, seed 7" in repr(shifted)
    for rows in ([3, 0, 3], np.array([5]), torch.tensor([1, 2]), []):
        x, y = shifted.batch(rows)
        at = np.asarray(rows, np.int64)
        assert x.dtype is torch.uint8
        np.testing.assert_array_equal(x, corruption("fog")(np.asarray(clean.x)[at], 4, 7, clean.ids[at]))
        np.testing.assert_array_equal(y, clean.y[at])


def test_nothing_is_computed_or_kept_until_asked() -> None:
    calls: list[tuple[int, int, int]] = []

    def darker(x: np.ndarray, severity: int, seed: int, ids: np.ndarray) -> np.ndarray:
        calls.append((len(ids), severity, seed))
        return x // (1 + severity)

    clean = split(3, 16, 16)
    shifted = Corrupted(clean, darker, 3, 5)
    assert shifted.name == "darker"
    assert not calls
    x, _ = shifted.batch([1, 2])
    shifted.batch([1, 2])
    np.testing.assert_array_equal(x, clean.x[1:3] // 4)
    assert calls == [(2, 3, 5), (2, 3, 5)]


def test_collect() -> None:
    clean = split(3, 8, 8, rows=11)
    ensemble = DeepEnsemble([nn.Sequential(nn.Flatten(), Scaled(), nn.Linear(192, 2)) for _ in range(2)])
    found = collect(ensemble, Corrupted(clean, "contrast", 5), batch_size=4)
    kept = Split(corruption("contrast")(np.asarray(clean.x), 5, 0, clean.ids), clean.y, clean.ids)
    expected = collect(ensemble, kept)
    np.testing.assert_array_equal(found.ids, clean.ids)
    np.testing.assert_array_equal(found.truth(), clean.y)
    np.testing.assert_allclose(found.values[1], expected.values[1], rtol=1e-5)


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() / 255


def test_rows_on_disk(tmp_path: Path) -> None:
    clean = split(1, 9, 9)
    stored, _ = cached(tmp_path, {}, 6, (1, 9, 9), np.uint8, lambda i: np.asarray(clean.x)[i], "x")
    one, other = (Corrupted(Split(x, None, clean.ids), "shot_noise", 2) for x in (clean.x, stored))
    np.testing.assert_array_equal(one.batch([4, 1])[0], other.batch([4, 1])[0])
    assert other.y is None


def test_units_go_where_they_are_needed() -> None:
    clean = split(3, 20, dtype=np.float32)
    units = {"mean": (1, 2, 3), "std": (4, 5, 6)}
    x, _ = Corrupted(clean, "gain", 2, high=255, decibel=1, **units).batch([0])
    np.testing.assert_array_equal(x, corruption("gain")(np.asarray(clean.x)[:1], 2, 0, clean.ids[:1], **units))
    float_images = split(3, 8, 8, dtype=np.float32)
    x, _ = Corrupted(float_images, "fog", 2, high=255, **units).batch([0])
    np.testing.assert_array_equal(x, corruption("fog")(np.asarray(float_images.x)[:1], 2, 0, float_images.ids[:1], high=255))


@pytest.mark.parametrize("high", [np.int64(16), np.float32(16), np.uint8(16), 16.0])
def test_numpys_numbers_are_numbers(high: float) -> None:
    found = digits()
    assert corruptions_for(found, "image", high=high) == NAMES["image"]
    one, other = (Corrupted(found.test, "fog", 2, high=each).batch([0, 1])[0] for each in (high, 16))
    np.testing.assert_array_equal(one, other)


def test_built_in_digits_need_their_white() -> None:
    found = digits()
    with pytest.raises(ValueError, match=r"no pixel of the first 64 rows is above 16, so that 255 is hardly white.*16 for the"):
        corruptions_for(found, "image")
    with pytest.raises(ValueError, match="255 is hardly white"):
        Corrupted(found.test, "fog", 1)
    assert corruptions_for(found, "image", high=16) == NAMES["image"]
    assert corruptions_for(found, "image", high=255) == NAMES["image"]  # said, not guessed
    x, _ = Corrupted(found.test, "brightness", 3, high=16).batch(np.arange(10))
    assert x.max() == 16


def test_which_apply() -> None:
    assert corruptions_for(data(3, 8, 9), "image") == corruptions_for(data(1, 8, 9), "image") == NAMES["image"]
    coloured = {"snow", "frost", "brightness", "jpeg_compression"}
    assert corruptions_for(data(2, 8, 9), "image") == [name for name in NAMES["image"] if name not in coloured]
    assert corruptions_for(data(3, 30), "sequence") == NAMES["sequence"]
    assert corruptions_for(data(1, 30, dtype=np.float32), "sequence") == [n for n in NAMES["sequence"] if n != "channel_dropout"]
    assert corruptions_for(data(1, 20, 10), "log-mel", decibel=3.2) == NAMES["log-mel"]
    assert corruptions_for(data(1, 20, 10), "log-mel") == ["frame_shift", "band_drop", "time_mask"]


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((9,), "image", r"inputs of shape \(9,\) are a table's: no corruptions apply to tables"),
        ((9,), "sequence", "a table's"),
        ((3, 20), "image", r"are no image inputs, \(C, H, W\): choose the kind that they are"),
        ((3, 20, 20), "sequence", r"are no sequence inputs, \(C, L\)"),
        ((3, 16, 16), "log-mel", r"inputs of shape \(3, 16, 16\) are no log-mel inputs, \(1, frames, mels\): choose the kind"),
        ((3, 7, 20), "image", "no corruption applies: .* at least 8×8"),
        ((3, 5), "sequence", "no corruption applies: .* length 8 or more"),
        ((3, 20), "picture", "kind must be one of image, sequence, log-mel, got 'picture'"),
        ((3, 20), ["image"], r"kind must be one of image, sequence, log-mel, got \['image'\]"),
    ],
)
def test_none_applies(shape: tuple[int, ...], kind: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        corruptions_for(data(*shape), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": "frog"}, r"unknown corruption 'frog'; did you mean 'fog'\? \(there are: gaussian_noise"),
        ({"name": 3}, r"a name or a function \(x, severity, seed, ids\), got 3"),
        ({"severity": 0}, "severity must be"),
        ({"seed": -1}, "seed must be"),
        ({"name": "gain"}, "gain needs sequence inputs"),
        ({"split": split(2, 16, 16), "name": "snow"}, "snow works on colours"),
        ({"split": split(3, 16, 16, dtype=np.float32)}, "which value of float images is white"),
        ({"high": 300}, r"high= \(on the command line --corruption_high\) must be a whole number"),
        (
            {"split": split(3, 16), "name": "gain", "mean": "abc", "std": (1, 1, 1)},
            "mean and std must be 3 finite numbers, one per",
        ),
        (
            {"split": split(3, 16), "name": "gain", "mean": (0, 0, 0), "std": (1, object(), 1)},
            "mean and std must be 3 finite numbers",
        ),
        (
            {"split": split(1, 16, 16), "name": "loudness", "mean": (1,), "std": (1,), "decibel": "1"},
            r"decibel= \(on the command line --corruption_decibel\) must be a positive finite number, .*, got '1'",
        ),
        ({"split": split(3, 16), "name": "gain"}, "needs the raw mean and std"),
        (
            {"split": split(1, 16, 16), "name": "loudness", "mean": (1,), "std": (1,)},
            r"told in decibels: give decibel= \(on the command line --corruption_decibel\)",
        ),
    ],
)
def test_refused_at_once(change: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        Corrupted(**({"split": split(3, 16, 16), "name": "fog", "severity": 1} | change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            lambda x: x[:, :1],
            r"corruption <lambda> must return an array \(2, 3, 16, 16\) of uint8, got \(2, 1, 16, 16\) of uint8",
        ),
        (lambda x: x / 2, "got .* of float64"),
        (lambda x: torch.from_numpy(x), "got Tensor"),
        (lambda _: None, "got NoneType"),
    ],
)
def test_functions_of_yours_are_checked(result: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Corrupted(split(3, 16, 16), lambda x, *_: result(x), 1).batch([0, 1])  # type: ignore[operator]
