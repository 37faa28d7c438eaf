"""One WAV file as floating-point samples.

Format (IBM, Microsoft: Multimedia Programming Interface and Data Specifications 1.0, 1991, "Waveform Audio File Format"): "RIFF"
(little-endian), "RIFX" (big-endian) or "RF64" (EBU Tech 3306: sizes beyond 32 bits in a chunk "ds64"), a size, "WAVE", then
chunks of a four-letter name, a size and that many bytes, padded to an even number. Only "fmt " and "data" matter. These two
alone are handed to SciPy, which decodes them, so that other chunks, wrong sizes of the whole and what follows the data do no
harm, and data that are cut short are noticed. Integers of b bits become

    x = v / 2ᵇ⁻¹        and unsigned ones (b ≤ 8)      x = (v − 128) / 128,

Shapes: (channels, samples) float32, in [−1, 1] for integers; floats are as they are in the file.
"""

from __future__ import annotations

import io
import struct

import numpy as np

from quorate.data.npz import one_line
from quorate.data.store import Unreadable

PCM = 1
UNKNOWN_SIZE = 0xFFFFFFFF
MOST = 2**32 - 2**20  # bytes of samples that a RIFF file has room for


def find_chunks(content: bytes) -> tuple[bytes, bytes, bytes]:
    """(b"RIFF" or b"RIFX", body of the fmt chunk, body of the data chunk) of a file; Unreadable where it has not both."""
    magic, form = content[:4], content[8:12]
    if magic not in (b"RIFF", b"RIFX", b"RF64") or form != b"WAVE":
        raise Unreadable(f"no WAV file, it begins with {content[:4]!r} … {form!r}" if content else "an empty file")
    order = ">" if magic == b"RIFX" else "<"
    fmt, long_size, at = b"", None, 12
    while at + 8 <= len(content):
        name, size = content[at : at + 4], struct.unpack_from(f"{order}I", content, at + 4)[0]
        at += 8
        if name == b"data" and magic == b"RF64" and size == UNKNOWN_SIZE and long_size is not None:
            size = long_size
        if at + size > len(content):
            raise Unreadable(f"cut short: its {name.decode('latin-1')!r} chunk has {len(content) - at} of {size} bytes")
        body = content[at : at + size]
        if name == b"ds64" and size >= 16:
            long_size = struct.unpack_from("<Q", body, 8)[0]
        elif name == b"fmt ":
            fmt = body
        elif name == b"data":
            if len(fmt) < 16:
                raise Unreadable("its data come without a format before them")
            return (b"RIFX" if magic == b"RIFX" else b"RIFF"), fmt, body
        at += size + size % 2
    raise Unreadable("cut short: it has no data chunk")


def parse_wav(content: bytes) -> tuple[np.ndarray, int]:
    """(samples (channels, n) float32, samples per second) of the bytes of a WAV file, n ≥ 1.

    Integers of 8 to 64 bits, unsigned up to 8, floats of 32 or 64 bits, also as WAVE_FORMAT_EXTENSIBLE. Raises `Unreadable`
    for anything that is no such file, is damaged or cut short, and for NaN or infinity.
    """
    from scipy.io import wavfile

    magic, fmt, data = find_chunks(content)
    order = ">" if magic == b"RIFX" else "<"
    tag, channels, rate, _, block, depth = struct.unpack_from(f"{order}HHIIHH", fmt)
    width = block // channels if channels and block % channels == 0 else 0  # bytes of one sample
    roomy = tag == PCM and depth > 8 and width <= 8
    least = -(-depth // 8)
    if not (rate and depth and (width == least or (roomy and width > least))):
        raise Unreadable(f"damaged format: {channels} channels, {rate} Hz, {depth} bits in frames of {block} bytes")
    if not data or len(data) % block:
        raise Unreadable(f"its {len(data)} bytes of data are no whole number of frames of {block} bytes, at least one")
    if len(data) > MOST:
        raise Unreadable(f"its {len(data)} bytes of data are more than {MOST}: cut it into pieces")
    fmt = fmt[:8] + struct.pack(f"{order}I", rate * block % 2**32) + fmt[12:]  # derived, and wrong in some files
    chunks = b"".join(
        name + struct.pack(f"{order}I", len(body)) + body + b"\0" * (len(body) % 2)
        for name, body in ((b"fmt ", fmt), (b"data", data))
    )
    try:
        _, values = wavfile.read(io.BytesIO(magic + struct.pack(f"{order}I", 4 + len(chunks)) + b"WAVE" + chunks))
    except MemoryError:  # nothing that is wrong with the file
        raise
    except Exception as error:  # whatever the parser stumbles over
        raise Unreadable(one_line(error)) from error
    samples = values.reshape(-1, channels).T.astype(np.float64)
    if values.dtype == np.uint8:
        samples = (samples - 128) / 128
    elif values.dtype.kind == "i":
        samples /= 2.0 ** (8 * values.dtype.itemsize - 1)
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(samples, np.float32)
    if not np.isfinite(found).all():
        raise Unreadable("its samples hold NaN or infinity")
    return found, int(rate)
