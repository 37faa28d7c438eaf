"""What outlives a sparse training: hooks on weights. A second one, copies, another device, constructions that fail, runs that break off."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quorate.tickets import Gradient, Growth, Random, SparseTraining
from tiny_tickets import dst, edst, quick, same


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def hooks(model: nn.Module) -> int:
    """Of sparse training, on all weights."""
    return sum(len(weight._post_accumulate_grad_hooks or ()) for weight in model.parameters())


def step_(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    device = next(model.parameters()).device
    model(torch.randn(6, 8).to(device)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("fresh", [False, True], ids=["same optimiser", "fresh optimiser"])
def test_a_second_training_of_the_same_weights_is_refused_until_the_first_is_removed(fresh: bool) -> None:
    model = network()
    optimizer = sgd(model)
    first = SparseTraining(model, optimizer, 0.4, dense=["2.weight"], every=2)
    SparseTraining(model, optimizer, 0.4, only=["2.weight"])  # other weights
    second = sgd(model) if fresh else optimizer
    with pytest.raises(ValueError, match=r"^'0.weight' is in sparse training already: .*remove\(\)") as raised:
        SparseTraining(model, second, 0.2, dense=["2.weight"])
    assert "\n" not in str(raised.value)
    assert hooks(model) == 2
    first.remove()
    again = SparseTraining(model, second, 0.2, dense=["2.weight"], every=1)
    step_(model, second, 0)
    assert again.live["0.weight"] == int(again.masks["0.weight"].sum()) == round(0.2 * 96)
    assert not model[0].weight[~again.masks["0.weight"]].any()


@pytest.mark.parametrize("settings", [{"rate": lambda _: 2.0, "every": 1}, {"state": {"format": "other"}}])
def test_a_construction_that_fails_leaves_no_hooks(settings: dict[str, Any]) -> None:
    model = network()
    optimizer = sgd(model)
    with pytest.raises(ValueError, match=r"rate|format"):
        SparseTraining(model, optimizer, 0.4, **settings)
    assert hooks(model) == 0
    assert not optimizer._optimizer_step_post_hooks  # type: ignore[attr-defined]
    SparseTraining(model, optimizer, 0.4)


def test_model_and_optimiser_can_be_copied_in_training_and_sparse_training_says_how_to_go_on() -> None:
    model = network()
    optimizer = sgd(model)
    sparse = SparseTraining(model, optimizer, 0.4, every=2)
    step_(model, optimizer, 0)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ValueError, match=r"^SparseTraining can't be copied or pickled.*state=$"):
            copied(sparse)  # type: ignore[operator]
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    assert hooks(twin) == 0
    pickle.loads(pickle.dumps(model))
    pickle.loads(pickle.dumps(optimizer))
    again = SparseTraining(twin, twin_optimizer, 0.4, every=2, state=sparse.state_dict())
    for step in range(1, 6):
        step_(model, optimizer, step)
        step_(twin, twin_optimizer, step)
    assert sparse.moves == again.moves == 3
    assert same(sparse.masks, again.masks)
    assert same(model.state_dict(), twin.state_dict())


def test_an_ensemble_can_be_copied_and_pickled_in_training() -> None:
    ensemble = edst(members=2)
    optimizer = torch.optim.SGD(ensemble.learner.parameters(), 0.1)
    SparseTraining(ensemble.learner, optimizer, 0.4, distribution="uniform", every=1)
    ensemble(torch.randn(4, 1, 8, 8)).square().mean().backward()
    optimizer.step()
    for twin in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        assert same(twin.state_dict(), ensemble.state_dict())
        assert hooks(twin) == 0
    assert hooks(ensemble) == 3


def test_masks_go_along_with_weights_to_another_device() -> None:
    model = network()
    sparse = SparseTraining(model, sgd(model), 0.4, growth=Random(), distribution="uniform", every=100)
    sparse.weights = {name: nn.Parameter(weight.detach().to("meta")) for name, weight in sparse.weights.items()}
    sparse._mask_("0.weight", torch.empty(12, 8, device="meta"))
    assert {mask.device.type for mask in (*sparse.masks.values(), *sparse.ever.values())} == {"meta"}
    sparse._enforce_()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("growth", [Random(), Gradient(2)])
def test_a_model_that_goes_to_the_gpu_afterwards_is_the_one_that_was_there_before(growth: Growth) -> None:
    found = []
    for late in (False, True):
        model = network() if late else network().cuda()
        optimizer = sgd(model)
        sparse = SparseTraining(model, optimizer, 0.4, growth=growth, distribution="uniform", every=3)
        model.cuda()
        for step in range(8):
            step_(model, optimizer, step)
            assert not any(weight[~sparse.masks[name]].any() for name, weight in sparse.weights.items())
        found.append((model, sparse))
    (there, first), (gone, second) = found
    assert first.moves == second.moves == 2
    assert same(first.masks, second.masks)
    assert same(there.state_dict(), gone.state_dict())


class Killed(BaseException):
    """Nothing answers it."""


@pytest.mark.parametrize(
    ("make", "epochs"),
    [(lambda: edst(1, exploration=1, growth=Gradient()), 3), (lambda: dst(growth=Gradient()), 2)],
    ids=["edst", "dst"],
)
def test_a_run_goes_on_with_the_very_ensemble_that_broke_off(make: Callable[[], nn.Module], epochs: int, tmp_path: Path) -> None:
    """Its weights still carry the hooks of the training that was stopped."""
    settings = {"epochs": epochs, "checkpoint_seconds": 1e-9}
    whole = quick(make(), tmp_path / "whole", **settings).ensemble
    ensemble, steps = make(), 0

    def count(module: nn.Module, *_: object) -> None:
        nonlocal steps
        steps += module.training
        if module.training and steps == 8:
            raise Killed

    hook = ensemble.register_forward_hook(count)
    with pytest.raises(Killed):
        quick(ensemble, tmp_path / "run", **settings)
    hook.remove()
    quick(ensemble, tmp_path / "run", **settings)
    assert same(ensemble.state_dict(), whole.state_dict())
    assert hooks(ensemble) == 0


def test_state_dicts_go_through_a_file() -> None:
    model = network()
    optimizer = sgd(model)
    sparse = SparseTraining(model, optimizer, 0.4, growth=Gradient(2), every=2)
    step_(model, optimizer, 0)
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["kept"].keys() == {"0.weight", "2.weight"}
