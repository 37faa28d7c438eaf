"""Activations in vectors against float64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from scipy.special import erf, erfc

from quorate.runtime.sparse.kernels.activations import FAR, GELU, activation, definitions
from quorate.runtime.sparse.machine.code import assembly, routine
from quorate.runtime.sparse.machine.emitting import declarations
from quorate.runtime.sparse.machine.host import Host, here
from quorate.runtime.sparse.machine.walking import begun, ended, loop
from quorate.runtime.sparse.network import Activation
from run_operations import narrow, others

HOSTS = {"native": here(), "narrow": narrow()}


def module(kind: Activation, host: Host) -> str:
    """Words: address of the values, of the results, number of vectors."""
    w, v = begun(), f"<{host.lanes} x float>"
    source, target, count = w.word(0, "ptr"), w.word(1, "ptr"), w.word(2)
    with loop(w, count) as each:
        place = w(f"mul i64 {each.index}, {4 * host.lanes}")
        x = w(f"load {v}, ptr {w.step(source, place)}, align 4")
        w.do(f"store {v} {activation(w, host.lanes, x, kind)}, ptr {w.step(target, place)}, align 4")
    return "\n".join([declarations(host.lanes), definitions({kind}, host.lanes), ended(w)])


def applied(kind: Activation, values: np.ndarray, host: Host, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.setenv("QUORATE_CACHE", "off")
    count = -(-len(values) // 16) * 16
    x = np.resize(values.astype(np.float32), count)
    y = np.full_like(x, np.nan)
    routine(module(kind, host), host).run([x.ctypes.data, y.ctypes.data, count // host.lanes])
    return y[: len(values)]


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return HOSTS[request.param]


EDGES = np.array([0.0, -0.0, 1.0, -1.0, 5.999, 6.0, 6.001, 1e-30, -1e-30, 3e38, -3e38, np.inf, -np.inf], np.float32)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("none", lambda x: x), ("relu", lambda x: np.maximum(x, 0)), ("relu6", lambda x: np.clip(x, 0, 6))],
)
def test_piecewise_linear_ones_are_exact(kind, expected, host, monkeypatch) -> None:
    x = np.concatenate([EDGES, np.random.default_rng(0).normal(0, 5, 1000).astype(np.float32)])
    assert np.array_equal(applied(kind, x, host, monkeypatch), expected(x))


def test_gelu_follows_erf_over_a_dense_grid(host, monkeypatch) -> None:
    small = np.logspace(-30, 0, 20_001)
    x = np.concatenate([np.linspace(-12, 12, 1_000_001), small, -small, np.linspace(-200, 200, 40_001)]).astype(np.float32)
    exact = x.astype(np.float64)
    error = np.abs(applied("gelu", x, host, monkeypatch) - exact * 0.5 * erfc(-exact / np.sqrt(2))) / np.maximum(1, np.abs(exact))
    assert error.max() <= 2.5e-7
    tiny = small[small < 1e-7].astype(np.float32)
    tiny = np.concatenate([tiny, -tiny])
    half = applied("gelu", tiny, host, monkeypatch) / tiny.astype(np.float64)
    assert np.abs(half - 0.5).max() < 1e-6, "near 0 it is x / 2, in relative terms too"


def test_gelu_has_its_limits_exactly(host, monkeypatch) -> None:
    x = np.array([np.inf, -np.inf, 3e38, -3e38, 1e4, -1e4, 64.0, -64.0, 21.0, -21.0, 0.0], np.float32)
    y = applied("gelu", x, host, monkeypatch)
    assert y.tolist() == [np.inf, 0, x[2], 0, 1e4, 0, 64, 0, 21, 0, 0]


def test_the_coefficients_reach_the_stated_error() -> None:
    t = np.linspace(0, 7, 200_001)
    p = np.polyval([*np.float32(GELU[::-1]).astype(np.float64), 1.0], t)
    error = np.abs(t * 0.5 * p**-8.0 - t * 0.5 * (1 - erf(t / np.sqrt(2)))) / np.maximum(1, t)
    assert error.max() < 2.25e-8
    far = np.polyval([*GELU[::-1], 1.0], np.linspace(0, FAR, 10_001))
    assert (np.diff(far) > 0).all(), "the tail never comes back"
    assert far[-1] ** 8 > np.finfo(np.float32).max


@pytest.mark.parametrize("other", others(), ids=lambda host: host.name)
@pytest.mark.parametrize("kind", ["relu6", "gelu"])
def test_other_processors_need_no_library(other, kind) -> None:
    text = assembly(module(kind, other), other)
    assert "erf" not in text
    assert "fmin" not in text.replace("fminnm", "")


def test_only_what_is_called_is_defined() -> None:
    assert definitions({"none", "relu", "relu6"}, 8) == ""
    assert definitions(["relu", "gelu"], 8).count("define internal <8 x float> @gelu") == 1
