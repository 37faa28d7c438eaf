"""The benchmarks of bundles: what they run, what they make of times and bytes, and a small run of every script."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch
from torch import nn

import quorate
from quorate.cascade import Policy, Prediction
from quorate.models import LeNet
from quorate.runtime import Manifest, Port, load_bundle

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = (
    "record", "tables", "packed_speed", "anytime_overhead", "cascade_pools", "cascade_executed", "render_distilled", "render_runtime",
    "runtime_cases", "runtime_start", "runtime_load", "runtime_size", "runtime_speed", "runtime_precision",
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


def written(tmp_path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def mlps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two networks of which the second sees what the first is unsure of."""
    torch.manual_seed(0)
    ensemble = quorate.DeepEnsemble([nn.Linear(6, 4) for _ in range(2)])
    x = np.random.default_rng(0).standard_normal((64, 6), dtype=np.float32)
    path = tmp_path_factory.mktemp("bundles") / "mlps"
    open_ = quorate.save_bundle(ensemble, None, path, example=x).policy
    assert open_ is not None
    first = replace(open_.stages[0], window=(0.4, None))
    quorate.save_bundle(ensemble, replace(open_, stages=(first, *open_.stages[1:])), path, example=x)
    return path


# — what is run —


def test_every_case_is_an_ensemble_of_random_weights(load: Load) -> None:
    cases = load("runtime_cases")
    counts = {"single": 1, "packed": 4, "pair": 2, "tickets": 3, "students": 3, "mlp": 1, "mlp ×2": 2}
    for name, count in counts.items():
        case = cases.CASES[name](True)
        with torch.no_grad():
            logits = case.ensemble(torch.from_numpy(cases.rows(3, case.shape)))
        assert logits.shape == (count, 3, 10), name
        assert case.policy is None
        assert len({member.numpy().tobytes() for member in logits}) == count, name


def test_about_a_fifth_of_other_rows_goes_on(load: Load) -> None:
    cases, cascades = load("runtime_cases"), load("quorate.cascade")
    case = cases.cascade(True)
    staged = quorate.stages(case.ensemble)
    found = cascades.Cascade(staged, case.policy).predict(torch.from_numpy(cases.rows(200)))
    assert 0.08 < found.reach[1] < 0.35


def test_tickets_keep_the_density_and_networks_differ(load: Load) -> None:
    found = load("runtime_cases").tickets(True, density=0.25).ensemble
    for masks in found.ticket_masks:
        live, size = (sum(f(mask) for mask in masks.values()) for f in (torch.sum, torch.numel))
        assert float(live) / size == pytest.approx(0.25, abs=0.01)
    assert any((found.ticket_masks[0][name] != mask).any() for name, mask in found.ticket_masks[1].items())


def test_another_process_says_json_or_fails(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = load("runtime_cases")
    monkeypatch.setattr(cases, "HERE", tmp_path)
    told = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.environ['EXTRA']]))"
    (tmp_path / "say.py").write_text(told)
    assert cases.apart("say.py", ["a", 2], 3, {"EXTRA": "e"}) == [["a", "2"], "3", "e"]
    (tmp_path / "fail.py").write_text("raise SystemExit(4)")
    with pytest.raises(subprocess.CalledProcessError):
        cases.apart("fail.py", [], 1)


@pytest.mark.slow
def test_bytes_of_a_bundle(load: Load, mlps: Path) -> None:
    cases = load("runtime_cases")
    manifest = Manifest.from_json((mlps / "manifest.json").read_bytes())
    assert cases.size_bytes(mlps) == (mlps / "manifest.json").stat().st_size + sum(file.size_bytes for file in manifest.files)
    assert [path.relative_to(mlps).as_posix() for path in cases.programs(mlps)] == [stage.program for stage in manifest.stages]


@linux
def test_a_start_is_told_in_seconds_and_bytes(load: Load, mlps: Path) -> None:
    module, files = load("runtime_start"), [str(path) for path in load("runtime_cases").programs(mlps)]
    for way, paths in (("bundle", [str(mlps)]), ("path", files), ("bytes", files)):
        found = module.start(way, 1, 5, paths)
        seconds = found["seconds"]
        assert sum(seconds[part] for part in (*module.PARTS, "rest")) == pytest.approx(seconds["total"])
        assert seconds["sessions"] > 0
        assert (seconds["golden"] > 0) == (way == "bundle")
        for moment in ("imported", "loaded", "predicted"):
            held = found["memory"][moment]
            assert 0 < held["uss"] <= held["pss"] <= held["rss"]


# — what is made of it —


