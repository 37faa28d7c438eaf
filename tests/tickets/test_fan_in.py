"""Constant fan-in: an update worked by hand, ablation and return of neurons, a plain loop as reference, form and budget, each error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quorate.tickets.fan_in import ConstantFanIn

seeds = st.integers(0, 2**32 - 1)
rates = st.one_of(st.sampled_from([0.3, 0.5, 1.0]), st.floats(0, 1))
ablations = st.sampled_from([0.0, 0.3, 0.6, 1.0])


def reference(weight: Tensor, mask: Tensor, rate: float, score: Tensor, live: int, ablate: float) -> Tensor:
    """SRigL's steps with lists and sorts."""
    out, width = mask.shape
    w, s = weight.abs().tolist(), score.tolist()
    places = [(o, i) for o in range(out) for i in range(width)]
    on = [p for p in places if mask[p]]
    dead = [p for p in places if not mask[p]]
    n = min(math.ceil(rate * len(on) - 1e-6), len(on))
    if n == 0 or not dead:
        return mask
    gone = sorted(on, key=lambda p: (w[p[0]][p[1]], p))[:n]
    kept = [p for p in on if p not in gone]
    risen = sorted(dead, key=lambda p: (-s[p[0]][p[1]], p))[:n]
    salient = [sum(p[0] == o for p in kept + risen) for o in range(out)]
    before = max(sum(p[0] == o for p in on) for o in range(out))
    by_salience = sorted(range(out), key=lambda o: (-salient[o], o))
    active = sum(count >= ablate * before - 1e-6 for count in salient)
    active = min(max(active, math.ceil(live / width)), out, live)
    fan_in = live // active
    new = torch.zeros_like(mask)
    for o in by_salience[:active]:
        ours = sorted((p for p in kept if p[0] == o), key=lambda p: (w[o][p[1]], p))
        ours = ours[max(len(ours) - fan_in, 0) :]
        others = sorted((p for p in places if p[0] == o and p not in ours), key=lambda p: (-s[o][p[1]], p))
        for p in ours + others[: fan_in - len(ours)]:
            new[p] = True
    return new


def example(seed: int, ablate: float, coarse: bool = False) -> tuple[ConstantFanIn, Tensor, Tensor, Tensor, int]:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 8)), int(rng.integers(1, 8)))
    pattern = ConstantFanIn(ablate)
    live = pattern.live("w", shape, int(rng.integers(1, math.prod(shape) + 1)))
    mask = pattern.draw(shape, live, rng)
    weight, score = torch.from_numpy(rng.normal(size=shape)), torch.from_numpy(rng.random(shape))
    if coarse:
        weight, score = weight.round(), score.round()
    return pattern, weight.masked_fill(~mask, 0), mask, score, live


def test_an_update_by_hand() -> None:
    """Budget 8, fan-in 2, n = 4: 8, 7, 6, 9 stay; the best dead scores lie in rows 0 and 1, so row 2 is ablated and fan-in ⌊8/3⌋ = 2."""
    weight = torch.tensor([[9.0, 8, 0, 0], [7, 1, 0, 0], [1, 2, 0, 0], [6, 3, 0, 0]])
    score = torch.tensor([[0.0, 0, 5, 6], [0, 0, 7, 8], [1, 0, 0, 0], [0, 2, 0, 1]])
    moved = ConstantFanIn(0.5).move(weight, weight != 0, 0.5, score, live=8)
    assert moved.int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    never = ConstantFanIn(0).move(weight, weight != 0, 0.5, score, live=8)
    assert never.int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_an_ablated_neuron_leaves_its_weights_to_the_others_and_comes_back() -> None:
    """Budget 6: three neurons of 2 become two of 3, then three of 2 again; a surviving neuron drops its least."""
    pattern = ConstantFanIn(0.5)
    weight = torch.tensor([[5.0, 4, 0, 0], [3, 2.5, 0, 0], [0.1, 0.2, 0, 0]])
    score = torch.tensor([[0.0, 0, 1, 9], [0, 0, 8, 1], [0, 0, 0, 0]])
    two = pattern.move(weight, weight != 0, 0.3, score, live=6)
    assert two.int().tolist() == [[1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]]
    weight = weight * two + torch.tensor([[0, 0, 0, 1.0], [0, 0, 1, 0], [0, 0, 0, 0]])
    three = pattern.move(weight, two, 0.3, torch.tensor([[0.0] * 4, [0.0] * 4, [1, 3, 2, 0]]), live=6)
    assert three.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]


def test_surplus_of_returning_neurons_is_dropped_by_magnitude_and_then_index() -> None:
    weight = torch.tensor([[2.0, 3, 3, 4], [0, 0, 0, 0]])
    mask, score = weight != 0, torch.tensor([[0.0] * 4, [1.0, 2, 3, 4]])
    moved = ConstantFanIn(0.25).move(weight, mask, 0.25, score, live=4)
    assert moved.int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_infinite_weights_are_dropped_by_index_when_neurons_return() -> None:
    weight = torch.tensor([[0, torch.inf, -torch.inf, torch.inf, 0], [0.0] * 5])
    score = torch.tensor([[0.0] * 5, [1.0, 2, 3, 4, 5]])
    moved = ConstantFanIn(0).move(weight, weight != 0, 0.3, score, live=3)
    assert moved.int().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]


