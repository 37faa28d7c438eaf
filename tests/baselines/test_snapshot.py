"""Snapshot ensembles: the contract, and one training whose checkpoints at the cycles' ends are the members, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ensemble_contract import check_ensemble
from quorate import cost
from quorate.baselines import SnapshotEnsemble
from quorate.data import Normalise, digits
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP
from quorate.runs import Run
from quorate.training import Fitted, fit

DATA = digits()


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(DATA.normalise(), MLP(DATA.shape, 8, (16,), dropout=0.2, norm=True))


def quick(ensemble: nn.Module, run: Path | None = None, **options: Any) -> Fitted:
    chosen = {"epochs": 6, "batch_size": 100, "lr": 0.1, "accelerator": "cpu", "progress": False, "tensorboard": False, **options}
    return fit(ensemble, DATA, run=run, **chosen)


@pytest.mark.parametrize("members", [1, 3])
def test_it_keeps_the_contract(members: int) -> None:
    x = torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def make() -> nn.Module:
        layers = Normalise((100.0, 120.0, 140.0), (60.0, 70.0, 80.0), (3, 4, 4)), MLP((3, 4, 4), 3, (12,), dropout=0.2, norm=True)
        return SnapshotEnsemble(nn.Sequential(*layers), members)

    check_ensemble(make, x)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return quick(SnapshotEnsemble(network(), 3), tmp_path_factory.mktemp("runs") / "r", cycles=3, warmup_epochs=1)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_members_are_one_training_at_the_ends_of_its_cycles(fitted: Fitted) -> None:
    assert isinstance(fitted.ensemble, SnapshotEnsemble)
    for k in (1, 2, 3):  # k cycles alone are the beginning of more
        plain = DeepEnsemble([network()])
        rows = quick(plain, epochs=2 * k, cycles=k, warmup_epochs=1).metrics
        assert same(plain.members[0], fitted.ensemble.members[k - 1])
        assert [row["train_loss"] for row in fitted.metrics[: 2 * k]] == [row["train_loss"] for row in rows]
    assert rows[0]["val_nll"] == fitted.metrics[0]["val_nll"]  # one member so far
    assert rows[-1]["val_nll"] != fitted.metrics[-1]["val_nll"]


def test_each_cycle_is_validated_with_the_snapshots_so_far(fitted: Fitted) -> None:
    ensemble = fitted.ensemble
    assert isinstance(ensemble, SnapshotEnsemble)
    x, y = DATA.validation.batch(np.arange(len(DATA.validation)))
    for epoch, members in ((1, [0]), (3, [0, 1]), (5, [0, 1, 2])):
        with torch.no_grad():
            probs = torch.stack([ensemble.members[m](x).double().softmax(-1) for m in members]).mean(0)
        nll = float(-probs[torch.arange(len(y)), y].log().mean())
        assert fitted.metrics[epoch]["val_nll"] == pytest.approx(nll, rel=1e-5)
    assert [len(ensemble.so_far(k).members) for k in range(4)] == [1, 2, 3, 3]
    assert ensemble.so_far(1).members[1] is ensemble.learner


def test_the_run_is_like_any_other(fitted: Fitted) -> None:
    assert fitted.path is not None
    test = Run(fitted.path).outputs("test")
    assert (test.members, test.names) == ((1, 1, 1), ("member0", "member1", "member2"))
    single = cost.macs(network().eval(), DATA.test.batch(np.arange(1))[0])
    assert fitted.facts["macs"] == 3 * single
    assert fitted.facts["training_macs"] == 3 * single * 600 * 6  # of one network
    assert fitted.facts["parameters"] == 3 * cost.parameters(network())
    again = quick(SnapshotEnsemble(network(5), 3), fitted.path, cycles=3, warmup_epochs=1)
    assert same(again.ensemble, fitted.ensemble)
    assert [row["lr"] for row in again.metrics] == [row["lr"] for row in fitted.metrics]
    assert fitted.metrics[1]["lr"] == pytest.approx(0.1)  # the step after the first cycle
    assert fitted.metrics[5]["lr"] == pytest.approx(0.0)


def test_members_differ_and_only_the_last_is_trained(fitted: Fitted) -> None:
    assert isinstance(fitted.ensemble, SnapshotEnsemble)
    heads = [m[1].layers.head.weight for m in fitted.ensemble.members]
    assert all(not torch.equal(a, b) for a, b in ((heads[0], heads[1]), (heads[1], heads[2])))
    model = network()
    ensemble = SnapshotEnsemble(model, 2).train()
    x = DATA.train.batch(np.arange(4))[0]
    logits: Tensor = ensemble(x)
    assert logits.shape == (1, 4, 8)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in ensemble.members[0].parameters())


def test_gaussian_members() -> None:
    ensemble = SnapshotEnsemble(nn.Linear(4, 2), 2, kind="gaussian")
    assert (ensemble.kind, ensemble.so_far(1).kind) == ("gaussian", "gaussian")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "cycles=1: SnapshotEnsemble takes a member at each cycle's end, expected cycles=3"),
        ({"cycles": 2}, "cycles=2: SnapshotEnsemble takes a member"),
        ({"cycles": 3, "averaging": "ema"}, "averaging='ema': SnapshotEnsemble keeps weights along the training itself"),
    ],
)
def test_settings_that_do_not_go_with_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(SnapshotEnsemble(network(), 3), **options)


def test_what_is_refused() -> None:
    for members in (0, True, 2.0):
        with pytest.raises(ValueError, match=f"members={members!r}: expected an integer of at least 1, one per cycle"):
            SnapshotEnsemble(network(), members)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind='probs'"):
        SnapshotEnsemble(network(), 2, kind="probs")  # type: ignore[arg-type]
    for cycles in (0, 3):
        with pytest.raises(ValueError, match=rf"cycles={cycles}: expected 1 … 2 to be over, one per member"):
            SnapshotEnsemble(network(), 2).end_cycle_(cycles)
