"""Stages as programs: names and ports, bytes, what is given back, and what can't be exported."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from quorate.baselines import MCDropout
from quorate.ensemble import DeepEnsemble, MemberStage, stages
from quorate.export import onnx_graph, program, programs
from quorate.models import MLP
from quorate.packed import pack
from quorate.runtime.program import Port, Program
from quorate.runtime.session import OnnxStage, open_session
from test_contract import Students

X = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))


def opened(made: Program) -> OnnxStage:
    return OnnxStage(open_session(made.onnx, "it", threads=1), made.ports)


@pytest.fixture(scope="module")
def students() -> Students:
    torch.manual_seed(0)
    return Students()


@pytest.fixture(scope="module")
def made(students: Students) -> list[Program]:
    return programs(students, X)


def stage(forward: Any, **declared: Any) -> nn.Module:
    """A stage of one function of x, or of x and the carry."""

    class Own(nn.Module):
        name = "own"
        reads, writes, drops = declared.get("reads", ()), declared.get("writes", ()), ()

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 3)

        def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> Any:
            answer = forward(self, x, carry)
            return answer if isinstance(answer, tuple) else (answer[None], {})

    torch.manual_seed(0)
    return Own()


def test_ports_say_what_goes_in_and_out(made: list[Program]) -> None:
    first, second, third = (p.ports for p in made)
    assert first.input == second.input == Port("x", "float32", (10,))
    assert first.writes == {"features": Port("write.features", "float32", (8,)), "mean": Port("write.mean", "float32", ())}
    assert second.reads == {"features": Port("read.features", "float32", (8,)), "mean": Port("read.mean", "float32", ())}
    assert (second.drops, third.drops) == (("mean",), ("features",))
    assert third.input is None, "the third student does not look at x"
    assert third.members == Port("members", "float32", (2, 3))
    assert [p.macs for p in (first, second, third)] == [10 * 8 + 8 * 3, 18 * 8 + 8 * 3, 2 * 8 * 3]
    graph = onnx.ModelProto.FromString(made[2].onnx).graph
    assert [value.name for value in graph.input] == ["read.features"]


@pytest.mark.parametrize("rows", [1, 2, 11])
def test_programs_in_a_chain_give_what_the_stages_give(students: Students, made: list[Program], rows: int) -> None:
    x = torch.randn(rows, 10, generator=torch.Generator().manual_seed(rows))
    carry: dict[str, Any] = {}
    held: dict[str, Any] = {}
    for wrapped, some in zip(stages(copy.deepcopy(students)), made, strict=True):
        want, wrote = wrapped(x, {name: carry[name] for name in wrapped.reads})
        ran = opened(some)
        found, written = ran(x.numpy(), {name: held[name] for name in ran.reads})
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)
        carry, held = carry | wrote, held | written
        for name in written:
            np.testing.assert_allclose(held[name], carry[name], rtol=0, atol=1e-6)


def test_bytes_tell_nothing_of_where_they_were_made(made: list[Program]) -> None:
    for some in made:
        for told in (b"File ", b".py", b"site-packages", b"namespace", b"stack_trace", b"torch", os.getcwd().encode()):
            assert told not in some.onnx
        model = onnx.ModelProto.FromString(some.onnx)
        assert {
            dim.dim_param for value in (*model.graph.input, *model.graph.output) for dim in value.type.tensor_type.shape.dim
        } == {
            "batch",
            "",
        }
        assert not model.graph.value_info
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]


@pytest.mark.slow
def test_equal_stages_give_equal_bytes(students: Students, made: list[Program]) -> None:
    twin = copy.deepcopy(students).train()
    again = program(twin.first, 2 * X[:3])
    assert again.onnx == made[0].onnx
    with torch.no_grad():
        twin.first.head.bias[0] += 1
    assert program(twin.first, X).onnx != made[0].onnx


@pytest.mark.slow
def test_equal_bytes_in_other_processes() -> None:
    code = (
        "import hashlib, torch; from quorate.export import programs; from quorate.models import CNN1d; from quorate.packed import pack; "
        "torch.manual_seed(0); made = programs(pack(CNN1d((3, 12), 3, (6, 12), kernel=3)), torch.ones(2, 3, 12)); "
        "print(hashlib.sha256(made[0].onnx).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_all_is_given_back_as_it_was() -> None:
    torch.manual_seed(0)
    packed = pack(MLP((10,), 3, (16,), dropout=0.2, norm=True), members=2).train().set_execution_("apart")
    packed.network.get_submodule(next(n for n, m in packed.network.named_modules() if n)).eval()
    modes = [module.training for module in packed.modules()]
    state = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    parameters, random = list(packed.parameters()), torch.get_rng_state()
    flat = torch.backends.mha.get_fastpath_enabled()
    (some,) = programs(packed, X[:1])
    assert some.ports.members.shape == (2, 3)
    assert packed.execution == "apart"
    assert torch.backends.mha.get_fastpath_enabled() is flat
    assert [module.training for module in packed.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in packed.state_dict().items())
    assert all(a is b for a, b in zip(packed.parameters(), parameters, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    found, _ = opened(some)(X.numpy(), {})
    np.testing.assert_allclose(found, packed.eval()(X).detach(), rtol=0, atol=1e-6)


def test_outputs_that_are_one_tensor_or_pass_through_keep_their_names() -> None:
    def forward(self: Any, x: Tensor, carry: Mapping[str, Tensor]) -> Any:  # noqa: ARG001
        h = carry["h"]
        return h[None], {"h": h, "again": h}

    given = torch.randn(6, 3)
    some = program(stage(forward, reads=("h",), writes=("h", "again")), X, {"h": given})
    assert some.ports.input is None
    members, wrote = opened(some)(X.numpy(), {"h": given.numpy()})
    for array in (members[0], wrote["h"], wrote["again"]):
        np.testing.assert_array_equal(array, given)
    assert set(program(stage(forward, reads=("h",), writes=("h", "again")), X, {"h": given}, writes=["again"]).ports.writes) == {
        "again"
    }


def test_raw_integers_and_strided_inputs() -> None:
    raw = np.arange(60, dtype=np.int64).reshape(10, 6).T
    some = program(stage(lambda self, x, _: self.layer(x.float() / 60)), raw)
    assert some.ports.input == Port("x", "int64", (10,))


@pytest.mark.slow
def test_members_in_double_precision_come_out_in_single() -> None:
    some = program(stage(lambda self, x, _: self.layer(x)).double(), X.double())
    assert (some.ports.input, some.ports.members.dtype) == (Port("x", "float64", (10,)), "float32")


@pytest.mark.slow
def test_the_masks_of_mc_dropout_are_constants() -> None:
    torch.manual_seed(0)
    ensemble = MCDropout(MLP((10,), 3, (12,), dropout=0.5), members=2, seed=3).eval()
    want = ensemble(X).detach()
    for m, some in enumerate(programs(ensemble, X)):
        np.testing.assert_allclose(opened(some)(X.numpy(), {})[0][0], want[m], rtol=0, atol=1e-6)


class Counting(nn.Module):
    """Another result at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x[:, :3] + self.calls


