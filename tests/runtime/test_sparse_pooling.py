"""Pooling, means of planes and flattening against brute force in float64, over drawn geometries and layouts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.kernels.pooling import Averaging, Flattening, Pooling
from quorate.runtime.sparse.kernels.tiles import Window
from quorate.runtime.sparse.machine.code import assembly
from quorate.runtime.sparse.machine.host import here
from quorate.runtime.sparse.network import Flatten, Mean, Pool
from run_operations import narrow, others, planes, ran

HOSTS = [here(), narrow()]


def pooled(layer: Pool, x: np.ndarray) -> np.ndarray:
    """By the definition: each window is cut at the border."""
    (kh, kw), (sy, sx), (top, left, _, _) = layer.kernel, layer.stride, layer.pads
    window = Window.of(layer.kernel, layer.stride, layer.pads, x.shape[1], x.shape[2])
    found = np.empty((x.shape[0], window.height, window.width, x.shape[3]))
    for j in range(window.height):
        for i in range(window.width):
            y, z = j * sy - top, i * sx - left
            inside = x[:, max(y, 0) : y + kh, max(z, 0) : z + kw].astype(np.float64)
            if layer.kind == "max":
                found[:, j, i] = inside.max((1, 2))
            else:
                found[:, j, i] = inside.sum((1, 2)) / (kh * kw if layer.counted else inside.shape[1] * inside.shape[2])
    return found


def _values(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Negative ones as a rule: the margins' zeros would win."""
    return (np.random.default_rng(seed).normal(-2, 1, shape)).astype(np.float32)


def _checked(layer: Pool, size: tuple[int, int, int], margins, images: bool, host, end: bool, seed: int = 0) -> None:
    inner = host.lanes if images else 1
    source = planes(size, inner, host, *margins[:2])
    window = Window.of(layer.kernel, layer.stride, layer.pads, size[1], size[2])
    target = planes((size[0], window.height, window.width), inner, host, *margins[2:])
    x = _values((*size, inner), seed)
    operation = Pooling(layer, source, target, host)
    made = [ran(operation, {"x": (source, x)}, {"y": target}, host, parts=parts, end=end)["y"] for parts in (1, 2, 3)]
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])
    expected = pooled(layer, x)
    if layer.kind == "max":
        assert np.array_equal(made[0], expected.astype(np.float32))
    else:
        assert np.abs(made[0] - expected).max() <= 1e-6 * np.abs(x).max()


axis = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 4), st.integers(0, 4), st.integers(1, 21))


@settings(max_examples=60)
@given(
    down=axis,
    across=axis,
    kind=st.sampled_from(["max", "mean", "counted"]),
    channels=st.integers(1, 4),
    margins=st.tuples(*[st.integers(0, 3)] * 4),
    images=st.booleans(),
    host=st.sampled_from(HOSTS),
    end=st.booleans(),
)
def test_windows_of_any_geometry(down, across, kind, channels, margins, images, host, end) -> None:
    (kh, sy, top, below, height), (kw, sx, left, right, width) = down, across
    for k, s, before, after, n in (down, across):
        assume(n + before + after >= k)
        assume(before < k)
        assume((n + before + after - k) // s * s < n + before)  # the last window begins inside
    layer = Pool(
        "p", "x", "y", "max" if kind == "max" else "mean", (kh, kw), (sy, sx), (top, left, below, right), kind == "counted"
    )
    _checked(layer, (channels, height, width), margins, images, host, end)


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("kind", ["max", "mean"])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "size"),
    [
        ((3, 3), (2, 2), (1, 1, 1, 1), (3, 33, 112)),  # more than one group of vectors, all loops
        ((7, 7), (1, 1), (0, 0, 0, 0), (5, 7, 7)),
        ((1, 40), (1, 3), (0, 7, 0, 2), (2, 1, 101)),  # a sequence
        ((1, 1), (2, 2), (0, 0, 0, 0), (2, 9, 9)),
        ((2, 2), (2, 2), (0, 0, 0, 0), (1, 2, 2)),
    ],
)
def test_common_windows(kernel, stride, pads, size, kind, images) -> None:
    _checked(Pool("p", "x", "y", kind, kernel, stride, pads), size, (1, 1, 1, 1), images, here(), end=True)


def test_infinite_pixels() -> None:
    host, layer = here(), Pool("p", "x", "y", "max", (3, 3), (1, 1), (1, 1, 1, 1))
    layout = planes((1, 4, 5), 1, host, 1, 1)
    x = np.full((1, 4, 5, 1), -np.inf, np.float32)
    x[0, 0, 0], x[0, 3, 4] = np.inf, 1.0
    made = ran(Pooling(layer, layout, layout, host), {"x": (layout, x)}, {"y": layout}, host)["y"]
    assert np.array_equal(made, pooled(layer, x))


@settings(max_examples=30)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 40)),
    margins=st.tuples(*[st.integers(0, 2)] * 2),
    images=st.booleans(),
    host=st.sampled_from(HOSTS),
    end=st.booleans(),
    planar=st.booleans(),
)
def test_means_of_planes(size, margins, images, host, end, planar) -> None:
    inner = host.lanes if images else 1
    source, target = planes(size, inner, host, *margins), planes((size[0], 1, 1) if planar else size[:1], inner, host)
    x = _values((*size, inner), 1)
    operation = Averaging(Mean("m", "x", "y"), source, target, host)
    made = [ran(operation, {"x": (source, x)}, {"y": target}, host, parts=parts, end=end)["y"] for parts in (1, 2, 3)]
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])
    assert np.allclose(made[0][:, 0, 0], x.astype(np.float64).mean((1, 2)), rtol=1e-7, atol=0)


