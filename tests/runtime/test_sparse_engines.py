"""Engines: what runs a stage and why, and which tunings are taken; the kernels themselves have tests of their own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quorate
from quorate.runtime import Engine, engines
from quorate.runtime.session import CPU
from sparse_bundles import perceptron
from tiny_bundles import bundle, dense, member, policy_of, rows, ticket

pytest.importorskip("llvmlite")

from quorate.runtime import tunings
from quorate.runtime.sparse.choices import Choice
from quorate.runtime.sparse.kernels.tiles import Form
from quorate.runtime.sparse.machine import cache
from quorate.runtime.sparse.tuning import Tuning

pytestmark = pytest.mark.deciding
RULE = "chosen by rule, not tuned for 1 thread"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    found = cache.folder()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("bundles") / "b"
    bundle(found, [perceptron("a", 10), member("b", 0)])
    return found


def key(path: Path, threads: int = 1) -> str:
    manifest = quorate.load_bundle(path, verify="files", sparse="off").manifest
    return tunings.stage_key({file.path: file for file in manifest.files}, manifest.stages[0], threads)


def engine(path: Path, **options: Any) -> Engine:
    return quorate.load_bundle(path, **{"threads": 1, **options}).engines[0]


def opened(program: Any, **options: Any) -> tuple[Any, Engine]:
    external = {name: dense(program, name) for name in program.sparse}
    return engines.open_engine("a", program.onnx, external, "a.onnx", **{"threads": 1, **options})


@pytest.mark.usefixtures("folder")
def test_what_runs_each_stage(path: Path) -> None:
    runtime = quorate.load_bundle(path, threads=1)
    assert runtime.engines == (Engine("a", "sparse", RULE), Engine("b", "dense", "it has no ticket"))
    assert quorate.load_bundle(path, threads=1, sparse="off").engines[0] == Engine("a", "dense", "sparse='off'")
    cores = engines.cores()
    assert engine(path, threads=None).why == f"chosen by rule, not tuned for {cores} thread{'s' * (cores > 1)}"
    assert engine(path, providers=[CPU]).name == "sparse"
    given = engine(path, providers=[(CPU, {"arena_extend_strategy": "kSameAsRequested"})])
    assert given == Engine("a", "dense", f"providers are given, kernels are of the {CPU} without options")
    with pytest.raises(ValueError, match=r"sparse='on': expected 'auto', tickets run sparse where that can be, or 'off'"):
        quorate.load_bundle(path, sparse="on")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "why"),
    [({"precision": "bf16"}, "its precision is bf16, kernels are of fp32"), ({"batch": 4}, "it takes 4 rows at a time")],
)
def test_programs_that_are_left_alone(path: Path, change: dict[str, Any], why: str) -> None:
    stage = quorate.load_bundle(path, verify="files", sparse="off").manifest.stages[0]
    assert engines.dense_because(stage, [CPU], "auto") == ""
    assert engines.dense_because(replace(stage, ports=replace(stage.ports, **change)), [CPU], "auto") == why


def test_a_graph_without_kernels_runs_dense(tmp_path: Path) -> None:
    program = ticket()
    bundle(tmp_path / "b", [program], policy=policy_of([program]))
    runtime = quorate.load_bundle(tmp_path / "b", threads=1)
    assert runtime.engines[0].name == "dense"
    assert runtime.engines[0].why.startswith("no layer has a kernel here (MatMul of rows [6] and [40, 6, 1]")
    with pytest.raises(ValueError, match=r"no stage runs sparse: sparse: no layer has a kernel here \(MatMul"):
        runtime.explain()


def test_too_many_live_weights_run_dense() -> None:
    session, found = opened(perceptron("a", 10, density=0.9))
    assert found.name == "dense"
    assert "of its multiply-adds are live" in found.why
    assert type(session).__module__.startswith("onnxruntime")


@pytest.mark.parametrize("error", [ValueError("no\nway"), RuntimeError("LLVM refuses a routine: no\nway")])
def test_what_can_not_be_planned_runs_dense(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from quorate.runtime.sparse.sparse import SparseNetwork

    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(SparseNetwork, "prepare", failing)
    session, found = opened(perceptron("a", 10))
    assert found == Engine("a", "dense", " ".join(str(error).split()))
    x = rows(3)
    want = opened(perceptron("a", 10), why="so")[0].run(None, {"x": x})[0]
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], want)


def test_where_no_code_can_be_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quorate.runtime.sparse.machine import code

    def failing(*_: Any) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr(code, "routine", failing)
    assert engine(path) == Engine(
        "a", "dense", "llvmlite does not work here (Operation not permitted): reinstall quorate[sparse]"
    )


def test_without_llvmlite_it_is_said_once(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quorate.runtime import loading
    from quorate.runtime.sparse.machine import host

    bundle(tmp_path / "b", [perceptron("other", 30)])
    x = rows(11)
    want = quorate.load_bundle(path, threads=1).outputs(x)
    for memo in (host.here, host.started):
        memo.cache_clear()
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    monkeypatch.setattr(loading, "_TOLD", set())
    with pytest.warns(
        RuntimeWarning, match=r"b: a could run sparse, but llvmlite is not installed: install quorate\[sparse\]"
    ) as said:
        runtime = quorate.load_bundle(path, threads=1)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert runtime.engines[0] == Engine("a", "dense", engines.NOT_INSTALLED)
    for got, values in zip(runtime.outputs(x).values, want.values, strict=True):
        np.testing.assert_allclose(got, values, rtol=1e-5, atol=1e-6)
    quorate.load_bundle(path, threads=1)  # not again: warnings are errors
    quorate.load_bundle(tmp_path / "b", sparse="off")
    with pytest.warns(RuntimeWarning, match="other could run sparse"):
        quorate.load_bundle(tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"nothing to tune: a: llvmlite is not installed: install quorate\[sparse\]; b: it has no ticket"
    ):
        quorate.tune_bundle(path)


# ---------------------------------------------------------------- tunings


def test_a_kept_tuning_is_used_for_its_threads_and_content(path: Path, folder: Path, tmp_path: Path) -> None:
    slow = Tuning({"latency": "dense", "throughput": "dense"}, whole={"latency": (2e-3, 1e-3)})
    tunings.keep(key(path), slow)
    assert engine(path) == Engine(
        "a", "dense", "dense was faster when it was tuned (1 against 2 ms); dense was faster when it was tuned"
    )
    assert engine(path, threads=2).name == "sparse"
    bundle(tmp_path / "other", [perceptron("a", 11), member("b", 0)])
    assert engine(tmp_path / "other") == Engine("a", "sparse", RULE)
    half = Tuning({"latency": "sparse", "throughput": "dense"})
    tunings.keep(key(path), half)
    found = engine(path)
    assert found.name == "sparse"
    assert found.why.startswith("tuned for 1 thread; groups of ")
    assert found.why.endswith("rows run dense: dense was faster when it was tuned")
    runtime, off = quorate.load_bundle(path, threads=1), quorate.load_bundle(path, threads=1, sparse="off")
    x = rows(37)
    np.testing.assert_allclose(runtime.outputs(x).values[0], off.outputs(x).values[0], rtol=1e-5, atol=1e-6)
    assert runtime.explain("throughput")["a"].reason == "dense was faster when it was tuned"
    assert folder.exists()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", '{"format": 0}',
        Tuning({"latency": "sparse"}, {"latency": ("no such layer",)}).to_json(),
        Tuning({"latency": "sparse"}, choices={"latency": {"a": Choice("none")}}).to_json(),
        Tuning({"throughput": "sparse"}, choices={"throughput": {"a": Choice("rows", Form("packed", 7, 9, 3, 1))}}).to_json(),
    ],
)  # fmt: skip
def test_one_that_does_not_fit_is_as_if_it_was_not_there(path: Path, folder: Path, text: str) -> None:
    assert cache.write_text(key(path), text, folder)
    assert engine(path) == Engine("a", "sparse", RULE)


def test_names_of_layers_that_are_not_there_do_no_harm() -> None:
    tuning = Tuning({"latency": "sparse"}, choices={"latency": {"none": Choice("gathered")}})
    assert opened(perceptron("a", 10), tuning=tuning)[1].name == "sparse"


def test_a_file_that_somebody_else_may_write_is_ignored(path: Path, folder: Path) -> None:
    tunings.keep(key(path), Tuning({"latency": "dense", "throughput": "dense"}))
    (file,) = [each for each in folder.iterdir() if each.name == f"{key(path)}.text"]
    file.chmod(0o666)
    assert engine(path) == Engine("a", "sparse", RULE)
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    assert engine(path) == Engine("a", "sparse", RULE)


def test_a_cache_that_can_not_be(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, "here")
    for do in (quorate.load_bundle, quorate.tune_bundle):
        with pytest.raises(ValueError, match=r"QUORATE_CACHE is 'here': expected an absolute path, or 'off' for no cache"):
            do(path)
    monkeypatch.setenv(cache.VARIABLE, "off")
    assert engine(path) == Engine("a", "sparse", RULE)
    with pytest.raises(ValueError, match=r"QUORATE_CACHE turns the cache off: a tuning would be lost, name a folder in it"):
        quorate.tune_bundle(path)
    (tmp_path / "shared" / "sparse").mkdir(parents=True, mode=0o755)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "shared"))
    with pytest.raises(OSError, match=r"shared/sparse can't be written: expected a folder of this user alone with room left"):
        quorate.tune_bundle(path)
