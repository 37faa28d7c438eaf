"""Sparse convolutions against a dense one in float64, with every buffer between pages without access."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from guarded import guarded

pytest.importorskip("llvmlite")

from quorate.runtime.sparse.kernels.convolution import Bound, Convolution
from quorate.runtime.sparse.kernels.planes import Planes, aligned
from quorate.runtime.sparse.kernels.streams import Stream
from quorate.runtime.sparse.kernels.tiles import Form, forms, tile
from quorate.runtime.sparse.machine.code import assembly, routine
from quorate.runtime.sparse.machine.host import Host, here
from quorate.runtime.sparse.network import Conv, Epilogue, Linear

PLAIN = Host("x86-64", "", 4, 16)
WIDE = replace(here(), lanes=16, registers=32, x86=False)  # LLVM splits its vectors
HOSTS = [here(), PLAIN, WIDE] if here().x86 else [here(), WIDE]


def sparse(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> NDArray[np.float32]:
    weight = rng.standard_normal(shape).astype(np.float32).reshape(-1)
    weight[rng.permutation(weight.size)[round(density * weight.size) :]] = 0
    return weight.reshape(shape)


def dense(
    x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], stride: tuple[int, int], pads: tuple[int, ...]
) -> NDArray[Any]:
    """x (B, C, H, W) → (B, O, H', W') in float64."""
    top, left, below, right = pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, below), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, :: stride[0], :: stride[1]]
    return np.einsum("bchwij,ocij->bohw", windows, weight.astype(np.float64), optimize=True) + bias[:, None, None]


class Case:
    """A layer on drawn planes, each array in a buffer of its own."""

    def __init__(
        self, layer: Conv, size: tuple[int, int], inner: int, host: Host, number: int, *, margin: tuple[int, int] = (1, 2),
        memory: Callable[[int], NDArray[Any]] = aligned, form: Form | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.layer, self.inner, self.rng = layer, inner, np.random.default_rng(seed)
        bound = Bound.of(layer)
        window = bound.window(*size)

        def planes(channels: int, height: int, width: int, above: int, beside: int) -> Planes:
            if inner == 1:
                return Planes.latency(channels, height, width, above, beside, host.lanes)
            return Planes.throughput(channels, height, width, above, beside, inner)

        outputs, channels = layer.weight.shape[:2]
        self.shape = (inner, outputs, window.height, window.width)
        self.planes = {
            "x": planes(channels, *size, *bound.margin(*size)),
            "y": planes(outputs, window.height, window.width, *margin),
        }
        self.planes |= {"add": planes(outputs, window.height, window.width, 0, 0), "raw": planes(*self.shape[1:], *margin[::-1])}
        possible = list(forms(window, channels, outputs, 0.1, self.planes["x"], host))
        self.form = form or possible[number % len(possible)]
        self.operation = Convolution(bound, self.form, self.planes, host)
        self.operation.with_stream(self.operation.made(layer.weight))
        self.routine = routine(self.operation.ir, host)
        self.memory = memory
        self.x = self.rng.standard_normal((inner, channels, *size)).astype(np.float32)
        self.add = self.rng.standard_normal(self.shape).astype(np.float32)

    def run(self, parts: int = 1) -> dict[str, NDArray[np.float32]]:
        """{array: (inner, O, H', W')}, after a look at the margins."""
        buffers = {name: self.memory(planes.floats) for name, planes in self.planes.items()}
        for name, array in (("x", self.x), ("add", self.add)):
            self.planes[name].view(buffers[name])[...] = array.transpose(1, 2, 3, 0)
        scratch = self.memory(self.operation.scratch(parts) // 4)
        words = self.operation.words({name: b.ctypes.data for name, b in buffers.items()}, scratch.ctypes.data, parts)
        for part in range(parts):
            self.routine.run(words, part, parts)
        found = {}
        for name in ("y", "raw"):
            view = self.planes[name].view(buffers[name])
            found[name] = view.transpose(3, 0, 1, 2).copy()
            view[...] = 0
            assert not buffers[name].any(), "a margin was written"
        return found

    def expected(self) -> dict[str, NDArray[np.float64]]:
        layer, end = self.layer, self.layer.epilogue
        s = dense(self.x, layer.weight, layer.bias, layer.stride, layer.pads)
        if end.add is not None:
            s = s + self.add
        y = s if end.scale is None or end.shift is None else s * end.scale[:, None, None] + end.shift[:, None, None]
        if end.activation != "none":
            y = np.maximum(y, 0) if end.activation == "relu" else np.clip(y, 0, 6)
        return {"y": y, "raw": s} if end.raw is not None else {"y": y}

    def check(self, parts: int = 1) -> None:
        found = self.run(parts)
        for name, want in self.expected().items():
            assert np.abs(found[name] - want).max() <= 1e-5 * max(1e-3, np.abs(want).max()), (name, self.form)


SIZES = st.integers(1, 21)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Conv, tuple[int, int]]:
    kernel = draw(st.tuples(*[st.sampled_from([1, 2, 3, 3, 5, 7])] * 2))
    stride, size = draw(st.tuples(*[st.sampled_from([1, 1, 2, 3, 5])] * 2)), draw(st.tuples(SIZES, SIZES))
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    assume(size[0] + pads[0] + pads[2] >= kernel[0] and size[1] + pads[1] + pads[3] >= kernel[1])
    outputs, channels = draw(st.integers(1, 24)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    weight = sparse(rng, (outputs, channels, *kernel), draw(st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0])))
    if outputs > 2:
        weight[1] = 0
    affine = draw(st.booleans())
    end = Epilogue(
        "add" if draw(st.booleans()) else None, "raw" if draw(st.booleans()) else None,
        *(rng.standard_normal((2, outputs)).astype(np.float32) if affine else (None, None)),
        draw(st.sampled_from(["none", "relu", "relu6"])),
    )  # fmt: skip
    return Conv("conv", "x", "y", weight, rng.standard_normal(outputs).astype(np.float32), stride, pads, end), size


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(layers(), st.sampled_from(HOSTS), st.booleans(), st.integers(0, 60), st.integers(1, 3), st.booleans())
def test_drawn_layers_between_pages_without_access(
    drawn: tuple[Conv, tuple[int, int]], host: Host, grouped: bool, number: int, parts: int, end: bool
) -> None:
    layer, size = drawn
    case = Case(layer, size, host.lanes if grouped else 1, host, number, memory=lambda count: guarded(count, end=end))
    case.check(parts)
    if parts > 1:
        alone, shared = case.run(1), case.run(parts)
        assert all(np.array_equal(alone[name], shared[name]) for name in alone), "the result depends on the parts"


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "size"), [
    ((2, 4), 4, (4, 19)), ((5, 5), 5, (5, 35)), ((2, 16), 16, (33, 48)),
    ((3, 4), 32, (3, 36)), ((1, 99), 1, (1, 150)), ((1, 1), 9, (9, 9)),
])  # fmt: skip
def test_patches_and_long_kernels(kernel: tuple[int, int], stride: int, size: tuple[int, int], grouped: bool, end: bool) -> None:
    """Vectors whose last pixels lie far beyond their row, at the end of the buffer."""
    rng = np.random.default_rng(4)
    weight = sparse(rng, (3, 40 if kernel == (1, 1) else 2, *kernel), 0.5)
    layer = Conv("conv", "x", "y", weight, rng.standard_normal(3).astype(np.float32), (stride, stride))
    for host in HOSTS:
        inner = host.lanes if grouped else 1
        Case(layer, size, inner, host, 0, memory=lambda count: guarded(count, end=end)).check(2)


@pytest.mark.parametrize(
    "planes", [Planes.throughput(512, 2, 2, 1, 1, here().lanes), Planes.throughput(512, 9, 9, 0, 0, here().lanes)]
)
def test_one_pixel_of_large_planes_has_forms_for_many_channels(planes: Planes) -> None:
    """Blocks of channels are those of the planes, not of the pixel."""
    layer = Bound.of(Conv("short", "x", "y", np.ones((4, 512, 1, 1), np.float32), np.zeros(4, np.float32), (planes.height,) * 2))
    found = list(forms(layer.window(planes.height, planes.width), 512, 64, 0.1, planes, here()))
    assert found
    for form in found:
        Convolution(layer, form, {"x": planes, "y": Planes.throughput(4, 1, 1, 0, 0, here().lanes)}, here())


SPECIFIED = [((1, 1), 1), ((3, 3), 1), ((7, 7), 3)]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "pad"), SPECIFIED)
def test_the_specified_shapes(kernel: tuple[int, int], pad: int, stride: int, grouped: bool) -> None:
    rng = np.random.default_rng(3)
    weight = sparse(rng, (33, 70, *kernel), 0.1)
    weight[[0, 17, 32]] = 0
    layer = Conv(
        "conv",
        "x",
        "y",
        weight,
        rng.standard_normal(33).astype(np.float32),
        (stride, stride),
        (pad,) * 4,
        Epilogue(activation="relu"),
    )
    for number in (0, 1, 5):
        Case(layer, (29, 31), here().lanes if grouped else 1, here(), number).check(2)


def test_every_form_of_a_layer() -> None:
    rng = np.random.default_rng(0)
    layer = Conv("conv", "x", "y", sparse(rng, (9, 50, 3, 3), 0.2), np.zeros(9, np.float32), (1, 1), (1, 1, 1, 1), Epilogue())
    tried = set()
    for inner in (1, here().lanes):
        for size in ((4, 4), (8, 8), (7, 7), (13, 16)):
            number = 0
            while number < 40 and (case := Case(layer, size, inner, here(), number)).form not in tried:
                case.check()
                tried.add(case.form)
                number += 1
    assert {form.mode for form in tried} == {"packed", "flat"}
    assert {form.sets for form in tried} == {1, 2, 4}


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_a_matrix_over_images_side_by_side(activation: Any) -> None:
    rng, lanes = np.random.default_rng(1), here().lanes
    weight, bias = sparse(rng, (70, 900), 0.1), rng.standard_normal(70).astype(np.float32)
    layer = Bound.of(Linear("fc", "x", "y", weight, bias, Epilogue(activation=activation)))
    planes = {"x": Planes.vector(900, lanes, lanes), "y": Planes.vector(70, lanes, lanes)}
    x = rng.standard_normal((lanes, 900)).astype(np.float32)
    want = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    if activation == "gelu":
        from scipy.special import ndtr

        want = want * ndtr(want)
    elif activation == "relu":
        want = np.maximum(want, 0)
    for form in forms(layer.window(1, 1), 900, 70, 0.1, planes["x"], here()):
        operation = Convolution(layer, form, planes, here())
        operation.with_stream(operation.made(weight))
        buffers = {name: guarded(p.floats) for name, p in planes.items()}
        planes["x"].view(buffers["x"])[...] = x.T[:, None, None]
        scratch = guarded(operation.scratch(1) // 4)
        routine(operation.ir, here()).run(operation.words({n: b.ctypes.data for n, b in buffers.items()}, scratch.ctypes.data, 1))
        found = planes["y"].view(buffers["y"])[:, 0, 0].T
        assert np.abs(found - want).max() <= 1e-5 * np.abs(want).max()


def test_infinite_inputs_do_no_harm() -> None:
    rng = np.random.default_rng(2)
    layer = Conv(
        "conv",
        "x",
        "y",
        sparse(rng, (8, 8, 3, 3), 0.3),
        np.zeros(8, np.float32),
        (1, 1),
        (1, 1, 1, 1),
        Epilogue(activation="relu"),
    )
    case = Case(layer, (9, 9), 1, here(), 0)
    case.x[0, 0, 4, 4] = np.inf
    found = case.run()["y"]
    assert found.shape == (1, 8, 9, 9)
    case.x[0, 0, 4, 4] = 0
    clean = case.run()["y"]
    assert np.array_equal(found[:, :, 8], clean[:, :, 8]), "rows that do not see it are as they were"


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(1, 45), st.floats(0, 1), st.integers(0, 99))
def test_a_stream_gives_its_weight_back(outputs: int, channels: int, k: int, block: int, density: float, seed: int) -> None:
    weight = sparse(np.random.default_rng(seed), (outputs, channels, k, k), density)
    taps = [[32 * (ky + 10 * kx) for kx in range(k)] for ky in range(k)]
    stream = Stream(weight, min(block, channels), taps, 960)
    assert np.array_equal(stream.dense(), weight)
    assert stream.live == np.count_nonzero(weight)


@pytest.mark.parametrize(("density", "most"), [(0.1, 7.0), (0.2, 6.6)])
def test_bytes_for_a_live_weight(density: float, most: float) -> None:
    weight = sparse(np.random.default_rng(0), (160, 160, 3, 3), density)
    layer = Bound.of(Conv("c", "x", "y", weight, np.zeros(160, np.float32), (1, 1), (1, 1, 1, 1)))
    planes = {name: Planes.latency(160, 32, 32, 1, 1, here().lanes) for name in "xy"}
    form = next(forms(layer.window(32, 32), 160, 160, density, planes["x"], here()))
    assert Convolution(layer, form, planes, here()).made(weight).nbytes <= most * np.count_nonzero(weight)


def test_both_layouts_share_a_stream() -> None:
    rng, lanes = np.random.default_rng(0), here().lanes
    weight = sparse(rng, (64, 64, 3, 3), 0.1)
    layer = Bound.of(Conv("c", "x", "y", weight, np.zeros(64, np.float32), (1, 1), (1, 1, 1, 1)))
    made = []
    for side in (8, 16, 32):
        for source in (Planes.latency(64, side, side, 1, 1, lanes), Planes.throughput(64, side, side, 1, 1, lanes)):
            form = next(forms(layer.window(side, side), 64, 64, 0.1, source, here()))
            made.append(Convolution(layer, form, {"x": source, "y": source}, here()))
    first = made[0].made(weight)
    assert all(first.fits(m.form.block, m.tile.taps, m.tile.packed) for m in made)


def test_what_cannot_be_cut_is_said() -> None:
    lanes = here().lanes
    layer = Bound.of(Conv("wide", "x", "y", np.ones((1, 1, 1, 3), np.float32), np.zeros(1, np.float32), (1, 4), (0, 0, 0, 0)))
    tight = replace(Planes.latency(1, 1, 16, 0, 0, lanes), slack=0)
    with pytest.raises(ValueError, match=r"strides of 4 read too far, by \d+ floats"):
        tile(Form("packed", 1, 1, 1), layer.window(1, 16), tight, here())
    narrow = Bound.of(Conv("c", "x", "y", np.ones((1, 1, 3, 3), np.float32), np.zeros(1, np.float32), (1, 1), (1, 1, 1, 1)))
    bare = {name: Planes.latency(1, 8, 8, 0, 0, lanes) for name in "xy"}
    with pytest.raises(ValueError, match="reads margins of 1 and 1, the planes have 0 and 0"):
        Convolution(narrow, Form("packed", 8, 1, 1), bare, here())
    window = narrow.window(8, 8)
    for form, message in [
        (Form("packed", 9, 1, 1), "the output has 8 rows"),
        (Form("packed", 1, 2 if lanes > 7 else 3, 1), "the output has 8 rows of [12] vectors"),
        (Form("packed", 8, 1, 9999), "offsets of 16 bits"),
        (Form("packed", 8, 1, 1, 3), "8 vectors of 3 sums; expected 1, 2 or 4 sums"),
        (Form("packed", 2**19, 2**19, 1), f"expected 1, 2 or 4 sums, in {here().registers} registers"),
        (Form("packed", 8, 1, 1, 2**19), "expected 1, 2 or 4 sums"),
        (Form("direct", 1, 1, 1), "planes of one pixel"),
        (Form("flat", 9, 1, 1), "the output has 8 rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            tile(form, window, Planes.latency(1, 8, 8, 1, 1, lanes), here())
    with pytest.raises(ValueError, match="is larger than the padded planes"):
        tile(Form("packed", 1, 1, 1), narrow.window(0, 8), Planes.latency(1, 1, 8, 1, 1, lanes), here())
    with pytest.raises(ValueError, match="every pixel is a vector already"):
        tile(Form("flat", 8, 1, 1), window, Planes.throughput(1, 8, 8, 1, 1, lanes), here())


@pytest.mark.parametrize(
    ("host", "instruction"),
    [
        (
            Host("skylake-avx512", "+avx512f,+avx512vl,-prefer-256-bit", 16, 32, True, "x86_64-unknown-linux-gnu"),
            r"vfmadd\d+ps.*zmm",
        ),
        (Host("neoverse-n1", "+neon", 4, 32, False, "aarch64-unknown-linux-gnu"), r"fmla\s+v\d+.4s, v\d+.4s, v\d+.s\[\d\]"),
        (Host("haswell", "+avx2,+fma", 8, 16, True, "x86_64-unknown-linux-gnu"), r"vfmadd\d+ps.*ymm"),
    ],
)
def test_code_for_other_machines(host: Host, instruction: str) -> None:
    """One multiply-add per vector and weight in the loop, nothing spilled in it."""
    import re

    layer = Bound.of(Conv("c", "x", "y", np.ones((64, 64, 3, 3), np.float32), np.zeros(64, np.float32), (1, 1), (1, 1, 1, 1)))
    planes = {name: Planes.latency(64, 32, 32, 1, 1, host.lanes) for name in "xy"}
    form = next(forms(layer.window(32, 32), 64, 64, 0.1, planes["x"], host))
    operation = Convolution(layer, form, planes, host)
    text = assembly(operation.ir, host)
    count = len(operation.tile.reads)
    blocks = re.split(r"^\.?L?[\w.$]+:.*$", text, flags=re.MULTILINE)
    loops = [block for block in blocks if re.search(instruction, block)]
    assert len(loops) == 3, "first, middle and last blocks of channels"
    for loop in loops:
        assert len(re.findall(instruction, loop)) == 4 * count
        assert not re.search(r"\(%rsp|\[sp\b", loop), "nothing waits in memory"
