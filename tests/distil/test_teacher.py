"""Teachers of modules, functions and stored Outputs: means against closed forms, identities, and that nothing is changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import quorate
from quorate import DeepEnsemble, Outputs
from quorate.data import Split
from quorate.distil.teacher import Teacher, joined
from quorate.distil.teacher_sources import tensors_hash
from quorate.ensemble import MemberStage, device_of

N, X = 7, torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
IDS = np.array([14, 3, 8, 77, 5, 20, 6])
SPLIT = Split(X.numpy(), None, IDS)


def net(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, width)).eval()


def ensemble(combine: str = "probs", kind: Any = "logits", width: int = 4) -> DeepEnsemble:
    made = DeepEnsemble([net(width) for _ in range(3)], kind).eval()
    made.combine = combine  # type: ignore[assignment]
    return made


class Exits(nn.Module):
    """An early exit, and one with two members that replaces it and reads what the first wrote."""

    combine = "last"

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = _Early(), _Late()
        self.eval()

    def stages(self) -> list[nn.Module]:
        return [self.early, self.late]

    def forward(self, x: Tensor) -> Tensor:
        one, carry = self.early(x, {})
        return torch.cat([one, self.late(x, carry)[0]])


class _Early(nn.Module):
    name, reads, writes, drops = "early", (), ("h",), ()

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        h = self.up(x).relu()
        return self.head(h)[None], {"h": h}


class _Late(nn.Module):
    name, reads, writes, drops = "late", ("h",), (), ("h",)

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        return torch.stack([head(carry["h"]) for head in self.heads]), {}


def by_hand(members: np.ndarray, kind: str, combine: str) -> np.ndarray:
    """The mean of members (M, B, C) in float64, by loops over the rows."""
    members = members.astype(np.float64)
    if combine == "logits" or kind == "values":
        return members.mean(0)
    rows = []
    for row in members.swapaxes(0, 1):
        if kind == "logits":
            rows.append(np.log(np.mean([np.exp(z) / np.exp(z).sum() for z in row], axis=0)))
        elif kind == "probs":
            rows.append(np.log(row.mean(0)))
        else:
            mean, log_variance = np.split(row, 2, axis=-1)
            second = (np.exp(log_variance) + mean**2).mean(0)
            rows.append(np.concatenate([mean.mean(0), np.log(second - mean.mean(0) ** 2)]))
    return np.array(rows)


@pytest.mark.parametrize("kind", ["logits", "values", "gaussian"])
@pytest.mark.parametrize("combine", ["probs", "logits", "last"])
def test_a_module_ensemble_is_its_mean(kind: str, combine: str) -> None:
    model = ensemble(combine, kind)
    members = model(X).detach().numpy()
    expected = by_hand(members[-1:] if combine == "last" else members, kind, combine)
    teacher = Teacher.of(model)
    assert (teacher.kind, teacher.combine, teacher.online, teacher.width) == (kind, combine, True, None)
    np.testing.assert_allclose(teacher.outputs(X), expected, rtol=2e-5, atol=2e-5)
    assert teacher.width == 4
    stored = quorate.collect(model, SPLIT)
    for source in (stored, Outputs([*stored.values], kind=kind, combine="probs", ids=IDS)):  # type: ignore[arg-type]
        again = Teacher.of(source, combine=combine, expect=4)  # type: ignore[arg-type]
        assert (again.kind, again.online, again.width) == (kind, False, 4)
        np.testing.assert_allclose(again.on(SPLIT, 3), expected, rtol=2e-5, atol=2e-5)
    if combine == "logits":  # what is asked for holds against what is declared
        np.testing.assert_allclose(Teacher.of(ensemble("probs", kind), combine="logits").outputs(X).shape, (N, 4))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.sampled_from(["logits", "probs", "values", "gaussian"]),
    st.sampled_from(["probs", "logits", "last"]), st.integers(0, 999),
)  # fmt: skip
def test_means_in_float64(m: int, b: int, half: int, kind: Any, combine: Any, seed: int) -> None:
    draw = np.random.default_rng(seed).normal(size=(m, b, 2 * half)) * 3
    if kind == "probs":
        draw, combine = np.exp(draw) / np.exp(draw).sum(-1, keepdims=True), "probs"
    found = joined(torch.from_numpy(draw), kind, combine)
    np.testing.assert_allclose(found, by_hand(draw, kind, combine), rtol=1e-9, atol=1e-9)


def test_means_do_not_overflow_and_one_member_is_itself() -> None:
    extreme = torch.tensor([[[900.0, 0.0]], [[0.0, 800.0]]])
    np.testing.assert_allclose(joined(extreme, "logits", "probs"), np.log([[0.5, 0.5]]), rtol=1e-6)
    gaussian = torch.tensor([[[2.0, -120.0]], [[2.0, -120.0]]])  # variances below float32
    np.testing.assert_allclose(joined(gaussian, "gaussian", "probs"), [[2.0, -120.0]], rtol=1e-6)
    one = torch.randn(1, 5, 4)
    assert torch.equal(joined(one, "gaussian", "probs"), one[0])
    assert torch.equal(joined(one, "values", "last"), one[0])
    assert torch.equal(joined(one, "logits", "logits"), one[0])


def test_last_runs_the_stages_and_takes_the_members_of_the_last() -> None:
    model = Exits()
    expected = by_hand(model(X)[1:].detach().numpy(), "logits", "probs")
    np.testing.assert_allclose(Teacher.of(model).outputs(X), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(Teacher.of(quorate.collect(model, SPLIT)).on(SPLIT), expected, rtol=1e-5, atol=1e-6)
    assert Teacher.of(model, example=X[:2]).macs == sum(quorate.ensemble.stage_macs(model, X[:1])) == 4 * 5 + 3 * 5 * 3
    everyone = by_hand(model(X).detach().numpy(), "logits", "probs")
    np.testing.assert_allclose(Teacher.of(model, combine="probs").outputs(X), everyone, rtol=1e-5, atol=1e-6)


def test_a_plain_module_gives_its_logits_as_they_are_and_half_precision_as_float32() -> None:
    model = net()
    out = Teacher.of(model).outputs(X)
    assert torch.equal(out, model(X).detach())
    assert (out.dtype, out.requires_grad) == (torch.float32, False)
    for dtype in (torch.float64, torch.bfloat16):
        cast = copy.deepcopy(model).to(dtype)
        found = Teacher.of(cast, transform=lambda x, to=dtype: x.to(to)).outputs(X)  # type: ignore[misc]
        assert torch.equal(found, cast(X.to(dtype)).detach().float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Teacher.of(model).outputs(X), out)
    shifted = Teacher.of(model, transform=lambda x: (x - 1).numpy())
    torch.testing.assert_close(shifted.outputs(X), model(X - 1).detach())
    probs = nn.Sequential(*model, nn.Softmax(-1)).eval()
    torch.testing.assert_close(Teacher.of(probs, kind="probs").outputs(X), out.log_softmax(-1))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def logits(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_functions_and_methods() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 3))
    teacher = Teacher.of(lambda x: x.numpy() @ weights, name="table", macs=12)
    np.testing.assert_allclose(teacher.on(SPLIT, 2), X.numpy() @ weights, rtol=1e-5, atol=1e-6)
    assert (teacher.macs, teacher.kind, teacher.identity["name"]) == (12, "logits", "table")
    stacked = Teacher.of(lambda x: np.stack([x.numpy() @ weights, x.numpy() @ -weights]), combine="logits", name="both")
    np.testing.assert_allclose(stacked.outputs(X), np.zeros((N, 3)), atol=1e-6)
    model = Branch().eval()
    method = Teacher.of(model.logits, example=X[:1])
    assert torch.equal(method.outputs(X), model.layer(X).detach())
    assert method.macs == 12
    assert method.identity != Teacher.of(model).identity
    with pytest.raises(ValueError, match="is in training mode"):
        Teacher.of(Branch().logits)
    with pytest.warns(UserWarning, match=r"known by its name alone, here 'torch\.\S*square': give name=") as said:
        assert Teacher.of(torch.square).identity["name"].endswith("square")
    assert said[0].filename == __file__


def test_on_streams_into_a_memory_map_and_reports(tmp_path: Path) -> None:
    model, seen = net(), []
    out = np.lib.format.open_memmap(tmp_path / "g.npy", "w+", np.float32, (N, 3))
    again = Teacher.of(model).on(SPLIT, 3, lambda done, total: seen.append((done, total)), out)
    assert again is out
    assert seen == [(3, N), (6, N), (7, N)]
    np.testing.assert_allclose(out, model(X).detach(), rtol=1e-5, atol=1e-6)


def test_stored_outputs_are_matched_by_ids(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float16)
    outputs = Outputs([values, -2 * values], combine="logits", ids=IDS[::-1].copy(), costs=[5, 6])
    outputs.save(tmp_path / "g.safetensors")
    for source in (outputs, tmp_path / "g.safetensors", str(tmp_path / "g.safetensors")):
        found = Teacher.of(source).on(SPLIT.subset([4, 0, 6]), 2)
        np.testing.assert_array_equal(found, (-values.astype(np.float32) / 2)[[2, 6, 0]])
    assert Teacher.of(source).identity == Teacher.of(outputs).identity
    assert Teacher.of(outputs).macs is None
    probs = np.array([[0.25, 0.75], [0.5, 0.5]])
    stored = Teacher.of(Outputs([probs, probs[::-1]], kind="probs"))
    assert stored.kind == "logits"
    np.testing.assert_allclose(stored.on(Split(X[:2].numpy(), None, np.arange(2))), np.log([[0.375, 0.625]] * 2), rtol=1e-6)


def test_the_identity_changes_with_one_weight_and_not_otherwise() -> None:
    model = net()
    first, teacher = Teacher.of(model).identity, Teacher.of(model)
    assert json.loads(json.dumps(first)) == first == Teacher.of(copy.deepcopy(model)).identity
    teacher.outputs(X)
    model.requires_grad_(False)
    assert teacher.identity == first
    with torch.no_grad():
        model[4].weight[1, 2] += 1e-6
    assert teacher.identity["tensors"] != first["tensors"]
    assert teacher.identity["structure"] == first["structure"]
    before = teacher.identity
    model[1].num_batches_tracked += 1
    assert teacher.identity != before
    model.register_buffer("scale", torch.ones(()), persistent=False)
    before = teacher.identity
    model.scale += 1
    assert teacher.identity != before
    other = copy.deepcopy(model)
    other[2].p = 0.25
    assert Teacher.of(other).identity["structure"] != teacher.identity["structure"]
    shift = nn.Linear(4, 4).eval()
    held = Teacher.of(model, transform=shift)
    before = held.identity
    with torch.no_grad():
        shift.bias[0] += 1
    assert held.identity != before != teacher.identity
    assert Teacher.of(ensemble(), combine="logits").identity["combine"] == "logits"
    values = np.zeros((N, 3))
    stored = [Teacher.of(Outputs([v], ids=i)).identity for v, i in ((values, IDS), (values, IDS[::-1]), (values + 1, IDS))]
    assert len({json.dumps(said) for said in stored}) == 3


class Counting(nn.Module):
    """Writes its buffers whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(4))
        self.calls: Tensor
        self.seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = x.mean(0)
        return self.layer(x) + self.calls


