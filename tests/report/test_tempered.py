"""The rows with a fitted temperature: from validation data, applied to test data, told where it ends at a bound or is not there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from quorate import metrics
from quorate.cascade import Policy, fit_temperature, simulate
from quorate.combination import log_softmax
from quorate.outputs import Outputs
from quorate.report.figures import cascade_figures, ensemble_figures
from quorate.report.table import Column, rows

pytestmark = pytest.mark.deciding


def drawn(seed: int, scale: float = 9.0, combine: str = "probs") -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 400)
    values = [scale * (2.0 * np.eye(4)[labels] + rng.normal(size=(1, 400, 4))) for _ in range(2)]
    return Outputs(values, labels=labels, costs=[3.0, 5.0], combine=combine)  # type: ignore[arg-type]


@pytest.mark.parametrize("combine", ["probs", "logits"])
def test_an_ensembles_temperature_is_that_of_its_validation_outputs(combine: str) -> None:
    validation, test = drawn(0, combine=combine), drawn(1, combine=combine)
    found = ensemble_figures(validation, test, {})
    assert found["temperature"] == pytest.approx(fit_temperature(validation), rel=1e-9)
    scaled = simulate(Policy.of(test, temperatures=[1.0, found["temperature"]]), test).probs
    assert scaled is not None
    assert found["nll_tempered"] == pytest.approx(metrics.nll(scaled, test.truth()))
    assert found["ece_tempered"] == pytest.approx(metrics.ece(scaled, test.truth(), bins=15))
    assert found["nll"] == pytest.approx(metrics.nll(test.probs(), test.truth()))  # as it was
    other = Outputs(test.values, labels=(test.truth() + 1) % 4, combine=test.combine)
    assert ensemble_figures(validation, other, {})["temperature"] == found["temperature"]


def test_a_cascades_temperature_is_that_of_its_probabilities_at_exit() -> None:
    validation, test = drawn(0), drawn(1)
    policy = Policy.fit(validation, target="coverage@risk=0.05")
    found, at_exit = cascade_figures(policy, validation, test, {}), simulate(policy, validation).probs
    assert at_exit is not None

    def loss(log_t: float) -> float:
        said = log_softmax(np.log(at_exit) / np.exp(log_t))
        return float(-said[np.arange(400), validation.truth()].mean())

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    assert found["temperature"] == pytest.approx(np.exp(best.x), rel=1e-5)
    own = Policy.fit(validation, target="coverage@risk=0.05", temperature="fit")
    shown = cascade_figures(own, validation, test, {})
    assert "temperature" not in shown  # its NLL is at its own temperatures
    assert shown["nll"] == pytest.approx(metrics.nll(simulate(own, test).probs, test.truth()))


def test_the_rows_of_the_table() -> None:
    table = dict(rows([Column("a", ensemble_figures(drawn(0), drawn(1), {})), Column("b", {"temperature": 0.01})]))
    assert table["  temperature"][1] == "≤ 0.01"
    assert float(table["NLL, T fitted"][0]) > 0
    assert table["ECE, T fitted"][1] == "–"
    assert dict(rows([Column("c", {"temperature": 100.0})]))["  temperature"] == ["≥ 100"]
    assert dict(rows([Column("c", {"temperature": 1.25})]))["  temperature"] == ["1.25"]


def test_no_temperature_where_it_can_not_be_fitted() -> None:
    probs = np.tile([[1.0, 0.0]], (4, 1))
    certain = Outputs([probs], kind="probs", labels=[0, 0, 1, 0])
    assert "temperature" not in ensemble_figures(certain, certain, {})
    top1 = Outputs([(np.zeros(4, int), np.linspace(0.2, 0.8, 4))], kind="top1", labels=[0, 0, 1, 0])
    assert "temperature" not in ensemble_figures(top1, top1, {})
