"""The table of prefixes: worked by hand from stored outputs and a record, for regressions too, and damaged records are told."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate import runs
from quorate.outputs import Outputs
from quorate.report import columns, prefixes
from quorate.report.prefixes import body, markdown, prefix_rows, show

pytestmark = pytest.mark.deciding

LABELS = np.array([0, 1, 0, 1])
FIRST = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [1.0, 0.0]])  # right, right, wrong, wrong
SECOND = np.array([[-4.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]])  # the mean: wrong, right, right, right


def about(kind: str = "logits", **changed: Any) -> dict[str, Any]:
    near = {"agreement": 0.75} if kind == "logits" else {"mse": 0.25}
    rows = [{"student": f"size {t}", "candidate": {"size": t}, "macs": 100 * t, **near} for t in (1, 2)]
    return {"rounds": rows, "kind": kind, "weights": None, "teacher": {"name": "g", "macs": 400}} | changed


def saved(path: Path, outputs: Outputs, distil: Any = None) -> runs.Run:
    for part in ("validation", "test"):
        outputs.save(path / "outputs" / f"{part}.safetensors")
    record = {"format": runs.FORMAT, "status": "finished", "data": {"name": "d"}, "distil": distil}
    (path / "run.json").write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    return runs.Run(path)


def classified(**options: Any) -> Outputs:
    return Outputs([FIRST[None], SECOND[None]], combine="logits", labels=LABELS, costs=[100.0, 100.0], **options)


def test_classification_by_hand(tmp_path: Path) -> None:
    one, two = prefix_rows(saved(tmp_path, classified(), about()))
    assert (one["prefix"], one["student"], one["macs"], one["share"]) == (1, "size 1", 100, 0.25)
    assert (two["macs"], two["share"], two["agreement"]) == (200, 0.5, 0.75)
    assert (one["accuracy"], one["right_to_wrong"], one["wrong_to_right"]) == (0.5, None, None)
    assert (two["accuracy"], two["right_to_wrong"], two["wrong_to_right"]) == (0.75, 1, 2)
    margins = [1.0, -2.0, -1.0, -1.5]  # of the mean logits, against the true class
    assert two["nll"] == pytest.approx(np.mean([math.log1p(math.exp(m)) for m in margins]))


def test_regression_by_hand(tmp_path: Path) -> None:
    target = np.zeros((2, 1))
    values = [np.array([[[1.0], [1.0]]]), np.array([[[0.5], [-0.5]]])]  # stages give the prefixes
    plain = Outputs(values, kind="values", combine="last", labels=target, costs=[1.0, 1.0])
    run = saved(tmp_path, plain, about("values", teacher={"name": "g", "macs": None}))
    one, two = prefix_rows(run)
    assert (one["rmse"], two["rmse"], two["teacher_rmse"]) == (1.0, 0.5, 0.5)
    assert one["nll"] is one["share"] is None
    assert body([one, two])[0] == ["students", "added last", "MACs/input", "RMSE", "RMSE to the teacher"]
    assert columns([run])[0].figures == {"rmse": 0.5, "macs": 2.0}
    (tmp_path / "g").mkdir()
    gaussian = [np.concatenate([v, np.zeros_like(v)], -1) for v in values]
    found = prefix_rows(
        saved(tmp_path / "g", Outputs(gaussian, kind="gaussian", combine="last", labels=target), about("gaussian"))
    )
    assert [row["rmse"] for row in found] == [1.0, 0.5]
    assert found[1]["nll"] == pytest.approx(0.5 * math.log(2 * math.pi) + 0.125)


def test_shown_and_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "d").mkdir()
    plain, run = saved(tmp_path / "plain", classified()), saved(tmp_path / "d", classified(), about())
    show([("plain", plain), ("[d]", run)])
    shown = capsys.readouterr().out
    assert shown.count("[d]: prefixes, 4 test rows") == 1
    assert "plain: " not in shown
    text = markdown([("plain", plain), ("d", run)])
    assert "| 2 | size 2 | 200 | 50.0 % | 75.00 % |" in text
    assert text.count("prefixes") == 1
    assert markdown([("plain", plain)]) == ""
    show([("plain", plain)])
    assert capsys.readouterr().out == ""
    assert prefixes.note(prefix_rows(run)[:1]).startswith("As the teacher")


def test_outputs_of_other_stages(tmp_path: Path) -> None:
    run = saved(tmp_path, Outputs([FIRST[None]], labels=LABELS), about())
    with pytest.raises(ValueError, match="outputs of 1 stages and a record of 2 rounds"):
        prefix_rows(run)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ([], r"distil.rounds is None"),
        ({"rounds": []}, r"distil.rounds is \[\]"),
        ({"rounds": [1]}, r"distil.rounds is \[1\]"),
        ({"kind": "probs"}, r"distil.kind is 'probs', expected logits, values or gaussian"),
        ({"student": None}, r"distil.rounds\[1\] names no student"),
        ({"candidate": 3}, r"distil.rounds\[1\] names no student and candidate"),
        ({"agreement": 1.5}, r"distil.rounds\[1\].agreement is 1.5, expected a number ≥ 0, at most 1"),
        ({"macs": 0}, r"distil.rounds\[1\].macs is 0"),
        ({"macs": "many"}, r"distil.rounds\[1\].macs is 'many'"),
        ({"teacher": None}, r"distil.teacher is None"),
        ({"teacher": {"macs": -1}}, r"distil.teacher is"),
        ({"weights": [1.0]}, r"distil.weights is \[1.0\], expected 2 finite numbers"),
        ({"weights": [1.0, -1.0]}, r"distil.weights"),
    ],
)
def test_a_damaged_record(damage: Any, message: str, tmp_path: Path) -> None:
    record = copy.deepcopy(about())
    whole = ("rounds", "kind", "teacher", "weights")
    if isinstance(damage, dict):
        record |= {key: value for key, value in damage.items() if key in whole}
        if isinstance(record["rounds"][-1] if record["rounds"] else None, dict):
            record["rounds"][-1] |= {key: value for key, value in damage.items() if key not in whole}
    with pytest.raises(ValueError, match=rf"is damaged: {message}"):
        saved(tmp_path, classified(), damage if damage == [] else record)


def test_a_damaged_regression(tmp_path: Path) -> None:
    record = about("values")
    record["rounds"][0]["mse"] = -1
    with pytest.raises(ValueError, match=r"distil.rounds\[0\].mse is -1, expected a number ≥ 0;"):
        saved(tmp_path, classified(), record)
