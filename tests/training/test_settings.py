"""Settings: every error, optimisers against their own formulas, learning rates against closed forms."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quorate.training import Settings
from quorate.training.settings import LATER, cycle_steps, lr_factor, make_optimizer


def test_numpy_numbers_and_lists_become_plain_values() -> None:
    settings = Settings.of(
        {"epochs": np.int64(7), "lr": np.float32(0.5), "weight_decay": 0, "schedule": "step", "milestones": [2, 5]}
    )
    assert (settings.epochs, settings.lr, settings.weight_decay, settings.milestones) == (7, 0.5, 0.0, (2, 5))
    assert {type(value) for value in asdict(settings).values()} == {int, float, bool, str, tuple}
    with pytest.raises(FrozenInstanceError):
        settings.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs=0: expected at least 1"),
        ({"epochs": 2.5}, "epochs=2.5: expected an integer"),
        ({"epochs": True}, "epochs=True: expected an integer"),
        ({"batch_size": -3}, "batch_size=-3: expected at least 1"),
        ({"batch_size": "8"}, "batch_size='8': expected an integer"),
        ({"optimizer": "adam"}, "optimizer='adam': expected one of sgd, adamw"),
        ({"optimizer": None}, "optimizer=None: expected text"),
        ({"lr": 0}, "lr=0.0: expected a finite number > 0"),
        ({"lr": math.inf}, "lr=inf: expected a finite number > 0"),
        ({"lr": math.nan}, "lr=nan: expected a finite number > 0"),
        ({"lr": "0.1"}, "lr='0.1': expected a number"),
        ({"lr": False}, "lr=False: expected a number"),
        ({"momentum": 1.0}, "momentum=1.0: expected 0 ≤ momentum < 1"),
        ({"momentum": -0.1}, "momentum=-0.1: expected"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov=True: expected False, or optimizer='sgd' with a momentum > 0"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov=True: expected False"),
        ({"nesterov": 1}, "nesterov=1: expected True or False"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001: expected a finite number ≥ 0"),
        ({"weight_decay": math.inf}, "weight_decay=inf: expected"),
        ({"schedule": "linear"}, "schedule='linear': expected one of cosine, step, constant"),
        ({"schedule": "step"}, r"milestones=\(\): expected rising epochs in 1 … 19"),
        ({"schedule": "step", "milestones": (0, 3)}, r"milestones=\(0, 3\): expected rising"),
        ({"schedule": "step", "milestones": (5, 3)}, r"milestones=\(5, 3\): expected rising"),
        ({"schedule": "step", "milestones": (3, 20)}, r"milestones=\(3, 20\): expected rising"),
        ({"schedule": "step", "milestones": 3}, "milestones=3: expected a sequence of integers"),
        ({"schedule": "step", "milestones": (2.5,)}, "milestones=2.5: expected an integer"),
        ({"milestones": (3,)}, r"milestones=\(3,\): expected none for schedule='cosine', only 'step' has them"),
        ({"decay": 0.0}, "decay=0.0: expected 0 < decay ≤ 1"),
        ({"decay": 1.5}, "decay=1.5: expected"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1.0: expected 0 … below epochs=20"),
        ({"warmup_epochs": 20}, "warmup_epochs=20.0: expected 0 … below epochs=20"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0: expected 0 ≤ label_smoothing < 1"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1: expected"),
        ({"loss": "max"}, "loss='max': expected one of sum, mean"),
        ({"augment": "yes"}, "augment='yes': expected True or False"),
        ({"seed": -1}, "seed=-1: expected an integer in 0 … 2³² − 1"),
        ({"seed": 2**32}, "seed=4294967296: expected"),
        ({"accelerator": 0}, "accelerator=0: expected text"),
        ({"precision": "8"}, "precision='8': expected one of 32-true, 16-mixed, bf16-mixed"),
        ({"checkpoint_seconds": 0}, "checkpoint_seconds=0.0: expected seconds > 0"),
        ({"cycles": 0}, "cycles=0: expected at least 1, a divisor of epochs=20"),
        ({"cycles": 3}, "cycles=3: expected at least 1, a divisor of epochs=20"),
        ({"cycles": 2, "schedule": "constant"}, "cycles=2: expected 1, or schedule='cosine' without averaging='swa'"),
        ({"cycles": 2, "averaging": "swa", "swa_start": 3, "swa_lr": 0.1}, "cycles=2: expected 1, or schedule='cosine'"),
        ({"cycles": 4, "warmup_epochs": 5}, "warmup_epochs=5.0: expected below 5, the epochs of the first cycle"),
        ({"mixup": -0.1}, "mixup=-0.1: expected α of a Beta distribution, finite and > 0, or 0 for none"),
        ({"cutmix": math.inf}, "cutmix=inf: expected α"),
        ({"averaging": "polyak"}, "averaging='polyak': expected one of none, ema, swa"),
        ({"ema_decay": 0.9}, "^ema_decay=0.9 is for averaging='ema': set that too$"),
        ({"averaging": "ema", "ema_decay": 1.0}, "ema_decay=1.0: expected 0 ≤ ema_decay < 1"),
        ({"averaging": "ema", "ema_decay": -0.1}, "ema_decay=-0.1: expected 0 ≤"),
        ({"swa_start": 3}, "^swa_start=3 is for averaging='swa': set that too$"),
        ({"averaging": "ema", "swa_lr": 0.1}, "^swa_lr=0.1 is for averaging='swa': set that too$"),
        (
            {"averaging": "swa"},
            "^averaging='swa' needs swa_start, the epochs before it, in 1 … 19, and swa_lr, a finite rate > 0: "
            "got swa_start=0, swa_lr=0.0$",
        ),
        ({"averaging": "swa", "swa_lr": 0.1}, "in 1 … 19, .*: got swa_start=0, swa_lr=0.1"),
        ({"averaging": "swa", "swa_start": 20, "swa_lr": 0.1}, "in 1 … 19, .*: got swa_start=20, swa_lr=0.1"),
        ({"averaging": "swa", "swa_start": 9}, "a finite rate > 0: got swa_start=9, swa_lr=0.0"),
        ({"averaging": "swa", "swa_start": 9, "swa_lr": math.nan}, "a finite rate > 0: got swa_start=9, swa_lr=nan"),
        (
            {"averaging": "swa", "swa_start": 9, "swa_lr": 0.1, "warmup_epochs": 9.5},
            "swa_start=9: expected at least 9.5, where warm-up and milestones are over",
        ),
        (
            {"averaging": "swa", "swa_start": 9, "swa_lr": 0.1, "schedule": "step", "milestones": (4, 12)},
            "swa_start=9: expected at least 12",
        ),
        ({"ephocs": 3}, r"unknown setting 'ephocs'; did you mean 'epochs'\? \(known: epochs, batch_size"),
        ({"zzz": 3}, r"unknown setting 'zzz' \(known: "),
    ],
)
def test_every_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        Settings.of(values)
    assert "\n" not in str(refusal.value)


def test_optimisers_take_a_step_as_their_formulas_say() -> None:
    def step(settings: Settings) -> list[float]:
        weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        optimizer = make_optimizer([weight], settings)
        values = []
        for _ in range(2):
            optimizer.zero_grad()
            (weight * 3.0).sum().backward()
            optimizer.step()
            values.append(float(weight.detach()))
        return values

    def sgd(nesterov: bool) -> list[float]:  # v ← μv + g + λw;  w ← w − η(g + λw + μv) with Nesterov, else w − ηv
        w, v, values = 2.0, 0.0, []
        for _ in range(2):
            g = 3.0 + 0.1 * w
            v = 0.8 * v + g
            w -= 0.5 * (g + 0.8 * v if nesterov else v)
            values.append(w)
        return values

    def adamw() -> list[float]:  # Loshchilov & Hutter 2019, algorithm 2: decoupled decay; a constant gradient gives m̂/√v̂ = 1
        w, values = 2.0, []
        for _ in range(2):
            w = w * (1 - 0.5 * 0.1) - 0.5 * 3.0 / (3.0 + 1e-8)
            values.append(w)
        return values

    options: dict[str, Any] = {"lr": 0.5, "momentum": 0.8, "weight_decay": 0.1}
    assert step(Settings(**options)) == pytest.approx(sgd(False), rel=1e-12)
    assert step(Settings(**options, nesterov=True)) == pytest.approx(sgd(True), rel=1e-12)
    assert step(Settings(**options, optimizer="adamw")) == pytest.approx(adamw(), rel=1e-9)


@given(st.integers(1, 30), st.integers(1, 12), st.floats(0, 0.99))
def test_cosine_after_a_linear_warm_up(epochs: int, per_epoch: int, share: float) -> None:
    settings = Settings(epochs=epochs, warmup_epochs=share * epochs)
    factor = lr_factor(settings, per_epoch)
    total, warm = epochs * per_epoch, round(share * epochs * per_epoch)
    rising = [factor(t) for t in range(min(warm, total))]
    assert rising == pytest.approx([(t + 1) / (warm + 1) for t in range(min(warm, total))])
    for t in range(warm, total):
        assert factor(t) == pytest.approx(math.cos(math.pi / 2 * (t - warm) / (total - warm)) ** 2, abs=1e-12)
    if warm < total:
        assert factor(warm) == 1.0
        assert factor(total) == pytest.approx(0.0, abs=1e-12)


def test_steps_fall_at_their_milestones_and_constant_stays() -> None:
    settings = Settings(epochs=6, schedule="step", milestones=(2, 5), decay=0.2, warmup_epochs=0.5)
    factors = [lr_factor(settings, 4)(t) for t in range(24)]
    assert factors == pytest.approx([1 / 3, 2 / 3] + [1.0] * 6 + [0.2] * 12 + [0.04] * 4)
    constant = lr_factor(Settings(epochs=3, schedule="constant", warmup_epochs=1), 2)
    assert [constant(t) for t in range(7)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1])


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.floats(0, 0.9))
def test_cosine_cycles_start_again_from_the_peak(cycles: int, each: int, per_epoch: int, share: float) -> None:
    settings = Settings(epochs=cycles * each, cycles=cycles, warmup_epochs=share * each)
    factor, period = lr_factor(settings, per_epoch), each * per_epoch
    assert cycle_steps(settings, per_epoch) == period
    warm = round(share * each * per_epoch)
    for t in range(cycles * period):  # Huang et al. 2017, eq. 2, with t − 1 of theirs
        expected = 0.5 * (math.cos(math.pi * (t % period) / period) + 1)
        if t < warm:
            expected = (t + 1) / (warm + 1)
        elif t < period:
            expected = 0.5 * (math.cos(math.pi * (t - warm) / (period - warm)) + 1)
        assert factor(t) == pytest.approx(expected, abs=1e-12)
    if warm < period:
        assert factor(cycles * period) == pytest.approx(0.0, abs=1e-12)  # no restart after the end


def test_swa_has_its_constant_rate_from_its_start() -> None:
    swa: dict[str, Any] = {"averaging": "swa", "swa_start": 3, "swa_lr": 0.02}
    for more in ({}, {"schedule": "step", "milestones": (2,)}, {"schedule": "constant"}, {"warmup_epochs": 1.5}):
        options: dict[str, Any] = {"epochs": 5, "lr": 0.1, **more}
        plain, averaged = (lr_factor(Settings(**options, **each), 4) for each in ({}, swa))
        assert [averaged(t) for t in range(12)] == [plain(t) for t in range(12)]
        assert [averaged(t) * 0.1 for t in range(12, 21)] == pytest.approx([0.02] * 9)


def test_what_decides_a_run_leaves_out_what_is_off() -> None:
    assert set(asdict(Settings())) - set(Settings().deciding()) == {"checkpoint_seconds", *LATER}
    changed = Settings(mixup=0.2, averaging="ema", cycles=4, checkpoint_seconds=3)
    assert {name: changed.deciding()[name] for name in LATER if name in changed.deciding()} == {
        "mixup": 0.2,
        "averaging": "ema",
        "cycles": 4,
    }