@pytest.mark.parametrize("images", [False, True])
def test_the_mean_of_a_large_plane_is_that_of_float64(images) -> None:
    host, size = here(), (1, 224, 224)
    inner = host.lanes if images else 1
    source, target = planes(size, inner, host), planes((1,), inner, host)
    x = np.random.default_rng(0).uniform(0.9, 1.1, (*size, inner)).astype(np.float32)  # float32 sums lose 1e-6 and more here
    made = ran(Averaging(Mean("m", "x", "y"), source, target, host), {"x": (source, x)}, {"y": target}, host)["y"]
    assert np.array_equal(made[:, 0, 0], x.astype(np.float64).mean((1, 2)).astype(np.float32))


@settings(max_examples=30)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 35)),
    margins=st.tuples(*[st.integers(0, 2)] * 2),
    images=st.booleans(),
    host=st.sampled_from(HOSTS),
    end=st.booleans(),
)
def test_flattening(size, margins, images, host, end) -> None:
    inner = host.lanes if images else 1
    source, target = planes(size, inner, host, *margins), planes((int(np.prod(size)),), inner, host)
    x = _values((*size, inner), 2)
    operation = Flattening(Flatten("f", "x", "y"), source, target, host)
    for parts in (1, 2, 3):
        made = ran(operation, {"x": (source, x)}, {"y": target}, host, parts=parts, end=end)["y"]
        assert np.array_equal(made[:, 0, 0], x.reshape(-1, inner))


def test_what_does_not_fit_is_refused() -> None:
    host = here()
    one, many = planes((2, 6, 6), 1, host), planes((2, 6, 6), host.lanes, host)
    layer = Pool("pool1", "x", "y", "max", (2, 2), (2, 2))
    with pytest.raises(ValueError, match=r"^pool1: expected a target of 2 × 3 × 3, got 2 × 6 × 6$"):
        Pooling(layer, one, one, host)
    with pytest.raises(
        ValueError, match=rf"^pool1: expected 1 or {host.lanes} images side by side in all layouts, got 1 and {host.lanes}$"
    ):
        Pooling(layer, one, many, host)
    three = Planes.throughput(2, 6, 6, 0, 0, 3)
    with pytest.raises(ValueError, match="got 3 and 3"):
        Averaging(Mean("m", "x", "y"), three, three, host)
    with pytest.raises(
        ValueError,
        match=r"^p: a window lies wholly in the padding of \(2, 0, 0, 0\); give pads smaller than the kernel \(2, 2\)$",
    ):
        Pooling(Pool("p", "x", "y", "mean", (2, 2), (2, 2), (2, 0, 0, 0)), one, planes((2, 4, 3), 1, host), host)
    with pytest.raises(ValueError, match="wholly in the padding"):
        Pooling(Pool("p", "x", "y", "max", (2, 2), (2, 2), (0, 0, 0, 2)), one, planes((2, 3, 4), 1, host), host)
    with pytest.raises(ValueError, match=r"^m: expected a target of 2 numbers, got 3 × 1$"):
        Averaging(Mean("m", "x", "y"), one, planes((3,), 1, host), host)
    with pytest.raises(ValueError, match=r"^f: expected a vector of 72 numbers, got 71 planes of 1, 1 floats apart$"):
        Flattening(Flatten("f", "x", "y"), one, planes((71,), 1, host), host)
    with pytest.raises(ValueError, match="expected a vector of 72 numbers, got 72 planes of 1, "):
        Flattening(Flatten("f", "x", "y"), one, planes((72, 1, 1), 1, host), host)


def test_memory_of_its_own() -> None:
    host = here()
    source, target = planes((2, 9, 9), 1, host), planes((2, 4, 4), 1, host)
    operation = Pooling(Pool("p", "x", "y", "mean", (3, 3), (2, 2)), source, target, host)
    assert operation.bytes == 4 * 2 * 8 + 4 * host.lanes * -(-4 // host.lanes)
    assert operation.scratch(3) == 3 * operation.scratch(1)
    assert operation.scratch(1) % 64 == 0
    mean = Averaging(Mean("m", "x", "y"), source, planes((2,), 1, host), host)
    flat = Flattening(Flatten("m", "x", "y"), source, planes((162,), 1, host), host)
    assert [mean.bytes, mean.scratch(2), flat.bytes, flat.scratch(2)] == [0] * 4
    assert aligned(operation.scratch(1) // 4).ctypes.data % 64 == 0


@pytest.mark.parametrize("other", others(), ids=lambda host: host.name)
@pytest.mark.parametrize("images", [False, True])
def test_other_processors_need_no_library(other, images) -> None:
    inner = other.lanes if images else 1
    source, target = planes((2, 30, 30), inner, other, 1, 1), planes((2, 15, 15), inner, other)
    window = Pool("p", "x", "y", "mean", (3, 3), (2, 2), (1, 1, 1, 1))
    text = assembly(Pooling(window, source, target, other).ir, other)
    text += assembly(Averaging(Mean("m", "x", "y"), source, planes((2,), inner, other), other).ir, other)
    assert "mem" not in text
