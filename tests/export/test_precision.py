"""Lower precision: the rounding each kind does, against closed forms; what is refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from quorate.export.precision import LOWER, lower
from quorate.runtime.onnx_file import check_program
from quorate.runtime.program import Port, Program, Sparse
from quorate.runtime.session import OnnxStage, open_session
from small_programs import convolution, linear, pixels, recurrent, stacked

Array = NDArray[Any]


def drawn(*shape: int, seed: int = 5) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def run(program: Program, x: Array) -> Array:
    return OnnxStage(open_session(program.onnx, "it", threads=1), program.ports)(x, {})[0]


def made(program: Program, precision: str, x: Array) -> Program:
    return lower(program, precision, calibration={"x": x} if precision == "int8-static" else None)


def weights(program: Program, kind: int) -> dict[str, Array]:
    model = onnx.load_model_from_string(program.onnx)
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == kind and len(t.dims) > 1}


PAIRS = [
    *(("linear", kind) for kind in LOWER), ("conv", "int8-static"), ("conv", "fp16"), ("conv", "bf16"), ("grouped", "int8-static"),
    ("lstm", "int8-dynamic"), ("lstm", "fp16"), ("lstm", "bf16"), ("gru", "fp16"), ("gru", "bf16"), *(("stacked", kind) for kind in LOWER),
]  # fmt: skip


def network(kind: str) -> tuple[Program, Array]:
    if kind == "linear":
        return linear(drawn(5, 40), drawn(5, seed=6)), drawn(300, 40)
    if kind in ("conv", "grouped"):
        return convolution(2 if kind == "grouped" else 1), drawn(70, 4, 6, 6)
    return (stacked(), drawn(50, 6)) if kind == "stacked" else (recurrent(kind.upper()), drawn(50, 4, 5))


@pytest.mark.parametrize(("kind", "precision"), PAIRS)
def test_close_to_fp32_same_ports_fewer_bytes_same_bytes_again(kind: str, precision: str) -> None:
    program, x = network(kind)
    found = made(program, precision, x)
    assert found.ports == replace(program.ports, precision=precision)
    assert found.onnx == made(program, precision, x).onnx
    check_program(found.onnx, "it", {})
    exact, here = run(program, x), run(found, x)
    assert here.dtype == np.float32
    assert here.shape == exact.shape
    step = {"fp16": 2**-8, "bf16": 2**-5}.get(precision, 0.12)
    assert 0 < np.abs(here - exact).max() < step * exact.std()
    held = sum(array.nbytes for array in weights(program, 1).values())
    left = sum(array.nbytes for k in (1, 3, 10, 16) for array in weights(found, k).values())
    assert left <= held * (0.27 if precision.startswith("int8") and kind != "lstm" else 0.62)


def test_int8_static_errs_by_no_more_than_its_steps() -> None:
    """|ŷ − y| ≤ Σ_i (|w_i| s_x + |x_i| s_w + s_x s_w / 2) / 2 + s_x s_w / 2 (bias), with s_x the input's step, s_w the row's."""
    w, b, x = drawn(5, 40), drawn(5, seed=6), drawn(300, 40)
    here = run(made(linear(w, b), "int8-static", x), x)[0].astype(np.float64)
    exact = x.astype(np.float64) @ w.T.astype(np.float64) + b
    step_x = (max(x.max(), 0) - min(x.min(), 0)) / 255
    step_w = np.abs(w).max(1) / 63
    bound = (np.abs(w).sum(1) * step_x + np.abs(x).sum(1, keepdims=True) * step_w + 41 * step_x * step_w) / 2
    assert (np.abs(here - exact) <= bound * 1.001 + 1e-5).all()
    assert len(np.unique(here)) > 0.99 * here.size  # not on a grid of 8 bits


def test_int8_weights_have_seven_bits_per_channel() -> None:
    program, x = network("linear")
    scaled = linear(drawn(5, 40) * np.array([[1e-3], [1], [1], [1], [1e3]], "f4"), drawn(5))
    for precision in ("int8-static", "int8-dynamic"):
        (quantised,) = weights(made(scaled, precision, x), 3).values()
        assert np.abs(quantised.astype(int)).max() <= 64
        channels = quantised if quantised.shape[0] == 5 else quantised.T
        assert (np.abs(channels.astype(int)).max(1) >= 60).all()  # the small channel has as many steps as the large one
    assert weights(made(program, "int8-static", x), 1) == {}


def test_static_rows_are_on_their_own_and_dynamic_ones_are_not() -> None:
    program, x = network("linear")
    x = np.concatenate([x[:20], 30 * x[20:21]])
    for precision, same in (("int8-static", True), ("int8-dynamic", False)):
        found = made(program, precision, x)
        alone = np.concatenate([run(found, x[i : i + 1]) for i in range(len(x))], 1)
        assert np.array_equal(alone, run(found, x)) == same


def test_integer_arithmetic_is_that_of_floats() -> None:
    """With every optimisation off, ONNX Runtime computes the quantised graph in floats: nothing saturates in its integer kernels."""
    runtime = pytest.importorskip("onnxruntime")
    w = np.abs(drawn(4, 256))
    x = np.abs(drawn(20, 256))  # all at one end of the range: sums of products are as large as they get
    found = made(linear(w, drawn(4)), "int8-static", x)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = runtime.InferenceSession(found.onnx, options, providers=["CPUExecutionProvider"]).run(["members"], {"x": x})[0]
    np.testing.assert_allclose(run(found, x), plain, rtol=1e-5)


def test_scales_are_those_of_the_calibration_rows() -> None:
    program, x = network("linear")
    clipped = run(made(program, "int8-static", 0.1 * x), x)
    assert np.abs(clipped - run(program, x)).max() > 5 * np.abs(run(made(program, "int8-static", x), x) - run(program, x)).max()


def test_bf16_rounds_to_nearest_even_and_computes_in_fp32() -> None:
    torch = pytest.importorskip("torch")
    w, b, x = drawn(5, 40), drawn(5), drawn(30, 40)
    w[0, :4] = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1e-40], "f4")  # two ties, one below the normal range
    rounded = torch.from_numpy(w).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(run(made(linear(w, b), "bf16", x), x), run(linear(rounded, b), x))


def test_fp16_holds_the_nearest_weights() -> None:
    w, x = drawn(5, 40), drawn(30, 40)
    (held,) = weights(made(linear(w, drawn(5)), "fp16", x), 10).values()
    np.testing.assert_array_equal(held, w.astype(np.float16))


@pytest.mark.parametrize("precision", LOWER)
def test_pixels_stay_pixels(precision: str) -> None:
    program = pixels()
    x = np.random.default_rng(0).integers(0, 256, (40, 6)).astype(np.uint8)
    exact, here = run(program, x), run(made(program, precision, x), x)
    assert np.abs(here - exact).max() < 0.1 * exact.std()


def test_nothing_is_logged_nor_left_behind(
    caplog: pytest.LogCaptureFixture, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handlers = list(logging.getLogger().handlers)
    for kind, precision in (("linear", "int8-static"), ("stacked", "int8-dynamic"), ("linear", "fp16")):
        program, x = network(kind)
        made(program, precision, x)
    assert not caplog.records
    assert not list(tmp_path.iterdir())
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(
    ("kind", "precision", "said"),
    [
        ("conv", "int8-dynamic", "most of them in Conv: take int8-static"),
        ("lstm", "int8-static", "most of them in LSTM: take int8-dynamic"),
        ("gru", "int8-static", "take fp16 or bf16"),
        ("gru", "int8-dynamic", "most of them in GRU: take fp16 or bf16"),
        ("linear", "int4", "precision='int4': expected one of"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: str, precision: str, said: str) -> None:
    program, x = network(kind)
    with pytest.raises(ValueError, match=said) as error:
        made(program, precision, x)
    assert "\n" not in str(error.value)


def test_other_programs_are_refused() -> None:
    program, x = network("linear")
    foreign = replace(program, ports=replace(program.ports, precision="foreign"))
    ticket = replace(program, sparse={"w": Sparse(np.ones(1, "f4"), np.ones((1, 1), bool))})
    for refused, said in ((foreign, "came from elsewhere"), (ticket, "ticket"), (made(program, "bf16", x), "is bf16 already")):
        with pytest.raises(ValueError, match=said):
            lower(refused, "fp16")
    large = linear(np.full((2, 3), 1e5, "f4"), np.zeros(2, "f4"))
    with pytest.raises(ValueError, match="'w' holds 100000, beyond its 65504: take bf16"):
        lower(large, "fp16")
    with pytest.raises(ValueError, match="not finite or round to infinity"):
        lower(linear(np.full((2, 3), np.finfo("f4").max), np.zeros(2, "f4")), "bf16")
    bare = weightless()
    for precision in ("bf16", "int8-dynamic"):
        with pytest.raises(ValueError, match="no matrices of weights, leave it at fp32"):
            lower(bare, precision)


def weightless() -> Program:
    from small_programs import graph, members

    node = onnx.helper.make_node("Unsqueeze", ["x", "axes"], ["members"])
    made = graph([node], {"x": ["B", 3]}, {"members": [1, "B", 3]}, {"axes": np.array([0])})
    return Program(replace(linear(drawn(3, 3), drawn(3)).ports, members=members()), made)


def test_changed_outputs_are_refused() -> None:
    program, _ = network("linear")
    wrong = replace(program, ports=replace(program.ports, members=Port("logits", "float32", (1, 5))))
    with pytest.raises(ValueError, match="keep it at fp32"):
        lower(wrong, "bf16")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "give calibration"),
        ({"y": np.zeros((3, 40), "f4")}, r"has \['y'\]: expected arrays by the names of its inputs, \['x'\]"),
        (np.zeros((3, 40), "f4"), "has ndarray"),
        ({"x": np.zeros((3, 39), "f4")}, r"float32 \(3, 39\), expected float32 \(B, 40\)"),
        ({"x": np.zeros((3, 40))}, "float64"),
        ({"x": np.zeros((0, 40), "f4")}, r"has \[0\] rows"),
        ({"x": np.full((3, 40), np.nan, "f4")}, "NaN or infinity"),
    ],
)
def test_calibration_rows_that_do_not_fit(rows: Any, said: str) -> None:
    program, _ = network("linear")
    with pytest.raises(ValueError, match=said):
        lower(program, "int8-static", calibration=rows)


@pytest.mark.parametrize("precision", ["int8-dynamic", "fp16", "bf16"])
def test_calibration_that_plays_no_part(precision: str) -> None:
    program, x = network("linear")
    with pytest.raises(ValueError, match="leave calibration out"):
        lower(program, precision, calibration={"x": x})
