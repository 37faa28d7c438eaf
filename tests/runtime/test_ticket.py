"""Ticket files of a bundle: bit for bit what was given, the bytes by hand, and nothing allocated for what a file only says."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from quorate.runtime.manifest import BundleError
from quorate.runtime.program import Sparse
from quorate.runtime.ticket import SPARE, SPARSEST, read_ticket, ticket_bytes

pytestmark = pytest.mark.deciding


def sparse(shape: tuple[int, ...], density: float, dtype: Any = np.float32, seed: int = 0) -> Sparse:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < density
    return Sparse((rng.normal(size=int(mask.sum())) * 50).astype(dtype), mask)


def whole(weight: Sparse) -> NDArray[Any]:
    found = np.zeros(weight.mask.shape, weight.values.dtype)
    found[weight.mask] = weight.values
    return found


def shapes(weights: dict[str, Sparse]) -> dict[str, tuple[int, ...]]:
    return {name: weight.mask.shape for name, weight in weights.items()}


def file(arrays: dict[str, NDArray[Any]], about: Any = None, **changed: Any) -> bytes:
    """A ticket of one weight w (2, 4), as it should be but for what is changed."""
    header = {"format": "quorate-ticket/1", "shapes": {"w": [2, 4]}, "dtypes": {}, "shared": {}, "about": {}} | changed
    return bytes(save(arrays, metadata={"about": json.dumps(header) if about is None else about}))


LIVE = {"live:w": np.array([1.5, -2.0, 3.0], np.float32)}
GOOD = LIVE | {"bits:w": np.array([0b01000011], np.uint8)}  # places 0, 1, 6
PLACES = LIVE | {"places:w": np.array([0, 1, 6], np.int32)}
SHAPES = {"w": (2, 4)}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8, np.uint8])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_what_is_written_is_read(dtype: Any, density: float) -> None:
    weights = {name: sparse(shape, density, dtype, seed) for seed, (name, shape) in enumerate(
        {"a.weight": (7,), "b": (3, 5, 2, 3), "ü:x": (40, 41), "one": (1, 1)}.items()
    )}  # fmt: skip
    data = ticket_bytes(weights)
    found = read_ticket(data, "t", shapes(weights))
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == dtype
        assert found[name].flags.c_contiguous
        assert found[name].flags.writeable
        assert found[name].tobytes() == whole(weight).tobytes()
    assert ticket_bytes(dict(reversed(weights.items()))) == data


def test_the_bytes_by_hand() -> None:
    few = np.zeros(200, bool)
    few[[3, 199]] = True
    data = ticket_bytes({"w": Sparse(LIVE["live:w"], np.unpackbits(GOOD["bits:w"], bitorder="little").astype(bool).reshape(2, 4)),
                         "few": Sparse(np.array([1, 2], np.float16), few)})  # fmt: skip
    arrays = load(data)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "live:w": [1.5, -2.0, 3.0], "bits:w": [67], "live:few": [1.0, 2.0], "places:few": [3, 199],
    }  # fmt: skip
    assert read_ticket(file(GOOD), "t", SHAPES)["w"].tolist() == [[1.5, -2, 0, 0], [0, 0, 3, 0]]
    assert read_ticket(file(PLACES), "t", SHAPES)["w"].tolist() == [[1.5, -2, 0, 0], [0, 0, 3, 0]]


def test_live_zeros_and_nan_keep_their_bits() -> None:
    values = np.array([0x80000000, 0x7FC00001, 0], np.uint32).view(np.float32)
    mask = np.array([True, False, True, True])
    found = read_ticket(ticket_bytes({"w": Sparse(values, mask)}), "t", {"w": (4,)})["w"]
    assert found.view(np.uint32).tolist() == [0x80000000, 0, 0x7FC00001, 0]


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (Sparse(np.zeros(3, np.float32), np.ones(4, bool)), r"values \(3,\) for 4 live places"),
        (Sparse(np.zeros((2, 2), np.float32), np.ones((2, 2), bool)), r"values \(2, 2\) for 4"),
        (Sparse(np.zeros(4, np.int64), np.ones(4, bool)), "values of 'w' are int64"),
        (Sparse(np.zeros(4, np.float32), np.ones(4, np.uint8)), "mask of 'w' is uint8"),
        (Sparse(np.zeros(1, np.float32), np.array(True)), "1–16 axes"),
        (Sparse(np.zeros(0, np.float32), np.ones((3, 0), bool)), "1 to 2³¹ places"),
        (Sparse(np.zeros(0, np.float32), np.broadcast_to(np.zeros(1, bool), (SPARE + 1,))), "less than one live place in 1024"),
    ],
)
def test_weights_that_make_no_ticket(weight: Sparse, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ticket_bytes({"w": weight})
    with pytest.raises(ValueError, match="no weights"):
        ticket_bytes({})


def without(key: str) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in GOOD.items() if name != key}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cut off"),
        (file(GOOD)[:-1], "no safetensors file"),
        (file(GOOD)[:50], "cut off"),
        (bytes(save(GOOD)), "no ticket of a bundle"),
        (file(GOOD, "{"), "no ticket of a bundle"),
        (file(GOOD, "[" * 100_000), "no ticket of a bundle"),
        (file(GOOD, "9" * 5000), "no ticket of a bundle"),
        (file(GOOD, "[]"), "no ticket of a bundle"),
        (file(GOOD, format="quorate-ticket/2"), "format 'quorate-ticket/2'"),
        (file(GOOD, dtypes={"w": "bfloat16"}), "more than a bundle's weights"),
        (file(GOOD, shared={"v": "w"}), "more than a bundle's weights"),
        (file(GOOD, more=1), "more than a bundle's weights"),
        (file(GOOD, shapes=[["w", [2, 4]]]), "no ticket of a bundle"),
        (file(GOOD, shapes=None), "no ticket of a bundle"),
        (file(GOOD, shapes={}), "0 weights of other names"),
        (file(GOOD, shapes={"v": [2, 4]}), "other names"),
        (file(GOOD, shapes={"w": [4, 2]}), r"the shape \[4, 2\], the manifest says \[2, 4\]"),
        (file(GOOD, shapes={"w": [2.0, "4"]}), "the shape"),
        (file(GOOD | {"whole:b": np.zeros(2)}), "no part of its weights"),
        (file(GOOD | {"live:v": np.zeros(2)}), "no part of its weights"),
        (file(GOOD | {"places:w": np.zeros(3, np.int32)}), "the parts live, bits, places"),
        (file(without("bits:w")), "the parts live: expected"),
        (file(without("live:w")), "the parts bits: expected"),
        (file(GOOD | {"live:w": np.zeros((3, 1), np.float32)}), "no part of its weights"),
        (file(GOOD | {"live:w": np.zeros(3, np.complex64)}), "no part|no safetensors"),
        (file(GOOD | {"live:w": np.zeros(3, np.int64)}), "no part of its weights"),
        (file(GOOD | {"live:w": np.zeros(4, np.float32)}), "4 values for 3 live places"),
        (file(GOOD | {"bits:w": np.zeros(2, np.uint8)}), "has 2 bytes, 8 places take 1"),
        (file(GOOD | {"bits:w": np.zeros(1, np.int8)}), "no part of its weights"),
        (file(PLACES | {"places:w": np.array([0, 1, 8], np.int32)}), "not ascending in 0 … 7"),
        (file(PLACES | {"places:w": np.array([-1, 1, 2], np.int32)}), "not ascending"),
        (file(PLACES | {"places:w": np.array([0, 2, 2], np.int32)}), "not ascending"),
        (file(PLACES | {"places:w": np.array([0, 1], np.int32)}), "3 values for 2 live places"),
        (file(PLACES | {"places:w": np.array([0, 1, 6], np.int64)}), "no part of its weights"),
    ],
)
def test_files_that_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(BundleError, match=why) as error:
        read_ticket(data, "content/t", SHAPES)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("content/t is damaged: ")


def test_bits_beyond_the_last_place() -> None:
    with pytest.raises(BundleError, match="set beyond its 7 places"):
        read_ticket(file(GOOD | {"bits:w": np.array([0b10000011], np.uint8)}, shapes={"w": [7]}), "t", {"w": (7,)})


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20), (SPARE + 3 * SPARSEST + 1,), (2**40, 2**40, 2**40)])
@pytest.mark.parametrize("arrays", [GOOD, PLACES])
def test_declared_shapes_allocate_nothing(shape: tuple[int, ...], arrays: dict[str, NDArray[Any]]) -> None:
    data = file(arrays, shapes={"w": list(shape)})
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=r"of which its live ones allow 16,780,288|places take"):
            read_ticket(data, "t", {"w": shape})
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_many_declared_weights_share_one_allowance() -> None:
    names = [f"w{k}" for k in range(3)]
    arrays = {
        f"{what}:{name}": array
        for name in names
        for what, array in (("live", np.zeros(0, np.float32)), ("places", np.zeros(0, np.int32)))
    }
    size = SPARE // 2
    data = file(arrays, shapes={name: [size] for name in names})
    with pytest.raises(BundleError, match="live ones allow 16,777,216"):
        read_ticket(data, "t", dict.fromkeys(names, (size,)))
    assert math.prod(read_ticket(file(PLACES, shapes={"w": [10**6]}), "t", {"w": (10**6,)})["w"].shape) == 10**6