def test_a_budget_below_the_outputs_keeps_as_many_neurons() -> None:
    weight = torch.tensor([[0.0, 0], [0, 5], [0, 0]])
    moved = ConstantFanIn(0).move(weight, weight != 0, 1.0, torch.tensor([[0.0, 0], [3, 0], [1, 2]]))
    assert moved.int().tolist() == [[0, 0], [1, 0], [0, 0]]


@given(seeds, rates, ablations, st.booleans())
def test_against_a_plain_loop(seed: int, rate: float, ablate: float, coarse: bool) -> None:
    pattern, weight, mask, score, live = example(seed, ablate, coarse)
    for _ in range(3):
        moved = pattern.move(weight, mask, rate, score, live=live)
        assert torch.equal(moved, reference(weight, mask, rate, score, live, ablate))
        mask, weight, score = moved, weight.masked_fill(~moved, 0), score.flip(0)


@given(seeds, rates, ablations, st.sampled_from([torch.float32, torch.bfloat16]))
def test_form_and_budget_hold_however_often_it_moves(seed: int, rate: float, ablate: float, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 9)), int(rng.integers(1, 9)), *[(), (3,), (2, 2)][rng.integers(3)])
    pattern = ConstantFanIn(ablate)
    live = pattern.live("w", shape, int(rng.integers(1, math.prod(shape) + 1)))
    mask = pattern.draw(shape, live, rng)
    assert int(mask.sum()) == live
    for _ in range(6):
        weight = torch.from_numpy(rng.normal(size=shape)).to(dtype)
        if len(shape) == 4:
            weight = weight.to(memory_format=torch.channels_last)
        mask = pattern.move(weight.masked_fill(~mask, 0), mask, rate, torch.from_numpy(rng.random(shape)), live=live)
        fan_in = mask.reshape(shape[0], -1).sum(1)
        active = int((fan_in > 0).sum())
        assert mask.shape == shape
        assert pattern.fits(mask)
        assert active >= 1
        assert int(fan_in.max()) == live // active
        assert ablate > 0 or active == shape[0]


def test_without_a_budget_the_count_only_falls_and_never_to_nothing() -> None:
    rng, pattern = np.random.default_rng(0), ConstantFanIn(1.0)
    mask = pattern.draw((5, 3), 5, rng)
    counts = [5]
    for _ in range(20):
        mask = pattern.move(torch.from_numpy(rng.normal(size=(5, 3))), mask, 0.5, torch.from_numpy(rng.random((5, 3))))
        counts.append(int(mask.sum()))
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 1


def test_nothing_moves_at_rate_zero_or_where_all_is_live() -> None:
    pattern, weight, mask, score, live = example(5, 1.0)
    still = pattern.move(weight, mask, 0.0, score, live=live)
    assert torch.equal(still, mask)
    assert still is not mask
    full = pattern.draw((3, 4, 2), 24, np.random.default_rng(0))
    assert pattern.move(torch.ones(3, 4, 2), full, 0.5, torch.ones(3, 4, 2), live=24) is full


def test_legal_counts_and_draws() -> None:
    pattern = ConstantFanIn()
    assert [pattern.live("w", (4, 3, 2), k) for k in (1, 5, 7, 13, 23, 24)] == [4, 4, 8, 12, 24, 24]
    drawn = [pattern.draw((4, 6), 8, np.random.default_rng(s)) for s in (*range(40), 3)]
    assert torch.equal(drawn[3], drawn[40])
    assert all(mask.sum(1).tolist() == [2] * 4 for mask in drawn)
    assert 0 < float(torch.stack(drawn).double().mean(0).min()) < 1 / 3


def test_forms() -> None:
    rows = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1]], dtype=torch.bool)
    assert ConstantFanIn().fits(rows)
    assert not ConstantFanIn().fits(rows.t())
    assert not ConstantFanIn().fits(rows & False)


def test_errors() -> None:
    pattern, weight = ConstantFanIn(), torch.ones(2, 4)
    mask = torch.tensor([[True, True, False, False]]).expand(2, 4)
    for ablate in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"expected a share of the fan-in in \[0, 1\], 0 to ablate no neuron"):
            ConstantFanIn(ablate)
    with pytest.raises(ValueError, match=r"weight 'fc' of shape .* is to keep 9 live weights: expected 1 … 8"):
        pattern.live("fc", (2, 4), 9)
    with pytest.raises(ValueError, match=r"can't have 3 live weights .* the nearest legal count is 4"):
        pattern.draw((2, 4), 3, np.random.default_rng(0))
    for live in (3, 9):
        with pytest.raises(ValueError, match=rf"mask has 4 of 8 live weights: expected live={live} to lie between"):
            pattern.move(weight, mask, 0.5, weight, live=live)
    with pytest.raises(ValueError, match="has not the form of ConstantFanIn"):
        pattern.move(weight, torch.eye(2, 4, dtype=torch.bool).cumsum(1) > 0, 0.5, weight)
    with pytest.raises(ValueError, match="score has NaN"):
        pattern.move(weight, mask, 0.5, weight * math.nan)