@pytest.mark.parametrize("make", [net, ensemble, Exits, lambda: Counting().eval(), lambda: DeepEnsemble([Counting()]).eval()])
def test_the_teacher_is_never_changed(make: Callable[[], nn.Module]) -> None:
    model = make()
    next(model.parameters()).requires_grad_(False)
    before = tensors_hash(model), [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    teacher = Teacher.of(model, example=X[:1])
    first = teacher.outputs(X)
    assert torch.equal(teacher.outputs(X), first)
    teacher.on(SPLIT, 2)
    assert before == (tensors_hash(model), [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()])
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_inputs_go_to_the_teachers_device_and_outputs_come_back() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3, device="meta")

        def forward(self, x: Tensor) -> Tensor:
            assert x.device.type == "meta"
            return torch.ones(len(x), 3)

    assert Teacher.of(Placed().eval()).outputs(X).device.type == "cpu"
    assert Teacher.of(Placed().eval(), transform=nn.Linear(4, 4, device="meta").eval()).outputs(X).device.type == "cpu"


def test_near_is_a_copy_on_another_device_and_leaves_the_teacher_where_it_is() -> None:
    for source in (net(), net().forward):
        teacher, meta = Teacher.of(source, name="t"), torch.device("meta")
        assert teacher.near(torch.device("cpu")) is teacher
        moved = teacher.near(meta)
        assert device_of(moved.source.run) == device_of(moved.source.module) == meta  # type: ignore[attr-defined]
        assert moved.source(X).device == meta
        assert teacher.outputs(X).isfinite().all()
    function = Teacher.of(lambda x: x, name="f")
    assert function.near(torch.device("meta")) is function


