"""Moves of the masks: exact counts, what is grown and what survives, by hand and against a plain fp64 loop; followers, ledger, errors."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quorate.tickets import NM, Blocks, ConstantFanIn, Gradient, Growth, Pattern, Random, SparseTraining, Static, Unstructured

GROWTHS = [Random(), Gradient(), Gradient(batches=2)]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 12),
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 4, 4, 4, generator=generator), torch.randint(0, 12, (6,), generator=generator)


def train_(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, after: Callable[[int], object] | None = None
) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if after is not None:
            after(step)


@pytest.mark.parametrize("growth", GROWTHS, ids=str)
@pytest.mark.parametrize(
    ("pattern", "density", "distribution"),
    [
        (Unstructured(), 0.2, "erk"),
        (Unstructured(), 0.15, "mac_aware"),
        (ConstantFanIn(), 0.3, "erk"),
        (ConstantFanIn(ablate=0.8), 0.2, "uniform"),
        (NM(1, 4), 0.25, "uniform"),
        (Blocks(2, 4), 0.3, "erk"),
    ],
    ids=str,
)
def test_counts_hold_through_moves_and_escapes(growth: Growth, pattern: Pattern, density: float, distribution: Any) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    sparse = SparseTraining(
        model,
        optimizer,
        density,
        growth=growth,
        pattern=pattern,
        every=2,
        distribution=distribution,
        example=torch.zeros(1, 4, 4, 4),
    )
    sparse.gather_at = {5, 7}
    seen = [sparse.masks]

    def check(step: int) -> None:
        if step in (5, 7):
            sparse.move_(0.8)
        for name, weight in sparse.weights.items():
            live = int(sparse.masks[name].sum())
            assert live == sparse.live[name]
            if isinstance(pattern, ConstantFanIn):
                assert sparse.budget[name] - weight.shape[0] < live <= sparse.budget[name]
            else:
                assert live == sparse.budget[name]
            assert pattern.fits(sparse.masks[name])
            assert not weight[~sparse.masks[name]].any()
        if sparse.masks is not seen[-1]:
            seen.append(sparse.masks)

    train_(model, optimizer, range(1, 11), check)
    assert sparse.moves == 7 == len(seen) - 1
    assert all(any(not torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(seen))
    union = {name: torch.stack([masks[name] for masks in seen]).any(0) for name in sparse.masks}
    assert all(torch.equal(sparse.ever[name], union[name]) for name in union)


def test_the_table_by_hand() -> None:
    layer = nn.Linear(3, 2, bias=False)  # w = [4, 3, 2, 1, 0, 0], |g| = [0, 0, 0, 0, 5, 9]
    optimizer = torch.optim.SGD(layer.parameters(), 0.0, momentum=0.9)
    sparse = SparseTraining(layer, optimizer, {"weight": 4 / 6}, every=1, rescale=False)
    sparse._set_({"weight": torch.tensor([[True, True, True], [True, False, False]])})
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, 3, 2], [1, 0, 0]]))
    (layer.weight * torch.tensor([[0.0, 0, 0], [0, -5, 9]])).sum().backward()
    optimizer.step()
    assert sparse.masks["weight"].tolist() == [[True, True, False], [False, True, True]]
    assert layer.weight.tolist() == [[4, 3, 0], [0, 0, 0]]


def test_equal_gradients_are_exact_and_the_same_each_time() -> None:
    found = []
    for _ in range(2):
        layer = nn.Linear(9, 5, bias=False)
        nn.init.constant_(layer.weight, 1.0)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        sparse = SparseTraining(layer, optimizer, 0.4, every=1, rate=0.3)
        first = sparse.masks["weight"]
        layer.weight.sum().backward()
        optimizer.step()
        live = first.flatten().nonzero()[:, 0].tolist()
        kept = live[math.ceil(0.3 * len(live)) :]
        dead = [at for at in range(45) if at not in kept][: len(live) - len(kept)]
        assert sparse.masks["weight"].flatten().nonzero()[:, 0].tolist() == sorted(kept + dead)
        found.append(sparse.masks["weight"])
    assert torch.equal(*found)


def reference(weights: dict[str, Tensor], masks: dict[str, Tensor], scores: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
    """One unstructured move by sorting."""
    moved = {}
    for name, mask in masks.items():
        w, live, s = weights[name].flatten().abs(), mask.flatten(), scores[name].flatten()
        n = math.ceil(rate * int(live.sum()))
        order = sorted(live.nonzero()[:, 0].tolist(), key=lambda i: (float(w[i]), i))
        kept = set(order[n:])
        grown = sorted((i for i in range(len(w)) if i not in kept), key=lambda i: (-float(s[i]), i))[:n]
        new = torch.zeros_like(live)
        new[list(kept) + grown] = True
        moved[name] = new.reshape(mask.shape)
    return moved


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_against_a_plain_loop(batches: int) -> None:
    model = network().double()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, amsgrad=True, weight_decay=0.1)
    sparse = SparseTraining(model, optimizer, 0.3, growth=Gradient(batches), every=3, rate=0.4, seed=2)
    raw: list[dict[str, Tensor]] = []
    for step in range(1, 8):
        x, y = batch(step)
        loss = nn.functional.cross_entropy(model(x.double()), y)
        raw.append(
            dict(zip(sparse.weights, torch.autograd.grad(loss, list(sparse.weights.values()), retain_graph=True), strict=True))
        )
        optimizer.zero_grad()
        loss.backward()
        before = sparse.masks
        states: dict[str, Any] = {}
        weights: dict[str, Tensor] = {}
        if step % 3 == 0:  # the step itself, by a copy of model and optimiser that never moves its masks
            states, weights = stepped(model, optimizer, sparse)
        optimizer.step()
        if step % 3:
            assert sparse.masks is before
            continue
        scores = {name: sum((g[name] for g in raw[-batches:]), torch.zeros(())).abs() for name in before}
        expected = reference(weights, before, scores, 0.4)
        for name, weight in sparse.weights.items():
            mask = sparse.masks[name]
            assert torch.equal(mask, expected[name])
            survived = mask & before[name]
            assert torch.equal(weight, torch.where(survived, weights[name], 0.0))
            for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
                assert torch.equal(optimizer.state[weight][key], torch.where(survived, states[name][key], 0.0))
            assert float(optimizer.state[weight]["step"]) == step


def stepped(
    model: nn.Module, optimizer: torch.optim.Optimizer, sparse: SparseTraining
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The sparse weights and their states after a step on the gradients at hand, from copies."""
    twin = network().double()
    twin.load_state_dict(model.state_dict())
    other = torch.optim.AdamW(twin.parameters(), 0.01, amsgrad=True, weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        mine.grad = None if theirs.grad is None else theirs.grad.clone()
    other.step()
    named = dict(twin.named_parameters())
    return {name: other.state[named[name]] for name in sparse.weights}, {name: named[name].detach() for name in sparse.weights}


def test_what_is_dropped_and_regrown_at_once_keeps_value_and_state() -> None:
    layer = nn.Linear(4, 2, bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    sparse = SparseTraining(layer, optimizer, 0.5, every=1, rate=1.0, seed=3)
    mask = sparse.masks["weight"]
    (layer.weight * torch.where(mask, 9.0, 0.5)).sum().backward()  # all are dropped and have the highest gradients
    optimizer.step()
    assert sparse.moves == 1
    assert torch.equal(sparse.masks["weight"], mask)
    assert bool((layer.weight != 0)[mask].all())
    assert torch.allclose(optimizer.state[layer.weight]["exp_avg"][mask], torch.tensor(0.9))


def test_random_growth_follows_the_seed_alone() -> None:
    def run(seed: int, data: int) -> list[dict[str, Tensor]]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        sparse = SparseTraining(model, optimizer, 0.2, growth=Random(), every=1, seed=seed)
        torch.manual_seed(data)
        np.random.seed(data)  # noqa: NPY002
        seen: list[dict[str, Tensor]] = []
        train_(model, optimizer, range(1, 4), lambda _: seen.append(sparse.masks))
        return seen

    a, b, c = run(0, 1), run(0, 2), run(1, 1)
    assert all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)
    assert not torch.equal(a[-1]["0.weight"], c[-1]["0.weight"])


def test_layers_that_stay_dense_are_as_in_a_dense_training() -> None:
    torch.manual_seed(1)
    parts = nn.ModuleList([nn.Linear(6, 5), nn.Linear(6, 5)])  # apart, so that the first does not feel the second's masks
    twin = nn.ModuleList([nn.Linear(6, 5), nn.Linear(6, 5)])
    twin.load_state_dict(parts.state_dict())
    optimizers = [torch.optim.Adam(each.parameters(), 0.1, weight_decay=0.1) for each in (parts, twin)]
    sparse = SparseTraining(parts, optimizers[0], {"0.weight": 1.0, "1.weight": 0.4}, every=1, rate=0.9)
    x = torch.randn(7, 6)
    for _ in range(5):
        for model, optimizer in zip((parts, twin), optimizers, strict=True):
            optimizer.zero_grad()
            sum(model[i](x).square().sum() for i in (0, 1)).backward()
            optimizer.step()
    assert sparse.moves == 5
    assert torch.equal(parts[0].weight, twin[0].weight)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizers[0].state[parts[0].weight][key], optimizers[1].state[twin[0].weight][key])


