"""Which corruptions there are, by kind of input, and which of them apply to a data set.

Shapes: images (C, H, W), sequences (C, L), log-mel spectrograms (1, frames, mels), each without the batch.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from quorate._validation import nearest
from quorate.data.corruptions import blur, digital, noise, sequence, spectrogram, weather
from quorate.data.corruptions.image import HIGH, ImageCorruption
from quorate.data.corruptions.signal import AXES, SignalCorruption
from quorate.data.dataset import Data
from quorate.data.store import Stored

Kind = Literal["image", "sequence", "log-mel"]
Corruption = ImageCorruption | SignalCorruption
LOOKED_AT = 64  # rows

IMAGES: tuple[Corruption, ...] = (
    noise.gaussian_noise,
    noise.shot_noise,
    noise.impulse_noise,
    blur.defocus_blur,
    blur.glass_blur,
    blur.motion_blur,
    blur.zoom_blur,
    weather.snow,
    weather.frost,
    weather.fog,
    weather.brightness,
    digital.contrast,
    digital.elastic_transform,
    digital.pixelate,
    digital.jpeg_compression,
)
SEQUENCES: tuple[Corruption, ...] = (
    sequence.sensor_noise,
    sequence.channel_dropout,
    sequence.time_shift,
    sequence.gain,
    sequence.drift,
    sequence.missing_span,
)
LOG_MELS: tuple[Corruption, ...] = (
    spectrogram.noise_floor,
    spectrogram.loudness,
    spectrogram.frame_shift,
    spectrogram.band_drop,
    spectrogram.time_mask,
)
CORRUPTIONS: dict[Kind, dict[str, Corruption]] = {
    "image": {each.name: each for each in IMAGES},
    "sequence": {each.name: each for each in SEQUENCES},
    "log-mel": {each.name: each for each in LOG_MELS},
}


def corruption(name: str) -> Corruption:
    """The corruption of that name, of whatever kind; ValueError, with the nearest name, where there is none."""
    every = {known: each for named in CORRUPTIONS.values() for known, each in named.items()}
    if name not in every:
        raise ValueError(f"unknown corruption {name!r}{nearest(name, list(every))} (there are: {', '.join(every)})")
    return every[name]


def corruptions_for(data: Data, kind: Kind, *, high: float | None = None, decibel: float | None = None) -> list[str]:
    """Names of the corruptions that apply to the inputs of `data`, which are of the stated kind.

    Left out are those that need colours where C is neither 1 nor 3, more channels than there are, or decibels where `decibel`, the
    raw values per decibel of log-mel spectrograms, is not given. high: the raw value that is white in images.
    Raises ValueError for another kind, inputs of another shape (tables among them), and images that can't have that white.
    """
    if not isinstance(kind, str) or kind not in CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}: say what the inputs are")
    if len(data.shape) == 1:
        raise ValueError(f"inputs of shape {tuple(data.shape)} are a table's: no corruptions apply to tables")
    if len(data.shape) != (2 if kind == "sequence" else 3) or (kind == "log-mel" and data.shape[0] != 1):
        raise ValueError(f"inputs of shape {tuple(data.shape)} are no {kind} inputs, {AXES[kind]}: choose the kind that they are")
    found, reason = [], ""
    for name, each in CORRUPTIONS[kind].items():
        try:
            each.check_shape(tuple(data.shape))
        except ValueError as error:
            reason = str(error)
            continue
        if not (isinstance(each, SignalCorruption) and each.decibels and decibel is None):
            found.append(name)
    if not found:
        raise ValueError(f"no corruption applies: {reason}")
    if kind == "image":
        check_white(data.train.x, high)
    return found


def check_white(x: NDArray | Stored, high: float | None) -> None:
    """ValueError where the first rows show that their white is not the 255 that uint8 has by default, or for a `high` that can't be."""
    first = np.asarray(x[:LOOKED_AT])
    IMAGES[0].check(first, high)  # type: ignore[union-attr]
    if high is None and first.max() < 128:
        raise ValueError(
            f"no pixel of the first {len(first)} rows is above {first.max()}, so that 255 is hardly white: give {HIGH}, the raw "
            "value that is, 16 for the built-in digits, or 255 if the images are so dark"
        )
