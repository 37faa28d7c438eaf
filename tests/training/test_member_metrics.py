"""Each member's own figures: against the stored outputs, in files and log, after a resume; ensembles without losses by member."""

from __future__ import annotations

import csv
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional

from quorate import metrics
from quorate.baselines import MCDropout, SnapshotEnsemble
from quorate.combination import softmax
from quorate.data import digits
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP, MultiExitResNet
from quorate.training import Fitted, Interrupted, Loader, fit

DATA = digits()
FIGURES = ["val_accuracy", "val_ece", "val_nll"]


def single() -> nn.Module:
    return nn.Sequential(DATA.normalise(), MLP(DATA.shape, 8, (8,), dropout=0.2, norm=True))


def deep(members: int = 3) -> DeepEnsemble:
    torch.manual_seed(0)
    return DeepEnsemble(single() for _ in range(members))


def quick(ensemble: nn.Module, run: Path | None = None, **options: Any) -> Fitted:
    chosen = {"epochs": 2, "batch_size": 100, "lr": 0.1, "accelerator": "cpu", "progress": False, "tensorboard": False, **options}
    return fit(ensemble, DATA, run=run, **chosen)


def check_last(fitted: Fitted, members: int) -> None:
    """The last epoch's figures of validation are those of the stored outputs."""
    stored, last = fitted.outputs["validation"], fitted.member_metrics[-members:]
    values = [member for stage in stored.values for member in stage]
    assert [row["member"] for row in last] == list(range(members)) == list(range(len(values)))
    for row, member in zip(last, values, strict=True):
        probs, labels = softmax(member), stored.truth()
        assert row["val_accuracy"] == pytest.approx(metrics.accuracy(probs, labels), abs=1e-12)
        assert row["val_nll"] == pytest.approx(metrics.nll(probs, labels), rel=1e-5)
        assert row["val_ece"] == pytest.approx(metrics.ece(probs, labels), abs=1e-5)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"loss": "mean"}, {"mixup": 0.4}, {"averaging": "ema"}])
def test_figures_are_those_of_each_members_outputs(options: dict[str, Any]) -> None:
    fitted = quick(deep(), **options)
    check_last(fitted, 3)
    assert [(row["epoch"], row["step"], row["member"]) for row in fitted.member_metrics] == [
        (epoch, 6 * epoch + 6, m) for epoch in range(2) for m in range(3)
    ]
    for row in fitted.metrics:
        own = [each["train_loss"] for each in fitted.member_metrics if each["epoch"] == row["epoch"]]
        assert len(set(own)) == 3
        assert row["train_loss"] == pytest.approx(sum(own) / 3, rel=1e-6)


def test_a_members_loss_is_its_mean_over_the_epochs_rows() -> None:
    seen: list[Tensor] = []
    ensemble = deep()
    ensemble.register_forward_hook(lambda module, _, logits: seen.append(logits.detach()) if module.training else None)
    fitted = quick(ensemble, epochs=1, batch_size=90, seed=7)
    batches = [y for _, y in Loader(DATA.train, 90, seed=7, shuffle=True)]
    for row in fitted.member_metrics:
        each = [functional.cross_entropy(logits[row["member"]], y) for logits, y in zip(seen, batches, strict=True)]
        assert row["train_loss"] == pytest.approx(float(torch.stack(each).mean()), rel=1e-6)


def test_they_are_in_a_file_of_their_own_and_in_the_log(tmp_path: Path) -> None:
    fitted = quick(deep(2), tmp_path / "r", tensorboard=True)
    rows = list(csv.DictReader((tmp_path / "r" / "members.csv").read_text().splitlines()))
    assert list(rows[0]) == ["epoch", "step", "member", "train_loss", *FIGURES]
    assert [{key: float(value) for key, value in row.items()} for row in rows] == fitted.member_metrics
    head = (tmp_path / "r" / "metrics.csv").read_text().splitlines()[0]
    assert head == "epoch,step,lr,train_loss,val_accuracy,val_ece,val_nll"
    log = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    log.Reload()
    for m in range(2):
        for name in ("train_loss", *FIGURES):
            logged = [event.value for event in log.Scalars(f"{name}_m{m}")]
            assert logged == pytest.approx([row[name] for row in fitted.member_metrics if row["member"] == m], rel=1e-6)
    assert not [tag for tag in log.Tags()["scalars"] if tag.endswith("_m2") or tag.startswith(("step_m", "epoch_m"))]


