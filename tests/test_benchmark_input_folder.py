"""The benchmark of image folders: what it makes, what it writes down, and one small run of it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """input_folder.py, whose results go to a folder of the test's own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "record", raising=False)
    monkeypatch.setattr(importlib.import_module("record"), "RESULTS", tmp_path / "results")
    spec = importlib.util.spec_from_file_location("benchmarks_input_folder", BENCHMARKS / "input_folder.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("record", None)


def test_makes_readable_images_evenly_in_classes(script: ModuleType, tmp_path: Path) -> None:
    from quorate.data.images.folder import image_folder

    script.make(tmp_path / "images", 100)
    assert [len(list(folder.iterdir())) for folder in sorted((tmp_path / "images").iterdir())] == [10] * 10
    data = image_folder(tmp_path / "images", size=32, cache=tmp_path / "cache", fractions=(0.25, 0.25, 0.25, 0.25))
    assert data.shape == (3, 32, 32)
    assert not data.duplicates()


def test_entry(script: ModuleType) -> None:
    found = script.entry([3.0, 1.0, 2.5], [9.0, 7.0, 8.0])
    assert found == {"seconds": 2.5, "least": 1.0, "most": 3.0, "process_seconds": 8.0}


def test_refuses_too_few_files(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["--files", "99"])
    assert "--files 99: expected 100 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_and_writes(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent / "src"))
    monkeypatch.setattr(script, "REPEATS", 2)
    script.main(["--files", "100"])
    written = json.loads((tmp_path / "results" / "input-folder.json").read_text())
    assert written["repeats"] == 2
    figures = written["figures"]["100"]
    assert figures["first"]["seconds"] > figures["later"]["seconds"] > 0
    assert figures["ratio"]["first_over_later"] == figures["first"]["seconds"] / figures["later"]["seconds"]
