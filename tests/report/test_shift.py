"""Figures under shift: thresholds of clean validation data, means over corruptions, risk over all rows accepted; table and plot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from quorate import metrics
from quorate.cascade import Policy, simulate
from quorate.cascade.uncertainty import uncertainty
from quorate.outputs import Outputs
from quorate.report.shift import SEVERITIES, Shift, as_json, comparable, markdown, over, plot, rows, shift_figures, show, title

pytestmark = pytest.mark.deciding


def drawn(seed: int, signal: float, n: int = 300) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    values = [signal * np.eye(4)[labels] + rng.normal(size=(1, n, 4)) for _ in range(2)]
    return Outputs(values, labels=labels, costs=[3.0, 5.0])


def made(name: str = "net", policies: bool = False) -> tuple[dict[str, Shift], dict]:
    """A run's shifts, and the Outputs by (corruption, severity) that they come from."""
    validation = drawn(0, 5)
    outputs = {(c, s): drawn(10 * s + k, 5 - s * (k + 1) / 3) for k, c in enumerate(("fog", "snow")) for s in SEVERITIES}
    found = {"cascade": Policy.fit(validation, target="coverage@risk=0.01")} if policies else {}
    cells = {key: shift_figures(validation, each, found) for key, each in outputs.items()}
    clean = shift_figures(validation, drawn(1, 5), found)
    shifts = {
        column: Shift(
            f"{name} {column}".strip(),
            300,
            clean[column],
            {c: {s: cells[c, s][column] for s in SEVERITIES} for c in ("fog", "snow")},
        )
        for column in clean
    }
    return shifts, outputs | {"validation": validation, "policies": found}


def test_figures_from_their_definitions() -> None:
    shifts, parts = made(policies=True)
    validation, policy = parts["validation"], parts["policies"]["cascade"]
    tau = metrics.threshold_at_risk(uncertainty(validation), validation.errors(), 0.01)
    assert tau is not None
    for severity in SEVERITIES:
        pair = [parts[c, severity] for c in ("fog", "snow")]
        whole, cascade = (shifts[column].at(severity) for column in ("", "cascade"))
        assert whole["accuracy"] == pytest.approx(np.mean([metrics.accuracy(o.probs(), o.truth()) for o in pair]))
        assert whole["nll"] == pytest.approx(np.mean([metrics.nll(o.probs(), o.truth()) for o in pair]))
        assert whole["ece"] == pytest.approx(np.mean([metrics.ece(o.probs(), o.truth(), bins=15) for o in pair]))
        accepted = np.concatenate([uncertainty(o) <= tau for o in pair])
        assert whole["coverage_at_risk"] == pytest.approx(accepted.mean())
        assert whole["risk_met"] == pytest.approx(np.concatenate([o.errors() for o in pair])[accepted].mean())
        executed = [simulate(policy, o) for o in pair]
        assert cascade["reach"] == pytest.approx(np.mean([r.reach[1] for r in executed]))
        assert cascade["macs"] == pytest.approx(np.mean([r.mean_macs for r in executed]))
        assert cascade["coverage_at_risk"] == pytest.approx(np.mean([r.accepted.mean() for r in executed]))
    assert shifts[""].mean()["accuracy"] == pytest.approx(np.mean([shifts[""].at(s)["accuracy"] for s in SEVERITIES]))
    assert shifts[""].at(0)["accuracy"] == shifts[""].clean["accuracy"]
    assert "aurc" not in shifts[""].at(1)


def test_risk_over_all_rows_accepted() -> None:
    nothing = {"accuracy": 0.5, "coverage_at_risk": 0.0, "risk_met": math.nan}
    few, many = ({"accuracy": 0.5, "coverage_at_risk": c, "risk_met": r} for c, r in ((0.1, 0.5), (0.9, 0.1)))
    assert over([nothing, few, many])["risk_met"] == pytest.approx(0.14)
    assert over([nothing, few, many])["coverage_at_risk"] == pytest.approx(1 / 3)
    assert math.isnan(over([nothing])["risk_met"])


def test_regression_is_refused() -> None:
    values = Outputs([np.zeros((1, 5, 2))], kind="gaussian", labels=np.zeros(5))
    with pytest.raises(ValueError, match="these Outputs hold 'gaussian' of a regression"):
        shift_figures(values, values, {})


@pytest.mark.parametrize("broken", [{}, {"fog": {1: {}, 2: {}}}])
def test_all_severities_are_needed(broken: dict) -> None:
    with pytest.raises(ValueError, match="expected figures at severities 1 … 5"):
        Shift("net", 10, {}, broken)


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    shifts = list(made(policies=True)[0].values())
    body = rows(shifts)
    assert [line[0] for line in body if line[0]] == [
        "accuracy",
        "NLL",
        "ECE (15 bins)",
        "NLL, T fitted",
        "ECE, T fitted",
        "coverage@1% risk",
        "risk met",
        "rows sent on",
        "MACs/input",
    ]
    assert [line[1] for line in body[:7]] == ["0 (clean)", "1", "2", "3", "4", "5", "mean 1–5"]
    assert body[0][2][0] == f"{100 * shifts[0].clean['accuracy']:.2f} %"
    sent = next(line for line in body if line[0] == "rows sent on")
    assert sent[2][0] == "–"
    assert sent[2][1].endswith(" %")
    assert not any(line[0] == "MACs/input" for line in rows(shifts[:1]))  # they are the same whatever the inputs
    assert title(shifts) == "300 test rows under 2 corruptions: fog, snow"
    show(shifts)
    printed = capsys.readouterr().out
    assert "net cascade" in printed
    assert "mean 1–5" in printed
    text = markdown(shifts)
    assert "| | severity | net | net cascade |" in text
    assert text.count("\n|") == 2 + len(body)


