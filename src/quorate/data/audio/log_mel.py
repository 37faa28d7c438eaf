"""Log-mel spectrograms: how much power a sound has, by time and by pitch.

With the periodic Hann window w of N samples, w_n = sin²(πn/N), frame t of the signal x and the mel filters H,

    P_tk = |Σ_n w_n x_{s_t + n} e^{−2πikn/F}|²,  k = 0..F/2,      y_tm = 10 log₁₀ max(Σ_k H_mk P_tk, 10^{floor/10})  dB,

s_t = t·hop, or t·hop − ⌊N/2⌋ where frames are centred (zeros beyond the ends). Filter m is a triangle in Hz that rises from
c_{m−1} to 1 at c_m and falls to c_{m+1}, c_0 = f_min and c_{M+1} = f_max, evenly spaced in mel (Davis and Mermelstein 1980,
fig. 1). The scale of O'Shaughnessy (1987), as in HTK, or that of Slaney's Auditory Toolbox (1998), linear up to 1 kHz:

    htk      m(f) = 2595 log₁₀(1 + f/700)
    slaney   m(f) = 3f/200 for f < 1000,   15 + 27 ln(f/1000) / ln 6.4 otherwise

Slaney's norm divides a filter by half the width of its base, (c_{m+1} − c_{m−1})/2, so that each has area 1 in Hz. Decibels are
relative to power 1: a sine of amplitude 1 reaches (N/4)² in the bin of its frequency.

Shapes: signals (samples,); P (frames, F/2 + 1), H (mels, F/2 + 1), y (frames, mels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Scale = Literal["htk", "slaney"]
SLANEY_KNEE_HZ, SLANEY_KNEE_MEL = 1000.0, 15.0
SLANEY_STEP = math.log(6.4) / 27
FLOOR_DB = 3000  # 10^±300 is a float64


def hz_to_mel(hz: np.ndarray | float, scale: Scale) -> np.ndarray:
    """Frequencies ≥ 0 in Hz, of any shape, in mel of the scale "htk" or "slaney". ValueError for another scale."""
    f = np.asarray(hz, np.float64)
    if scale == "htk":
        return np.asarray(2595 * np.log10(1 + f / 700))
    if scale == "slaney":
        above = SLANEY_KNEE_MEL + np.log(np.maximum(f, SLANEY_KNEE_HZ) / SLANEY_KNEE_HZ) / SLANEY_STEP
        return np.where(f < SLANEY_KNEE_HZ, f * (SLANEY_KNEE_MEL / SLANEY_KNEE_HZ), above)
    raise ValueError(f"scale must be 'htk' or 'slaney', got {scale!r}")


def mel_to_hz(mel: np.ndarray | float, scale: Scale) -> np.ndarray:
    """The inverse of `hz_to_mel`."""
    m = np.asarray(mel, np.float64)
    if scale == "htk":
        return np.asarray(700 * (10 ** (m / 2595) - 1))
    if scale == "slaney":
        above = SLANEY_KNEE_HZ * np.exp((np.maximum(m, SLANEY_KNEE_MEL) - SLANEY_KNEE_MEL) * SLANEY_STEP)
        return np.where(m < SLANEY_KNEE_MEL, m * (SLANEY_KNEE_HZ / SLANEY_KNEE_MEL), above)
    raise ValueError(f"scale must be 'htk' or 'slaney', got {scale!r}")


def mel_filters(
    rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, scale: Scale = "htk", norm: Literal["slaney"] | None = None
) -> np.ndarray:
    """(n_mels, n_fft // 2 + 1) float64 weights H of the bins k·rate/n_fft in each mel band.

    rate, f_min, f_max: in Hz, 0 ≤ f_min < f_max ≤ rate/2. Raises ValueError for other bounds, scales or norms, and for a band
    so narrow that it holds no bin, naming what to change.
    """
    if not 0 <= f_min < f_max <= rate / 2:
        raise ValueError(f"mel bands need 0 ≤ f_min < f_max ≤ rate/2 = {rate / 2:g} Hz, got f_min={f_min:g} and f_max={f_max:g}")
    if norm not in (None, "slaney"):
        raise ValueError(f"norm must be None or 'slaney', got {norm!r}")
    edges = mel_to_hz(np.linspace(hz_to_mel(f_min, scale), hz_to_mel(f_max, scale), n_mels + 2), scale)
    bins = np.arange(n_fft // 2 + 1) * (rate / n_fft)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = np.maximum(0, np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)))
    empty = np.flatnonzero(~filters.any(axis=1))
    if empty.size:
        m = int(empty[0])
        raise ValueError(
            f"every mel band must hold a bin, got none in {empty.size} of {n_mels}, first in {edges[m]:.1f}–{edges[m + 2]:.1f} Hz "
            f"for bins {rate / n_fft:g} Hz apart: lower n_mels or raise n_fft or f_min"
        )
    return np.asarray(filters if norm is None else filters * (2 / (high - low)))


def power_spectrogram(x: np.ndarray, n_fft: int, window: int, hop: int, centred: bool) -> np.ndarray:
    """(frames, n_fft // 2 + 1) float64 power P of a signal.

    x: (samples,), real. window ≤ n_fft, hop: in samples, ≥ 1. centred: frame t has its middle at sample t·hop, 1 + samples //
    hop frames; otherwise it begins there, 1 + (samples − window) // hop frames, which leaves out an incomplete last one.
    Raises ValueError for another rank, and where a frame that is not centred is longer than the signal.
    """
    from scipy.fft import rfft
    from scipy.signal import get_window

    x = np.asarray(x)
    if x.ndim != 1 or x.dtype.kind not in "fiu":
        raise ValueError(f"a signal must be (samples,) real numbers, got shape {x.shape} of {x.dtype}")
    signal = np.asarray(x, np.float64)
    if centred:
        signal = np.pad(signal, (window // 2, window - window // 2))
        signal = signal[: len(x) // hop * hop + window]
    if len(signal) < window:
        raise ValueError(
            f"a signal must be at least one window of {window} samples long, got {len(x)}: pad it or use centred=True"
        )
    frames = np.lib.stride_tricks.sliding_window_view(signal, window)[::hop]
    spectrum = rfft(frames * get_window("hann", window), n=n_fft, axis=1)
    return np.asarray(spectrum.real**2 + spectrum.imag**2)


@dataclass(frozen=True)
class LogMel:
    """Settings of a log-mel spectrogram; the defaults are usual ones for speech at 16 kHz: 25 ms windows every 10 ms.

    n_fft: F ≥ window, even. window, hop: in samples. n_mels: M. f_min, f_max: in Hz; f_max None: half the sample rate. scale:
    of the mel axis. norm: None (peaks of 1) or "slaney" (areas of 1). centred: frames around, not from, each multiple of hop.
    floor_db: least value, in dB relative to power 1.

    Raises ValueError for sizes that are no positive integers, window > n_fft, odd n_fft, frequencies that are not finite, a floor
    beyond ±3000 dB, another scale or norm.
    """

    n_fft: int = 512
    window: int = 400
    hop: int = 160
    n_mels: int = 40
    f_min: float = 20.0
    f_max: float | None = None
    scale: Scale = "htk"
    norm: Literal["slaney"] | None = None
    centred: bool = False
    floor_db: float = -80.0

    def __post_init__(self) -> None:
        for field in ("n_fft", "window", "hop", "n_mels"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{field} must be a positive integer, got {value!r}")
            object.__setattr__(self, field, int(value))
        if self.window > self.n_fft or self.n_fft % 2:
            raise ValueError(f"n_fft must be even and at least window, got n_fft={self.n_fft} for window={self.window}")
        for field in ("f_min", "f_max", "floor_db"):
            value = getattr(self, field)
            if field == "f_max" and value is None:
                continue
            number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ValueError(f"{field} must be a finite number, got {value!r}")
            object.__setattr__(self, field, float(value))
        if abs(self.floor_db) > FLOOR_DB:
            raise ValueError(f"floor_db must be within ±{FLOOR_DB} dB, got {self.floor_db:g}: silence needs a least value")
        if not isinstance(self.centred, bool):
            raise ValueError(f"centred must be True or False, got {self.centred!r}")
        hz_to_mel(0.0, self.scale)
        if self.norm not in (None, "slaney"):
            raise ValueError(f"norm must be None or 'slaney', got {self.norm!r}")

    def filters(self, rate: int) -> np.ndarray:
        """The mel filters H at a sample rate in Hz; see `mel_filters`."""
        f_max = rate / 2 if self.f_max is None else self.f_max
        return mel_filters(rate, self.n_fft, self.n_mels, self.f_min, f_max, self.scale, self.norm)

    def shape(self, samples: int) -> tuple[int, int]:
        """(frames, mels) for a signal of so many samples. ValueError where it is shorter than a window and not centred."""
        if self.centred:
            return 1 + samples // self.hop, self.n_mels
        if samples < self.window:
            raise ValueError(
                f"a signal must be at least one window of {self.window} samples long, got {samples}: pad it or use centred=True"
            )
        return 1 + (samples - self.window) // self.hop, self.n_mels


def log_mel(x: np.ndarray, rate: int, settings: LogMel | None = None) -> np.ndarray:
    """The log-mel spectrogram (frames, mels) float32 in dB of a signal x (samples,) at `rate` samples per second.

    settings: `LogMel()` if None, meant for 16 kHz. Raises ValueError for what `power_spectrogram` and `mel_filters` refuse.
    """
    s = settings or LogMel()
    power = power_spectrogram(x, s.n_fft, s.window, s.hop, s.centred)
    bands = power @ s.filters(rate).T
    return np.asarray(10 * np.log10(np.maximum(bands, 10 ** (s.floor_db / 10))), np.float32)
