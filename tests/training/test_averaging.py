"""EMA against its recursion in float64, SWA against the mean of checkpoints and PyTorch's statistics; what is validated and kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from quorate.data import digits
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP
from quorate.training import Fitted, Loader, Settings, fit
from quorate.training.averaging import Averaging, estimate_statistics_

DATA = digits()  # 650 rows: 6 steps of 100


def deep(dropout: float = 0.0, norm: bool = True) -> DeepEnsemble:
    torch.manual_seed(0)
    return DeepEnsemble(nn.Sequential(DATA.normalise(), MLP(DATA.shape, 8, (16,), dropout=dropout, norm=norm)) for _ in range(2))


def quick(ensemble: nn.Module, run: Path | None = None, **options: Any) -> Fitted:
    chosen = {"epochs": 3, "batch_size": 100, "lr": 0.1, "accelerator": "cpu", "progress": False, "tensorboard": False, **options}
    return fit(ensemble, DATA, run=run, **chosen)


def weights(ensemble: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().double().clone() for name, p in ensemble.named_parameters()}


def loader() -> Loader:
    return Loader(DATA.train, 100, 3, True)


class Odd(nn.Module):
    """A constant table of integers, a mask, a scale that changes, and two places for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("table", torch.tensor([5, 7, 1000]))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.other(self.one(x)))[None]


