"""``quorate tune``: what it shows, that it keeps what it found, wrong arguments in one line, and that it needs no PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import quorate
from quorate.cli.main import main
from sparse_bundles import perceptron
from tiny_bundles import bundle, member

pytest.importorskip("llvmlite")

from quorate.runtime.sparse.tuning import Tuning

pytestmark = pytest.mark.deciding


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two bundles, and a cache of these tests alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUORATE_CACHE", str(tmp_path / "cache"))
    bundle(tmp_path / "b", [perceptron("a", 10), member("theirs", 0)])
    bundle(tmp_path / "dense", [member("theirs", 0)])
    return tmp_path


def cells(shown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in shown.splitlines() if line.startswith("│")]


def test_explaining(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["tune", "b", "--explain", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    found = [row for row in cells(shown) if row[1] in ("a", "c")]
    assert [row[:3] for row in found] == [["a", "a", "matrix 6→40"], ["a", "c", "matrix 40→3"]] * 2
    assert all(0 < float(row[3]) < 0.5 and float(row[5]) >= 0 and row[7] == "–" for row in found)
    assert "latency: 1 row, one thread" in shown
    assert "rows side by side" in shown
    assert shown.splitlines()[-2:] == ["a: sparse (chosen by rule, not tuned for 1 thread)", "theirs: dense (it has no ticket)"]
    assert not list((folder / "cache" / "sparse").glob("*.text"))


def test_tuning(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from quorate.runtime.sparse import trials

    found = Tuning({"latency": "sparse", "throughput": "sparse"}, whole={"latency": (1e-3, 3e-3), "throughput": (2e-3, 8e-3)})
    asked = []

    def tune(*_: object, **options: object) -> Tuning:
        asked.append((options["threads"], options["trials"]))
        return found

    monkeypatch.setattr(trials, "tune", tune)
    assert main(["tune", "b", "--threads", "1", "--trials", "3"]) == 0
    printed = capsys.readouterr()
    said = (
        "one row sparse 1.000 ms against dense 3.000 ms; a group of rows for each thread sparse 2.000 ms against dense 8.000 ms"
    )
    assert printed.out.splitlines()[-2:] == [f"a: sparse (tuned for 1 thread); {said}", "theirs: dense (it has no ticket)"]
    assert printed.err.startswith("tuned b in ")
    assert main(["tune", "b", "--explain", "--threads", "1"]) == 0
    assert said in capsys.readouterr().out
    assert main(["tune", "b"]) == 0
    assert asked == [(1, 3), (quorate.runtime.engines.cores(), 8)]
    capsys.readouterr()
    assert main(["inspect", "b"]) == 0
    assert "runs here         a: sparse (tuned for " in capsys.readouterr().out


def test_where_dense_was_faster(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from quorate.runtime.sparse import trials

    found = Tuning({"latency": "dense", "throughput": "dense"}, whole={"latency": (3e-3, 1e-3), "throughput": (3e-3, 1e-3)})
    monkeypatch.setattr(trials, "tune", lambda *_, **__: found)
    assert main(["tune", "b", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "a: dense (dense was faster when it was tuned (1 against 3 ms)); one row sparse 3.000 ms against dense 1.000 ms"
    )
    assert main(["tune", "b", "--threads", "1", "--explain"]) == 1
    assert "no stage runs sparse: a: dense was faster when it was tuned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        ([], 2, "the following arguments are required: bundle"),
        (["b", "--thread", "1"], 2, "unknown option '--thread'; did you mean '--threads'?"),
        (["b", "--threads", "x"], 2, "threads: expected int or null, got 'x'"),
        (["b", "--threads", "0"], 2, "--threads 0: expected at least 1"),
        (["b", "--trials", "-3"], 2, "--trials -3: expected at least 1"),
        (["b", "--explain", "--trials", "3"], 2, "--explain tunes nothing: leave --trials out"),
        (["gone"], 1, "gone does not exist: expected the folder of a bundle"),
        (["b", "--threads", "1000000"], 1, "threads=1000000: expected a number from 1 to"),
        (["dense"], 1, "dense has nothing to tune: theirs: it has no ticket"),
        (["dense", "--explain"], 1, "no stage runs sparse: theirs: it has no ticket"),
    ],
)
def test_what_can_not_be_tuned(capsys: pytest.CaptureFixture[str], options: list[str], status: int, expected: str) -> None:
    assert main(["tune", *options]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"quorate tune: {expected}")


def test_a_cache_that_is_turned_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_CACHE", "off")
    assert main(["tune", "b"]) == 1
    assert capsys.readouterr().err == (
        "quorate tune: QUORATE_CACHE turns the cache off: a tuning would be lost, name a folder in it\n"
    )


def test_without_llvmlite(folder: Path) -> None:
    code = (
        "import sys\nsys.modules['llvmlite'] = None\nfrom quorate.cli.main import main\n"
        "for asked in (['tune', 'b'], ['tune', 'b', '--explain'], ['inspect', 'b']):\n    print(main(asked))\n"
    )
    said = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert said.stdout.splitlines()[:2] == ["1", "1"], said.stderr
    assert said.stdout.splitlines()[-1] == "0"
    assert "runs here         a: dense (llvmlite is not installed: install quorate[sparse])" in said.stdout
    told = said.stderr.splitlines()
    assert len(told) == 2
    assert told[0] == (
        "quorate tune: b has nothing to tune: a: llvmlite is not installed: install quorate[sparse]; theirs: it has no ticket"
    )
    assert told[1].startswith("quorate tune: no stage runs sparse: a: llvmlite is not installed")


def test_it_needs_no_torch(folder: Path) -> None:
    code = "import sys; from quorate.cli.main import main; status = main(sys.argv[1:]); print(status, 'torch' in sys.modules)"
    asked = [sys.executable, "-c", code, "tune", "b", "--explain"]
    said = subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    assert said.stdout.splitlines()[-1] == "0 False"


def test_rows_are_answered_anew_where_a_tuning_came_between(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the rows by other kernels than the others would be no answer of one request."""
    import numpy as np

    from quorate.cli import predict
    from quorate.runtime import tunings
    from quorate.runtime.folder import read_manifest

    np.save(folder / "x.npy", np.zeros((3, 6), np.float32))
    manifest = read_manifest(folder / "b")
    assert predict._kernels(manifest, 1) == {"a": None}
    files = {file.path: file for file in manifest.files}
    tunings.keep(tunings.stage_key(files, manifest.stages[0], 1), Tuning({"latency": "sparse"}))
    (tuned,) = (predict._kernels(manifest, 1) or {}).values()
    assert tuned is not None
    assert len(tuned) == 64
    assert predict._kernels(manifest, 2) == {"a": None}
    assert predict._kernels(read_manifest(folder / "dense"), 1) is None
    assert main(["predict", "b", "--input", "x.npy", "--output", "y.csv", "--threads", "1"]) == 0
    assert len((folder / "y.csv").read_text().splitlines()) == 4
    assert "3 rows" in capsys.readouterr().err
