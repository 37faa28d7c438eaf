"""One image file as an array: (C, size, size) uint8, by Pillow, with every choice stated.

In this order: turned as EXIF says, brought to 8 bits, laid over the background where transparent, to 1 or 3 channels, resized.

    16 bits   v ↦ ⌊v / 257 + ½⌋, since 65535 = 257 · 255 (Pillow's own conversion clips at 255). Of 16-bit colour Pillow reads
              the high byte, ⌊v / 256⌋, which differs by one level at most.
    alpha     a · colour + (1 − a) · background
    grey      0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) of the values as stored: colour profiles are not applied
    resize    bilinear over the whole area that becomes a pixel (antialiased). "crop": the shorter side becomes `size`, and the
              centred square is taken; "stretch": both sides become `size`, whatever their ratio; "pad": the longer side
              becomes `size`, and the image is centred on the background.

Shapes: (C, H, W) uint8, C 1 or 3.
"""

from __future__ import annotations

import collections
import contextlib
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quorate.data.npz import one_line
from quorate.data.store import Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")  # no others: for some, Pillow starts programs
EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
MODES = ("1", "L", "P", "RGB", "RGBX", "RGBA", "RGBa", "LA", "La", "PA", "CMYK", "YCbCr", "HSV")  # of 8 bits, or 1
UNMATCHED = ("L;2", "L;4", "RGB;16B")  # raw modes in which Pillow doesn't bring a PNG's transparent colour to 8 bits
REASON = 160  # characters
UNTOLD: collections.deque[str] = collections.deque()  # readings in which 16-bit images have not come yet; its pop is atomic
RESIZE = "pass size=…, with resize='crop', 'stretch' or 'pad'"  # the remedy where sizes differ


@dataclass(frozen=True)
class Decoding:
    """How image files become arrays (C, size, size); see the module's text.

    size: side in pixels, or None to leave images as they are. channels: 1 (grey) or 3 (RGB). resize: "crop", "stretch" or
    "pad". background: (red, green, blue) in 0..255, under transparent pixels and around padded images.
    Raises ValueError for anything else.
    """

    size: int | None = None
    channels: Literal[1, 3] = 3
    resize: Literal["crop", "stretch", "pad"] = "crop"
    background: Sequence[int] = (255, 255, 255)

    def __post_init__(self) -> None:
        if self.size is not None and (type(self.size) is not int or self.size < 1):
            raise ValueError(f"size must be a positive integer, the side in pixels, or None, got {self.size!r}")
        channels: object = self.channels
        if type(channels) is not int or channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
        if self.resize not in ("crop", "stretch", "pad"):
            raise ValueError(f"resize must be 'crop', 'stretch' or 'pad', got {self.resize!r}")
        background: object = self.background
        colour = tuple(background) if isinstance(background, Sequence) else ()
        if len(colour) != 3 or any(type(c) is not int or not 0 <= c <= 255 for c in colour):
            raise ValueError(f"background must be (red, green, blue), whole numbers in 0..255, got {self.background!r}")
        object.__setattr__(self, "background", colour)

    def settings(self) -> dict[str, Any]:
        """All that decides what a file becomes, as JSON values, for a cache's key and for what is kept with a model.

        Beside the fields these are Pillow's own settings: the limit of pixels, and whether truncated files are read.
        Raises ImportError without Pillow.
        """
        _check_pillow()
        from PIL import Image, ImageFile

        pillow = {"pixels": Image.MAX_IMAGE_PIXELS, "truncated": ImageFile.LOAD_TRUNCATED_IMAGES}
        return asdict(self) | {"background": list(self.background), "pillow": pillow}


def _check_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError('reading images needs Pillow, which is not installed: pip install "quorate[train]"') from error


@contextlib.contextmanager
def careful() -> Iterator[None]:
    """While images are read: Pillow's warning of a decompression bomb is an error, its other ones are not shown.

    Warnings are set for the whole process, so this belongs around the threads that read, not into them.
    Raises ImportError without Pillow.
    """
    _check_pillow()
    from PIL import Image

    Image.init()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def telling(label: str) -> Iterator[None]:
    """While images are read into a store: the first one of 16 bits is told on stderr, once for the reading called `label`."""
    UNTOLD.append(label)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # it was told
            UNTOLD.remove(label)


def _is_deep(image: ImageFile, raw: str) -> bool:
    """Whether the file's samples have 16 bits; of a PPM's, the decoder's arguments hold the greatest value."""
    arguments = image.tile[0].args if image.tile and image.format == "PPM" else None
    greatest = max(arguments[1:], default=0) if isinstance(arguments, tuple) else 0
    return ";16" in raw or (image.mode.startswith("I;16") and raw != "I;12") or greatest > 255


