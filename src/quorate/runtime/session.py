"""Stages that ONNX Runtime runs: arrays in, arrays out, the rows that are still in as the batch.

A batch of no rows never reaches a session, which would end the process. A file with a fixed batch gets its rows in such batches, the
last one filled up with repeats. Where a batch does not fit into memory it is halved until it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate._optional import imported, one_line
from quorate.runtime.manifest import BundleError
from quorate.runtime.program import Port, Ports

CPU = "CPUExecutionProvider"
QUIET = 4  # ONNX Runtime's log level: its errors come as exceptions
TYPES = {
    "tensor(float16)": "float16", "tensor(float)": "float32", "tensor(double)": "float64", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool",
}  # fmt: skip
"""NumPy's names by ONNX Runtime's."""

Providers = Sequence[str | tuple[str, Mapping[str, Any]]]
FULL = ("alloc", "out of memory")  # in what ONNX Runtime and its providers say of a batch that does not fit


def check_providers(providers: Providers | None) -> list[Any]:
    """ONNX Runtime's providers in order, the CPU's alone by default.

    Raises:
        ValueError: a provider that this ONNX Runtime does not have (those it has are listed), one twice, or none at all.
    """
    if providers is None:
        return [CPU]
    known = imported("onnxruntime").get_available_providers()
    listed = isinstance(providers, list | tuple) and len(providers) > 0
    names = [_name(each) for each in providers] if listed else []
    absent = [each for each, name in zip(providers, names, strict=False) if name not in known]
    if not listed or absent or len(set(names)) < len(names):
        raise ValueError(
            f"provider {absent[0] if absent else providers!r}: expected a list of {', '.join(known)}, each once, as a name or (name, dict "
            "of options); for a GPU install the onnxruntime package made for it"
        )
    return list(providers)


def _name(provider: Any) -> str | None:
    """A provider's name, with options or without; None for anything else."""
    if isinstance(provider, tuple) and len(provider) == 2 and isinstance(provider[1], Mapping):
        provider = provider[0]
    return provider if isinstance(provider, str) else None


def check_started(session: Any, providers: Sequence[Any]) -> None:
    """That a session has every provider that was asked for: ONNX Runtime goes on without one whose libraries it does not find.

    Raises:
        ValueError: the first that is not there.
    """
    started = session.get_providers()
    absent = [name for name in map(_name, providers) if name not in started]
    if absent:
        raise ValueError(
            f"provider {absent[0]!r} could not be started here, ONNX Runtime would run on {', '.join(started)} instead: install the "
            "libraries that it needs, or leave it out"
        )


