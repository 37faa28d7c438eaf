"""``quorate inspect``: what it shows of a bundle, that it finds damage, and that it needs no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny_onnx
from quorate.cascade import Policy
from quorate.cascade.guarantee import Certificate
from quorate.cascade.policy import StagePolicy
from quorate.cli.main import main
from quorate.runtime import Manifest
from quorate.runtime.assembling import save_programs
from quorate.runtime.members import onnx_member

pytestmark = pytest.mark.deciding

RNG = np.random.default_rng(4)
X = RNG.normal(size=(6, 5)).astype(np.float32)
GIVEN = Certificate(
    "selective risk", True, 0.05, 0.1, "fixed-sequence", 400, None, 0.5, 200, 2.0, 0.01, 0.04, 3, 0, "rows are alike"
)
POLICY = Policy(
    (StagePolicy("small", window=(0.25, None), tau=0.125, cost=1.0), StagePolicy("large", "replace", 1.5, cost=9.0)),
    target="coverage@risk=0.05",
    certificate=GIVEN.to_dict(),
)


def write(folder: Path, policy: Policy | None = POLICY, **options: object) -> Manifest:
    programs = []
    for name in ("small", "large"):
        file = folder / f"{name}.onnx"
        file.write_bytes(tiny_onnx.linear(RNG.normal(size=(3, 5))))
        programs.append(onnx_member(file, macs=15))
    about = {"who": "me \x1b[31mred", "long": "x" * 500}
    return save_programs(
        programs, policy, folder / "b", example=X, name="two models", classes=["a", "b", "c"], about=about, **options  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path)


def test_what_it_shows(bundle: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "b"]) == 0
    shown = capsys.readouterr().out
    lines = {line[:18].strip(): line[18:] for line in shown.splitlines() if line[:1].isalpha()}
    assert lines["bundle"] == "two models"
    assert lines["digest"] == bundle.digest
    assert lines["gives"] == "logits, members combined by probs"
    assert lines["takes"] == "float32 (B, 5)"
    assert lines["classes"] == "3: a, b, c"
    assert lines["costs"] == "30 MACs per row, all stages together"
    assert lines["target"] == "coverage@risk=0.05"
    assert lines["certificate"] == "50.00 % at risk ≤ 5.00 %, on 400 calibration rows, with confidence 90 %"
    assert lines["golden outputs"] == "6 rows, |difference| ≤ 0.001 + 0.001 · |value|"
    assert lines["verified"].startswith("digest, schema, 4 files, ")
    assert "golden outputs" in lines["verified"]
    assert [f"runs here         {name}: dense (it has no ticket)" in shown for name in ("small", "large")] == [True, True]
    assert "\x1b[31m" not in shown
    assert "x" * 101 not in shown
    size = next(file.size_bytes for file in bundle.files if file.path == bundle.stages[0].program)
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in shown.splitlines() if line.startswith("│")]
    assert ["small", "foreign", "float32 (B, 5)", "1 × 3 float32", "15", "stage0.onnx", f"{size:,}"] in cells
    assert ["small", "–", "1", "0.25 ≤ u ≤ ∞", "0.125", "1"] in cells
    assert ["large", "nothing: takes their place", "1.5", "nobody", "all", "9"] in cells


def test_other_policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    rate = replace(POLICY.stages[0], window=None, rate=0.25)
    write(tmp_path, Policy((rate, POLICY.stages[1])))
    assert main(["inspect", "b"]) == 0
    shown = capsys.readouterr().out
    assert "25 % at random" in shown
    assert "certificate       none" in shown
    write(tmp_path, None, kind="values")
    assert main(["inspect", "b"]) == 0
    shown = capsys.readouterr().out
    assert "gives             values" in shown
    assert "goes on where" not in shown
    write(tmp_path, None, kind="logits")
    assert main(["inspect", "b"]) == 0
    assert "everybody" in capsys.readouterr().out


def test_json_and_card(bundle: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "b", "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["digest"] == bundle.digest
    assert set(said["verified"]) == {"files", "sessions", "golden", "total"}
    assert said["verified"]["total"] > 0
    assert said["engines"] == [{"stage": name, "name": "dense", "why": "it has no ticket"} for name in ("small", "large")]
    assert main(["inspect", "b", "--no-verify", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == said | {"verified": None, "engines": None}
    assert main(["inspect", "b", "--card"]) == 0
    card = capsys.readouterr().out
    assert card == "".join(c for c in Path("b", bundle.card).read_text() if c == "\n" or c.isprintable())
    assert card.startswith("# two models\n")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("place", ["stages", "golden", "card"])
def test_damaged_files_are_found(bundle: Manifest, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = {"stages": bundle.stages[1].program, "golden": bundle.golden.path, "card": bundle.card}[place]
    damage(Path("b", path))
    assert main(["inspect", "b"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert Path(path).name in printed.err
    assert main(["inspect", "b", "--no-verify"]) == 0
    assert "the manifest alone; its 4 files" in capsys.readouterr().out
    if place == "card":
        assert main(["inspect", "b", "--no-verify", "--card"]) == 1


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        ([], 2, "bundle"),
        (["b", "--veryfy"], 2, "did you mean"),
        (["b", "--format", "xml"], 2, "expected one of 'table', 'json', got 'xml'"),
        (["b", "--card", "--format", "json"], 2, "--card prints markdown"),
        (["gone"], 1, "gone"),
        (["small.onnx"], 1, "small.onnx"),
        (["b", "--digest", "sha256:00"], 1, "expected sha256:00, it is another bundle"),
        (["b", "--providers", "GPU"], 1, "provider 'GPU'"),
    ],
)
def test_what_cannot_be_shown(capsys: pytest.CaptureFixture[str], options: list[str], status: int, expected: str) -> None:
    assert main(["inspect", *options]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error
    assert error.startswith("quorate inspect: ")


def test_a_damaged_manifest(bundle: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Path("b/manifest.json")
    manifest.write_text(manifest.read_text().replace("two models", "own models"))
    for options in ([], ["--no-verify"]):
        assert main(["inspect", "b", *options]) == 1
        assert "is damaged: its digest is not that of its content" in capsys.readouterr().err
    assert main(["inspect", "b", "--digest", bundle.digest]) == 1


@pytest.mark.usefixtures("bundle")
def test_it_needs_no_torch() -> None:
    code = "import sys; from quorate.cli.main import main; status = main(sys.argv[1:]); print(status, 'torch' in sys.modules)"
    asked = [sys.executable, "-c", code, "inspect", "b"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=120)
    assert said.stdout.splitlines()[-1] == "0 False"
