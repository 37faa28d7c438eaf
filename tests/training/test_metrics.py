"""Stateful metrics: fed in uneven batches they equal the plain functions on all rows at once."""

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
from quorate.combination import Combine, log_softmax, softmax
from quorate.training.metrics import EnsembleAccuracy, EnsembleAURC, EnsembleBrier, EnsembleECE, EnsembleNLL

KINDS = {"accuracy": EnsembleAccuracy, "nll": EnsembleNLL, "brier": EnsembleBrier, "ece": EnsembleECE, "aurc": EnsembleAURC}


def draw(rows: int, seed: int = 0, members: int = 3, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(members, rows, classes, generator=generator) * 2, torch.randint(0, classes, (rows,), generator=generator)


def combined(logits: Tensor, combine: Combine) -> np.ndarray:
    z = logits.double().numpy()
    return softmax(z.mean(0)) if combine == "logits" else softmax(z).mean(0)


def plain(name: str, probs: np.ndarray, labels: np.ndarray) -> float:
    if name == "aurc":
        return metrics.aurc(1 - probs.max(-1), probs.argmax(-1) != labels)
    return float(
        {"accuracy": metrics.accuracy, "nll": metrics.nll, "brier": metrics.brier, "ece": metrics.ece}[name](probs, labels)
    )


def feed(metric: Any, logits: Tensor, labels: Tensor, sizes: list[int]) -> None:
    for start, stop in itertools.pairwise([0, *np.cumsum(sizes).tolist()]):
        metric.update(logits[:, start:stop], labels[start:stop])


@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(["probs", "logits"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_uneven_batches_equal_the_plain_function_on_all_rows(name: str, combine: Combine, sizes: list[int], seed: int) -> None:
    logits, labels = draw(sum(sizes), seed)
    metric = KINDS[name](combine=combine)
    feed(metric, logits, labels, sizes)
    result = metric.compute()
    assert result.dtype == torch.float64
    assert float(result) == pytest.approx(plain(name, combined(logits, combine), labels.numpy()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_reset_forgets(name: str) -> None:
    metric = KINDS[name]()
    feed(metric, *draw(7, 1), [3, 4])
    metric.reset()
    logits, labels = draw(9, 2)
    feed(metric, logits, labels, [4, 5])
    assert float(metric.compute()) == pytest.approx(plain(name, combined(logits, "probs"), labels.numpy()), rel=1e-9)


@pytest.mark.parametrize("bins", [1, 4, 30])
def test_ece_with_other_bins(bins: int) -> None:
    logits, labels = draw(50)
    metric = EnsembleECE(bins=bins)
    feed(metric, logits, labels, [20, 30])
    assert float(metric.compute()) == pytest.approx(metrics.ece(combined(logits, "probs"), labels.numpy(), bins=bins), rel=1e-9)


def test_combining_logits_is_not_combining_probabilities() -> None:
    logits, labels = torch.tensor([[[8.0, 0.0]], [[-2.0, 0.0]]]), torch.tensor([1])
    for combine, probability in (("probs", softmax([[8.0, 0.0], [-2.0, 0.0]]).mean(0)[1]), ("logits", softmax([3.0, 0.0])[1])):
        metric = EnsembleNLL(combine)
        metric.update(logits, labels)
        assert float(metric.compute()) == pytest.approx(-np.log(probability), rel=1e-9)


def test_sums_are_exact_over_many_rows_of_very_small_loss() -> None:
    logits, labels = torch.tensor([[[20.0, 0.0]]]), torch.tensor([0])
    metric = EnsembleNLL()
    for _ in range(1000):
        metric.update(logits, labels)
    assert float(metric.compute()) == pytest.approx(-log_softmax([20.0, 0.0])[0], rel=1e-6)


def test_half_precision_logits_and_gradients_are_accepted() -> None:
    logits, labels = draw(6)
    metric = EnsembleAccuracy()
    metric.update(logits.to(torch.bfloat16).requires_grad_(), labels)
    assert 0 <= float(metric.compute()) <= 1


def test_which_way_is_better() -> None:
    assert EnsembleAccuracy.higher_is_better
    assert not any(kind.higher_is_better for name, kind in KINDS.items() if name != "accuracy")


def test_states_of_two_processes_add_up() -> None:
    logits, labels = draw(20)
    halves = [EnsembleECE(), EnsembleECE()]
    feed(halves[0], logits[:, :13], labels[:13], [13])
    feed(halves[1], logits[:, 13:], labels[13:], [7])
    halves[0].merge_state(halves[1])
    assert float(halves[0].compute()) == pytest.approx(metrics.ece(combined(logits, "probs"), labels.numpy()), rel=1e-9)
