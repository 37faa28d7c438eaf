"""Matrices of blocks and of constant fan-in over one vector: what is found in a mask, and products against float64."""

from __future__ import annotations

import itertools
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from quorate.runtime.sparse.kernels.blocked import BlockedLinear, blocked_columns, blocked_rows
from quorate.runtime.sparse.kernels.fan_in import FanInLinear, constant_fan_in
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.machine.code import assembly
from quorate.runtime.sparse.machine.host import Host, here
from sparse_linears import AVX512, NEON, PLAIN, SIXTEEN, blocks, check, fan_in, layer_of, made, outcome, unstructured

HOSTS = [here(), PLAIN, SIXTEEN] if here().x86 else [here()]
SIZES = [1, 2, 4, 8, 16]


@given(
    host=st.sampled_from(HOSTS), rows=st.sampled_from(SIZES), columns=st.sampled_from(SIZES), down=st.integers(1, 6),
    across=st.integers(1, 9), density=st.sampled_from([0, 0.1, 0.4, 1.0]), seed=st.integers(0, 2**16),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_any_blocks_are_multiplied(
    host: Host, rows: int, columns: int, down: int, across: int, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if rows * columns == 1:
        columns = 2
    weight = blocks(rng, rows * down, columns * across, density, rows, columns)
    operation = check(partial(BlockedLinear, rows=rows, columns=columns), layer_of(weight, rng), host, rng)
    assert (operation.rows, operation.columns) == (rows, columns)


@pytest.mark.parametrize("host", HOSTS, ids=lambda h: h.name)
@pytest.mark.parametrize("shape", [(2, 1), (4, 4), (16, 2), (1, 8)], ids=str)
def test_every_epilogue_of_blocks(host: Host, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    layer = partial(layer_of, 2 * blocks(rng, 32, 48, 0.3, *shape), rng)
    for activation in ("none", "relu", "relu6", "gelu"):
        check(BlockedLinear, layer(activation, add=True, raw=True, affine=True), host, rng)  # type: ignore[arg-type]
    for add, raw, affine in itertools.product((False, True), repeat=3):
        check(BlockedLinear, layer("relu", add=add, raw=raw, affine=affine), host, rng)
    check(BlockedLinear, layer(raw=True, target=False), host, rng)


def test_blocks_are_the_largest_that_a_weight_has() -> None:
    rng = np.random.default_rng(2)
    weight = blocks(rng, 32, 64, 0.3, 4, 2)
    operation = check(BlockedLinear, layer_of(weight, rng), here(), rng)
    assert (operation.rows, operation.columns) == (blocked_rows(weight), blocked_columns(weight)) == (4, 2)
    assert check(partial(BlockedLinear, rows=2, columns=1), layer_of(weight, rng), here(), rng).rows == 2


def test_dead_weights_in_a_live_block_are_zeros() -> None:
    rng = np.random.default_rng(3)
    check(partial(BlockedLinear, rows=8, columns=2), layer_of(unstructured(rng, 24, 30, 0.1), rng), here(), rng)


def test_blocks_among_more_inputs_than_16_bits_tell_apart() -> None:
    rng = np.random.default_rng(4)
    weight = np.zeros((8, 65_540), np.float32)
    weight[:, [0, 4, 65_532, 65_536]] = rng.standard_normal((8, 4))
    for columns in (1, 4):
        check(partial(BlockedLinear, rows=8, columns=columns), layer_of(weight, rng), here(), rng)


def test_bytes_of_a_live_weight() -> None:
    rng = np.random.default_rng(5)
    for rows, columns, most in ((8, 1, 4.5), (4, 4, 4.5), (16, 16, 4.2), (2, 1, 5.6)):
        operation = made(BlockedLinear, layer_of(blocks(rng, 512, 1024, 0.1, rows, columns), rng), Host("any", "", 8, 16))
        assert operation.nbytes + operation.bytes <= most * operation.live


@pytest.mark.parametrize(("rows", "count"), [(16, 32), (8, 24), (4, 12), (2, 6), (1, 7)])
def test_rows_that_share_their_places(rows: int, count: int) -> None:
    rng = np.random.default_rng(6)
    live = (rng.random((count // rows, 5, 3, 3)) < 0.3).repeat(rows, 0)
    weight = (live * rng.uniform(0.5, 1, live.shape)).astype(np.float32)
    assert blocked_rows(weight) == blocked_rows(weight.reshape(count, -1)) == rows
    if rows > 1:
        weight[1, 2, 1, 1] = 0 if weight[1, 2, 1, 1] else 1
        assert blocked_rows(weight) == 1


def test_columns_that_share_their_places_at_every_position() -> None:
    rng = np.random.default_rng(7)
    live = (rng.random((6, 3, 3, 3)) < 0.4).repeat(4, 1)
    weight = (live * rng.uniform(0.5, 1, live.shape)).astype(np.float32)
    assert blocked_columns(weight) == 4
    assert blocked_rows(weight) == 1


def test_weights_all_alike_are_blocks_of_the_largest() -> None:
    assert blocked_rows(np.ones((48, 3), np.float32)) == blocked_rows(np.zeros((16, 3), np.float32)) == 16
    assert blocked_rows(np.ones((10, 3), np.float32)) == 2
    assert blocked_rows(np.ones((0, 3), np.float32)) == 1


@given(
    host=st.sampled_from(HOSTS), outputs=st.integers(1, 40), inputs=st.integers(1, 60), live=st.sampled_from([1, 3, 4, 5, 8]),
    seed=st.integers(0, 2**16), ablated=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_any_constant_fan_in_is_multiplied(host: Host, outputs: int, inputs: int, live: int, seed: int, ablated: bool) -> None:
    rng = np.random.default_rng(seed)
    active = rng.random(outputs) < 0.6 if ablated else np.ones(outputs, bool)
    active[rng.integers(outputs)] = True
    live = min(live, inputs)
    operation = check(FanInLinear, layer_of(fan_in(rng, outputs, inputs, live, active), rng), host, rng)
    assert operation.fan_in == live


@pytest.mark.parametrize("host", HOSTS, ids=lambda h: h.name)
def test_every_epilogue_of_constant_fan_in(host: Host) -> None:
    rng = np.random.default_rng(8)
    layer = partial(layer_of, fan_in(rng, 21, 30, 5, rng.random(21) < 0.7), rng)
    for activation in ("none", "relu", "relu6", "gelu"):
        check(FanInLinear, layer(activation, add=True, raw=True, affine=True), host, rng)  # type: ignore[arg-type]
    check(FanInLinear, layer(raw=True, target=False), host, rng)


def test_fan_in_among_more_inputs_than_16_bits_tell_apart() -> None:
    rng = np.random.default_rng(9)
    weight = np.zeros((9, 65_537), np.float32)
    weight[np.arange(9), 65_536 - np.arange(9)] = weight[:, 1] = 2
    check(FanInLinear, layer_of(weight, rng), here(), rng)


def test_fan_in_of_a_mask() -> None:
    rng = np.random.default_rng(10)
    weight = fan_in(rng, 12, 30, 7, np.arange(12) % 3 > 0)
    assert constant_fan_in(weight) == constant_fan_in(weight.reshape(12, 5, 2, 3)) == 7
    weight[1, np.flatnonzero(weight[1])[0]] = 0
    assert constant_fan_in(weight) is None
    assert constant_fan_in(np.zeros((4, 3), np.float32)) is None
    assert constant_fan_in(np.zeros((0, 3), np.float32)) is None


def test_infinite_inputs_do_not_crash() -> None:
    rng = np.random.default_rng(11)
    layer = layer_of(np.ones((16, 8), np.float32), rng, "relu")
    x = np.full(8, np.inf, np.float32)
    for host, make in itertools.product(HOSTS, (BlockedLinear, FanInLinear)):
        assert (outcome(made(make, layer, host), layer, x, np.zeros(16), host)["y"] == np.inf).all()


@pytest.mark.parametrize(("host", "expected"), [(AVX512, "vfmadd231ps\\t.*zmm"), (NEON, "fmla"), (PLAIN, "mulps")])
@pytest.mark.parametrize(
    "make", [partial(BlockedLinear, rows=r, columns=q) for r, q in ((16, 1), (8, 2), (4, 4), (2, 1))] + [FanInLinear]
)
def test_code_for_other_machines(host: Host, expected: str, make: Any) -> None:
    rng = np.random.default_rng(12)
    layer = layer_of(np.ones((32, 16), np.float32), rng, "gelu", add=True, raw=True, affine=True)
    assert re.search(expected, assembly(made(make, layer, host).ir, host))


def test_refusals() -> None:
    rng = np.random.default_rng(13)
    layer = layer_of(unstructured(rng, 6, 10, 0.5), rng)
    source, target, host = Planes.vector(10, 1, 8), Planes.vector(6, 1, 8), Host("any", "", 8, 16)
    for rows, columns in ((4, 1), (2, 4), (1, 1), (3, 2), (2, 5), (0, 2), (None, None)):
        with pytest.raises(ValueError, match=r"fc: blocks of . × . in a weight of 6 × 10: expected 1, 2, 4, 8 or 16 of each"):
            BlockedLinear(layer, source, target, host, rows=rows, columns=columns)
    with pytest.raises(ValueError, match="fc: rows of different numbers of live weights: expected a constant fan-in"):
        FanInLinear(layer, source, target, host)
    for make in (partial(BlockedLinear, rows=2), FanInLinear):
        with pytest.raises(ValueError, match="expected a vector of 6 numbers of one image"):
            make(layer, source, Planes.vector(6, 8, 8), host)
