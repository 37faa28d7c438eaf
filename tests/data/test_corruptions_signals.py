"""Corruptions of sequences and log-mel spectrograms against their definitions; any batch and order; units that are missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quorate.data.corruptions import CORRUPTIONS, corruption, signal
from quorate.data.corruptions.drawing import Key, uniforms
from quorate.data.corruptions.signal import SignalCorruption, span

SIGNALS = [each for kind in ("sequence", "log-mel") for each in CORRUPTIONS[kind].values() if isinstance(each, SignalCorruption)]  # type: ignore[index]
MEAN, STD = (1.0, -2.0, 10.0), (0.5, 2.0, 30.0)
UNITS: dict[str, Any] = {"mean": MEAN, "std": STD, "decibel": 0.25}


def signals(rows: int, *shape: int, seed: int = 0) -> np.ndarray:
    mean, std = (np.reshape(v[: shape[0]], (-1, *[1] * (len(shape) - 1))) for v in (MEAN, STD))
    return (mean + std * np.random.default_rng(seed).normal(size=(rows, *shape))).astype(np.float32)


MEL: dict[str, Any] = {"x": signals(2, 1, 9, 9), "mean": (0,), "std": (1,)}


def run(name: str, x: np.ndarray, severity: int, seed: int = 0, ids: np.ndarray | None = None, **units: Any) -> np.ndarray:
    count = x.shape[1]
    given_ = {"mean": MEAN[:count], "std": STD[:count], "decibel": 0.25} | units
    return corruption(name)(x, severity, seed, np.arange(len(x)) if ids is None else ids, **given_)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_same_bytes_in_any_batch_and_order(data: st.DataObject) -> None:
    each = data.draw(st.sampled_from(SIGNALS))
    severity, seed, rows = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(1, 6))
    shape = [
        data.draw(st.integers(each.channels, 3 if each.kind == "sequence" else 1)),
        *(data.draw(st.integers(8, 20)) for _ in range(2 - (each.kind == "sequence"))),
    ]
    x = signals(rows, *shape, seed=seed % 1000)
    if data.draw(st.booleans()):
        x = np.clip(40 * x + 100, 0, 255).astype(np.uint8)
    ids = np.array(data.draw(st.lists(st.integers(-5, 10**12), min_size=rows, max_size=rows)), np.int64)
    before = x.copy()
    whole = run(each.name, x, severity, seed, ids)
    assert (whole.dtype, whole.shape) == (x.dtype, x.shape)
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(x, before)
    order = np.array(data.draw(st.permutations(range(rows))))
    np.testing.assert_array_equal(run(each.name, x[order], severity, seed, ids[order]), whole[order])
    for i in range(rows):
        np.testing.assert_array_equal(run(each.name, x[i : i + 1], severity, seed, ids[i : i + 1])[0], whole[i])


@pytest.mark.parametrize("each", SIGNALS)
def test_rows_at_a_time_are_not_seen(each: SignalCorruption, monkeypatch: pytest.MonkeyPatch) -> None:
    x = signals(5, 3, 9) if each.kind == "sequence" else signals(5, 1, 9, 8)
    whole = run(each.name, x, 3)
    monkeypatch.setattr(signal, "VALUES", 2 * x[0].size + 1)
    np.testing.assert_array_equal(run(each.name, x, 3), whole)


@pytest.mark.parametrize(("severity", "deviations"), [*enumerate((0.1, 0.2, 0.4, 0.7, 1), 1)])
def test_sensor_noise(severity: int, deviations: float) -> None:
    x = signals(40, 3, 100)
    off = (run("sensor_noise", x, severity) - x) / np.array(STD)[:, None] / deviations
    for channel in range(3):
        assert stats.kstest(off[:, channel].ravel(), "norm").pvalue > 0.005


@pytest.mark.parametrize(("severity", "share"), [*enumerate((0.05, 0.1, 0.2, 0.3, 0.5), 1)])
def test_channel_dropout(severity: int, share: float) -> None:
    x = np.random.default_rng(0).normal(size=(300, 20, 9)).astype(np.float32)
    mean = np.arange(20, dtype=np.float32)
    out = run("channel_dropout", x, severity, mean=mean, std=np.ones(20))
    dead = (out == mean[:, None]).all(2)
    assert (dead.sum(1) == round(20 * share)).all()
    np.testing.assert_array_equal(out[~dead], x[~dead])
    assert dead.mean(0) == pytest.approx(share, abs=4 * (share / 300) ** 0.5)
    assert ((run("channel_dropout", x[:, :2], severity, mean=(50, 60), std=(1, 1)) >= 50).all(2).sum(1) == 1).all()


@pytest.mark.parametrize(("severity", "share"), [*enumerate((0.02, 0.05, 0.1, 0.2, 0.3), 1)])
def test_time_shift(severity: int, share: float) -> None:
    x, places = signals(60, 3, 50), max(1, round(share * 50))
    seen = set()
    for row, out in zip(x, run("time_shift", x, severity), strict=True):
        later = np.concatenate([np.repeat(row[:, :1], places, 1), row[:, :-places]], 1)
        sooner = np.concatenate([row[:, places:], np.repeat(row[:, -1:], places, 1)], 1)
        assert (out == later).all() or (out == sooner).all()
        seen.add(bool((out == later).all()))
    assert seen == {True, False}


@pytest.mark.parametrize(("severity", "decibels"), [*enumerate((1, 2, 3, 4.5, 6), 1)])
def test_gain(severity: int, decibels: float) -> None:
    x = signals(50, 3, 30)
    factor = (run("gain", x, severity) - np.array(MEAN)[:, None]) / (x - np.array(MEAN)[:, None])
    told = 20 * np.log10(np.median(factor, 2))
    np.testing.assert_allclose(np.abs(told), decibels, atol=1e-3)
    assert 0.3 < (told > 0).mean() < 0.7
    assert (told > 0).std(1).max() > 0  # channels for themselves


@pytest.mark.parametrize(("severity", "deviations"), [*enumerate((0.25, 0.5, 1, 1.5, 2), 1)])
def test_drift(severity: int, deviations: float) -> None:
    x = signals(50, 3, 33)
    off = (run("drift", x, severity) - x) / np.array(STD)[:, None]
    signs = np.sign(off[..., -1:])
    np.testing.assert_allclose(off, signs * deviations * np.linspace(0, 1, 33), atol=1e-4)
    assert 0.3 < (signs > 0).mean() < 0.7


@pytest.mark.parametrize(("severity", "share"), [*enumerate((0.1, 0.2, 0.3, 0.4, 0.5), 1)])
def test_missing_span(severity: int, share: float) -> None:
    x, run_ = signals(200, 2, 40), round(40 * share)
    starts = set()
    for row, out in zip(x, run("missing_span", x, severity), strict=True):
        gone = np.flatnonzero((row != out).any(0))
        assert len(gone) == run_
        assert gone[-1] - gone[0] == run_ - 1
        np.testing.assert_array_equal(out[:, gone], np.repeat(row[:, gone[0] - 1 : gone[0]], run_, 1))
        starts.add(int(gone[0]))
    assert (min(starts), max(starts)) == (1, 40 - run_)


def test_spans_are_never_all() -> None:
    for length, share, first in ((8, 1.0, 0), (8, 1.0, 1), (9, 0.01, 1), (10, 0.5, 0)):
        start, mask = span(length, share, np.array([0.0001, 0.5, 0.9999]), first)
        assert (mask.sum(1) == min(max(1, round(share * length)), length - 1)).all()
        assert (start.min(), start.max()) == (first, length - mask[0].sum())


@pytest.mark.parametrize(("severity", "deviations"), [*enumerate((-1, -0.5, 0, 0.5, 1), 1)])
def test_noise_floor_adds_in_power(severity: int, deviations: float) -> None:
    x, ids, decibel = signals(3, 1, 12, 10), np.array([1, 2, 3]), 0.25
    drawn = -np.log(uniforms(Key(4, "noise_floor", severity, ids), 0, 1, 12, 10))
    power = 10 ** (x.astype(float) / decibel / 10) + drawn * 10 ** ((MEAN[0] + deviations * STD[0]) / decibel / 10)
    np.testing.assert_allclose(run("noise_floor", x, severity, 4, ids), 10 * decibel * np.log10(power), rtol=1e-5)
    silent = np.full((20, 1, 50, 40), -1000, np.float32)
    heard = 10 ** (run("noise_floor", silent, severity).astype(float) / decibel / 10)
    level = (MEAN[0] + deviations * STD[0]) / decibel
    assert 10 * math.log10(heard.mean()) == pytest.approx(level, abs=0.1)
    assert stats.kstest((heard / 10 ** (level / 10)).ravel(), "expon").pvalue > 0.005


@pytest.mark.parametrize(("severity", "decibels"), [*enumerate((3, 6, 9, 12, 15), 1)])
def test_loudness(severity: int, decibels: float) -> None:
    x = signals(40, 1, 12, 10)
    off = (run("loudness", x, severity) - x) / 0.25
    signs = np.sign(off[:, :, :1, :1])
    np.testing.assert_allclose(off, np.broadcast_to(signs * decibels, off.shape), atol=1e-3)
    assert 0.2 < (signs > 0).mean() < 0.8


@pytest.mark.parametrize(("severity", "share"), [*enumerate((0.02, 0.05, 0.1, 0.15, 0.2), 1)])
def test_frame_shift(severity: int, share: float) -> None:
    x, places = signals(30, 1, 40, 9), max(1, round(share * 40))
    seen = set()
    for row, out in zip(x[:, 0], run("frame_shift", x, severity)[:, 0], strict=True):
        later = np.concatenate([np.repeat(row[:1], places, 0), row[:-places]])
        assert (out == later).all() or (out == np.concatenate([row[places:], np.repeat(row[-1:], places, 0)])).all()
        seen.add(bool((out == later).all()))
    assert seen == {True, False}


@pytest.mark.parametrize(("name", "axis"), [("band_drop", 3), ("time_mask", 2)])
@pytest.mark.parametrize(("severity", "share"), [*enumerate((0.1, 0.15, 0.2, 0.3, 0.4), 1)])
def test_masks(name: str, axis: int, severity: int, share: float) -> None:
    x = signals(400, 1, 40, 20)
    out, length = run(name, x, severity), x.shape[axis]
    hidden = (out != x).any(axis=(1, 5 - axis))
    assert (hidden.sum(1) == round(share * length)).all()
    assert all(np.ptp(np.flatnonzero(row)) == row.sum() - 1 for row in hidden)
    assert (np.moveaxis(out, axis, 1)[hidden] == MEAN[0]).all()
    assert hidden.any(0).all()


def test_bytes_are_rounded_and_clipped() -> None:
    x = np.array([[[0, 10, 250, 255] * 3]], np.uint8)
    assert set(np.unique(run("drift", x, 5, mean=(0,), std=(1000,)))) <= {0, 10, 255, *range(256)}
    out = run("gain", x, 5, mean=(0,), std=(1,)).astype(int)
    assert set(out.ravel()) in ({0, 20, 255}, {0, 5, 125, 128})


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("gain", {"mean": None}, r"gain needs the raw mean and std of each channel: give mean=data.mean, std=data.std"),
        ("gain", {"std": None}, "needs the raw mean and std"),
        ("gain", {"std": (1.0, 2.0)}, "must be 3 finite numbers, one per channel"),
        ("gain", {"std": (1.0, 2.0, 0.0)}, "std above 0"),
        ("gain", {"mean": (1.0, 2.0, math.inf)}, "must be 3 finite numbers"),
        ("gain", {"x": signals(2, 3, 9).astype(np.float64)}, "needs uint8 or float32 values, got float64"),
        ("gain", {"x": signals(2, 3, 9, 9)}, r"gain needs sequence inputs \(C, L\) of length 8 or more, got shape \(3, 9, 9\)"),
        ("gain", {"x": signals(2, 3, 7)}, r"got shape \(3, 7\)"),
        ("gain", {"severity": 0}, "severity must be"),
        ("gain", {"ids": np.arange(5)}, "ids must be 2 integers"),
        ("channel_dropout", {"x": signals(2, 1, 9), "mean": (0,), "std": (1,)}, "needs at least 2 channels, got 1"),
        (
            "loudness",
            {**MEL, "decibel": None},
            r"told in decibels: give decibel= \(on .* --corruption_decibel\), the raw values per decibel",
        ),
        ("loudness", {**MEL, "decibel": 0}, r"decibel= \(.*\) must be a positive finite number"),
        ("loudness", {**MEL, "decibel": math.nan}, r"decibel= \(.*\) must be a positive finite number"),
        ("loudness", {**MEL, "decibel": True}, r"decibel= \(.*\) must be a positive finite number"),
        ("time_mask", {"x": signals(2, 3, 9)}, r"needs log-mel inputs \(1, frames, mels\)"),
        ("time_mask", {"x": signals(2, 3, 9, 9)}, r"log-mel inputs \(1, frames, mels\) of one channel, got shape \(3, 9, 9\)"),
    ],
)
def test_refusals(name: str, change: dict, expected: str) -> None:
    given_: dict = {"x": signals(2, 3, 9), "severity": 1, "seed": 0, "ids": np.arange(2)} | UNITS | change
    with pytest.raises(ValueError, match=expected) as error:
        corruption(name)(**given_)
    assert "\n" not in str(error.value)
