"""Log-mel spectrograms against closed forms, a naive DFT, SciPy's ShortTimeFFT and numbers computed once with librosa 0.11.0."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.signal import ShortTimeFFT, get_window

from quorate.data.audio.log_mel import LogMel, hz_to_mel, log_mel, mel_filters, mel_to_hz, power_spectrogram

RNG = np.random.default_rng(0)


@given(n=st.integers(0, 60), window=st.integers(1, 16), extra=st.integers(0, 9), hop=st.integers(1, 20), centred=st.booleans())
@settings(deadline=None)
def test_power_equals_the_definition(n: int, window: int, extra: int, hop: int, centred: bool) -> None:
    n_fft = (window + extra + 1) // 2 * 2
    x = np.sin(np.arange(n) ** 1.5)
    s = LogMel(n_fft=n_fft, window=window, hop=hop, n_mels=5, centred=centred)
    if not centred and n < window:
        for refused in (lambda: power_spectrogram(x, n_fft, window, hop, centred), lambda: s.shape(n)):
            with pytest.raises(
                ValueError, match=rf"at least one window of {window} samples long, got {n}: pad it or use centred"
            ):
                refused()
        return
    power = power_spectrogram(x, n_fft, window, hop, centred)
    assert s.shape(n) == (len(power), 5)
    k = np.arange(n_fft // 2 + 1)
    for t, row in enumerate(power):
        start = t * hop - (window // 2 if centred else 0)
        at = np.arange(window)
        inside = (start + at >= 0) & (start + at < n)
        values = np.where(inside, np.take(x, (start + at) * inside) if n else 0.0, 0.0) * np.sin(np.pi * at / max(window, 2)) ** 2
        if window == 1:
            values = values * 0 + (x[start] if inside[0] else 0.0)  # a window of one sample is 1
        naive = np.exp(-2j * np.pi * np.outer(k, at) / n_fft) @ values
        np.testing.assert_allclose(row, np.abs(naive) ** 2, atol=1e-10)


@pytest.mark.parametrize(("window", "n_fft", "hop"), [(64, 64, 16), (50, 128, 5), (33, 40, 4)])
def test_power_equals_scipys(window: int, n_fft: int, hop: int) -> None:
    x = RNG.normal(size=400)
    scipys = ShortTimeFFT(get_window("hann", window), hop, fs=1.0, fft_mode="onesided", mfft=n_fft)
    expected = np.abs(scipys.stft(x, 0, 400 // hop + 1).T) ** 2
    np.testing.assert_allclose(power_spectrogram(x, n_fft, window, hop, centred=True), expected, atol=1e-9)
    if window // 2 % hop == 0:
        later = window // 2 // hop
        uncentred = power_spectrogram(x, n_fft, window, hop, centred=False)
        np.testing.assert_allclose(uncentred, expected[later : later + len(uncentred)], atol=1e-9)


def test_parseval() -> None:
    x = RNG.normal(size=300)
    power = power_spectrogram(x, 128, 100, 50, centred=False)
    both = power[:, 0] + power[:, -1] + 2 * power[:, 1:-1].sum(1)
    energy = [np.square(x[t * 50 : t * 50 + 100] * get_window("hann", 100)).sum() for t in range(5)]
    np.testing.assert_allclose(both / 128, energy)


def test_a_pure_tone() -> None:
    rate, n_fft, k = 8000, 256, 40
    x = np.sin(2 * np.pi * k / n_fft * np.arange(1000) + 0.3)
    power = power_spectrogram(x, n_fft, n_fft, 100, centred=False)
    np.testing.assert_allclose(power[:, k], (n_fft / 4) ** 2)  # Σw / 2
    np.testing.assert_allclose(power[:, [k - 1, k + 1]], (n_fft / 8) ** 2)
    assert np.abs(np.delete(power, [k - 1, k, k + 1], axis=1)).max() < 1e-9
    settings = LogMel(n_fft=n_fft, window=n_fft, hop=100, n_mels=30, f_min=0)
    bands = log_mel(x, rate, settings)
    weights = settings.filters(rate)[:, k - 1 : k + 2] @ [1 / 4, 1, 1 / 4]
    expected = 10 * np.log10(np.maximum(weights * (n_fft / 4) ** 2, 1e-8))
    np.testing.assert_allclose(bands, np.tile(expected, (len(bands), 1)), atol=1e-4)
    centres = mel_to_hz(np.linspace(0, hz_to_mel(4000, "htk"), 32)[1:-1], "htk")
    assert bands[0].argmax() == np.abs(hz_to_mel(centres, "htk") - hz_to_mel(k * rate / n_fft, "htk")).argmin()


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_mel_scales(scale: Any) -> None:
    hz = np.array([0, 60, 999.5, 1000, 1000.5, 6400, 20000])
    mel = hz_to_mel(hz, scale)
    np.testing.assert_allclose(mel_to_hz(mel, scale), hz, atol=1e-9)
    assert (np.diff(mel) > 0).all()
    known = {"htk": (1000, 999.9855371, 1e-6), "slaney": (6400, 42, 1e-12)}[scale]
    np.testing.assert_allclose(hz_to_mel(known[0], scale), known[1], rtol=known[2])


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_filters_part_the_axis_and_have_area_one(scale: Any) -> None:
    rate, n_fft, n_mels, f_min, f_max = 22050, 4096, 30, 130.0, 9000.0
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    edges = mel_to_hz(np.linspace(hz_to_mel(f_min, scale), hz_to_mel(f_max, scale), n_mels + 2), scale)
    filters = mel_filters(rate, n_fft, n_mels, f_min, f_max, scale)
    between = (bins >= edges[1]) & (bins <= edges[-2])
    np.testing.assert_allclose(filters.sum(0)[between], 1)
    assert not filters[:, (bins <= f_min) | (bins >= f_max)].any()
    for m, row in enumerate(filters):
        np.testing.assert_allclose(row, np.interp(bins, edges[m : m + 3], [0, 1, 0]), atol=1e-12)
    areas = mel_filters(rate, n_fft, n_mels, f_min, f_max, scale, "slaney").sum(1) * rate / n_fft
    np.testing.assert_allclose(areas, 1, atol=0.01)


def chirp() -> np.ndarray:
    t = np.arange(4000) / 16000
    return 0.5 * np.sin(2 * np.pi * (200 * t + 6000 * t * t)) + 0.1 * np.cos(2 * np.pi * 3100 * t) * (t > 0.1)


GOLDEN: dict[str, tuple[dict[str, Any], list[list[float]]]] = {
    "htk": (
        {"n_fft": 512, "window": 400, "hop": 160, "n_mels": 12, "f_min": 60.0, "f_max": 7000.0, "centred": True},
        [[32.0366, -7.4031, -21.2402], [-33.6135, -31.5648, -60.0], [-0.8917, 5.3642, 7.0749]],
    ),
    "slaney": (
        {"n_fft": 512, "window": 512, "hop": 256, "n_mels": 16, "f_min": 0.0, "scale": "slaney", "norm": "slaney"},
        [[2.4918, -60.0, -60.0, -60.0], [-42.3675, -3.5935, -17.0667, -41.6201], [-60.0, -60.0, 8.7497, -60.0]],
    ),
    "mixed": (
        {
            "n_fft": 1024,
            "window": 640,
            "hop": 320,
            "n_mels": 20,
            "f_min": 100.0,
            "f_max": 4000.0,
            "norm": "slaney",
            "centred": True,
        },
        [
            [12.1419, -14.5036, -28.2232, -38.1799],
            [-37.8872, -37.3155, 16.7183, -26.8808],
            [-25.9813, -25.6659, -24.3415, -18.569],
        ],
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_numbers_of_librosa(case: str) -> None:
    """librosa.feature.melspectrogram(pad_mode="constant", power=2), 0.11.0, every fifth band of frames 0, 5 and the last."""
    options, expected = GOLDEN[case]
    bands = log_mel(chirp(), 16000, LogMel(**options, floor_db=-60))
    assert bands.dtype == np.float32
    np.testing.assert_allclose(bands[[0, 5, -1]][:, ::5], expected, atol=1e-4)


def test_defaults_are_speech_at_16_khz() -> None:
    assert log_mel(chirp(), 16000).shape == LogMel().shape(4000) == (23, 40)
    assert (log_mel(np.zeros(400), 16000) == -80).all()
    loud, louder = log_mel(chirp(), 16000), log_mel(10 * chirp(), 16000)
    heard = loud > -79
    np.testing.assert_allclose(louder[heard], loud[heard] + 20, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_fft": 0}, "n_fft must be a positive integer, got 0"),
        ({"window": 20.5}, "window must be a positive integer, got 20.5"),
        ({"hop": True}, "hop must be a positive integer, got True"),
        ({"n_mels": "40"}, "n_mels must be a positive integer, got '40'"),
        ({"n_fft": 256}, "n_fft must be even and at least window, got n_fft=256 for window=400"),
        ({"n_fft": 513}, "n_fft must be even"),
        ({"scale": "bark"}, "scale must be 'htk' or 'slaney', got 'bark'"),
        ({"norm": "area"}, "norm must be None or 'slaney', got 'area'"),
        ({"centred": 1}, "centred must be True or False, got 1"),
        ({"floor_db": -np.inf}, "floor_db must be a finite number, got -inf"),
        ({"floor_db": "a"}, "floor_db must be a finite number, got 'a'"),
        ({"floor_db": None}, "floor_db must be a finite number, got None"),
        ({"floor_db": -4000}, r"floor_db must be within ±3000 dB, got -4000: silence needs a least value"),
        ({"floor_db": 5000}, r"floor_db must be within ±3000 dB, got 5000"),
        ({"f_min": np.nan}, "f_min must be a finite number, got nan"),
        ({"f_min": None}, "f_min must be a finite number, got None"),
        ({"f_min": True}, "f_min must be a finite number, got True"),
        ({"f_max": np.inf}, "f_max must be a finite number, got inf"),
    ],
)
def test_settings_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LogMel(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"f_max": 8001.0}, "0 ≤ f_min < f_max ≤ rate/2 = 8000 Hz, got f_min=20 and f_max=8001"),
        ({"f_min": 300.0, "f_max": 300.0}, "got f_min=300 and f_max=300"),
        ({"f_min": -1.0}, "got f_min=-1"),
        (
            {"n_mels": 128},
            r"got none in \d+ of 128, first in .* Hz for bins 31.25 Hz apart: lower n_mels or raise n_fft or f_min",
        ),
    ],
)
def test_filters_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        log_mel(chirp(), 16000, LogMel(**options))


def test_any_floor_that_is_taken_is_reached() -> None:
    for floor in (-3000, np.float32(-120), 3000.0):
        s = LogMel(floor_db=floor)
        assert type(s.floor_db) is float
        np.testing.assert_allclose(log_mel(np.zeros(400), 16000, s), floor)


def test_functions_refuse() -> None:
    with pytest.raises(ValueError, match=r"0 ≤ f_min < f_max ≤ rate/2 = 8000 Hz, got f_min=nan"):
        mel_filters(16000, 512, 10, float("nan"), 8000)
    with pytest.raises(ValueError, match="norm must be None"):
        mel_filters(16000, 512, 10, 0, 8000, norm="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must be"):
        mel_to_hz(3, "mel")  # type: ignore[arg-type]
    for x in (np.zeros((2, 900)), np.zeros(900, complex)):
        with pytest.raises(ValueError, match=r"a signal must be \(samples,\) real numbers, got shape"):
            log_mel(x, 16000)
