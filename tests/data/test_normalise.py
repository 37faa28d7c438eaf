"""Moments against NumPy in float64 and scikit-learn; the layer's formula, broadcasting, tracing, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

from quorate.data import normalise
from quorate.data.normalise import Normalise, check_moments, moments

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(50, 3), (50, 3, 4), (50, 3, 4, 5), (1, 2, 2, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_moments(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: type) -> None:
    monkeypatch.setattr(normalise, "CHUNK", 7)  # several chunks and a rest
    x = RNG.integers(0, 256, shape).astype(dtype)
    x[0].flat[-1] = 3
    mean, std = moments(x)
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axes), rtol=1e-13)
    np.testing.assert_allclose(std, x.astype(np.float64).std(axes), rtol=1e-12)
    assert all(type(v) is float for v in (*mean, *std))


def test_features_as_scikit_learn_scales_them() -> None:
    x = np.float32([1, 10, 0.1, 1e-4]) * RNG.standard_normal((200, 4)).astype(np.float32) + np.float32([0, 1e4, 5, 0])
    x[:, 2] = 0.1  # constant, and not exact in binary
    mean, std = moments(x)
    scaler = StandardScaler().fit(x.astype(np.float64))
    np.testing.assert_allclose(mean, scaler.mean_, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(std, scaler.scale_, rtol=1e-9)
    assert std[2] == 1


def test_float_spread_survives_a_large_offset() -> None:
    # Σx² − (Σx)² would lose it in float32 and blur it in float64.
    x = (1e6 + np.arange(8) / 16).astype(np.float32)[:, None]
    assert moments(x)[1][0] == pytest.approx(np.arange(8).std() / 16, rel=1e-12)


@pytest.mark.parametrize("value", [0, 255])
def test_constant_bytes_have_std_one(value: int) -> None:
    x = np.full((9, 2, 3, 3), value, np.uint8)
    x[4, 1, 0, 0] = 7
    mean, std = moments(x)
    assert (mean[0], std[0]) == (value, 1.0)
    assert std[1] != 1


def test_bytes_are_exact_for_many_rows() -> None:
    x = np.zeros((70_000, 1), np.uint8)
    x[::2] = 255  # Σx² beyond uint32
    assert moments(x) == ((127.5,), (127.5,))


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_layer(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mean, std = (1.5, 100.0, -3.0), (0.5, 20.0, 7.0)
    layer = Normalise(mean, std, shape)
    x = torch.randint(0, 256, (6, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    out = layer(x)
    assert out.dtype is torch.float32
    for c in range(3):
        torch.testing.assert_close(out[:, c], (x[:, c].float() - mean[c]) / std[c])
    assert set(layer.state_dict()) == {"mean", "std"}
    assert not list(layer.parameters())
    other = Normalise((0.0,) * 3, (1.0,) * 3, shape)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), out)
    assert layer.double()(x).dtype is torch.float64
    assert repr(layer) == "Normalise(channels=3)"


def test_traces_inside_a_model_and_exports() -> None:
    model = nn.Sequential(Normalise((10.0,), (4.0,), (1, 8, 8)), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.randint(0, 17, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    assert {"0.mean", "0.std"} <= set(dict(traced.named_buffers()))
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize(
    ("mean", "std", "shape", "said"),
    [
        ((0.0,), (1.0, 1.0), (2, 4, 4), "2 channels .* got 1 and 2"),
        ((0.0,), (1.0,), (), r"shape must be that of one input, .* got \(\)"),
        ((math.nan,), (1.0,), (1,), "got mean nan, std 1.0 for channel 0"),
        ((0.0, 0.0), (1.0, 0.0), (2,), "std 0.0 for channel 1"),
        ((0.0,), (-1.0,), (1,), "positive"),
        ((0.0,), (1e-50,), (1,), "positive in float32"),
        ((1e39,), (1.0,), (1,), "mean must be finite"),
        ((0.0,), (math.inf,), (1,), "std finite"),
    ],
)
def test_refuses(mean: tuple, std: tuple, shape: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Normalise(mean, std, shape)
    assert "\n" not in str(caught.value)
    if shape:
        with pytest.raises(ValueError, match=said):
            check_moments(mean, std, shape[0])
