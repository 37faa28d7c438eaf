"""Trainings in which members have inputs of their own are the trainings of each member, in float64; what is kept and shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quorate.data import Augmentation, Data, arrays, digits
from quorate.ensemble import DeepEnsemble, OutputLayer, gaussian_loss
from quorate.models import MLP
from quorate.packed import pack, unpack
from quorate.training import Fitted, Loader, fit
from quorate.training.inputs import member_seed

DIGITS = digits()
AUGMENTED = Data.build("digits", *DIGITS.splits().values(), DIGITS.ood, DIGITS.classes, Augmentation(pad=2, flip=True, fill=3))
WHEN = ("epoch", "step", "lr")


def models(count: int, data: Data = AUGMENTED) -> list[nn.Module]:
    """Members with batch statistics in float64, the same at every call."""
    torch.manual_seed(0)
    return [nn.Sequential(data.normalise(), MLP(data.shape, data.width, (12,), norm=True)).double() for _ in range(count)]


def quick(ensemble: nn.Module, data: Data = AUGMENTED, **options: Any) -> Fitted:
    chosen = {"epochs": 2, "batch_size": 100, "lr": 0.1, "accelerator": "cpu", "progress": False, "tensorboard": False, **options}
    return fit(ensemble, data, **chosen)


def close(trained: nn.Module, alone: nn.Module) -> None:
    """The same parameters and batch statistics."""
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, rtol=1e-11, atol=1e-13)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"augment": False, "warmup_epochs": 0.5},
    "augmented": {"seed": 7, "label_smoothing": 0.1, "weight_decay": 1e-2},
    "mixup": {"seed": 2**32 - 2, "mixup": 0.4, "augment": False},
    "both": {"mixup": 0.4, "cutmix": 1.0, "optimizer": "adamw", "lr": 0.01},
    "ema": {"averaging": "ema", "ema_decay": 0.8},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_in_own_orders_it_is_a_training_of_each_member(name: str) -> None:
    options = {"seed": 4, **OPTIONS[name]}
    ensemble = DeepEnsemble(models(3))
    fitted = quick(ensemble, inputs="own_order", **options)
    seed = options.pop("seed")
    for m, model in enumerate(models(3)):
        alone = quick(DeepEnsemble([model]), seed=member_seed(seed, m), **options)
        close(ensemble.members[m], model)
        own = [row for row in fitted.member_metrics if row["member"] == m]
        for row, expected in zip(own, alone.metrics, strict=True):
            assert set(row) == {*expected, "member"} - {"lr"}
            assert all(row[key] == pytest.approx(expected[key], rel=1e-9) for key in set(expected) - {"lr"})


def test_the_mean_over_members_trains_each_at_a_share_of_the_rate() -> None:
    ensemble, plain = DeepEnsemble(models(3)), {"weight_decay": 0.0, "seed": 4}
    fitted = quick(ensemble, inputs="own_order", loss="mean", lr=0.3, **plain)
    for m, model in enumerate(models(3)):
        quick(DeepEnsemble([model]), **{**plain, "seed": member_seed(4, m)})
        close(ensemble.members[m], model)
    check_sums(fitted)


def test_of_swa_the_weights_are_those_of_each_member() -> None:
    options: dict[str, Any] = {"epochs": 3, "averaging": "swa", "swa_start": 1, "swa_lr": 0.05, "schedule": "constant"}
    ensemble = DeepEnsemble(models(2))
    quick(ensemble, inputs="own_order", seed=4, **options)
    for m, model in enumerate(models(2)):  # batch statistics are estimated in one order for all members
        quick(DeepEnsemble([model]), seed=member_seed(4, m), **options)
        for p, q in zip(ensemble.members[m].parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_a_regression_in_own_orders_is_a_training_of_each_member() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 3)).astype(np.float32)
    data = arrays((x, np.stack([50 + 9 * x[:, 0], x[:, 1] + draw.normal(size=200)], 1)), targets=["a", "b"], name="toy")
    options: dict[str, Any] = {"batch_size": 20, "optimizer": "adamw", "lr": 0.01, "mixup": 0.2}
    inside = DeepEnsemble(models(3, data))
    fitted = quick(OutputLayer(inside, data.output().double()), data, inputs="own_order", seed=4, **options)
    for m, model in enumerate(models(3, data)):
        single = DeepEnsemble([nn.Sequential(model, data.output().double())], "gaussian")
        alone = quick(single, data, seed=member_seed(4, m), **options)
        close(inside.members[m], model)
        row = fitted.member_metrics[3 + m]
        assert {"train_loss", "val_nll", "val_rmse"} < set(row)
        assert all(row[key] == pytest.approx(value, rel=1e-9) for key, value in alone.metrics[1].items() if key != "lr")
    check_sums(fitted)


def check_sums(fitted: Fitted, rel: float = 1e-12) -> None:
    """The training loss is the mean of the members'."""
    for row in fitted.metrics:
        own = [each["train_loss"] for each in fitted.member_metrics if each["epoch"] == row["epoch"]]
        assert row["train_loss"] == pytest.approx(np.mean(own), rel=rel)


