"""Anyone's loop: every optimiser, precision, accumulation, clipping, skipped steps, compiled. Dead weights stay +0."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.tickets import Gradient, Random, SparseTraining


class Noisy(torch.optim.Optimizer):
    """An optimiser that moves every weight, whatever its gradient, as Lion with noise would."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # noqa: ARG002
        for group in self.param_groups:
            for weight in group["params"]:
                weight.sub_(0.01 + 0.1 * (weight if weight.grad is None else weight.grad.sign()))


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "adam maximize": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1, maximize=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.1, fused=True),
    "adam tensor rate": lambda p: torch.optim.Adam(p, torch.tensor(0.1)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.1),
    "radam": lambda p: torch.optim.RAdam(p, 0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.1),
    "asgd": lambda p: torch.optim.ASGD(p, 0.1),
    "muon": lambda p: torch.optim.Muon([each for each in p if each.dim() == 2], 0.1),
    "own": Noisy,
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))


def batch(step: int, rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, 8, generator=generator), torch.randint(0, 4, (rows,), generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x).float(), y)


def assert_dead(sparse: SparseTraining) -> None:
    """+0.0 where dead, and as many live as there should be."""
    for name, weight in sparse.weights.items():
        dead = weight.detach()[~sparse.masks[name]]
        assert not dead.any()
        assert not dead.signbit().any()
        assert int(sparse.masks[name].sum()) == sparse.budget[name]