def test_ema_follows_its_recursion() -> None:
    trained, decay = Odd(), 0.9
    averaging = Averaging(trained, Settings(averaging="ema", ema_decay=decay), loader())
    assert not averaging.begun
    names = [*dict(trained.named_parameters()), "norm.running_mean", "norm.running_var", "scale"]
    expected: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 40):
        with torch.no_grad():
            for name, tensor in trained.state_dict().items():
                if name in names:
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
            trained.norm.num_batches_tracked += 1
        averaging.after_step_(trained, step)
        now = {name: trained.state_dict()[name].double() for name in names}
        expected = {n: decay * expected[n] + (1 - decay) * now[n] for n in names} if expected else now
    held = averaging.ensemble.state_dict()
    for name in names:
        torch.testing.assert_close(held[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    assert held["table"].tolist() == [5, 7, 1000]  # an average in integers would lose 1 at every step
    assert held["mask"].tolist() == [True, False]
    assert int(held["norm.num_batches_tracked"]) == 39
    assert averaging.ensemble.one.weight is averaging.ensemble.other.weight
    assert int(averaging.count) == 39


def test_swa_is_the_mean_of_what_ends_the_epochs() -> None:
    trained = deep(norm=False)
    averaging = Averaging(trained, Settings(averaging="swa", swa_start=2, swa_lr=0.1, epochs=5), loader())
    generator, ends = torch.Generator().manual_seed(0), []
    for step in range(1, 31):
        with torch.no_grad():
            for p in trained.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        if step in (12, 18, 24, 30):  # after epochs 2, 3, 4 and 5
            ends.append(weights(trained))
        averaging.after_step_(trained, step)
        assert averaging.begun == (step >= 12)
    for name, p in averaging.ensemble.named_parameters():
        torch.testing.assert_close(p.double(), torch.stack([end[name] for end in ends]).mean(0), rtol=1e-5, atol=1e-6)


def test_the_average_is_a_copy_that_is_not_trained() -> None:
    trained = deep()
    averaging = Averaging(trained, Settings(averaging="ema"), loader())
    assert all(not p.requires_grad for p in averaging.parameters())
    assert all(p.requires_grad for p in trained.parameters())
    assert not {p.data_ptr() for p in trained.parameters()} & {p.data_ptr() for p in averaging.parameters()}


def test_statistics_are_pytorchs_and_only_batch_norm_is_in_train_mode() -> None:
    ensemble, twin = deep(), deep()
    batches = [x for x, _ in loader()]
    estimate_statistics_(ensemble.eval(), iter(batches))
    update_bn(batches, twin)
    for name, tensor in twin.state_dict().items():
        assert torch.equal(tensor, ensemble.state_dict()[name])
    assert not any(m.training for m in ensemble.modules())
    assert ensemble.members[0][1].layers.norm1.momentum == 0.1
    dropped = deep(dropout=0.5).train()
    estimate_statistics_(dropped, iter(batches))
    assert torch.equal(dropped.members[0][1].layers.norm1.running_mean, twin.members[0][1].layers.norm1.running_mean)
    assert all(m.training for m in dropped.modules())
    estimate_statistics_(deep(norm=False), iter([torch.full((1, 99), torch.nan)]))  # nothing to estimate, nothing run


def test_ema_of_a_training() -> None:
    seen: list[dict[str, Tensor]] = []
    ensemble = deep(dropout=0.2)
    ensemble.register_forward_hook(lambda m, *_: seen.append(weights(ensemble)) if m.training else None)
    fitted = quick(ensemble, averaging="ema", ema_decay=0.8)
    plain = deep(dropout=0.2)
    quick(plain)  # its weights go the same way
    trajectory = [*seen[1:], weights(plain)]  # after steps 1 … 18
    assert len(trajectory) == 18
    expected = trajectory[0]
    for now in trajectory[1:]:
        expected = {name: 0.8 * expected[name] + 0.2 * now[name] for name in expected}
    for name, value in weights(fitted.ensemble).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    check_rows_are_the_averages(fitted)


def test_swa_of_a_training() -> None:
    constant: dict[str, Any] = {"schedule": "constant", "lr": 0.05}
    ensemble = deep(dropout=0.2)
    fitted = quick(ensemble, epochs=5, averaging="swa", swa_start=2, swa_lr=0.05, **constant)
    ends = []
    for epochs in (2, 3, 4, 5):  # at a constant rate a shorter training is the beginning of a longer one
        plain = deep(dropout=0.2)
        quick(plain, epochs=epochs, **constant)
        ends.append(weights(plain))
    for name, value in weights(fitted.ensemble).items():
        torch.testing.assert_close(value, torch.stack([end[name] for end in ends]).mean(0), rtol=1e-5, atol=1e-6)
    check_rows_are_the_averages(fitted)
    twin = copy.deepcopy(ensemble)
    update_bn([x for x, _ in Loader(DATA.train, 100, 0, True)], twin.eval())  # in eval mode: it sets the mode itself
    statistics = [m.running_var for m in twin.modules() if isinstance(m, nn.BatchNorm1d)]
    ours = [m.running_var for m in ensemble.modules() if isinstance(m, nn.BatchNorm1d)]
    for a, b in zip(ours, statistics, strict=True):
        assert torch.equal(a, b)  # the first layer's inputs know no dropout


def check_rows_are_the_averages(fitted: Fitted) -> None:
    """The last row of metrics is that of the weights that were kept."""
    validation, row = fitted.outputs["validation"], fitted.metrics[-1]
    assert row["val_accuracy"] == pytest.approx(float((~validation.errors()).mean()), abs=1e-9)
    picked = validation.probs()[np.arange(len(validation)), validation.truth()]
    assert row["val_nll"] == pytest.approx(float(-np.log(picked).mean()), rel=1e-5)


def test_rows_before_the_average_are_those_of_the_training() -> None:
    with_swa = quick(deep(), epochs=4, averaging="swa", swa_start=3, swa_lr=0.02)
    plain = quick(deep(), epochs=4)
    assert with_swa.metrics[:2] == plain.metrics[:2]
    assert with_swa.metrics[2]["val_nll"] != plain.metrics[2]["val_nll"]  # same weights, other statistics
    assert with_swa.metrics[2]["train_loss"] == plain.metrics[2]["train_loss"]
    assert [row["lr"] for row in with_swa.metrics[2:]] == pytest.approx([0.02, 0.02])


def test_the_average_is_what_a_folder_keeps(tmp_path: Path) -> None:
    fitted = quick(deep(), tmp_path / "r", averaging="ema", ema_decay=0.9)
    again = quick(deep(), tmp_path / "r", averaging="ema", ema_decay=0.9)
    for name, tensor in fitted.ensemble.state_dict().items():
        assert torch.equal(tensor, again.ensemble.state_dict()[name])
    assert not any(name.startswith("averaging") for name in fitted.ensemble.state_dict())
    assert fitted.facts["parameters"] == quick(deep(), epochs=1).facts["parameters"]
    with pytest.raises(
        ValueError, match=r"settings\.averaging: 'ema' there, None now, settings\.ema_decay: 0\.9 there, None now"
    ):
        quick(deep(), tmp_path / "r")


def test_runs_made_before_there_were_such_settings_go_on(tmp_path: Path) -> None:
    fitted = quick(deep(), tmp_path / "r")
    known = {"epochs", "batch_size", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule", "milestones", "decay"}
    known |= {"warmup_epochs", "label_smoothing", "loss", "augment", "channels_last", "seed", "accelerator", "precision"}
    assert set(fitted.facts["identity"]["settings"]) == known
    with pytest.raises(ValueError, match=r"holds another run \(settings\.mixup: None there, 0\.5 now\)"):
        quick(deep(), tmp_path / "r", mixup=0.5)
