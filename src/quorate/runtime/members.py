"""Members from elsewhere: an ONNX file of any framework as a stage's program, as it is.

Source: ONNX (onnx.ai). The file has one input x (B, *shape), with B free or fixed, and its output is (B, C) or (m, B, C) floats: logits,
probabilities or values, which the file does not say and nobody guesses. Sizes that it leaves open are found by running it on zeros.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quorate._optional import imported, one_line
from quorate.runtime.foreign import ForeignFile
from quorate.runtime.onnx_file import check_program
from quorate.runtime.program import Port, Ports, Program

TRIED = 3  # rows that a file with a free batch is tried on


def onnx_member(
    path: str | Path,
    *,
    name: str | None = None,
    output: str | None = None,
    providers: Sequence[str] | None = None,
    macs: float | None = None,
) -> Program:
    """A stage of one ONNX file.

    Args:
        path: the file. Weights that it keeps in files beside it are taken in, for which the package onnx must be installed.
        name: the stage's; None for the file's, without its ending.
        output: the output's name; None where there is one.
        providers: ONNX Runtime's, in order, to try it with; None for the CPU.
        macs: per row, where they are known; nobody counts them.

    Raises:
        ValueError: no such file, one that ONNX Runtime can't read or run, several inputs, an output that has to be named or is not
            floats (B, C) or (m, B, C), a program that a bundle can't hold, weights in other files where onnx is not installed.
        ImportError: no ONNX Runtime.
    """
    path = Path(path)
    name = path.stem if name is None else name
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path}: name={name!r}, expected text, the stage's name")
    if macs is not None and not _is_amount(macs):
        raise ValueError(f"{path}: macs={macs!r}, expected a finite number ≥ 0, or None where they are not known")
    file = ForeignFile(path, f"member {name!r}", output=output, providers=providers)
    onnx = _whole(path)
    shape = tuple(_size(size) for size in file.shape[1:])
    members = _members(file, shape)
    ports = Ports(
        name, members, Port(file.input, file.dtype.name, shape), batch=file.batch, macs=None if macs is None else float(macs),
        precision="foreign",
    )  # fmt: skip
    return Program(ports, onnx)


def _is_amount(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, numbers.Real) and 0 <= float(value) < math.inf


def _size(size: int | str | None) -> int | None:
    return size if isinstance(size, int) else None


def _members(file: ForeignFile, shape: tuple[int | None, ...]) -> Port:
    """What the output is, as a run on zeros shows it; as the file declares it where the input has free sizes."""
    if not file.shape:
        raise ValueError(f"{file.what}: its input {file.input!r} has no shape, expected (B, *shape): export it with one")
    sizes = [size for size in shape if size is not None]
    declared, gives = file.declared, file.gives
    if len(sizes) == len(shape):
        found = file(np.zeros((file.batch or TRIED, *sizes), file.dtype))
        port = Port(file.output, found.dtype.name, (*found.shape[:-2], found.shape[-1]))
    elif len(declared) in (2, 3) and gives is not None and gives.kind == "f":
        port = Port(file.output, gives.name, tuple(_size(size) for size in (*declared[:-2], declared[-1])))
    else:
        raise ValueError(
            f"{file.what}: output {file.output!r} is declared as {gives} {declared}, and the input's sizes {list(file.shape[1:])} are not "
            "all fixed: expected floats (B, C) or (m, B, C), export it with its sizes"
        )
    if declared and isinstance(declared[-2], int) and declared[-2] != file.batch:
        raise ValueError(
            f"{file.what}: output {file.output!r} is declared as {declared}, with {declared[-2]} rows, for inputs of "
            f"{file.batch or 'any number'}: export it with a free batch"
        )
    return port


def _whole(path: Path) -> bytes:
    """The file's bytes with all of its weights inside, as a bundle can hold them."""
    data = path.read_bytes()
    try:
        check_program(data, str(path), {})
        return data
    except ValueError as error:
        if "is external data" not in str(error):
            raise
    try:
        onnx = imported("onnx")
    except ImportError as error:
        raise ValueError(
            f"{path} keeps weights in files beside it, which a bundle does not: where the package onnx is installed, write one file by "
            f"onnx.save(onnx.load({path.name!r}), 'whole.onnx')"
        ) from error
    try:
        data = bytes(onnx.load(str(path)).SerializeToString())
    except Exception as error:  # protobuf's own type is not public
        raise ValueError(f"{path} can't be made one file with its weights ({one_line(error)}): export it anew") from error
    check_program(data, str(path), {})
    return data
