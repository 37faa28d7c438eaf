"""``quorate export`` of ONNX files alone, without PyTorch: what the bundle answers against stored outputs, names, and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny_onnx
from quorate.cascade import Policy, simulate
from quorate.cascade.policy import StagePolicy
from quorate.cli.main import main
from quorate.combination import softmax
from quorate.outputs import Outputs
from quorate.runtime import load_bundle

pytestmark = pytest.mark.deciding

RNG = np.random.default_rng(11)
N, F, C = 40, 5, 3
WEIGHTS = {"small": RNG.normal(size=(C, F)).astype(np.float32), "large": RNG.normal(size=(C, F)).astype(np.float32)}
X = RNG.normal(size=(N, F)).astype(np.float32)
Y = RNG.integers(0, C, N)
POLICY = Policy((StagePolicy("small", window=(0.3, None), tau=0.2, cost=1.0), StagePolicy("large", tau=0.5, cost=9.0)))
FED = ["--inputs", "val.npz", "--inputs_x", "x", "--inputs_y", "y"]
ASKED = ["small.onnx", "large.onnx", *FED, "--to", "out"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, weight in WEIGHTS.items():
        (tmp_path / f"{name}.onnx").write_bytes(tiny_onnx.linear(weight, batch=4 if name == "large" else "n"))
    np.savez(tmp_path / "val.npz", x=X, y=Y)
    np.savez(tmp_path / "test.npz", x=-X, y=Y)
    POLICY.save(tmp_path / "p.json")
    return tmp_path


def stored(x: np.ndarray = X) -> Outputs:
    return Outputs([x @ WEIGHTS[name].T for name in ("small", "large")], labels=Y, names=["small", "large"])


@pytest.mark.usefixtures("folder")
def test_a_planned_cascade_is_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--policy", "p.json", "--name", "two", "--rows", "3", "--about", "who=me", "--class_names", "a", "b", "c"]
    assert main(["export", *ASKED, *more, "--test", "test.npz"]) == 0
    printed = capsys.readouterr().out.splitlines()
    runtime = load_bundle("out", watch=True)
    found, expected = runtime.predict(X), simulate(POLICY, stored())
    np.testing.assert_array_equal(found.stage, expected.stage)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.accepted, expected.accepted)
    np.testing.assert_allclose(found.probs, expected.probs, atol=1e-6)
    assert 0 < expected.stage.sum() < N
    manifest = runtime.manifest
    assert (manifest.name, manifest.classes, manifest.golden.rows) == ("two", ("a", "b", "c"), 3)
    assert manifest.costs == {"unit": "units of the policy", "total": 10.0}
    assert manifest.provenance["who"] == "me"
    assert manifest.provenance["policy"] == "p"
    assert manifest.provenance["files"]["large"]["file"] == "large.onnx"
    assert [stage.ports.batch for stage in manifest.stages] == [None, 4]
    assert runtime.watch is not None
    assert runtime.watch.names == ("small",)
    assert printed[0].startswith("wrote out: two, 2 stages, ")
    assert printed[1].startswith("  small: foreign, ")
    assert printed[-1] == f"digest {manifest.digest}"
    card = Path("out", manifest.card).read_text()
    assert "On 40 rows given as test rows" in card
    wrong = (simulate(POLICY, stored(-X)).label != Y).mean()
    assert f"{100 * (1 - wrong):.2f} %" in card


@pytest.mark.usefixtures("folder")
def test_without_a_policy_all_answer() -> None:
    for kind in ("logits", "probs"):
        if kind == "probs":
            for name, weight in WEIGHTS.items():
                Path(f"{name}.onnx").write_bytes(tiny_onnx.linear(weight, activation="Softmax"))
        assert main(["export", *ASKED, "--kind", kind, "--combine", "probs"]) == 0
        runtime = load_bundle("out")
        np.testing.assert_allclose(runtime.predict(X).probs, stored().probs(), atol=1e-6)
        assert (runtime.manifest.name, runtime.manifest.watch, runtime.manifest.kind) == ("out", None, kind)
        assert len(list(Path("out").iterdir())) == 2


@pytest.mark.usefixtures("folder")
def test_a_regression_has_no_policy() -> None:
    assert main(["export", *ASKED, "--kind", "values"]) == 0
    runtime = load_bundle("out")
    assert runtime.policy is None
    step = runtime.prefix(X)
    np.testing.assert_allclose(step.values, np.mean([X @ w.T for w in WEIGHTS.values()], 0), atol=1e-5)


@pytest.mark.usefixtures("folder")
def test_names_mixed_kinds_and_a_part_of_the_sources() -> None:
    Path("soft.onnx").write_bytes(tiny_onnx.linear(WEIGHTS["small"], activation="Softmax"))
    stages = (StagePolicy("large", window=(0.3, None), cost=9.0, kind="logits"), StagePolicy("first", cost=1.0, join="replace"))
    Policy(stages, kind="probs").save("mixed.json")
    given = ["first=soft.onnx", "large.onnx", "small.onnx", *FED, "--to", "out", "--policy", "mixed.json", "--test", "test.npz"]
    assert main(["export", *given]) == 0
    runtime = load_bundle("out")
    assert runtime.names == ("large", "first")
    found = runtime.predict(X)
    np.testing.assert_allclose(found.probs[found.stage == 0], softmax(X @ WEIGHTS["large"].T)[found.stage == 0], atol=1e-6)
    np.testing.assert_allclose(found.probs[found.stage == 1], softmax(X @ WEIGHTS["small"].T)[found.stage == 1], atol=1e-6)
    assert 0 < found.stage.sum() < N


@pytest.mark.usefixtures("folder")
def test_a_bundle_is_replaced_and_nothing_else() -> None:
    assert main(["export", *ASKED, "--policy", "p.json"]) == 0
    before = {path.name for path in Path("out").iterdir()}
    first = load_bundle("out").manifest.digest
    assert main(["export", *ASKED, "--policy", "p.json"]) == 0
    assert load_bundle("out").manifest.digest == first
    assert {path.name for path in Path("out").iterdir()} == before
    assert main(["export", "small.onnx", *FED, "--kind", "logits", "--to", "out"]) == 0
    assert load_bundle("out").names == ("small",)
    assert len(list(Path("out").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        (["small.onnx"], 2, "to"),
        ([*ASKED, "--rows", "0"], 2, "--rows 0: expected 1 to 8"),
        ([*ASKED, "--rows", "9"], 2, "--rows 9: expected 1 to 8"),
        ([*ASKED, "--name", " "], 2, "--name is empty"),
        ([*ASKED[:-1], ""], 2, "--to is empty: expected the bundle's folder"),
        ([*ASKED, "--kind", "top1"], 2, "kind"),
        ([*ASKED, "--polcy", "p.json"], 2, "did you mean '--policy'?"),
        (["gone", "--to", "out"], 1, "gone does not exist: expected a run folder or an .onnx file"),
        (["val.npz", "--to", "out"], 1, "val.npz: expected a run folder or an .onnx file, stored outputs can't be exported"),
        (["gone.onnx", "--to", "out"], 1, "gone.onnx does not exist"),
        (["small.onnx", "small.onnx", "--to", "out"], 1, "two sources are called 'small'"),
        (["small.onnx", "--to", "out", "--kind", "logits"], 1, "some raw inputs have to go with the bundle: give --inputs"),
        (ASKED, 1, "what an ONNX file gives is never guessed, give --kind, or the --policy"),
        ([*ASKED, "--policy", "gone.json"], 1, "--policy gone.json does not exist: expected a file that quorate plan wrote"),
        ([*ASKED, "--policy", "p.json", "--full"], 1, "--policy p.json and --full"),
        ([*ASKED, "--policy", "p.json", "--kind", "probs"], 1, "--kind probs: the policy has 'logits', leave it out"),
        ([*ASKED, "--policy", "p.json", "--combine", "last"], 1, "--combine last: the policy has 'probs', leave it out"),
        ([*ASKED, "--kind", "logits", "--class_names", "a", "b"], 1, "classes has 2 names for 3 outputs"),
        (
            ["a=small.onnx", *FED, "--to", "out", "--policy", "p.json"],
            1,
            "the policy has the stages ['small', 'large'], there are ['a']",
        ),
        ([*ASKED, "--policy", "p.json", "--precision", "fp16"], 1, "--precision is for runs, ONNX files are taken as they are"),
        ([*ASKED, "--policy", "p.json", "--about", "who"], 1, "--about who: expected KEY=VALUE"),
        ([*ASKED, "--policy", "p.json", "--about", "policy=x"], 1, "'policy' is said already"),
        ([*ASKED, "--policy", "p.json", "--test", "gone.npz"], 1, "gone.npz does not exist"),
        (
            [*ASKED[:4], "--inputs_x", "x", "--to", "out", "--policy", "p.json", "--test", "test.npz"],
            1,
            "the model card needs labels",
        ),
        ([*ASKED, "--policy", "p.json", "--onnx_output", "large=z"], 1, "output='z', expected one of y"),
        ([*ASKED[:-1], "p.json", "--policy", "p.json"], 1, "p.json is a file"),
        ([*ASKED[:-1], ".", "--policy", "p.json"], 1, ". holds 'large.onnx', which is no bundle's: choose another folder"),
        (
            ["small.onnx", "--to", "out", "--kind", "logits", "--inputs", "y.npy"],
            1,
            "y.npy has inputs int64 of shape (40,), 'small' takes",
        ),
    ],
)
def test_what_cannot_be_exported(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, expected: str
) -> None:
    np.save(folder / "y.npy", Y)
    assert main(["export", *options]) == status
    lines = capsys.readouterr().err.splitlines()
    assert expected in lines[-1]
    assert lines[-1].startswith("quorate export: ")
    assert not (folder / "out").exists()


@pytest.mark.usefixtures("folder")
def test_it_needs_no_torch() -> None:
    code = "import sys; from quorate.cli.main import main; status = main(sys.argv[1:]); print(status, 'torch' in sys.modules)"
    asked = [sys.executable, "-c", code, "export", *ASKED, "--policy", "p.json"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=120)
    assert said.stdout.splitlines()[-1] == "0 False"
    assert json.loads(Path("out/manifest.json").read_text())["format"] == "quorate-bundle/1"
