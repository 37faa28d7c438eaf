"""A stage as a program: an ONNX graph with a free batch that was shown to compute what PyTorch computes.

    stage (x, carry) → (members (m, B, C), written)    becomes    x, read.NAME … → members, write.NAME …

x (B, *shape) is the raw input; a stage with a span of steps (:mod:`quorate.distil.early`) takes ``part``, x[..., start:stop], instead.
An input that the stage does not look at is none of its program. Members come out in float32, as
:class:`quorate.ensemble.WrappedStage` gives them. The program is run on the example, in batches of 1, 3 and all rows, and has to
agree with PyTorch in every value:

    |found − eager| ≤ atol + rtol · |eager|

Sources: stages, Xia & Bouganis 2023 (arXiv 2303.08010), §3; what they carry, Dennis et al. 2023 (arXiv 2302.10093), §4; the exporters,
``torch.export`` and ``torch.onnx``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quorate._optional import imported, one_line
from quorate.export.eager import Array, answer, array_of, on_cpu, quiet, still, tensor_of
from quorate.export.onnx_graph import LARGEST, finished
from quorate.runtime.manifest import BundleError
from quorate.runtime.program import Port, Ports, Program
from quorate.runtime.session import OnnxStage, open_session

OPSET = 20
ROWS = (1, 3)
MEMBERS, INPUT, PART = "members", "x", "part"


def program(
    stage: Any,
    x: Any,
    carry: Mapping[str, Any] | None = None,
    *,
    macs: float | None = None,
    writes: Collection[str] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
) -> Program:
    """A stage as a program; the stage stays as it is, and on its device. Equal stages give equal bytes.

    Args:
        stage: a module by the contract of :mod:`quorate.ensemble`: ``name, reads, writes, drops``, (x, carry) → (members, written).
        x: raw inputs (B, *shape), B ≥ 1, in their own dtype.
        carry: what it reads, (B, …) by name.
        macs: per row, for the program's ports.
        writes: which of the things that it writes are wanted; None for all.
        rtol, atol: how far the program may be from PyTorch.

    Raises:
        ValueError: rows that don't fit each other, a stage that does not keep the contract, that can't be exported (Python control
        flow on
            values, operators without ONNX form, random numbers, more than 2 GiB), or whose program ONNX Runtime can't run or computes
            something else; one line names the stage, the cause and what to do.
    """
    check_tolerance(rtol, atol)
    imported("onnxscript", "quorate[train]")
    name, stage = str(stage.name), on_cpu(stage)
    rows = _rows(name, x)
    given, held = _grown(rows, len(rows)), {}
    for key in stage.reads:
        if carry is None or key not in carry:
            raise ValueError(f"stage {name!r} reads {key!r}: expected it in the carry, got {sorted(carry or {})}")
        array = array_of(f"stage {name!r}: the carried {key!r}", carry[key])
        if array.ndim < 1 or len(array) != len(rows):
            raise ValueError(f"stage {name!r}: the carried {key!r} has shape {array.shape}, expected {len(rows)} rows as x has")
        held[key] = _grown(array, len(rows))
    _check_size(name, stage)
    kept = tuple(key for key in stage.writes if writes is None or key in writes)
    members, written = answer(stage, given, held)
    graph = _exported(name, stage, given, held, kept)
    data = finished(graph, name)
    span = span_of(stage)
    looked_at = {value.name for value in graph.graph.input}
    taken = given if span is None else given[..., span[0] : span[1]]
    ports = Ports(
        name,
        Port(MEMBERS, str(members.dtype), (members.shape[0], members.shape[2])),
        _port(INPUT if span is None else PART, taken) if {INPUT, PART} & looked_at else None,
        {key: _port(f"read.{key}", array) for key, array in held.items() if f"read.{key}" in looked_at},
        {key: _port(f"write.{key}", written[key]) for key in kept},
        tuple(stage.drops),
        span if {INPUT, PART} & looked_at else None,
        macs=None if macs is None else float(macs),
    )
    made = Program(ports, data)
    _prove(made, stage, given, held, (rtol, atol))
    return made


def check_tolerance(rtol: float, atol: float) -> None:
    """Raises ValueError."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}: expected a finite number ≥ 0")


def span_of(stage: Any) -> tuple[int, int] | None:
    """The steps that a stage looks at, where it can be run on them alone."""
    span = getattr(stage, "span", None) if callable(getattr(stage, "arrived", None)) else None
    return None if span is None else (int(span[0]), int(span[1]))


class _Positional(nn.Module):
    """A stage with arrays in and out by position, each output a tensor of its own, so that all of them keep their names."""

    def __init__(self, stage: Any, kept: tuple[str, ...]) -> None:
        super().__init__()
        self.stage, self.kept, self.span = stage, kept, span_of(stage)

    def forward(self, *arrays: Tensor) -> list[Tensor]:
        call = self.stage if self.span is None else self.stage.arrived
        members, written = call(arrays[0], dict(zip(self.stage.reads, arrays[1:], strict=True)))
        return [members.float().clone(), *(written[key].clone() for key in self.kept)]


