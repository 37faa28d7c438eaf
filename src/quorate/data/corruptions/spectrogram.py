"""What happens to sound, told on its log-mel spectrogram, five severities each:

===========  ==============================================================================  ====  ====  ====  ====  ====
name         what                                                                               1     2     3     4     5
===========  ==============================================================================  ====  ====  ====  ====  ====
noise_floor  noise whose mean power lies so many standard deviations above the training mean   −1  −0.5     0   0.5     1
loudness     louder or quieter, in dB                                                           3     6     9    12    15
frame_shift  moved in time by this share of the frames, either way, edges held               0.02  0.05   0.1  0.15   0.2
band_drop    this share of the mel bands, in one run, at the training mean                    0.1  0.15   0.2   0.3   0.4
time_mask    this share of the frames, in one run, at the training mean                       0.1  0.15   0.2   0.3   0.4
===========  ==============================================================================  ====  ====  ====  ====  ====

The ladders are this library's own; band_drop and time_mask are the masks of SpecAugment (Park et al. 2019, arXiv 1904.08779, §2).
Noise adds in power, exponentially distributed as that of Gaussian noise in one Fourier bin: with d raw values per decibel and
E ~ Exp(1), y = 10 d log₁₀(10^(x / 10 d) + E · 10^(level / 10 d)).

Shapes: x (B, 1, frames, mels) float32, mean and std (1, 1, 1).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quorate.data.corruptions.drawing import Key, uniforms
from quorate.data.corruptions.image import Floats
from quorate.data.corruptions.signal import SignalCorruption, Units, shifted, signs, span


def _noise(x: Floats, deviations: float, key: Key, units: Units) -> NDArray[np.floating]:
    nepers = math.log(10) / (10 * units.decibel)  # natural logarithm of power per raw value
    level = (units.mean + np.float32(deviations) * units.std).astype(np.float64)
    noise = nepers * level + np.log(-np.log(uniforms(key, 0, *x.shape[1:])))
    return (np.logaddexp(nepers * x.astype(np.float64), noise) / nepers).astype(np.float32)


def _loudness(x: Floats, decibels: float, key: Key, units: Units) -> NDArray[np.floating]:
    return x + np.float32(decibels * units.decibel) * signs(uniforms(key, 0, 1, 1, 1))


def _shift(x: Floats, share: float, key: Key, units: Units) -> NDArray[np.floating]:  # noqa: ARG001
    return shifted(x, 2, share, signs(uniforms(key, 0)))


def _bands(x: Floats, share: float, key: Key, units: Units) -> NDArray[np.floating]:
    return np.where(span(x.shape[3], share, uniforms(key, 0))[1][:, None, None, :], units.mean, x)


def _frames(x: Floats, share: float, key: Key, units: Units) -> NDArray[np.floating]:
    return np.where(span(x.shape[2], share, uniforms(key, 0))[1][:, None, :, None], units.mean, x)


noise_floor = SignalCorruption("noise_floor", "log-mel", (-1, -0.5, 0, 0.5, 1), _noise, decibels=True)
loudness = SignalCorruption("loudness", "log-mel", (3, 6, 9, 12, 15), _loudness, decibels=True)
frame_shift = SignalCorruption("frame_shift", "log-mel", (0.02, 0.05, 0.1, 0.15, 0.2), _shift)
band_drop = SignalCorruption("band_drop", "log-mel", (0.1, 0.15, 0.2, 0.3, 0.4), _bands)
time_mask = SignalCorruption("time_mask", "log-mel", (0.1, 0.15, 0.2, 0.3, 0.4), _frames)
