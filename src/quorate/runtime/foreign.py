"""An ONNX file from elsewhere, run by ONNX Runtime as it stands.

Source: ONNX (onnx.ai), a program with typed, possibly fixed shapes. A file has one input whose first axis is the batch, x (B, *shape);
where the file fixes B, rows are given in such batches, the last one filled up with repeats. Its output is (B, L), or (M, B, C) of members.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate._optional import imported, one_line
from quorate.runtime.session import CPU, QUIET, TYPES, check_started

DTYPES = {theirs: name for theirs, name in TYPES.items() if name != "bool"}
"""Types that inputs may have: NumPy's names by ONNX Runtime's."""


class ForeignFile:
    """The file, loaded.

    Args:
        path: an ``.onnx`` file with one input.
        what: how errors call it, such as ``"teacher 'big.onnx'"``.
        output: the output's name; None where there is one.
        providers: ONNX Runtime's, in order; None for the CPU.
        remedy: what errors tell to do about inputs of another type or shape.

    Attributes:
        input, shape, dtype: the input's name, its shape with the batch (a size that is no number is free), its NumPy type.
        batch: the only number of rows at a time; None for any.
        output, declared, gives: the output's name, its shape as the file declares it, and its NumPy type, None for one that has none.

    Raises:
        ValueError: no such file, one that ONNX Runtime can't read, several inputs, an output that has to be named or is not there, a
            provider that is not installed.
        ImportError: no ONNX Runtime.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        *,
        output: str | None = None,
        providers: Sequence[str] | None = None,
        remedy: str = "convert them",
    ) -> None:
        runtime = imported("onnxruntime")
        check_file(path, what)
        self.what, self.remedy = what, remedy
        self.providers = [CPU] if providers is None else list(providers)
        known = runtime.get_available_providers()
        if isinstance(providers, str) or not self.providers or not set(self.providers) <= set(known):
            raise ValueError(f"{what}: providers={providers!r}, expected a list of {', '.join(known)}")
        options = runtime.SessionOptions()
        options.log_severity_level = QUIET
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=self.providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors have no common type of their own
            raise ValueError(f"{path} can't be read as an ONNX file ({one_line(error)}): export it anew") from error
        check_started(self._session, self.providers)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ValueError(
                f"{what} has inputs {', '.join(i.name for i in inputs) or 'none'}: expected exactly one, (B, *shape)"
            )
        self.input, self.shape = inputs[0].name, tuple(inputs[0].shape)
        self.batch: int | None = self.shape[0] if self.shape and isinstance(self.shape[0], int) else None
        if inputs[0].type not in DTYPES:
            raise ValueError(f"{what} takes {inputs[0].type}: expected one of {', '.join(DTYPES)}")
        self.dtype = np.dtype(DTYPES[inputs[0].type])
        found = {each.name: each for each in self._session.get_outputs()}
        if (output is None and len(found) != 1) or (output is not None and output not in found):
            raise ValueError(f"{what}: output={output!r}, expected one of {', '.join(found)}")
        self.output = str(output or next(iter(found)))
        self.declared = tuple(found[self.output].shape)
        kind = DTYPES.get(found[self.output].type)
        self.gives = None if kind is None else np.dtype(kind)

    def __call__(self, x: Any) -> NDArray[Any]:
        """The output for rows x (B, *shape): (B, L) or (M, B, C) floats.

        Raises:
            ValueError: no rows, inputs of another type or shape, a program that fails on them, an output of another type or shape.
        """
        given = self._array(x)
        rows = len(given)
        batch = rows if self.batch is None else self.batch
        if not rows or batch < 1:
            raise ValueError(f"{self.what} got {rows} rows for a batch of {batch}: expected at least one of each")
        parts = [self._run(given[start : start + batch], batch) for start in range(0, rows, batch)]
        return np.concatenate(parts, axis=parts[0].ndim - 2)

    def _array(self, x: Any) -> NDArray[Any]:
        """x in the program's type and shape."""
        array = np.asarray(x)
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise ValueError(f"{self.what} takes {self.dtype}, got {array.dtype}: {self.remedy}")
        fits = array.ndim == len(self.shape) and all(
            axis == 0 or not isinstance(want, int) or want == got
            for axis, (want, got) in enumerate(zip(self.shape, array.shape, strict=True))
        )
        if self.shape and not fits:
            want = ", ".join(str(size) if isinstance(size, int) else "any" for size in self.shape[1:])
            raise ValueError(f"{self.what} got inputs of shape {array.shape}: expected (B, {want}), {self.remedy}")
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
            raise ValueError(f"{self.what} failed on inputs of shape {rows.shape} ({one_line(error)})") from error
        if not isinstance(found, np.ndarray) or found.ndim not in (2, 3) or found.shape[-2] != batch or found.dtype.kind != "f":
            shown = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            raise ValueError(f"{self.what}: output {self.output!r} is {shown}: expected floats ({batch}, L) or (M, {batch}, C)")
        return found[..., :count, :]


def check_file(path: Path, what: str) -> None:
    """A ValueError unless there is such a file."""
    if not path.is_file():
        raise ValueError(f"{what}: {str(path)!r} is no file: expected an .onnx file")
