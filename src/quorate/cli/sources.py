"""Sources of outputs: run folders, files of ``Outputs.save``, foreign files (NumPy archives, CSV) whose contents options name; ONNX files.

A source is ``[NAME=]PATH``; without a name it has its file's or folder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quorate.foreign import read_npz
from quorate.outputs import Outputs
from quorate.runs import Run

FOREIGN = (".npz", ".csv")
ONNX = ".onnx"
OF_ONNX = ("kind", "class_names", "combine")  # options that ONNX files have too


@dataclass(frozen=True)
class How:
    """How foreign files are read, the same for all of them; see :meth:`Outputs.from_npz` and :meth:`Outputs.from_csv`.

    ``values`` has a word per stage, the names in it joined by commas; ``names_array`` is the array that holds the stages' names.
    """

    kind: str | None = None
    values: Sequence[str] | None = None
    labels: str | None = None
    ids: str | None = None
    names: Sequence[str] | None = None
    names_array: str | None = None
    class_names: Sequence[str] | None = None
    combine: str | None = None
    ordered: bool = False
    delimiter: str = ","

    def given(self) -> list[str]:
        """The options that say something."""
        return [key for key, value in vars(self).items() if value != getattr(How, key)]


def add_reading(using: Any) -> None:
    """Add the options that say what is what in ``.npz`` and ``.csv`` files."""
    options: dict[str, dict[str, Any]] = {
        "kind": {
            "type": Literal["logits", "probs", "top1"] | None,
            "help": "of .npz, .csv and .onnx files: logits, probs or top1",
        },
        "values": {
            "type": str,
            "nargs": "+",
            "metavar": "NAME[,NAME…]",
            "help": "a word per stage: its array; its columns in class order, joined by commas; for top1 label,probability",
        },
        "labels": {"type": str, "metavar": "NAME", "help": "their array or column of true classes"},
        "ids": {
            "type": str,
            "metavar": "NAME",
            "help": "their array or column of row ids (default: rows are matched by position)",
        },
        "names": {"type": str, "nargs": "+", "metavar": "NAME", "help": "their stages' names, in order"},
        "names_array": {"type": str, "metavar": "NAME", "help": "the array of an .npz that holds the stages' names"},
        "class_names": {"type": str, "nargs": "+", "metavar": "NAME", "help": "their classes' names, in order"},
        "combine": {"type": Literal["probs", "logits", "last"] | None, "help": "how their members join: probs, logits or last"},
    }
    for name, about in options.items():
        using.add_argument(f"--{name}", default=None, **about)
    using.add_argument("--ordered", action="store_true", help="their stages depend on the ones before: only prefixes make sense")
    using.add_argument("--delimiter", type=str, default=",", help="between the fields of a .csv")


def how(chosen: Any) -> How:
    """The options that :func:`add_reading` added."""
    return How(**{key: chosen[key] for key in vars(How())})


@dataclass(frozen=True)
class Source:
    """One source, its outputs read when asked for."""

    name: str
    path: Path

    @classmethod
    def of(cls, text: str) -> Source:
        """Read ``[NAME=]PATH``."""
        name, equals, path = text.partition("=")
        if equals and (not name or not path):
            raise ValueError(f"{text!r}: expected PATH, or NAME=PATH")
        place = Path(path if equals else text)
        return cls(name if equals else place.resolve().name if place.is_dir() else place.stem, place)

    @property
    def is_run(self) -> bool:
        """Whether this is a run folder, not a file."""
        return self.path.is_dir()

    @property
    def is_onnx(self) -> bool:
        """Whether this is a model that has to be run (:mod:`quorate.cli.fed`), not stored outputs."""
        return self.path.suffix == ONNX and not self.is_run

    def part(self, part: str) -> Outputs | None:
        """A run's outputs of this part; None where it has none."""
        run = Run(self.path)
        if run.finished and not (run.path / "outputs" / f"{part}.safetensors").is_file():
            return None
        return run.outputs(part)


def read(path: str | Path, reading: How, labelled: bool = True) -> Outputs:
    """The Outputs in a file.

    Raises:
        FileNotFoundError, ValueError: no such file, a format that is not known, a foreign file without the names of what is in it, or
            what is wrong in it; the file is named.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return Outputs.load(path)
    if path.suffix not in FOREIGN:
        there = "" if path.exists() else ", and it does not exist"
        raise ValueError(f"{path}: expected a run folder, or a file that ends in .safetensors, .npz or .csv{there}")
    if reading.kind is None or not reading.values:
        raise ValueError(
            f"{path}: what is in it is never guessed, give --kind (logits, probs or top1) and --values with the names"
        )
    if reading.names is not None and reading.names_array is not None:
        raise ValueError("--names and --names_array both name the stages: give one of them")
    stages = [word.split(",") for word in reading.values]
    labels = reading.labels if labelled else None
    options: dict[str, Any] = {
        "kind": reading.kind, "labels": labels, "ids": reading.ids, "classes": reading.class_names, "combine": reading.combine,
        "ordered": reading.ordered, "names": reading.names,
    }  # fmt: skip
    if path.suffix == ".csv":
        if reading.names_array is not None:
            raise ValueError(f"{path}: --names_array is for .npz files, give --names")
        return Outputs.from_csv(path, stages, delimiter=reading.delimiter, **options)
    count = 2 if reading.kind == "top1" else 1
    if wrong := [word for word, names in zip(reading.values, stages, strict=True) if len(names) != count]:
        expected = "LABELS,PROBABILITIES" if reading.kind == "top1" else "the name of one array"
        raise ValueError(f"{path}: --values {wrong[0]} for kind {reading.kind}: expected {expected} per stage")
    if reading.names_array is not None:
        options["names"] = _stage_names(path, reading.names_array)
    return Outputs.from_npz(path, [(s[0], s[1]) if reading.kind == "top1" else s[0] for s in stages], **options)


def _stage_names(path: Path, array: str) -> list[str]:
    names = read_npz(path, [array], "logits")["values"][0]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"{path}: {array!r} is {names.dtype} of shape {names.shape}, expected the stages' names as text (K,)")
    return [str(name) for name in names]


def check_reading(paths: Sequence[str | Path], reading: How) -> None:
    """A ValueError for options of foreign files where there are none."""
    suffixes = {Path(path).suffix for path in paths}
    given = [name for name in reading.given() if ONNX not in suffixes or name not in OF_ONNX]
    if given and not suffixes & set(FOREIGN):
        raise ValueError(f"--{given[0]} is for .npz and .csv files, there are none: leave it out")