def open_session(
    onnx: bytes,
    where: str,
    *,
    providers: Providers | None = None,
    threads: int | None = None,
    external: Mapping[str, NDArray[Any]] | None = None,
) -> Any:
    """An ONNX Runtime session.

    Args:
        onnx: a serialised graph.
        where: its name, for errors.
        providers: see :func:`check_providers`.
        threads: that one call may use; None for one per core.
        external: initialisers that the graph only declares.

    Raises:
        BundleError: a graph that ONNX Runtime can't read or run here.
        ValueError: a provider that is not there, that can't be started, or not with these options.
    """
    chosen = check_providers(providers)
    runtime = imported("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = QUIET
    options.add_session_config_entry("session.load_model_format", "ONNX")  # never guessed from the bytes
    # without it a stage's threads go on waiting busily while the next stage runs on the same cores
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_mem_pattern = False  # batches shrink from stage to stage: patterns of one size are no use for the next
    if threads is not None:
        options.intra_op_num_threads = threads
    if external:
        values = [runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in external.values()]
        options.add_external_initializers(list(external), values)
    try:  # a provider that fails says so, now and later; nothing falls back to another one
        session = runtime.InferenceSession(onnx, options, providers=chosen, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no common type of their own
        if chosen != [CPU]:
            raise ValueError(
                f"{where} can't be run by the providers {chosen} ({one_line(error)}): mend their options, or leave them out"
            ) from error
        raise BundleError(
            f"{where} can't be run by ONNX Runtime {runtime.__version__} ({one_line(error)}): export it anew, or install the version "
            "it was made with"
        ) from error
    check_started(session, chosen)
    if getattr(session, "_model_bytes", None) is not None:  # which only falling back would need
        session._model_bytes = None
    return session


class OnnxStage:
    """A session as a stage for :class:`quorate.Cascade` and :class:`quorate.Anytime`; any number of threads may call it.

    Attributes:
        ports: what the program takes and gives.
        name, reads, writes, drops, macs: of the contract.
        span: the steps of the raw input that it looks at, or None.

    Raises:
        BundleError: a session that takes or gives other arrays than ``ports`` says.
    """

    def __init__(self, session: Any, ports: Ports) -> None:
        self.session, self.ports = session, ports
        self.name, self.macs, self.span = ports.stage, ports.macs, ports.span
        self.reads, self.writes, self.drops = tuple(ports.reads), tuple(ports.writes), ports.drops
        self._read = [(name, port.name) for name, port in ports.reads.items()]
        self._outputs = [ports.members.name, *(port.name for port in ports.writes.values())]
        self._input = None if ports.input is None else ports.input.name
        self._most: int | None = ports.batch  # rows that one call may have
        _check(session, ports)

    def __call__(self, x: Any, carry: Mapping[str, Any]) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """Raw x (B, *shape), B ≥ 1, and what it reads → (members (m, B, C), what it writes)."""
        return self.arrived(x if self.span is None else x[..., self.span[0] : self.span[1]], carry)

    def arrived(self, part: Any, carry: Mapping[str, Any]) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """The same on the steps of its span alone."""
        feed = {port: carry[name] for name, port in self._read}
        if self._input is not None:
            feed[self._input] = part
        rows = len(part)
        if self._most is not None:
            found = self._in_parts(feed, rows)
        else:
            try:
                found = self.session.run(self._outputs, feed)
            except Exception as error:  # see open_session
                self._most = self._less(rows, error)
                found = self._in_parts(feed, rows)
        members = found[0] if found[0].ndim == 3 else found[0][None]
        if members.dtype == np.float16:
            members = members.astype(np.float32)
        return members, dict(zip(self.writes, found[1:], strict=True))

    def _less(self, rows: int, error: Exception) -> int:
        """How many rows to try after these did not fit into memory. ValueError for any other failure."""
        too_large = isinstance(error, MemoryError) or any(word in str(error).lower() for word in FULL)
        if rows == 1 or self.ports.batch is not None or not too_large:
            raise ValueError(f"stage {self.name!r} failed on {rows} rows: {one_line(error)}") from error
        return (rows + 1) // 2

    def _in_parts(self, feed: dict[str, Any], rows: int) -> list[NDArray[Any]]:
        """The outputs of all rows, in batches of as many as a call may have; exactly as many where the program's batch is fixed."""
        parts: list[list[NDArray[Any]]] = []
        start, fixed = 0, self.ports.batch
        while start < rows:
            count = min(self._most or rows, rows - start)
            part = feed if count == rows else {name: array[start : start + count] for name, array in feed.items()}
            if fixed is not None and count < fixed:
                part = {name: np.concatenate([a, np.repeat(a[-1:], fixed - count, 0)]) for name, a in part.items()}
            try:
                found = self.session.run(self._outputs, part)
            except Exception as error:
                self._most = self._less(count, error)  # another thread may have found less: then this one will too
                continue
            parts.append(found if fixed is None else [found[0][..., :count, :], *(array[:count] for array in found[1:])])
            start += count
        if len(parts) == 1:
            return parts[0]
        first, *others = zip(*parts, strict=True)
        return [np.concatenate(first, -2), *(np.concatenate(arrays) for arrays in others)]


def _check(session: Any, ports: Ports) -> None:
    takes = {found.name: found for found in session.get_inputs()}
    gives = {found.name: found for found in session.get_outputs()}
    inputs = ([] if ports.input is None else [ports.input]) + list(ports.reads.values())
    if sorted(takes) != sorted(port.name for port in inputs):
        raise BundleError(
            f"the program of stage {ports.stage!r} takes {sorted(takes)}, its manifest says {[p.name for p in inputs]}"
        )
    for port in inputs:
        _check_port(ports, port, takes[port.name], 0)
    for port in (ports.members, *ports.writes.values()):
        if port.name not in gives:
            raise BundleError(f"the program of stage {ports.stage!r} gives {sorted(gives)}, its manifest asks for {port.name!r}")
        _check_port(ports, port, gives[port.name], 0 if port is not ports.members else len(port.shape) - 1)


def _check_port(ports: Ports, port: Port, found: Any, batch_axis: int) -> None:
    """That the session's array is the port's: its dtype, and its sizes where both are fixed."""
    shape = list(found.shape)
    if shape:  # some graphs don't tell their outputs' shapes
        if len(shape) != len(port.shape) + 1:
            raise BundleError(
                f"the program of stage {ports.stage!r} has {port.name!r} of shape {shape}, its manifest says {port.shape} per row"
            )
        batch = shape.pop(batch_axis)
        if isinstance(batch, int) and batch != ports.batch:
            raise BundleError(
                f"the program of stage {ports.stage!r} takes {batch} rows at a time, its manifest says {ports.batch or 'any number'}"
            )
    odd = any(isinstance(got, int) and want is not None and got != want for got, want in zip(shape, port.shape, strict=False))
    if TYPES.get(found.type) != port.dtype or odd:
        raise BundleError(
            f"the program of stage {ports.stage!r} has {port.name!r} as {found.type} {shape}, its manifest says {port.dtype} {port.shape}"
        )
