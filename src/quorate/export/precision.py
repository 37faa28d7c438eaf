"""Lower precision of a stage's program: int8, fp16, bf16; its inputs and outputs stay as they are.

=================  ================================================================================================================
int8-static        weights and activations, scales fixed on calibration rows: convolutions, linear layers, products with weights, and
                   what passes their values on. With real q = round(v / s) + z (Jacob et al. 2018, arXiv 1712.05877, eq. 1)
int8-dynamic       the same of linear layers, products and LSTMs, s and z found anew in every call, *from all rows of the batch*: what
                   a row gets depends on its neighbours. Convolutions have no fast kernels and stay
fp16               weights and arithmetic in half precision where a provider has kernels for it, else float32 from fp16 weights (CPU)
bf16               matrices rounded to bfloat16 and cast back at load: half the file, arithmetic and speed those of float32
=================  ================================================================================================================

Int8 weights use 7 bits: 255 · 64 + 255 · 64 < 2¹⁵, so that the 16-bit sums of processors without int8 dot products never saturate and
integer arithmetic is the same everywhere. Scales are per output channel, but per tensor for stacked matrices (m, K, N), for which ONNX
Runtime has no kernels per channel. What linear layers give stays float32: logits on a grid of 8 bits would tie.

Programs have their constants folded and batch normalisation merged by the export, so that no pre-processing is needed. ONNX Runtime
writes quantised models to files only: they pass through a temporary folder.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate._optional import imported
from quorate.runtime.manifest import BundleError
from quorate.runtime.program import Program
from quorate.runtime.session import OnnxStage, open_session

LOWER = ("int8-static", "int8-dynamic", "fp16", "bf16")
BATCHED = ("int8-dynamic",)
"""Precisions at which a row's outputs depend on the other rows of its batch."""
STEP = 64  # calibration rows in one call
LARGEST = 65504.0  # of fp16
HALF = 0.5  # the least share of the weights that have to become int8

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PASSING = (
    "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Reshape", "Flatten", "Transpose", "Squeeze",
    "Unsqueeze", "Pad", "Resize",
)  # fmt: skip
DYNAMIC = ("Gemm", "MatMul", "LSTM")

Feeds = Mapping[str, NDArray[Any]]


def lower(program: Program, precision: str, *, calibration: Feeds | None = None) -> Program:
    """The program at a lower precision, with the same ports; equal arguments give equal bytes.

    Args:
        program: fp32, all weights inside.
        precision: one of :data:`LOWER`, see the module.
        calibration: for ``int8-static`` alone: real rows by the program's input names, (B, …) each, what it reads of the carry included.

    Raises:
        ValueError: an unknown precision, a program of another precision, from elsewhere or with a ticket, calibration that is missing,
            plays no part or does not fit the ports, weights beyond the range, or a program of which less than half the weights would
            become int8.
        ImportError: no onnx.
    """
    stage = program.ports.stage
    if precision not in LOWER:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(LOWER)}")
    if program.ports.precision == "foreign":
        raise ValueError(f"stage {stage!r} came from elsewhere and is taken as it is: lower its precision where it was made")
    if program.ports.precision != "fp32":
        raise ValueError(f"stage {stage!r} is {program.ports.precision} already: expected fp32, lower the exported program")
    if program.sparse:
        raise ValueError(
            f"stage {stage!r} keeps its sparse weights in a ticket, which is float32: export it dense to lower its precision"
        )
    if (calibration is None) == (precision == "int8-static"):
        said = (
            "expected rows to find scales on, give calibration"
            if calibration is None
            else "they play no part, leave calibration out"
        )
        raise ValueError(f"{precision} of stage {stage!r}: {said}")
    onnx = imported("onnx", "quorate[train]")
    model = onnx.load_model_from_string(program.onnx)
    del model.graph.value_info[:]  # shapes of weights would stay when these are transposed
    for at, node in enumerate(model.graph.node):
        node.name = node.name or f"node{at}"
    if precision.startswith("int8"):
        _check_worth(model, precision, stage)
    if precision == "int8-static":
        assert calibration is not None
        lowered = _static(model, _checked(program, calibration))
    elif precision == "int8-dynamic":
        lowered = _dynamic(model)
    else:
        lowered = _fp16(model, stage) if precision == "fp16" else _bf16(model, stage)
    found = Program(replace(program.ports, precision=precision), lowered)
    _check_ports(found)
    return found


# --- int8 ---


def _check_worth(model: Any, precision: str, stage: str) -> None:
    """A ValueError where less than half of the weights would become int8."""
    size = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == 1 and len(t.dims) > 1}
    held: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            held[node.op_type] = held.get(node.op_type, 0) + size.pop(name, 0)
    total = sum(held.values())
    touched = sum(held.get(kind, 0) for kind in (DYNAMIC if precision == "int8-dynamic" else PRODUCTS))
    if total == 0:
        raise ValueError(f"{precision} of stage {stage!r}: it has no matrices of weights, leave it at fp32")
    if touched < HALF * total:
        most = max(held, key=lambda kind: held[kind])
        remedy = "take int8-static" if most in PRODUCTS else "take int8-dynamic" if most in DYNAMIC else "take fp16 or bf16"
        raise ValueError(
            f"{precision} of stage {stage!r} would leave {100 * (1 - touched / total):.0f} % of its weights as they are, most of them in "
            f"{most}: {remedy}"
        )


def _stacked(model: Any) -> list[Any]:
    """Products with stacked matrices of weights."""
    deep = {t.name for t in model.graph.initializer if len(t.dims) > 2}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in deep]


