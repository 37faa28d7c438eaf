"""Rows as image files, one each: decoded by Pillow and taken as they are, or refused.

    bundle's row        mode of the image      value
    (1, H, W)           L    (grey)            v, uint8
    (3, H, W)           RGB                    v, uint8
    (4, H, W)           RGBA                   v, uint8
    float, --scale s    as above               v / s in the bundle's dtype

Nothing is resized, converted or laid over a background: an image of another size, mode or depth, with a transparent colour or
with several pictures is named and refused. Only EXIF's orientation is followed, as everywhere in Quorate.

Shapes: rows (n, C, H, W); ids (n,), the paths below the folder, with ``/``.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate._optional import imported
from quorate.cli.predicting.row_file import SHOWN, Block, IdKind, Reading, check_shape, reason, shown_shape, takes
from quorate.cli.usage import UsageError
from quorate.runtime.program import Port

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")  # no others: for some, Pillow starts programs
EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ORIENTATION = 0x0112  # EXIF's tag; from 5 on the sides are exchanged
WORKERS = 8


class ImageFiles:
    """Image files in the order of their ids. Raises ImportError without Pillow."""

    id_kind: IdKind | None = "text"

    def __init__(self, name: str, paths: Sequence[Path], ids: Sequence[str], port: Port, reading: Reading) -> None:
        self.name, self.paths, self.ids, self.port = name, paths, ids, port
        self.rows = len(paths)
        given = next((key for key in ("array", "columns", "ids", "cast") if getattr(reading, key)), None)
        if given is not None:
            raise UsageError(f"--{given} is not for image files ({name}): leave it out; their ids are their paths")
        if len(port.shape) != 3 or port.shape[0] not in MODES:
            raise ValueError(f"{name} holds images, rows of shape (C, H, W) with C {', '.join(map(str, MODES))}: {takes(port)}")
        self.mode, self.scale = MODES[int(port.shape[0] or 0)], self._checked(reading.scale)
        self.library, self.turned = imported("PIL.Image", "pillow"), imported("PIL.ImageOps", "pillow")
        self.library.init()

    def blocks(self, start: int, size: int) -> Iterator[Block]:
        """See :class:`quorate.cli.predicting.row_file.RowFile`."""
        with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
            for at in range(start, self.rows, size):
                rows = range(at, min(at + size, self.rows))
                with warnings.catch_warnings():  # set for the whole process, so around the threads
                    warnings.filterwarnings("ignore", module=r"PIL\.")
                    warnings.simplefilter("error", self.library.DecompressionBombWarning)
                    images = list(pool.map(self._decoded, rows))
                begun = 0
                for k in range(1, len(images) + 1):  # sizes may be free
                    if k == len(images) or images[k].shape != images[begun].shape:
                        yield self._scaled(np.stack(images[begun:k])), np.array(self.ids[rows[begun] : rows[begun] + k - begun])
                        begun = k

    def shown(self, rows: Sequence[int]) -> str:
        """See :class:`quorate.cli.predicting.row_file.RowFile`."""
        more = f", … ({len(rows)} in all)" if len(rows) > SHOWN else ""
        return ", ".join(str(self.paths[row]) for row in rows[:SHOWN]) + more

    def _checked(self, scale: float | None) -> float | None:
        kind = np.dtype(self.port.dtype).kind
        if kind == "f" and scale is None:
            raise ValueError(
                f"{self.name} holds images, numbers 0 … 255, {takes(self.port)}: say what they are divided by, such as --scale 255 "
                "(--scale 1 to leave them as they are)"
            )
        if kind != "f" and (self.port.dtype != "uint8" or scale is not None):
            wrong = "images are uint8" if scale is None else f"--scale {scale:g} makes fractions"
            raise ValueError(
                f"{self.name}: {wrong}, {takes(self.port)}; " + ("leave it out" if scale is not None else "store them so")
            )
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise UsageError(f"--scale {scale:g}: expected a finite number > 0")
        return scale

    def _scaled(self, images: NDArray[Any]) -> NDArray[Any]:
        return images if self.scale is None else images.astype(self.port.dtype) / np.dtype(self.port.dtype).type(self.scale)

    def _decoded(self, row: int) -> NDArray[Any]:
        """(C, H, W) uint8."""
        path = self.paths[row]
        try:
            content = path.read_bytes()
            with self.library.open(io.BytesIO(content), formats=FORMATS) as image:
                self._check(path, image)
                values = np.asarray(self.turned.exif_transpose(image))
        except _Refused:
            raise
        except Exception as error:  # damage surfaces as whatever a decoder stumbles over
            raise ValueError(f"{path} can't be read as an image ({reason(error)}): mend it, or take it away") from error
        found = np.ascontiguousarray(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))
        check_shape(str(path), found.shape, self.port)
        return found

    def _check(self, path: Path, image: Any) -> None:
        """What can be known before the pixels are decoded."""
        tile = image.tile[0].args if image.tile else ""
        raw = str(tile[0] if isinstance(tile, tuple) and tile else tile)
        deep = ";16" in raw or (image.format == "PPM" and isinstance(tile, tuple) and max(tile[1:], default=0) > 255)
        if image.mode != self.mode or deep:
            held = f"{image.mode}{' of 16 bits' if deep else ''}"
            raise _Refused(f"{path} is an image of mode {held}: {takes(self.port)}, that is {self.mode} of 8 bits; convert it")
        if "transparency" in image.info:
            raise _Refused(f"{path} has a transparent colour, and nothing is behind it: lay it over a background")
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's: the picture, then previews
            raise _Refused(f"{path} holds {image.n_frames} pictures: expected one, store each alone")
        width, height = image.size
        if image.getexif().get(ORIENTATION, 1) >= 5:
            width, height = height, width
        if any(want not in (None, got) for want, got in zip(self.port.shape[1:], (height, width), strict=True)):
            raise _Refused(
                f"{path} has {width}×{height} pixels, a row of shape {shown_shape((len(image.getbands()), height, width))}: "
                f"{takes(self.port)}; resize it as the training images were"
            )


class _Refused(ValueError):
    """An image that is sound, but no row of the bundle's."""