def test_static_masks_stand_still_and_rescaling_is_one_over_the_root_of_the_density() -> None:
    model = network()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = SparseTraining(model, optimizer, 0.2, growth=Static(), every=1)
    for name, mask in sparse.masks.items():
        scale = math.sqrt(mask.numel() / int(mask.sum()))
        torch.testing.assert_close(sparse.weights[name].detach(), torch.where(mask, before[name] * scale, 0.0))
    first = sparse.masks
    train_(model, optimizer, range(1, 4))
    assert sparse.masks is first
    with pytest.raises(ValueError, match=r"growth=Static\(\): expected growth that moves masks"):
        sparse.move_(0.5)


def test_a_rate_of_the_step_and_rate_zero_is_no_move() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    asked: list[int] = []

    def rate(step: int) -> float:
        asked.append(step)
        return {2: 0.5, 4: 0.0, 6: 1.0}[step]

    sparse = SparseTraining(model, optimizer, 0.2, every=2, rate=rate)
    seen: list[int] = []
    train_(model, optimizer, range(1, 7), lambda _: seen.append(sparse.moves))
    assert seen == [0, 1, 1, 1, 1, 2]
    assert set(asked) == {2, 4, 6}
    sparse.rate = lambda _: 1.5
    with pytest.raises(ValueError, match=r"^rate=1.5 at step 8: expected a share of the live weights in \[0, 1\]$"):
        train_(model, optimizer, range(7, 9))


