"""A loaded bundle: predictions are the executor's, prefixes and streams those of the stages; inputs that can't be meant are refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quorate
from quorate.cascade import Anytime, Cascade, Watch, stream
from quorate.runtime import Runtime
from quorate.runtime.session import OnnxStage
from tiny_bundles import CLASSES, FEATURES, bundle, chained, member, parts, policy_of, rows, weights

pytestmark = pytest.mark.deciding

TWO = [member("a", 0), member("b", 1)]
GOES = (0.2, 0.6)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "two"
    watch = Watch.of_counts(["a"], [1000], [100]).to_dict()
    bundle(path, TWO, policy=policy_of(TWO, GOES, tau=0.4), classes=["x", "y", "z"], watch=watch)
    return path


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "regression"
    bundle(path, TWO, policy=None, kind="values")
    return path


def same(one: Any, other: Any) -> None:
    for key in ("label", "probs", "uncertainty", "accepted", "stage", "macs"):
        np.testing.assert_array_equal(getattr(one, key), getattr(other, key))


@pytest.mark.parametrize("count", [1, 2, 50, 700])
def test_predictions_are_the_cascades(two: Path, count: int) -> None:
    runtime, x = quorate.load_bundle(two, threads=1), rows(count)
    assert isinstance(runtime, Runtime)
    assert runtime.policy is not None
    found = runtime.predict(x)
    same(found, Cascade([Product(k) for k in range(2)], runtime.policy).predict(x))
    if count > 2:
        assert set(found.stage) == {0, 1}
    assert (runtime.names, runtime.classes, runtime.input.dtype, runtime.input.shape) == (
        ("a", "b"),
        ("x", "y", "z"),
        "float32",
        (FEATURES,),
    )


class Product(OnnxStage):
    """The same stage opened apart from any bundle."""

    def __init__(self, k: int) -> None:
        from quorate.runtime.session import open_session

        super().__init__(open_session(TWO[k].onnx, "x", threads=1), TWO[k].ports)


def test_no_rows_are_answered_without_a_session(two: Path) -> None:
    runtime = quorate.load_bundle(two)
    for stage in runtime.stages:
        stage.session = None  # whoever calls it fails
    found = runtime.predict(rows(0))
    assert len(found) == 0
    assert found.label.shape == found.uncertainty.shape == (0,)
    assert list(map(len, runtime.predict_stream([rows(0), rows(0)]))) == [0, 0]


def test_batches_of_a_stream_one_at_a_time(two: Path) -> None:
    runtime = quorate.load_bundle(two)
    asked: list[int] = []

    def source() -> Any:
        for size in (3, 0, 5):
            asked.append(size)
            yield rows(size, size)

    answers = runtime.predict_stream(source())
    assert asked == []
    same(next(answers), runtime.predict(rows(3, 3)))
    assert asked == [3]
    assert [len(rest) for rest in answers] == [0, 5]
    with pytest.raises(ValueError, match="batches is ndarray: expected an iterable of arrays"):
        next(runtime.predict_stream(rows(3)))


def test_prefixes_by_stages_cost_and_time(two: Path) -> None:
    runtime, x = quorate.load_bundle(two, batch_size=4), rows(9)
    reference = Anytime([Product(0), Product(1)])
    for limit in ({"stages": 1}, {"stages": 2}, {"macs": 20.0}, {}):
        found, want = runtime.prefix(x, **limit), reference.predict(x, **limit)  # type: ignore[arg-type]
        assert found.name == want.name
        np.testing.assert_allclose(found.probs, want.probs, rtol=1e-6)
    assert runtime.prefix(x, seconds=60.0).name == "b"
    assert runtime.prefix(x, deadline=0.0).late
    assert [step.name for step in runtime.steps(x)] == ["a", "b"]
    with pytest.raises(ValueError, match="macs=1: expected at least 18"):
        runtime.prefix(x, macs=1)


def test_prefixes_of_a_chain(tmp_path: Path) -> None:
    bundle(tmp_path / "b", chained(), policy=policy_of(chained(), combine="logits"), combine="logits")
    runtime, x = quorate.load_bundle(tmp_path / "b"), rows(5)
    first, second = runtime.steps(x)
    assert (first.macs, second.macs) == (10.0, 15.0)
    mean = (x @ weights(1, 1, FEATURES, CLASSES)[0] + x @ weights(2, FEATURES, 4) @ weights(3, 1, 4, CLASSES)[0]) / 2
    e = np.exp(mean - mean.max(-1, keepdims=True))
    np.testing.assert_allclose(second.probs, e / e.sum(-1, keepdims=True), rtol=1e-4)


def test_a_sequence_that_arrives(tmp_path: Path) -> None:
    programs = parts()
    x = rows(6, 0, 2, 8)
    bundle(tmp_path / "b", programs, x[:2], policy=policy_of(programs, (0.3, 1.0)))
    runtime = quorate.load_bundle(tmp_path / "b")
    chunks = [x[..., :1], x[..., 1:6], x[..., 6:]]
    found = runtime.stream(iter(chunks))
    want = stream(runtime.stages, iter(chunks), runtime.policy)
    assert found.prediction is not None
    assert want.prediction is not None
    same(found.prediction, want.prediction)
    same(found.prediction, runtime.predict(x))
    assert [a.name for a in runtime.arrivals(iter(chunks))] == ["early", "late"]
    with pytest.raises(ValueError, match="a chunk has dtype float64: the bundle takes float32"):
        runtime.stream(iter([x.astype(np.float64)]))
    with pytest.raises(ValueError, match="expected an iterable of arrays"):
        runtime.stream(x)


def test_a_regression_has_values_and_no_predictions(regression: Path) -> None:
    runtime, x = quorate.load_bundle(regression), rows(4)
    assert runtime.policy is None
    want = np.mean([np.einsum("bf,mfc->mbc", x, weights(k, 2, FEATURES, CLASSES)) for k in range(2)], axis=(0, 1))
    np.testing.assert_allclose(runtime.prefix(x).values, want, rtol=1e-4, atol=1e-5)
    for call in (
        runtime.predict,
        lambda x: next(runtime.predict_stream([x])),
        lambda _: runtime.counters,
        lambda _: runtime.adjust_(),
    ):
        with pytest.raises(ValueError, match=r"this bundle is a regression, which has no \w+: use prefix\(x\)"):
            call(x)
    for options in ({"watch": True}, {"cap": 1.0}, {"memory": 10}):
        with pytest.raises(ValueError, match=r"no pass rates|watch, cap and memory are of cascades"):
            quorate.load_bundle(regression, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, FEATURES)), r"x has dtype float64: the bundle takes float32, convert it \(x.astype\(np.float32\)\)"),
        (np.zeros((2, FEATURES), np.uint8), "x has dtype uint8"),
        (np.zeros((2, FEATURES + 1), np.float32), r"x has shape \(2, 7\): the bundle takes \(B, 6\), rows first"),
        (np.zeros(FEATURES, np.float32), r"x has shape \(6,\)"),
        (np.float32(1), r"x has shape \(\)"),
        (np.full((3, FEATURES), [[1.0], [np.nan], [np.inf]], np.float32), "x has NaN or infinite values in rows 1, 2: mend"),
        (np.full((9, FEATURES), np.nan, np.float32), r"rows 0, 1, 2, 3, 4, … \(9 in all\)"),
    ],
)
def test_inputs_that_can_not_be_meant(two: Path, x: Any, message: str) -> None:
    runtime = quorate.load_bundle(two, batch_size=2)
    for call in (runtime.predict, runtime.prefix, lambda x: next(runtime.predict_stream([x])), runtime.steps, runtime.outputs):
        with pytest.raises(ValueError, match=message):
            call(x)


def test_strided_and_foreign_arrays_are_taken(two: Path) -> None:
    runtime, x = quorate.load_bundle(two), rows(8)

    class Foreign:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return x

    same(runtime.predict(Foreign()), runtime.predict(x))
    wide = np.repeat(x, 2, 1)[:, ::2]
    assert not wide.flags.c_contiguous
    same(runtime.predict(wide), runtime.predict(x))
    frozen = x.copy()
    frozen.flags.writeable = False
    same(runtime.predict(frozen), runtime.predict(x))


def test_counters_watch_cap_and_windows(two: Path) -> None:
    runtime = quorate.load_bundle(two, watch=True, memory=100, cap=20.0)
    x = rows(400)
    found = runtime.predict(x)
    assert runtime.counters.rows == 400
    assert runtime.counters.mean_macs == found.mean_macs <= 20.0
    assert runtime.watch is not None
    assert runtime.watch.to_dict()["stages"][0]["reached"] == 400
    runtime.reset_counters_()
    assert runtime.counters.rows == 0
    with pytest.raises(ValueError, match="centre"):
        runtime.adjust_()  # this policy's windows were not put around a threshold


def test_threads_may_predict_at_once(two: Path) -> None:
    runtime = quorate.load_bundle(two, threads=1)
    inputs = [rows(n * 7 + 1, n) for n in range(6)]
    alone = [runtime.predict(x) for x in inputs]
    runtime.reset_counters_()
    wrong: list[Any] = []

    def work(at: int) -> None:
        for _ in range(60):
            found = runtime.predict(inputs[at])
            if not (np.array_equal(found.probs, alone[at].probs) and np.array_equal(found.stage, alone[at].stage)):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert runtime.counters.rows == 60 * sum(map(len, inputs))


def test_warming_up_counts_nothing(two: Path, tmp_path: Path) -> None:
    runtime = quorate.load_bundle(two)
    runtime.warm_up([1, 8])
    assert runtime.counters.rows == 0
    with pytest.raises(ValueError, match="rows=0: expected at least 1"):
        runtime.warm_up([0])
    bundle(tmp_path / "chain", chained())
    quorate.load_bundle(tmp_path / "chain").warm_up()


def test_outputs_to_fit_on(two: Path) -> None:
    runtime, x = quorate.load_bundle(two, batch_size=7), rows(40)
    labels = np.arange(40) % 3
    found = runtime.outputs(x, labels)
    assert (found.names, found.classes, found.costs) == (("a", "b"), ("x", "y", "z"), (18.0, 18.0))
    np.testing.assert_array_equal(found.labels, labels)
    assert runtime.policy is not None
    same(quorate.cascade.simulate(runtime.policy, found), runtime.predict(x))
    policy = quorate.Policy.fit(found, target="risk@coverage=0.5", window="optimal", budget=0.8)
    assert [stage.name for stage in policy.stages] == ["a", "b"]
