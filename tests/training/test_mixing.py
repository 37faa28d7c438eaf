"""mixup and CutMix against their formulas and distributions; what they refuse; that a training uses them and the seed decides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, kstest
from torch import Tensor, nn
from torch.nn import functional

from quorate.data import Data, Split, digits
from quorate.ensemble import DeepEnsemble, member_loss
from quorate.models import MLP
from quorate.training import Fitted, Settings, fit
from quorate.training.mixing import Mix, check_mixing, cut, draw, mix

DATA = digits()


def pixels(rows: int = 6, dtype: torch.dtype = torch.uint8) -> Tensor:
    values = torch.randint(0, 256, (rows, 2, 5, 7), generator=torch.Generator().manual_seed(0))
    return values.to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mixup_is_the_convex_combination(dtype: torch.dtype) -> None:
    x, y = pixels(dtype=dtype), torch.tensor([0, 1, 2, 0, 1, 2])
    order = np.array([3, 0, 1, 2, 5, 4])
    before = x.clone()
    mixed, parts = mix(x, y, Mix(0.3, order))
    assert mixed.dtype == torch.float32
    expected = 0.3 * x.double() + 0.7 * x[order].double()
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-6, atol=1e-4)
    assert [share for share, _ in parts] == [0.3, 0.7]
    assert torch.equal(parts[0][1], y)
    assert torch.equal(parts[1][1], y[order])
    assert torch.equal(x, before)


def test_cutmix_pastes_a_box() -> None:
    x, y = pixels(), torch.arange(6)
    order = np.array([1, 2, 3, 4, 5, 0])
    mixed, parts = mix(x, y, Mix(0.6, order, (slice(1, 4), slice(0, 2))))
    assert mixed.dtype == torch.uint8
    inside = torch.zeros(5, 7, dtype=torch.bool)
    inside[1:4, 0:2] = True
    assert torch.equal(mixed[:, :, inside], x[order][:, :, inside])
    assert torch.equal(mixed[:, :, ~inside], x[:, :, ~inside])
    assert parts[1][0] == pytest.approx(0.4)


def test_without_mixing_nothing_is_touched() -> None:
    x, y = pixels(), torch.arange(6)
    mixed, parts = mix(x, y, None)
    assert mixed is x
    assert parts == [(1.0, y)]
    assert draw(Settings(), 3, (6, 2, 5, 7)) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_classes_is_that_of_the_mixed_one_hot_targets(smoothing: float) -> None:
    logits = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, order = torch.tensor([0, 1, 2, 3, 1, 2]), np.array([3, 0, 1, 2, 5, 4])
    _, parts = mix(pixels(), y, Mix(0.35, order))
    loss = sum(share * member_loss(logits, targets, smoothing) for share, targets in parts)
    hot = 0.35 * functional.one_hot(y, 4).double() + 0.65 * functional.one_hot(y[order], 4).double()
    hot = (1 - smoothing) * hot + smoothing / 4
    expected = sum(-(hot * member.log_softmax(-1)).sum(-1).mean() for member in logits)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_targets_of_a_regression_are_mixed_themselves() -> None:
    y, order = torch.randn(6, 2, generator=torch.Generator().manual_seed(2)), np.array([5, 4, 3, 2, 1, 0])
    _, parts = mix(torch.randn(6, 3), y, Mix(0.25, order))
    assert len(parts) == 1
    assert parts[0][0] == 1.0
    torch.testing.assert_close(parts[0][1], 0.25 * y + 0.75 * y.flip(0))


@given(
    st.floats(0, 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)
)
def test_the_box_is_inside_and_the_share_is_what_is_outside(
    share: float, height: int, width: int, down: float, right: float
) -> None:
    centre = (int(down * height), int(right * width))
    outside, box = cut(share, centre, (height, width))
    image = np.zeros((height, width))
    image[box] = 1
    assert outside == pytest.approx(1 - image.mean(), abs=1e-12)
    assert outside >= share - 1e-9  # cut and rounded down, never larger than asked
    for side, length in zip(box, (height, width), strict=True):
        assert 0 <= side.start <= side.stop <= length


def test_an_uncut_box_has_the_share_asked_for() -> None:
    outside, box = cut(0.75, (10, 20), (20, 40))  # half the height, half the width
    assert (box, outside) == ((slice(5, 15), slice(10, 30)), 0.75)
    assert cut(1.0, (3, 3), (8, 8)) == (1.0, (slice(3, 3), slice(3, 3)))
    assert cut(0.0, (0, 0), (8, 8)) == (1 - 16 / 64, (slice(0, 4), slice(0, 4)))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    mixes = [draw(Settings(mixup=alpha, seed=4), step, (6, 3)) for step in range(1500)]
    shares = [each.share for each in mixes if each is not None]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 0.01
    assert all(each is not None and each.box is None and sorted(each.order) == list(range(6)) for each in mixes)
    first = np.mean([each.order[0] for each in mixes if each is not None])
    assert first == pytest.approx(2.5, abs=5 * math.sqrt(35 / 12 / 1500))


def test_boxes_are_anywhere_and_both_kinds_take_turns() -> None:
    settings = Settings(mixup=0.4, cutmix=1.0)
    mixes = [each for step in range(1000) if (each := draw(settings, step, (4, 3, 16, 24))) is not None]
    boxed = [each for each in mixes if each.box is not None]
    assert len(boxed) / 1000 == pytest.approx(0.5, abs=0.08)
    covered = np.zeros((16, 24))
    for each in boxed:
        assert each.box is not None
        covered[each.box] += 1
    assert covered.min() > 0.2 * covered.max()
    alone = [draw(Settings(cutmix=1.0), step, (4, 3, 16, 24)) for step in range(50)]
    assert all(each is not None and each.box is not None for each in alone)


def test_draws_are_a_function_of_seed_and_step() -> None:
    def drawn(seed: int, step: int) -> tuple[float, list[int]]:
        one = draw(Settings(mixup=1.0, seed=seed), step, (16, 3))
        assert one is not None
        return one.share, one.order.tolist()

    assert drawn(3, 7) == drawn(3, 7)
    assert len({drawn(3, 7)[0], drawn(3, 8)[0], drawn(4, 7)[0]}) == 3


def regression() -> Data:
    rng = np.random.default_rng(0)
    parts = []
    for k in range(4):
        x = rng.normal(size=(40, 1, 4, 4)).astype(np.float32)
        parts.append(Split(x, x.mean((1, 2, 3))[:, None].astype(np.float32), 40 * k + np.arange(40)))
    return Data.build("plane", *parts, {}, (), targets=["mean"])


def test_what_is_refused() -> None:
    check_mixing(Settings(mixup=1.0), regression())
    with pytest.raises(ValueError, match=r"cutmix=1\.0 is for classes, plane is a regression: set cutmix=0, or use mixup"):
        check_mixing(Settings(cutmix=1.0), regression())
    rows = [Split(np.ones((4, 3), np.float32) * k, np.array([0, 1, 0, 1]), 4 * k + np.arange(4)) for k in range(4)]
    table = Data.build("table", *rows, {}, ("a", "b"))
    with pytest.raises(ValueError, match=r"cutmix=0\.5 needs images \(C, H, W\), table has inputs of shape \(3,\)"):
        quick(DeepEnsemble([MLP((3,), 2, ())]), table, cutmix=0.5)


def quick(ensemble: nn.Module, data: Data = DATA, **options: Any) -> Fitted:
    chosen = {"epochs": 1, "batch_size": 100, "lr": 0.1, "accelerator": "cpu", "progress": False, **options}
    return fit(ensemble, data, **chosen)


def deep() -> DeepEnsemble:
    torch.manual_seed(0)
    return DeepEnsemble(nn.Sequential(DATA.normalise(), MLP(DATA.shape, 8, (16,))) for _ in range(2))


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_a_training_mixes_as_the_seed_says(options: dict[str, Any]) -> None:
    def bits(**more: Any) -> bytes:
        return quick(deep(), **more).outputs["test"].values[1].tobytes()

    assert bits(**options) == bits(**options)
    assert bits(**options) != bits()
    assert bits(**options, seed=1) != bits(**options)


def test_all_members_see_the_mixed_batch_and_its_loss() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    ensemble = deep()
    ensemble.register_forward_hook(lambda m, args, out: seen.append((args[0], out.detach())) if m.training else None)
    fitted = quick(ensemble, mixup=0.7, seed=5, lr=1e-4, augment=False)
    losses = []
    order = np.random.default_rng([5, 0]).permutation(len(DATA.train))
    for step, (x, logits) in enumerate(seen):
        raw, y = DATA.train.batch(order[100 * step : 100 * (step + 1)])
        mixed, parts = mix(raw, y, draw(Settings(mixup=0.7, seed=5), step, tuple(raw.shape)))
        assert torch.equal(x, mixed)
        losses.append(sum(share * float(member_loss(logits.double(), t)) for share, t in parts) / 2)
    assert fitted.metrics[0]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_regression_trains_with_mixup() -> None:
    data = regression()
    torch.manual_seed(0)
    model = nn.Sequential(data.normalise(), MLP(data.shape, data.width, (16,)), data.output())
    fitted = quick(DeepEnsemble([model], kind="gaussian"), data, mixup=0.2, epochs=20, batch_size=20, lr=0.05)
    assert fitted.metrics[-1]["val_rmse"] < 0.5 * fitted.metrics[0]["val_rmse"]
