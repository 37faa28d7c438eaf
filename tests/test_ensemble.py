"""Loss, mean prediction, deep ensembles and their stages, against separate trainings in float64 and hand-worked values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import quorate
from quorate.cascade import Cascade, Policy
from quorate.ensemble import DeepEnsemble, MemberStage, evaluating, mean_probs, member_loss, stage_macs, stages, to_device


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cross_entropy(logits: np.ndarray, targets: np.ndarray, smoothing: float) -> float:
    """By hand: the mean over rows of −Σ_c q_c log p_c, with q = (1 − s)·onehot + s / C."""
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        log_p = row - np.log(np.sum(np.exp(row)))
        q = np.full(len(row), smoothing / len(row))
        q[target] += 1 - smoothing
        total -= float(q @ log_p)
    return total / len(logits)


@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(2, 5), st.sampled_from([0.0, 0.1, 0.7]), st.booleans(), st.integers(0, 99)
)
def test_loss_is_the_sum_of_the_members_cross_entropies(m: int, b: int, c: int, smoothing: float, own: bool, seed: int) -> None:
    logits = draw(m, b, c, seed=seed) * 3
    targets = torch.randint(0, c, (m, b) if own else (b,), generator=torch.Generator().manual_seed(seed))
    each = targets if own else targets.expand(m, b)
    expected = sum(cross_entropy(z.numpy(), y.numpy(), smoothing) for z, y in zip(logits, each, strict=True))
    assert float(member_loss(logits, targets, smoothing)) == pytest.approx(expected, rel=1e-12)
    assert float(member_loss(logits, targets, smoothing, "mean")) == pytest.approx(expected / m, rel=1e-12)


@pytest.mark.parametrize("own", [False, True])
def test_gradients_are_those_of_separate_trainings(own: bool) -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double() for _ in range(3)]
    x, y = draw(5, 4), torch.tensor([[0, 1, 2, 1, 0], [2, 2, 1, 0, 0], [1, 0, 1, 0, 1]])
    y = y if own else y[0]
    alone = copy.deepcopy(models)
    member_loss(DeepEnsemble(models)(x), y, 0.2).backward()
    for m, (model, single) in enumerate(zip(models, alone, strict=True)):
        functional.cross_entropy(single(x), y[m] if own else y, label_smoothing=0.2).backward()
        for p, q in zip(model.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14)


def test_steps_are_those_of_separate_trainings() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(4, 3).double() for _ in range(2)]
    alone = copy.deepcopy(models)
    x, y = draw(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    options: dict[str, Any] = {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.1}
    together = torch.optim.SGD(DeepEnsemble(models).parameters(), **options)
    each = [torch.optim.SGD(single.parameters(), **options) for single in alone]
    for _ in range(4):
        together.zero_grad()
        member_loss(torch.stack([model(x) for model in models]), y).backward()
        together.step()
        for single, optimizer in zip(alone, each, strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(single(x), y).backward()
            optimizer.step()
    for model, single in zip(models, alone, strict=True):
        torch.testing.assert_close(model.weight, single.weight, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("logits", "targets", "options", "message"),
    [
        ((4, 3), (4,), {}, r"logits of shape \(4, 3\): expected member-first \(M, B, C\)"),
        ((2, 4, 3), (2,), {}, r"targets of shape \(2,\): expected \(4,\), or \(2, 4\)"),
        ((2, 4, 3), (4, 2), {}, r"targets of shape \(4, 2\)"),
        ((2, 4, 3), (1, 4), {}, r"targets of shape \(1, 4\)"),
        ((2, 4, 3), (4,), {"reduction": "max"}, "reduction='max': expected 'sum' or 'mean' over members, or 'none'"),
        ((2, 4, 3), (4,), {"label_smoothing": 1.0}, r"label_smoothing=1.0: expected a share in \[0, 1\)"),
        ((2, 4, 3), (4,), {"label_smoothing": -0.1}, "label_smoothing=-0.1"),
    ],
)
def test_loss_refuses(logits: tuple[int, ...], targets: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        member_loss(torch.zeros(logits), torch.zeros(targets, dtype=torch.long), **options)
    assert "\n" not in str(refusal.value)


def test_mean_probs_averages_probabilities_not_logits() -> None:
    logits = torch.tensor([[[0.0, 0.0]], [[np.log(3.0), 0.0]]], dtype=torch.float32)
    torch.testing.assert_close(mean_probs(logits), torch.tensor([[0.625, 0.375]]))
    with pytest.raises(ValueError, match=r"logits of shape \(1, 2\): expected member-first"):
        mean_probs(logits[0])


def test_deep_ensemble_stacks_its_members_in_order() -> None:
    models = [nn.Linear(4, 3) for _ in range(3)]
    ensemble, x = DeepEnsemble(iter(models)), draw(5, 4).float()
    logits = ensemble(x)
    assert ensemble.combine == "probs"
    assert [stage.name for stage in ensemble.stages()] == ["member0", "member1", "member2"]
    for member, model in zip(logits, models, strict=True):
        assert torch.equal(member, model(x))


class Gives(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros(self.shape)


def test_deep_ensemble_refuses() -> None:
    with pytest.raises(ValueError, match=r"DeepEnsemble\(\[\]\): expected at least one model"):
        DeepEnsemble([])
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="the same model twice: build each member anew"):
        DeepEnsemble([model, nn.Linear(4, 3), model])
    for members in ([Gives(5, 3), Gives(5, 4)], [Gives(1, 5, 3)], [Gives(5)]):
        with pytest.raises(ValueError, match=r"members returned shapes .*: expected \(B, C\) from each, with one C"):
            DeepEnsemble(members)(torch.zeros(5, 2))


class Widening(nn.Module):
    """Stage on 4 features that carries 7 on."""

    name, reads, writes, drops = "wide", (), ("wide",), ()

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        wide = self.up(x)
        return self.head(wide)[None], {"wide": wide}


class Reusing(nn.Module):
    """Two members that read the 7 features, and drop them."""

    name, reads, writes, drops = "reuse", ("wide",), (), ("wide",)

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(7, 3), nn.Sequential(nn.Dropout(0.5), nn.Linear(7, 5), nn.Linear(5, 3))])

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        return torch.stack([head(carry["wide"]) for head in self.heads]), {}


class Plain(nn.Module):
    """A third stage that reads nothing."""

    name, reads, writes, drops = "plain", (), (), ()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        return self.layer(x)[None], {}


class Staged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Widening(), Reusing(), Plain()])

    def stages(self) -> list[nn.Module]:
        return list(self.parts)

    def forward(self, x: Tensor) -> Tensor:
        one, carry = self.parts[0](x, {})
        return torch.cat([one, self.parts[1](x, carry)[0], self.parts[2](x, {})[0]])


EACH = [4 * 7 + 7 * 3, 7 * 3 + 7 * 5 + 5 * 3, 4 * 3]  # MACs per row by hand, of the three stages


def test_stage_macs_count_what_each_stage_newly_executes() -> None:
    ensemble = Staged().train()
    assert stage_macs(ensemble, torch.zeros(2, 4)) == EACH
    assert stage_macs(ensemble, np.zeros((1, 4), np.float32)) == EACH
    assert all(part.training for part in ensemble.modules())
    assert stage_macs(DeepEnsemble([nn.Linear(4, 3), nn.Linear(4, 2)]), torch.zeros(1, 4)) == [12, 8]
    assert stage_macs(nn.Linear(4, 3), torch.zeros(1, 4)) == [12]


def test_stages_wrap_modules_for_the_cascade() -> None:
    ensemble = Staged().train()
    wrapped = stages(ensemble, torch.zeros(1, 4))
    assert [stage.name for stage in wrapped] == ["wide", "reuse", "plain"]
    assert [stage.macs for stage in wrapped] == EACH
    assert [(stage.reads, stage.writes, stage.drops) for stage in wrapped[:2]] == [
        ((), ("wide",), ()),
        (("wide",), (), ("wide",)),
    ]
    assert [stage.macs for stage in stages(ensemble)] == [None] * 3
    assert not ensemble.training
    x = draw(5, 4).float().numpy()
    x.flags.writeable = False
    logits, written = wrapped[0](x[::-1], {})  # read-only, and strided backwards
    assert logits.dtype == np.float32
    assert not written["wide"].requires_grad
    with torch.no_grad():
        assert np.array_equal(logits, ensemble(torch.from_numpy(x[::-1].copy()))[:1].numpy())


def test_wrapped_stages_evaluate_even_when_the_ensemble_trains_again() -> None:
    ensemble = DeepEnsemble([nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 3)) for _ in range(2)])
    wrapped = stages(ensemble)
    x = draw(5, 40).float()
    before = [stage(x, {})[0] for stage in wrapped]
    ensemble.train()
    for stage, logits in zip(wrapped, before, strict=True):
        assert np.array_equal(stage(x, {})[0], logits)


@pytest.mark.parametrize("groups", [[1, 1, 1], [2, 1], [1, 2], [3]])
def test_merged_stages_are_their_parts(groups: list[int]) -> None:
    ensemble, x = Staged(), draw(7, 4).float()
    outputs = quorate.collect(ensemble, list(x), batch_size=3).regroup(groups)
    merged = stages(ensemble, x[:1], groups)
    assert [stage.name for stage in merged] == list(outputs.names)
    assert [stage.macs for stage in merged] == list(outputs.costs or ())
    for stage, value in zip(merged, outputs.values, strict=True):
        assert len(stage(x, {name: torch.zeros(7, 7) for name in stage.reads})[0]) == len(value)
    said = Cascade(merged, Policy.of(outputs), batch_size=2).predict(x)
    assert said.probs is not None
    np.testing.assert_allclose(said.probs, outputs.probs(), atol=1e-6)


@pytest.mark.parametrize("groups", [[1, 1], [2, 2], [3, 0], []])
def test_groups_that_do_not_fit_are_refused(groups: list[int]) -> None:
    with pytest.raises(ValueError, match=r"groups=.*: expected positive sizes that sum to 3 stages"):
        stages(Staged(), None, groups)


class Forgetful(Widening):
    """Declares ``wide``, and writes nothing."""

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x, carry)[0], {}


@pytest.mark.parametrize("groups", [None, [2, 1], [1, 2], [3]])
def test_broken_stages_are_named_alone_and_merged(groups: list[int] | None) -> None:
    ensemble, x = Staged(), torch.zeros(2, 4)
    ensemble.parts[0] = Forgetful()
    with pytest.raises(ValueError, match=r"stage 'wide' wrote \[\], it declares \['wide'\]: return what is declared"):
        stages(ensemble, x, groups)
    first = stages(ensemble, None, groups)[0]
    with pytest.raises(ValueError, match=r"stage 'wide' wrote \[\], it declares \['wide'\]"):
        first(x, {})


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 1, 1]])
def test_stages_that_read_what_is_not_carried_are_refused(order: list[int]) -> None:
    ensemble = Staged()
    ensemble.parts = nn.ModuleList([ensemble.parts[i] for i in order])
    for run in (stages, lambda e: stages(e, groups=[3]), lambda e: stage_macs(e, torch.zeros(1, 4))):
        with pytest.raises(ValueError, match=r"stage 'reuse' reads \['wide'\], which no earlier stage writes \(carried: \[\]\)"):
            run(ensemble)


def test_a_submodule_named_stages_is_not_the_contracts_method() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.Sequential(nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.stages(x)[None]
            return logits

    assert [stage.name for stage in stages(Net())] == ["ensemble"]


def test_a_member_stage_takes_one_member_or_several() -> None:
    x = torch.zeros(5, 4)
    assert MemberStage("one", nn.Linear(4, 3))(x, {})[0].shape == (1, 5, 3)
    assert MemberStage("two", DeepEnsemble([nn.Linear(4, 3), nn.Linear(4, 3)]))(x, {})[0].shape == (2, 5, 3)


def test_evaluating_gives_every_mode_back_also_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3).eval()))
    before = [part.training for part in model.modules()]

    def fail() -> None:
        with evaluating(model):
            assert not any(part.training for part in model.modules())
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert [part.training for part in model.modules()] == before


def test_evaluating_calls_no_eval_that_may_change_weights() -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> Merging:
            self.weight.data.zero_()
            return super().train(mode)

    model = Merging(4, 3)
    before = model.weight.detach().clone()
    with evaluating(model):
        assert not model.training
    assert model.training
    assert torch.equal(model.weight, before)


def test_to_device_takes_tensors_and_arrays() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    array.flags.writeable = False
    device = torch.device("cpu")
    assert to_device(array, device).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert to_device(array[:, ::-1], device).tolist() == [[2, 1, 0], [5, 4, 3]]
    tensor = torch.zeros(2)
    assert to_device(tensor, device) is tensor
