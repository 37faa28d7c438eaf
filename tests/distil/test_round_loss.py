"""The loss of a round put together from its terms; its settings, precision and state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quorate.distil.losses import distillation, log_barrier, mass_weights, matching, potential, prefix_kl
from quorate.distil.round_loss import LossSettings, RoundLoss


def draws(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


F, G, S, PREFIX = draws(8, 3), draws(8, 3, seed=1, scale=2), centred(draws(8, 3, seed=2, scale=4)), draws(8, 3, seed=3)


def loss_of(task: Any = "classification", **options: Any) -> RoundLoss:
    fixed = {"outputs": 3, "eta": 0.4, "bound": 5.0, "limit": [2.0, 3.0, 4.0], "joint": False}
    settings = LossSettings(**{k: v for k, v in options.items() if k in LossSettings.__dataclass_fields__})
    rest = {k: v for k, v in options.items() if k not in LossSettings.__dataclass_fields__}
    return RoundLoss(settings, task=task, **{**fixed, **rest})


@pytest.mark.parametrize("kind", ["barrier", "potential"])
def test_the_first_round_is_distillation(kind: Any) -> None:
    classes = loss_of(kind=kind, tau=3.0, mse_weight=0.3, kl_weight=2.0)
    assert classes(F, G) == distillation(F, G, tau=3.0, mse_weight=0.3)
    assert loss_of("regression", kind=kind)(F, G) == matching(F, G)
    assert loss_of("regression", kind=kind, huber=0.3)(F, G, torch.zeros_like(F)) == matching(F, G, huber=0.3)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_barrier_round(task: Any) -> None:
    limit = torch.tensor([2.0, 3.0, 4.0])
    d = centred(F) - centred(G) if task == "classification" else F - G
    s = S.clone()
    s[0, 0] = 0  # a tie is for the rewarded side of I⁺
    for joint in (False, True):
        shaping: dict[str, Any] = {"score_cap": 0.7, "uniform_share": 0.2}
        weights = mass_weights(s, 0.4, joint=joint, **shaping)
        plus = torch.tensor([[k >= m for k, m in zip(*row, strict=True)] for row in zip((-s).exp(), s.exp(), strict=True)])
        wanted = log_barrier(d, plus, 5.0, gamma=0.5, reward_limit=limit, weights=weights)
        torch.testing.assert_close(loss_of(task, kind="barrier", gamma=0.5, joint=joint, **shaping)(F, G, s, None, 1), wanted)


def test_barrier_round_with_the_games_normaliser() -> None:
    log_c = np.log((2 * np.cosh(0.4 * S.numpy())).sum(0))
    loss = loss_of(kind="barrier", normalise="set", log_normaliser=log_c, samples=8)
    torch.testing.assert_close(loss(F, G, S, None, 2), loss_of(kind="barrier")(F, G, S, None, 2))
    part = loss(F[:3], G[:3], S[:3], None, 2) + loss(F[3:6], G[3:6], S[3:6], None, 2) + loss(F[6:], G[6:], S[6:], None, 2) * 2 / 3
    torch.testing.assert_close(part * 3 / 8, loss(F, G, S, None, 2))


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("joint", [False, True])
def test_potential_round(task: Any, joint: bool) -> None:
    f = F.clone().requires_grad_()
    d = (centred(f) - centred(G)) if task == "classification" else f - G
    whole = potential(d, S, 0.4, bound=torch.tensor([2.0, 3.0, 4.0]), joint=joint) / (0.4 * (1 if joint else 3)) * (2 / 0.4)
    found = loss_of(task, joint=joint)(f, G, S, None, 1)
    torch.testing.assert_close(found, whole - np.log(24 if joint else 8) / 0.4 * (2 / 0.4))
    torch.testing.assert_close(*(torch.autograd.grad(loss, f)[0] for loss in (found, whole)))


def test_terms_sum_to_the_loss_and_kl_is_weighted() -> None:
    loss = loss_of(kind="barrier", kl_weight=0.6, tau=2.0)
    parts = loss.parts(F, G, S, PREFIX, 3)
    assert list(parts) == ["barrier", "kl"]
    assert parts["kl"] == 0.6 * prefix_kl(G, PREFIX, 3, F, 2.0)
    assert loss(F, G, S, PREFIX, 3) == parts["barrier"] + parts["kl"]
    assert list(loss_of().parts(F, G, S, PREFIX, 3)) == ["potential"]


@pytest.mark.parametrize("kind", ["barrier", "potential"])
def test_constants_of_a_row_do_not_matter_to_classes_and_rows_may_come_in_any_order(kind: Any) -> None:
    order, shift = torch.randperm(8, generator=torch.Generator().manual_seed(0)), draws(8, 1)
    first = loss_of(kind=kind, kl_weight=0.5)(F, G, S, PREFIX, 2)
    torch.testing.assert_close(first, loss_of(kind=kind, kl_weight=0.5)(F + shift, G - 3, S, PREFIX + 1, 2))
    torch.testing.assert_close(first, loss_of(kind=kind, kl_weight=0.5)(F[order], G[order], S[order], PREFIX[order], 2))
    values = [loss_of("regression", kind=kind)(f, G, S, None, 2) for f in (F, F + shift)]
    assert abs(values[0] - values[1]) > 1e-3


@pytest.mark.parametrize("kind", ["barrier", "potential"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind: Any, dtype: torch.dtype) -> None:
    f, g, s, prefix = (x.to(dtype) for x in (F, G, 50 * S, PREFIX))
    f.requires_grad_()
    for count in (0, 2):
        loss, twin = (loss_of(kind=kind, kl_weight=0.5) for _ in range(2))
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(f, g, s if count else None, prefix if count else None, count)
        wanted = twin(f.float(), g.float(), s.float() if count else None, prefix.float() if count else None, count)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted)
        slope = torch.autograd.grad(found, f)[0]
        assert slope.dtype == dtype
        assert slope.isfinite().all()


@pytest.mark.parametrize("kind", ["barrier", "potential"])
def test_descent_along_the_loss_lowers_the_potential(kind: Any) -> None:
    f, loss = G.clone(), loss_of(kind=kind)
    start = potential(torch.zeros_like(S), S, 0.4)
    for _ in range(50):
        f.requires_grad_()
        f = (f - 0.5 * torch.autograd.grad(loss(f, G, S, None, 1), f)[0]).detach()
    assert potential(centred(f) - centred(G), S, 0.4) < start - 0.1


def test_resume_goes_on_exactly() -> None:
    loss, other = loss_of(kind="potential"), loss_of(kind="potential")
    for step in range(3):
        loss(draws(8, 3, seed=step), G, S, None, 1)
    before = loss.state_dict()
    loss(F, G, S, None, 1, update=False)
    assert torch.equal(before["log_normaliser"], loss.state_dict()["log_normaliser"])
    other.load_state_dict(before)
    assert loss(F, G, S, None, 1) == other(F, G, S, None, 1)
    barrier = loss_of(kind="barrier")
    assert barrier.state_dict() == {}
    barrier.load_state_dict({})


@pytest.mark.parametrize("options", [{"kind": "potential"}, {"kind": "barrier"}, {"kind": "barrier", "normalise": "set"}])
def test_everything_is_where_the_outputs_are(options: Any) -> None:
    known = {"log_normaliser": np.zeros(3), "samples": 8} if "normalise" in options else {}
    loss = loss_of(**options, **known, kl_weight=0.5)
    for _ in range(2):
        assert loss(*(x.float().to("meta") for x in (F, G, S, PREFIX)), 2).device.type == "meta"


def test_settings_by_name() -> None:
    assert LossSettings.of({"kind": "barrier", "gamma": 2}) == LossSettings(kind="barrier", gamma=2.0)


SET = {"kind": "barrier", "normalise": "set"}
BAD: dict[str, tuple[Any, str]] = {
    "kind": (lambda: LossSettings(kind="barier"), "unknown loss 'barier'; did you mean 'barrier'"),  # type: ignore[arg-type]
    "name": (lambda: LossSettings.of({"gama": 1.0}), "unknown setting of the loss 'gama'; did you mean 'gamma'"),
    "normalise": (lambda: LossSettings(normalise="bach"), "unknown normalise 'bach'; did you mean 'batch'"),  # type: ignore[arg-type]
    "gamma": (lambda: LossSettings(kind="barrier", gamma=0), "gamma=0: expected a finite number > 0"),
    "no tau": (lambda: LossSettings(tau=None), "tau=None: expected a finite number > 0"),  # type: ignore[arg-type]
    "cap": (lambda: LossSettings(kind="barrier", score_cap=-1.0), "score_cap=-1.0: expected a finite number > 0"),
    "huber": (lambda: LossSettings(huber=math.nan), "huber=nan: expected a finite number > 0"),
    "kl": (lambda: LossSettings(kl_weight=-0.1), "kl_weight=-0.1: expected a finite number ≥ 0"),
    "mse": (lambda: LossSettings(mse_weight=True), "mse_weight=True: expected a finite number ≥ 0"),
    "momentum": (lambda: LossSettings(momentum=1.1), r"momentum=1.1: expected a number in \(0, 1\]"),
    "share": (lambda: LossSettings(kind="barrier", uniform_share=-0.1), r"uniform_share=-0.1: expected a share in \[0, 1\]"),
    "of the potential": (
        lambda: LossSettings(kind="barrier", momentum=0.5),
        "momentum=0.5 is for kind='potential' only: set that, or",
    ),
    "of the barrier": (lambda: LossSettings(gamma=2.0), "gamma=2.0 is for kind='barrier' only: set that, or leave gamma at 1.0"),
    "cap of the set": (lambda: LossSettings(**SET, score_cap=3.0), "score_cap=3.0 is for normalise='batch' only"),  # type: ignore[arg-type]
    "task": (lambda: loss_of("classifcation"), "unknown task 'classifcation'; did you mean 'classification'"),
    "kl of values": (lambda: loss_of("regression", kl_weight=0.5), "kl_weight=0.5 is for task='classification' only"),
    "huber of classes": (lambda: loss_of(huber=0.5), "huber=0.5 is for task='regression' only"),
    "bounds": (lambda: loss_of(limit=[1.0, 2.0]), r"limit=\[1.0, 2.0\]: expected a finite number > 0, or 3 of them"),
    "bound": (lambda: loss_of(bound=math.inf), "bound=inf: expected a finite number > 0"),
    "eta": (lambda: loss_of(eta=-1), "eta=-1: expected a finite number > 0"),
    "no log C": (lambda: loss_of(**SET), "normalise='set' with log_normaliser not given and samples=None: give both for 'set'"),
    "no samples": (lambda: loss_of(**SET, log_normaliser=[0.0] * 3), "log_normaliser given and samples=None: give both"),
    "log C unused": (lambda: loss_of(log_normaliser=[0.0] * 3, samples=8), "normalise='batch' with log_normaliser given"),
    "only samples": (lambda: loss_of(kind="barrier", samples=8), "normalise='batch' with log_normaliser not given and samples=8"),
    "no s": (lambda: loss_of()(F, G, None, None, 1), r"count=1 without s: expected S \(rows, outputs\)"),
    "another s": (lambda: loss_of()(F, G, S[:2], None, 1), r"s has shape \(2, 3\): expected \(8, 3\)"),
    "another g": (lambda: loss_of()(F, G[:1], S, None, 1), r"g has shape \(1, 3\): expected \(8, 3\)"),
    "no prefix": (lambda: loss_of(kl_weight=1.0)(F, G, S, None, 1), "count=1 without a prefix"),
    "state": (lambda: loss_of(kind="barrier").load_state_dict({"x": S}), "the state has x: expected nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
