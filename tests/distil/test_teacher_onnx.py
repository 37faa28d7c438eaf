"""Teachers of ONNX files: against PyTorch's own results, batches that a file fixes, types, identities, and every refusal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from quorate.data import Split
from quorate.distil.onnx_teacher import file_hash
from quorate.distil.teacher import Teacher, joined
from quorate.runtime.foreign import DTYPES

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
SPLIT = Split(X.numpy(), None, np.arange(10, 17))
FLOAT = TensorProto.FLOAT
Shape = Sequence[int | str]


def write(
    path: Path,
    nodes: list[Any],
    outputs: dict[str, Shape],
    inputs: dict[str, Shape] | None = None,
    weights: Sequence[Any] = (),
    dtype: int = FLOAT,
    of: int = FLOAT,
) -> Path:
    """An ONNX file of these nodes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, dtype, shape)
            for name, shape in ({"x": ("n", 4)} if inputs is None else inputs).items()
        ],
        [helper.make_tensor_value_info(name, of, shape) for name, shape in outputs.items()],
        list(weights),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def linear(layer: nn.Linear, source: str, out: str) -> tuple[Any, list[Any]]:
    arrays = {f"{out}.w": layer.weight, f"{out}.b": layer.bias}
    found = [numpy_helper.from_array(array.detach().numpy(), name) for name, array in arrays.items()]
    return helper.make_node("Gemm", [source, *arrays], [out], transB=1), found


def exported(path: Path, model: nn.Sequential, batch: int | str = "n") -> Path:
    """A network of two linear layers as an ONNX file, by hand."""
    first, w1 = linear(model[0], "x", "h")  # type: ignore[arg-type]
    second, w2 = linear(model[2], "r", "y")  # type: ignore[arg-type]
    return write(path, [first, helper.make_node("Relu", ["h"], ["r"]), second], {"y": (batch, 3)}, {"x": (batch, 4)}, [*w1, *w2])


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.mark.parametrize("batch", ["n", 1, 3, 7, 20])
def test_it_gives_what_the_network_gives_in_whatever_batches(batch: int | str, tmp_path: Path) -> None:
    model = net()
    teacher = Teacher.of(exported(tmp_path / "t.onnx", model, batch), expect=3, macs=42)
    assert (teacher.name, teacher.online, teacher.macs, teacher.kind) == ("t.onnx", True, 42, "logits")
    torch.testing.assert_close(teacher.outputs(X), model(X).detach())
    for size in (2, 7, 50):
        np.testing.assert_allclose(teacher.on(SPLIT, size), model(X).detach(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="with at least one row"):
        teacher.outputs(X[:0])


@pytest.mark.parametrize("batch", ["n", 3])
@pytest.mark.parametrize("combine", ["probs", "logits"])
def test_members_are_joined(batch: int | str, combine: Any, tmp_path: Path) -> None:
    stack = numpy_helper.from_array(np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32), "w")
    path = write(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"y": (2, batch, 3)}, {"x": (batch, 4)}, [stack]
    )
    members = torch.stack([X @ torch.from_numpy(w.copy()) for w in numpy_helper.to_array(stack)])
    torch.testing.assert_close(Teacher.of(path, combine=combine).outputs(X), joined(members, "logits", combine))
    with pytest.raises(ValueError, match=r"returned shape \(2, 7, 3\): say how members become one"):
        Teacher.of(path).outputs(X)