REFUSED: dict[str, tuple[Any, str]] = {
    "values decide": (lambda s, x, _: s.layer(x) if x.sum() > 0 else x[:, :3], r"can't be traced by torch.export .*torch\.where"),
    "rows decide": (lambda s, x, _: s.layer(x) * len(x), r"x\.shape\[0\] for len\(x\)"),
    "random": (lambda s, x, _: nn.functional.dropout(s.layer(x), 0.5, True), r"draws random numbers when it predicts \("),
    "no ONNX": (
        lambda s, x, _: s.layer(x) + torch.lgamma(x[:, :3].abs() + 1) * torch.igamma(x[:, :3].abs(), x[:, 3:6].abs()),
        "as ONNX",
    ),
    "another type": (lambda s, x, _: s.layer(x)[0], r"returned shape \(1, 3\): expected \(members, 6, classes\)"),
    "fails": (
        lambda s, x, _: s.layer(x[:, 1:]),
        r"fails on the example, float32 \(6, 10\) \(RuntimeError: .*: give raw inputs of the",
    ),
    "no kernels": (
        lambda s, x, _: nn.functional.linear(x.bfloat16(), s.layer.weight.bfloat16()),
        r"that ONNX Runtime can't run .*ensemble\.float\(\)",
    ),
    "infinite": (lambda s, x, _: s.layer(x) / 0, "gives NaN or infinite members on the example"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cant_be_exported_is_named(case: str) -> None:
    forward, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        program(stage(forward), X)
    assert "'own'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_program_that_computes_otherwise_is_refused_unless_allowed() -> None:
    counting = MemberStage("own", Counting())
    with pytest.raises(
        ValueError, match=r"'own': as exported members differs from PyTorch by up to \d.* for \d rows, expected at most 0\.0001"
    ):
        program(counting, X)
    assert program(MemberStage("own", Counting()), X, atol=5).ports.stage == "own"


def test_wrong_arguments(students: Students, monkeypatch: pytest.MonkeyPatch) -> None:
    second = students.second
    for call, message in (
        (lambda: program(second, X, {}), r"'second' reads 'features': expected it in the carry, got \[\]"),
        (lambda: program(second, X, {"features": X[:2, :8]}), r"'features' has shape \(2, 8\), expected 6 rows"),
        (lambda: program(students.first, X[:0]), r"shape \(0, 10\), expected at least one row"),
        (lambda: programs(students, X[:0]), r"the example has shape \(0, 10\): expected some rows"),
        (
            lambda: program(stage(lambda s, x, _: s.layer(x)), X.bfloat16()),
            r"is torch\.bfloat16, which NumPy does not have: use a float32",
        ),
        (lambda: program(students.first, ["a"]), r"the example is <U1: expected an array or tensor of real numbers, rows first"),
        (lambda: program(students.first, X, rtol=-0.1), r"rtol=-0\.1: expected a finite number ≥ 0"),
        (lambda: programs(students, X, atol=float("nan")), r"atol=nan: expected a finite number ≥ 0"),
        (lambda: programs(students, X.double()), r"'first' fails on the example, float64 \(1, 10\) \(RuntimeError"),
        (lambda: programs(students, X, names=[]), r"names=\[\]: expected at least one stage, each once"),
        (lambda: programs(students, X, names=["first", "first"]), "each once"),
        (lambda: programs([students.second], X), r"'second' reads .*, which none of the stages before"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    monkeypatch.setattr("quorate.export.exporting.LARGEST", 100)
    with pytest.raises(ValueError, match=r"'first' has 460 bytes of weights, an ONNX graph holds at most 100: cut it"):
        program(students.first, X)


def test_a_graph_that_onnx_refuses_is_named(made: list[Program]) -> None:
    model = onnx.ModelProto.FromString(made[0].onnx)
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(ValueError, match="stage 'it' comes out as a graph that ONNX refuses"):
        onnx_graph.finished(model, "it")


def test_nothing_is_said_while_exporting(capfd: pytest.CaptureFixture[str]) -> None:
    programs(DeepEnsemble([nn.Linear(10, 3)]), X)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_stage_on_another_device_stays_there(students: Students, made: list[Program]) -> None:
    there = copy.deepcopy(students).cuda()
    assert [some.onnx for some in programs(there, X.cuda())] == [some.onnx for some in made]
    assert all(parameter.is_cuda for parameter in there.parameters())
