"""Stages that ONNX Runtime runs: values, the carry, fixed batches, batches that don't fit into memory, several threads, wrong ports."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quorate.cascade import Stage
from quorate.runtime import BundleError, OnnxStage, Port, Ports, Program
from quorate.runtime.session import check_providers, open_session
from tiny_bundles import CLASSES, FEATURES, chained, dense, member, parts, rows, ticket, weights
from tiny_onnx import linear, model, node, tensor

pytestmark = pytest.mark.deciding


def stage(program: Program, **options: Any) -> OnnxStage:
    return OnnxStage(open_session(program.onnx, "p.onnx", **options), program.ports)


def test_members_are_the_products() -> None:
    program, x = member("a", 0, members=3), rows(5)
    made = stage(program, threads=1)
    assert isinstance(made, Stage)
    found, written = made(x, {})
    np.testing.assert_allclose(found, np.einsum("bf,mfc->mbc", x, weights(0, 3, FEATURES, CLASSES)), rtol=1e-5)
    assert written == {}
    assert (made.name, made.macs, made.reads, made.writes, made.drops, made.span) == ("a", 18.0, (), (), (), None)


def test_the_carry_goes_by_its_own_names() -> None:
    first, second = map(stage, chained())
    x = rows(4)
    _, written = first(x, {})
    np.testing.assert_allclose(written["h"], x @ weights(2, FEATURES, 4), rtol=1e-5)
    found, nothing = second(x, written)
    np.testing.assert_allclose(found[0], written["h"] @ weights(3, 1, 4, CLASSES)[0], rtol=1e-5)
    assert nothing == {}
    assert second.drops == ("h",)


def test_a_span_cuts_the_input() -> None:
    early, late = map(stage, parts())
    x = rows(3, 0, 2, 8)
    members, carried = early(x, {})
    again, _ = early.arrived(x[..., :3], {})
    np.testing.assert_array_equal(members, again)
    found, _ = late(x, carried)
    np.testing.assert_allclose(found[0], x.sum(-1) @ weights(7, 1, 2, CLASSES)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_fixed_batch_is_filled_up(count: int) -> None:
    weight = weights(4, CLASSES, FEATURES)
    onnx = linear(weight, batch=3, y="members")
    ports = Ports("f", Port("members", "float32", (CLASSES,)), Port("x", "float32", (FEATURES,)), batch=3)
    made = OnnxStage(open_session(onnx, "f.onnx"), ports)
    x = rows(count)
    found, _ = made(x, {})
    assert found.shape == (1, count, CLASSES)
    np.testing.assert_allclose(found[0], x @ weight.T, rtol=1e-5)


class Small:
    """A session that can't take more rows than this at once."""

    def __init__(self, inner: Any, most: int, error: Exception) -> None:
        self.inner, self.most, self.error, self.sizes = inner, most, error, list[int]()

    def run(self, outputs: Any, feed: Any) -> Any:
        count = len(next(iter(feed.values())))
        self.sizes.append(count)
        if count > self.most:
            raise self.error
        return self.inner.run(outputs, feed)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("Failed to allocate memory for requested buffer of size 7"),
        RuntimeError("CUDA failure 2: out of memory"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_kept(error: Exception) -> None:
    made = stage(chained()[0])
    x = rows(23)
    whole, carried = made(x, {})
    made.session = small = Small(made.session, 3, error)
    found, written = made(x, {})
    np.testing.assert_allclose(found, whole, rtol=1e-6)
    np.testing.assert_allclose(written["h"], carried["h"], rtol=1e-6)
    assert small.sizes == [23, 12, 6, *[3] * 7, 2]
    small.sizes.clear()
    made(x, {})
    assert max(small.sizes) <= 3


def test_a_row_that_does_not_fit_is_an_error_of_one_line() -> None:
    made = stage(member("a", 0))
    made.session = Small(made.session, 0, MemoryError("bad\nalloc"))
    with pytest.raises(ValueError, match="stage 'a' failed on 1 rows: bad alloc"):
        made(rows(4), {})


def test_other_failures_are_not_tried_again() -> None:
    made = stage(member("a", 0))
    made.session = small = Small(made.session, 0, RuntimeError("no kernel"))
    with pytest.raises(ValueError, match="stage 'a' failed on 4 rows: no kernel"):
        made(rows(4), {})
    assert small.sizes == [4]


def test_half_precision_members_come_out_as_float32() -> None:
    onnx = model([node("Cast", ["x"], ["members"], to=10)], {"x": ("float32", ("n", 2))}, {"members": ("float16", ("n", 2))}, [])
    made = OnnxStage(open_session(onnx, "h"), Ports("h", Port("members", "float16", (2,)), Port("x", "float32", (2,))))
    found, _ = made(np.array([[1.0, 2.0 + 2**-12]], np.float32), {})
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[[1.0, 2.0]]])


