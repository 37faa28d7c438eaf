"""Arrays of the caller to planes and back: bit for bit, and nothing beyond either is touched."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from hypothesis import given, settings
from hypothesis import strategies as st

from guarded import canaries, guarded
from quorate.runtime.sparse.kernels.borders import Entering, Leaving
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.machine.code import assembly
from quorate.runtime.sparse.machine.host import here
from run_operations import narrow, others, planes, ran

HOSTS = [here(), narrow()]

arrays = given(
    shape=st.one_of(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 37)), st.tuples(st.integers(1, 100))),
    margins=st.tuples(*[st.integers(0, 3)] * 2),
    images=st.booleans(),
    host=st.sampled_from(HOSTS),
    end=st.booleans(),
)


def _bits(shape: tuple[int, ...]) -> np.ndarray:
    """Any bits but those of NaN, so that equality is equality of bits."""
    values = np.random.default_rng(0).integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(-1.5))


@settings(max_examples=60)
@arrays
def test_there_and_back(shape, margins, images, host, end) -> None:
    inner = host.lanes if images else 1
    layout = planes(shape, inner, host, *margins)
    outside = guarded(inner * int(np.prod(shape)), end=end)
    values = _bits((inner, *shape))
    outside[:] = values.reshape(-1)
    held = np.moveaxis(values.reshape(inner, *shape, *(1,) * (3 - len(shape))), 0, -1)
    for parts in (1, 2, 3):
        made = ran(Entering("x", layout, host), {}, {"x": layout}, host, parts=parts, end=end, outside={Entering.ARRAY: outside})
        assert np.array_equal(made["x"], held)
        assert np.array_equal(outside, values.reshape(-1)), "what is given is only read"
        result = guarded(outside.size, end=end)
        ran(Leaving("x", layout, host), {"x": (layout, held)}, {}, host, parts=parts, end=end, outside={Leaving.ARRAY: result})
        assert np.array_equal(result, outside)


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 7), (13,), (2, 1, 1)])
def test_no_byte_beside_the_array_is_written(shape, images) -> None:
    host = here()
    inner = host.lanes if images else 1
    layout = planes(shape, inner, host, 1, 1)
    size = inner * int(np.prod(shape))
    result, intact = canaries(size)
    held = np.ones((*shape, *(1,) * (3 - len(shape)), inner), np.float32)
    ran(Leaving("x", layout, host), {"x": (layout, held)}, {}, host, outside={Leaving.ARRAY: result})
    assert intact()
    assert result.all()


def test_images_may_lie_further_apart() -> None:
    host = here()
    layout = planes((2, 3, 5), host.lanes, host, 1, 1)
    wide = _bits((host.lanes, 77))
    operation = Entering("x", layout, host)
    assert operation.stride == 4 * 30
    operation.stride = 4 * 77
    made = ran(operation, {}, {"x": layout}, host, outside={Entering.ARRAY: wide})["x"]
    assert np.array_equal(made, np.moveaxis(wide[:, :30].reshape(-1, 2, 3, 5), 0, -1))


def test_words_wait_for_the_address() -> None:
    layout = planes((2, 3, 5), 1, here())
    for operation in (Entering("x", layout, here()), Leaving("x", layout, here())):
        assert operation.words({"x": 64}, 0, 1) == [0, 64, 120]
        assert (operation.name, operation.array, operation.ARRAY, operation.bytes, operation.scratch(4)) == ("x", "x", 0, 0, 0)


def test_other_numbers_of_images_are_refused() -> None:
    layout = Planes.throughput(2, 3, 5, 0, 0, 3)
    for kind in (Entering, Leaving):
        with pytest.raises(ValueError, match=rf"^x: expected 1 or {here().lanes} images side by side, got 3$"):
            kind("x", layout, here())


@pytest.mark.parametrize("other", others(), ids=lambda host: host.name)
@pytest.mark.parametrize("images", [False, True])
def test_other_processors_need_no_library(other, images) -> None:
    layout = planes((2, 30, 30), other.lanes if images else 1, other, 1, 1)
    for kind in (Entering, Leaving):
        assert "mem" not in assembly(kind("x", layout, other).ir, other)
