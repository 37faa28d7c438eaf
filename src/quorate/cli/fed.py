"""ONNX files as sources: each is run by ONNX Runtime on raw inputs that options name, and what it says becomes Outputs of one stage.

Raw inputs are an ``.npz`` whose arrays are named, or an ``.npy`` with labels and ids in others beside it. They must be as the programs take
them: nothing is converted, since a file does not say what its numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quorate._validation import nearest
from quorate.cli.sources import How, Source
from quorate.foreign import read_npz
from quorate.outputs import Outputs

if TYPE_CHECKING:
    from quorate.runtime import Program

BATCH = 256


@dataclass(frozen=True)
class Inputs:
    """The options.

    Attributes:
        inputs: the file with raw inputs.
        inputs_x: of an .npz, the array of the inputs.
        inputs_y, inputs_ids: arrays with labels and row ids; of an .npy, files that hold them.
        onnx_output: ``NAME=OUTPUT`` per source, or ``OUTPUT`` for all.
        providers, threads, batch_size: of ONNX Runtime.
    """

    inputs: str | None = None
    inputs_x: str | None = None
    inputs_y: str | None = None
    inputs_ids: str | None = None
    onnx_output: Sequence[str] | None = None
    providers: Sequence[str] | None = None
    threads: int | None = None
    batch_size: int = BATCH

    def given(self) -> list[str]:
        """The options that say something."""
        return [each.name for each in fields(self) if getattr(self, each.name) != each.default]


def add_inputs(using: Any) -> None:
    """Add the options about ONNX files."""
    add = using.add_argument
    add("--inputs", type=str, default=None, metavar="FILE", help="of ONNX files: raw inputs to run them on, .npz or .npy")
    add("--inputs_x", type=str, default=None, metavar="NAME", help="the array of inputs in an .npz")
    add("--inputs_y", type=str, default=None, metavar="NAME", help="the array of labels in an .npz; beside an .npy another .npy")
    add(
        "--inputs_ids", type=str, default=None, metavar="NAME", help="the same of row ids (default: rows are matched by position)"
    )
    add("--onnx_output", type=str, nargs="+", default=None, metavar="[NAME=]OUTPUT", help="of ONNX files with several outputs")
    add("--providers", type=str, nargs="+", default=None, metavar="NAME", help="of ONNX Runtime, in order (default: the CPU's)")
    add("--threads", type=int | None, default=None, help="of one call of ONNX Runtime (default: one per core)")
    add("--batch_size", type=int, default=BATCH, help="rows in one call")


def inputs(chosen: Any) -> Inputs:
    """The options that :func:`add_inputs` added."""
    return Inputs(**{each.name: chosen[each.name] for each in fields(Inputs)})


class Fed:
    """The ONNX files among the sources, raw inputs, and what they say of them.

    Args:
        sources: all of them.
        said: the options.
        reading: kind, combination and class names.
        progress: told ``(source, rows done, rows in all)``.

    Raises:
        ValueError: options without ONNX files, or out of range.
    """

    def __init__(
        self, sources: Sequence[Source], said: Inputs, reading: How, progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        self.said, self.reading, self.progress = said, reading, progress
        self._held: tuple[Path, bool, tuple[Any, Any, Any]] | None = None
        self.files = [source for source in sources if source.is_onnx]
        self._named = _named([source.name for source in self.files], said.onnx_output or ())
        if not self.files and (given := said.given()):
            raise ValueError(f"--{given[0]} is for ONNX files, there are none: leave it out")
        if said.batch_size < 1 or (said.threads is not None and said.threads < 1):
            raise ValueError(f"--batch_size {said.batch_size}, --threads {said.threads}: expected at least 1 each")

    def check(self) -> None:
        """A ValueError unless there is what files have to be run on, and what they give is said."""
        for source in self.files[:1]:
            if self.said.inputs is None:
                raise ValueError(
                    f"{source.path} has to be run on raw inputs: give --inputs FILE.npz --inputs_x NAME --inputs_y NAME"
                )
            if self.reading.kind not in ("logits", "probs"):
                instead = "" if self.reading.kind is None else f", not {self.reading.kind}"
                raise ValueError(f"{source.path}: what it gives is never guessed, give --kind logits or probs{instead}")

    def program(self, source: Source) -> Program:
        """The stage of an ONNX file. Raises what :func:`quorate.runtime.members.onnx_member` raises."""
        from quorate.runtime.members import onnx_member

        output = self._named.get(source.name)
        return onnx_member(source.path, name=source.name, output=output, providers=self.said.providers)

    def outputs(self, source: Source, file: Path | None = None, labelled: bool = True) -> Outputs:
        """Outputs of an ONNX file on the raw inputs, or on those in another ``file``.

        Raises:
            FileNotFoundError, ValueError: inputs that can't be read, or that the program doesn't take or fails on; the file is named.
        """
        assert self.said.inputs is not None
        assert self.reading.kind is not None
        path = Path(self.said.inputs) if file is None else file
        x, labels, ids = self.rows(path, labelled)
        program = self.program(source)
        check_rows(x, program, path)
        try:
            return self.run(program, x, labels, ids, self.reading.kind)
        except ValueError as error:
            raise ValueError(f"{source.path} on {path}: {error}") from error

    def run(
        self,
        program: Program,
        x: Any,
        labels: Any,
        ids: Any,
        kind: str,
        combine: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> Outputs:
        """Outputs of a program on these rows; combination and class names are the options' by default.

        Raises:
            ValueError: what :func:`quorate.runtime.collecting.collect` refuses.
        """
        from quorate.runtime.collecting import collect
        from quorate.runtime.session import OnnxStage, open_session

        said, told, name = self.said, self.progress, program.ports.stage
        session = open_session(program.onnx, f"the program of {name!r}", providers=said.providers, threads=said.threads)
        return collect(
            [OnnxStage(session, program.ports)],
            x,
            labels,
            kind=kind,
            combine=combine or self.reading.combine or "probs",
            ids=ids,
            classes=classes or self.reading.class_names,
            batch_size=said.batch_size,
            progress=None if told is None else lambda done, total: told(name, done, total),
        )

    def rows(self, path: Path, labelled: bool = True) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
        """(inputs, labels, ids) of a file; the last one read is kept."""
        if self._held is None or self._held[:2] != (path, labelled):
            self._held = (path, labelled, self._read(path, replace(self.said, inputs_y=self.said.inputs_y if labelled else None)))
        return self._held[2]

    def _read(self, path: Path, said: Inputs) -> tuple[Any, Any, Any]:
        if path.suffix == ".npz":
            if said.inputs_x is None:
                raise ValueError(f"{path}: which of its arrays holds the inputs is never guessed, give --inputs_x NAME")
            found = read_npz(path, [said.inputs_x], "values", said.inputs_y, said.inputs_ids)
            return found["values"][0], found["labels"], found["ids"]
        if path.suffix != ".npy":
            raise ValueError(f"{path}: expected raw inputs in a file that ends in .npz or .npy")
        if said.inputs_x is not None and str(path) == said.inputs:
            raise ValueError(f"{path} holds one array, --inputs_x {said.inputs_x} names one of an .npz: leave it out")
        if str(path) != said.inputs and (said.inputs_y is not None or said.inputs_ids is not None):
            raise ValueError(f"{path}: an .npy has no labels or ids with it, give an .npz here")
        labels, ids = (None if each is None else _array(Path(each)) for each in (said.inputs_y, said.inputs_ids))
        return _array(path), labels, ids


def _named(sources: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    """{source: output} of ``[NAME=]OUTPUT``."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, output = text.partition("=")
        if equals and name not in sources:
            raise ValueError(f"--onnx_output {text}: {name!r} is none of the ONNX files{nearest(name, list(sources))}")
        for each in [name] if equals else sources:
            if each in found:
                raise ValueError(f"--onnx_output {text}: {each!r} has one already, name each once")
            found[each] = output if equals else text
    return found


def check_rows(x: NDArray[Any], program: Program, path: Path) -> None:
    """A ValueError unless these rows are as the program takes them."""
    port = program.ports.input
    assert port is not None
    if not isinstance(x, np.ndarray) or x.ndim == 0 or not port.fits(x):
        want = ", ".join("any" if size is None else str(size) for size in port.shape)
        raise ValueError(
            f"{path} has inputs {x.dtype} of shape {x.shape}, {program.ports.stage!r} takes {port.dtype} (N, {want}): convert them"
        )


def _array(path: Path) -> NDArray[Any]:
    """One array of an .npy, mapped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a NumPy array (.npy)")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable NumPy array ({error}): write it with numpy.save") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{path} is a NumPy archive, expected a single array: name it .npz")
    return found