def test_means_stand_beside_means_of_the_same_corruptions(capsys: pytest.CaptureFixture[str]) -> None:
    grey, colour = ({"accuracy": a, "coverage_at_risk": 0.5, "risk_met": 0.1} for a in (0.8, 0.2))
    every = dict.fromkeys(SEVERITIES, grey)
    one = Shift("one", 9, grey, {"snow": dict.fromkeys(SEVERITIES, colour), "fog": every, "contrast": every})
    other = Shift("other", 9, grey, {"contrast": every, "fog": every}, left_out=("snow", "frost"))
    first, second = comparable([one, other])
    assert list(first.corrupted) == list(second.corrupted) == ["fog", "contrast"]
    assert first.left_out == second.left_out == ("snow", "frost")
    assert first.mean()["accuracy"] == second.mean()["accuracy"] == pytest.approx(0.8)
    assert as_json(first)["left_out"] == ["snow", "frost"]
    said = "Left out, as they do not apply to the inputs of every run: snow, frost."
    assert markdown([first, second]).endswith(f"{said}\n")
    show([first, second])
    assert said in " ".join(capsys.readouterr().out.split())
    assert "Left out" not in markdown(comparable([one]))
    with pytest.raises(ValueError, match="one: no corruption"):
        comparable([one, Shift("third", 9, grey, {"gain": every})])


def test_json_and_large_or_missing_figures() -> None:
    clean = {"accuracy": 0.5, "nll": math.inf, "coverage_at_risk": 0.0, "risk_met": math.nan, "macs": 2e9, "reach": 1.0}
    shift = Shift("net", 7, clean, {"fog": dict.fromkeys(SEVERITIES, clean)})
    found = json.loads(json.dumps(as_json(shift), allow_nan=False))
    assert found["severity"]["0"]["nll"] is None
    assert found["corruption"]["fog"]["5"]["risk_met"] is None
    assert found["mean"]["accuracy"] == 0.5
    assert (found["rows"], found["corruptions"]) == (7, ["fog"])
    table = {what: texts[0] for what, _, texts in rows([shift]) if what}
    assert (table["NLL"], table["risk met"], table["MACs/input"]) == ("inf", "–", "2000 M")
    assert title([shift]) == "7 test rows under 1 corruption: fog"


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.extras
def test_plot(tmp_path: Path, calibrated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    clean = {"accuracy": 0.5, "nll": 1.0, "coverage_at_risk": 0.0, "risk_met": math.nan} | ({"ece": 0.1} if calibrated else {})
    shift = Shift("net", 7, clean, {"fog": {s: {k: v / s for k, v in clean.items()} for s in SEVERITIES}}, kind="image")
    from matplotlib.figure import Figure

    drawn_figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: (drawn_figures.append(self), save(self, *a, **o))[1])
    path = plot([shift], tmp_path / "plots")
    assert path.name == "shift.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    figure = drawn_figures[0]
    assert figure.get_suptitle() == "7 test rows under 1 image corruption: fog"
    accuracy, second = figure.axes
    assert accuracy.get_ylim()[1] <= 100
    assert (second.get_ylim()[0] == 0) == calibrated
    falling = [1, *(1 / s for s in SEVERITIES)]
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([50 * f for f in falling])  # in percent
    assert list(second.lines[0].get_ydata()) == pytest.approx([(0.1 if calibrated else 1.0) * f for f in falling])
    assert [list(axes.lines[0].get_xdata()) for axes in (accuracy, second)] == [[0, *SEVERITIES]] * 2
    assert (accuracy.get_ylabel(), second.get_ylabel()) == (
        "accuracy (%), mean over corruptions",
        f"{'ECE (15 bins)' if calibrated else 'NLL'}, mean over corruptions",
    )


@pytest.mark.extras
def test_a_long_title_stays_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    boxes: list[tuple[float, float, float]] = []
    save = Figure.savefig

    def kept(figure: Figure, *arguments: object, **options: object) -> None:
        save(figure, *arguments, **options)  # type: ignore[arg-type]
        title_box = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
        boxes.append((title_box.x0, title_box.x1, figure.bbox.width))

    monkeypatch.setattr(Figure, "savefig", kept)
    clean = {"accuracy": 1.0, "ece": 0.0, "coverage_at_risk": 0.0, "risk_met": math.nan}
    names = [f"corruption_of_name_{k}" for k in range(15)]
    plot([Shift("net", 7, clean, {n: dict.fromkeys(SEVERITIES, clean) for n in names}, kind="image")], tmp_path)
    (left, right, width) = boxes[0]
    assert 0 <= left < right <= width
