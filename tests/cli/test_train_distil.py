"""`quorate train --ensemble.kind bdistil`: teacher, students and parts from the command line, stopped and gone on with, and made again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from quorate import collect
from quorate.cli.main import main
from quorate.cli.reload import reload
from quorate.data import digits, npz_rows
from quorate.distil import Distilled
from quorate.distil.stopping import Stopper
from quorate.models import RNN
from quorate.outputs import Outputs
from quorate.runs import Run

RECIPES = Path(__file__).parents[2] / "recipes"
MLP = ["--model", "MLP", "--model.hidden", "[16]"]
DISTIL = "--ensemble.distil."
SIZES = [f"{DISTIL}students", '[{"width": 0.25}, {"width": 0.5}]', f"{DISTIL}rules.candidates", "1", f"{DISTIL}rules.rounds", "2"]
CONSOLE = "import sys; from quorate.cli.main import main; sys.exit(main())"


def command(run: Path, *more: str, model: list[str] = MLP, kind: str = "bdistil") -> list[str]:
    short = ["--fit.epochs", "2", "--fit.warmup_epochs", "0.5", "--fit.lr", "0.1", "--progress", "false", "--run", str(run)]
    return ["train", "--config", str(RECIPES / "digits-single.yaml"), *model, *short, "--ensemble.kind", kind, *more]


def sequences(folder: Path) -> list[str]:
    """The command's options for sequences (2, 12) of three classes, and a recurrent model."""
    rng, y = np.random.default_rng(0), np.arange(180) % 3
    x = np.sin(np.arange(12)[None, :, None] * (y[:, None, None] + 1) * 0.5) + 0.3 * rng.normal(size=(180, 12, 2))
    np.savez(folder / "sequences.npz", x=x.astype(np.float32), y=y)
    data = ["--data", "npz_rows", "--data.path", str(folder / "sequences.npz"), "--data.layout", "nlc"]
    fit = ["--fit.epochs", "3", "--fit.batch_size", "16", "--fit.lr", "0.1", "--progress", "false"]
    return ["train", *data, "--model", "RNN", "--model.hidden", "8", *fit, "--ensemble.kind", "bdistil"]


def kept(folder: Path) -> dict[str, bytes]:
    """What a run came to."""
    names = [*folder.rglob("*.safetensors"), folder / "rounds.jsonl"]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in names}
    facts = json.loads((folder / "run.json").read_text())
    return found | {name: json.dumps(facts[name]).encode() for name in ("identity", "distil", "stage_macs", "training_macs")}


def test_it_is_trained_evaluated_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "a"
    assert main(command(run, *SIZES)) == 0
    shown = capsys.readouterr().out
    assert "as the teacher" in shown
    assert "of the teacher's" in shown
    ensemble, data = reload(run)
    assert isinstance(ensemble, Distilled)
    assert np.array_equal(collect(ensemble, data.test).values[0], Run(run).outputs("test").values[0])
    teacher, own = reload(run / "teacher")
    assert np.array_equal(collect(teacher, own.test).values[0], Run(run / "teacher").outputs("test").values[0])
    assert Run(run / "teacher").facts["identity"]["about"]["ensemble"]["kind"] == "single"
    before = kept(run)
    assert main(command(run, *SIZES)) == 0  # read back
    assert kept(run) == before
    for other, named in ((["--seed", "1"], "seed"), ([f"{DISTIL}rules.rounds", "3"], "rules.rounds: 2 there, 3 now")):
        capsys.readouterr()
        assert main(command(run, *SIZES, *other)) == 1
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
    assert kept(run) == before


@pytest.mark.slow
def test_the_teacher_is_that_of_kind_single_and_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path / "own", *SIZES)) == 0
    assert main(command(tmp_path / "single", kind="single")) == 0
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("own/teacher", "single")]
    assert weights[0] == weights[1]
    assert main(command(tmp_path / "given", *SIZES, f"{DISTIL}teacher", str(tmp_path / "single"))) == 0
    assert not (tmp_path / "given" / "teacher").exists()
    one, other = kept(tmp_path / "own"), kept(tmp_path / "given")
    again = ["train", "--config", str(tmp_path / "own" / "config.yaml"), "--run", str(tmp_path / "again"), "--progress", "false"]
    assert main(again) == 0
    assert kept(tmp_path / "again") == one
    assert {k: v for k, v in one.items() if not k.startswith("teacher/")} == other
    capsys.readouterr()
    teacher = [f"{DISTIL}teacher", str(tmp_path / "single")]
    assert main(command(tmp_path / "r", *SIZES, *teacher, "--data.seed", "1")) == 1
    assert "other data or another partition" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter's, about itself
