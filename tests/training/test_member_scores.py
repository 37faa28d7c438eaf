"""Members' figures, fed in uneven batches, equal the plain functions on each member's rows at once."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quorate import metrics
from quorate.combination import softmax
from quorate.training.member_metrics import GaussianMemberScores, MemberScores

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def draw(members: int, rows: int, width: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(members, rows, width, generator=torch.Generator().manual_seed(seed))


def fed(metric: Any, outputs: Tensor, targets: Tensor, sizes: list[int]) -> list[dict[str, float]]:
    for start, stop in itertools.pairwise([0, *np.cumsum(sizes).tolist()]):
        metric.update(outputs[:, start:stop], targets[start:stop])
    return list(metric.compute())


@given(st.integers(1, 4), SIZES, st.integers(1, 20), st.integers(0, 99))
def test_scores_of_a_classifier(members: int, sizes: list[int], bins: int, seed: int) -> None:
    logits = draw(members, sum(sizes), 4, seed)
    labels = torch.randint(0, 4, (sum(sizes),), generator=torch.Generator().manual_seed(seed))
    found = fed(MemberScores(members, bins), logits, labels, sizes)
    assert [list(figures) for figures in found] == [["val_accuracy", "val_ece", "val_nll"]] * members
    for m in range(members):
        probs, truth = softmax(logits[m].numpy()), labels.numpy()
        assert found[m]["val_accuracy"] == pytest.approx(metrics.accuracy(probs, truth), abs=1e-12)
        assert found[m]["val_ece"] == pytest.approx(metrics.ece(probs, truth, bins), abs=1e-9)
        assert found[m]["val_nll"] == pytest.approx(metrics.nll(probs, truth), rel=1e-9)


@given(st.integers(1, 4), SIZES, st.integers(1, 3), st.integers(0, 99))
def test_scores_of_a_regression(members: int, sizes: list[int], targets: int, seed: int) -> None:
    outputs, y = draw(members, sum(sizes), 2 * targets, seed), draw(1, sum(sizes), targets, seed + 1)[0]
    found = fed(GaussianMemberScores(members), outputs, y, sizes)
    assert [list(figures) for figures in found] == [["val_nll", "val_rmse"]] * members
    for m in range(members):
        mean, variance = outputs[m, :, :targets].double().numpy(), outputs[m, :, targets:].double().exp().numpy()
        truth = y.double().numpy()
        assert found[m]["val_nll"] == pytest.approx(metrics.gaussian_nll(mean, variance, truth), rel=1e-9, abs=1e-9)
        assert found[m]["val_rmse"] == pytest.approx(metrics.rmse(mean, truth), rel=1e-9)


@pytest.mark.parametrize("bins", [1, 2, 4, 15])
def test_a_probability_on_the_edge_of_two_bins_is_in_the_lower(bins: int) -> None:
    logits, labels = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [3.0, 0.0]]]), torch.tensor([0, 1, 1])
    found = fed(MemberScores(1, bins), logits, labels, [3])
    assert found[0]["val_ece"] == pytest.approx(metrics.ece(softmax(logits[0].numpy()), labels.numpy(), bins), abs=1e-12)
    assert found[0]["val_accuracy"] == pytest.approx(1 / 3)  # among equals the lowest class


def test_only_members_that_came_have_figures_and_reset_forgets() -> None:
    metric, labels = MemberScores(4), torch.tensor([0, 1, 2, 0, 1])
    fed(metric, draw(4, 5, 3, 1), labels, [5])
    metric.reset()
    logits = draw(2, 5, 3)
    found = fed(metric, logits, labels, [2, 3])
    assert len(found) == 2
    assert found[1]["val_nll"] == pytest.approx(metrics.nll(softmax(logits[1].numpy()), labels.numpy()), rel=1e-9)


def test_very_sure_members_that_are_wrong_have_finite_losses() -> None:
    logits = torch.tensor([[[2000.0, 0.0]], [[0.0, 0.0]]], requires_grad=True)
    found = fed(MemberScores(2), logits, torch.tensor([1]), [1])
    assert [figures["val_nll"] for figures in found] == pytest.approx([2000.0, np.log(2)])


def test_states_of_two_processes_add_up() -> None:
    logits, labels = draw(3, 12, 4), torch.arange(12) % 4
    halves = [MemberScores(3), MemberScores(3)]
    halves[0].update(logits[:, :5], labels[:5])
    halves[1].update(logits[:, 5:], labels[5:])
    halves[0].merge_state(halves[1])
    whole = fed(MemberScores(3), logits, labels, [12])
    assert [one["val_ece"] for one in halves[0].compute()] == pytest.approx([one["val_ece"] for one in whole])
