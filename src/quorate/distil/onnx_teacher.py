"""A teacher of another framework: an ONNX file, run by ONNX Runtime as :mod:`quorate.runtime.foreign` says.

Shapes: x (B, *shape) raw → (B, L), or (M, B, C) of members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quorate._optional import imported, one_line
from quorate.distil.teacher_sources import Transform, transform_identity
from quorate.runtime.foreign import ForeignFile, check_file

CHUNK = 1 << 20  # bytes hashed at a time


class OnnxModel:
    """The file, loaded.

    Args:
        path: an ``.onnx`` file with one input.
        output: the output's name; None where there is one.
        providers: ONNX Runtime's, in order; None for the CPU.
        transform: raw inputs to the model's.
        name: for errors; None for the file's name.

    Raises:
        ValueError: no such file, one that ONNX Runtime can't read, several inputs, an output that has to be named or is not there, a
            provider that is not installed.
        ImportError: no ONNX Runtime.
    """

    online = True

    def __init__(
        self,
        path: Path,
        *,
        output: str | None = None,
        providers: Sequence[str] | None = None,
        transform: Transform | None = None,
        name: str | None = None,
    ) -> None:
        self.path, self.name, self.transform = path, name or path.name, transform
        what = f"teacher {self.name!r}"
        check_file(path, what)
        self._hash = file_hash(path)
        self._file = ForeignFile(path, what, output=output, providers=providers, remedy="give a transform= that converts them")
        self.output = self._file.output

    def __call__(self, x: Tensor) -> Tensor:
        given = x if self.transform is None else self.transform(x)
        if isinstance(given, Tensor):
            given = (given.float() if given.dtype == torch.bfloat16 else given).detach().cpu().numpy()
        return torch.from_numpy(self._file(given))

    def identity(self) -> dict[str, Any]:
        """By the file, with the weights it keeps beside it, and the output."""
        return {"source": "onnx", "file": self._hash, "output": self.output, **transform_identity(self.transform)}


def file_hash(path: Path) -> str:
    """SHA-256 of an ONNX file and of the files in which it keeps large tensors.

    Raises:
        ValueError: no ONNX file, or one whose tensors' files are missing.
    """
    onnx = imported("onnx", "quorate[train]")
    try:
        graph = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own type is not public
        raise ValueError(f"{path} can't be read as an ONNX file ({one_line(error)}): export it anew") from error
    beside = sorted({pair.value for t in _tensors(graph.graph) for pair in t.external_data if pair.key == "location"})
    found = hashlib.sha256()
    for file in (path, *(path.parent / name for name in beside)):
        if not file.is_file():
            raise ValueError(f"{path} keeps tensors in {file.name}, which is not there: copy both files")
        with file.open("rb") as stream:
            while part := stream.read(CHUNK):
                found.update(part)
    return found.hexdigest()


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor stored in an ONNX graph, at any depth."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