@pytest.mark.parametrize("name", list(DTYPES))
def test_inputs_are_cast_as_the_file_says(name: str, tmp_path: Path) -> None:
    code = {"tensor(float16)": TensorProto.FLOAT16, "tensor(float)": FLOAT, "tensor(double)": TensorProto.DOUBLE}.get(
        name, getattr(TensorProto, name[7:-1].upper(), None)
    )
    path = write(tmp_path / "c.onnx", [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)], {"y": ("n", 4)}, dtype=code or FLOAT)
    teacher = Teacher.of(path)
    raw = torch.randint(0, 100, (5, 4), dtype=torch.uint8)
    given = raw.to(torch.int8) if name == "tensor(int8)" else raw
    assert torch.equal(teacher.outputs(given), raw.float())
    if np.dtype(DTYPES[name]).kind == "f":
        torch.testing.assert_close(teacher.outputs(X), X, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(teacher.outputs(X.bfloat16()), X.bfloat16().float(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(teacher.outputs(X.double()), X, rtol=1e-3, atol=1e-3)
    else:
        with pytest.raises(ValueError, match=r"teacher 'c\.onnx' takes u?int\d+, got float32: give a transform= that converts"):
            teacher.outputs(X)


def test_a_transform_makes_raw_inputs_the_files_own(tmp_path: Path) -> None:
    model = net()
    path = exported(tmp_path / "t.onnx", model)
    raw = torch.randint(0, 256, (5, 2, 2), dtype=torch.uint8)

    def flat(x: Tensor) -> Any:
        return (x.flatten(1).float() / 255).numpy()

    teacher = Teacher.of(str(path), transform=flat)
    torch.testing.assert_close(teacher.outputs(raw), model(raw.flatten(1).float() / 255).detach())
    assert teacher.identity["transform"]["name"].endswith("flat")
    with pytest.raises(ValueError, match=r"got inputs of shape \(5, 2, 2\): expected \(B, 4\), give a transform="):
        Teacher.of(path).outputs(raw)
    with pytest.raises(ValueError, match=r"got inputs of shape \(7, 3\): expected \(B, 4\)"):
        Teacher.of(path).outputs(X[:, :3])


def test_probabilities_and_regressions(tmp_path: Path) -> None:
    path = write(tmp_path / "p.onnx", [helper.make_node("Softmax", ["x"], ["y"])], {"y": ("n", 4)})
    torch.testing.assert_close(Teacher.of(path, kind="probs").outputs(X), X.log_softmax(-1))
    same = write(tmp_path / "v.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"y": ("n", 4)})
    for kind in ("values", "gaussian"):
        teacher = Teacher.of(same, kind=kind)  # type: ignore[arg-type]
        assert (teacher.kind, teacher.identity["kind"]) == (kind, kind)
        assert torch.equal(teacher.outputs(X), X)


def test_one_output_of_several_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])]
    path = write(tmp_path / "two.onnx", nodes, {"a": ("n", 4), "b": ("n", 4)})
    assert torch.equal(Teacher.of(path, output="b").outputs(X), -X)
    assert torch.equal(Teacher.of(path, output="a").outputs(X), X.relu())
    assert Teacher.of(path, output="a").identity != Teacher.of(path, output="b").identity
    for output in (None, "c"):
        with pytest.raises(ValueError, match=rf"teacher 'two\.onnx': output={output!r}, expected one of a, b"):
            Teacher.of(path, output=output)


def test_the_identity_is_the_files(tmp_path: Path) -> None:
    model = net()
    path = exported(tmp_path / "t.onnx", model)
    first = Teacher.of(path).identity
    assert json.loads(json.dumps(first)) == first == Teacher.of(path.rename(tmp_path / "other.onnx")).identity
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    assert Teacher.of(exported(tmp_path / "t.onnx", model)).identity["file"] != first["file"]


def test_weights_beside_the_file_count(tmp_path: Path) -> None:
    model = net()
    path = exported(tmp_path / "t.onnx", model)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="t.data", size_threshold=0)
    teacher = Teacher.of(path)
    torch.testing.assert_close(teacher.outputs(X), model(X).detach())
    changed = bytearray((tmp_path / "t.data").read_bytes())
    changed[2] ^= 1
    (tmp_path / "t.data").write_bytes(changed)
    assert Teacher.of(path).identity["file"] != teacher.identity["file"]
    (tmp_path / "t.data").unlink()
    refusing(r"t\.onnx keeps tensors in t\.data, which is not there: copy both files", lambda: Teacher.of(path))


def test_tensors_inside_branches_are_found(tmp_path: Path) -> None:
    def branch(name: str, factor: float) -> Any:
        scale = numpy_helper.from_array(np.full(4, factor, np.float32), f"{name}.w")
        node = helper.make_node("Mul", ["x", f"{name}.w"], [f"{name}.y"])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}.y", FLOAT, ("n", 4))], [scale])

    yes = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch("a", 2.0), else_branch=branch("b", 3.0))
    path = write(tmp_path / "t.onnx", [node], {"y": ("n", 4)}, weights=[yes])
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="t.data", size_threshold=0)
    assert {file.name for file in tmp_path.iterdir()} == {"t.onnx", "t.data"}
    first = file_hash(path)
    changed = bytearray((tmp_path / "t.data").read_bytes())
    changed[-1] ^= 1
    (tmp_path / "t.data").write_bytes(changed)
    assert file_hash(path) != first


