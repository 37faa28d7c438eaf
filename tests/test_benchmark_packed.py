"""The speed benchmarks of packed networks: what they compare, what they write down, and a small run of each."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import quorate

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARED = ("record", "packed_speed", "packed_rival")
Capture = pytest.CaptureFixture[str]
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Load]:
    """A benchmark by name; threads and results are the test's own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in SHARED:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.import_module("record"), "RESULTS", tmp_path / "results")
    threads, limit = torch.get_num_threads(), torch._dynamo.config.recompile_limit

    def script(name: str) -> ModuleType:
        if name in SHARED:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their annotations
        spec.loader.exec_module(module)
        return module

    yield script
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = limit
    for name in SHARED:
        sys.modules.pop(name, None)


def smoke(script: ModuleType, *options: str) -> dict[str, Any]:
    """The figures of a small run."""
    record = sys.modules["record"]
    script.main(["--smoke", "--threads", "1", "--allocator", "system", "--output", str(record.RESULTS), *options])
    (path,) = record.RESULTS.glob("packed-*-system.json")
    result = json.loads(path.read_text())
    assert result["machine"]["threads"] == 1
    assert result["seeds"] == [0]
    assert result["figures"].pop("settings") == {
        "device": "cpu",
        "precision": "fp32",
        "allocator": "system",
        "batches": [2],
    }
    return dict(result["figures"])


def positive(figures: Any) -> bool:
    """Whether every number in nested figures is above 0."""
    if isinstance(figures, dict):
        return all(positive(value) for value in figures.values())
    return isinstance(figures, str) or figures > 0


@pytest.mark.slow
def test_layers(load: Load, capsys: Capture) -> None:
    figures = smoke(load("packed_layers"))
    assert len(figures) == 4
    assert positive(figures)
    forward = figures["512 → 512, 4 × 4; batch 2; forward"]
    assert set(forward["ms"]) == {"plain", "plain nhwc", "grouped", "nhwc", "loop", "loop nhwc"}
    assert "linear 512 → 512" in capsys.readouterr().out


@pytest.mark.slow
def test_members(load: Load) -> None:
    figures = smoke(load("packed_members"), "--networks", "mlp")
    assert set(figures) == {"mlp, batch 2, inference", "mlp, batch 2, training"}
    assert positive(figures)
    assert set(figures["mlp, batch 2, inference"]["ms"]) == {"loop, eager nchw", "packed, eager nchw"}


@pytest.mark.slow
def test_training_and_its_memory(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent / "src"))
    found = smoke(load("packed_training"), "--networks", "resnet8")["resnet8, batch 2"]
    assert set(found["ms"]) == {"single, eager", "packed, eager"}
    assert found["fastest"] == {"single": "single, eager", "packed": "packed, eager"}
    memory = found["memory"]
    assert memory["single"]["state_mib"] == pytest.approx(3 * 4 * 78_042 / 2**20)
    assert memory["packed_over_expected"] == pytest.approx(memory["packed"]["peak_mib"] / memory["expected_mib"])
    assert memory["packed"]["peak_mib"] > memory["packed"]["state_mib"]


@pytest.mark.slow
def test_inference(load: Load) -> None:
    found = smoke(load("packed_inference"), "--networks", "resnet8")["resnet8, batch 2"]
    engines = {"eager nchw", "eager nhwc", "onnxruntime"}
    assert set(found["ratio_by_engine"]) == engines
    assert set(found["ms"]) == {f"{kind}, {engine}" for kind in ("single", "packed") for engine in engines}
    assert positive(found)


@pytest.mark.parametrize(("option", "value"), [("--threads", "0"), ("--repeats", "0"), ("--batches", "0")])
def test_numbers_out_of_range(load: Load, capsys: Capture, option: str, value: str) -> None:
    with pytest.raises(SystemExit):
        load("packed_speed").settings("", [option, value], networks=["mlp"])
    assert "--threads, --repeats and --batches: expected 1 or more" in capsys.readouterr().err