def test_own_augmentations_of_one_order_train_each_member_on_its_own() -> None:
    ensemble = DeepEnsemble(models(3))
    fitted = quick(ensemble, inputs="own_augmentation", seed=5, momentum=0.0, weight_decay=0.0, schedule="constant")
    plain = models(3)
    loader = Loader(AUGMENTED.train, 100, 5, True, AUGMENTED.augmentation, "own_augmentation", 3)
    losses: list[list[float]] = [[], []]
    for epoch in range(2):
        for x, y in loader:
            for m, model in enumerate(plain):
                loss = functional.cross_entropy(model(x[m]), y)
                losses[epoch].append(float(loss.detach()))
                model.zero_grad()
                loss.backward()
                with torch.no_grad():
                    for p in model.parameters():
                        p -= 0.1 * p.grad
    for m, model in enumerate(plain):
        close(ensemble.members[m], model)
    for row in fitted.member_metrics:
        assert row["train_loss"] == pytest.approx(np.mean(losses[int(row["epoch"])][int(row["member"]) :: 3]), rel=1e-9)


@pytest.mark.parametrize("inputs", ["own_augmentation", "own_order"])
def test_member_0_sees_what_is_shared_and_the_others_something_else(inputs: str) -> None:
    own, shared = DeepEnsemble(models(2)), DeepEnsemble(models(2))
    quick(own, inputs=inputs)
    quick(shared)
    close(own.members[0], shared.members[0])
    assert not torch.allclose(own.members[1][1].layers.head.weight, shared.members[1][1].layers.head.weight, rtol=1e-3)


def test_targets_go_with_each_members_rows() -> None:
    """A member that saw another one's targets could not learn."""
    ensemble = DeepEnsemble(models(3))
    fitted = quick(ensemble, epochs=10, batch_size=32, inputs="own_order", augment=False)
    assert all(row["val_accuracy"] > 0.85 for row in fitted.member_metrics if row["epoch"] == 9)


def test_other_inputs_are_another_run_and_the_default_is_no_part_of_it(tmp_path: Path) -> None:
    fitted = quick(DeepEnsemble(models(2)), run=tmp_path / "r")
    assert "inputs" not in fitted.facts["identity"]["settings"]
    with pytest.raises(ValueError, match=r"holds another run \(settings\.inputs: None there, 'own_order' now\)"):
        quick(DeepEnsemble(models(2)), run=tmp_path / "r", inputs="own_order")


def test_it_trains_in_mixed_precision() -> None:
    ensemble = DeepEnsemble(models(2)).float()
    low: list[torch.dtype] = []
    ensemble.members[1].register_forward_hook(lambda module, _, out: low.append(out.dtype) if module.training else None)
    fitted = quick(ensemble, inputs="own_order", precision="bf16-mixed", mixup=0.3)
    assert set(low) == {torch.bfloat16}
    assert fitted.metrics[1]["train_loss"] < fitted.metrics[0]["train_loss"]
    check_sums(fitted, 1e-6)


def test_a_gaussian_ensembles_losses_are_those_of_its_members() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    x = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    data = arrays((x, x[:, :1]), targets=["a"], name="toy")
    ensemble = DeepEnsemble([nn.Sequential(model, data.output().double()) for model in models(2, data)], "gaussian")
    ensemble.register_forward_hook(lambda module, args, out: seen.append((args[0], out.detach())) if module.training else None)
    fitted = quick(ensemble, data, epochs=1, batch_size=20)
    targets = [y for _, y in Loader(data.train, 20, 0, True)]
    for m in range(2):
        expected = [float(gaussian_loss(out[m : m + 1], y)) for (_, out), y in zip(seen, targets, strict=True)]
        assert fitted.member_metrics[m]["train_loss"] == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.mark.parametrize("inputs", ["shared", "own_order"])
def test_a_packed_ensemble_is_trained_as_its_members(inputs: str) -> None:
    single = nn.Sequential(AUGMENTED.normalise(), MLP(AUGMENTED.shape, AUGMENTED.width, (12,), norm=True))
    packed = pack(single, members=3, alpha=3, example=AUGMENTED.train.batch([0, 1])[0]).double()
    plain = [unpack(packed, m) for m in range(3)]
    fitted = quick(packed, inputs=inputs, seed=4)
    for m, model in enumerate(plain):
        alone = quick(DeepEnsemble([model]), seed=4 if inputs == "shared" else member_seed(4, m))
        close(unpack(packed, m), model)
        rows = [row["train_loss"] for row in fitted.member_metrics if row["member"] == m]
        assert rows == pytest.approx([row["train_loss"] for row in alone.metrics], rel=1e-9)
