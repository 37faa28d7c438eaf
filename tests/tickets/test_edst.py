"""EDST under fit, event by event: an exploration of 2 epochs, then 3 refinements of 2, of 6 steps each; masks move every 4 steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from quorate.tickets import Gradient, Random, SparseTraining, Unstructured
from quorate.training import Fitted
from tiny_tickets import BATCH, FORWARD, LIVE, MACS, SIZES, STEPS, Watch, WatchedEDST, figures, loaded, quick, same, watched

MOVES = [4, 8, 16, 20, 28, 32, 40, 44]  # not at 12, 24, 36, 48, where phases end
ESCAPES = [24, 36]


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return quick(watched(), warmup_epochs=1)


def of(fitted: Fitted) -> WatchedEDST:
    assert isinstance(fitted.ensemble, WatchedEDST)
    return fitted.ensemble


def test_tickets_are_taken_at_the_ends_of_refinements(fitted: Fitted) -> None:
    watch = of(fitted).watch
    assert watch.taken == [(4, 0), (6, 1), (8, 2)]
    assert watch.moved() == MOVES
    for epoch in range(1, 9):
        moved = not same(watch.ends[epoch].masks, watch.after[epoch].masks)
        assert moved == (epoch * STEPS in ESCAPES)
    assert fitted.facts["ledger"]["moves"] == len(MOVES) + len(ESCAPES)


def test_every_moment_keeps_the_counts_and_the_zeros(fitted: Fitted) -> None:
    watch = of(fitted).watch
    for moments in (watch.steps, watch.ends, watch.after):
        for moment in moments.values():
            assert {name: int(mask.sum()) for name, mask in moment.masks.items()} == LIVE
            assert not any(moment.state[name][~mask].any() for name, mask in moment.masks.items())


def test_the_learning_rate(fitted: Fitted) -> None:
    watch = of(fitted).watch
    rise = [0.1 * (step + 1) / 7 for step in range(6)]
    expected = rise + 6 * [0.1] + 3 * (6 * [0.01] + 6 * [0.001])
    assert [watch.steps[step].lr for step in range(1, 49)] == pytest.approx(expected)
    assert [row["lr"] for row in fitted.metrics] == pytest.approx([0.1, 0.01, 0.001, 0.01, 0.001, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(("choose", "seed"), [("accuracy", 3), ("nll", 1), ("last", 0)])
def test_the_ticket_is_the_best_validation_epoch_of_its_refinement(choose: Any, seed: int) -> None:
    """Accuracies of 86 rows tie often: then the lower NLL decides."""
    run = quick(watched(2, seed, choose=choose, factors=(1.0, 0.3)), epochs=12, seed=seed)
    ensemble, watch = of(run), of(run).watch
    for m, phase in enumerate(([3, 4, 5, 6, 7], [8, 9, 10, 11, 12])):
        scores = {epoch: figures([loaded(watch.ends[epoch].state)]) for epoch in phase}
        ranked = {
            "accuracy": {epoch: (accuracy, -nll) for epoch, (accuracy, nll) in scores.items()},
            "nll": {epoch: (-nll,) for epoch, (_, nll) in scores.items()},
            "last": {epoch: (epoch,) for epoch in phase},
        }[choose]
        best = max(phase, key=lambda epoch: ranked[epoch])
        assert same(ensemble.members[m].state_dict(), watch.ends[best].state)
        assert same(ensemble.ticket_masks[m], watch.ends[best].masks)
        said = run.facts["tickets"][m]
        assert said == ensemble.about[m]
        assert said["epoch"] == best
        assert said["score"] == pytest.approx(ranked[best] if choose != "last" else [-scores[best][1]], rel=1e-4)


def check_escape(watch: Watch, epoch: int, escape: float) -> None:
    before, after = watch.ends[epoch], watch.after[epoch]
    assert same(
        {n: t for n, t in before.state.items() if n not in SIZES}, {n: t for n, t in after.state.items() if n not in SIZES}
    )
    for name, live in LIVE.items():
        weight, dropped = before.state[name].flatten(), math.ceil(escape * live - 1e-9)
        places = before.masks[name].flatten().nonzero().flatten()
        kept = places[weight[places].abs().argsort(descending=True, stable=True)[: live - dropped]]
        mask = after.masks[name].flatten()
        assert int(mask.sum()) == live
        assert mask[kept].all()
        survivors = (before.masks[name] & after.masks[name]).flatten()
        for old, new in (
            (weight, after.state[name].flatten()),
            (before.momentum[name].flatten(), after.momentum[name].flatten()),
        ):
            assert torch.equal(new[survivors], old[survivors])
            assert not new[~survivors].any()
        assert 0 < int((mask & ~survivors).sum()) <= dropped
    following = watch.steps[epoch * STEPS + 1]
    assert (watch.steps[epoch * STEPS].lr, following.lr) == pytest.approx((0.001, 0.01))
    assert int(following.state["2.num_batches_tracked"]) == epoch * STEPS + 1


def test_escapes(fitted: Fitted) -> None:
    """The largest weights stay, with their momentum; batch statistics go on; the rate jumps back up."""
    for epoch in (4, 6):
        check_escape(of(fitted).watch, epoch, 0.8)


def test_an_escape_of_a_third() -> None:
    check_escape(of(quick(watched(2, escape=0.35), epochs=6)).watch, 4, 0.35)


@dataclass(frozen=True)
class Noting(Unstructured):
    """Unstructured, and notes the rates of its moves."""

    rates: ClassVar[list[float]] = []

    def move(self, *args: Any, **options: Any) -> Tensor:
        self.rates.append(args[2])
        return super().move(*args, **options)


def test_rates_of_moves_and_escapes() -> None:
    """Each layer's: those of the phase, which begin anew after every escape, and the escape's."""
    Noting.rates.clear()
    watch = of(quick(watched(pattern=Noting(), rate=0.4, decay="rigl", until=0.9, escape=0.7))).watch
    assert watch.moved() == MOVES
    expected = [0.7 if t in ESCAPES else 0.2 * (1 + math.cos(math.pi * (t % 12) / 12 / 0.9)) for t in sorted(MOVES + ESCAPES)]
    assert Noting.rates == pytest.approx([rate for rate in expected for _ in SIZES])


def test_validation_sees_the_tickets_so_far_and_the_network(fitted: Fitted) -> None:
    ensemble, watch = of(fitted), of(fitted).watch
    for epoch, row in enumerate(fitted.metrics, 1):
        so_far = [0, 0, 0, 0, 1, 1, 2, 2][epoch - 1]
        networks = [*ensemble.members[:so_far], loaded(watch.ends[epoch].state)]
        accuracy, nll = figures(networks)
        assert row["val_accuracy"] == pytest.approx(accuracy)
        assert row["val_nll"] == pytest.approx(nll, rel=1e-4)
        rows = [each for each in fitted.member_metrics if each["epoch"] == epoch - 1]
        assert [each["member"] for each in rows] == list(range(so_far + 1))
        for each, model in zip(rows, networks, strict=True):
            assert (each["val_accuracy"], each["val_nll"]) == pytest.approx(figures([model]), rel=1e-4)


@pytest.mark.parametrize(
    ("growth", "dense"),
    [
        (Random(), []),
        pytest.param(Gradient(), [*MOVES, *ESCAPES], marks=pytest.mark.slow),
        (Gradient(2), [t - k for t in (*MOVES, *ESCAPES) for k in (0, 1)]),
    ],
)
def test_the_ledger(growth: Any, dense: list[int]) -> None:
    """Against a plain sum over steps: 3 f_S per row, and 2 f_S + f_D where growth needs the dense gradient."""
    run = quick(watched(growth=growth))
    f_dense = sum(MACS.values())
    cost = sum(BATCH * (2 * FORWARD + (f_dense if step in dense else FORWARD)) for step in range(1, 49))
    found = run.facts["ledger"]
    assert found["training_macs"] == run.facts["training_macs"] == round(cost)
    assert found["training_rows"] == found["dense_rows"] == 48 * BATCH
    assert found["training_ratio"] == pytest.approx(float(cost / (3 * f_dense * 48 * BATCH)), rel=1e-12)
    each = round(FORWARD)
    assert found["inference_macs"] == {"tickets": 3 * [each], "total": round(3 * FORWARD), "ratio": float(3 * FORWARD / f_dense)}
    assert run.facts["stage_macs"] == 3 * [each]
    assert run.facts["macs"] == 3 * each
    assert run.outputs["test"].costs == (each,) * 3
    rest = 2 * 8 + 2 * 12 + 8
    assert found["live_parameters"]["tickets"] == 3 * [sum(LIVE.values()) + rest]
    assert run.facts["parameters"] == 3 * (sum(LIVE.values()) + rest)


def test_its_cost_to_a_dense_run_of_fewer_epochs() -> None:
    """1.8 times the epochs at f_S / f_D each, as 450 to 250 are on CIFAR."""
    run = quick(watched(2, exploration=3), epochs=9)
    dense = 3 * sum(MACS.values()) * 5 * STEPS * BATCH
    assert run.facts["training_macs"] / dense == pytest.approx(1.8 * float(FORWARD / Fraction(sum(MACS.values()))), rel=1e-9)


def test_exploration_rate_and_overlap(fitted: Fitted) -> None:
    ensemble, watch = of(fitted), of(fitted).watch
    moments = [*watch.steps.values(), *watch.after.values()]
    ever = sum(int(torch.stack([moment.masks[name] for moment in moments]).any(0).sum()) for name in SIZES)
    assert fitted.facts["ledger"]["exploration_rate"] == ever / sum(SIZES.values())
    assert ever > sum(LIVE.values())
    flat = [torch.cat([masks[name].flatten() for name in SIZES]) for masks in ensemble.ticket_masks]
    overlap = np.array(fitted.facts["ledger"]["overlap"])
    assert np.array_equal(overlap, overlap.T)
    assert (np.diag(overlap) == 1).all()
    for i, j in combinations(range(3), 2):
        assert overlap[i, j] == int((flat[i] & flat[j]).sum()) / int((flat[i] | flat[j]).sum()) < 1


def test_the_average_of_a_refinement() -> None:
    """The masks of the largest mean weights; escapes start from the network itself, not from its average."""
    run = quick(watched(2, choose="average", averaged=2, factors=(1.0,)), epochs=8)
    ensemble, watch = of(run), of(run).watch
    assert watch.taken == [(5, 0), (8, 1)]
    for m, epochs in enumerate(([4, 5], [7, 8])):
        for name, live in LIVE.items():
            mean = torch.stack([watch.ends[epoch].state[name].double() for epoch in epochs]).mean(0)
            places = mean.flatten().abs().argsort(descending=True, stable=True)[:live]
            expected = torch.zeros(mean.numel(), dtype=torch.bool).scatter(0, places, True).view_as(mean)
            assert torch.equal(ensemble.ticket_masks[m][name], expected)
            assert torch.allclose(ensemble.members[m].state_dict()[name].double(), mean * expected, atol=1e-6, rtol=0)
        assert run.facts["tickets"][m] == {"epoch": epochs[-1], "score": None}
        assert int(ensemble.members[m].state_dict()["2.num_batches_tracked"]) == STEPS  # statistics of one pass
    assert int(watch.steps[31].state["2.num_batches_tracked"]) == 31


def test_rows_of_a_split_that_is_smaller_than_a_batch() -> None:
    run = quick(watched(1, exploration=4, every=2, factors=(0.1,)), epochs=8, batch_size=100)
    assert run.facts["ledger"]["training_rows"] == 8 * 72
    assert run.facts["training_macs"] == round(3 * FORWARD * 8 * 72)


def test_hooks_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    removed = []
    monkeypatch.setattr(SparseTraining, "remove", lambda sparse: removed.append(sparse.step))
    quick(watched())
    assert removed == [48]