def test_the_starts_of_a_round_are_compared_with_each_other(load: Load) -> None:
    module = load("runtime_load")

    def start(session: float, rss: int) -> dict[str, Any]:
        held = dict.fromkeys(module.KINDS, rss)
        seconds = {"sessions": session, "files": 1.0, "golden": 0.0, "rest": 0.5, "total": session + 1.5}
        return {"seconds": seconds, "imports": {"quorate": 0.25}, "late": ["m"], "memory": dict.fromkeys(module.MOMENTS, held)}

    rounds = [
        {"bundle": start(2.0 * slow, 300), "path": start(1.0 * slow, 100), "bytes": start(4.0 * slow, 150)} for slow in (1, 5, 3)
    ]
    found = module.summary(rounds)
    assert found["sessions_over"] == {"path": {"median": 2, "q1": 2, "q3": 2}, "bytes": {"median": 0.5, "q1": 0.5, "q3": 0.5}}
    assert found["seconds"]["sessions"]["bundle"] == {"median": 6, "q1": 4, "q3": 8}
    assert found["memory_over"]["loaded"]["rss"]["path"]["median"] == 3
    assert found["total_over"]["path"]["median"] == pytest.approx(7.5 / 4.5)
    assert found["bytes"]["predicted"]["pss"]["bytes"]["median"] == 150
    assert found["late"] == ["m"]


def test_pytorch_answers_by_the_mean_of_the_members(load: Load) -> None:
    logits = torch.tensor([[[0.0, 2.0], [1.0, 0.0]], [[1.0, 0.0], [3.0, 0.0]]])
    found = load("runtime_speed").answered(logits)
    probs = logits.double().softmax(-1).mean(0).numpy()
    np.testing.assert_allclose(found.probs, probs, atol=1e-6)
    np.testing.assert_array_equal(found.label, probs.argmax(1))
    np.testing.assert_allclose(found.uncertainty, 1 - probs.max(1), atol=1e-6)
    np.testing.assert_allclose(load("runtime_speed").answered(logits[0]).probs, logits[0].double().softmax(-1).numpy(), atol=1e-6)


def test_the_fastest_pytorch_is_what_counts(load: Load) -> None:
    times = {"bundle": [2.0, 4.0, 6.0], "pytorch, slow": [9.0, 9.0, 9.0], "pytorch, fast": [4.0, 4.0, 4.0]}
    found = load("runtime_speed").compared(times, 8)
    assert found["fastest"] == {"bundle": "bundle", "pytorch": "pytorch, fast"}
    assert found["ratio"] == {"median": 1.0, "q1": 0.75, "q3": 1.25}
    assert found["ratio_by_engine"]["slow"]["median"] == pytest.approx(4 / 9)
    assert found["rows"] == 8


def prediction(top: float, stage: int = 0, rows: int = 100) -> Prediction:
    probs = np.tile([top, 1 - top], (rows, 1))
    return Prediction(
        probs.argmax(1), probs, 1 - top + np.zeros(rows), np.ones(rows, bool), np.full(rows, stage), np.ones(rows), ("a",)
    )


def test_engines_that_disagree_are_not_compared(load: Load) -> None:
    check = load("runtime_speed").check_same
    check("e", [prediction(0.7), prediction(0.6)], [prediction(0.7), prediction(0.6 + 1e-4)])
    with pytest.raises(
        RuntimeError, match=r"^e says something else than the bundle: probabilities differ by up to 0\.1, 0 of 100 rows"
    ):
        check("e", [prediction(0.7)], [prediction(0.8)])
    with pytest.raises(RuntimeError, match="differ by up to 0, 100 of 200 rows leave at another stage"):
        check("e", [prediction(0.7), prediction(0.7)], [prediction(0.7), prediction(0.9, stage=1)])


@pytest.mark.parametrize("name", ["eager nchw", "eager nhwc", "eager folded nhwc"])
def test_engines_compute_the_same(load: Load, name: str) -> None:
    module, cases = load("runtime_speed"), load("runtime_cases")
    x = cases.rows(5)
    for case in (cases.single(True), cases.packed(True)):
        network = case.ensemble.members[0] if isinstance(case.ensemble, quorate.DeepEnsemble) else case.ensemble
        with torch.no_grad():
            expected = module.answered(network(torch.from_numpy(x)))
        module.check_same(name, [expected], [module.forward(name, network, x)()])
    cascade = cases.cascade(True)
    parts = [x[:2], x[2:]]
    module.check_same(name, module.staged("eager nchw", cascade, parts)(), module.staged(name, cascade, parts)())


