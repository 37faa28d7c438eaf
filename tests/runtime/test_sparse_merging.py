"""Sums of arrays with scale, shift and activation against float64, over drawn layouts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erfc

from quorate.runtime.sparse.kernels.merging import Merging
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.machine.code import assembly
from quorate.runtime.sparse.machine.host import here
from quorate.runtime.sparse.network import Epilogue, Merge
from run_operations import narrow, others, planes, ran

HOSTS = [here(), narrow()]
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "gelu": lambda x: 0.5 * x * erfc(-x / np.sqrt(2)),
}


@settings(max_examples=60)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 35)), st.tuples(st.integers(1, 100)), st.just((9, 1, 1))
    ),
    margins=st.tuples(*[st.integers(0, 3)] * 6),
    added=st.booleans(),
    affine=st.booleans(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    images=st.booleans(),
    host=st.sampled_from(HOSTS),
    end=st.booleans(),
)
def test_any_layouts(shape, margins, added, affine, activation, images, host, end) -> None:
    inner = host.lanes if images else 1
    rng = np.random.default_rng(0)
    source, add, target = (planes(shape, inner, host, *margins[k : k + 2]) for k in (0, 2, 4))
    size = (*shape, *(1,) * (3 - len(shape)), inner)
    x, y = (rng.normal(0, 3, size).astype(np.float32) for _ in range(2))
    scale, shift = (rng.normal(size=shape[0]).astype(np.float32) if affine else None for _ in range(2))
    layer = Merge("m", "x", "z", Epilogue("y" if added else None, None, scale, shift, activation))
    operation = Merging(layer, source, add if added else None, target, host)
    held = {"x": (source, x)} | ({"y": (add, y)} if added else {})
    made = [ran(operation, held, {"z": target}, host, parts=parts, end=end)["z"] for parts in (1, 2, 3)]
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])
    expected = x.astype(np.float64) + (y if added else 0)
    if scale is not None and shift is not None:
        expected = expected * scale.reshape(-1, 1, 1, 1) + shift.reshape(-1, 1, 1, 1)
    expected = ACTIVATIONS[activation](expected)
    assert np.abs(made[0] - expected).max() <= 2e-6 * max(1, np.abs(expected).max())


def test_an_array_with_itself_and_its_scale_by_channel() -> None:
    host = here()
    layout = planes((3, 1, 2), 1, host, 1, 1)
    x = np.arange(6, dtype=np.float32).reshape(3, 1, 2, 1)
    scale, shift = np.array([1, 10, -1], np.float32), np.array([0.5, 0, 100], np.float32)
    operation = Merging(Merge("m", "x", "z", Epilogue("x", None, scale, shift, "relu6")), layout, layout, layout, host)
    made = ran(operation, {"x": (layout, x)}, {"z": layout}, host)["z"]
    assert made.reshape(-1).tolist() == [0.5, 2.5, 6, 6, 6, 6]
    assert operation.bytes == 24
    assert operation.scratch(2) == 0


def test_what_does_not_fit_is_refused() -> None:
    host = here()
    layout, other = planes((2, 6, 6), 1, host), planes((2, 6, 5), 1, host)
    one = np.ones(2, np.float32)

    def merge(source: Planes = layout, add: Planes | None = layout, target: Planes = layout, **changes: object) -> Merging:
        return Merging(Merge("m", "x", "z", Epilogue(**({"add": "y"} | changes))), source, add, target, host)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"^m: the layer adds y, expected its planes and nothing else, got None$"):
        merge(add=None)
    with pytest.raises(ValueError, match=r"^m: the layer adds None, expected its planes and nothing else, got Planes"):
        Merging(Merge("m", "x", "z", Epilogue()), layout, layout, layout, host)
    with pytest.raises(ValueError, match=r"^m: a merge keeps no raw sum, expected raw=None, got 's'$"):
        merge(raw="s")
    images = f"1 or {host.lanes} images side by side"
    with pytest.raises(ValueError, match=rf"^m: expected layouts of one shape, {images}, got \(2, 6, 6, 1\) and \(2, 6, 5, 1\)$"):
        merge(add=other)
    with pytest.raises(ValueError, match=r"got \(2, 6, 6, 1\) and \(2, 6, 5, 1\)$"):
        merge(target=other)
    three = Planes.throughput(2, 6, 6, 0, 0, 3)
    with pytest.raises(ValueError, match=r"got \(2, 6, 6, 3\) and \(2, 6, 6, 3\)$"):
        merge(three, three, three)
    with pytest.raises(ValueError, match=r"^m: expected scale and shift or neither, got one of them$"):
        merge(scale=one)
    with pytest.raises(ValueError, match=r"^m: expected scale and shift of shape \(2,\), got \(3,\)$"):
        merge(scale=one, shift=np.ones(3, np.float32))


@pytest.mark.parametrize("other", others(), ids=lambda host: host.name)
def test_other_processors_need_no_library(other) -> None:
    layout = planes((2, 30, 30), 1, other, 1, 1)
    operation = Merging(Merge("m", "x", "z", Epilogue("y", activation="gelu")), layout, layout, layout, other)
    assert "mem" not in assembly(operation.ir, other)
