"""Plots as they are drawn: what lies on an axis stays visible, accuracies end at 100 %, labels can be read over lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.cascade import Policy
from quorate.files import write_json
from quorate.outputs import Outputs
from quorate.report import plot
from quorate.runs import FORMAT, Run

pytest.importorskip("matplotlib")


def perfect(path: Path) -> Run:
    """A run of two members without errors, and two cascades of it."""
    write_json(path / "run.json", {"format": FORMAT, "status": "finished", "data": {"name": "d"}, "identity": {}})
    for part in ("validation", "calibration", "test"):
        labels = np.arange(60) % 3
        noise = np.random.default_rng(len(part)).normal(size=(2, 1, 60, 3))
        signal = (20 if part == "test" else 3) * np.eye(3)[labels]
        outputs = Outputs([(signal + each).astype(np.float32) for each in noise], labels=labels, costs=[1e6] * 2)
        outputs.save(path / "outputs" / f"{part}.safetensors")
    validation = Outputs.load(path / "outputs" / "validation.safetensors")
    for name, target in (("first", "coverage@risk=0.01"), ("second", "coverage@risk=0.05")):
        Policy.fit(validation, target=target).save(path / "policies" / f"{name}.json")
    return Run(path)


def test_a_run_without_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: (drawn.append(self.axes[0]), save(self, *a, **o))[1])
    plot([perfect(tmp_path / "net")], tmp_path / "plots")
    risk, cost = drawn
    bottom, top = risk.get_ylim()
    assert -0.1 * top < bottom < -0.02 * top  # the line at 0 does not lie under the axis
    assert set(risk.lines[0].get_ydata()) == {0.0}
    assert cost.get_ylim()[1] == 100
    assert set(cost.lines[0].get_ydata()) == {100.0}
    assert not any(line.get_clip_on() for line in cost.lines)
    labels = {text.get_text(): text for text in cost.texts}
    assert set(labels) == {"net first", "net second"}
    assert all(line.get_zorder() > cost.spines["top"].get_zorder() for line in cost.lines)
    first, second = (text.get_window_extent() for text in labels.values())
    assert not first.overlaps(second)
    for text in labels.values():
        assert text.get_bbox_patch().get_facecolor()[:3] == (1, 1, 1)
        assert text.get_zorder() > max(line.get_zorder() for line in cost.lines)
        assert text.get_window_extent().y1 <= cost.get_window_extent().y1  # not into the title