def test_overhead_is_beyond_all_sessions_of_the_call(load: Load, mlps: Path) -> None:
    runtime = load_bundle(mlps, threads=1)
    found = load("runtime_speed").overhead(runtime, (6,), 50)
    assert found["stages"] == 2
    assert 0 < found["us"]["median"] < found["predict_us"]["median"]
    assert found["us"]["median"] == pytest.approx(found["predict_us"]["median"] - found["bare_us"]["median"], rel=0.5)


def test_runs_are_found_by_seed(load: Load, tmp_path: Path) -> None:
    module = load("runtime_precision")
    for name, status in (("deep-2", "finished"), ("deep-0", "finished"), ("deep-1", "running"), ("deep-x", "finished")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(
            json.dumps({"format": "quorate-run/1", "status": status, "data": {"name": "toy"}})
        )
    assert list(module.trained(tmp_path, None)) == [0, 2]
    assert list(module.trained(tmp_path, [2])) == [2]
    with pytest.raises(ValueError, match=r"has no finished runs deep-1, deep-7: train them first"):
        module.trained(tmp_path, [0, 1, 7])
    with pytest.raises(ValueError, match=r"has no finished runs deep-SEED"):
        module.trained(tmp_path / "deep-0", None)


# — the scripts —


@pytest.mark.slow
def test_speed_script(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("runtime_speed").main(["--quick", "--batches", "1", "3", "--threads", "1"])
    found = written(tmp_path, "runtime-speed-quick")["figures"]
    assert {f"{name}, batch {batch}, threads 1" for name in ("single", "packed", "cascade") for batch in (1, 3)} < found.keys()
    assert set(found["cascade, batch 1, threads 1"]["gain"]) == {"stream"}
    assert set(found["cascade, batch 3, threads 1"]["gain"]) == {"stream", "all"}
    assert 1 < found["cascade, batch 3, threads 1"]["mac_gain"] <= 2
    assert found["overhead, mlp ×2, threads 1"]["stages"] == 2
    assert "single, batch 3, threads 1: bundle ÷ pytorch, eager" in capsys.readouterr().out
    assert load("render_runtime").speed({"figures": found})


@linux
@pytest.mark.slow
def test_load_script(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("runtime_load").main(["--quick", "--cases", "mlp ×2", "tickets", "--threads", "1"])
    found = written(tmp_path, "runtime-load-quick")["figures"]
    assert list(found) == ["mlp ×2", "tickets"]
    assert all(each["sessions_over"]["bytes"]["median"] > 0 for each in found.values())
    assert "tickets, loaded, rss in MB" in capsys.readouterr().out
    assert load("render_runtime").load({"figures": found})


@pytest.mark.slow
def test_size_script(load: Load, tmp_path: Path) -> None:
    load("runtime_size").main(["--quick", "--no-wide"])
    found = written(tmp_path, "runtime-size-quick")["figures"]
    assert list(found) == ["ResNet-18"]
    kinds = found["ResNet-18"]
    assert kinds["1 ticket"]["bundle_bytes"] < kinds["single"]["bundle_bytes"] < kinds["deep, 2 members"]["bundle_bytes"]
    assert kinds["single"]["ticket_bytes"] == 0 < kinds["3 tickets"]["ticket_bytes"]
    assert kinds["single"]["over_dense"] == pytest.approx(kinds["single"]["bundle_bytes"] / kinds["single"]["onnx_bytes"])


@pytest.mark.slow
def test_precisions_on_a_small_ensemble(load: Load) -> None:
    module = load("runtime_precision")
    torch.manual_seed(0)
    ensemble = quorate.DeepEnsemble([LeNet((1, 12, 12), 4, width=(4, 6), hidden=(16, 8)) for _ in range(3)]).eval()
    rng = np.random.default_rng(0)
    val, test = ((rng.standard_normal((count, 1, 12, 12), dtype=np.float32), rng.integers(0, 4, count)) for count in (300, 200))
    kinds, found, refused = module.versions(ensemble, val, test, target="risk@coverage=0.8", groups=(1, 2))
    assert next(iter(kinds)) == "fp32"
    assert set(kinds) | set(refused) == {"fp32", *module.LOWER}
    assert isinstance(kinds["fp32"][1], Policy)
    assert found["fp32"]["agreement"] == 1
    assert found["bf16"]["bytes"] < found["fp32"]["bytes"]
    assert [program.ports.precision for program in kinds["fp16"][0]] == ["fp16"] * 2
    assert isinstance(kinds["fp16"][0][0].ports.input, Port)
    taken = module.times(kinds, test[0], 2)
    assert taken["fp32"]["over:256"] == 1
    assert all(each["ms:1"] > 0 for each in taken.values())