@pytest.mark.parametrize("growth", [Gradient(), Random()], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers(name: str, growth: Gradient | Random) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    sparse = SparseTraining(model, optimizer, 0.4, growth=growth, every=2)
    old = sparse.masks
    for step in range(1, 8):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        assert_dead(sparse)
        if sparse.masks is not old:
            for key, weight in sparse.weights.items():
                for state in optimizer.state[weight].values():
                    if isinstance(state, Tensor) and state.shape == weight.shape:
                        assert not state[~(sparse.masks[key] & old[key])].any()
        old = sparse.masks
    assert (sparse.step, sparse.moves) == (7, 3)


def test_lbfgs_steps_once_per_closure_loop() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=4)
    sparse = SparseTraining(model, optimizer, 0.4, every=1)
    for step in range(1, 5):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert_dead(sparse)
    assert (sparse.step, sparse.moves) == (4, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_of_other_widths(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    sparse = SparseTraining(model, optimizer, 0.4, every=2)
    for step in range(1, 6):
        optimizer.zero_grad()
        x, y = batch(step)
        nn.functional.cross_entropy(model(x.to(dtype)), y).backward()
        optimizer.step()
        assert_dead(sparse)
    assert sparse.moves == 2


def test_autocast() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparse = SparseTraining(model, optimizer, 0.4, every=2)
    for step in range(1, 6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        assert_dead(sparse)
    assert sparse.moves == 2


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_an_overflow_at_the_step_of_a_move_does_not_count_and_leaves_nothing(fused: bool, to_none: bool) -> None:
    def run(overflow: bool) -> tuple[nn.Module, SparseTraining, list[int]]:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 0.05, fused=fused)
        sparse = SparseTraining(model, optimizer, 0.4, every=3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)
        steps = []
        for step in [1, 2, *([-3] if overflow else []), 3, 4]:
            if step == 3 and not overflow:
                scaler.update(2.0**9)  # what the overflow does to it
            optimizer.zero_grad(set_to_none=to_none)
            factor = float("inf") if step < 0 else 1.0
            scaler.scale(loss_of(model, abs(step)) * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            steps.append(sparse.step)
            assert_dead(sparse)
        return model, sparse, steps

    (model, sparse, steps), (other, plain, _) = run(True), run(False)
    assert steps == [1, 2, 2, 3, 4]
    assert sparse.moves == plain.moves == 1
    assert all(torch.equal(sparse.masks[name], plain.masks[name]) for name in sparse.masks)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_an_overflow_of_dead_weights_alone_puts_the_move_off() -> None:
    layer = nn.Linear(4, 3, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    sparse = SparseTraining(layer, optimizer, 0.5, growth=Gradient(2), every=3)
    dead = ~sparse.masks["weight"]
    for step, moves in [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1)]:  # two whole steps are gathered anew
        optimizer.zero_grad()
        (layer.weight * torch.where(dead, torch.inf if step == 3 else 2.0, 1.0)).sum().backward()
        optimizer.step()
        assert_dead(sparse)
        assert sparse.moves == moves


@pytest.mark.parametrize("to_none", [True, False])
def test_a_step_that_the_loop_skips_leaves_nothing(to_none: bool) -> None:
    layer = nn.Linear(4, 3, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), 0.0)
    sparse = SparseTraining(layer, optimizer, 0.5, every=1, rate=0.5)
    for scale in (1e9, 1.0):
        optimizer.zero_grad(set_to_none=to_none)
        (layer.weight * scale * torch.arange(12.0).view(3, 4)).sum().backward()
        torch.autograd.grad(layer.weight.sum(), layer.weight)  # not accumulated, so nothing of the step's
    assert torch.equal(sparse._gathering._step["weight"], torch.arange(12.0).view(3, 4))


@pytest.mark.parametrize("several", [1, 2, 4])
def test_accumulated_gradients_are_those_of_the_big_batch(several: int) -> None:
    kept = []
    for parts in (1, several):
        model = network().double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        sparse = SparseTraining(model, optimizer, 0.4, growth=Gradient(2), every=2)
        sparse.gather_at = [3]
        for step in range(1, 4):
            x, y = batch(step, 8)
            optimizer.zero_grad()
            for a, b in zip(x.double().chunk(parts), y.chunk(parts), strict=True):
                loss = nn.functional.cross_entropy(model(a), b) / (2 * parts)
                loss.backward(retain_graph=True)
                loss.backward()
            optimizer.step()
        kept.append((sparse._gathering.sums, sparse.masks))
    (one, masks), (many, same) = kept
    for name in one:
        torch.testing.assert_close(one[name], many[name], rtol=1e-12, atol=1e-14)
        assert torch.equal(masks[name], same[name])
    assert bool((one["2.weight"][~masks["2.weight"]] != 0).any())


def test_clipping_sees_live_weights_only() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sparse = SparseTraining(model, optimizer, 0.4, every=2)
    for step in range(1, 5):
        optimizer.zero_grad()
        raw = torch.autograd.grad(loss_of(model, step), list(model.parameters()))
        loss_of(model, step).backward()
        live = [
            gradient * sparse.masks[name] if name in sparse.masks else gradient
            for (name, _), gradient in zip(model.named_parameters(), raw, strict=True)
        ]
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        torch.testing.assert_close(norm, torch.cat([each.flatten() for each in live]).norm())
        torch.testing.assert_close(
            sum(w.grad.square().sum() for w in model.parameters() if w.grad is not None).sqrt(), norm.new_tensor(1e-3)
        )
        assert all(not sparse.weights[name].grad[~mask].any() for name, mask in sparse.masks.items())
        optimizer.step()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")  # inductor's own import
def test_compiled(backend: str, first: bool) -> None:
    found = []
    for compiled in (True, False):
        model: Any = network()
        trained = torch.compile(model, backend=backend) if compiled and first else model
        optimizer = torch.optim.AdamW(trained.parameters(), 0.05)
        sparse = SparseTraining(trained, optimizer, 0.4, every=2)
        assert list(sparse.masks) == ["0.weight", "2.weight", "4.weight"]
        if compiled and not first:
            trained = torch.compile(model, backend=backend)
        for step in range(1, 6):
            optimizer.zero_grad()
            loss_of(trained, step).backward()
            assert all(not weight.grad[~sparse.masks[name]].any() for name, weight in sparse.weights.items())
            optimizer.step()
            assert_dead(sparse)
        found.append((sparse.masks, model))
    torch._dynamo.reset()
    (masks, model), (same, other) = found
    for name in masks:
        assert torch.equal(masks[name], same[name])
    torch.testing.assert_close(model.state_dict(), other.state_dict())
