"""``quorate export`` of runs: the bundle answers as the run's own cascade in PyTorch, what it tells of itself, precision, interruptions."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import tiny_onnx
from quorate import Cascade, stages
from quorate.cascade import Policy
from quorate.cascade.policy import StagePolicy
from quorate.cli.bundled import portable
from quorate.cli.main import main
from quorate.cli.reload import reload
from quorate.files import read_json
from quorate.outputs import Outputs
from quorate.runtime import Manifest, load_bundle

RNG = np.random.default_rng(2)
WEIGHT = RNG.normal(size=(3, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs "deep" with two members and a policy, and "single", on images of bytes."""
    root = tmp_path_factory.mktemp("runs")
    labels = np.arange(120) % 3
    images = (RNG.integers(0, 120, (120, 4, 4)) + 60 * labels[:, None, None]).clip(0, 255).astype(np.uint8)
    np.savez(root / "x.npz", x=images, y=labels)
    data = [
        "--data",
        "npz_rows",
        "--data.path",
        str(root / "x.npz"),
        "--data.layout",
        "nhw",
        "--model",
        "MLP",
        "--model.hidden",
        "[8]",
    ]
    short = ["--fit.epochs", "2", "--fit.warmup_epochs", "0", "--progress", "false"]
    for name, kind in (("deep", ["deep", "--ensemble.members", "2"]), ("single", ["single"])):
        assert main(["train", *data, *short, "--ensemble.kind", *kind, "--run", str(root / name)]) == 0
    outputs = Outputs.load(root / "deep" / "outputs" / "validation.safetensors")
    u = np.sort(1 - outputs.probs(1).max(-1))
    Policy.of(outputs, [(float(u[len(u) // 2]), None)], [float(u[-3]), None]).save(root / "deep" / "policies" / "half.json")
    return root


@pytest.fixture
def folder(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("deep", "single"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path


def check_same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.stage, expected.stage)
    np.testing.assert_array_equal(found.accepted, expected.accepted)
    np.testing.assert_allclose(found.probs, expected.probs, atol=1e-5)


def told(folder: Path, manifest: Manifest) -> str:
    """All text in the bundle."""
    return (folder / "manifest.json").read_text() + (folder / manifest.card).read_text()


def test_a_run_and_its_only_policy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "deep", "--to", "out", "--rows", "2", "--about", "who=me"]) == 0
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if line.startswith("stage")] == ["stage member0", "stage member1"]
    runtime = load_bundle("out", watch=True)
    ensemble, data = reload("deep")
    policy = Policy.load("deep/policies/half.json")
    x = data.test.x
    check_same(runtime.predict(x), expected := Cascade(stages(ensemble), policy).predict(x))
    assert 0 < expected.stage.sum() < len(x)
    manifest = runtime.manifest
    assert manifest.policy == policy
    assert manifest.classes == tuple(data.classes)
    assert (manifest.input.dtype, manifest.input.shape, manifest.golden.rows) == ("uint8", (1, 4, 4), 2)
    assert re.fullmatch(r"\d+ … \d+, uint8, in \d+ validation rows", manifest.preprocessing["values seen"])
    about = manifest.provenance
    assert (about["who"], about["policy"], about["runs"]["deep"]["folder"]) == ("me", "half", "deep")
    assert about["runs"]["deep"]["data"]["fingerprint"] == data.fingerprint()
    assert about["runs"]["deep"]["recipe"]["data"]["init_args"]["path"] == "…/x.npz"
    assert about["versions"].keys() >= {"torch", "onnxruntime", "quorate"}
    text = told(Path("out"), manifest)
    assert str(folder.parent) not in text
    assert "/tmp" not in text
    assert f"On {len(x)} rows given as test rows" in text
    assert runtime.watch is not None


def test_without_a_policy_all_members_answer(folder: Path) -> None:
    assert main(["export", "deep", "--full", "--to", "out"]) == 0
    runtime = load_bundle("out")
    outputs = Outputs.load(folder / "deep" / "outputs" / "test.safetensors")
    _, data = reload("deep")
    np.testing.assert_allclose(runtime.predict(data.test.x).probs, outputs.probs(), atol=1e-5)
    assert runtime.manifest.watch is None
    assert runtime.manifest.costs["unit"] == "MACs"
    assert outputs.costs is not None
    assert runtime.manifest.costs["total"] == sum(outputs.costs)


def flat(path: Path) -> None:
    """A model of raw bytes, made by hand: (x as floats, flattened) Wᵀ / 50."""
    nodes = [
        tiny_onnx.node("Cast", ["x"], ["f"], to=1),
        tiny_onnx.node("Flatten", ["f"], ["v"]),
        tiny_onnx.node("Gemm", ["v", "w"], ["y"], transB=1),
    ]
    path.write_bytes(
        tiny_onnx.model(
            nodes, {"x": ("uint8", ("n", 1, 4, 4))}, {"y": ("float32", ("n", 3))}, [tiny_onnx.tensor("w", WEIGHT / 50)]
        )
    )


def test_runs_and_a_file_of_another_framework(folder: Path) -> None:
    flat(folder / "hand.onnx")
    chain = [StagePolicy("hand", window=(0.2, None), cost=1), StagePolicy("s", "replace", window=(0.1, None), cost=2)]
    Policy((*chain, StagePolicy("deep/member1", tau=0.6, cost=3))).save("p.json")
    given = ["deep", "s=single", "hand.onnx", "--policy", "p.json", "--to", "out"]
    assert main(["export", *given]) == 0
    runtime = load_bundle("out")
    assert runtime.names == ("hand", "s", "deep/member1")
    deep, data = reload("deep")
    single, _ = reload("single")
    x = data.test.x

    class Hand:
        name, reads, writes, drops, macs = "hand", (), (), (), None

        def __call__(self, x: Any, _: Any) -> tuple[Any, dict[str, Any]]:
            return (np.asarray(x).reshape(len(x), -1).astype(np.float32) @ (WEIGHT / 50).T)[None], {}

    own = [Hand(), stages(single)[0], stages(deep)[1]]
    own[1].name, own[2].name = "s", "deep/member1"
    check_same(runtime.predict(x), Cascade(own, Policy.load("p.json")).predict(x))
    assert {stage.ports.precision for stage in runtime.manifest.stages} == {"foreign", "fp32"}
    assert runtime.manifest.watch is not None
    assert set(runtime.manifest.provenance["runs"]) == {"deep", "s"}
    assert main(["export", *given[:3], "--full", "--to", "other"]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_lower_precision_refits_the_policy(capsys: pytest.CaptureFixture[str]) -> None:
    policy = Policy.load("deep/policies/half.json")
    assert main(["plan", "deep", "--target", "coverage@risk=0.5", "--output", "q.json"]) == 0
    certified = Policy.load("q.json")
    assert certified.certificate is not None
    assert main(["export", "deep", "--to", "out", "--policy", "half", "--precision", "member1=bf16"]) == 0
    runtime = load_bundle("out")
    assert [stage.ports.precision for stage in runtime.manifest.stages] == ["fp32", "bf16"]
    assert runtime.manifest.precision is not None
    assert set(runtime.manifest.precision["stages"]) == {"member1"}
    assert runtime.manifest.watch is not None
    assert runtime.policy is not None
    assert [stage.name for stage in runtime.policy.stages] == [stage.name for stage in policy.stages]
    assert main(["export", "deep", "--to", "out", "--policy", "q.json", "--precision", "fp16"]) == 0
    renewed = load_bundle("out").manifest
    assert renewed.policy is not None
    assert renewed.policy.certificate is not None
    assert renewed.policy.certificate["rows"] == certified.certificate["rows"]
    assert {stage.ports.precision for stage in renewed.stages} == {"fp16"}
    capsys.readouterr()
    for options, expected in (
        (["--precision", "other=fp16"], "there is no stage 'other', expected some of member0, member1"),
        (["--precision", "fp16", "member0=bf16"], "'member0' has one already"),
        (["--precision", "int4"], "--precision int4: expected [STAGE=]PRECISION with one of int8-static"),
    ):
        assert main(["export", "deep", "--to", "out", "--policy", "half", *options]) == 1
        assert expected in capsys.readouterr().err.splitlines()[-1]
    assert load_bundle("out").manifest.digest == renewed.digest


def test_several_policies_have_to_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Policy.load("deep/policies/half.json")
    replace(own, stages=(replace(own.stages[0], window=None), own.stages[1])).save("deep/policies/never.json")
    assert main(["export", "deep", "--to", "out"]) == 1
    assert "has the policies half, never: name one by --policy, or none by --full" in capsys.readouterr().err
    assert main(["export", "deep", "--to", "out", "--policy", "third"]) == 1
    assert "--policy third does not exist: expected a file that quorate plan wrote, the policies of the run are half, never" in (
        capsys.readouterr().err
    )
    own.save("never")
    assert main(["export", "deep", "--to", "out", "--policy", "never"]) == 1
    assert "--policy never is a file here and a policy of run deep" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_what_cannot_be_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Policy((StagePolicy("member9"),)).save("p.json")
    facts = read_json(folder / "single" / "run.json", "run")
    for options, expected in (
        (["deep", "--inputs", "x.npz"], "--inputs is for ONNX files, there are none"),
        (["deep", "--test", "x.npz"], "--test is for ONNX files alone, the runs have data of their own"),
        (["deep", "--policy", "p.json"], "member9"),
        (["deep/outputs"], "not a run"),
        (["deep", "single", "--class_names", "a"], "--class_names is for ONNX files alone"),
        (
            ["deep", "--full", "--kind", "probs"],
            "--kind is for ONNX files, there are none, and runs say it themselves: leave it out",
        ),
        (["deep", "--combine", "logits"], "--combine is for ONNX files, there are none"),
    ):
        assert main(["export", *options, "--to", "out"]) == 1
        if expected != "not a run":
            assert expected in capsys.readouterr().err.splitlines()[-1]
    assert facts["status"] == "finished"
    (folder / "single" / "run.json").write_text((folder / "single" / "run.json").read_text().replace('"finished"', '"running"'))
    capsys.readouterr()
    assert main(["export", "single", "--to", "out"]) == 1
    assert "is not finished" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_a_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    x = RNG.normal(size=(120, 3)).astype(np.float32)
    np.savez("r.npz", x=x, y=x @ np.array([1, 2, 3], np.float32))
    data = ["--data", "npz_rows", "--data.path", "r.npz", "--data.layout", "features", "--data.task", "regression"]
    short = ["--model", "MLP", "--model.hidden", "[4]", "--fit.epochs", "2", "--progress", "false", "--run", "reg"]
    assert main(["train", *data, *short, "--ensemble.kind", "deep", "--ensemble.members", "2"]) == 0
    assert main(["export", "reg", "--to", "out"]) == 0
    runtime = load_bundle("out")
    assert (runtime.policy, runtime.manifest.kind) == (None, "gaussian")
    step = runtime.prefix(reload("reg")[1].test.x)
    mean, variance = Outputs.load("reg/outputs/test.safetensors").gaussian()
    np.testing.assert_allclose(step.values, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step.variance, variance, rtol=1e-4, atol=1e-5)
    assert main(["export", "reg", "--to", "out", "--precision", "fp16"]) == 1
    assert "--precision is for classifications" in capsys.readouterr().err


def test_paths_of_this_machine_are_left_out() -> None:
    given = {
        "a": ["/home/me/x.npz", r"C:\data\y", "~/z", "a/b", "x"],
        "b": {"c": 1.5, "d": float("nan"), "e": None, "f": True},
        3: (1,),
    }
    assert portable(given) == {
        "a": ["…/x.npz", "…/y", "…/z", "a/b", "x"],
        "b": {"c": 1.5, "d": "nan", "e": None, "f": True},
        "3": [1],
    }


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_leaves_the_old_bundle(folder: Path, stop: signal.Signals) -> None:
    assert main(["export", "single", "--to", "out"]) == 0
    before = load_bundle("out").manifest.digest
    code = "import sys; from quorate.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for to in ("out", "new"):
        asked = [sys.executable, "-c", code, "export", "deep", "--full", "--to", to]
        with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            assert process.stderr is not None
            while not process.stderr.readline().startswith("stage member1"):
                assert process.poll() is None
            time.sleep(0.2)
            process.send_signal(stop)
            rest = process.stderr.read()
        assert process.returncode == (-stop if stop == signal.SIGKILL else 128 + stop)
        assert stop == signal.SIGKILL or rest.splitlines()[-1].startswith("quorate export: stopped")
    assert load_bundle("out").manifest.digest == before
    assert not (folder / "new").exists()
