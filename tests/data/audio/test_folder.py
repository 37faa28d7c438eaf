"""Folders of WAV files: both layouts, lists, both features, every clip that does not fit, the store, reading a new clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile
from scipy.signal import resample_poly

from quorate.data import Data
from quorate.data.audio.folder import Clip, audio_folder, resampled
from quorate.data.audio.log_mel import LogMel, log_mel
from quorate.data.store import Unreadable

RATE = 1000
RNG = np.random.default_rng(0)
MEL = LogMel(n_fft=64, window=50, hop=20, n_mels=8, f_min=10)


def write(path: Path, samples: int = 100, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Noise as 16 bits; returns (channels, samples) in [−1, 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(-(2**15), 2**15, (samples, channels)).astype(np.int16)
    wavfile.write(path, rate, values[:, 0] if channels == 1 else values)
    return values.T / 2.0**15


def speakers(root: Path, count: int = 6, clips: int = 2) -> dict[str, np.ndarray]:
    """Two classes of `count` speakers with `clips` clips each, named as in Speech Commands."""
    paths = [f"{word}/s{s}_nohash_{c}.wav" for word in ("no", "yes") for s in range(count) for c in range(clips)]
    return {path: write(root / path)[0] for path in sorted(paths)}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(root: Path, cache: Path, **options: Any) -> Data:
    return audio_folder(root, **{"rate": RATE, "seconds": 0.1, "mel": MEL, "cache": cache, **options})


def test_waves_of_one_folder(tmp_path: Path, cache: Path) -> None:
    clips = speakers(tmp_path / "a")
    data = load(
        tmp_path / "a", cache, features="wave", mel=None, seconds=0.12, name="words", fractions=(0.4, 0.2, 0.2, 0.2), seed=3
    )
    assert (data.name, data.classes, data.shape) == ("words", ("no", "yes"), (1, 120))
    paths = list(clips)
    for split in data.splits().values():
        for x, y, i in zip(split.x[:], split.y, split.ids, strict=True):
            np.testing.assert_array_equal(x[0], np.pad(clips[paths[i]], (0, 20)).astype(np.float32))
            assert data.classes[y] == paths[i].partition("/")[0]
    assert sum(map(len, data.splits().values())) == 24


def test_log_mel_and_reading_new_clips(tmp_path: Path, cache: Path) -> None:
    clips = speakers(tmp_path / "a")
    data = load(tmp_path / "a", cache, seconds=0.09)
    assert data.shape == (1, *MEL.shape(90)) == (1, 3, 8)
    paths = list(clips)
    for x, i in zip(data.test.x[:], data.test.ids, strict=True):
        np.testing.assert_array_equal(x[0], log_mel(clips[paths[i]][:90], RATE, MEL))
    kept = json.loads(json.dumps(data.preprocessing))
    clip = Clip.of(kept)
    assert clip == Clip(RATE, 0.09, mel=MEL)
    np.testing.assert_array_equal(clip.read(tmp_path / "a" / paths[data.test.ids[0]]), data.test.x[0])
    with pytest.raises(ValueError, match="expected the preprocessing of audio clips, kind 'audio/1', got 'images/1'"):
        Clip.of(kept | {"kind": "images/1"})
    for foreign in (None, 3, "audio/1x", []):
        with pytest.raises(ValueError, match="expected the preprocessing of audio clips, kind 'audio/1', got"):
            Clip.of(foreign)  # type: ignore[arg-type]
    for mel in ({**kept["mel"], "pitch": 1}, {"n_fft": 64}, 3, [1]):
        with pytest.raises(ValueError, match=r"mel of audio clips must be None or hold \['centred', 'f_max', .*\], got"):
            Clip.of(kept | {"mel": mel})
    assert Clip.of(kept | {"mel": None}) == Clip(RATE, 0.09)
    with pytest.raises(ValueError, match=r"must hold \['mix'\] too, got \["):
        Clip.of({key: value for key, value in kept.items() if key != "mix"})


def test_the_default_is_speech_at_16_khz(tmp_path: Path, cache: Path) -> None:
    for word in "ab":
        for c in range(4):
            write(tmp_path / "a" / word / f"{c}.WAV", samples=1600, rate=16_000)
    data = audio_folder(tmp_path / "a", 16_000, 0.1, cache=cache, fractions=(0.25, 0.25, 0.25, 0.25))
    assert data.shape == (1, 8, 40)
    with pytest.raises(ValueError, match=r"default log-mel settings are for 16000 Hz, got rate=8000: give mel=LogMel"):
        audio_folder(tmp_path / "a", 8000, 0.1, cache=cache)


def test_parts_and_whole_groups(tmp_path: Path, cache: Path) -> None:
    for part, of in (("train", "abcd"), ("test", "ef")):
        for word in ("no", "yes"):
            for speaker in of:
                write(tmp_path / "a" / part / word / f"{speaker}_nohash_0.wav")
    data = load(tmp_path / "a", cache, groups="/([^/]+?)_nohash_", fractions=(0.5, 0.25, 0.25))
    assert (len(data.test), len(data.train)) == (4, 4)
    sets = [set(split.groups.tolist()) for split in data.splits().values() if split.groups is not None]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 6
    write(tmp_path / "a" / "test" / "no" / "b_nohash_1.wav")
    with pytest.raises(ValueError, match="one part only, got 1 in both train and test, such as 'b': move their files"):
        load(tmp_path / "a", cache, groups="/([^/]+?)_nohash_")


def test_lists(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "a"
    paths = list(speakers(root))
    write(root / "_noise_" / "x.wav", samples=999)
    tests, validation = [paths[i] for i in (0, 1, 12, 13)], [paths[i] for i in (2, 14)]
    (root / "testing_list.txt").write_text("\ufeff" + "\r\n".join([*tests, "", "_noise_/x.wav"]), encoding="utf-8")
    (tmp_path / "elsewhere.txt").write_text("\n".join(validation))
    options: dict[str, Any] = {"test_list": "testing_list.txt", "classes": ("yes", "no")}
    data = load(root, cache, **options, validation_list=tmp_path / "elsewhere.txt", fractions=(0.75, 0.25))
    rest = [path for path in sorted(paths, key=lambda path: (path < "yes", path)) if path not in {*tests, *validation}]
    order = [*rest, *tests[2:], *tests[:2], *validation[::-1]]  # ids: train, test, validation, each by class
    assert [order[i] for i in data.test.ids] == [*tests[2:], *tests[:2]]
    assert [order[i] for i in data.validation.ids] == validation[::-1]
    assert (len(data.train), len(data.calibration)) == (14, 4)
    np.testing.assert_array_equal(data.test.x[0], Clip(RATE, 0.1, mel=MEL).read(root / tests[2]))

    def refused(text: bytes, said: str, **more: Any) -> None:
        (root / "testing_list.txt").write_bytes(text)
        with pytest.raises(ValueError, match=said) as caught:
            load(root, cache, **options, **more)
        assert "\n" not in str(caught.value)

    one = paths[0].encode()
    refused(one + b"\nno/z.wav\nzip/1.wav", r"must hold paths of WAV files below .*, got 2 others: 'no/z.wav', 'zip/1.wav'")
    refused(one + b"\n" + one, rf"must name every file once, got 1 more often: '{paths[0]}'")
    refused(b"\xff", "expected UTF-8, found the byte 0xff")
    refused(b"", "the lists must leave files for every part, got none for test")
    refused("\n".join(paths).encode(), "none for train")
    (root / "v.txt").write_bytes(one)
    refused(one, rf"no file may be in two lists, got 1 in both: '{paths[0]}'", validation_list="v.txt")
    with pytest.raises(FileNotFoundError, match=r"expected a list of files, found none at .*: a relative path is taken from"):
        load(root, cache, classes=("yes", "no"), test_list="none.txt")
    for part in ("train", "test"):
        speakers(tmp_path / "parts" / part)
    with pytest.raises(ValueError, match="has part folders already, got lists for test too: drop the lists"):
        load(tmp_path / "parts", cache, test_list=root / "v.txt")


def test_clips_that_do_not_fit(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "a"
    speakers(root)
    odd = root / "no" / "s0_nohash_0.wav"
    for options, samples, said in (
        ({"short": "error"}, 99, r"s0_nohash_0\.wav must be 0.1 s long, got 0.099 s: pad it by short='pad', or change seconds"),
        ({"long": "error"}, 101, r"s0_nohash_0\.wav must be 0.1 s long, got 0.101 s: cut it by long='crop'"),
    ):
        write(odd, samples)
        load(root, cache)
        with pytest.raises(ValueError, match=said):
            load(root, cache, **options)
    write(odd, rate=800)
    with pytest.raises(
        ValueError, match=r"s0_nohash_0\.wav must have 1000 samples per second, got 800: convert it, or pass resample"
    ):
        load(root, cache, unreadable="skip")
    write(odd, channels=2)
    with pytest.raises(ValueError, match=r"s0_nohash_0\.wav must have one channel, got 2: average them by mix=True"):
        load(root, cache)


def test_mix_and_resample(tmp_path: Path) -> None:
    stereo = write(tmp_path / "b.wav", samples=240, rate=2400, channels=3)
    row = Clip(RATE, 0.1, short="error", long="error", resample=True, mix=True).read(tmp_path / "b.wav")
    np.testing.assert_allclose(row[0], resample_poly(stereo.mean(0), 5, 12), atol=1e-6)
    for rate, wanted in ((44_100, 16_000), (8000, 16_000), (11_025, 8000)):
        tone = np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
        back = resampled(tone, rate, wanted)
        assert len(back) == -(-len(tone) * wanted // rate)
        inner = slice(200, -200)
        np.testing.assert_allclose(back[inner], np.sin(2 * np.pi * 440 * np.arange(len(back)) / wanted)[inner], atol=5e-3)


def test_unreadable_files(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "a"
    paths = list(speakers(root))
    (root / paths[1]).write_bytes(b"")
    (root / paths[20]).write_bytes((root / paths[20]).read_bytes()[:-1])
    said = (
        rf"2 of 24 files cannot be read: '{paths[1]}' \(an empty file\), '{paths[20]}' \(cut short: its 'data' chunk has 199 of "
        r"200 bytes\): mend or remove them"
    )
    with pytest.raises(ValueError, match=said) as caught:
        load(root, cache)
    assert "\n" not in str(caught.value)
    capsys.readouterr()
    data = load(root, cache, unreadable="skip")
    assert sum(map(len, data.splits().values())) == 22
    assert "2 of 24 files cannot be read" in capsys.readouterr().err
    assert data.preprocessing is not None
    assert set(data.preprocessing["unreadable"]) == {paths[1], paths[20]}
    with pytest.raises(ValueError, match="unreadable must be 'error' or 'skip', got 'ignore'"):
        load(root, cache, unreadable="ignore")
    for path in paths:
        write(tmp_path / "parts" / "train" / path)
        (tmp_path / "parts" / "test" / path).parent.mkdir(parents=True, exist_ok=True)
        for damaged in (root / path, tmp_path / "parts" / "test" / path):
            damaged.write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="the part 'test' has no readable file: mend them"):
        load(tmp_path / "parts", cache, unreadable="skip")
    with pytest.raises(ValueError, match="24 of 24 files cannot be read"):
        load(root, cache, unreadable="skip")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError(), "OSError"),
        (MemoryError(), "MemoryError"),
        (None, "No such file or directory"),
    ],
)
def test_what_passes_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, said: str
) -> None:
    root = tmp_path / "a"
    path = list(speakers(root))[5]
    original = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self != root / path:
            return original(self)
        if error is None:
            return original(self.with_name("none.wav"))
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(ValueError, match=rf"{path} cannot be read: {said}: check that it is there and may be read") as caught:
            load(root, cache, unreadable="skip")
    assert not isinstance(caught.value, Unreadable)
    assert sum(map(len, load(root, cache).splits().values())) == 24


def test_ood_and_passed_over(tmp_path: Path, cache: Path) -> None:
    clips = speakers(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("x")
    write(tmp_path / "noise" / "deep" / "1.wav")
    write(tmp_path / "noise" / "0.wav")
    data = load(tmp_path / "a", cache, ood={"noise": tmp_path / "noise"})
    assert data.ood["noise"].ids.tolist() == [0, 1]
    np.testing.assert_array_equal(data.ood["noise"].x[0], Clip(RATE, 0.1, mel=MEL).read(tmp_path / "noise" / "0.wav"))
    assert data.preprocessing is not None
    assert data.preprocessing["passed_over"] == {"count": 1, "such_as": ["README.md"]}
    (tmp_path / "noise" / "2.wav").write_bytes(b"")
    skipped = load(tmp_path / "a", cache, ood={"noise": tmp_path / "noise"}, unreadable="skip")
    assert skipped.ood["noise"].ids.tolist() == [0, 2]
    assert skipped.preprocessing is not None
    assert skipped.preprocessing["unreadable"] == {"ood noise: 2.wav": "an empty file"}
    assert len(clips) == 24


def test_the_store_is_used_again_and_made_anew(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "a"
    paths = list(speakers(root))
    first = load(root, cache).fingerprint()
    read: list[Path] = []
    original = Clip.read
    monkeypatch.setattr(Clip, "read", lambda self, path: read.append(Path(path)) or original(self, path))
    assert load(root, cache).fingerprint() == first
    assert not read
    write(root / paths[3], samples=50)
    assert load(root, cache).fingerprint() != first
    assert len(read) == 24
    load(root, cache, mel=None, features="wave")
    assert len(read) == 48
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    audio_folder(root, RATE, 0.1, mel=MEL)
    assert len(list((tmp_path / "home" / "quorate").iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 0}, "rate must be a positive integer, samples per second, got 0"),
        ({"rate": 16e3}, "rate must be a positive integer, samples per second, got 16000.0"),
        ({"seconds": 0.1004}, r"whole number of samples, at least one, got 0.1004 at 1000 Hz, which are 100.4: say 0.1$"),
        ({"seconds": 0}, "which are 0: say 0.001$"),
        ({"seconds": float("nan")}, "got nan at 1000 Hz"),
        ({"seconds": float("inf")}, "got inf at 1000 Hz"),
        ({"seconds": "1"}, "seconds must be a number, got '1'"),
        ({"resample": "no"}, "resample must be True or False, got 'no'"),
        ({"mix": 1}, "mix must be True or False, got 1"),
        ({"mel": {"n_fft": 64}}, "mel must be a LogMel, or None for the samples themselves, got {'n_fft': 64}"),
        ({"short": "crop"}, r"short must be one of \('pad', 'error'\), got 'crop'"),
        ({"long": "pad"}, r"long must be one of \('crop', 'error'\), got 'pad'"),
        ({"features": "mfcc"}, "features must be 'log-mel' or 'wave', got 'mfcc'"),
        ({"features": "wave"}, r"mel is for features='log-mel', got LogMel\(.*\) for 'wave': drop it"),
        ({"seconds": 0.02}, "at least one window of 50 samples long, got 20"),
        ({"mel": LogMel(n_fft=64, window=50, f_max=900.0)}, r"f_max ≤ rate/2 = 500 Hz"),
        ({"groups": "x(.)"}, "groups='x\\(.\\)' must find a group in every path, got none in 24 of 24"),
        ({"classes": ["no", "maybe"]}, "every class needs a folder in every part, got none for 'maybe'"),
    ],
)
def test_refuses(tmp_path: Path, cache: Path, options: dict[str, Any], said: str) -> None:
    speakers(tmp_path / "a")
    with pytest.raises(ValueError, match=said) as caught:
        load(tmp_path / "a", cache, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_folder(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder, found none at"):
        load(tmp_path / "none", cache)
    speakers(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="expected a folder, found none at"):
        load(tmp_path / "a", cache, ood={"far": tmp_path / "none"})
