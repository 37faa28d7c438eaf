"""Whole networks: against float64, against ONNX Runtime, on any number of rows, threads and callers."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from sparse_networks import perceptron, residual
from sparse_reference import evaluate
from tiny_onnx import model, node, tensor

pytest.importorskip("llvmlite")

from guarded import guarded
from quorate.runtime.session import open_session
from quorate.runtime.sparse import planning, trials
from quorate.runtime.sparse.choices import Choice
from quorate.runtime.sparse.explaining import explain
from quorate.runtime.sparse.graphs.lowering import lower
from quorate.runtime.sparse.kernels import blocked, blocked_convolution, fan_in, gathered, streams
from quorate.runtime.sparse.kernels.tiles import Form
from quorate.runtime.sparse.machine.host import here
from quorate.runtime.sparse.sparse import SparseNetwork, run_together
from quorate.runtime.sparse.trials import tune
from quorate.runtime.sparse.tuning import Tuning

SPARSE = Tuning(engine={"latency": "sparse", "throughput": "sparse"})


def drawn(rows: int, shape: tuple[int, ...] = (3, 16, 16), seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, *shape)).astype(np.float32)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 7, 16, 17, 256])
def test_a_residual_network_against_float64(rows: int, threads: int, sigmoid: bool) -> None:
    program = residual(sigmoid=sigmoid)
    network = SparseNetwork(program, threads=threads, tuning=SPARSE)
    x = drawn(rows)
    found = dict(zip(["members", "write.h"], network.run(None, {"x": x}), strict=True))
    want = evaluate(lower(program, {}), {"x": x})
    for name, array in found.items():
        assert array.dtype == np.float32
        assert array.shape == want[name].shape
        assert np.abs(array - want[name]).max() <= 1e-5 * np.abs(want[name]).max()


@pytest.mark.parametrize("rows", [1, 2, 8, 19])
def test_a_perceptron_against_float64(rows: int) -> None:
    program = perceptron((100, 70, 33, 4))
    want = evaluate(lower(program, {}), {"x": drawn(rows, (100,))})["members"]
    found = SparseNetwork(program)(drawn(rows, (100,)))
    assert found.shape == (rows, 4)
    assert np.abs(found - want).max() <= 1e-5 * np.abs(want).max()


def test_threads_change_no_bit() -> None:
    program, x = residual(channels=32, side=32), drawn(19, (3, 32, 32))
    found = [SparseNetwork(program, threads=threads, tuning=SPARSE).run(None, {"x": x}) for threads in (1, 2, 3)]
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_many_parts_of_one_job_change_no_bit() -> None:
    """A job that is large enough for several threads."""
    program, x = residual(0.5, channels=64, side=32), drawn(1, (3, 32, 32))
    alone, shared = SparseNetwork(program, tuning=SPARSE), SparseNetwork(program, threads=3, tuning=SPARSE)
    assert shared.spaces("latency").large
    assert np.array_equal(alone(x), shared(x))


def test_callers_at_once_get_the_same() -> None:
    network = SparseNetwork(residual(), threads=2, tuning=SPARSE)
    inputs = [drawn(rows, seed=rows) for rows in (1, 3, 8, 11)]
    want = [network.run(None, {"x": x}) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: network.run(None, {"x": inputs[k % 4]}), range(24)))
    for k, outputs in enumerate(found):
        assert all(np.array_equal(a, b) for a, b in zip(outputs, want[k % 4], strict=True))


def test_several_networks_in_one_call() -> None:
    networks = [SparseNetwork(residual(seed=seed), threads=2, tuning=SPARSE) for seed in range(3)]
    x = drawn(17)
    together = run_together(networks, ["members"], {"x": x})
    for network, (found,) in zip(networks, together, strict=True):
        assert np.array_equal(found, network.run(["members"], {"x": x})[0])


def test_rows_that_fill_a_group_up() -> None:
    program, x = perceptron((50, 40, 3)), drawn(here().lanes + 3, (50,))
    plain = SparseNetwork(program, tuning=SPARSE)(x)
    filled = SparseNetwork(program, tuning=Tuning(SPARSE.engine, pad_from=2))(x)
    assert np.allclose(plain, filled, rtol=1e-5, atol=1e-6)
    whole = SparseNetwork(program, tuning=SPARSE)(np.concatenate([x, np.repeat(x[-1:], here().lanes - 3, 0)]))
    assert np.array_equal(filled, whole[: len(x)])


def test_layouts_of_memory_of_the_input() -> None:
    network, x = SparseNetwork(residual(), tuning=SPARSE), drawn(9)
    want = network(x)
    assert np.array_equal(network(np.asfortranarray(x)), want)
    assert np.array_equal(network(np.repeat(x, 2, 0)[::2]), want)
    x.flags.writeable = False
    assert np.array_equal(network(x), want)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"x": drawn(2).astype(np.float64)}, "input 'x' is float64 .* expected float32"),
        ({"x": drawn(2)[:, :2]}, r"input 'x' is float32 \(2, 2, 16, 16\), expected float32 \('B', 3, 16, 16\)"),
        ({"x": drawn(0)}, "got no rows"),
        ({"x": np.float32(1)}, "input 'x' is a float32, expected"),
        ({"x": [[1.0]]}, "input 'x' is a list, expected"),
        ({}, "input 'x' is nothing"),
        ({"x": drawn(1), "y": drawn(1)}, r"of \['x', 'y'\]: expected at least one, of \['x'\]"),
    ],
)
def test_wrong_inputs(feed: dict[str, NDArray], message: str) -> None:
    network = SparseNetwork(residual(), tuning=SPARSE)
    with pytest.raises(ValueError, match=message):
        network.run(None, feed)


@pytest.mark.parametrize("rows", [1, 3, 8, 20])
def test_an_output_that_is_not_there(rows: int) -> None:
    network = SparseNetwork(residual(), tuning=SPARSE)
    with pytest.raises(ValueError, match="has no output 'z': expected some of"):
        network.run(["z"], {"x": drawn(rows)})


def test_a_dense_network_runs_dense_and_says_so() -> None:
    program, x = residual(1.0), drawn(11)
    network = SparseNetwork(program)
    assert set(network.reason) == {"latency", "throughput"}
    assert "100% of its multiply-adds are live" in network.reason["latency"]
    want = open_session(program, "dense", threads=1).run(None, {"x": x})
    assert all(np.array_equal(a, b) for a, b in zip(network.run(None, {"x": x}), want, strict=True))
    assert "runs dense" in str(explain(network))


@pytest.mark.parametrize("dense", ["latency", "throughput"])
@pytest.mark.parametrize("rows", [1, 8, 11])
def test_one_layout_sparse_and_the_other_dense(rows: int, dense: str) -> None:
    program, x = residual(), drawn(rows)
    engine = {"latency": "sparse", "throughput": "sparse"} | {dense: "dense"}
    network = SparseNetwork(program, tuning=Tuning(engine))  # type: ignore[arg-type]
    assert list(network.reason) == [dense]
    want = evaluate(lower(program, {}), {"x": x})
    for name, array in zip(["members", "write.h"], network.run(None, {"x": x}), strict=True):
        assert np.abs(array - want[name]).max() <= 1e-5 * np.abs(want[name]).max()


@pytest.mark.parametrize("rows", [8, 15, 16, 40])
def test_large_batches_that_run_dense(rows: int) -> None:
    program, x = residual(), drawn(rows)
    found = SparseNetwork(program, tuning=Tuning(SPARSE.engine, dense_from=16)).run(None, {"x": x})
    dense = open_session(program, "dense", threads=1).run(None, {"x": x})
    sparse = SparseNetwork(program, tuning=SPARSE).run(None, {"x": x})
    for each, wanted, other in zip(found, dense if rows >= 16 else sparse, sparse if rows >= 16 else dense, strict=True):
        assert np.array_equal(each, wanted)
        assert not np.array_equal(each, other), "rounding tells which one ran"


def test_layers_that_run_dense_in_between() -> None:
    program, x = residual(), drawn(9)
    network = SparseNetwork(
        program, threads=2, tuning=Tuning(SPARSE.engine, {"latency": ("two",), "throughput": ("one", "three")})
    )
    want = evaluate(lower(program, {}), {"x": x})["members"]
    assert np.abs(network(x) - want).max() <= 1e-5 * np.abs(want).max()
    shown = str(explain(network))
    assert "ONNX Runtime" in shown
    assert all(name in shown for name in ("stem", "one", "three", "short", "fc"))


def test_weights_once_and_small() -> None:
    network = SparseNetwork(residual(channels=64, side=32), tuning=SPARSE)
    live = sum(weights.live for weights in network.weights.values())
    network.prepare([1])
    one = network.nbytes
    assert one <= 8 * live
    network.prepare([here().lanes])
    assert network.nbytes <= 1.05 * one, "both layouts share what they can"


def test_tuning_chooses_and_is_kept_as_text() -> None:
    program, told = residual(channels=8), list[str]()
    tuning = tune(program, trials=2, progress=told.append)
    assert told[0].startswith("latency: ")
    assert told[-1] == "the whole network"
    assert set(tuning.choices["latency"]) | set(tuning.dense["latency"]) >= {"stem", "one", "two", "three", "short", "fc"}
    assert all(t.seconds > 0 and t.dense for by in tuning.timings.values() for t in by.values())
    again = Tuning.from_json(tuning.to_json())
    assert again == tuning
    x = drawn(10)
    want = evaluate(lower(program, {}), {"x": x})["members"]
    assert np.abs(SparseNetwork(program, tuning=again)(x) - want).max() <= 1e-5 * np.abs(want).max()
    with pytest.raises(ValueError, match="trials=0"):
        tune(program, trials=0)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 0}', '{"format": 2, "engine": {"latency": "fast"}}', "null"])
def test_what_is_no_tuning(text: str) -> None:
    with pytest.raises(ValueError, match=r"no tuning of this version .*: tune anew"):
        Tuning.from_json(text)


def test_layers_of_equal_geometry_and_other_structure_are_tuned_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of a constant fan-in is none for a matrix that has as many live weights anywhere."""
    rng = np.random.default_rng(0)
    fan_in, scattered = np.zeros((2, 64, 64), np.float32)
    for row in fan_in:
        row[rng.permutation(64)[:8]] = rng.standard_normal(8)
    scattered.reshape(-1)[rng.permutation(4096)[:512]] = 1
    nodes, weights = [], []
    for name, source, target, weight in (("a", "x", "y", fan_in), ("b", "y", "z", scattered)):
        weights.append(tensor(f"{name}.weight", weight))
        nodes += [node("Gemm", [source, f"{name}.weight"], [f"{name}s"], transB=1), node("Relu", [f"{name}s"], [target])]
    program = model(nodes, {"x": ("float32", ["batch", 64])}, {"z": ("float32", ["batch", 64])}, weights)
    times = itertools.count(1000, -1)
    monkeypatch.setattr(trials, "least", lambda *_, **__: next(times) * 1e-6)  # what is tried later is faster
    choices = tune(program).choices
    assert choices["latency"]["a"].kernel == "fan-in"
    assert choices["latency"]["b"].kernel == "gathered"
    x = drawn(1, (64,))
    want = np.maximum(np.maximum(x @ fan_in.T, 0) @ scattered.T, 0)
    assert np.allclose(SparseNetwork(program, tuning=Tuning(SPARSE.engine, {}, choices))(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "layer", "choice"),
    [
        ("latency", "one", Choice("rows", Form("packed", 1, 1, 1, 2**19))),
        ("throughput", "one", Choice("rows", Form("packed", 2**19, 1, 1))),
        ("latency", "one", Choice("rows", Form("flat", 2**19, 1, 1))),
        ("latency", "one", Choice("rows", Form("packed", 1, 1, 2**19))),
        ("latency", "one", Choice("blocks", Form("packed", 1, 1, 1), 3)),
        ("latency", "one", Choice("gathered")),
        ("latency", "fc", Choice("rows", Form("packed", 1, 1, 1))),
        ("latency", "fc", Choice("blocks", Form("packed", 1, 1, 1), 5)),
        ("latency", "fc", Choice("fan-in")),
        ("throughput", "fc", Choice("gathered")),
        ("throughput", "fc", Choice("rows", Form("direct", 1, 1, 2**16))),
    ],
)
def test_choices_that_cannot_be(layout: str, layer: str, choice: Choice) -> None:
    """Of a file from elsewhere: refused before any code or memory is made."""
    network = SparseNetwork(residual(), tuning=Tuning(SPARSE.engine, {}, {layout: {layer: choice}}))  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        network(drawn(1 if layout == "latency" else here().lanes))


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, 10**6])
def test_threads_that_cannot_be(threads: int) -> None:
    with pytest.raises(ValueError, match=r"threads=.*: expected 1 to 1024"):
        SparseNetwork(residual(), threads=threads)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_network_is_of_its_process(copied: Callable[[SparseNetwork], object]) -> None:
    with pytest.raises(TypeError, match="holds code and memory of this process"):
        copied(SparseNetwork(residual(), tuning=SPARSE))


