"""A data set of the Hugging Face hub, by name or saved on disk; `datasets` reads it, and which column is what is said.

An image column is decoded as `quorate.data.images.decoding` says. A column of lists or arrays of numbers is brought to channel first
from its stated layout (`quorate.data.npz`) and becomes uint8 or float32. Either is read row by row into a store on disk
(`quorate.data.store`), so it is never whole in memory, and later starts open it at once.

Shapes: images (N, C, size, size) uint8; arrays (N, *shape) uint8 or float32; labels (N,) int64, targets (N, D) float32.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quorate.data.arrays import assemble_parts, numbered
from quorate.data.augment import Augmentation
from quorate.data.dataset import Data
from quorate.data.hub_columns import (
    check_columns,
    check_same_types,
    column,
    groups_of,
    input_reader,
    is_image,
    labels_of,
    targets_of,
)
from quorate.data.images.decoding import RESIZE, Decoding, careful, telling
from quorate.data.listing import name_some
from quorate.data.npz import one_line
from quorate.data.reading import check_unreadable, one_shape, readable_rows
from quorate.data.split import Split
from quorate.data.store import Stored, cache_folder, cached

SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves in a folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While the libraries load, they do not log (every retry of a lost network is a line of theirs): their error says it."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def is_place(path: str) -> bool:
    """Whether this can only be a folder: it starts with ., / or ~, or has more than the one / of a name on the hub."""
    return path.startswith((".", "~")) or Path(path).is_absolute() or path.count("/") > 1


def load(path: str, config: str | None, revision: str | None) -> Any:
    """The `DatasetDict`, or `Dataset`, saved in a folder or of that name on the hub.

    Raises ImportError without `datasets`; FileNotFoundError or ValueError in one line where it cannot be loaded, without asking
    the hub for what can only be a folder.
    """
    if is_place(path) and not Path(path).exists():
        raise FileNotFoundError(
            f"found no folder at {path}: expected one of save_to_disk, or a name on the hub such as 'owner/name'"
        )
    try:
        import datasets
    except ImportError as error:
        raise ImportError('quorate.data.hub needs datasets, which is not installed: pip install "quorate[hub]"') from error
    saved = any((Path(path) / name).is_file() for name in SAVED)
    if saved and (config is not None or revision is not None):
        raise ValueError(f"{path} is a data set saved on disk, which has no {config=} or {revision=}: drop them")
    try:
        with quiet():
            if saved:
                return datasets.load_from_disk(path, keep_in_memory=False)
            return datasets.load_dataset(path, config, revision=revision, keep_in_memory=False)
    except Exception as error:  # of the library, of the network, of the data set's own format
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(
            f"{path!r} cannot be loaded: {one_line(error)}: expected a name on the hub or a folder of save_to_disk"
        ) from error


def chosen_splits(path: str, loaded: Any, wanted: Mapping[str, str | None]) -> dict[str, Any]:
    """{part: `Dataset`} of the wanted splits {part: name or None}; ValueError naming the splits there are."""
    if not hasattr(loaded, "keys"):
        other = [part for part, name in wanted.items() if name is not None and part != "train"]
        if other:
            raise ValueError(
                f"{path!r} is one data set without splits, got names of splits for {', '.join(other)}: pass None for these, and "
                "they are cut off it"
            )
        return {"train": loaded}
    names = [name for name in wanted.values() if name is not None]
    missing = [name for name in names if name not in loaded]
    if missing or len(set(names)) < len(names):
        raise ValueError(
            f"{path!r} must have a split for each of train, test, … that is named, got {name_some(names)}; it has "
            f"{name_some(loaded, 20)}: name these, or pass None for a part to be cut off train"
        )
    return {part: loaded[name] for part, name in wanted.items() if name is not None}


def store_inputs(
    rows: Any,
    key: str,
    decoding: Decoding,
    layout: str | None,
    dtype: Literal["uint8", "float32"] | None,
    cache: str | Path | None,
    where: str,
) -> tuple[Stored, dict[int, str]]:
    """(all inputs, {row: reason} of those that cannot be read) of a column, from the cache if these files were read before.

    Raises what `input_reader` raises, and ValueError naming two rows of different shapes.
    """
    feature = rows.features[key]
    read, kind = input_reader(rows, key, decoding, layout, dtype, where)
    files = [Path(each["filename"]) for each in rows.cache_files]
    if not files:
        raise ValueError(f"{where} lies in memory, expected files: unset HF_DATASETS_IN_MEMORY_MAX_SIZE, or save it to disk")
    status = [file.stat() for file in files]
    store_key = {
        "kind": "hub/1",
        "files": [[str(file.resolve()), s.st_size, s.st_mtime_ns] for file, s in zip(files, status, strict=True)],
        "split": str(rows.split),
        "column": [key, str(feature)],
        "settings": decoding.settings() if is_image(feature) else {"layout": layout},
    }
    with careful() if is_image(feature) else contextlib.nullcontext():
        remedy = RESIZE if is_image(feature) else "cut or pad them to one length first"
        shape, checked = one_shape(read, range(len(rows)), "row {}".format, f"{remedy} ({where})")
        with telling(where):
            return cached(cache_folder(cache), store_key, len(rows), shape, kind, checked, where)


def hub(
    path: str | Path,
    x: str,
    y: str,
    *,
    train: str = "train",
    test: str | None = "test",
    validation: str | None = None,
    calibration: str | None = None,
    task: Literal["classification", "regression"] = "classification",
    targets: Sequence[str] | None = None,
    layout: str | None = None,
    dtype: Literal["uint8", "float32"] | None = None,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    resize: Literal["crop", "stretch", "pad"] = "crop",
    background: tuple[int, int, int] = (255, 255, 255),
    groups: str | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    unreadable: Literal["error", "skip"] = "error",
    ood: Mapping[str, str | Path] | None = None,
    config: str | None = None,
    revision: str | None = None,
    augmentation: Augmentation | None = None,
    cache: str | Path | None = None,
    name: str = "hub",
) -> Data:
    """A `Data` from a Hugging Face data set: a folder written by `save_to_disk`, or else what `datasets.load_dataset` finds.

    x: the column of inputs: images (which become 8-bit: 16-bit values are divided by 257, as is said on stderr when they are
    first read), or lists or arrays of numbers. layout: of arrays, one of `quorate.data.npz.LAYOUTS`
    ("features" for plain lists); None for images. dtype: what arrays become; None takes uint8 and floats for what they are
    (as float32) and refuses other numbers. size, channels, resize, background: of images, see `quorate.data.images.decoding.Decoding`.
    y: the column of class labels, integers from 0, or text, numbered in sorted order; for task="regression" of numbers, or
    of lists of D numbers, named by `targets` (by default y, or y0, y1, …). train, test, validation, calibration: names of its
    splits; a part that is None is cut off train by `fractions`, in the order validation, calibration, test. A data set without
    splits is all train: pass test=None. groups: a column of integers or text that says whose a row is; a group never has
    rows in two parts. unreadable: "skip" leaves out rows without an input that can be read, names them on stderr and in
    `Data.preprocessing`. ood: {name: path of another data set with the column x}, of which the split called as `test`, or
    as train if that is None, or the whole is taken. config, revision: of a data set on the hub. seed, augmentation: as in
    `quorate.data.arrays`. cache: folder of the stores, by default $XDG_CACHE_HOME/quorate or ~/.cache/quorate. name: part of
    the fingerprint (the path isn't). ids: row numbers, of train first, then test, validation, calibration.

    Raises ImportError without `datasets` or, for images, Pillow; FileNotFoundError or ValueError for a data set that cannot
    be loaded; ValueError for columns, splits (those there are listed) and settings that don't fit, rows of different
    shapes (two are named), unreadable rows, and whatever `Data` refuses.
    """
    if task not in ("classification", "regression"):
        raise ValueError(f"task must be 'classification' or 'regression', got {task!r}")
    if targets is not None and task == "classification":
        raise ValueError(f"targets are for regression, got {targets!r}: drop them, or pass task='regression'")
    check_unreadable(unreadable)
    path = str(path)
    wanted = {"train": train, "test": test, "validation": validation, "calibration": calibration}
    parts = chosen_splits(path, load(path, config, revision), wanted)
    for part, rows in parts.items():
        check_columns(path, part, rows, [key for key in (x, y, groups) if key is not None])
    check_same_types(path, parts, [x, y])
    decoding = Decoding(size, channels, resize, background)
    left_out: dict[str, str] = {}

    def read(part: str, rows: Any, y: np.ndarray | None, start: int, groups: np.ndarray | None) -> Split:
        where = f"{name}, {part}"
        stored, bad = store_inputs(rows, x, decoding, layout, dtype, cache, where)
        kept = readable_rows(where, len(rows), bad, unreadable)
        left_out.update({f"{part}, row {row}": reason for row, reason in sorted(bad.items())})
        return numbered(where, stored, y, start, groups).subset(kept)

    whose = {} if groups is None else groups_of(parts, groups, path)
    values = [column(rows, y, f"{path!r}, {part}") for part, rows in parts.items()]
    answer = labels_of if task == "classification" else functools.partial(targets_of, targets=targets)
    answers, names = answer(path, y, parts["train"].features[y], [value for part in values for value in part])
    splits: dict[str, Split] = {}
    start = 0
    for part, rows in parts.items():
        splits[part] = read(part, rows, answers[start : start + len(rows)], start, whose.get(part))
        start += len(rows)
    outside: dict[str, Split] = {}
    for key, place in (ood or {}).items():
        other = load(str(place), None, None)
        far = chosen_splits(str(place), other, {"train": test or train})["train"]
        check_columns(str(place), f"ood {key}", far, [x])
        outside[key] = read(f"ood {key}", far, None, 0, None)
    image = is_image(parts["train"].features[x])
    return assemble_parts(
        name,
        splits,
        fractions,
        seed,
        outside,
        names if task == "classification" else None,
        augmentation,
        targets=names or () if task == "regression" else (),
        preprocessing={
            "kind": "hub/1",
            "columns": {"x": x, "y": y, "groups": groups},
            **(decoding.settings() if image else {"layout": layout, "dtype": dtype}),
            "unreadable": left_out,
        },
    )
