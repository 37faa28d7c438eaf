"""``quorate plan`` over ONNX files: the same plans as over their stored outputs, rows matched, and requests that can't be met."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import quorate.cli.plan as command
import tiny_onnx
from quorate.cascade import Policy
from quorate.cli.costs import Costs
from quorate.cli.fed import Inputs
from quorate.cli.main import main
from quorate.cli.sources import How
from quorate.cli.stored import Parts, pool
from quorate.combination import softmax
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

N, F, C = 300, 6, 3
RNG = np.random.default_rng(7)
TRUE = 2 * RNG.normal(size=(C, F))
WEIGHTS = {"small": TRUE + 1.5 * RNG.normal(size=(C, F)), "large": TRUE + 0.3 * RNG.normal(size=(C, F))}
X = RNG.normal(size=(N, F)).astype(np.float32)
Y = (X @ TRUE.T + 0.5 * RNG.normal(size=(N, C))).argmax(-1)
IDS = np.array([f"row{k}" for k in range(N)])
FED = ["--kind", "logits", "--inputs", "val.npz", "--inputs_x", "x", "--inputs_y", "y"]
COSTS = ["--costs", "small=1", "large=9"]
ASKED = ["--target", "coverage@risk=0.2", "--most", "2", "--front", "3", "--output", "p.json"]
MODELS = ["small.onnx", "large.onnx"]


def logits(name: str, x: np.ndarray = X) -> np.ndarray:
    return (x @ WEIGHTS[name].astype(np.float32).T).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, weight in WEIGHTS.items():
        (tmp_path / f"{name}.onnx").write_bytes(tiny_onnx.linear(weight, batch=7 if name == "small" else "n"))
    np.savez(tmp_path / "val.npz", x=X, y=Y, ids=IDS)
    np.savez(tmp_path / "far.npz", x=0.1 * X[:100])
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    return tmp_path


def stored(names: Sequence[str] = ("small", "large"), ids: np.ndarray | None = None) -> Outputs:
    costs = [{"small": 1.0, "large": 9.0}[name] for name in names]
    return Outputs([logits(name) for name in names], labels=Y, ids=ids, costs=costs, names=names)


def test_the_plan_is_that_of_the_stored_outputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *MODELS, *FED, *COSTS, *ASKED, "--split", "0.5", "0.5", "--batch_size", "64"]) == 0
    found = Policy.load("p.json")
    stored().save(folder / "all.safetensors")
    assert main(["plan", "all.safetensors", *ASKED, "--split", "0.5", "0.5"]) == 0
    expected = Policy.load("p.json")
    assert [stage.name for stage in found.stages] == [stage.name for stage in expected.stages]
    assert [stage.cost for stage in found.stages] == [stage.cost for stage in expected.stages]
    for one, other in zip(found.stages, expected.stages, strict=True):
        assert one.tau is None or one.tau == pytest.approx(other.tau, rel=1e-4)
    assert found.certificate is not None
    assert "2 models, 150 validation rows, 150 calibration rows" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_pairs_of_arrays_probabilities_and_other_names() -> None:
    Path("soft.onnx").write_bytes(tiny_onnx.linear(WEIGHTS["small"], activation="Softmax"))
    how = How("probs", class_names=["a", "b", "c"], combine="probs")
    said = Inputs("x.npy", inputs_y="y.npy", threads=1, providers=["CPUExecutionProvider"])
    told: list[tuple[str, int, int]] = []
    found = pool(["own=soft.onnx"], how, Parts(), Costs({"own": 3.0}), said, lambda *said: told.append(said))
    only = found.validation["own"]
    np.testing.assert_allclose(only.values[0][0], softmax(logits("small")), atol=1e-6)
    assert (only.costs, only.classes, only.kind, only.n) == ((3.0,), ("a", "b", "c"), "probs", N)
    np.testing.assert_array_equal(only.truth(), Y)
    assert told[-1] == ("own", N, N)


@pytest.mark.usefixtures("folder")
def test_rows_are_matched_by_ids_with_other_sources(capsys: pytest.CaptureFixture[str]) -> None:
    order = np.random.default_rng(0).permutation(N)
    stored(["large"], IDS).rows(order).save("big.safetensors")
    given = ["big.safetensors", "small.onnx", "--kind", "logits", "--inputs", "val.npz", "--inputs_x", "x", "--inputs_y", "y"]
    assert main(["plan", *given, "--costs", "small=1", "big=9", *ASKED]) == 1
    assert "val.npz has no row ids" in (error := capsys.readouterr().err) or "small.onnx has no row ids" in error
    assert "give --inputs_ids NAME" in error
    said = Inputs("val.npz", "x", "y", "ids")
    found = pool(["big.safetensors", "small.onnx"], How("logits"), Parts(), Costs({"big": 9.0, "small": 1.0}), said)
    assert found.validation["small"].ids.tolist() == IDS.tolist()
    assert found.validation["big"].ids.tolist() == IDS[order].tolist()
    np.testing.assert_array_equal(found.validation["small"].aligned(IDS[order]).truth(), found.validation["big"].truth())
    parts = pool(["big.safetensors", "small.onnx"], How("logits"), Parts(split=[0.5]), Costs({"big": 9.0, "small": 1.0}), said)
    small, big = parts.validation["small"], parts.validation["big"]
    assert small.ids.tolist() == big.ids.tolist()
    at = np.array([int(str(row).removeprefix("row")) for row in small.ids])
    np.testing.assert_allclose(small.values[0][0], logits("small")[at], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("folder")
def test_other_rows_are_raw_inputs_too() -> None:
    parts = Parts(calibration=["val.npz", "val.npz"], ood=["far=far.npz,far.npz"], ood_split=[0.25, 0.75])
    found = pool(MODELS, How("logits"), parts, Costs({"small": 1.0, "large": 9.0}), Inputs("val.npz", "x", "y"))
    assert found.calibration is not None
    np.testing.assert_array_equal(found.calibration["small"].truth(), Y)
    assert found.ood["far"]["large"].n == 25
    far = found.cal_ood["far"]["large"]
    assert (far.n, far.labels) == (75, None)
    np.testing.assert_allclose(far.values[0][0], logits("large", 0.1 * X[:100])[far.ids], rtol=1e-4, atol=1e-5)
    parts = Parts(ood=["same=x.npy,x.npy"])
    same = pool(MODELS, How("logits"), parts, Costs({"small": 1, "large": 9}), Inputs("val.npz", "x", "y")).ood["same"]["small"]
    np.testing.assert_allclose(same.values[0][0], logits("small"), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("folder")
def test_an_output_is_named_where_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [tiny_onnx.node("Relu", ["x"], ["a"]), tiny_onnx.node("Neg", ["x"], ["b"])]
    shape = ("float32", ("n", F))
    Path("two.onnx").write_bytes(tiny_onnx.model(nodes, {"x": shape}, {"a": shape, "b": shape}))
    given = ["two.onnx", *FED, "--costs", "two=1", *ASKED[:2]]
    assert main(["plan", *given]) == 1
    assert "output=None, expected one of a, b" in capsys.readouterr().err
    for text in ("b", "two=b"):
        said = Inputs("val.npz", "x", "y", onnx_output=[text])
        found = pool(["two.onnx"], How("logits"), Parts(), Costs({"two": 1.0}), said)
        np.testing.assert_array_equal(found.validation["two"].values[0][0], -X)
    for options, expected in (
        (["tow=b"], "'tow' is none of the ONNX files; did you mean 'two'?"),
        (["a", "two=b"], "has one already"),
    ):
        assert main(["plan", *given, "--onnx_output", *options]) == 1
        assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_progress_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SPEAK_S", 0.0)
    assert main(["plan", *MODELS, *FED, *COSTS, *ASKED, "--batch_size", "150"]) == 0
    lines = capsys.readouterr().err.splitlines()
    for line in ("running small: 50 %", "running small: 100 %", "running large: 100 %"):
        assert line in lines


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        ([*COSTS], 1, "small.onnx has to be run on raw inputs: give --inputs FILE.npz"),
        ([*COSTS, "--inputs", "val.npz"], 1, "what it gives is never guessed, give --kind logits or probs"),
        ([*COSTS, "--kind", "top1", "--inputs", "val.npz"], 1, "give --kind logits or probs, not top1"),
        ([*FED], 1, "what a row costs in small.onnx is not known"),
        ([*FED, "--costs", "small=1"], 1, "what a row costs in large.onnx is not known"),
        (
            [*COSTS, "--kind", "logits", "--inputs", "val.npz"],
            1,
            "which of its arrays holds the inputs is never guessed, give --inputs_x",
        ),
        ([*FED[:4], "--inputs_x", "z", *COSTS], 1, "val.npz has no array 'z': it holds x, y, ids"),
        (
            [*COSTS, "--kind", "logits", "--inputs", "x.npy", "--inputs_x", "x"],
            1,
            "x.npy holds one array, --inputs_x x names one",
        ),
        ([*COSTS, "--kind", "logits", "--inputs", "x.csv"], 1, "x.csv: expected raw inputs in a file that ends in .npz or .npy"),
        ([*COSTS, "--kind", "logits", "--inputs", "gone.npy"], 1, "gone.npy does not exist"),
        (
            [*COSTS, "--kind", "logits", "--inputs", "y.npy"],
            1,
            "y.npy has inputs int64 of shape (300,), 'small' takes float32 (N, 6)",
        ),
        (
            [*COSTS, "--kind", "logits", "--inputs", "x.npy", "--inputs_y", "val.npz"],
            1,
            "val.npz is a NumPy archive, expected a single",
        ),
        ([*FED, *COSTS, "--batch_size", "0"], 1, "--batch_size 0"),
        ([*FED, *COSTS, "--batch_size", "x"], 2, "batch_size"),
        ([*FED, *COSTS, "--providers", "GPU"], 1, "GPU"),
        ([*FED, *COSTS, "--values", "x"], 1, "--values is for .npz and .csv files, there are none"),
        ([*FED, *COSTS, "--calibration", "x.npy", "x.npy"], 1, "x.npy: an .npy has no labels or ids with it"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_cannot_be_run(capsys: pytest.CaptureFixture[str], options: list[str], status: int, expected: str) -> None:
    assert main(["plan", *MODELS, *ASKED, *options]) == status
    error = capsys.readouterr().err.splitlines()[-1]
    assert expected in error
    assert error.startswith("quorate plan: ")


@pytest.mark.usefixtures("folder")
def test_options_without_onnx_files(capsys: pytest.CaptureFixture[str]) -> None:
    stored().save("all.safetensors")
    assert main(["plan", "all.safetensors", *ASKED, "--inputs", "val.npz"]) == 1
    assert "--inputs is for ONNX files, there are none: leave it out" in capsys.readouterr().err
