"""A teacher of another framework: an ONNX file, run by ONNX Runtime.

Source: ONNX (onnx.ai), a program with typed, possibly fixed shapes. A file has one input whose first axis is the batch, x (B, *shape);
where the file fixes B, rows are given in such batches, the last one filled up with repeats. Its output is (B, L), or (M, B, C) of members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quorate._optional import imported, one_line
from quorate.distil.teacher_sources import Transform, transform_identity

DTYPES = {
    "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
}  # fmt: skip
"""NumPy's types by ONNX Runtime's names."""
QUIET = 4  # ONNX Runtime's log level: its errors come as exceptions
CPU = "CPUExecutionProvider"
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
        runtime = imported("onnxruntime")
        self.path, self.name, self.transform = path, name or path.name, transform
        if not path.is_file():
            raise ValueError(f"teacher {str(path)!r} is no file: expected an .onnx file")
        self.providers = [CPU] if providers is None else list(providers)
        known = runtime.get_available_providers()
        if isinstance(providers, str) or not self.providers or not set(self.providers) <= set(known):
            raise ValueError(f"teacher {self.name!r}: providers={providers!r}, expected a list of {', '.join(known)}")
        self._hash = file_hash(path)
        options = runtime.SessionOptions()
        options.log_severity_level = QUIET
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=self.providers)
        except Exception as error:  # ONNX Runtime's errors have no common type of their own
            raise ValueError(f"{path} can't be read as an ONNX file ({one_line(error)}): export it anew") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ValueError(
                f"teacher {self.name!r} has inputs {', '.join(i.name for i in inputs) or 'none'}: expected exactly one, (B, *shape)"
            )
        self.input, self.shape = inputs[0].name, tuple(inputs[0].shape)
        if inputs[0].type not in DTYPES:
            raise ValueError(f"teacher {self.name!r} takes {inputs[0].type}: expected one of {', '.join(DTYPES)}")
        self.dtype = np.dtype(DTYPES[inputs[0].type])
        self.output = self._chosen(output)

    def __call__(self, x: Tensor) -> Tensor:
        given = self._array(x if self.transform is None else self.transform(x))
        rows = len(given)
        batch = self.shape[0] if self.shape and isinstance(self.shape[0], int) else rows
        if not rows or batch < 1:
            raise ValueError(f"teacher {self.name!r} got {rows} rows for a batch of {batch}: expected at least one of each")
        parts = [self._run(given[start : start + batch], batch) for start in range(0, rows, batch)]
        return torch.from_numpy(np.concatenate(parts, axis=parts[0].ndim - 2))

    def identity(self) -> dict[str, Any]:
        """By the file, with the weights it keeps beside it, and the output."""
        return {"source": "onnx", "file": self._hash, "output": self.output, **transform_identity(self.transform)}

    def _chosen(self, output: str | None) -> str:
        names = [found.name for found in self._session.get_outputs()]
        if (output is None and len(names) != 1) or (output is not None and output not in names):
            raise ValueError(f"teacher {self.name!r}: output={output!r}, expected one of {', '.join(names)}")
        return str(output or names[0])

    def _array(self, x: Any) -> NDArray[Any]:
        """x in the model's type and shape."""
        if isinstance(x, Tensor):
            x = (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()
        array = np.asarray(x)
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise ValueError(f"teacher {self.name!r} takes {self.dtype}, got {array.dtype}: give a transform= that converts it")
        fits = array.ndim == len(self.shape) and all(
            axis == 0 or not isinstance(want, int) or want == got
            for axis, (want, got) in enumerate(zip(self.shape, array.shape, strict=True))
        )
        if self.shape and not fits:
            want = ", ".join(str(size) if isinstance(size, int) else "any" for size in self.shape[1:])
            raise ValueError(f"teacher {self.name!r} got inputs of shape {array.shape}: expected (B, {want}), give a transform=")
        with np.errstate(over="ignore"):  # infinite inputs show in the outputs
            return np.ascontiguousarray(array, dtype=self.dtype)

    def _run(self, rows: NDArray[Any], batch: int) -> NDArray[Any]:
        """The output of up to ``batch`` rows, (b, L) or (M, b, C)."""
        count = len(rows)
        if count < batch:
            rows = np.concatenate([rows, np.repeat(rows[-1:], batch - count, axis=0)])
        try:
            (found,) = self._session.run([self.output], {self.input: rows})
        except Exception as error:  # as above
            raise ValueError(f"teacher {self.name!r} failed on inputs of shape {rows.shape} ({one_line(error)})") from error
        if not isinstance(found, np.ndarray) or found.ndim not in (2, 3) or found.shape[-2] != batch or found.dtype.kind != "f":
            shown = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            raise ValueError(
                f"teacher {self.name!r}: output {self.output!r} is {shown}: expected floats ({batch}, L) or (M, {batch}, C)"
            )
        return found[..., :count, :]


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