def test_weights_from_outside_are_those_given() -> None:
    program = ticket()
    made = stage(program, external={"w": dense(program)})
    x = rows(4)
    np.testing.assert_allclose(made(x, {})[0], np.einsum("bf,mfc->mbc", x, dense(program)), rtol=1e-5, atol=1e-6)


def test_many_threads_get_the_results_of_one() -> None:
    made, inputs = stage(member("a", 0), threads=1), [rows(n, n) for n in range(1, 9)]
    alone = [made(x, {})[0] for x in inputs]
    wrong: list[int] = []

    def work(at: int) -> None:
        for _ in range(200):
            if not np.array_equal(made(inputs[at], {})[0], alone[at]):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def port(name: str, dtype: str = "float32", *shape: int | None) -> Port:
    return Port(name, dtype, shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": port("y", "float32", FEATURES)}, r"takes \['x'\], its manifest says \['y'\]"),
        ({"input": port("x", "float64", FEATURES)}, "has 'x' as tensor"),
        ({"input": port("x", "float32", FEATURES + 1)}, "has 'x' as tensor"),
        ({"input": port("x", "float32", FEATURES, 1)}, "has 'x' of shape"),
        ({"members": port("logits", "float32", 2, CLASSES)}, r"gives \['members'\], its manifest asks for 'logits'"),
        ({"members": port("members", "float32", 3, CLASSES)}, "has 'members' as tensor"),
        ({"members": port("members", "float16", 2, CLASSES)}, "has 'members' as tensor"),
        ({"input": None}, r"takes \['x'\], its manifest says \[\]"),
    ],
)
def test_ports_that_are_not_the_programs(change: dict[str, Any], message: str) -> None:
    program = member("a", 0)
    with pytest.raises(BundleError, match=message):
        stage(replace(program, ports=replace(program.ports, **change)))


def test_a_fixed_batch_that_was_not_declared() -> None:
    onnx = linear(weights(4, CLASSES, FEATURES), batch=3, y="members")
    with pytest.raises(BundleError, match="takes 3 rows at a time, its manifest says any number"):
        OnnxStage(open_session(onnx, "f"), Ports("f", port("members", "float32", CLASSES), port("x", "float32", FEATURES)))


@pytest.mark.parametrize("wrong", ["CUDAExecutionProvider", ["NoSuchExecutionProvider"], [], [("Gone", {})]])
def test_providers_that_are_not_there(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a list of .*CPUExecutionProvider"):
        check_providers(wrong)


def test_a_graph_that_can_not_be_read() -> None:
    with pytest.raises(BundleError, match=r"x\.onnx can't be run by ONNX Runtime .*: export it anew"):
        open_session(b"nonsense", "x.onnx")
    unknown = model([node("NoSuchOperator", ["x"], ["y"])], {"x": ("float32", ("n", 2))}, {"y": ("float32", ("n", 2))}, [])
    with pytest.raises(BundleError, match="NoSuchOperator"):
        open_session(unknown, "x.onnx")
    assert tensor("w", np.zeros((1, 2), np.float32))
