"""Convolutions of blocks of outputs against float64, between pages without access; their streams."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from guarded import guarded
from quorate.runtime.sparse.kernels.blocked_convolution import BlockedConvolution, BlockedStream, blocked_forms
from quorate.runtime.sparse.kernels.convolution import Bound, Convolution
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.kernels.tiles import Form, forms
from quorate.runtime.sparse.machine.code import assembly, routine
from quorate.runtime.sparse.machine.host import Host, here
from quorate.runtime.sparse.network import Conv, Epilogue, Linear
from run_operations import narrow, others, planes
from sparse_reference import results

HOSTS = [here(), narrow()]


def blocks(rng: np.random.Generator, shape: tuple[int, ...], rows: int, density: float) -> Any:
    live = (rng.random((shape[0] // rows, *shape[1:])) < density).repeat(rows, 0)
    return (rng.standard_normal(shape) * live).astype(np.float32)


def layout(layer: Conv, size: tuple[int, int], inner: int, host: Host) -> dict[str, Planes]:
    """Planes of all arrays, with other margins each."""
    bound = Bound.of(layer)
    window, source = bound.window(*size), planes((layer.weight.shape[1], *size), inner, host, *bound.margin(*size))
    target = (layer.weight.shape[0], window.height, window.width)
    return {"x": source} | {name: planes(target, inner, host, *m) for name, m in (("y", (1, 2)), ("a", (0, 0)), ("s", (2, 1)))}


def check(layer: Conv, size: tuple[int, int], inner: int, host: Host, rows: int, number: int, seed: int) -> None:
    """One form in 1, 2 and 3 parts, against float64."""
    rng, where, bound = np.random.default_rng(seed), layout(layer, size, inner, host), Bound.of(layer)
    possible = list(blocked_forms(bound.window(*size), bound.channels, bound.outputs, 0.1, where["x"], host, rows))
    assert possible, "there is a form"
    operation = BlockedConvolution(bound, possible[number % len(possible)], where, host, rows)
    stream = operation.made(layer.weight)
    operation.with_stream(stream)
    assert np.array_equal(stream.dense(), layer.weight)
    code = routine(operation.ir, host)
    values = {name: rng.standard_normal(where[name].view(guarded(where[name].floats)).shape).astype(np.float32) for name in "xa"}
    truth = results(layer, {name: value.transpose(3, 0, 1, 2).astype(np.float64) for name, value in values.items()})
    first: dict[str, bytes] = {}
    for parts in (1, 2, 3):
        buffers = {name: guarded(p.floats, end=parts % 2 == 1) for name, p in where.items()}
        for name, value in values.items():
            where[name].view(buffers[name])[...] = value
        scratch = guarded(operation.scratch(parts), np.uint8)
        scratch[:] = 0xFF  # NaN
        words = operation.words({name: b.ctypes.data for name, b in buffers.items()}, scratch.ctypes.data, parts)
        for part in reversed(range(parts)):
            code.run(words, part, parts)
        for name in truth:
            view = where[name].view(buffers[name])
            found = view.transpose(3, 0, 1, 2).copy()
            assert np.abs(found - truth[name]).max() <= 1e-5 * max(1, np.abs(truth[name]).max()), (name, operation.form)
            assert first.setdefault(name, found.tobytes()) == found.tobytes(), "the result depends on the parts"
            view[...] = 0
            assert not buffers[name].any(), "a margin was written"


SIZES = st.integers(1, 17)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_drawn_layers(data: st.DataObject) -> None:
    draw = data.draw
    kernel, stride = draw(st.tuples(*[st.sampled_from([1, 3, 3, 5])] * 2)), draw(st.tuples(*[st.sampled_from([1, 1, 2, 3])] * 2))
    size, pads = draw(st.tuples(SIZES, SIZES)), draw(st.tuples(*[st.integers(0, 2)] * 4))
    assume(size[0] + pads[0] + pads[2] >= kernel[0] and size[1] + pads[1] + pads[3] >= kernel[1])
    rows, seed = draw(st.sampled_from([2, 4])), draw(st.integers(0, 1000))
    outputs, channels = rows * draw(st.integers(1, 6)), draw(st.integers(1, 40))
    rng = np.random.default_rng(seed)
    weight = blocks(rng, (outputs, channels, *kernel), rows, draw(st.sampled_from([0.0, 0.1, 0.4, 1.0])))
    if outputs > rows:
        weight[:rows] = 0
    drawn = [rng.standard_normal(outputs).astype(np.float32) for _ in range(3)]
    scale, shift = drawn[1:] if draw(st.booleans()) else (None, None)
    add, raw = ("a" if draw(st.booleans()) else None), ("s" if draw(st.booleans()) else None)
    end = Epilogue(add, raw, scale, shift, draw(st.sampled_from(["none", "relu", "relu6", "gelu"])))
    host = draw(st.sampled_from(HOSTS))
    layer = Conv("conv", "x", "y", weight, drawn[0], stride, pads, end)
    check(layer, size, host.lanes if draw(st.booleans()) else 1, host, rows, draw(st.integers(0, 60)), seed)


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("host", HOSTS, ids=lambda h: h.name)
def test_matrices_over_images_side_by_side(host: Host, rows: int) -> None:
    rng = np.random.default_rng(1)
    matrix = Linear("fc", "x", "y", blocks(rng, (24, 90), rows, 0.2), rng.standard_normal(24).astype(np.float32))
    bound = Bound.of(matrix)
    where = {"x": Planes.vector(90, host.lanes, host.lanes), "y": Planes.vector(24, host.lanes, host.lanes)}
    for form in blocked_forms(bound.window(1, 1), 90, 64, 0.1, where["x"], host, rows):
        operation = BlockedConvolution(bound, form, where, host, rows)
        operation.with_stream(operation.made(matrix.weight))
        buffers = {name: guarded(p.floats) for name, p in where.items()}
        x = rng.standard_normal((90, host.lanes)).astype(np.float32)
        where["x"].view(buffers["x"])[:, 0, 0] = x
        scratch = guarded(operation.scratch(1), np.uint8)
        routine(operation.ir, host).run(operation.words({n: b.ctypes.data for n, b in buffers.items()}, scratch.ctypes.data, 1))
        want = matrix.weight.astype(np.float64) @ x + matrix.bias[:, None]
        assert np.abs(where["y"].view(buffers["y"])[:, 0, 0] - want).max() < 1e-5
        assert form.sets * rows <= host.registers - 4


def test_rows_that_differ_within_a_block_are_filled_with_zeros() -> None:
    rng = np.random.default_rng(2)
    layer = Conv("conv", "x", "y", blocks(rng, (8, 6, 3, 3), 1, 0.2), np.zeros(8, np.float32), (1, 1), (1, 1, 1, 1))
    check(layer, (9, 9), 1, here(), 4, 0, 2)


def test_bytes_of_a_live_weight() -> None:
    rng = np.random.default_rng(3)
    weight = blocks(rng, (64, 128, 3, 3), 4, 0.1)
    for rows, most in ((2, 5.7), (4, 5.0)):
        stream = BlockedStream(weight, 30, [[12 * y + 4 * x for x in range(3)] for y in range(3)], 36, rows, 2)
        assert stream.nbytes <= most * stream.live
        assert np.array_equal(stream.dense(), weight)


def test_all_sums_fit_the_registers() -> None:
    rng = np.random.default_rng(4)
    layer = Conv("conv", "x", "y", blocks(rng, (8, 64, 3, 3), 4, 0.2), np.zeros(8, np.float32), (1, 1), (1, 1, 1, 1))
    for host in [*HOSTS, *others()]:
        for inner, size, rows in ((1, (16, 32), 4), (host.lanes, (8, 8), 2), (1, (4, 4), 2)):
            where, bound = layout(layer, size, inner, host), Bound.of(layer)
            found = list(blocked_forms(bound.window(*size), 64, 64, 0.1, where["x"], host, rows))
            assert found, "a common layer has a form"
            for form in found:
                operation = BlockedConvolution(bound, form, where, host, rows)
                assert len(operation.tile.reads) * form.sets * rows <= host.registers - 4


@pytest.mark.parametrize("host", others(), ids=lambda h: h.name)
def test_code_for_other_machines_keeps_sums_in_registers(host: Host) -> None:
    layer = Conv("conv", "x", "y", np.ones((4, 64, 3, 3), np.float32), np.zeros(4, np.float32), (1, 1), (1, 1, 1, 1))
    where, bound = layout(layer, (32, 32), 1, host), Bound.of(layer)
    form = next(blocked_forms(bound.window(32, 32), 64, 64, 0.1, where["x"], host, 4))
    text = assembly(BlockedConvolution(bound, form, where, host, 4).ir, host)
    loop = max(re.split(r"\n\.L", text), key=lambda part: len(re.findall("fmadd|fmla", part)))
    assert len(re.findall("fmadd|fmla", loop)) >= 16
    assert not re.search(r"\(%r[sb]p\)|\[sp", loop), "nothing waits in memory"


def test_refusals() -> None:
    rng = np.random.default_rng(5)
    layer = Conv("conv", "x", "y", blocks(rng, (6, 8, 3, 3), 2, 0.5), np.zeros(6, np.float32), (1, 1), (1, 1, 1, 1))
    where, bound, host = layout(layer, (8, 8), 1, here()), Bound.of(layer), here()
    form = next(blocked_forms(bound.window(8, 8), 8, 8, 0.1, where["x"], host, 2))
    for rows in (4, 1, 0):
        with pytest.raises(ValueError, match=f"conv: {rows} rows at once of 6: expected at least 2, that divide the outputs"):
            BlockedConvolution(bound, form, where, host, rows)
    with pytest.raises(ValueError, match="conv: 48 sums of 6 rows at once, there are"):
        BlockedConvolution(bound, Form("packed", 8, 1, 1), where, host, 6)
    operation = BlockedConvolution(bound, form, where, host, 2)
    single = Convolution(bound, next(forms(bound.window(8, 8), 8, 8, 0.1, where["x"], host)), where, host)
    tile = operation.tile
    wrong = [single.made(layer.weight), BlockedStream(layer.weight, form.block, tile.taps, tile.packed, 2, 4)]
    for stream in [*wrong, BlockedStream(layer.weight, form.block, tile.taps, tile.packed, 3, 2)]:
        with pytest.raises(ValueError, match="conv: a stream of another form"):
            operation.with_stream(stream)
    with pytest.raises(ValueError, match="conv: a stream of another form"):
        single.with_stream(operation.made(layer.weight))
    assert not operation.made(layer.weight).fits(form.block, tile.taps, tile.packed), "never a stream of single rows"
