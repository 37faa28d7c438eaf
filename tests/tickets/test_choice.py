"""Which network of a phase is the ticket, by hand-made figures; and the averages against fp64 means, top-k and statistics by hand."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.tickets.choice import Candidate
from tiny_tickets import SIZES, network, same


def noisy(seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A masked network with weights and statistics of its own."""
    made, draw = network(seed), torch.Generator().manual_seed(seed)
    masks = {}
    with torch.no_grad():
        for name in SIZES:
            weight = made.get_parameter(name)
            masks[name] = (
                (torch.rand(weight.shape, generator=draw) < 0.3).flatten().scatter(0, torch.arange(3), True).view_as(weight)
            )
            masks[name] = _exactly(masks[name], round(0.3 * weight.numel()))
            weight.copy_(torch.randn(weight.shape, generator=draw) * masks[name])
        for name, buffer in made.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=draw) + 0.1)
    return made, masks


def _exactly(mask: Tensor, live: int) -> Tensor:
    order = (~mask).flatten().int().argsort(stable=True)
    return torch.zeros(mask.numel(), dtype=torch.bool).scatter(0, order[:live], True).view_as(mask)


FIGURES = [(0.5, 1.0), (0.7, 0.9), (0.7, 0.8), (0.6, 0.1), (0.7, 0.8)]


@pytest.mark.parametrize(("choose", "best"), [("accuracy", 3), ("nll", 4), ("last", 5)])
def test_the_best_epoch(choose: Any, best: int) -> None:
    candidate = Candidate(choose, 5)
    for epoch, (accuracy, nll) in enumerate(FIGURES, 1):
        candidate.add_(*noisy(epoch), {"val_accuracy": accuracy, "val_nll": nll}, epoch, len(FIGURES) - epoch)
    state, masks = candidate.taken(network(9), lambda: iter(()))
    expected, its = noisy(best)
    assert same(state, expected.state_dict())
    assert same(masks, its)
    accuracy, nll = FIGURES[best - 1]
    assert candidate.facts() == {"epoch": best, "score": [accuracy, -nll] if choose == "accuracy" else [-nll]}


@pytest.mark.parametrize("choose", ["accuracy", "nll"])
def test_a_regression_is_chosen_by_its_nll(choose: Any) -> None:
    candidate = Candidate(choose, 5)
    for epoch, nll in enumerate([0.3, -1.5, 0.1], 1):
        candidate.add_(*noisy(epoch), {"val_nll": nll, "val_rmse": 1.0}, epoch, 3 - epoch)
    assert candidate.facts() == {"epoch": 2, "score": [1.5]}


def test_what_is_kept_does_not_change_with_the_network() -> None:
    candidate, (made, masks) = Candidate("nll", 5), noisy(1)
    candidate.add_(made, masks, {"val_nll": 1.0}, 1, 1)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.zero_()
        for mask in masks.values():
            mask.fill_(True)
    state, kept = candidate.taken(network(), lambda: iter(()))
    expected, its = noisy(1)
    assert same(state, expected.state_dict())
    assert same(kept, its)
    candidate.clear_()
    assert candidate.facts() == {"epoch": 0, "score": None}
    candidate.add_(*noisy(2), {"val_nll": 7.0}, 2, 0)
    assert candidate.facts()["epoch"] == 2


def averaged(candidate: Candidate, epochs: int, first: int = 1) -> None:
    for epoch in range(first, epochs + 1):
        candidate.add_(*noisy(epoch), {"val_nll": 1.0}, epoch, epochs - epoch)


@pytest.mark.parametrize(("epochs", "number"), [(5, 3), (4, 4), (3, 1)])
def test_an_average(epochs: int, number: int) -> None:
    candidate = Candidate("average", number)
    averaged(candidate, epochs)
    batches = [torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(k)) * 16 for k in range(3)]
    state, masks = candidate.taken(network(9), lambda: iter(batches))
    networks = [noisy(epoch)[0] for epoch in range(epochs - number + 1, epochs + 1)]
    means = {
        n: torch.stack([made.get_parameter(n).double() for made in networks]).mean(0) for n, _ in networks[0].named_parameters()
    }
    for name, size in SIZES.items():
        live = round(0.3 * size)
        places = means[name].flatten().abs().argsort(descending=True, stable=True)[:live]
        expected = torch.zeros(size, dtype=torch.bool).scatter(0, places, True).view_as(means[name])
        assert torch.equal(masks[name], expected)
        means[name] = means[name] * expected
    for name, mean in means.items():
        assert torch.allclose(state[name].double(), mean, rtol=0, atol=1e-6)
        assert name not in masks or not state[name][~masks[name]].any()
    check_statistics(state, means, batches)
    assert candidate.facts() == {"epoch": epochs, "score": None}


def check_statistics(state: dict[str, Tensor], weights: dict[str, Tensor], batches: list[Tensor]) -> None:
    """Those of two batch normalisations, from all batches by hand, in fp64."""
    sums: dict[str, list[tuple[Tensor, Tensor]]] = {"2": [], "5": []}
    normalise = network()[0].double()
    for x in batches:
        h = nn.functional.conv2d(normalise(x.double()), weights["1.weight"], padding=1)
        sums["2"].append((h.mean((0, 2, 3)), h.var((0, 2, 3), unbiased=True)))
        mean, variance = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), unbiased=False, keepdim=True)
        h = (h - mean) / (variance + 1e-5).sqrt() * weights["2.weight"].view(1, -1, 1, 1) + weights["2.bias"].view(1, -1, 1, 1)
        h = nn.functional.conv2d(h.relu(), weights["4.weight"], stride=2, padding=1)
        sums["5"].append((h.mean((0, 2, 3)), h.var((0, 2, 3), unbiased=True)))
    for layer, found in sums.items():
        for what, parts in zip(("running_mean", "running_var"), zip(*found, strict=True), strict=True):
            assert torch.allclose(state[f"{layer}.{what}"].double(), torch.stack(parts).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choose", ["accuracy", "average"])
@pytest.mark.parametrize("stop", range(5))
def test_going_on_from_a_saved_state(choose: Any, stop: int) -> None:
    """Through a file, after any epoch: bit-equal to one that was never saved."""
    whole, first, second = (Candidate(choose, 3) for _ in range(3))
    for epoch, (accuracy, nll) in enumerate(FIGURES, 1):
        for each in (whole, first) if epoch <= stop else (whole,):
            each.add_(*noisy(epoch), {"val_accuracy": accuracy, "val_nll": nll}, epoch, 5 - epoch)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True), torch.device("cpu"))
    for epoch, (accuracy, nll) in list(enumerate(FIGURES, 1))[stop:]:
        second.add_(*noisy(epoch), {"val_accuracy": accuracy, "val_nll": nll}, epoch, 5 - epoch)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 16
    (a, ours), (b, theirs) = (each.taken(network(9), lambda: iter([x])) for each in (whole, second))
    assert same(a, b)
    assert same(ours, theirs)
    assert whole.facts() == second.facts()
