"""DST under fit: M trainings that are exactly M trainings, counted together; and regressions, of DST and EDST."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ensemble_contract import check_ensemble
from quorate.data import arrays
from quorate.tickets import DST, EDST, Gradient, Random, SparseTraining, Static
from quorate.training import Fitted, Loader, fit
from quorate.training.inputs import member_seed
from tiny_tickets import (
    BATCH,
    DATA,
    FORWARD,
    LIVE,
    MACS,
    PLAIN,
    SIZES,
    STEPS,
    WatchedDST,
    dst,
    figures,
    loaded,
    network,
    quick,
    same,
)

EPOCHS = 4


def watched(members: int = 2, **options: Any) -> WatchedDST:
    return WatchedDST([network(m) for m in range(members)], **{**PLAIN, **options})


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return quick(watched(choose="nll"), epochs=EPOCHS)


def of(fitted: Fitted) -> WatchedDST:
    assert isinstance(fitted.ensemble, WatchedDST)
    return fitted.ensemble


def alone(m: int, seed: int, growth: Any) -> tuple[nn.Module, SparseTraining]:
    """Member m in a plain loop, on the batches of a loader with this seed."""
    model = network(m).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    sparse = SparseTraining(
        model,
        optimizer,
        0.3,
        growth=growth,
        distribution="uniform",
        every=4,
        rate=lambda step: 0.5 if step < EPOCHS * STEPS else 0.0,
        seed=int(np.random.SeedSequence([0, m]).generate_state(1)[0]),
    )
    loader = Loader(DATA.train, BATCH, seed, True, DATA.augmentation)
    for _ in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model, sparse


@pytest.mark.parametrize(("inputs", "growth"), [("shared", Gradient(2)), ("own_order", Random())])
def test_members_are_trainings_of_their_own(inputs: str, growth: Any) -> None:
    ensemble = quick(dst(growth=growth, choose="last"), epochs=EPOCHS, inputs=inputs).ensemble
    assert isinstance(ensemble, DST)
    for m, member in enumerate(ensemble.members):
        model, sparse = alone(m, member_seed(0, m) if inputs == "own_order" else 0, growth)
        assert same(ensemble.ticket_masks[m], sparse.masks)
        for name, tensor in model.state_dict().items():
            assert torch.allclose(member.state_dict()[name], tensor, rtol=1e-6, atol=1e-7), name
    assert not any(torch.equal(a, b) for a, b in zip(*(masks.values() for masks in ensemble.ticket_masks), strict=True))


def test_masks_differ_from_the_start_and_move_in_every_member(fitted: Fitted) -> None:
    first, second = of(fitted).watches
    for step in (0, 10, EPOCHS * STEPS):
        assert not any(torch.equal(first.steps[step].masks[name], second.steps[step].masks[name]) for name in SIZES)
    for watch in (first, second):
        assert watch.moved() == [4, 8, 12, 16, 20]  # not at 24, the end
        for moment in watch.steps.values():
            assert {name: int(mask.sum()) for name, mask in moment.masks.items()} == LIVE


def test_each_ticket_is_chosen_by_itself(fitted: Fitted) -> None:
    ensemble = of(fitted)
    for m, watch in enumerate(ensemble.watches):
        nll = {epoch: figures([loaded(moment.state)])[1] for epoch, moment in watch.after.items()}
        best = min(nll, key=lambda epoch: nll[epoch])
        assert fitted.facts["tickets"][m] == ensemble.about[m]
        assert fitted.facts["tickets"][m]["epoch"] == best
        assert fitted.facts["tickets"][m]["score"] == pytest.approx([-nll[best]], rel=1e-4)
        assert same(ensemble.members[m].state_dict(), watch.after[best].state)
        assert same(ensemble.ticket_masks[m], watch.after[best].masks)


def test_the_ledger_is_of_all_runs_to_one_dense_run(fitted: Fitted) -> None:
    ensemble, rows, f_dense = of(fitted), EPOCHS * STEPS * BATCH, sum(MACS.values())
    found = fitted.facts["ledger"]
    assert found["training_macs"] == fitted.facts["training_macs"] == round(2 * 3 * FORWARD * rows)
    assert (found["training_rows"], found["dense_rows"], found["moves"]) == (2 * rows, rows, 5)
    assert found["training_ratio"] == pytest.approx(2 * float(FORWARD) / f_dense, rel=1e-12)
    assert found["inference_macs"]["tickets"] == list(fitted.outputs["test"].costs) == 2 * [round(FORWARD)]
    explored = []
    for watch in ensemble.watches:
        ever = sum(int(torch.stack([each.masks[name] for each in watch.steps.values()]).any(0).sum()) for name in SIZES)
        explored.append(ever / sum(SIZES.values()))
    assert found["exploration_rate"] == pytest.approx(sum(explored) / 2, rel=1e-12)
    a, b = (torch.cat([masks[name].flatten() for name in SIZES]) for masks in ensemble.ticket_masks)
    assert found["overlap"][0][1] == int((a & b).sum()) / int((a | b).sum())


def test_members_have_figures_and_losses_of_their_own(fitted: Fitted) -> None:
    for row in fitted.member_metrics:
        state = of(fitted).watches[int(row["member"])].after[int(row["epoch"]) + 1].state
        assert (row["val_accuracy"], row["val_nll"]) == pytest.approx(figures([loaded(state)]), rel=1e-4)
        assert row["train_loss"] > 0
    assert len(fitted.member_metrics) == 2 * EPOCHS


def test_static_masks_never_move() -> None:
    run = quick(watched(growth=Static(), every=1000, choose="average", averaged=2), epochs=3)
    for watch, masks in zip(of(run).watches, of(run).ticket_masks, strict=True):
        assert all(same(moment.masks, watch.steps[0].masks) for moment in watch.steps.values())
        assert same(masks, watch.steps[0].masks)
    assert run.facts["ledger"]["moves"] == 0
    assert run.facts["ledger"]["exploration_rate"] == sum(LIVE.values()) / sum(SIZES.values())
    assert all(int(member[2].num_batches_tracked) == STEPS for member in of(run).members)  # statistics of one pass
    for watch, member in zip(of(run).watches, of(run).members, strict=True):
        mean = torch.stack([watch.after[epoch].state["4.weight"].double() for epoch in (2, 3)]).mean(0)
        assert torch.allclose(member[4].weight.double(), mean, atol=1e-7, rtol=1e-6)


def test_densities_by_name_and_dense_weights() -> None:
    density = {"4.weight": 0.2, "9.weight": 1.0}
    run = quick(dst(1, density=density, distribution="erk", dense="1.weight"), epochs=2)
    assert isinstance(run.ensemble, DST)
    assert {name: int(mask.sum()) for name, mask in run.ensemble.ticket_masks[0].items()} == {"4.weight": 173, "9.weight": 96}
    assert run.facts["macs"] == round(MACS["1.weight"] + MACS["4.weight"] * 173 / 864 + MACS["9.weight"])


DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(200, 3)).astype(np.float32)
TARGETS = arrays((X, (50 + 9 * X[:, 0] + DRAW.normal(size=200))[:, None]), targets=["a"], name="toy")


def regressor(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(TARGETS.normalise(), nn.Flatten(), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2), TARGETS.output())


@pytest.mark.parametrize("kind", ["edst", "dst"])
def test_a_regression(kind: str) -> None:
    options: dict[str, Any] = {"density": 0.6, "every": 2, "kind": "gaussian"}
    ensemble = EDST(regressor(0), 2, **options) if kind == "edst" else DST([regressor(m) for m in range(2)], **options)
    chosen: dict[str, Any] = {"epochs": 6, "batch_size": 20, "optimizer": "adamw", "lr": 0.02, "schedule": "constant"}
    run = fit(ensemble, TARGETS, progress=False, accelerator="cpu", **chosen)
    phases = [[3, 4], [5, 6]] if kind == "edst" else [[1, 2, 3, 4, 5, 6]] * 2
    for m, phase in enumerate(phases):
        rows = [row for row in run.member_metrics if row["epoch"] + 1 in phase and row["member"] == m]
        best = min(rows, key=lambda row: row["val_nll"])
        assert run.facts["tickets"][m] == {"epoch": best["epoch"] + 1, "score": [-best["val_nll"]]}
    assert run.outputs["test"].kind == "gaussian"
    assert set(run.metrics[0]) == {"epoch", "step", "lr", "train_loss", "val_nll", "val_rmse"}


@pytest.mark.parametrize("kind", ["edst", "dst"])
def test_the_contract(kind: str) -> None:
    """Before training, when the members are dense, and after it."""
    x = DATA.test.batch(np.arange(6))[0]

    def trained(seed: int) -> nn.Module:
        ensemble = EDST(network(seed), 2, **PLAIN) if kind == "edst" else dst()
        return quick(ensemble, epochs=6 if kind == "edst" else 1, seed=seed, data=DATA).ensemble

    check_ensemble(lambda: EDST(network(0), 2, **PLAIN) if kind == "edst" else dst(), x)
    done = trained(0).state_dict()

    def make() -> nn.Module:
        ensemble = EDST(network(1), 2, **PLAIN) if kind == "edst" else dst()
        ensemble.load_state_dict(done)
        return ensemble

    check_ensemble(make, x)
