"""What comes to a runtime as input: arrays of other frameworks, masked ones, sizes of zero, options of other types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quorate
from quorate.runtime import Port, Ports, Program
from tiny_bundles import FEATURES, bundle, member, parts, policy_of, rows, weights
from tiny_onnx import model, node, tensor

pytestmark = pytest.mark.deciding


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "one"
    bundle(path, [member("a", 0)])
    return path


class Device:
    """A tensor that lies elsewhere: NumPy can't read it."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("can't convert\na device tensor")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            Device(),
            r"^x is Device, which NumPy can't read \(can't convert a device tensor\): expected .* x.detach\(\).cpu\(\).numpy\(\)$",
        ),
        ([[1.0, 2.0], [3.0]], "^x is list, which NumPy can't read .*: expected a rectangular array"),
        (np.ma.masked_less(rows(3), 0), "^x has masked values: fill them in"),
    ],
)
def test_what_is_no_array_is_refused_in_one_line(one: Path, x: Any, message: str) -> None:
    runtime = quorate.load_bundle(one)
    for call in (runtime.predict, runtime.prefix, runtime.outputs, lambda x: next(runtime.predict_stream([x]))):
        with pytest.raises(ValueError, match=message):
            call(x)


def test_masks_that_hide_nothing_are_taken(one: Path) -> None:
    runtime, x = quorate.load_bundle(one), rows(3)
    np.testing.assert_array_equal(runtime.predict(np.ma.masked_array(x)).probs, runtime.predict(x).probs)


def test_chunks_that_are_no_arrays(tmp_path: Path) -> None:
    programs = parts()
    bundle(tmp_path / "b", programs, rows(2, 0, 2, 8), policy=policy_of(programs))
    with pytest.raises(ValueError, match=r"^a chunk is Device, which NumPy can't read"):
        quorate.load_bundle(tmp_path / "b").stream([Device()])


def test_a_free_size_is_at_least_one(tmp_path: Path) -> None:
    onnx = model(
        [node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0), node("MatMul", ["m", "w"], ["members"])],
        {"x": ("float32", ("n", "t", 2))},
        {"members": ("float32", ("n", 3))},
        [tensor("w", weights(0, 2, 3))],
    )
    program = Program(Ports("s", Port("members", "float32", (3,)), Port("x", "float32", (None, 2))), onnx)
    bundle(tmp_path / "b", [program], rows(3, 0, 4, 2))
    runtime = quorate.load_bundle(tmp_path / "b")
    assert len(runtime.predict(rows(2, 0, 9, 2))) == 2
    with pytest.raises(
        ValueError, match=r"x has shape \(2, 0, 2\): the bundle takes \(B, any, 2\), at least 1 of each but the rows"
    ):
        runtime.predict(np.zeros((2, 0, 2), np.float32))


def test_bad_rows_are_named_wherever_they_lie(one: Path) -> None:
    runtime, x = quorate.load_bundle(one, batch_size=3), rows(11)
    x[[4, 9, 10], [0, 3, FEATURES - 1]] = np.nan, np.inf, -np.inf
    with pytest.raises(ValueError, match="in rows 4, 9, 10: mend"):
        runtime.predict(x)


@pytest.mark.parametrize("size", [0, 2.5, "3", None])
def test_batch_sizes(one: Path, size: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_size=.*: expected a whole number of rows, at least 1"):
        quorate.load_bundle(one, batch_size=size)


@pytest.mark.parametrize("threads", [0, 1.5, "2", 10**6, 2**40])
def test_threads(one: Path, threads: Any) -> None:
    with pytest.raises(ValueError, match=r"threads=.*: expected a number from 1 to \d+, or None"):
        quorate.load_bundle(one, threads=threads)
    assert len(quorate.load_bundle(one, threads=np.int64(1)).predict(rows(2))) == 2  # type: ignore[arg-type]