@pytest.mark.slow
def test_stored_outputs_and_onnx_files_teach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = digits(held_out=(8, 9), fractions=(0.25, 0.2, 0.1, 0.45), seed=0)
    known = [data.train, data.validation]
    values = np.concatenate([8 * np.eye(8, dtype=np.float32)[split.y] for split in known])
    stored = Outputs([values[None]], ids=np.concatenate([split.ids for split in known]), names=["oracle"])
    stored.save(tmp_path / "oracle.safetensors")
    oracle = [f"{DISTIL}teacher", str(tmp_path / "oracle.safetensors")]
    assert main(command(tmp_path / "r", *SIZES, *oracle)) == 1
    assert "MACs are not known" in capsys.readouterr().err
    assert main(command(tmp_path / "r", *SIZES, *oracle, f"{DISTIL}teacher_macs", "5000")) == 1
    assert "knows no augmented views" in capsys.readouterr().err
    assert main(command(tmp_path / "r", *SIZES, *oracle, f"{DISTIL}teacher_macs", "5000", f"{DISTIL}fit.augment", "false")) == 0
    assert Run(tmp_path / "r").facts["distil"]["teacher"] == {"name": "oracle.safetensors", "macs": 5000.0}
    assert isinstance(reload(tmp_path / "r")[0], Distilled)
    assert main(command(tmp_path / "r2", *SIZES, f"{DISTIL}teacher", str(tmp_path / "no.onnx"))) == 1
    assert "no such file" in capsys.readouterr().err
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Softmax(-1)).eval()
    torch.onnx.export(
        teacher, (torch.zeros(1, 1, 8, 8),), tmp_path / "t.onnx", dynamo=False, input_names=["x"],
        output_names=["p"], dynamic_axes={"x": {0: "n"}, "p": {0: "n"}},
    )  # fmt: skip
    given = [f"{DISTIL}teacher", str(tmp_path / "t.onnx"), f"{DISTIL}teacher_kind", "probs", f"{DISTIL}rules.budget_macs", "5000"]
    assert main(command(tmp_path / "onnx", *SIZES, *given)) == 0
    assert Run(tmp_path / "onnx").facts["identity"]["teacher"]["kind"] == "probs"


def test_parts_of_a_sequence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, options = tmp_path / "a", [*sequences(tmp_path), f"{DISTIL}parts", "3", f"{DISTIL}rules.candidates", "1"]
    assert main([*options, f"{DISTIL}part_width", "0.25", "--run", str(run)]) == 0
    ensemble, data = reload(run)
    stages = ensemble.stages()
    assert [stage.span for stage in stages] == [(0, 4), (4, 8), (8, 12)]
    assert [stage.student.hidden for stage in stages] == [2, 2, 2]
    assert np.array_equal(collect(ensemble, data.test).values[2], Run(run).outputs("test").values[2])
    capsys.readouterr()
    assert main(["evaluate", str(run), "--format", "markdown", "--output", str(tmp_path / "t.json")]) == 0
    shown = capsys.readouterr().out
    assert "| students | added last | MACs/input | of the teacher's | accuracy | NLL | as the teacher | right → wrong |" in shown
    rows = json.loads((tmp_path / "t.json").read_text())["a"]["prefixes"]
    assert [row["prefix"] for row in rows] == [1, 2, 3]
    whole = npz_rows(tmp_path / "sequences.npz", layout="nlc")
    assert RNN(whole.shape, 3, hidden=8).recurrent.hidden_size == 8
    assert main(["evaluate", str(run), "--corruptions", "drift", "--output", str(tmp_path / "c.md")]) == 0
    text = (tmp_path / "c.md").read_text()
    assert text.index("| accuracy |") < text.index("a: prefixes, ") < text.index("under 1 corruption")


@pytest.mark.parametrize("at", [5, 25])
def test_interrupted_it_ends_the_same(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*sequences(tmp_path), f"{DISTIL}parts", "3", f"{DISTIL}rules.candidates", "1"]
    asked, check = [0], Stopper.check

    def counted(stopper: Stopper) -> None:
        asked[0] += 1
        if asked[0] == at:
            signal.raise_signal(signal.SIGINT)
        check(stopper)

    monkeypatch.setattr(Stopper, "check", counted)
    assert main([*options, "--run", str(tmp_path / "a")]) == 130
    monkeypatch.undo()
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "running"
    assert (tmp_path / "a" / "distil" / "student-1.safetensors").exists() == (at > 20)
    assert main([*options, "--run", str(tmp_path / "a")]) == 0
    assert main([*options, "--run", str(tmp_path / "b")]) == 0
    assert kept(tmp_path / "a") == kept(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_digits_recipe_killed_in_a_process_of_its_own_ends_the_same(number: signal.Signals, tmp_path: Path) -> None:
    options = [
        "train",
        "--config",
        str(RECIPES / "digits-bdistil.yaml"),
        "--fit.epochs",
        "12",
        "--fit.lr",
        "0.1",
        f"{DISTIL}fit.epochs",
        "40",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", CONSOLE, *options, "--run", str(tmp_path / "a")], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "round 2" in line:
            process.send_signal(number)
            break
    rest = process.stderr.read()
    assert process.wait(120) == (130 if number == signal.SIGINT else -number), rest
    assert ("stopped by SIGINT; round 1 saved in" in rest) == (number == signal.SIGINT)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "running"
    for name in ("a", "b"):
        assert main([*options, "--progress", "false", "--run", str(tmp_path / name)]) == 0
    assert kept(tmp_path / "a") == kept(tmp_path / "b")


def facts_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def test_a_teacher_stopped_in_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quorate.training.module import EnsembleModule

    step, asked = EnsembleModule.training_step, [0]

    def stopping(module: Any, *arguments: Any) -> Any:
        asked[0] += 1
        if asked[0] == 9:
            signal.raise_signal(signal.SIGINT)
        return step(module, *arguments)

    monkeypatch.setattr(EnsembleModule, "training_step", stopping)
    assert main(command(tmp_path / "a", *SIZES)) == 130
    monkeypatch.undo()
    assert not (tmp_path / "a" / "run.json").exists()
    assert facts_of(tmp_path / "a" / "teacher")["status"] == "running"
    assert main(command(tmp_path / "a", *SIZES)) == 0
    assert main(command(tmp_path / "b", *SIZES)) == 0
    assert kept(tmp_path / "a") == kept(tmp_path / "b")
