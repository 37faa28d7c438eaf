"""Scores of dead weights: what each growth draws or takes, and each error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quorate.tickets.growth import Gradient, Growth, Random, Static


def test_random_scores_are_the_generators_and_nothing_else() -> None:
    weight = torch.randn(3, 4, 2, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    score = Random().score(None, weight, np.random.default_rng(5))
    assert torch.equal(score, torch.from_numpy(np.random.default_rng(5).random((3, 4, 2, 2), dtype=np.float32)))
    assert torch.equal(score, Random().score(torch.full_like(weight, torch.nan), weight * 0, np.random.default_rng(5)))


def test_gradient_scores_are_magnitudes_and_draw_nothing() -> None:
    gradient, rng = torch.tensor([[1.0, -3.0], [0.0, -0.0]]), np.random.default_rng(5)
    before = rng.bit_generator.state
    assert Gradient(7).score(gradient, torch.zeros(2, 2), rng).tolist() == [[1, 3], [0, 0]]
    assert rng.bit_generator.state == before


@pytest.mark.parametrize(
    ("growth", "batches", "moves"),
    [(Random(), 0, True), (Gradient(), 1, True), (Gradient(batches=3), 3, True), (Static(), 0, False)],
)
def test_what_a_growth_needs(growth: Growth, batches: int, moves: bool) -> None:
    assert (growth.batches, growth.moves) == (batches, moves)


def test_errors() -> None:
    weight, rng = torch.zeros(2, 3), np.random.default_rng(0)
    with pytest.raises(ValueError, match="batches=0: expected at least 1"):
        Gradient(0)
    with pytest.raises(ValueError, match=r"growth by gradient got none: expected the dense gradient of shape \(2, 3\)"):
        Gradient().score(None, weight, rng)
    with pytest.raises(ValueError, match=r"got one of shape \(3, 2\)"):
        Gradient().score(weight.t(), weight, rng)
    with pytest.raises(ValueError, match=r"Static\(\) scores nothing"):
        Static().score(weight, weight, rng)