def test_followers_hold_the_masks_too() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = SparseTraining(model, optimizer, 0.2, every=2, rate=0.6)
    mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    with torch.no_grad():
        for weight in mean.module.parameters():
            weight.add_(1.0)
    sparse.follow_(mean.module)
    named = dict(mean.module.named_parameters())
    masks, values = [sparse.masks], [{name: named[name].detach().clone() for name in sparse.masks}]

    def check(_: int) -> None:
        for name, mask in sparse.masks.items():
            assert torch.equal(named[name], torch.where(mask & masks[-1][name], values[-1][name], 0.0))
        mean.update_parameters(model)
        masks.append(sparse.masks)
        values.append({name: named[name].detach().clone() for name in sparse.masks})

    train_(model, optimizer, range(1, 8), check)
    assert sparse.moves == 3
    with pytest.raises(ValueError, match=r"^Linear has no '0.weight' of shape \(8, 4, 3, 3\): expected a copy of the model"):
        sparse.follow_(nn.Linear(2, 2))


def test_after_removal_the_training_is_dense() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = SparseTraining(model, optimizer, 0.2, every=1)
    train_(model, optimizer, range(1, 3))
    sparse.remove()
    sparse.remove()
    train_(model, optimizer, range(3, 5))
    assert (sparse.step, sparse.moves) == (2, 2)
    assert all(bool((weight != 0)[~sparse.masks[name]].any()) for name, weight in sparse.weights.items())


def test_the_ledger_is_a_plain_sum() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = SparseTraining(model, optimizer, 0.5, growth=Gradient(2), every=4, example=torch.zeros(1, 6), rows=7)
    sparse.gather_at = [6]
    assert sparse.ledger is not None
    f_dense, f_sparse, expected = 80, sum(sparse.budget.values()), 0
    for step in range(1, 10):
        sparse.rows = 5 + step
        optimizer.zero_grad()
        model(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()
        gradient = f_dense if step in (3, 4, 5, 6, 7, 8) else f_sparse
        expected += (5 + step) * (2 * f_sparse + gradient)
        assert (sparse.ledger.training_macs, sparse.ledger.rows) == (expected, sum(range(6, 6 + step)))
    assert sparse.moves == 2
