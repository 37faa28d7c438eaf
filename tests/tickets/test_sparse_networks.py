"""Networks that are odd in some way: frozen or unused in parts, shared, in channels_last, with attention, under two optimisers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.tickets import Gradient, Random, SparseTraining


def step_(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    output = model(x)
    (output[0] if isinstance(output, tuple) else output).float().square().mean().backward()
    optimizer.step()


def assert_dead(sparse: SparseTraining) -> None:
    for name, weight in sparse.weights.items():
        assert not weight[~sparse.masks[name]].any()
        assert int(sparse.masks[name].sum()) == sparse.budget[name]


class Attention(nn.Module):
    def __init__(self, **widths: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **widths)

    def forward(self, x: Tensor) -> Tensor:
        other = x[..., :6].contiguous() if self.attention.kdim == 6 else x
        return self.attention(x, other, other, need_weights=False)[0]


@pytest.mark.parametrize(
    ("model", "shape", "names"),
    [
        (nn.Conv1d(4, 8, 3), (2, 4, 9), ["weight"]),
        (nn.Conv3d(4, 8, 2), (2, 4, 3, 3, 3), ["weight"]),
        (nn.ConvTranspose2d(4, 8, 3, stride=2), (2, 4, 5, 5), ["weight"]),
        (nn.Conv2d(8, 8, 3, groups=4), (2, 8, 5, 5), ["weight"]),
        (Attention(), (2, 5, 8), ["attention.in_proj_weight", "attention.out_proj.weight"]),
        (
            Attention(kdim=6, vdim=6),
            (2, 5, 8),
            [*(f"attention.{p}_proj_weight" for p in "qkv"), "attention.out_proj.weight"],
        ),
    ],
    ids=["conv1d", "conv3d", "transposed", "grouped", "attention", "attention of widths"],
)
def test_layers(model: nn.Module, shape: tuple[int, ...], names: list[str]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    sparse = SparseTraining(model, optimizer, 0.4, every=1, distribution="uniform")
    assert list(sparse.masks) == names
    for _ in range(4):
        step_(model, optimizer, torch.randn(shape))
        assert_dead(sparse)
    assert sparse.moves == 4


def test_channels_last_changes_nothing() -> None:
    found = []
    for form in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(72, 4)).double().to(memory_format=form)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        sparse = SparseTraining(model, optimizer, 0.3, every=2)
        for step in range(5):
            torch.manual_seed(step)
            step_(model, optimizer, torch.randn(2, 4, 5, 5, dtype=torch.float64).to(memory_format=form))
            assert_dead(sparse)
        found.append(sparse)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    for name in found[0].masks:
        assert torch.equal(found[0].masks[name], found[1].masks[name])
        torch.testing.assert_close(found[0].weights[name], found[1].weights[name])


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def test_a_shared_weight_has_one_mask_and_the_sum_of_its_gradients() -> None:
    torch.manual_seed(0)
    model = Shared()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sparse = SparseTraining(model, optimizer, 0.4, every=5)
    sparse.gather_at = [1]
    assert list(sparse.masks) == ["a.weight"]
    x = torch.randn(3, 6)
    (expected,) = torch.autograd.grad(model(x).square().mean(), model.a.weight)
    step_(model, optimizer, x)
    torch.testing.assert_close(sparse._gathering.sums["a.weight"], expected)
    sparse.move_(0.5)
    assert_dead(sparse)


def test_frozen_weights_stand_still_until_they_are_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparse = SparseTraining(model, optimizer, 0.4, every=1)
    assert not model[0].weight.requires_grad
    first, value = sparse.masks["0.weight"], model[0].weight.clone()
    for _ in range(2):
        step_(model, optimizer, torch.randn(5, 6))
    assert sparse.moves == 2
    assert sparse.masks["0.weight"] is first
    assert torch.equal(model[0].weight, value)
    model[0].weight.requires_grad_(True)
    model[2].weight.requires_grad_(False)
    second = sparse.masks["2.weight"]
    for _ in range(3):
        step_(model, optimizer, torch.randn(5, 6))
        assert_dead(sparse)
        assert not model[0].weight.grad.any() or not model[0].weight.grad[~first].all()
    assert sparse.moves == 5
    assert not torch.equal(sparse.masks["0.weight"], first)
    assert sparse.masks["2.weight"] is second
    for weight in model.parameters():
        weight.requires_grad_(weight is model[2].bias)
    step_(model, optimizer, torch.randn(5, 6))
    assert sparse.moves == 6


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.both = True

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + (self.b(x) if self.both else 0)


@pytest.mark.parametrize("growth", [Gradient(), Random()], ids=str)
def test_a_weight_that_no_loss_reaches_does_not_hold_up_the_others(growth: Gradient | Random) -> None:
    torch.manual_seed(0)
    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = SparseTraining(model, optimizer, 0.4, growth=growth, every=1)
    model.both = False
    first = sparse.masks
    step_(model, optimizer, torch.randn(5, 6))
    assert sparse.moves == 1
    assert not torch.equal(sparse.masks["a.weight"], first["a.weight"])
    assert torch.equal(sparse.masks["b.weight"], first["b.weight"]) is isinstance(growth, Gradient)
    model.both = True
    step_(model, optimizer, torch.randn(5, 6))
    assert not torch.equal(sparse.masks["b.weight"], first["b.weight"])


def test_two_optimisers_with_groups_train_two_parts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    groups = [{"params": [model[0].weight], "weight_decay": 0.1}, {"params": [model[0].bias], "lr": 0.01}]
    first = torch.optim.AdamW(groups, 0.1)
    second = torch.optim.SGD(model[2].parameters(), 0.1, momentum=0.9)
    a = SparseTraining(model, first, 0.3, only=["0.weight"], every=2)
    b = SparseTraining(model, second, 0.5, only="2.weight", growth=Random(), every=3)
    for step in range(1, 7):
        for optimizer in (first, second):
            optimizer.zero_grad()
        model(torch.randn(5, 6)).square().mean().backward()
        first.step()
        if step % 2:
            second.step()
        assert_dead(a)
        assert_dead(b)
    assert (a.step, a.moves, b.step, b.moves) == (6, 3, 3, 1)
    with pytest.raises(ValueError, match=r"^the optimiser trains not '2.weight' of the model's 2 sparse weights: make it from"):
        SparseTraining(model, first, 0.5)


def test_growth_without_any_gradient_is_not_passed_over() -> None:
    layer = nn.Linear(6, 8)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    SparseTraining(layer, optimizer, 0.4, every=3)
    for _ in range(5):
        layer.weight.grad = torch.ones_like(layer.weight)  # set by hand, no hook of autograd sees it
        optimizer.step()
    with pytest.raises(
        ValueError, match=r"^no sparse weight got a gradient by step 6, 3 after a move of the masks was due: expected .*$"
    ):
        optimizer.step()