def test_a_tuning_of_another_network_is_refused() -> None:
    tuning = tune(perceptron((20, 30, 5)), trials=1)
    wrong = Tuning(tuning.engine, {}, {"latency": {"one": next(iter(tuning.choices["latency"].values()))}})
    network = SparseNetwork(residual(), tuning=Tuning(SPARSE.engine, {}, wrong.choices))
    with pytest.raises(ValueError, match="tune anew"):
        network(drawn(1))


@pytest.mark.parametrize("whole", [f"[1{'0' * 400}, 1]", "[1]", "5", '{"a": 1}'])
@pytest.mark.parametrize("kernel", ['["rows"]', '"dense"', "null"])
def test_numbers_of_a_tuning_that_are_none(whole: str, kernel: str) -> None:
    def text(whole: str, choices: str) -> str:
        rows = '"pad_from":null,"dense_from":null'
        return f'{{"format":2,"engine":{{}},"dense":{{}},"choices":{choices},"timings":{{}},"whole":{whole},{rows}}}'

    Tuning.from_json(text("{}", "{}"))
    for wrong in (text(f'{{"latency":{whole}}}', "{}"), text("{}", f'{{"latency":{{"a":{{"kernel":{kernel},"together":1}}}}}}')):
        with pytest.raises(ValueError, match=r"^no tuning of this version \([^\n]*\): tune anew$"):
            Tuning.from_json(wrong)


