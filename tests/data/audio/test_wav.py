"""WAV files: every depth against SciPy's writer, the standard library's and hand-made bytes; odd, damaged and foreign files."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path
from unittest.mock import Mock

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from scipy.io import wavfile

from quorate.data.audio import wav
from quorate.data.audio.wav import parse_wav
from quorate.data.store import Unreadable

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(-(2**31), 2**31, (50, 2))  # 32-bit values, (n, channels)


def pack(
    fmt: bytes, data: bytes, before: bytes = b"", after: bytes = b"", magic: bytes = b"RIFF", size: int | None = None
) -> bytes:
    """A WAV file of these chunks; `size` claims another one for the data."""
    order = ">" if magic == b"RIFX" else "<"
    body = b"WAVE" + before + chunk(b"fmt ", fmt, order) + chunk(b"data", data, order, size) + after
    return magic + struct.pack(f"{order}I", len(body)) + body


def chunk(name: bytes, body: bytes, order: str = "<", size: int | None = None) -> bytes:
    return name + struct.pack(f"{order}I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def pcm(
    channels: int, depth: int, block: int, tag: int = 1, rate: int = 8000, order: str = "<", average: int | None = None
) -> bytes:
    average = rate * block if average is None else average
    return struct.pack(f"{order}HHIIHH", tag, channels, rate, average, block, depth)


def guid(tag: int, channels: int, depth: int, block: int) -> bytes:
    tail = b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
    return pcm(channels, depth, block, 0xFFFE) + struct.pack("<HHIH", 22, depth, 0, tag) + tail


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_depths_against_scipys_writer(tmp_path: Path, dtype: str, channels: int) -> None:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = RNG.normal(size=(40, channels)).astype(kind)
        expected = values
    else:
        values = RNG.integers(np.iinfo(kind).min, np.iinfo(kind).max, (40, channels), dtype=kind, endpoint=True)
        middle = 128 if dtype == "uint8" else 0
        expected = (values.astype(np.longdouble) - middle) / 2 ** (8 * kind.itemsize - 1)
    wavfile.write(tmp_path / "a.wav", 11025, values[:, 0] if channels == 1 else values)
    samples, rate = parse_wav((tmp_path / "a.wav").read_bytes())
    assert (samples.shape, samples.dtype, rate) == ((channels, 40), np.float32, 11025)
    np.testing.assert_array_equal(samples, expected.T.astype(np.float32))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_against_the_standard_library(width: int) -> None:
    whole = FRAMES >> 8 * (4 - width)
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((2, width, 44100, 0, "NONE", ""))
        little = (whole + 128 if width == 1 else whole).astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width]
        file.writeframes(little.tobytes())
    samples, rate = parse_wav(stream.getvalue())
    np.testing.assert_array_equal(samples, (whole.T / 2.0 ** (8 * width - 1)).astype(np.float32))
    assert rate == 44100


def test_ends_of_the_range() -> None:
    for dtype, low, high in (("<i2", -1, 1 - 2**-15), ("u1", -1, 1 - 2**-7), ("<i4", -1, 1)):  # 1 − 2⁻³¹ rounds to 1
        info = np.iinfo(dtype)
        data = np.array([info.min, info.max], dtype).tobytes()
        samples, _ = parse_wav(pack(pcm(1, info.bits, info.bits // 8), data))
        assert samples.tolist() == [[low, high]]
    loud, _ = parse_wav(pack(pcm(1, 32, 4, tag=3), np.array([-3, 2.5], "<f4").tobytes()))
    assert loud.tolist() == [[-3, 2.5]]  # not clipped


def test_extensible_big_endian_and_rf64() -> None:
    values = FRAMES[:, 0] >> 16
    expected = (values / 2**15).astype(np.float32)
    little, big = values.astype("<i2").tobytes(), values.astype(">i2").tobytes()
    long = struct.pack("<4sIQQQI", b"ds64", 28, 0, len(little), len(values), 0)
    for content in (
        pack(guid(1, 1, 16, 2), little),
        pack(pcm(1, 16, 2, order=">"), big, magic=b"RIFX"),
        pack(pcm(1, 16, 2), little, before=long, magic=b"RF64", size=2**32 - 1),
        pack(pcm(1, 16, 2), little, before=long, magic=b"RF64"),
    ):
        np.testing.assert_array_equal(parse_wav(content)[0][0], expected)
    floats = RNG.normal(size=9).astype("<f8")
    np.testing.assert_array_equal(parse_wav(pack(guid(3, 1, 64, 8), floats.tobytes()))[0][0], floats.astype(np.float32))


def test_oddities_do_no_harm(recwarn: pytest.WarningsRecorder) -> None:
    values = np.arange(-5, 6, dtype="<i2")
    fmt, data = pcm(1, 16, 2), values.tobytes()
    plain = pack(fmt, data)
    odd = chunk(b"bext", b"abc") + chunk(b"LIST", b"INFO") + chunk(b"\xff\x00~~", b"")
    for content in (
        pack(fmt, data, before=odd, after=odd),
        pack(fmt, data, after=b"id3 "),
        pack(fmt, data, after=b"x"),
        pack(pcm(1, 16, 2, average=17), data),
        pack(fmt + b"\0\0", data),
        plain[:4] + struct.pack("<I", 0) + plain[8:],
        plain[:4] + struct.pack("<I", 10**6) + plain[8:],
    ):
        np.testing.assert_array_equal(parse_wav(content)[0], [values / np.float32(2**15)])
    one = parse_wav(pack(pcm(1, 8, 1), b"\x80\x81\xff"))[0]  # an odd number of bytes
    assert one.tolist() == [[0, 1 / 128, 127 / 128]]
    wide = parse_wav(pack(pcm(1, 24, 4), np.array([-(2**31), 2**30], "<i4").tobytes()))[0]  # 24 bits, left in 4 bytes
    assert wide.tolist() == [[-1, 0.5]]
    assert not recwarn.list


GOOD = pack(pcm(2, 16, 4), (FRAMES >> 16).astype("<i2").tobytes())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"fLaC" + bytes(40), r"no WAV file, it begins with b'fLaC'"),
        (b"RIFF\x04\0\0\0AVI " + bytes(40), "no WAV file"),
        (GOOD[:-1], "cut short: its 'data' chunk has 199 of 200 bytes"),
        (GOOD[:40], "cut short: it has no data chunk"),
        (GOOD[:30], "cut short: its 'fmt ' chunk has 10 of 16 bytes"),
        (pack(pcm(1, 16, 2), b"1234", size=2**32 - 1), "cut short: its 'data' chunk has 4 of 4294967295 bytes"),
        (pack(b"1234567890", b"1234"), "its data come without a format before them"),
        (pack(pcm(1, 16, 2), b""), "its 0 bytes of data are no whole number of frames of 2 bytes, at least one"),
        (pack(pcm(2, 16, 4), b"123456"), "its 6 bytes of data are no whole number of frames of 4 bytes"),
        (pack(pcm(0, 16, 2), b"1234"), "damaged format: 0 channels, 8000 Hz, 16 bits in frames of 2 bytes"),
        (pack(pcm(1, 16, 2, rate=0), b"1234"), "damaged format: 1 channels, 0 Hz"),
        (pack(pcm(1, 16, 1), b"1234"), "damaged format"),
        (pack(pcm(2, 16, 3), b"123456"), "damaged format"),
        (pack(pcm(1, 64, 4, tag=3), b"1234"), "damaged format"),
        (pack(pcm(1, 0, 1), b"1234"), "damaged format"),
        (pack(pcm(1, 8, 1, tag=7), b"1234"), "Unknown wave file format: MULAW"),
        (pack(pcm(1, 8, 1, tag=0xFFFE), b"1234"), "wave file|Binary structure"),
        (pack(pcm(1, 16, 2, tag=3), b"1234"), "Unsupported bit depth"),
        (pack(pcm(1, 128, 16), bytes(32)), "Unsupported bit depth"),
        (pack(pcm(1, 32, 4, tag=3), np.array([1, np.nan], "<f4").tobytes()), "its samples hold NaN or infinity"),
        (pack(pcm(1, 64, 8, tag=3), np.array([1, 1e300], "<f8").tobytes()), "its samples hold NaN or infinity"),
    ],
)
def test_refuses(content: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said) as caught:
        parse_wav(content)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wav, "MOST", 100)
    with pytest.raises(Unreadable, match="its 200 bytes of data are more than 100: cut it into pieces"):
        parse_wav(GOOD)


def test_too_little_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wavfile, "read", Mock(side_effect=MemoryError("no room")))
    with pytest.raises(MemoryError, match="no room"):
        parse_wav(GOOD)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_any_damage_is_noticed_or_gives_samples(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for damaged in (bytes(content), cut):
        try:
            samples, rate = parse_wav(damaged)
        except Unreadable:
            pass
        else:
            assert samples.size
            assert np.isfinite(samples).all()
            assert rate > 0


FILES = sorted((Path(scipy.io.__file__).parent / "tests" / "data").glob("test-*.wav"))


@pytest.mark.skipif(not FILES, reason="SciPy was installed without its tests")
@pytest.mark.filterwarnings("ignore::scipy.io.wavfile.WavFileWarning")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scipys_own_files(path: Path) -> None:
    try:
        rate, values = wavfile.read(path)
        mine, my_rate = parse_wav(path.read_bytes())
    except ValueError:
        assert any(word in path.stem for word in ("ulaw", "early-eof", "incomplete", "inconsistent"))
        return
    exact = values.reshape(len(values), -1).T.astype(np.float64)
    if values.dtype.kind == "u":
        exact = (exact - 128) / 128
    elif values.dtype.kind == "i":
        exact /= 2.0 ** (8 * values.dtype.itemsize - 1)
    np.testing.assert_array_equal(mine, exact.astype(np.float32))
    assert my_rate == rate