def test_a_finished_run_gives_them_back(tmp_path: Path) -> None:
    fitted = quick(deep(), tmp_path / "r")
    assert quick(deep(), tmp_path / "r").member_metrics == fitted.member_metrics
    file = tmp_path / "r" / "members.csv"
    file.write_text("epoch,step,member\n0,1\n")
    with pytest.raises(ValueError, match=r"members\.csv is damaged .* expected a header and rows of numbers; train the run anew"):
        quick(deep(), tmp_path / "r")
    file.unlink()  # as a run of an earlier version has none
    again = quick(deep(), tmp_path / "r")
    assert (again.member_metrics, again.metrics) == ([], fitted.metrics)


@pytest.mark.parametrize(("step", "unknown"), [(9, 1), (6, 0)], ids=["inside an epoch", "between epochs"])
def test_a_run_begun_by_an_earlier_version_goes_on_to_the_same_weights(tmp_path: Path, step: int, unknown: int) -> None:
    ensemble, steps = deep(), 0

    def count(module: nn.Module, *_: object) -> None:
        nonlocal steps
        steps += module.training
        if module.training and steps == step:
            signal.raise_signal(signal.SIGTERM)

    ensemble.register_forward_hook(count)
    with pytest.raises(Interrupted):
        quick(ensemble, tmp_path / "r", epochs=3)
    state = torch.load(tmp_path / "r" / "resume.ckpt", weights_only=True)
    del state["quorate"]["member_loss_sum"], state["callbacks"]["MembersFile"]
    torch.save(state, tmp_path / "r" / "resume.ckpt")
    fitted, whole = quick(deep(), tmp_path / "r", epochs=3), quick(deep(), tmp_path / "whole", epochs=3)
    for name in ("metrics.csv", "weights.safetensors"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    begun = [row for row in whole.member_metrics if row["epoch"] >= 1]
    assert len(fitted.member_metrics) == len(begun)
    for row, expected in zip(fitted.member_metrics, begun, strict=True):
        lost = unknown and row["epoch"] == 1  # its beginning was not kept
        assert math.isnan(row["train_loss"]) if lost else row["train_loss"] == expected["train_loss"]
        assert {**row, "train_loss": 0} == {**expected, "train_loss": 0}


def test_snapshots_have_figures_once_they_are_taken_and_no_losses_of_their_own() -> None:
    torch.manual_seed(0)
    fitted = quick(SnapshotEnsemble(single(), 3), epochs=6, cycles=3)
    assert [(row["epoch"], row["member"]) for row in fitted.member_metrics] == [
        (epoch, m) for epoch in range(6) for m in range(epoch // 2 + 1)
    ]
    assert all(list(row) == ["epoch", "step", "member", *FIGURES] for row in fitted.member_metrics)
    check_last(fitted, 3)


def test_members_that_share_one_training_have_no_losses_of_their_own() -> None:
    torch.manual_seed(0)
    fitted = quick(MCDropout(single(), 4))
    assert all(list(row) == ["epoch", "step", "member", *FIGURES] for row in fitted.member_metrics)
    check_last(fitted, 4)


def test_exits_of_one_network_are_members() -> None:
    torch.manual_seed(0)
    ensemble = MultiExitResNet(DATA.shape, 8, depth=8, width=4, normalise=DATA.normalise())
    fitted = quick(ensemble, epochs=1)
    check_last(fitted, len(ensemble(DATA.test.batch([0])[0])))
    own = [row["train_loss"] for row in fitted.member_metrics]
    assert fitted.metrics[0]["train_loss"] == pytest.approx(sum(own) / len(own), rel=1e-6)
