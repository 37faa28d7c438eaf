"""What happens to sensors and to waveforms, five severities each:

=================  =========================================================================  ====  ====  ====  ====  ====
name               what                                                                          1     2     3     4     5
=================  =========================================================================  ====  ====  ====  ====  ====
sensor_noise       normal noise, in standard deviations of the channel                         0.1   0.2   0.4   0.7     1
channel_dropout    share of the channels that stay at their mean, at least one, not all       0.05   0.1   0.2   0.3   0.5
time_shift         all channels moved by this share of the length, either way, edges held     0.02  0.05   0.1   0.2   0.3
gain               every channel louder or quieter about its mean, in dB of amplitude            1     2     3   4.5     6
drift              every channel rises or falls by so many standard deviations to the end     0.25   0.5     1   1.5     2
missing_span       share of the length, in one run, in which all channels hold the value before   0.1   0.2   0.3   0.4   0.5
=================  =========================================================================  ====  ====  ====  ====  ====

The ladders are this library's own; there is no published standard. A waveform is a sequence of one channel (channel_dropout needs two).

Shapes: x (B, C, L) float32, mean and std (C, 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quorate.data.corruptions.drawing import Key, normals, uniforms
from quorate.data.corruptions.image import Floats
from quorate.data.corruptions.signal import SignalCorruption, Units, shifted, signs, span


def _noise(x: Floats, deviations: float, key: Key, units: Units) -> NDArray[np.floating]:
    return x + np.float32(deviations) * units.std * normals(key, 0, *x.shape[1:]).astype(np.float32)


def _dropout(x: Floats, share: float, key: Key, units: Units) -> NDArray[np.floating]:
    channels = x.shape[1]
    dead = min(max(1, round(share * channels)), channels - 1)
    rank = uniforms(key, 0, channels).argsort(1, kind="stable").argsort(1, kind="stable")
    return np.where((rank < dead)[:, :, None], units.mean, x)


def _shift(x: Floats, share: float, key: Key, units: Units) -> NDArray[np.floating]:  # noqa: ARG001
    return shifted(x, 2, share, signs(uniforms(key, 0)))


def _gain(x: Floats, decibels: float, key: Key, units: Units) -> NDArray[np.floating]:
    louder = signs(uniforms(key, 0, x.shape[1], 1)) > 0
    factor = np.where(louder, np.float32(10 ** (decibels / 20)), np.float32(10 ** (-decibels / 20)))
    return np.asarray(units.mean + factor * (x - units.mean))


def _drift(x: Floats, deviations: float, key: Key, units: Units) -> NDArray[np.floating]:
    ramp = np.linspace(0, 1, x.shape[2], dtype=np.float32)
    return x + np.float32(deviations) * units.std * signs(uniforms(key, 0, x.shape[1], 1)) * ramp


def _missing(x: Floats, share: float, key: Key, units: Units) -> NDArray[np.floating]:  # noqa: ARG001
    start, gone = span(x.shape[2], share, uniforms(key, 0), first=1)
    return np.where(gone[:, None], x[np.arange(len(x)), :, start - 1][:, :, None], x)


sensor_noise = SignalCorruption("sensor_noise", "sequence", (0.1, 0.2, 0.4, 0.7, 1), _noise)
channel_dropout = SignalCorruption("channel_dropout", "sequence", (0.05, 0.1, 0.2, 0.3, 0.5), _dropout, channels=2)
time_shift = SignalCorruption("time_shift", "sequence", (0.02, 0.05, 0.1, 0.2, 0.3), _shift)
gain = SignalCorruption("gain", "sequence", (1, 2, 3, 4.5, 6), _gain)
drift = SignalCorruption("drift", "sequence", (0.25, 0.5, 1, 1.5, 2), _drift)
missing_span = SignalCorruption("missing_span", "sequence", (0.1, 0.2, 0.3, 0.4, 0.5), _missing)
