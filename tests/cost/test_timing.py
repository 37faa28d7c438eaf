"""Latency: what is called how often, under which settings, and what is said about it."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from quorate import cost
from quorate.cost import timing


@pytest.mark.parametrize(("repeats", "warmup"), [(1, 0), (7, 3)])
def test_calls_and_settings(repeats, warmup):
    seen = []

    def call(*args):
        seen.append((args, torch.is_inference_mode_enabled(), torch.get_num_threads()))

    before = torch.get_num_threads()
    x = torch.zeros(1)
    result = cost.latency(call, x, "other", repeats=repeats, warmup=warmup, threads=before + 1)
    assert seen == [((x, "other"), True, before + 1)] * (repeats + warmup)
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()
    assert (result.repeats, result.warmup, result.threads, result.device) == (repeats, warmup, before + 1, "cpu")
    assert 0 <= result.p10_ms <= result.median_ms <= result.p90_ms


def test_defaults():
    calls = []
    result = cost.latency(lambda: calls.append(None))
    assert (result.repeats, result.warmup, len(calls)) == (50, 10, 60)
    assert result.threads == torch.get_num_threads()
    assert result.device == "unknown"


def test_quantiles_in_milliseconds_without_the_warmup(monkeypatch):
    seconds = iter(np.cumsum([0, 0.001, 0, 0.002, 0, 0.004, 0, 0.008, 0, 0.016]))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(seconds))
    result = cost.latency(lambda: None, repeats=5, warmup=4)
    expected = np.percentile([1, 2, 4, 8, 16], [10, 50, 90])
    np.testing.assert_allclose([result.p10_ms, result.median_ms, result.p90_ms], expected, rtol=1e-9)


def test_measures_time():
    assert 5 <= cost.latency(lambda: time.sleep(0.005), repeats=3, warmup=0).median_ms < 500


def test_settings_return_after_a_failure():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        cost.latency(lambda: 1 / 0, threads=before + 1)
    assert torch.get_num_threads() == before


def test_device_of_arguments_and_of_a_module():
    model = nn.Linear(3, 3, device="meta").eval()
    assert cost.latency(model, torch.zeros(1, 3, device="meta"), repeats=1, warmup=0).device == "meta"
    nested = ({"x": [torch.zeros(1)]},)
    assert cost.latency(lambda _: None, nested, repeats=1).device == "cpu"
    assert cost.latency(lambda *_: None, nested, torch.zeros(1, device="meta"), repeats=1).device == "cpu+meta"
    norm = nn.BatchNorm1d(3, affine=False).eval()
    assert cost.latency(lambda: None, repeats=1).device == "unknown"
    assert cost.latency(lambda *_: norm, repeats=1).device == "unknown"


def test_waits_for_accelerators(monkeypatch):
    waits, order = [], []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: (waits.append(device), order.append("wait")))
    wait = timing._waiter({torch.device("cuda:1"), torch.device("cpu"), torch.device("meta")})
    wait()
    assert waits == [torch.device("cuda:1")]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("cuda"))
    wait()
    assert order == ["wait", "wait"]
    timing._waiter({torch.device("cpu")})()
    assert order == ["wait", "wait", "cuda"]
    order.clear()
    cost.latency(lambda: order.append("call"), repeats=2, warmup=1)
    assert order == ["call", "cuda", "call", "cuda", "cuda", "call", "cuda"]


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_on_an_accelerator():
    device = torch.accelerator.current_accelerator()
    model, x = nn.Linear(8, 8).to(device).eval(), torch.zeros(4, 8, device=device)
    result = cost.latency(model, x, repeats=3)
    assert result.device == str(x.device)
    assert result.median_ms > 0
    assert cost.macs(model, x) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "repeats: expected an int of at least 1, got 0; pass"),
        ({"repeats": 2.5}, "repeats: expected an int of at least 1, got 2.5; pass"),
        ({"warmup": -1}, "warmup: expected an int of at least 0, got -1; pass"),
        ({"threads": 0}, "threads: expected an int of at least 1, got 0; pass"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        cost.latency(lambda: None, **options)


def test_refuses_training_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model.eval()[1].train()
    with pytest.raises(ValueError, match=r"eval mode, got one in training mode; use call.eval\(\)"):
        cost.latency(model, torch.zeros(1, 2))
