"""A data set from a folder of images, one folder per class.

    root/class/image            all splits are cut off these files
    root/part/class/image       parts train, test, validation (or val), calibration (or cal); those missing are cut off train

Every image is decoded once, as `quorate.data.images.decoding` says, into a store on disk that later starts open at once without
opening an image (`quorate.data.store`); it is made anew when a file's path, size or time, or a setting, has changed.

Shapes: images (N, C, size, size) uint8; labels (N,) int64 by sorted class names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quorate.data.augment import Augmentation
from quorate.data.dataset import Data
from quorate.data.images.decoding import EXTENSIONS, RESIZE, Decoding, careful, decode, telling
from quorate.data.listed import read_listed
from quorate.data.listing import list_classes, list_files
from quorate.data.reading import one_shape


def image_folder(
    root: str | Path,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    resize: Literal["crop", "stretch", "pad"] = "crop",
    background: tuple[int, int, int] = (255, 255, 255),
    groups: str | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    nested: bool = False,
    unreadable: Literal["error", "skip"] = "error",
    ood: Mapping[str, str | Path] | None = None,
    augmentation: Augmentation | None = None,
    cache: str | Path | None = None,
    name: str = "image_folder",
) -> Data:
    """A `Data` from image files in class folders, in one of the two layouts above, told apart by the folders' names.

    Images become 8-bit: 16-bit values are divided by 257, which is said on stderr when they are first read.
    size, channels, resize, background: see `quorate.data.images.decoding.Decoding`; images of different sizes are refused without
    `size`. groups: a regular expression searched in each path below root, whose first (group) says whose image it is, such as
    "(patient[0-9]+)": all of a group's images go to one split, and parts that share a group are refused. fractions: of the
    files of root or root/train, for train and then for each part that is not there, in the order validation, calibration,
    test; by default 0.1, 0.1, 0.2 and the rest for train. seed: of this partition, which is stratified. classes: the class
    folders to take, in the order of their labels; all, sorted, if None. nested: take the files of a class folder's
    subfolders too. unreadable: "skip" leaves out images that can't be read, names them on stderr and in
    `Data.preprocessing`. ood: {name: folder}, all images in and below it. cache: folder of the stores, by default
    $XDG_CACHE_HOME/quorate or ~/.cache/quorate. name: part of the fingerprint (the paths aren't).

    Files whose suffix is not among `quorate.data.images.decoding.EXTENSIONS` (in any case) are passed over, hidden ones too;
    `Data.preprocessing` counts them. ids: numbers of the files in the order of parts, classes and paths; OOD sets count
    their own. Raises ImportError without Pillow; FileNotFoundError for a missing folder; ValueError for other settings, for
    layouts, classes and groups as `list_classes` and `path_groups` refuse them, unreadable images (the first are named),
    images of different sizes (two are named), and whatever `Data` refuses.
    """
    decoding = Decoding(size, channels, resize, background)
    listing = list_classes(root, EXTENSIONS, classes, nested)
    outside = {key: list_files(folder, EXTENSIONS) for key, folder in (ood or {}).items()}
    read: Callable[[Path], np.ndarray] = functools.partial(decode, decoding=decoding)
    settings: dict[str, Any] = {"kind": "images/1", **decoding.settings()}
    with careful():
        shape: tuple[int, ...] = (channels, size or 0, size or 0)
        if size is None:
            files = sorted((file for part in listing.parts.values() for file in part), key=lambda file: not file.size)
            shape, read = one_shape(read, [listing.root / file.path for file in files], str, RESIZE)  # the empty ones last
        with telling(name):
            return read_listed(
                name,
                listing,
                outside,
                shape,
                np.uint8,
                read,
                settings,
                cache=cache,
                unreadable=unreadable,
                groups=groups,
                fractions=fractions,
                seed=seed,
                augmentation=augmentation,
            )
