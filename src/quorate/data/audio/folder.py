"""A data set from a folder of WAV files, one folder per class.

    root/class/clip.wav         all splits are cut off these files, or lists say which are for test and validation
    root/part/class/clip.wav    parts train, test, validation (or val), calibration (or cal); those missing are cut off train

The lists are those of Speech Commands (Warden, arXiv 1804.03209, §7.2): one path below root per line, the rest is for training.
Every clip is read once, made equally long, and stored as a log-mel spectrogram or as it is (`quorate.data.store`).

Shapes: log-mel (N, 1, frames, mels) float32 in dB, waves (N, 1, samples) float32 in [−1, 1]; labels (N,) int64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quorate.data.audio.log_mel import LogMel, log_mel
from quorate.data.audio.wav import parse_wav
from quorate.data.dataset import Data
from quorate.data.listed import read_listed
from quorate.data.listing import Listing, list_classes, list_files, name_some
from quorate.data.npz import one_line

EXTENSIONS = (".wav", ".wave")
SPEECH_HZ = 16_000


@dataclass(frozen=True)
class Clip:
    """How a WAV file becomes a row; `Clip.of(Data.preprocessing)` reads new files as those of a data set were read.

    rate: samples per second that files have, or are resampled to if `resample` (scipy.signal.resample_poly). seconds: length
    of a row, a whole number of samples. short: shorter clips are an "error", or zeros follow ("pad"). long: longer ones are an
    "error", or lose what is behind the end ("crop"). mix: several channels become their mean; otherwise they are refused. mel:
    the spectrogram, or None for the samples themselves.

    Raises ValueError for a rate that is no positive integer, seconds that are no whole number of samples ≥ 1, other choices, a
    resample or mix that is no bool, and a mel that is no `LogMel` or does not fit rate and length.
    """

    rate: int
    seconds: float
    short: Literal["pad", "error"] = "pad"
    long: Literal["crop", "error"] = "crop"
    resample: bool = False
    mix: bool = False
    mel: LogMel | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not isinstance(self.rate, int) or self.rate < 1:
            raise ValueError(f"rate must be a positive integer, samples per second, got {self.rate!r}")
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, (int, float)):
            raise ValueError(f"seconds must be a number, got {self.seconds!r}")
        samples = self.seconds * self.rate
        if not 1 <= samples < float("inf") or abs(samples - round(samples)) > 1e-6:
            raise ValueError(
                f"seconds must make a whole number of samples, at least one, got {self.seconds!r} at {self.rate} Hz, which are "
                f"{samples:g}: say {max(1, round(samples)) / self.rate if samples < float('inf') else 1.0!r}"
            )
        for field, choices in (("short", ("pad", "error")), ("long", ("crop", "error"))):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} must be one of {choices}, got {getattr(self, field)!r}")
        for field in ("resample", "mix"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{field} must be True or False, got {getattr(self, field)!r}")
        if self.mel is not None:
            if not isinstance(self.mel, LogMel):
                raise ValueError(f"mel must be a LogMel, or None for the samples themselves, got {self.mel!r}")
            self.mel.filters(self.rate)
            self.mel.shape(self.samples)

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any]) -> Clip:
        """The settings in the `preprocessing` of a data set of clips; ValueError for that of another kind, and for other settings."""
        kind = preprocessing.get("kind") if isinstance(preprocessing, Mapping) else preprocessing
        if kind != "audio/1":
            raise ValueError(f"expected the preprocessing of audio clips, kind 'audio/1', got {kind!r}")
        missing = [name for name in cls.__dataclass_fields__ if name not in preprocessing]
        if missing:
            raise ValueError(f"the preprocessing of audio clips must hold {missing} too, got {sorted(preprocessing)}")
        fields = {name: preprocessing[name] for name in cls.__dataclass_fields__}
        mel = fields["mel"]
        if mel is None:
            return cls(**fields)
        if not isinstance(mel, Mapping) or mel.keys() != LogMel.__dataclass_fields__.keys():
            raise ValueError(f"mel of audio clips must be None or hold {sorted(LogMel.__dataclass_fields__)}, got {mel!r}")
        return cls(**fields | {"mel": LogMel(**mel)})

    @property
    def samples(self) -> int:
        """Samples in a row."""
        return round(self.seconds * self.rate)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row: (1, frames, mels) or (1, samples)."""
        return (1, self.samples) if self.mel is None else (1, *self.mel.shape(self.samples))

    def preprocessing(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"kind": "audio/1", **asdict(self)}

    def read(self, path: str | Path) -> np.ndarray:
        """The row (*shape) float32 of a WAV file.

        Raises `Unreadable` for a file that is damaged, cut short or no WAV file; ValueError naming the file, and what it has, for
        a length, rate or number of channels that these settings refuse; ValueError for one that can't be opened or held in
        memory, which is no property of the clip, and so nothing for a cache to remember.
        """
        try:
            return self._row(*parse_wav(Path(path).read_bytes()), path)
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise ValueError(f"{path} cannot be read: {reason}: check that it is there and may be read") from error

    def _row(self, samples: np.ndarray, rate: int, path: str | Path) -> np.ndarray:
        if len(samples) > 1 and not self.mix:
            raise ValueError(f"{path} must have one channel, got {len(samples)}: average them by mix=True")
        wave = samples.astype(np.float64).mean(axis=0)
        if rate != self.rate:
            if not self.resample:
                raise ValueError(
                    f"{path} must have {self.rate} samples per second, got {rate}: convert it, or pass resample=True"
                )
            wave = resampled(wave, rate, self.rate)
        wave = self._fit(wave, path)
        return np.asarray(wave if self.mel is None else log_mel(wave, self.rate, self.mel), np.float32)[None]

    def _fit(self, wave: np.ndarray, path: str | Path) -> np.ndarray:
        lacking = self.samples - len(wave)
        if (lacking > 0 and self.short == "error") or (lacking < 0 and self.long == "error"):
            remedy = "pad it by short='pad'" if lacking > 0 else "cut it by long='crop'"
            raise ValueError(
                f"{path} must be {self.seconds:g} s long, got {len(wave) / self.rate:g} s: {remedy}, or change seconds"
            )
        return np.pad(wave, (0, lacking)) if lacking > 0 else wave[: self.samples]


