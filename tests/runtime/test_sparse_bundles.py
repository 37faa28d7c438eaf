"""Bundles of tickets on kernels: the answers of ONNX Runtime, under policies, with carries, as regressions, from many threads; tuning."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quorate
from quorate.runtime import BundleError, Program, Runtime
from sparse_bundles import answer, carrying, perceptron
from tiny_bundles import bundle, member, policy_of, rows

pytest.importorskip("llvmlite")

from quorate.runtime.sparse.explaining import Explanation
from quorate.runtime.sparse.machine import cache
from quorate.runtime.sparse.machine.host import here
from quorate.runtime.sparse.sparse import SparseNetwork
from quorate.runtime.sparse.tuning import LAYOUTS, Tuning

pytestmark = pytest.mark.deciding
SIZES = [1, 2, 7, 8, 9, 16, 17, 37]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tunings of these tests alone."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "sparse"


def both(path: Path, programs: list[Program], **options: Any) -> tuple[Runtime, Runtime]:
    """(sparse, dense) of a bundle of these programs."""
    bundle(path, programs, **options)
    return quorate.load_bundle(path, threads=1), quorate.load_bundle(path, threads=1, sparse="off")


def agree(sparse: Runtime, dense: Runtime) -> None:
    for size in SIZES:
        x = rows(size, size)
        for got, want in zip(sparse.outputs(x).values, dense.outputs(x).values, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(np.abs(want).max()))


def test_members_are_those_of_fp64_and_of_onnx_runtime(tmp_path: Path) -> None:
    programs = [perceptron("a", 10), perceptron("b", 20, density=0.1)]
    sparse, dense = both(tmp_path / "b", programs)
    assert [engine.name for engine in sparse.engines] == ["sparse", "sparse"]
    agree(sparse, dense)
    x = rows(19)
    for got, program, seed in zip(sparse.outputs(x).values, programs, (10, 20), strict=True):
        want = answer(program, seed, x)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(np.abs(want).max()))


def test_a_cascade_over_tickets_and_a_dense_stage(tmp_path: Path) -> None:
    programs = [perceptron("a", 10), member("b", 0), perceptron("c", 30)]
    policy = policy_of(programs, window=(0.45, None), tau=0.6)
    sparse, dense = both(tmp_path / "b", programs, policy=policy)
    assert [engine.name for engine in sparse.engines] == ["sparse", "dense", "sparse"]
    x = rows(200)
    got, want = sparse.predict(x), dense.predict(x)
    for name in ("stage", "label", "accepted", "macs"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    np.testing.assert_allclose(got.probs, want.probs, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
    assert len(set(got.stage.tolist())) == 3
    assert len(sparse.predict(rows(0))) == 0


def test_what_stages_carry(tmp_path: Path) -> None:
    sparse, dense = both(tmp_path / "b", carrying())
    assert [engine.name for engine in sparse.engines] == ["sparse", "sparse"]
    agree(sparse, dense)
    x = rows(11)
    found, want = (runtime.stages[0](x, {})[1]["h"] for runtime in (sparse, dense))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    assert found.shape == (11, 40)


def test_a_regression(tmp_path: Path) -> None:
    programs = [perceptron("a", 10, outputs=2), perceptron("b", 20, outputs=2)]
    sparse, dense = both(tmp_path / "b", programs, policy=None, kind="values")
    assert [engine.name for engine in sparse.engines] == ["sparse", "sparse"]
    x = rows(13)
    for stages in (1, 2):
        got, want = sparse.prefix(x, stages), dense.prefix(x, stages)
        np.testing.assert_allclose(got.values, want.values, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def test_four_threads_get_what_one_gets(tmp_path: Path) -> None:
    programs = [perceptron("a", 10), perceptron("b", 20)]
    bundle(tmp_path / "b", programs)
    runtime = quorate.load_bundle(tmp_path / "b", threads=2)
    given = [rows(size, size) for size in (1, 5, 16, 33)]
    want = [quorate.load_bundle(tmp_path / "b", threads=1).outputs(x).values for x in given]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, expected in zip(pool.map(lambda x: runtime.outputs(x).values, given), want, strict=True):
                for one, other in zip(got, expected, strict=True):
                    np.testing.assert_array_equal(one, other)


def test_batches_are_cut_as_they_are_for_onnx_runtime(tmp_path: Path) -> None:
    bundle(tmp_path / "b", [perceptron("a", 10)])
    x = rows(50)
    lanes = here().lanes
    whole = quorate.load_bundle(tmp_path / "b", threads=1).predict(x).probs
    cut = quorate.load_bundle(tmp_path / "b", threads=1, batch_size=lanes).predict(x).probs
    np.testing.assert_array_equal(cut, whole)


def test_memory_that_is_full_is_met_by_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle(tmp_path / "b", [perceptron("a", 10)])
    runtime, x = quorate.load_bundle(tmp_path / "b", threads=1), rows(24)
    want, run = runtime.stages[0](x, {})[0], SparseNetwork.run

    def full(self: SparseNetwork, names: Any, feed: Any) -> Any:
        if len(feed["x"]) > 8:
            raise MemoryError
        return run(self, names, feed)

    monkeypatch.setattr(SparseNetwork, "run", full)
    np.testing.assert_allclose(runtime.stages[0](x, {})[0], want, rtol=1e-5, atol=1e-6)


def test_other_rows_than_it_takes_are_refused(tmp_path: Path) -> None:
    bundle(tmp_path / "b", [perceptron("a", 10)])
    runtime = quorate.load_bundle(tmp_path / "b", threads=1)
    for x, message in (
        (rows(3).astype(np.float64), r"x has dtype float64: the bundle takes float32"),
        (rows(3)[:, :5], r"x has shape \(3, 5\): the bundle takes \(B, 6\)"),
        (np.full((3, 6), np.nan, np.float32), r"NaN or infinite values in rows 0, 1, 2"),
    ):
        with pytest.raises(ValueError, match=message):
            runtime.predict(x)
    with pytest.raises(ValueError, match=r"stage 'a' failed on 3 rows: .*expected float32"):
        runtime.stages[0](rows(3)[:, :5], {})


def test_golden_outputs_are_checked_on_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle(tmp_path / "b", [perceptron("a", 10)])
    run = SparseNetwork.run
    monkeypatch.setattr(SparseNetwork, "run", lambda self, names, feed: [array + 1 for array in run(self, names, feed)])
    with pytest.raises(BundleError, match=r"stage 'a' gives members that differ by up to 1 from the stored ones"):
        quorate.load_bundle(tmp_path / "b")


def test_it_is_warmed_up_and_explained(tmp_path: Path) -> None:
    bundle(tmp_path / "b", [perceptron("a", 10), member("b", 0)])
    runtime = quorate.load_bundle(tmp_path / "b", threads=1, verify="files")
    network = runtime.stages[0].session
    assert isinstance(network, SparseNetwork)
    runtime.warm_up((network.host.lanes,))
    assert all(network.lowered[layout].spaces is not None for layout in LAYOUTS)
    for layout in LAYOUTS:
        found = runtime.explain(layout)
        assert list(found) == ["a"]
        assert isinstance(found["a"], Explanation)
        assert [line.name for line in found["a"].lines if line.density is not None] == ["a", "c"]
        assert found["a"].rows == (1 if layout == "latency" else network.host.lanes)
    with pytest.raises(ValueError, match=r"layout='fast': expected one of latency, throughput"):
        runtime.explain("fast")  # type: ignore[arg-type]


# ---------------------------------------------------------------- tuning


def test_tuning_is_told_kept_and_used(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "b"
    bundle(path, [perceptron("a", 10), member("b", 0)])
    told: list[str] = []
    found = quorate.tune_bundle(path, threads=1, trials=1, progress=told.append)
    assert list(found) == ["a"]
    assert isinstance(found["a"], Tuning)
    assert told[:2] == ["a: latency: a", "a: latency: c"]
    assert told[-1] == "a: the whole network"
    assert set(found["a"].engine) == set(found["a"].whole) == set(LAYOUTS)
    assert all(set(found["a"].timings[layout]) == {"a", "c"} for layout in LAYOUTS)
    assert len(list(folder.glob("*.text"))) == 2  # and the one that shows that it can be written
    runtime = quorate.load_bundle(path, threads=1)
    engine = runtime.engines[0]
    if set(found["a"].engine.values()) == {"dense"}:
        assert engine.why.startswith("dense was faster when it was tuned")
    else:
        assert engine.why.startswith("tuned for 1 thread")
        assert runtime.stages[0].session.tuning == found["a"]
    agree(runtime, quorate.load_bundle(path, threads=1, sparse="off"))
    assert quorate.load_bundle(path, threads=2).engines[0].why == "chosen by rule, not tuned for 2 threads"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, r"trials=0: expected a whole number of forms of each layer, at least 1"),
        ({"trials": 1.5}, r"trials=1\.5: expected a whole number"),
        ({"threads": 0}, r"threads=0: expected a number from 1 to \d+, or None for one per core"),
    ],
)
def test_tunings_that_can_not_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    bundle(tmp_path / "b", [perceptron("a", 10)])
    with pytest.raises(ValueError, match=message):
        quorate.tune_bundle(tmp_path / "b", **options)


def test_nothing_to_tune(tmp_path: Path) -> None:
    bundle(tmp_path / "b", [member("a", 0), member("b", 1)])
    with pytest.raises(ValueError, match=r"b has nothing to tune: a: it has no ticket; b: it has no ticket"):
        quorate.tune_bundle(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="gone"):
        quorate.tune_bundle(tmp_path / "gone")


def test_a_damaged_bundle_is_not_tuned(tmp_path: Path) -> None:
    manifest = bundle(tmp_path / "b", [perceptron("a", 10)])
    ticket = tmp_path / "b" / str(manifest.stages[0].ticket)
    data = bytearray(ticket.read_bytes())
    data[-1] ^= 1
    ticket.write_bytes(data)
    with pytest.raises(BundleError, match=r"is damaged: .*SHA-256"):
        quorate.tune_bundle(tmp_path / "b")