def test_explain_tells_of_every_layer() -> None:
    network = SparseNetwork(residual(), tuning=SPARSE)
    for layout, rows in (("latency", 1), ("throughput", here().lanes)):
        told = explain(network, layout)  # type: ignore[arg-type]
        assert told.rows == rows
        lines = {line.name: line for line in told.lines}
        assert {"stem", "one", "two", "three", "short", "fc"} <= set(lines)
        assert lines["one"].density == pytest.approx(0.1, abs=0.01)
        assert lines["one"].macs == rows * 16 * 16 * round(0.1 * 16 * 16 * 9)
        assert lines["one"].gflops == pytest.approx(2 * lines["one"].macs / lines["one"].seconds / 1e9)
        assert told.seconds == pytest.approx(sum(line.seconds for line in told.lines))
        assert "GFLOP/s" in str(told)
    with pytest.raises(ValueError, match="layout='fast'"):
        explain(network, "fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_whole_networks_between_pages_without_access(monkeypatch: pytest.MonkeyPatch, threads: int, end: bool) -> None:
    """Every array of a job, its scratch, and the streams begin or end where nothing may be read."""

    def memory(count: int, dtype: object = np.float32, at: int = 64) -> NDArray:  # noqa: ARG001
        return guarded(count, dtype, end)

    for module in (planning, streams, gathered, blocked, blocked_convolution, fan_in):
        monkeypatch.setattr(module, "aligned", memory)
    for program, shape in (
        (residual(channels=24, side=13), (3, 13, 13)),
        (perceptron((37, 50, 11)), (37,)),
        (residual(sigmoid=True), (3, 16, 16)),
    ):
        network = SparseNetwork(program, threads=threads, tuning=SPARSE)
        for rows in (1, 11, 16):
            x = guarded(rows * int(np.prod(shape)), np.float32, end).reshape(rows, *shape)
            x[...] = drawn(rows, shape)
            want = evaluate(lower(program, {}), {"x": x})["members"]
            assert np.abs(network(x) - want).max() <= 1e-5 * np.abs(want).max()


def test_buffers_of_one_job_never_meet() -> None:
    """Every array of a plan has memory of its own as long as a later layer reads it."""
    network = SparseNetwork(residual(), tuning=SPARSE)
    network(drawn(1))
    spaces = network.spaces("latency")
    (space,) = spaces._free[1]
    layers = network.lowered["latency"].network.layers
    read = {}
    for k, layer in enumerate(layers):
        for name in (layer.source, getattr(getattr(layer, "epilogue", None), "add", None)):
            read[name] = k
    for (k, a), (i, b) in itertools.combinations(enumerate(layers), 2):
        for name, other in itertools.product((a.target, getattr(getattr(a, "epilogue", None), "raw", None)), (b.target,)):
            if name and other and read.get(name, -1) >= i and k < i:
                assert space._at[name] != space._at[other], (name, other)