def refusing(message: str, run: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        run()
    assert "\n" not in str(refusal.value)


def test_files_that_cannot_be_teachers(tmp_path: Path) -> None:
    refusing(r"none\.onnx' is no file: expected an \.onnx file", lambda: Teacher.of(tmp_path / "none.onnx"))
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model at all")
    refusing(r"bad\.onnx can't be read as an ONNX file \(.*\): export it anew", lambda: Teacher.of(bad))
    unknown = write(tmp_path / "u.onnx", [helper.make_node("Nonsense", ["x"], ["y"])], {"y": ("n", 4)})
    refusing(r"u\.onnx can't be read as an ONNX file \(.*Nonsense.*\)", lambda: Teacher.of(unknown))
    add = [helper.make_node("Add", ["x", "z"], ["y"])]
    two = write(tmp_path / "two.onnx", add, {"y": ("n", 4)}, {"x": ("n", 4), "z": ("n", 4)})
    refusing(r"has inputs x, z: expected exactly one, \(B, \*shape\)", lambda: Teacher.of(two))
    constant = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones((2, 3), np.float32), "c"))
    refusing(
        "has inputs none: expected exactly one", lambda: Teacher.of(write(tmp_path / "n.onnx", [constant], {"y": (2, 3)}, {}))
    )
    text = write(tmp_path / "s.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"y": ("n", 4)}, dtype=8, of=8)
    refusing(r"takes tensor\(string\): expected one of tensor\(float16\), ", lambda: Teacher.of(text))
    fine = exported(tmp_path / "t.onnx", net())
    for providers in (["GPU"], [], "CPUExecutionProvider"):
        refusing(r"providers=.*, expected a list of .*CPUExecutionProvider", lambda p=providers: Teacher.of(fine, providers=p))
    assert Teacher.of(fine, providers=["CPUExecutionProvider"]).outputs(X).shape == (7, 3)
    refusing("this teacher has no stages: expected 'probs' or 'logits'", lambda: Teacher.of(fine, combine="last"))
    refusing("gives 3 outputs per row: expected 4", lambda: Teacher.of(fine, expect=4).outputs(X))


def test_outputs_that_are_no_teachers(tmp_path: Path) -> None:
    labels = write(tmp_path / "l.onnx", [helper.make_node("ArgMax", ["x"], ["y"], axis=1)], {"y": ("n", 1)}, of=TensorProto.INT64)
    refusing(r"output 'y' is int64 of shape \(7, 1\): expected floats \(7, L\)", lambda: Teacher.of(labels).outputs(X))
    flat = write(tmp_path / "f.onnx", [helper.make_node("ReduceSum", ["x"], ["y"])], {"y": (1, 1)})
    refusing(
        r"output 'y' is float32 of shape \(1, 1\): expected floats \(7, L\) or \(M, 7, C\)", lambda: Teacher.of(flat).outputs(X)
    )
    many = write(tmp_path / "q.onnx", [helper.make_node("SequenceConstruct", ["x"], ["y"])], {"y": ("n", 4)})
    graph = onnx.load(many)
    graph.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", FLOAT, ("n", 4)))
    onnx.save(graph, many)
    refusing(r"output 'y' is list: expected floats", lambda: Teacher.of(many).outputs(X))
    inside = helper.make_node("Reshape", ["x", "s"], ["y"])
    three = write(
        tmp_path / "r.onnx", [inside], {"y": (3, 4)}, weights=[numpy_helper.from_array(np.array([3, 4], np.int64), "s")]
    )
    refusing(r"failed on inputs of shape \(7, 4\) \(.*\)", lambda: Teacher.of(three).outputs(X))
    log = write(tmp_path / "log.onnx", [helper.make_node("Log", ["x"], ["y"])], {"y": ("n", 4)})
    rows = np.ones((7, 4), np.float32)
    rows[4, 1] = -1
    refusing("NaN or infinite values in the rows with ids 14: mend", lambda: Teacher.of(log).on(Split(rows, None, SPLIT.ids), 3))


def test_without_onnx_runtime_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = exported(tmp_path / "t.onnx", net())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime can't be imported .*: pip install onnxruntime"):
        Teacher.of(path)