def _rows(stage: str, x: Any) -> Array:
    rows = array_of(f"stage {stage!r}: the example", x)
    if rows.ndim < 1 or not len(rows):
        raise ValueError(
            f"stage {stage!r}: the example has shape {rows.shape}, expected at least one row of raw input, (B, *shape)"
        )
    return rows


def _grown(array: Array, rows: int) -> Array:
    """At least two rows: a single one would be taken for a size that is always 1."""
    return array if rows > 1 else np.repeat(array, 2, axis=0)


def _check_size(name: str, stage: nn.Module) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*stage.parameters(), *stage.buffers()))
    if size > LARGEST:
        raise ValueError(
            f"stage {name!r} has {size:,} bytes of weights, an ONNX graph holds at most {LARGEST:,}: cut it into several stages, or use "
            "a smaller network"
        )


def _exported(name: str, stage: nn.Module, x: Array, held: Mapping[str, Array], kept: tuple[str, ...]) -> Any:
    """The ONNX model as the exporter makes it."""
    module, span = _Positional(stage, kept), span_of(stage)
    part = x if span is None else np.ascontiguousarray(x[..., span[0] : span[1]])
    arguments = tuple(tensor_of(array) for array in (part, *held.values()))
    free = (tuple({0: torch.export.Dim.DYNAMIC} for _ in arguments),)
    inputs = [INPUT if span is None else PART, *(f"read.{key}" for key in held)]
    outputs = [MEMBERS, *(f"write.{key}" for key in kept)]
    with still(module), quiet():
        try:
            traced = torch.export.export(module, arguments, dynamic_shapes=free)
        except Exception as error:  # its errors have no common type
            raise ValueError(
                f"stage {name!r} can't be traced by torch.export ({_cause(error)}): its forward may not decide by values or "
                "by the number of rows in Python; write that part with tensor operations such as torch.where, and x.shape[0] for len(x)"
            ) from error
        try:
            made = torch.onnx.export(
                traced, dynamo=True, optimize=True, opset_version=OPSET, input_names=inputs, output_names=outputs, verbose=False
            )
            return made.model_proto  # type: ignore[union-attr]
        except Exception as error:  # as above
            raise ValueError(
                f"stage {name!r} can't be written as ONNX ({_cause(error)}): replace that operation by one that ONNX has"
            ) from error


def _cause(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error)}"


def _port(name: str, array: Array) -> Port:
    return Port(name, str(array.dtype), tuple(array.shape[1:]))


def _prove(made: Program, stage: Any, x: Array, held: Mapping[str, Array], allowed: tuple[float, float]) -> None:
    """A ValueError unless ONNX Runtime gives what PyTorch gives."""
    name = made.ports.stage
    try:
        ran = OnnxStage(open_session(made.onnx, f"the program of stage {name!r}", threads=1), made.ports)
    except BundleError as error:
        raise ValueError(
            f"stage {name!r} comes out as a program that ONNX Runtime can't run ({_cause(error)}): use a float32 copy of the "
            "ensemble, ensemble.float(), or other operations"
        ) from error
    for rows in sorted({*ROWS, len(x)}):
        some = np.arange(rows) % len(x)
        part = {key: array[some] for key, array in held.items()}
        members, written = answer(stage, x[some], part)
        found, wrote = ran(x[some], part)
        _check_equal(name, MEMBERS, rows, found, members, allowed)
        for key in made.ports.writes:
            _check_equal(name, key, rows, wrote[key], written[key], allowed)


def _check_equal(stage: str, name: str, rows: int, found: Array, eager: Array, allowed: tuple[float, float]) -> None:
    """Raises ValueError."""
    if not np.isfinite(eager).all():
        raise ValueError(
            f"stage {stage!r} gives NaN or infinite {name} on the example: give rows that it can compute, or mend its weights"
        )
    if found.shape != eager.shape or found.dtype != eager.dtype:
        raise ValueError(
            f"stage {stage!r}: as exported {name} is {found.dtype} {found.shape} for {rows} rows, PyTorch gives {eager.dtype} "
            f"{eager.shape}: its forward may not depend on the number of rows otherwise than by computing each"
        )
    rtol, atol = allowed
    apart = np.abs(found.astype(np.float64) - eager.astype(np.float64))
    if not (apart <= atol + rtol * np.abs(eager.astype(np.float64))).all():
        raise ValueError(
            f"stage {stage!r}: as exported {name} differs from PyTorch by up to {apart.max():.3g} for {rows} rows, expected "
            f"at most {atol:g} + {rtol:g} · |value|: find the operation that computes otherwise, or allow it by rtol= and atol="
        )
