"""ONNX files as stages: what their ports say against what they give, weights in other files, and every refusal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_onnx as tiny
from quorate.runtime import OnnxStage, Program
from quorate.runtime.foreign import DTYPES, ForeignFile
from quorate.runtime.members import onnx_member
from quorate.runtime.session import open_session
from tiny_onnx import model, node, tensor

pytestmark = pytest.mark.deciding

RNG = np.random.default_rng(5)
WEIGHT, BIAS = RNG.normal(size=(3, 4)).astype(np.float32), RNG.normal(size=3).astype(np.float32)
X = RNG.normal(size=(7, 4)).astype(np.float32)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def run(program: Program, x: np.ndarray) -> np.ndarray:
    members, wrote = OnnxStage(open_session(program.onnx, "it"), program.ports)(x, {})
    assert wrote == {}
    return members


@pytest.mark.parametrize("batch", ["n", 1, 3, 7, 20])
def test_a_network_is_a_stage(batch: int | str, tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", tiny.linear(WEIGHT, BIAS, batch))
    program = onnx_member(path, macs=12)
    ports = program.ports
    assert (ports.stage, ports.macs, ports.precision, ports.span) == ("net", 12.0, "foreign", None)
    assert ports.batch == (None if batch == "n" else batch)
    assert ports.input is not None
    assert (ports.input.name, ports.input.dtype, ports.input.shape) == ("x", "float32", (4,))
    assert (ports.members.name, ports.members.dtype, ports.members.shape) == ("y", "float32", (3,))
    assert program.onnx == path.read_bytes()
    np.testing.assert_allclose(run(program, X)[0], X @ WEIGHT.T + BIAS, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", ["n", 3])
def test_members_stand_first(batch: int | str, tmp_path: Path) -> None:
    stack = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    program = onnx_member(written(tmp_path / "two.onnx", tiny.linear(stack, batch=batch, x="in", y="out")), name="pair")
    assert (program.ports.stage, program.ports.members.shape, program.ports.macs) == ("pair", (2, 3), None)
    np.testing.assert_allclose(run(program, X), X @ stack, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", sorted(DTYPES.values()))
def test_inputs_of_every_type(dtype: str, tmp_path: Path) -> None:
    cast = model([node("Cast", ["x"], ["y"], to=11)], {"x": (dtype, ("n", 2, 3))}, {"y": ("float64", ("n", 2, 3))})
    with pytest.raises(ValueError, match=r"output 'y' is float64 of shape \(3, 2, 3\): expected floats \(3, L\) or \(M, 3, C\)"):
        onnx_member(written(tmp_path / "c.onnx", cast))
    flat = [node("Flatten", ["x"], ["f"]), node("Cast", ["f"], ["y"], to=11)]
    path = written(tmp_path / "f.onnx", model(flat, {"x": (dtype, ("n", 2, 3))}, {"y": ("float64", None)}))
    ports = onnx_member(path).ports
    assert ports.input is not None
    assert (ports.input.dtype, ports.input.shape) == (dtype, (2, 3))
    assert (ports.members.dtype, ports.members.shape) == ("float64", (6,))


def test_half_precision_comes_out_as_floats(tmp_path: Path) -> None:
    program = onnx_member(written(tmp_path / "h.onnx", half := model(
        [node("Cast", ["x"], ["y"], to=10)], {"x": ("float32", ("n", 4))}, {"y": ("float16", ("n", 4))}
    )))  # fmt: skip
    assert half
    assert program.ports.members.dtype == "float16"
    np.testing.assert_array_equal(run(program, X)[0], X.astype(np.float16).astype(np.float32))


def test_free_sizes_stay_free_where_the_output_is_declared(tmp_path: Path) -> None:
    mean = [node("ReduceMean", ["x"], ["y"], axes=[2], keepdims=0)]
    path = written(tmp_path / "any.onnx", model(mean, {"x": ("float32", ("n", 3, "t"))}, {"y": ("float32", ("n", 3))}))
    program = onnx_member(path)
    assert program.ports.input is not None
    assert program.ports.input.shape == (3, None)
    assert program.ports.members.shape == (3,)
    rows = RNG.normal(size=(2, 3, 9)).astype(np.float32)
    np.testing.assert_allclose(run(program, rows)[0], rows.mean(-1), rtol=1e-5, atol=1e-6)
    unknown = written(tmp_path / "u.onnx", model(mean, {"x": ("float32", ("n", 3, "t"))}, {"y": ("float32", None)}))
    declared = ForeignFile(unknown, "it").declared
    if len(declared) not in (2, 3):  # ONNX Runtime may find out by itself
        refused(r"output 'y' is declared as float32 .* not all fixed: expected floats", unknown)


def refused(message: str, path: Path, **options: Any) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        onnx_member(path, **options)
    assert "\n" not in str(refusal.value)


def test_one_output_of_several_is_named(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["x"], ["b"])]
    shape: tuple[str, tuple[int | str, ...]] = ("float32", ("n", 4))
    path = written(tmp_path / "two.onnx", model(nodes, {"x": shape}, {"a": shape, "b": shape}))
    np.testing.assert_array_equal(run(onnx_member(path, output="b"), X)[0], -X)
    np.testing.assert_array_equal(run(onnx_member(path, output="a"), X)[0], np.maximum(X, 0))
    for output in (None, "c"):
        refused(rf"member 'two': output={output!r}, expected one of a, b", path, output=output)


def test_files_that_are_no_members(tmp_path: Path) -> None:
    shape: tuple[str, tuple[int | str, ...]] = ("float32", ("n", 4))
    refused(r"member 'none': .*none\.onnx' is no file: expected an \.onnx file", tmp_path / "none.onnx")
    refused(r"bad\.onnx can't be read as an ONNX file", written(tmp_path / "bad.onnx", b"no model at all"))
    both = model([node("Add", ["x", "z"], ["y"])], {"x": shape, "z": shape}, {"y": shape})
    refused(r"has inputs x, z: expected exactly one, \(B, \*shape\)", written(tmp_path / "both.onnx", both))
    labels = model([node("ArgMax", ["x"], ["y"], axis=1)], {"x": shape}, {"y": ("int64", ("n", 1))})
    refused(r"output 'y' is int64 of shape \(3, 1\): expected floats", written(tmp_path / "l.onnx", labels))
    one = model([node("Relu", ["x"], ["y"])], {"x": shape}, {"y": ("float32", (1, 4))})
    refused(r"output 'y' is declared as \(1, 4\), with 1 rows, for inputs of any number", written(tmp_path / "one.onnx", one))
    shaped = model([node("Relu", ["x"], ["y"])], {"x": ("float32", None)}, {"y": ("float32", None)})
    refused(r"its input 'x' has no shape, expected \(B, \*shape\)", written(tmp_path / "s.onnx", shaped))
    drawn = model([node("RandomUniformLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])], {"x": shape}, {"y": shape})
    refused("Random", written(tmp_path / "r.onnx", drawn))
    fixed = model([node("Reshape", ["x", "s"], ["y"])], {"x": shape}, {"y": shape}, [tensor("s", np.array([5, 4], np.int64))])
    refused(r"member 'fixed' failed on inputs of shape \(3, 4\)", written(tmp_path / "fixed.onnx", fixed))


def test_arguments_that_cannot_be(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", tiny.linear(WEIGHT))
    refused("name='', expected text", path, name="")
    for macs in (-1, float("nan"), float("inf"), True, "5"):
        refused(r"macs=.*, expected a finite number ≥ 0, or None", path, macs=macs)
    for providers in (["GPU"], [], "CPUExecutionProvider"):
        refused(r"providers=.*, expected a list of .*CPUExecutionProvider", path, providers=providers)


def beside(folder: Path) -> Path:
    """The network with its weight in another file."""
    (folder / "net.data").write_bytes(WEIGHT.tobytes())
    shape: tuple[str, tuple[int | str, ...]] = ("float32", ("n", 4))
    data = model(
        [node("Gemm", ["x", "w"], ["y"], transB=1)],
        {"x": shape},
        {"y": ("float32", ("n", 3))},
        [tiny.external("w", "float32", (3, 4), "net.data")],
    )
    return written(folder / "net.onnx", data)


@pytest.mark.extras
def test_weights_beside_the_file_are_taken_in(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    program = onnx_member(beside(tmp_path))
    (tmp_path / "net.data").unlink()
    np.testing.assert_allclose(run(program, X)[0], X @ WEIGHT.T, rtol=1e-5, atol=1e-6)
    refused(r"net\.onnx can't be read as an ONNX file", tmp_path / "net.onnx")


def test_weights_beside_the_file_without_the_package_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(
        r"net\.onnx keeps weights in files beside it, .* onnx\.save\(onnx\.load\('net\.onnx'\), 'whole\.onnx'\)", beside(tmp_path)
    )
