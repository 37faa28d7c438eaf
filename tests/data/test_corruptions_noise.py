"""Random numbers of rows against SciPy's distributions; the three noises against their definitions."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quorate.data.corruptions import corruption, drawing
from quorate.data.corruptions.drawing import Key, normals, poissons, uniforms
from quorate.data.counter import bits, splitmix64

MASK = 2**64 - 1


def test_uniforms_by_hand() -> None:
    ids = np.array([3, -1, 10**12])
    found = uniforms(Key(7, "fog", 2, ids), 5, 2, 3)
    name = int.from_bytes(hashlib.sha256(b"fog").digest()[:8], "little")
    for row, start in zip(found, bits(7, (name, 2, 5), ids), strict=True):
        for k, value in enumerate(row.reshape(-1)):
            drawn = int(splitmix64(0, np.array([(int(start) + k) & MASK], np.uint64))[0])
            assert value == ((drawn >> 12) + 0.5) / 2**52


def test_uniforms_stay_inside() -> None:
    highest = np.array([MASK, 0], np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "splitmix64", lambda *_: highest[None])
        top, bottom = uniforms(Key(0, "x", 1, np.arange(1)), 0, 2)[0]
    assert 0 < bottom < 1e-15
    assert 1 - 1e-15 < top < 1


def test_distributions() -> None:
    key = Key(1, "x", 1, np.arange(40))
    assert stats.kstest(uniforms(key, 0, 500).ravel(), "uniform").pvalue > 0.01
    assert stats.kstest(normals(key, 1, 500).ravel(), "norm").pvalue > 0.01
    streams = np.stack([uniforms(key, stream, 500).ravel() for stream in range(4)])
    assert np.abs(np.corrcoef(streams) - np.eye(4)).max() < 0.03
    rows = np.corrcoef(uniforms(key, 0, 500))
    assert np.abs(rows - np.eye(40)).max() < 0.25


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 600, width=32), min_size=1, max_size=30), st.integers(0, 1000))
def test_poissons_invert_the_distribution_function(rates: list[float], seed: int) -> None:
    key, lam = Key(seed, "x", 1, np.arange(2)), np.repeat(np.array([rates], np.float32), 2, 0)
    u = uniforms(key, 3, len(rates))
    found = poissons(lam, key, 3)
    np.testing.assert_array_equal(found, np.where(lam > 0, stats.poisson.ppf(u, np.maximum(lam.astype(float), 1e-300)), 0))
    with pytest.MonkeyPatch.context() as patch:  # many different rates: the other way to the same numbers
        patch.setattr(drawing, "FEW", 0)
        np.testing.assert_array_equal(poissons(lam, key, 3), found)


@pytest.mark.parametrize(("severity", "sigma"), [*enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1)])
def test_gaussian_noise(severity: int, sigma: float) -> None:
    x = np.full((20, 3, 32, 32), 128, np.uint8)
    off = (corruption("gaussian_noise")(x, severity, 0, np.arange(20)) - 128.0) / 255
    assert (
        stats.kstest(off.ravel() + np.random.default_rng(0).uniform(-0.5, 0.5, off.size) / 255, "norm", (0, sigma)).pvalue > 1e-3
    )
    assert off.std() == pytest.approx(sigma, rel=0.02)
    assert np.abs(np.corrcoef(off.reshape(20, 3, -1).swapaxes(0, 1).reshape(3, -1)) - np.eye(3)).max() < 0.03


@pytest.mark.parametrize(("severity", "photons"), [*enumerate((500, 250, 100, 75, 50), 1)])
def test_shot_noise(severity: int, photons: int) -> None:
    for value in (0, 60, 120):
        x = np.full((10, 1, 32, 32), value, np.uint8)
        seen = corruption("shot_noise")(x, severity, 0, np.arange(10)) / 255
        assert seen.mean() == pytest.approx(value / 255, abs=3 * (value / 255 / photons / seen.size) ** 0.5)
        assert seen.var() == pytest.approx(value / 255 / photons, rel=0.05)
    grid = np.unique(seen * photons)
    np.testing.assert_allclose(grid, np.rint(grid), atol=0.51 * photons / 255)  # whole photons, up to the rounding to bytes


@pytest.mark.parametrize(("severity", "share"), [*enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1)])
def test_impulse_noise(severity: int, share: float) -> None:
    x = np.full((30, 3, 32, 32), 128, np.uint8)
    seen = corruption("impulse_noise")(x, severity, 0, np.arange(30))
    assert set(np.unique(seen)) == {0, 128, 255}
    for value in (0, 255):
        assert (seen == value).mean() == pytest.approx(share / 2, abs=4 * (share / 2 / seen.size) ** 0.5)
    hit = seen != 128
    assert hit.any(1).mean() == pytest.approx(1 - (1 - share) ** 3, rel=0.12)  # channels for themselves


def test_noise_of_many_float_values_does_not_depend_on_the_batch() -> None:
    x = np.random.default_rng(0).random((3, 3, 40, 40), np.float32)  # 14,400 different rates in all, 4,800 in a row
    small = np.random.default_rng(1).random((1, 3, 16, 16), np.float32).repeat(3, 0)
    shot = corruption("shot_noise")
    for images in (x, small):
        whole = shot(images, 2, 0, np.arange(3), high=1)
        np.testing.assert_array_equal(whole[1], shot(images[1:2], 2, 0, np.array([1]), high=1)[0])