def _tell_scaled() -> None:
    with contextlib.suppress(IndexError):
        print(f"{UNTOLD.pop()}: images become 8-bit: 16-bit values are divided by 257", file=sys.stderr)


def _raw_mode(image: ImageFile) -> str:
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def eight_bits(image: ImageFile) -> Image:
    """An open file's only picture, oriented, in one of `MODES`; Unreadable where its values have no known range."""
    from PIL import Image, ImageOps

    kind, raw, tags = image.format, _raw_mode(image), getattr(image, "tag_v2", {})
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Unreadable(f"{image.width}×{image.height} pixels, more than Pillow's limit of {limit}")
    frames = 1 if kind == "MPO" else getattr(image, "n_frames", 1)  # a camera's MPO: the picture, then previews
    if frames > 1:
        raise Unreadable(f"{frames} pictures in one file, expected one")
    if "transparency" in image.info and raw in UNMATCHED:
        raise Unreadable(f"a transparent colour in a PNG of raw mode {raw}, which Pillow does not support")
    deep = _is_deep(image, raw)
    upright = ImageOps.exif_transpose(image)  # reads the image, after which it has no raw mode
    if any(sample not in (1, 4) for sample in np.atleast_1d(tags.get(339, 1))):
        raise Unreadable("signed or floating-point samples, which have no known range: convert them to 8 or 16 bits")
    if deep:
        _tell_scaled()
    if upright.mode in MODES:
        return upright
    if not (upright.mode.startswith("I;16") or (upright.mode == "I" and kind in ("PNG", "PPM"))):
        raise Unreadable(f"mode {upright.mode} has no known range: convert it to 8 or 16 bits")
    values = np.asarray(upright).astype(np.int64)
    most = 4095 if raw == "I;12" else 65535
    scaled = (2 * 255 * values + most) // (2 * most)
    grey = Image.fromarray((255 - scaled if tags.get(262) == 0 else scaled).astype(np.uint8))  # 262: 0 means white
    if "transparency" in upright.info:
        grey.putalpha(Image.fromarray(np.where(values == upright.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def opaque(image: Image, background: Sequence[int], mode: Literal["L", "RGB"]) -> Image:
    """The image in `mode`, laid over the background (red, green, blue) where it is transparent."""
    from PIL import Image

    if image.has_transparency_data:
        colours = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), colours).convert("RGB")
    return image.convert(mode)


def resized(image: Image, decoding: Decoding) -> Image:
    """The image, of mode L or RGB, with both sides `size`."""
    from PIL import Image, ImageOps

    size, method = decoding.size, Image.Resampling.BILINEAR
    if size is None:
        return image
    if decoding.resize == "crop":
        return ImageOps.fit(image, (size, size), method)
    if decoding.resize == "stretch":
        return image.resize((size, size), method)
    longer = max(image.size)
    width, height = (max(1, round(side * size / longer)) for side in image.size)
    square = Image.new("RGB", (size, size), tuple(decoding.background)).convert(image.mode)
    square.paste(image.resize((width, height), method), ((size - width) // 2, (size - height) // 2))
    return square


def is_passing(error: Exception) -> bool:
    """Whether a failure is the machine's and may be gone the next time: of memory, or of the system, which numbers its own.

    Pillow's own words on damage are OSErrors without a number. (Of what its decoders say, "out of memory" is the one that is none.)
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and (error.errno is not None or str(error).startswith("out of memory"))
    )


def decode(source: str | Path | bytes, decoding: Decoding) -> np.ndarray:
    """The image in a file, or in a file's bytes: (C, size, size) uint8, or (C, H, W) where size is None.

    The content says which format it is, not the name. Raises ImportError without Pillow; Unreadable with a short reason for
    what is truncated, damaged, of another format than `FORMATS`, larger than Pillow's limit (`MAX_IMAGE_PIXELS`), several
    pictures, or values without a known range; ValueError naming a file that is missing, cannot be read or has no room in
    memory, which is no property of the image, and so nothing for a cache to remember.
    """
    _check_pillow()
    from PIL import Image, UnidentifiedImageError

    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = resized(opaque(eight_bits(image), decoding.background, "L" if decoding.channels == 1 else "RGB"), decoding)
        values = np.asarray(pixels)
        return np.ascontiguousarray(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable(f"not an image in one of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # damage surfaces as whatever a decoder stumbles over
        if is_passing(error):
            name = "the image" if isinstance(source, bytes) else str(source)
            reason = getattr(error, "strerror", None) or one_line(error)
            raise ValueError(f"{name} cannot be read: {reason}: mend that and start again") from error
        raise Unreadable(one_line(error)[:REASON]) from error