def resampled(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """⌈samples · wanted / rate⌉ samples of the wave (samples,) at `wanted` instead of `rate` Hz, low-passed against aliases."""
    from scipy.signal import resample_poly

    ratio = Fraction(wanted, rate)
    return np.asarray(resample_poly(wave, ratio.numerator, ratio.denominator))


def read_list(path: Path, listing: Listing) -> set[str]:
    """The paths in a list file, those of class folders that were not taken left out.

    Raises FileNotFoundError; ValueError for a file that isn't UTF-8, a path that repeats, is not below root or has no file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a list of files, found none at {path}: a relative path is taken from {listing.root}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, found the byte 0x{error.object[error.start]:02x}: save it as UTF-8") from error
    named = Counter(line for line in lines if line)
    passed_over = {folder for path in named if (folder := path.partition("/")[0]) not in listing.classes}
    beside = {folder for folder in passed_over if (listing.root / folder).is_dir()}
    chosen = {path for path in named if path.partition("/")[0] not in beside}
    missing = sorted(chosen - {file.path for file in listing.parts["all"]})
    if missing:
        raise ValueError(
            f"{path} must hold paths of WAV files below {listing.root}, got {len(missing)} others: {name_some(missing)}"
        )
    again = [path for path, times in named.items() if times > 1]
    if again:
        raise ValueError(f"{path} must name every file once, got {len(again)} more often: {name_some(again)}")
    return chosen


def apart(listing: Listing, lists: Mapping[str, str | Path]) -> Listing:
    """The listing of one part as train and the parts whose lists are given, {part: path, relative to root}.

    Raises what `read_list` raises, ValueError where root has parts already, a file is in two lists, a list or the rest is empty.
    """
    if not lists:
        return listing
    if "all" not in listing.parts:
        raise ValueError(f"{listing.root} has part folders already, got lists for {', '.join(lists)} too: drop the lists")
    chosen = {part: read_list(listing.root / path, listing) for part, path in lists.items()}
    both = sorted(set.intersection(*chosen.values())) if len(chosen) > 1 else []
    if both:
        raise ValueError(f"{listing.root}: no file may be in two lists, got {len(both)} in both: {name_some(both)}")
    rest = {file.path for file in listing.parts["all"]}.difference(*chosen.values())
    parts = {
        part: tuple(file for file in listing.parts["all"] if file.path in paths)
        for part, paths in {"train": rest, **chosen}.items()
    }
    empty = [part for part, files in parts.items() if not files]
    if empty:
        raise ValueError(f"{listing.root}: the lists must leave files for every part, got none for {', '.join(empty)}")
    return replace(listing, parts=parts)


def audio_folder(
    root: str | Path,
    rate: int,
    seconds: float,
    features: Literal["log-mel", "wave"] = "log-mel",
    mel: LogMel | None = None,
    short: Literal["pad", "error"] = "pad",
    long: Literal["crop", "error"] = "crop",
    resample: bool = False,
    mix: bool = False,
    test_list: str | Path | None = None,
    validation_list: str | Path | None = None,
    groups: str | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    nested: bool = False,
    unreadable: Literal["error", "skip"] = "error",
    ood: Mapping[str, str | Path] | None = None,
    cache: str | Path | None = None,
    name: str = "audio_folder",
) -> Data:
    """A `Data` from WAV files in class folders, in one of the two layouts above, told apart by the folders' names.

    rate, seconds, short, long, resample, mix: see `Clip`. features: "log-mel" with the settings `mel`, which have to be given
    unless rate is 16,000; or "wave". test_list, validation_list: files that name the clips of these splits, relative to root.
    groups: a regular expression searched in each path below root, whose first (group) says who made the clip, such as
    "/([^/]+?)_nohash_": all of a group's clips go to one split, and parts that share a group are refused. fractions: of the
    files of root or root/train, for train and then for each split that is not there, in the order validation, calibration,
    test; by default 0.1, 0.1, 0.2 and the rest for train. seed: of this partition, which is stratified. classes: the class
    folders to take, in the order of their labels; all, sorted, if None. nested: take the files of a class folder's
    subfolders too. unreadable: "skip" leaves out files that are damaged or no WAV files, names them on stderr and in
    `Data.preprocessing`. ood: {name: folder}, all clips in and below it. cache: folder of the stores, by default $XDG_CACHE_HOME/quorate or
    ~/.cache/quorate. name: part of the fingerprint (the paths aren't).

    ids: numbers of the files in the order of parts, classes and paths; OOD sets count their own. Raises FileNotFoundError for
    a missing folder or list; ValueError for settings that `Clip` refuses, layouts, classes, groups and lists as
    `list_classes`, `path_groups` and `apart` refuse them, unreadable files (the first are named), one that can't be opened, a
    clip of another rate, length or number of channels (it is named), and whatever `Data` refuses.
    """
    if features not in ("log-mel", "wave"):
        raise ValueError(f"features must be 'log-mel' or 'wave', got {features!r}")
    if features == "wave" and mel is not None:
        raise ValueError(f"mel is for features='log-mel', got {mel} for 'wave': drop it")
    if features == "log-mel" and mel is None and rate != SPEECH_HZ:
        raise ValueError(f"the default log-mel settings are for {SPEECH_HZ} Hz, got rate={rate!r}: give mel=LogMel(n_fft=…, …)")
    clip = Clip(rate, seconds, short, long, resample, mix, (mel or LogMel()) if features == "log-mel" else None)
    lists = {"test": test_list, "validation": validation_list}
    listing = apart(
        list_classes(root, EXTENSIONS, classes, nested), {part: path for part, path in lists.items() if path is not None}
    )
    outside = {key: list_files(folder, EXTENSIONS) for key, folder in (ood or {}).items()}
    return read_listed(
        name,
        listing,
        outside,
        clip.shape,
        np.float32,
        clip.read,
        clip.preprocessing(),
        cache=cache,
        unreadable=unreadable,
        groups=groups,
        fractions=fractions,
        seed=seed,
        augmentation=None,
    )