def _static(model: Any, rows: Feeds) -> bytes:
    quantization = imported("onnxruntime.quantization", "quorate[train]")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        """The rows, a step at a time."""

        def __init__(self) -> None:
            count = len(next(iter(rows.values())))
            self.parts = iter({name: a[start : start + STEP] for name, a in rows.items()} for start in range(0, count, STEP))

        def get_next(self) -> Any:
            return next(self.parts, None)

    def write(source: Path, target: Path) -> None:
        quantization.quantize_static(
            source, target, Reader(), quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=[*PRODUCTS, *PASSING],
            per_channel=True, reduce_range=True, activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "TensorQuantOverrides": {node.input[1]: [{}] for node in _stacked(model)},
            },
        )  # fmt: skip

    return _through_files(model, write)


def _dynamic(model: Any) -> bytes:
    quantization = imported("onnxruntime.quantization", "quorate[train]")
    stacked = [node.name for node in _stacked(model)]
    common: dict[str, Any] = {
        "reduce_range": True,
        "weight_type": quantization.QuantType.QInt8,
        "op_types_to_quantize": list(DYNAMIC),
    }

    def write(source: Path, target: Path) -> None:
        first = source.with_name("first.onnx") if stacked else target
        quantization.quantize_dynamic(source, first, per_channel=True, nodes_to_exclude=stacked, **common)
        if stacked:
            quantization.quantize_dynamic(first, target, per_channel=False, nodes_to_quantize=stacked, **common)

    return _through_files(model, write)


def _through_files(model: Any, write: Callable[[Path, Path], None]) -> bytes:
    """What ``write(source, target)`` makes of the model's file."""
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    onnx = imported("onnx")
    add_pre_process_metadata(model)  # no advice to do so
    with tempfile.TemporaryDirectory(prefix="quorate-") as folder, _quiet():
        source, target = Path(folder, "source.onnx"), Path(folder, "target.onnx")
        source.write_bytes(model.SerializeToString(deterministic=True))
        write(source, target)
        made = onnx.load_model(str(target))
    del made.metadata_props[:]
    return bytes(made.SerializeToString(deterministic=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing from the quantiser, which logs to the root logger and would give it a handler."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def others(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    root.addHandler(handler)
    root.addFilter(others)
    try:
        yield
    finally:
        root.removeFilter(others)
        root.removeHandler(handler)


# --- 16 bits ---


def _fp16(model: Any, stage: str) -> bytes:
    numpy_helper = imported("onnx.numpy_helper")
    for tensor in model.graph.initializer:
        if tensor.data_type == 1 and (most := float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))) > LARGEST:
            raise ValueError(f"fp16 of stage {stage!r}: {tensor.name!r} holds {most:.6g}, beyond its {LARGEST:g}: take bf16")
    float16 = imported("onnxruntime.transformers.float16", "quorate[train]")
    with _quiet():
        made = float16.convert_float_to_float16(model, keep_io_types=True)
    return bytes(made.SerializeToString(deterministic=True))


def _bf16(model: Any, stage: str) -> bytes:
    onnx = imported("onnx")
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name = tensor.name
        rounded = _rounded(onnx.numpy_helper.to_array(tensor), name, stage)
        stored = onnx.TensorProto(
            name=f"{name}.bf16", data_type=onnx.TensorProto.BFLOAT16, dims=tensor.dims, raw_data=rounded.tobytes()
        )
        tensor.CopyFrom(stored)
        casts.append(onnx.helper.make_node("Cast", [stored.name], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT))
    if not casts:
        raise ValueError(f"bf16 of stage {stage!r}: it has no matrices of weights, leave it at fp32")
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    return bytes(model.SerializeToString(deterministic=True))


def _rounded(weights: NDArray[np.float32], name: str, stage: str) -> NDArray[np.uint16]:
    """The upper halves of float32, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(weights, "<f4").view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise ValueError(
            f"bf16 of stage {stage!r}: {name!r} holds weights that are not finite or round to infinity: keep it at fp32"
        )
    return np.asarray(rounded, "<u2")


# --- checks ---


def _checked(program: Program, calibration: Feeds) -> dict[str, NDArray[Any]]:
    """Calibration rows that fit the ports."""
    ports = program.ports
    wanted = {port.name: port for port in (ports.input, *ports.reads.values()) if port is not None}
    if not isinstance(calibration, Mapping) or set(calibration) != set(wanted):
        found = sorted(calibration) if isinstance(calibration, Mapping) else type(calibration).__name__
        raise ValueError(
            f"calibration of stage {ports.stage!r} has {found}: expected arrays by the names of its inputs, {sorted(wanted)}"
        )
    rows = {name: np.asarray(calibration[name]) for name in wanted}
    for name, port in wanted.items():
        if not port.fits(rows[name]):
            raise ValueError(
                f"calibration of stage {ports.stage!r}: {name!r} is {rows[name].dtype} {rows[name].shape}, expected {port.dtype} "
                f"(B, {', '.join('any' if size is None else str(size) for size in port.shape)})"
            )
        if not np.isfinite(rows[name]).all():
            raise ValueError(f"calibration of stage {ports.stage!r}: {name!r} holds NaN or infinity, give finite rows")
    counts = {len(array) for array in rows.values()}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            f"calibration of stage {ports.stage!r} has {sorted(counts)} rows: expected one number of them, at least 1"
        )
    return rows


def _check_ports(program: Program) -> None:
    """That ONNX Runtime takes the program, and that it still has its inputs and outputs."""
    ports = program.ports
    try:
        OnnxStage(open_session(program.onnx, f"stage {ports.stage!r}", threads=1), ports)
    except BundleError as error:
        raise ValueError(f"stage {ports.stage!r} can't be {ports.precision} ({error}): keep it at fp32") from error
