"""The losses of a round against hand-worked values, closed forms in float64, and what they are derived from: the game's weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quorate.distil.losses import (
    RunningPotential,
    distillation,
    log_barrier,
    mass_weights,
    matching,
    potential,
    prefix_kl,
    row_centred,
)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def draws(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Any, at: Tensor) -> Tensor:
    x = at.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


def barrier(l: Tensor, plus: bool, bound: float = 1.0, gamma: float = 1.0, limit: float = 1.0) -> Tensor:  # noqa: E741
    return log_barrier(l, torch.full(l.shape, plus), bound, gamma=gamma, reward_limit=limit)


@pytest.mark.parametrize(("plus", "value", "slope"), [(True, -0.22314355, -0.4), (False, 0.28768207, 2 / 3)])
@pytest.mark.parametrize("gamma", [1.0, 0.25])
def test_barrier_at_one_half(plus: bool, value: float, slope: float, gamma: float) -> None:
    at = column(0.5)
    assert barrier(at, plus, gamma=gamma).item() == pytest.approx(value / gamma, abs=1e-8)
    assert gradient(lambda x: barrier(x, plus, gamma=gamma), at).item() == pytest.approx(slope / gamma, abs=1e-8)


@pytest.mark.parametrize(("plus", "side"), [(True, -1.0), (False, 1.0)])
def test_barrier_goes_on_linearly_where_it_penalises(plus: bool, side: float) -> None:
    bound, gamma, options = 2.5, 0.5, {"bound": 2.5, "gamma": 0.5, "limit": 3.0}
    edge, slope = 1.9 * bound, 10 / bound / gamma  # 1/(2B · 0.05)
    for beyond in (0.0, 1e-9, 1.0, 0.1 * bound, 1e6):  # 0.1 B beyond is where the logarithm would end
        at = column(side * (edge + beyond))
        assert barrier(at, plus, **options).item() == pytest.approx(-math.log(0.05) / gamma + slope * beyond, rel=1e-9)
        assert gradient(lambda x: barrier(x, plus, **options), at).item() == pytest.approx(side * slope, rel=1e-9)
    before = column(side * (edge - 1e-7))
    assert gradient(lambda x: barrier(x, plus, **options), before).item() == pytest.approx(side * slope, rel=1e-5)


@pytest.mark.parametrize("plus", [True, False])
def test_barrier_is_constant_beyond_the_limit_where_it_rewards(plus: bool) -> None:
    sign, options = (1.0 if plus else -1.0), {"bound": 2.0, "gamma": 0.5, "limit": 3.0}
    for far in (3.0, 3.5, 1e12):
        assert barrier(column(sign * far), plus, **options).item() == pytest.approx(-math.log(1 + 3 / 4) / 0.5, rel=1e-12)
    assert gradient(lambda x: barrier(x, plus, **options), column(sign * 3.01)).item() == 0
    inside = gradient(lambda x: barrier(x, plus, **options), column(sign * 2.9)).item()
    assert inside == pytest.approx(-sign / (4 + 2.9) / 0.5, rel=1e-12)


def test_barrier_takes_bounds_per_output_and_weights() -> None:
    l, plus = draws(6, 3, scale=4), draws(6, 3, seed=1) > 0  # noqa: E741
    bound, limit, weights = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 9.0]), draws(6, 3, seed=2).abs()
    whole = log_barrier(l, plus, bound, gamma=0.7, reward_limit=limit, weights=weights)
    parts = [
        log_barrier(l[[i]][:, [j]], plus[[i]][:, [j]], float(bound[j]), gamma=0.7, reward_limit=float(limit[j])) * weights[i, j]
        for i in range(6)
        for j in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean())
    rows = weights[:, 0]
    torch.testing.assert_close(
        log_barrier(l, plus, 1.0, gamma=1, reward_limit=1.0, weights=rows),
        log_barrier(l, plus, 1.0, gamma=1, reward_limit=1.0, weights=rows[:, None].expand(6, 3)),
    )


@given(
    values=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=8),
    plus=st.booleans(),
    bound=st.floats(0.01, 100),
    limit=st.floats(0.01, 100),
    gamma=st.floats(0.01, 10),
)
def test_barrier_is_bounded_below_monotone_and_finite(
    values: list[float], plus: bool, bound: float, limit: float, gamma: float
) -> None:
    u = column(*sorted(values))
    each = torch.stack([barrier(row[None] if plus else -row[None], plus, bound, gamma, limit) for row in u])
    assert each.isfinite().all()
    assert (each >= -math.log1p(limit / 2 / bound) / gamma * (1 + 1e-12) - 1e-15).all()
    assert (each.diff() <= 1e-12 * each.abs().max()).all()
    assert gradient(lambda x: barrier(x, plus, bound, gamma, limit), u).isfinite().all()


def train(steps: int, limit: float) -> float:
    """Least mean loss along the training of a small network on +1 and −1 targets of the barrier."""
    generator = torch.Generator().manual_seed(0)
    x, plus = torch.randn(16, 4, generator=generator), torch.arange(16)[:, None] % 2 == 0
    weights = [torch.randn(shape, generator=generator).div_(2).requires_grad_() for shape in ((4, 16), (16, 1))]
    least = torch.tensor(math.inf)
    for _ in range(steps):
        loss = log_barrier((x @ weights[0]).relu() @ weights[1], plus, 1.0, gamma=0.5, reward_limit=limit)
        for w, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            w.data.sub_(slope, alpha=0.05)
        least = torch.minimum(least, loss.detach())
    return float(least)


@pytest.mark.slow
def test_ten_thousand_steps_do_not_run_off() -> None:
    floor = -math.log(1 + 1.5 / 2) / 0.5
    least = train(10_000, limit=1.5)
    assert floor - 1e-6 <= least <= 0.9 * floor
    assert train(1_000, limit=1e9) < 1.5 * floor  # without the limit this training does


def masses(s: Tensor, eta: float, joint: bool = False) -> tuple[Tensor, Tensor]:
    """K⁺ and K⁻ by definition."""
    total = (2 * torch.cosh(eta * s)).sum((0, 1) if joint else 0)
    return torch.exp(-eta * s) / total, torch.exp(eta * s) / total


@pytest.mark.parametrize("joint", [False, True])
def test_mass_weights_are_those_of_the_game(joint: bool) -> None:
    s, eta = draws(9, 4, scale=3), 0.6
    mass = sum(masses(s, eta, joint))
    wanted = mass * (36 if joint else 9)
    torch.testing.assert_close(mass_weights(s, eta, joint=joint), wanted)
    log_c = (2 * torch.cosh(eta * s)).sum((0, 1) if joint else 0).log().reshape(-1)
    part = mass_weights(s[[2, 5]], eta, log_normaliser=log_c, samples=9, joint=joint)
    torch.testing.assert_close(part, wanted[[2, 5]])
    view = mass_weights(torch.full((1, 4), 1e4), eta, log_normaliser=log_c, samples=9, joint=joint)
    torch.testing.assert_close(view, torch.full((1, 4), 36.0 if joint else 9.0))
    shaped = mass_weights(s, eta, joint=joint, uniform_share=0.3)
    torch.testing.assert_close(shaped, 0.7 * wanted + 0.3)


def test_mass_weights_of_large_scores_and_their_cap() -> None:
    s = column(200.0, -200.0, 0.0, 199.0)
    w = mass_weights(s, 1.0)
    near = 4 / (2 + math.exp(-1))
    torch.testing.assert_close(w, column(near, near, 0.0, near * math.exp(-1)))
    capped = mass_weights(s, 0.5, score_cap=2.0)[:, 0]
    assert capped[0] == capped[1] == capped[3]
    assert (capped[0] / capped[2]).item() == pytest.approx(math.cosh(2))
    assert capped.mean().item() == pytest.approx(1)
    assert not mass_weights(s.requires_grad_(), 1.0).requires_grad


@pytest.mark.parametrize("joint", [False, True])
def test_potential_gradients(joint: bool) -> None:
    s, eta = draws(7, 3, scale=2), 0.7
    assert gradient(lambda d: potential(d, s, eta, joint=joint), -s).abs().max() == 0
    plus, minus = masses(s, eta, joint)
    for bound in (None, 1.5):  # the bound changes nothing at d = 0
        torch.testing.assert_close(
            gradient(lambda d, b=bound: potential(d, s, eta, bound=b, joint=joint), torch.zeros_like(s)), -eta * (plus - minus)
        )
    d = draws(7, 3, seed=1)
    cosh = torch.cosh(eta * (s + d))
    torch.testing.assert_close(potential(d, s, eta, joint=joint), cosh.sum().log() if joint else cosh.sum(0).log().sum())


def test_potential_does_not_overflow() -> None:
    for dtype in (torch.float32, torch.float64):
        s = torch.tensor([[200.0, -200.0], [-200.0, 0.0]], dtype=dtype)
        value = potential(torch.zeros_like(s), s, 1.0)
        assert value.item() == pytest.approx((200 + math.log(2) - math.log(2)) + (200 - math.log(2)), rel=1e-6)
        slope = gradient(lambda d, s=s: potential(d, s, 1.0), torch.zeros_like(s))
        torch.testing.assert_close(slope, torch.tensor([[0.5, -1.0], [-0.5, 0.0]], dtype=dtype))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_potential_asks_no_more_than_the_bound(sign: float) -> None:
    table = {1.0: 6, 0.0: 5, -1.0: 4, -1.99: 3.01, -2.0: 3, -5.0: 3, -7.9: 3, -8.5: 3.5}  # S = 5, G = 2: d → |S + d| as it counts
    s = column(5.0 * sign)
    for d, counts in table.items():
        at = column(sign * d)
        assert potential(at, s, 0.8, bound=2.0).item() == pytest.approx(math.log(math.cosh(0.8 * counts)), rel=1e-9)
        slope = gradient(lambda x: potential(x, s, 0.8, bound=2.0), at).item()
        flat = -8.0 <= d <= -2.0
        assert slope == pytest.approx(0 if flat else sign * math.copysign(0.8 * math.tanh(0.8 * counts), 5 + d), rel=1e-9)
    per_output = torch.tensor([0.5, 2.0, 9.0])
    s, d = draws(5, 3, scale=3), draws(5, 3, seed=1, scale=3)
    each = [potential(d[:, [j]], s[:, [j]], 0.8, bound=float(per_output[j])) for j in range(3)]
    torch.testing.assert_close(potential(d, s, 0.8, bound=per_output), torch.stack(each).sum())


@given(seed=st.integers(0, 10_000), eta=st.floats(0.01, 5), bound=st.floats(0.01, 10), share=st.floats(0, 1))
def test_bounded_potential_is_convex(seed: int, eta: float, bound: float, share: float) -> None:
    s, a, b = (draws(4, 2, seed=3 * seed + k, scale=5) for k in range(3))
    value = [potential(d, s, eta, bound=bound).item() for d in (a, b, share * a + (1 - share) * b)]
    assert value[2] <= share * value[0] + (1 - share) * value[1] + 1e-9 * (1 + abs(value[0]) + abs(value[1]))


@pytest.mark.parametrize(("joint", "factor"), [(False, 4), (True, 1)])
@pytest.mark.parametrize("bound", [None, 1.0])
def test_running_potential_of_the_whole_set_is_the_potential(joint: bool, factor: int, bound: float | None) -> None:
    s, d, eta = draws(12, 4, scale=3), draws(12, 4, seed=1), 0.7
    running = RunningPotential(4, eta, bound=bound, joint=joint)
    torch.testing.assert_close(
        gradient(lambda x: running(x, s), d) * eta * factor, gradient(lambda x: potential(x, s, eta, bound=bound, joint=joint), d)
    )
    value = potential(d, s, eta, bound=bound, joint=joint) / factor - math.log(48 if joint else 12)
    assert RunningPotential(4, eta, bound=bound, joint=joint)(d, s).item() == pytest.approx(value.item() / eta)
    alone = RunningPotential(4, eta, bound=bound, momentum=1.0, joint=joint)
    alone(10 * d, s)
    torch.testing.assert_close(gradient(lambda x: alone(x, s), d), gradient(lambda x: running(x, s), d))


@pytest.mark.parametrize(("joint", "factor"), [(False, 4), (True, 1)])
def test_batches_at_the_sets_normaliser_are_unbiased(joint: bool, factor: int) -> None:
    s, d, eta = draws(12, 4, scale=3), draws(12, 4, seed=1), 0.7
    running = RunningPotential(4, eta, momentum=1e-13, joint=joint)
    log_mean = torch.cosh(eta * (s + d)).mean((0, 1) if joint else 0).log().reshape(-1)
    running.load_state_dict({"log_normaliser": log_mean})
    batches = gradient(lambda x: sum(running(x[i : i + 3], s[i : i + 3], update=False) for i in (0, 3, 6, 9)) / 4, d)
    torch.testing.assert_close(batches * eta * factor, gradient(lambda x: potential(x, s, eta, joint=joint), d))
    assert torch.equal(running.log_normaliser, log_mean)


@pytest.mark.parametrize("joint", [False, True])
def test_running_normaliser_follows_its_recursion_and_resumes(joint: bool) -> None:
    running, eta, held = RunningPotential(2, 0.5, momentum=0.3, joint=joint), 0.5, None
    assert running.log_normaliser.isnan().all()
    for step in range(20):
        d, s = draws(5, 2, seed=step), draws(5, 2, seed=100 + step, scale=2)
        level = torch.cosh(eta * (s + d))
        now = level.mean((0, 1) if joint else 0).reshape(-1)
        held = now if held is None else 0.7 * held + 0.3 * now
        if step == 10:
            copy = RunningPotential(2, 0.5, momentum=0.3, joint=joint)
            copy.load_state_dict(running.state_dict())
            running = copy
        found = running(d, s).item()
        assert found == pytest.approx((held.log().mean() + (level / held).mean() - 1).item() / eta)
        assert found >= now.log().mean().item() / eta - 1e-12
        torch.testing.assert_close(running.log_normaliser.exp(), held)
    before = running.state_dict()["log_normaliser"]
    running(d, s, update=False)
    assert torch.equal(before, running.log_normaliser)


def test_running_potential_survives_sudden_scores_and_broken_batches() -> None:
    running = RunningPotential(2, 1.0, momentum=0.1)
    running(torch.zeros(3, 2), torch.zeros(3, 2))
    s = torch.tensor([[300.0, 0.0], [0.0, -300.0], [0.0, 0.0]])
    loss = running(torch.zeros(3, 2), s, update=False)
    assert loss.item() == pytest.approx(10 - 1 + 300 - math.log(60), rel=1e-5)  # the batch's mean, e³⁰⁰/6, is 1/m times C̄
    assert gradient(lambda d: running(d, s), torch.zeros(3, 2)).isfinite().all()
    before = running.log_normaliser.clone()
    running(torch.tensor([[math.inf, 0.0]]), torch.zeros(1, 2))
    assert running.log_normaliser[0] == before[0]
    assert running.log_normaliser[1] != before[1]
    fresh = RunningPotential(1, 1.0)
    fresh(torch.tensor([[math.nan]]), torch.zeros(1, 1))
    fresh(torch.tensor([[2.0]]), torch.zeros(1, 1))
    assert fresh.log_normaliser.exp().item() == pytest.approx(math.cosh(2))


def kl(p: np.ndarray, q: np.ndarray, tau: float) -> float:
    soft = [np.exp(z / tau) / np.exp(z / tau).sum(1, keepdims=True) for z in (p, q)]
    return float(tau**2 * (soft[0] * np.log(soft[0] / soft[1])).sum(1).mean())


@pytest.mark.parametrize("count", [0, 1, 4])
def test_prefix_kl_is_that_of_the_mean_after_the_round(count: int) -> None:
    earlier, f, g, tau = draws(count, 5, 3, seed=1), draws(5, 3, seed=2), draws(5, 3, seed=3, scale=2), 2.5
    prefix = earlier.mean(0) if count else None
    mean = torch.cat([earlier, f[None]]).mean(0)
    assert prefix_kl(g, prefix, count, f, tau).item() == pytest.approx(kl(g.numpy(), mean.numpy(), tau))
    wanted = tau * (torch.softmax(mean / tau, -1) - torch.softmax(g / tau, -1)) / 5 / (count + 1)
    torch.testing.assert_close(gradient(lambda x: prefix_kl(g, prefix, count, x, tau), f), wanted)
    leaves = [x.clone().requires_grad_() for x in (g, f, *([prefix] if prefix is not None else []))]
    prefix_kl(leaves[0], leaves[2] if count else None, count, leaves[1], tau).backward()
    assert [leaf.grad is None for leaf in leaves] == [True, False, True][: len(leaves)]


def test_distillation_and_matching() -> None:
    f, g = draws(5, 3, seed=2), draws(5, 3, seed=3, scale=2).requires_grad_()
    a, b = f.numpy(), g.detach().numpy()
    centred = [x - x.mean(1, keepdims=True) for x in (a, b)]
    square = np.square(centred[0] - centred[1]).mean()
    assert distillation(f, g, tau=3.0, mse_weight=0.4).item() == pytest.approx(kl(b, a, 3.0) + 0.4 * square)
    assert distillation(f, g, tau=3.0).item() == pytest.approx(kl(b, a, 3.0))
    shifted = distillation(f + 7, g - draws(5, 1), tau=3.0, mse_weight=0.4)
    torch.testing.assert_close(shifted, distillation(f, g, tau=3.0, mse_weight=0.4))
    assert not distillation(f, g, tau=1.0, mse_weight=1.0).requires_grad
    assert matching(f, g).item() == pytest.approx(np.square(a - b).mean())
    gap = np.abs(a - b)
    huber = np.where(gap <= 0.5, gap**2 / 2, 0.5 * (gap - 0.25)).mean()
    assert matching(f, g, huber=0.5).item() == pytest.approx(huber)
    assert row_centred(f).mean(-1).abs().max() < 1e-15


ONE, PAIR, FLAG = torch.ones(2, 1), torch.ones(2, 2), torch.ones(2, 1, dtype=torch.bool)
BAD: dict[str, tuple[Any, str]] = {
    "one axis": (
        lambda: potential(torch.ones(3), torch.ones(3), 1.0),
        r"d is torch.float32 of shape \(3,\): expected floats \(rows",
    ),
    "integers": (lambda: mass_weights(FLAG.long(), 1.0), "s is torch.int64 of shape"),
    "no rows": (lambda: mass_weights(ONE[:0], 1.0), r"of shape \(0, 1\): expected floats"),
    "another s": (lambda: potential(ONE, PAIR, 1.0), r"s has shape \(2, 2\): expected \(2, 1\)"),
    "eta": (lambda: potential(ONE, ONE, 0.0), "eta=0.0: expected a finite number > 0"),
    "bound": (lambda: potential(ONE, ONE, 1.0, bound=-1.0), "bound=-1.0: expected a finite number > 0"),
    "bounds": (lambda: potential(ONE, ONE, 1.0, bound=torch.ones(3)), r"bound has shape \(3,\): expected a number or \(1,\)"),
    "plus": (lambda: log_barrier(ONE, ONE, 1.0, gamma=1.0, reward_limit=1.0), "plus is torch.float32: expected torch.bool"),
    "gamma": (lambda: log_barrier(ONE, FLAG, 1.0, gamma=math.inf, reward_limit=1.0), "gamma=inf: expected a finite"),
    "limit": (lambda: log_barrier(ONE, FLAG, 1.0, gamma=1.0, reward_limit=math.inf), "reward_limit=inf: expected a finite"),
    "weights": (
        lambda: log_barrier(PAIR, FLAG.expand(2, 2), 1.0, gamma=1.0, reward_limit=1.0, weights=ONE),
        r"weights have shape \(2, 1\): expected \(2, 2\) or \(2,\)",
    ),
    "share": (lambda: mass_weights(ONE, 1.0, uniform_share=1.5), r"uniform_share=1.5: expected a share in \[0, 1\]"),
    "cap": (lambda: mass_weights(ONE, 1.0, score_cap=0), "score_cap=0: expected a finite number > 0"),
    "samples": (lambda: mass_weights(ONE, 1.0, log_normaliser=ONE[0]), "log_normaliser with samples=None and score_cap=None"),
    "log C": (
        lambda: mass_weights(PAIR, 1.0, log_normaliser=ONE[0], samples=2),
        r"log_normaliser has shape \(1,\): expected \(2,\) for joint=False",
    ),
    "outputs": (lambda: RunningPotential(0, 1.0), "outputs=0: expected the number of outputs"),
    "momentum": (lambda: RunningPotential(1, 1.0, momentum=0.0), r"momentum=0.0: expected a number in \(0, 1\]"),
    "width": (lambda: RunningPotential(3, 1.0)(PAIR, PAIR), r"d has shape \(2, 2\): expected \(rows, 3\)"),
    "state": (
        lambda: RunningPotential(3, 1.0).load_state_dict({"log_normaliser": ONE[0]}),
        r"log_normaliser \(1,\): expected log_normaliser \(3,\)",
    ),
    "no state": (lambda: RunningPotential(3, 1.0).load_state_dict({}), "the state has nothing: expected log_normaliser"),
    "tau": (lambda: prefix_kl(PAIR, None, 0, PAIR, 0.0), "tau=0.0: expected a finite"),
    "no prefix": (lambda: prefix_kl(PAIR, None, 1, PAIR, 1.0), "count=1 without a prefix: expected 0 and None"),
    "no students": (lambda: prefix_kl(PAIR, PAIR, 0, PAIR, 1.0), "count=0 with a prefix: expected 0 and None"),
    "another g": (lambda: matching(PAIR, ONE), r"g has shape \(2, 1\): expected \(2, 2\)"),
    "huber": (lambda: matching(PAIR, PAIR, huber=-1.0), "huber=-1.0: expected a finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
