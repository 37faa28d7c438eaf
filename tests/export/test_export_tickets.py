"""Tickets' programs: which weights leave the graph, what is stored of them, and that nothing is computed otherwise."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from quorate import Cascade, Policy, collect, stages
from quorate.export import programs, save_bundle, without_sparse
from quorate.export.tickets import AROUND, whole_weights
from quorate.models import RNN
from quorate.runtime import OnnxStage, Port, Ports, Program, load_bundle
from quorate.runtime.session import open_session
from quorate.runtime.ticket import read_ticket, ticket_bytes
from quorate.tickets import Masks, Tickets
from tiny_tickets import DATA, dst, edst, network


def sparse_(model: nn.Module, density: float, seed: int) -> Masks:
    """Masks of all matrices of a model, whose dead weights become 0 (some of them −0)."""
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(p.shape, generator=generator) < density for n, p in model.named_parameters() if p.ndim > 1}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return masks


def tickets(density: float = 0.1, members: int = 2) -> Tickets:
    """Of convolutions with batch statistics other than those they start with."""
    models = [network(m) for m in range(members)]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.3, 2)
                nn.init.normal_(module.running_mean)
                nn.init.normal_(module.weight)
    return Tickets(models, [sparse_(model, density, m) for m, model in enumerate(models)]).eval()


def recurrent(density: float = 0.2) -> Tickets:
    """Its weights are reordered and joined by the exporter: no name of a parameter is left."""
    torch.manual_seed(0)
    model = RNN((3, 6), 3, "lstm", 24)
    return Tickets([model], [sparse_(model, density, 0)]).eval()


X = torch.as_tensor(DATA.test.batch(np.arange(9))[0])


@pytest.fixture(scope="module")
def made() -> tuple[Tickets, list[Program], list[Program]]:
    ensemble = tickets()
    dense = programs(ensemble, X, sparse=False)
    return ensemble, dense, [without_sparse(some) for some in dense]


def answer(some: Program, x: Tensor) -> np.ndarray:
    stage = OnnxStage(open_session(some.onnx, "it", threads=1, external=whole_weights(some)), some.ports)
    return stage(x.numpy(), {})[0]


def test_live_weights_alone_are_stored_and_nothing_else_changes(made: tuple[Tickets, list[Program], list[Program]]) -> None:
    ensemble, dense, outside = made
    for m, (whole, some) in enumerate(zip(dense, outside, strict=True)):
        assert whole.sparse == {}
        assert some.ports == whole.ports
        mask = ensemble.ticket_masks[m]["4.weight"]
        (weight,) = some.sparse.values()
        np.testing.assert_array_equal(weight.mask, mask.numpy())
        assert len(weight.values) == int(mask.sum())
        before = {t.name: t for t in onnx.ModelProto.FromString(whole.onnx).graph.initializer}
        after = {t.name: t for t in onnx.ModelProto.FromString(some.onnx).graph.initializer}
        assert before.keys() == after.keys()
        for name, tensor in after.items():
            if name not in some.sparse:
                assert tensor == before[name]
                continue
            assert tensor.data_location == TensorProto.EXTERNAL
            assert [(e.key, e.value) for e in tensor.external_data] == [("location", "ticket")]
            assert list(tensor.dims) == list(before[name].dims)
            assert not tensor.raw_data
            np.testing.assert_array_equal(whole_weights(some)[name], numpy_helper.to_array(before[name]))
        stored = len(some.onnx) + len(ticket_bytes(some.sparse))
        assert stored < len(whole.onnx)
        np.testing.assert_array_equal(answer(some, X), answer(whole, X))


@pytest.mark.slow
def test_of_a_recurrent_network_too() -> None:
    ensemble = recurrent()
    x = torch.randn(5, 3, 6)
    (whole,) = programs(ensemble, x, sparse=False)
    some = without_sparse(whole)
    live = sum(int(mask.sum()) for name, mask in ensemble.ticket_masks[0].items() if "recurrent" in name)
    stored = {name: len(weight.values) for name, weight in some.sparse.items()}
    assert max(stored.values()) <= live
    assert sum(stored.values()) >= 0.8 * live  # the input's small matrix may stay inside
    np.testing.assert_array_equal(answer(some, x), answer(whole, x))


def linear(weight: np.ndarray) -> Program:
    """x → x W, a program by hand."""
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    x, y = (
        helper.make_tensor_value_info(n, kind, ["batch", size]) for n, size in zip(("x", "members"), weight.shape, strict=True)
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["members"])], "it", [x], [y], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    ports = Ports("it", Port("members", str(weight.dtype), weight.shape[1:]), Port("x", str(weight.dtype), weight.shape[:1]))
    return Program(ports, model.SerializeToString())


def test_it_leaves_only_where_that_saves_bytes() -> None:
    size = 64
    for live, dtype in (
        (700, np.float32),
        (1700, np.float64),
        (3400, np.float32),
        (3700, np.float32),
        (3900, np.float64),
        (0, np.float32),
    ):
        weight = np.zeros(size * size, dtype)
        weight[:live] = np.arange(1, live + 1)
        some = linear(weight.reshape(size, size))
        saved = weight.nbytes - (live * weight.itemsize + min(size * size // 8, 4 * live) + AROUND)
        assert (without_sparse(some).sparse != {}) == (saved > 0 and live > 0)
        if saved > 0 and live:
            assert len(ticket_bytes(without_sparse(some).sparse)) < weight.nbytes
    for few in (linear(np.eye(8, dtype=np.float32)), linear(np.zeros((300, 300), np.float32))):
        assert without_sparse(few) is few


def test_nan_is_live_and_minus_zero_is_not() -> None:
    weight = np.zeros((64, 64), np.float32)
    weight[0, :5] = np.nan, 1, -2, 3, np.inf
    weight[1] = -0.0
    some = without_sparse(linear(weight))
    assert len(some.sparse["w"].values) == 5
    found = read_ticket(ticket_bytes({"w": some.sparse["w"]}), "it", {"w": (64, 64)})["w"]
    np.testing.assert_array_equal(found, weight)
    assert not np.signbit(found[1]).any()


def test_twice_is_refused(made: tuple[Tickets, list[Program], list[Program]]) -> None:
    with pytest.raises(ValueError, match=r"of stage 'member0' has 1 weights outside already: give it whole"):
        without_sparse(made[2][0])


def test_a_bundle_of_tickets(made: tuple[Tickets, list[Program], list[Program]], tmp_path: Path) -> None:
    ensemble, dense, _ = made
    outputs = collect(ensemble, list(X), batch_size=9)
    policy = Policy.of(outputs, [(float(np.median(1 - outputs.probs(1).max(-1))), None)])
    manifest = save_bundle(ensemble, policy, tmp_path / "b", example=X)
    assert [stage.scattered for stage in manifest.stages] == [{next(iter(s.sparse)): (12, 8, 3, 3)} for s in made[2]]
    assert [stage.ports.macs for stage in manifest.stages] == list(outputs.costs or ())
    assert sum(file.size_bytes for file in manifest.files if "stage" in file.path) < sum(len(some.onnx) for some in dense)
    runtime = load_bundle(tmp_path / "b", threads=1)
    want, got = Cascade(stages(ensemble), policy).predict(X), runtime.predict(X.numpy())
    np.testing.assert_array_equal(got.stage, want.stage)
    np.testing.assert_allclose(got.probs, want.probs, rtol=0, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("make", [edst, dst])
def test_ensembles_that_train_tickets(make: type, tmp_path: Path) -> None:
    ensemble = make(2).eval()
    for m, member in enumerate(ensemble.members):
        twin = copy.deepcopy(member)
        masks = {n: mask for n, mask in sparse_(twin, 0.1, m).items() if n in ensemble.ticket_masks[m]}
        ensemble.set_ticket_(m, twin.state_dict(), masks)
    manifest = save_bundle(ensemble, None, tmp_path / "b", example=X)
    assert all(stage.ticket for stage in manifest.stages)
    runtime = load_bundle(tmp_path / "b", threads=1)
    want = collect(ensemble, list(X))
    for got, members in zip(runtime.outputs(X.numpy()).values, want.values, strict=True):
        np.testing.assert_allclose(got, members, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_merged_tickets(tmp_path: Path) -> None:
    ensemble = tickets(members=3)
    outputs = collect(ensemble, list(X)).regroup([1, 2])
    policy = Policy.of(outputs, [(0.1, None)])
    manifest = save_bundle(ensemble, policy, tmp_path / "b", example=X)
    assert [stage.ports.stage for stage in manifest.stages] == ["member0", "member1+member2"]
    assert [len(stage.scattered) for stage in manifest.stages] == [1, 2]
    assert [stage.ports.macs for stage in manifest.stages] == list(outputs.costs or ())
    got = load_bundle(tmp_path / "b", threads=1).outputs(X.numpy())
    np.testing.assert_allclose(got.values[1], outputs.values[1], rtol=0, atol=1e-5)
