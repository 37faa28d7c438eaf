"""Real programs pass the check: what PyTorch exports, and what ONNX Runtime makes of it by quantising, halving and optimising."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quorate.runtime.onnx_file import check_program

onnx = pytest.importorskip("onnx")
SIZE = 12


class Everything(nn.Module):
    """Convolutions, norms, resizing, pads, an LSTM over columns, attention: what exporters spell in many ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up, self.back = nn.Upsample(scale_factor=2, mode="bilinear"), nn.ConvTranspose2d(8, 8, 2, 2)
        self.lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x)))
        h = nn.functional.pad(self.back(self.up(h)), (1, 2, 3, 4))
        h = h + torch.arange(h.shape[-1], dtype=h.dtype)
        rows, _ = self.lstm(h.mean(2).transpose(1, 2))
        return self.out(self.drop(self.attention(rows[:, :8]).mean(1)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn and log about themselves."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def exported(optimize: bool) -> Any:
    torch.manual_seed(0)
    batch = ({0: torch.export.Dim.DYNAMIC},)
    with quiet():
        made = torch.onnx.export(
            Everything().eval(), (torch.randn(2, 3, SIZE, SIZE),), dynamo=True, optimize=optimize, dynamic_shapes=batch, input_names=["x"],
            verbose=False,
        )  # fmt: skip
    return made.model_proto  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def model() -> Any:
    return exported(True)


def passes(data: bytes) -> None:
    """The check takes it, and so does ONNX Runtime."""
    import onnxruntime

    check_program(data, "p", {})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    x = np.zeros((2, 3, SIZE, SIZE), np.float32)
    (found,) = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert found.shape == (2, 3)


@pytest.mark.slow
def test_pytorch_exports(model: Any) -> None:
    assert {node.op_type for node in model.graph.node} >= {
        "Conv",
        "ConvTranspose",
        "Resize",
        "Pad",
        "LSTM",
        "Softmax",
        "LayerNormalization",
    }
    passes(model.SerializeToString())


@pytest.mark.slow
def test_unoptimised_and_legacy_exports() -> None:
    passes(exported(False).SerializeToString())
    file = io.BytesIO()
    with quiet():
        torch.onnx.export(
            Everything().eval(),
            (torch.randn(2, 3, SIZE, SIZE),),
            file,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )
    passes(file.getvalue())


def dynamic(source: str, target: str) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target)


def static(form: str) -> Callable[[str, str], None]:
    def quantised(source: str, target: str) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                rows = np.random.default_rng(0).normal(size=(2, 2, 3, SIZE, SIZE)).astype(np.float32)
                self.rows = iter([{"x": row} for row in rows])

            def get_next(self) -> Any:
                return next(self.rows, None)

        quantize_static(source, target, Reader(), quant_format=QuantFormat[form], per_channel=True)

    return quantised


def half(source: str, target: str) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def optimised(source: str, target: str) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = target
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "makes"),
    [
        (dynamic, "DynamicQuantizeLSTM"), (static("QDQ"), "DequantizeLinear"), (static("QOperator"), "QLinearConv"), (half, "Cast"),
        (optimised, "FusedMatMul"),
    ],
)  # fmt: skip
def test_what_onnx_runtime_makes_of_it(model: Any, tmp_path: Path, change: Callable[[str, str], None], makes: str) -> None:
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.graph.value_info[:]  # of the exporter's own, which folding made wrong
    source, target = str(tmp_path / "source.onnx"), str(tmp_path / "target.onnx")
    onnx.save(plain, source)
    with quiet():
        change(source, target)
    data = Path(target).read_bytes()
    assert makes in {node.op_type for node in onnx.load_from_string(data).graph.node}
    passes(data)
