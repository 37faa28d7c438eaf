"""The table's figures against their definitions, and that no threshold ever sees test data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quorate import metrics
from quorate.cascade import Policy, simulate
from quorate.cascade.uncertainty import uncertainty
from quorate.outputs import Outputs
from quorate.report.figures import cascade_figures, ensemble_figures
from quorate.report.table import Column, as_json, markdown, rows

pytestmark = pytest.mark.deciding


def drawn(seed: int, n: int = 400, signal: float = 2.0, kind: str = "logits") -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    values = [signal * np.eye(4)[labels] + rng.normal(size=(1, n, 4)) for _ in range(2)]
    if kind == "probs":
        values = [np.exp(v) / np.exp(v).sum(-1, keepdims=True) for v in values]
    return Outputs(values, kind=kind, labels=labels, costs=[3.0, 5.0])  # type: ignore[arg-type]


def far(seed: int, kind: str = "logits") -> Outputs:
    return drawn(seed, 300, 0.0, kind)


def test_figures_of_an_ensemble() -> None:
    validation, test, ood = drawn(0, signal=5), drawn(1, signal=5), far(2)
    found = ensemble_figures(validation, test, {"far": ood})
    probs, wrong = test.probs(), test.errors()
    assert found["accuracy"] == pytest.approx(metrics.accuracy(probs, test.truth()))
    assert found["nll"] == pytest.approx(metrics.nll(probs, test.truth()))
    assert found["ece"] == pytest.approx(metrics.ece(probs, test.truth(), bins=15))
    u = uncertainty(test)
    assert found["aurc"] == pytest.approx(metrics.aurc(u, wrong))
    tau = metrics.threshold_at_risk(uncertainty(validation), validation.errors(), 0.01)
    assert tau is not None
    assert found["coverage_at_risk"] == pytest.approx((u <= tau).mean())
    assert found["risk_met"] == pytest.approx(wrong[u <= tau].mean())
    energy = [uncertainty(o, "energy") for o in (validation, test, ood)]
    assert found["auroc:far"] == pytest.approx(metrics.auroc(energy[1], energy[2]))
    limit = metrics.threshold_at_tpr(energy[0], 0.95)
    assert found["fpr:far"] == pytest.approx((energy[2] <= limit).mean())
    assert found["tpr_met"] == pytest.approx((energy[1] <= limit).mean())
    assert found["macs"] == 8.0
    assert "reach" not in found


def test_figures_of_cascades_use_their_own_thresholds() -> None:
    validation, test, ood = drawn(0, signal=4), drawn(1, signal=4), far(2)
    policy = Policy.fit(validation, target="coverage@risk=0.01")
    found, run = cascade_figures(policy, validation, test, {"far": ood}), simulate(policy, test)
    assert found["coverage_at_risk"] == pytest.approx(run.accepted.mean())
    assert found["risk_met"] == pytest.approx((run.label != test.truth())[run.accepted].mean())
    assert found["auroc:far"] == pytest.approx(metrics.auroc(run.uncertainty, simulate(policy, ood).uncertainty))
    assert found["reach"] == run.reach[1]
    assert found["macs"] == pytest.approx(3 + 5 * run.reach[1])
    finder = Policy.fit(validation, target="fpr@tpr=0.95")
    found = cascade_figures(finder, validation, test, {"far": ood})
    assert found["fpr:far"] == pytest.approx(simulate(finder, ood).accepted.mean())
    assert found["tpr_met"] == pytest.approx(simulate(finder, test).accepted.mean())
    other = Policy.fit(validation, target="coverage@risk=0.05")  # fitted for another level: its τ do not stand in for 1 %
    shown, routed = cascade_figures(other, validation, test, {}), simulate(other, validation)
    tau = metrics.threshold_at_risk(routed.uncertainty, routed.label != validation.truth(), 0.01)
    assert tau is not None
    assert shown["coverage_at_risk"] == pytest.approx((simulate(other, test).uncertainty <= tau).mean())


def test_test_labels_move_no_threshold() -> None:
    validation, test = drawn(0, signal=5), drawn(1, signal=5)
    other = Outputs(test.values, labels=(test.truth() + 1) % 4, costs=test.costs)
    a, b = (ensemble_figures(validation, each, {"far": far(2)}) for each in (test, other))
    assert a["coverage_at_risk"] == b["coverage_at_risk"]
    assert a["fpr:far"] == b["fpr:far"]
    assert a["accuracy"] != b["accuracy"]


def test_probabilities_have_no_energy() -> None:
    parts = [drawn(seed, kind="probs") for seed in (0, 1)]
    found = ensemble_figures(*parts, {"far": far(2, "probs")})
    assert found["auroc:far"] == pytest.approx(metrics.auroc(uncertainty(parts[1]), uncertainty(far(2, "probs"))))


def test_nothing_reaches_the_risk() -> None:
    validation = drawn(0)
    hopeless = Outputs(validation.values, labels=(validation.predictions() + 1) % 4, costs=[1.0, 1.0])
    found = ensemble_figures(hopeless, drawn(1), {})
    assert found["coverage_at_risk"] == 0
    assert math.isnan(found["risk_met"])
    column = Column("x", found)
    assert dict(rows([column]))["  risk met"] == ["–"]
    assert as_json([column])["x"]["risk_met"] is None


def test_table_in_words() -> None:
    figures = {
        "accuracy": 0.98765,
        "nll": math.inf,
        "aurc": 0.0012345,
        "macs": 555_422_720.0,
        "parameters": 999.0,
        "training_macs": 2.5e15,
    }
    table = dict(rows([Column("a", figures), Column("b", {"accuracy": 1.0})]))
    assert table["accuracy"] == ["98.77 %", "100.00 %"]
    assert table["NLL"] == ["inf", "–"]
    assert table["AURC × 1000"] == ["1.234", "–"]
    assert table["MACs/input"] == ["555 M", "–"]
    assert table["parameters"] == ["999", "–"]
    assert table["training MACs"] == ["2.5 P", "–"]
    assert "ms/1,000 inputs" not in table  # nobody has it
    assert markdown([Column("a", {"accuracy": 0.5})]) == "| | a |\n|---|---|\n| accuracy | 50.00 % |\n"
