"""The benchmark of the game at a small size: every call is measured, and what is written says so."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_every_call_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("record", "bdistil_game"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    record = importlib.import_module("record")
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    try:
        (tmp_path / "files").mkdir()
        importlib.import_module("bdistil_game").main(["--samples", "40", "--outputs", "3", "--folder", str(tmp_path / "files")])
    finally:
        for name in ("record", "bdistil_game"):
            sys.modules.pop(name, None)
    found = json.loads((tmp_path / "results" / "bdistil-game.json").read_text())
    assert found["seeds"] == [0]
    assert (found["figures"]["samples"], found["figures"]["outputs"]) == (40, 3)
    calls = found["figures"]["calls"]
    assert {"update, S in a file", "update, S in memory", "edge", "all weight blocks"} < set(calls)
    assert all(0 < c["least"] <= c["seconds"] <= c["most"] and c["peak_bytes"] > 0 for c in calls.values())
    assert not list((tmp_path / "files").iterdir())
    assert "peak ≤ 64 MB: met" in capsys.readouterr().out
