"""Unstructured matrices over one vector: float64, streams, choice of steps, guard pages."""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from quorate.runtime.sparse.kernels.gathered import MOST_BYTES, Gathered
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.machine.code import assembly
from quorate.runtime.sparse.machine.host import Host, here
from quorate.runtime.sparse.network import Linear
from sparse_linears import AVX512, NEON, PLAIN, SIXTEEN, check, layer_of, made, outcome, unstructured

HOSTS = [here(), PLAIN, SIXTEEN] if here().x86 else [here()]


@given(
    host=st.sampled_from(HOSTS), outputs=st.integers(1, 45), inputs=st.integers(1, 140), density=st.sampled_from([0, 0.03, 0.2, 0.6, 1.0]),
    steps=st.sampled_from([None, 0, 1, 2, 4]), seed=st.integers(0, 2**16), empty=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_any_matrix_is_multiplied(
    host: Host, outputs: int, inputs: int, density: float, steps: int | None, seed: int, empty: bool
) -> None:
    rng = np.random.default_rng(seed)
    weight = unstructured(rng, outputs, inputs, density)
    if empty:
        weight[:: rng.integers(1, 4)] = 0
    check(partial(Gathered, steps=steps if host.lanes > 4 else None), layer_of(weight, rng), host, rng)


@pytest.mark.parametrize("host", HOSTS, ids=lambda h: h.name)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "gelu"])
def test_every_epilogue(host: Host, activation: Any) -> None:
    rng = np.random.default_rng(1)
    weight = 3 * unstructured(rng, 21, 40, 0.2)
    for add, raw, affine, target in itertools.product((False, True), repeat=4):
        if target or (raw and activation == "none" and not affine):
            check(Gathered, layer_of(weight, rng, activation, add=add, raw=raw, affine=affine, target=target), host, rng)


def test_values_by_hand() -> None:
    rng = np.random.default_rng(0)
    weight = np.zeros((3, 5), np.float32)
    weight[0, 4], weight[2, 0], weight[2, 3] = 2, -1, 4
    layer = layer_of(weight, rng)
    x = np.array([1, 10, 100, 1000, 10000], np.float32)
    for host in HOSTS:
        found = outcome(made(Gathered, layer, host), layer, x, np.zeros(3), host)["y"]
        np.testing.assert_array_equal(found, np.array([20000, 0, 3999], np.float32) + layer.bias)


@pytest.mark.parametrize("inputs", [65_536, 65_537])
def test_more_inputs_than_16_bits_tell_apart(inputs: int) -> None:
    rng = np.random.default_rng(2)
    weight = np.zeros((9, inputs), np.float32)
    weight[np.arange(8), inputs - 1 - np.arange(8)] = rng.standard_normal(8)
    weight[3, [0, 1, 65_535]] = 1
    operation = check(partial(Gathered, steps=0), layer_of(weight, rng), here(), rng)
    assert ("and i32" in operation.ir) == (inputs == 65_536), "numbers of 16 bits where they do"


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_stream_holds_the_weight_at_any_width(lanes: int, steps: int) -> None:
    rng = np.random.default_rng(3)
    weight = unstructured(rng, 37, 150, 0.3)
    operation = made(partial(Gathered, steps=steps), layer_of(weight, rng), Host("any", "", lanes, 32))
    assert np.array_equal(operation.dense(), weight)


def test_steps_follow_density() -> None:
    rng = np.random.default_rng(4)
    wide = Host("any", "", 8, 16)
    chosen = [made(Gathered, layer_of(unstructured(rng, 256, 512, d), rng), wide).steps for d in (0.01, 0.1, 0.2, 0.4)]
    assert chosen == [0, 1, 2, 4]
    assert made(Gathered, layer_of(unstructured(rng, 64, 64, 0.3), rng), Host("any", "", 4, 16)).steps == 0


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.2])
def test_bytes_of_a_live_weight(lanes: int, density: float) -> None:
    rng = np.random.default_rng(5)
    operation = made(Gathered, layer_of(unstructured(rng, 512, 1024, density), rng), Host("any", "", lanes, 16))
    assert operation.nbytes + operation.bytes <= MOST_BYTES * operation.live


def test_groups_weigh_about_the_same_in_any_part() -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((128, 400)).astype(np.float32) * (rng.random((128, 400)) < np.linspace(0.02, 0.5, 128)[:, None])
    lengths = made(partial(Gathered, steps=0), layer_of(weight, rng), Host("any", "", 8, 16))._starts[:, 2]
    for parts in (2, 4):
        share = [part.sum() for part in np.array_split(lengths, parts)]
        assert max(share) < 1.15 * lengths.sum() / parts


def test_stream_is_made_fast() -> None:
    rng = np.random.default_rng(7)
    layer = layer_of(unstructured(rng, 1024, 1024, 0.1), rng)
    made(Gathered, layer, here())
    begun = time.thread_time()
    made(Gathered, layer, here())
    assert time.thread_time() - begun < 0.15


def test_infinite_inputs_do_not_crash() -> None:
    rng = np.random.default_rng(8)
    weight = unstructured(rng, 20, 40, 0.3)
    layer = layer_of(weight, rng, "relu")
    x = np.where(rng.random(40) < 0.5, np.inf, -np.inf).astype(np.float32)
    for host in HOSTS:
        assert outcome(made(Gathered, layer, host), layer, x, np.zeros(20), host)["y"].shape == (20,)


@pytest.mark.parametrize(
    ("host", "steps", "expected"), [(AVX512, 2, "vpermd"), (AVX512, 0, "zmm"), (NEON, 0, "fmla"), (PLAIN, 0, "mulps")]
)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_code_for_other_machines(host: Host, steps: int, expected: str, activation: Any) -> None:
    rng = np.random.default_rng(9)
    layer = layer_of(unstructured(rng, 20, 40, 0.3), rng, activation, add=True, raw=True, affine=True)
    text = assembly(made(partial(Gathered, steps=steps), layer, host).ir, host)
    assert expected in text
    assert not any(f"call{suffix}\t" in text and "@PLT" in text for suffix in ("", "q"))


def test_refusals() -> None:
    rng = np.random.default_rng(10)
    layer = layer_of(unstructured(rng, 6, 10, 0.5), rng)
    source, target, host = Planes.vector(10, 1, 8), Planes.vector(6, 1, 8), Host("any", "", 8, 16)
    for wrong in (Planes.vector(9, 1, 8), Planes.vector(10, 8, 8), Planes.latency(10, 1, 1, 0, 0, 8)):
        with pytest.raises(ValueError, match=r"fc: source is .* expected a vector of 10 numbers of one image"):
            Gathered(layer, wrong, target, host)
    with pytest.raises(ValueError, match="fc: target is 7 channels"):
        Gathered(layer, source, Planes.vector(7, 1, 8), host)
    with pytest.raises(ValueError, match=r"fc: steps=5 on any \(AVX2\): expected 0 … 4"):
        Gathered(layer, source, target, host, steps=5)
    with pytest.raises(ValueError, match=r"fc: steps=1 on x86-64 \(plain\): expected 0 … 0"):
        Gathered(layer, source, target, PLAIN, steps=1)


def test_layer_is_let_go() -> None:
    import gc
    import weakref

    rng = np.random.default_rng(11)
    layer: Linear | None = layer_of(unstructured(rng, 6, 10, 0.5), rng)
    assert layer is not None
    weight, operation = weakref.ref(layer.weight), made(Gathered, layer, here())
    del layer
    gc.collect()
    assert weight() is None, f"{operation.name} keeps a dense weight"
