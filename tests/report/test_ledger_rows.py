"""Rows on what sparse networks cost: worked by hand from a ledger, for cascades over tickets too, and only where there is one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate import runs
from quorate.cascade import Policy
from quorate.outputs import Outputs
from quorate.report import as_json, columns, markdown, show
from quorate.report.figures import cascade_figures
from quorate.report.ledger import ledger_figures
from quorate.report.table import rows

pytestmark = pytest.mark.deciding

LEDGER: dict[str, Any] = {
    "training_macs": 4000,
    "training_ratio": 0.34,
    "training_rows": 10,
    "dense_rows": 10,
    "inference_macs": {"tickets": [30, 40, 50], "total": 120, "ratio": 1.2},
    "live_parameters": {"tickets": [7, 8, 9], "total": 24, "ratio": 0.6},
    "exploration_rate": 0.75,
    "overlap": [[1.0, 0.1, 0.3], [0.1, 1.0, 0.2], [0.3, 0.2, 1.0]],
    "moves": 3,
}
KEYS = {"training_ratio", "inference_ratio", "live_parameters", "live_ratio", "exploration_rate", "overlap"}
LABELS = ["  parameters ÷ dense", "  MACs ÷ dense", "  training ÷ dense", "weights ever live", "mask overlap"]


def outputs(seed: int) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = np.arange(120) % 3
    values = [3 * np.eye(3)[labels] + rng.normal(size=(1, 120, 3)) for _ in range(3)]
    return Outputs(values, labels=labels, costs=[30.0, 40.0, 50.0])


def saved(path: Path, **facts: Any) -> runs.Run:
    for part, seed in (("validation", 0), ("test", 1)):
        outputs(seed).save(path / "outputs" / f"{part}.safetensors")
    record = {"format": runs.FORMAT, "status": "finished", "data": {"name": "d"}, "parameters": 24, "training_macs": 4000}
    (path / "run.json").write_text(json.dumps(record | facts))
    return runs.Run(path)


def test_figures_by_hand() -> None:
    found = ledger_figures({"ledger": LEDGER})
    assert found.keys() == KEYS
    assert found["overlap"] == pytest.approx((0.1 + 0.3 + 0.2) / 3)  # of pairs, not of a ticket with itself
    assert (found["training_ratio"], found["inference_ratio"]) == (0.34, 1.2)
    assert (found["live_parameters"], found["live_ratio"], found["exploration_rate"]) == (24, 0.6, 0.75)
    assert ledger_figures({"ledger": LEDGER}, macs=30.0)["inference_ratio"] == pytest.approx(0.3)  # the dense network has 100
    alone = LEDGER | {"overlap": [[1.0]], "exploration_rate": None}
    assert ledger_figures({"ledger": alone}).keys() == KEYS - {"overlap", "exploration_rate"}
    assert ledger_figures({}) == {}


def test_a_table_of_a_sparse_and_a_dense_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sparse, dense = saved(tmp_path / "sparse", ledger=LEDGER), saved(tmp_path / "dense")
    policy = Policy.fit(outputs(0).regroup([1, 2]), target="coverage@risk=0.05")
    policy.save(tmp_path / "sparse" / "policies" / "early.json")
    found = columns([sparse, dense])
    assert [column.name for column in found] == ["sparse", "sparse early", "dense"]
    early = cascade_figures(policy, outputs(0), outputs(1), {})["macs"]
    assert 30 < early < 120
    assert found[1].figures["inference_ratio"] == pytest.approx(early / 100)
    table = dict(rows(found))
    assert [label for label in table if label in LABELS] == LABELS
    assert table["  parameters ÷ dense"] == ["0.6", "0.6", "–"]
    assert table["  MACs ÷ dense"] == ["1.2", f"{early / 100:.4g}", "–"]
    assert table["  training ÷ dense"] == ["0.34", "0.34", "–"]
    assert table["weights ever live"] == ["75.00 %", "75.00 %", "–"]
    assert table["mask overlap"] == ["0.2", "0.2", "–"]
    assert as_json(found)["sparse"]["inference_ratio"] == 1.2
    assert "| mask overlap | 0.2 | 0.2 | – |" in markdown(found)
    show(found, "t", "Times: so.")
    told = " ".join(capsys.readouterr().out.split())
    assert "3 × forward. Sparse networks: parameters are the live ones" in told
    assert told.endswith("Times: so.")


def test_no_ledger_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = columns([saved(tmp_path / "dense")])
    assert not set(LABELS) & set(dict(rows(found)))
    assert not KEYS & found[0].figures.keys()
    show(found, "t")
    assert "Sparse networks" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "ledger is None, expected what sparse networks cost, by name"),
        ({"training_ratio": "x"}, "ledger.training_ratio is 'x', expected a finite number > 0"),
        ({"training_ratio": 0}, "ledger.training_ratio is 0, expected a finite number > 0"),
        ({"training_ratio": True}, "ledger.training_ratio is True, expected a finite number > 0"),
        ({"inference_macs": 3}, "ledger.inference_macs is 3, expected its total and ratio"),
        ({"inference_macs": {"ratio": 1.0}}, "ledger.inference_macs.total is None, expected a finite number > 0"),
        ({"live_parameters": {"total": 24, "ratio": -1}}, "ledger.live_parameters.ratio is -1, expected a finite number > 0"),
        ({"exploration_rate": 1.5}, "ledger.exploration_rate is 1.5, expected a share in [0, 1] or null"),
        ({"overlap": None}, "ledger.overlap is no square table of shares in [0, 1], expected one of each two tickets"),
        ({"overlap": [[1.0, 0.5]]}, "ledger.overlap is no square table"),
        ({"overlap": [[1.0, 2], [0.5, 1.0]]}, "ledger.overlap is no square table"),
    ],
)
def test_a_damaged_ledger_is_named(tmp_path: Path, change: dict[str, Any] | None, message: str) -> None:
    damaged = None if change is None else LEDGER | change
    with pytest.raises(ValueError, match=re.escape(f"run.json is damaged: {message}")) as caught:
        saved(tmp_path / "r", ledger=damaged)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; train the run anew")
