"""`quorate demo`, shortened: everything it promises is written, on digits and on idx files."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("torch")

from quorate.cli.main import main
from quorate.runs import Run

RECIPES = Path(__file__).parents[2] / "recipes"


def test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "--epochs", "40", "--members", "2", "--out", str(tmp_path / "d")]
    assert main(command) == 0
    text = capsys.readouterr().out
    for expected in ("accuracy", "AUROC held_out", "FPR@95 held_out", "deep-2 cascade-selective", "on all but"):
        assert expected in text
    results = json.loads((tmp_path / "d" / "results.json").read_text())
    assert list(results) == ["single", "deep-2", "deep-2 cascade-ood", "deep-2 cascade-selective", "packed-2"]
    wanted = {
        "accuracy",
        "nll",
        "ece",
        "aurc",
        "coverage_at_risk",
        "risk_met",
        "macs",
        "parameters",
        "training_macs",
        "latency_ms",
    }
    assert all(wanted < figures.keys() for figures in results.values())
    assert results["deep-2"]["parameters"] == 2 * results["single"]["parameters"]
    assert results["deep-2"]["macs"] == 2 * results["single"]["macs"]
    assert results["single"]["macs"] <= results["deep-2 cascade-selective"]["macs"] < results["deep-2"]["macs"]
    assert all(Run(tmp_path / "d" / name).finished for name in ("single", "deep-2", "packed-2"))
    for kind, name in (("single", "single"), ("deep", "deep-2"), ("packed", "packed-2")):  # the recipes make the demo's columns
        recipe = yaml.safe_load((RECIPES / f"digits-{kind}.yaml").read_text(encoding="utf-8"))
        kept = yaml.safe_load((tmp_path / "d" / name / "config.yaml").read_text(encoding="utf-8"))
        kept["fit"]["epochs"], kept["ensemble"]["members"] = 60, 4
        assert (kept["ensemble"].pop("tune"), kept["ensemble"].pop("backends")) == (False, None)
        assert kept == recipe
    for name in ("risk-coverage.png", "cost-quality.png"):
        assert (tmp_path / "d" / name).read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", *(str(tmp_path / "d" / name) for name in ("single", "deep-2", "packed-2"))]) == 0


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.mark.slow
def test_idx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "files"
    root.mkdir()
    prototypes = rng.integers(0, 200, (10, 12, 12))
    for part, rows in (("train", 1200), ("t10k", 300)):
        labels = (np.arange(rows) % 10).astype(np.uint8)
        images = (prototypes[labels] + rng.integers(0, 56, (rows, 12, 12))).astype(np.uint8)
        write_idx(root / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(root / f"{part}-labels-idx1-ubyte.gz", labels)
    np.savez(tmp_path / "noise.npz", x=rng.integers(0, 256, (100, 12, 12)).astype(np.uint8))
    command = ["demo", "--data", "idx", "--root", str(root), "--epochs", "1", "--members", "2"]
    assert main([*command, "--out", str(tmp_path / "a"), "--ood", f"noise={tmp_path / 'noise.npz'}"]) == 0
    assert "AUROC noise" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "b")]) == 0
    assert "AUROC held_out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "idx"], "needs --root"),
        (["--data", "mnist"], "data"),
        (["--root", "x"], "for --data idx"),
        (["--members", "1"], "at least 2"),
        (["--data", "idx", "--root", "x", "--ood", "a"], "NAME=FILE"),
        (["--data", "idx", "--root", "x", "--ood", "a=1", "a=2"], "each name once"),
        (["--data", "idx", "--root", "nowhere"], "nowhere"),
        (["--held_out", "12"], "12"),
        (["--epochs", "0"], "epochs"),
        (["--out", ""], "expected a folder"),
        (["--out", str(Path(__file__).parent)], "holds no demo, choose another folder"),
        (["--out", __file__], "expected a folder"),
        (["--sed", "1"], "did you mean '--seed'?"),
    ],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    out = [] if "--out" in options else ["--out", str(tmp_path)]
    assert main(["demo", *options, *out]) in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1:]
    assert expected in error[0], error
