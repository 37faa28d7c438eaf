"""The benchmark of staged execution: what it compares, and a small run."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from quorate.cascade import Anytime
from quorate.ensemble import stages

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = ("record", "packed_speed", "anytime_overhead")


@pytest.fixture
def overhead(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in SCRIPTS:
        sys.modules.pop(name, None)
    threads, limit = torch.get_num_threads(), torch._dynamo.config.recompile_limit
    yield importlib.import_module("anytime_overhead")
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = limit
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["members", "exits"])
def test_the_bare_stages_do_what_the_staged_ensemble_does(overhead: ModuleType, name: str) -> None:
    ensemble = overhead.speed.single(name).eval()
    x = torch.randn(2, 3, 32, 32)
    staged = stages(ensemble)
    seen: list[np.ndarray] = []

    class Noting:
        def __init__(self, module: torch.nn.Module) -> None:
            self.module = module

        def __call__(self, x: torch.Tensor, carry: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            members, written = self.module(x, carry)
            assert not members.requires_grad
            seen.append(members.numpy())
            return members, written

    overhead.bare([Noting(stage.module.eval()) for stage in staged], x)()
    with torch.no_grad():
        np.testing.assert_array_equal(np.concatenate(seen), ensemble(x).numpy())
    assert Anytime(staged, combine=ensemble.combine).predict(x).stage == len(staged) - 1


def test_a_small_run(overhead: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overhead.main(["--smoke", "--networks", "exits", "--threads", "1", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "anytime-overhead.json").read_text(encoding="utf-8"))
    place = found["figures"]["exits, batch 2"]
    assert set(place["ratio"]) == set(place["us_per_stage"]) == {"predict", "steps", "deadline"}
    assert place["stages"] == 3
    assert all(share["median"] > 0 for share in place["ratio"].values())
    assert "exits, batch 2, deadline" in capsys.readouterr().out
