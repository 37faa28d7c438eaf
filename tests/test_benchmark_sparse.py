"""The benchmark of the sparse runtime: what it runs and computes, what it makes of times, and a small run of the script."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

import torch

from quorate.runtime.sparse.machine.host import here
from quorate.runtime.sparse.team import Team
from quorate.tickets import erk, sparse_weights

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = (
    "record", "tables", "packed_speed", "cascade_executed", "cascade_pools", "anytime_overhead", "render_distilled", "render_sparse",
    "runtime_cases", "runtime_speed", "runtime_start", "sparse_cases", "sparse_layers", "sparse_networks", "sparse_peak", "sparse_race",
    "sparse_runtime", "sparse_start",
)  # fmt: skip
Load = Callable[[str], ModuleType]
linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's memory figures")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Load]:
    """A benchmark by name; threads, dynamo's limit and results are the test's own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in SCRIPTS:
        sys.modules.pop(name, None)
    monkeypatch.setattr(importlib.import_module("record"), "RESULTS", tmp_path / "results")
    threads, limit = torch.get_num_threads(), torch._dynamo.config.recompile_limit
    yield importlib.import_module
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = limit
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the small network is exported into."""
    return tmp_path_factory.mktemp("mlp")


# — what is run —


def test_chains_of_multiply_adds(load: Load) -> None:
    """s ← s / 2 + 1 from 0, 1, … 11: 2 + (s − 2) / 2ⁿ after n turns."""
    peak = load("sparse_peak")
    for turns in (1, 3, 60):
        chains = peak.Chains(0.5, 1.0, turns)
        chains.run()
        np.testing.assert_array_equal(chains.sums, np.float32(24 + (66 - 24) / 2**turns))
        assert chains.flops == 2 * here().lanes * 12 * turns
    assert peak.peak_gflops(quick=True) > 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 16])
def test_a_layer_by_itself_computes_what_float64_says(load: Load, batch: int, threads: int) -> None:
    layers = load("sparse_layers")
    team = Team(threads)
    for geometry in (layers.Geometry(12, 5), layers.Geometry(40, 0)):
        weight = layers.weight_of(geometry, 0.3)
        found = layers.tuned(geometry, weight, batch, team, trials=3, quick=True)
        inner = 1 if batch == 1 else here().lanes
        chain = layers.CHAIN if batch == inner else 1
        assert found.call.count == chain
        addresses = {array.ctypes.data for arrays in found.call.arrays for array in arrays}
        assert len(addresses) == batch // inner * (chain + 1), "every array has memory of its own"
        assert found.live == np.count_nonzero(weight) == round(0.3 * weight.size)
        x, bias = layers.given(geometry, batch)
        for arrays in found.call.arrays:
            for array in arrays[1:]:
                array[:] = 0
        found.call()
        for k in range(1, chain + 1):
            x = layers.reference(geometry, weight, x, bias).astype(np.float32)
            made = np.concatenate([found.call.planes.view(arrays[k]).transpose(3, 0, 1, 2) for arrays in found.call.arrays])
            assert layers.error(made.reshape(x.shape), x) < 1e-5


def test_a_wrong_layer_is_not_timed(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = load("sparse_layers")
    monkeypatch.setattr(layers, "reference", lambda *given: np.ones_like(given[2]))
    geometry = layers.Geometry(8, 4)
    with pytest.raises(RuntimeError, match=r"^8 channels, 4×4, batch 1, rows.*: relative error .*, expected at most 1e-05$"):
        layers.tuned(geometry, layers.weight_of(geometry, 0.5), 1, Team(1), 1, quick=True)
    monkeypatch.setattr(layers, "candidates", lambda *_: iter(()))
    with pytest.raises(RuntimeError, match="expected a kernel, the runtime has none"):
        layers.tuned(geometry, layers.weight_of(geometry, 0.5), 1, Team(1), 1, quick=True)


def test_errors_are_relative_and_nan_is_far(load: Load) -> None:
    error = load("sparse_layers").error
    assert error(np.array([1.0, 3.0]), np.array([1.0, 4.0])) == 0.25
    assert error(np.array([np.nan, 4.0]), np.array([1.0, 4.0])) == math.inf


def test_dense_engines_compute_the_layer_and_the_row_of_them(load: Load) -> None:
    layers = load("sparse_layers")
    for geometry in (layers.Geometry(8, 6), layers.Geometry(24, 0)):
        x, bias = layers.given(geometry, 3)
        weight = layers.weight_of(geometry)
        expected = [x]
        for _ in range(layers.CHAIN):
            expected.append(layers.reference(geometry, weight, expected[-1].astype(np.float32), bias))
        calls = layers.dense_calls(geometry, 3, 1, ["eager nchw", "eager nhwc"])
        assert [count for _, count in calls.values()] == [1, layers.CHAIN, 1, 1]
        for name, (call, count) in calls.items():
            found = call()
            found = found[0] if isinstance(found, list) else found.numpy()
            assert layers.error(found, expected[count]) < 1e-5, name


def test_patterns_have_their_form_and_density(load: Load) -> None:
    layers = load("sparse_layers")
    for geometry in (layers.Geometry(64, 0), layers.Geometry(32, 4)):
        for pattern in layers.PATTERNS.values():
            weight = layers.weight_of(geometry, 0.1, pattern)
            assert pattern.fits(torch.from_numpy(weight != 0))
            assert np.count_nonzero(weight) == pytest.approx(0.1 * weight.size, abs=geometry.size / 2)


def test_masks_are_those_of_the_library(load: Load) -> None:
    cases = load("sparse_cases")
    case = cases.CASES["wrn28-10"]
    names = [variant.name for variant in case.variants()]
    assert names == ["density 0.1", "density 0.2", "ticket 2", "ticket 3"]
    whole = {name: weight.detach() for name, weight in sparse_weights(cases.dense(case, True)).items()}
    wanted = erk({name: tuple(weight.shape) for name, weight in whole.items()}, 0.2)
    ticket = cases.sparse(case, case.variants()[1], True)
    for name, weight in sparse_weights(ticket.members[0]).items():
        live = (weight != 0).sum().item() / weight.numel()
        assert live == pytest.approx(wanted[name], abs=1 / weight.numel()), name
        kept = weight != 0
        torch.testing.assert_close(weight[kept], whole[name][kept] / live**0.5)
    first, second = (sparse_weights(cases.sparse(case, case.variants()[k], True).members[0]) for k in (0, 2))
    assert any(((first[name] != 0) != (second[name] != 0)).any() for name in first)


def test_what_is_required(load: Load) -> None:
    cases = load("sparse_cases")
    assert cases.required("wrn28-10", cases.TICKETS, 16) == 1.0
    assert cases.required("mlp", "density 0.1", 1) == 4.0
    assert cases.required("resnet18", "density 1", 16) == pytest.approx(1 / 1.05)


@pytest.mark.slow
def test_programs_come_back_and_start(load: Load, mlp: Path) -> None:
    cases, start, networks = load("sparse_cases"), load("sparse_start"), load("sparse_networks")
    cases.prepare("mlp", mlp, True)
    stamps = {path: path.stat().st_mtime_ns for path in mlp.iterdir()}
    cases.prepare("mlp", mlp, True)
    assert {path: path.stat().st_mtime_ns for path in mlp.iterdir()} == stamps, "what is there stays"
    asked = argparse.Namespace(trials=1, quick=True)
    found = networks.networks_of("mlp", mlp, 1, asked)
    assert list(found) == ["density 0.1", "density 1"]
    errors = networks.checked("mlp", found, mlp, True)
    assert max(each for by_rows in errors.values() for each in by_rows.values()) < 1e-5
    np.save(mlp / "density 1.npy", 1 + np.load(mlp / "density 1.npy"))
    with pytest.raises(RuntimeError, match=r"^mlp, density 1, 1 rows: relative error .*, expected at most 1e-05$"):
        networks.checked("mlp", found, mlp, True)
    if Path("/proc/self/smaps_rollup").exists():
        told = start.start(mlp / "density 0.1", 1, None)
        assert told["live"] == sum(held.live for held in found["density 0.1"].weights.values())
        assert told["weights"]["throughput"] >= told["weights"]["latency"] > 4 * told["live"]
        assert told["seconds"]["all"] == pytest.approx(sum(told["seconds"][k] for k in ("open", "latency", "throughput")))


# — what is made of it —


def test_the_fastest_dense_call_is_what_counts(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    race = load("sparse_race")
    first = {"a": 2.0, "four": 7.2, "slow": 2.5}
    told: dict[str, Callable[[], str]] = {name: (lambda name=name: name) for name in ("sparse", *first)}  # type: ignore[misc]
    monkeypatch.setattr(race, "_first", lambda call, _: first[call()])
    asked = {}

    def interleaved(_: dict[str, Any], rounds: int, **options: Any) -> dict[str, list[float]]:
        asked.update(options, rounds=rounds)
        return {"sparse": [2.0, 4.0, 2.0], "a": [4.0, 4.0, 4.0], "four": [8.0, 8.0, 12.0]}

    monkeypatch.setattr(race, "interleaved", interleaved)
    dense = {"a": (told["a"], 1), "four": (told["four"], 4), "slow": (told["slow"], 1)}
    found = race.raced({"sparse": (told["sparse"], 2)}, dense, {"sparse": 2.5}, 3, False)
    assert asked == {"rounds": 3, "warmup": 1, "least_ms": 400}
    assert found["slower_ms"] == {"slow": 2500.0}, "over 1.3 times 7.2 s of four layers"
    assert found["fastest"] == "four"
    assert found["ms"]["four"] == {"median": 2.0, "q1": 2.0, "q3": 2.5}
    assert found["speedup"]["sparse"] == {"median": 2.0, "q1": 1.5, "q3": 2.5, "required": 2.5}


def test_figures_are_measured_once_and_by_sources(load: Load, tmp_path: Path) -> None:
    race = load("sparse_race")
    store = race.Store(tmp_path / "figures.json")
    assert store.once("a", lambda: {"x": 1}) == {"x": 1}
    assert race.Store(store.path).once("a", lambda: {"x": 2}) == {"x": 1}
    with pytest.raises(ZeroDivisionError):
        store.once("b", lambda: {"x": 1 / 0})
    assert store.read() == {"a": {"x": 1}}
    (tmp_path / "library").mkdir()
    digests = []
    for text in ("1", "2", "1"):
        (tmp_path / "library" / "module.py").write_text(text)
        digests.append(race.sources(tmp_path / "library", tmp_path))
    assert digests[0] == digests[2] != digests[1]


def test_geometric_means_are_of_the_layers_of_a_batch(load: Load) -> None:
    runtime = load("sparse_runtime")

    def layer(one: float, two: float) -> dict[str, Any]:
        return {"speedup": {"density 0.1": {"median": one}, "density 0.2": {"median": two}}}

    figures = {
        "peak": {"gflops": 1.0},
        "8 channels, 4×4, batch 1": layer(2.0, 1.0),
        "9 channels, 4×4, batch 1": layer(8.0, 1.0),
        "8 channels, 4×4, batch 16": layer(3.0, 5.0),
        "patterns, 8 channels, 4×4, batch 1, density 0.1": layer(100.0, 100.0),
    }
    found = runtime.means(figures)
    assert found["geometric mean, batch 1"]["density 0.1"] == {"median": pytest.approx(4.0), "required": 2.8}
    assert found["geometric mean, batch 16"]["density 0.2"] == {"median": pytest.approx(5.0), "required": 2.5}


def test_parts_of_a_run_are_no_result(load: Load) -> None:
    runtime = load("sparse_runtime")
    figures = {f"{name}, batch {batch}": {} for name in runtime.QUICK_NETWORKS for batch in (1, 16)}
    assert runtime.complete("networks", figures, True)
    assert not runtime.complete("networks", dict(list(figures.items())[1:]), True)
    assert not runtime.complete("networks", figures, False)
    assert runtime.complete("layers", {}, False)


def test_asking_for_nothing(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("sparse_runtime").parsed(["--rounds", "0"])
    assert "--threads, --rounds and --trials: expected 1 or more" in capsys.readouterr().err


# — the script —


@linux
@pytest.mark.slow
def test_quick_run(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime, render = load("sparse_runtime"), load("render_sparse")
    runtime.main(["--quick", "--networks", "mlp", "--work", str(tmp_path / "work")])
    results = {
        name: json.loads((tmp_path / "results" / f"sparse-{name}-quick.json").read_text(encoding="utf-8"))
        for name in ("layers-1", "networks-1-part")
    }
    said = capsys.readouterr().out
    assert said.count("no result, a quick run:") == 2
    assert "geometric mean, batch 16, density 0.2" in said
    figures = results["networks-1-part"]["figures"]
    assert set(figures) - {"settings"} == {f"mlp, {part}" for part in ("correct", "batch 1", "batch 16", "profile", "start")}
    assert set(figures["mlp, batch 1"]["speedup"]) == {"density 0.1", "density 1"}
    assert {"onnxruntime", "pytorch, eager nchw"} < figures["mlp, batch 1"]["ms"].keys()
    assert render.layers(results["layers-1"])
    assert render.networks(results["networks-1-part"])