def test_costs_are_counted_on_an_example_or_given() -> None:
    model = net()
    assert Teacher.of(model, example=X[:2]).macs == quorate.macs(model, X[:1])
    assert Teacher.of(model).macs is None
    assert Teacher.of(model, example=X[:2], macs=7.5).macs == 7.5
    assert Teacher.of(nn.Linear(2, 3).eval(), example=X[:2], transform=lambda x: x[:, :2]).macs == 6


def test_a_teacher_is_taken_as_it_is() -> None:
    teacher = Teacher.of(net())
    assert Teacher.of(teacher) is teacher
    expecting = Teacher.of(teacher, expect=3)
    assert torch.equal(expecting.outputs(X), teacher.outputs(X))
    with pytest.raises(ValueError, match="gives 3 outputs per row: expected 5"):
        Teacher.of(teacher, expect=5)
    with pytest.raises(ValueError, match="is a Teacher already, which has no kind=, macs=: leave it out"):
        Teacher.of(teacher, kind="logits", macs=3)


def test_an_attribute_that_is_no_declaration_is_none() -> None:
    model = net()
    model.combine = lambda x: x  # type: ignore[assignment]
    assert torch.equal(Teacher.of(model).outputs(X), model(X).detach())
    stacked = MemberStage("m", nn.Identity())
    assert Teacher.of(stacked.module.eval()).combine == "probs"