def test_results_under_other_settings_have_files_of_their_own(load: Load) -> None:
    speed = load("packed_speed")
    usual = speed.settings("", [], networks=["mlp"])
    other = speed.settings("", ["--precision", "bf16", "--allocator", "system"], networks=["mlp"])
    for asked in (usual, other):
        speed.write("packed-x", asked, "unknown", {}, "a  note\nin lines")
    names = {path.name for path in sys.modules["record"].RESULTS.iterdir()}
    assert names == {"packed-x.json", "packed-x-bf16-system.json"}
    assert json.loads((sys.modules["record"].RESULTS / "packed-x.json").read_text())["note"] == "a note in lines"


def test_the_allocator_is_set_before_the_process_is_measured(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = load("packed_speed")
    begun: list[tuple[Any, ...]] = []

    def execve(*arguments: Any) -> None:
        begun.append(arguments)
        raise SystemExit

    monkeypatch.setattr(speed.os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["packed_layers.py", "--batches", "1"])
    with pytest.raises(SystemExit):
        speed.settings("", None, networks=["mlp"])
    ((path, command, variables),) = begun
    assert (path, command) == (sys.executable, [sys.executable, "packed_layers.py", "--batches", "1"])
    assert speed.ALLOCATORS["keep"].items() <= variables.items()
    monkeypatch.setattr(speed.os, "environ", variables)
    assert speed.settings("", None, networks=["mlp"]).batches == [1]


def test_fastest_and_ratios(load: Load) -> None:
    speed = load("packed_speed")
    times = {"a": [3.0, 4.0, 5.0], "b": [2.0, 9.0, 2.5], "c": [1.0, 1.0, 1.0]}
    assert speed.fastest(times, ["a", "b"]) == "b"
    assert speed.against(times, "a", "c") == {"median": 4.0, "q1": 3.5, "q3": 4.5}


def test_folding_both_kinds_of_network(load: Load) -> None:
    speed = load("packed_speed")
    for network in (speed.single("resnet8").eval(), speed.packed("resnet8").eval()):
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(speed.folded(network)(x), network(x), rtol=1e-4, atol=1e-5)
        assert not any(isinstance(child, nn.BatchNorm2d) for child in speed.folded(network).modules())


def test_losses_of_the_three_kinds_agree(load: Load) -> None:
    training = load("packed_training")
    targets, logits = torch.tensor([0, 2]), torch.randn(4, 2, 3)
    expected = sum(nn.functional.cross_entropy(each, targets) for each in logits)
    torch.testing.assert_close(training.loss("packed", logits, targets), expected)
    torch.testing.assert_close(training.loss("torch-uncertainty", logits.flatten(0, 1), targets), expected)
    torch.testing.assert_close(training.loss("single", logits[0], targets), nn.functional.cross_entropy(logits[0], targets))


def test_the_loop_and_the_packed_ensemble_hold_the_same_members(load: Load) -> None:
    found = {name: network.eval() for name, network in load("packed_members").ensembles("resnet8").items()}
    x = torch.randn(2, 3, 32, 32)
    assert isinstance(found["loop"], quorate.DeepEnsemble)
    torch.testing.assert_close(found["packed"](x), found["loop"](x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mlp", "vit"])
def test_torch_uncertainty_has_the_same_sizes(load: Load, name: str) -> None:
    rival, speed = load("packed_rival"), load("packed_speed")
    if not rival.available():
        pytest.skip("torch-uncertainty is not installed")
    theirs, ours = rival.NETWORKS[name](4, 2).eval(), speed.packed(name).eval()
    x = torch.randn(2, *speed.NETWORKS[name][1])
    sizes = [sum(p.numel() for p in network.parameters()) for network in (theirs, ours)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.15  # its first layers and norms differ from the specification
    assert theirs(x).unflatten(0, (4, 2)).shape == ours(x).shape
