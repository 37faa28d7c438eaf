"""Figures of prefixes and cascade: hand-worked, and against the metrics on what was simulated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quorate import metrics
from quorate.cascade.cascade import simulate
from quorate.cascade.policy import Policy
from quorate.outputs import Outputs
from quorate.runtime.measuring import figures, measured, prefix, regressed

pytestmark = pytest.mark.deciding

FIRST = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.45, 0.55]])
SECOND = np.array([[0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.95, 0.05]])
OUTPUTS = Outputs([FIRST, SECOND], kind="probs", labels=[0, 1, 1, 0], costs=[1, 3], names=["a", "b"])
POLICY = Policy.of(OUTPUTS, windows=[(0.35, None)], taus=[0.35, 0.32])


def test_by_hand() -> None:
    """U after a: .1 .4 .3 .45; rows 1 and 3 go on, to means (.4, .6) and (.7, .3): U = .4 (rejected) and .3 (accepted)."""
    (_, a), (_, both), (name, cascade) = measured(POLICY, OUTPUTS)
    assert a["accuracy"] == 0.5
    assert (a["coverage"], a["risk"], a["cost_share"], a["reach"]) == (0.5, 0.0, 0.25, 1.0)
    assert a["nll"] == pytest.approx(-np.log([0.9, 0.4, 0.7, 0.45]).mean())
    assert (both["accuracy"], both["coverage"], both["cost_share"], both["reach"]) == (1.0, 0.75, 1.0, 0.5)
    assert name == "cascade"
    assert (cascade["accuracy"], cascade["coverage"], cascade["risk"], cascade["macs"]) == (1.0, 0.75, 0.0, 2.5)
    assert cascade["cost_share"] == 0.625
    assert cascade["nll"] == pytest.approx(-np.log([0.9, 0.6, 0.7, 0.7]).mean())


def test_names_and_a_single_stage() -> None:
    assert [name for name, _ in measured(POLICY, OUTPUTS)] == ["a", "… + b", "cascade"]
    one = OUTPUTS.prefix(1)
    assert [name for name, _ in measured(Policy.of(one), one)] == ["a"]


def test_prefixes_are_those_of_the_policy() -> None:
    rng = np.random.default_rng(0)
    many = Outputs([3 * rng.normal(size=(2, 300, 4)) for _ in range(3)], labels=rng.integers(0, 4, 300), costs=[1, 1, 5])
    policy = Policy.of(many, windows=[(0.1, 0.5), None], taus=[0.3, 0.6, 0.4], temperatures=[1, 2, 0.5])
    for k, (_, found) in enumerate(measured(policy, many)[:3]):
        said = simulate(Policy.of(many.prefix(k + 1), temperatures=[1, 2, 0.5][: k + 1]), many.prefix(k + 1))
        wrong = said.label != many.truth()
        tau = [0.3, 0.6, 0.4][k]
        assert said.probs is not None
        assert found["ece"] == metrics.ece(said.probs, many.truth(), bins=15)
        assert found["aurc"] == metrics.aurc(said.uncertainty, wrong)
        assert found["coverage"] == (said.uncertainty <= tau).mean()
        assert found["risk"] == wrong[said.uncertainty <= tau].mean()
        assert (simulate(prefix(policy, k + 1), many).stage == k).all()


def test_what_can_not_be_measured_is_none() -> None:
    top = Outputs([(np.array([0, 1]), np.array([0.9, 0.8]))], kind="top1", labels=[0, 0])
    ((_, found),) = measured(Policy.of(top, taus=[0.0]), top)
    assert (found["nll"], found["ece"], found["risk"], found["macs"], found["cost_share"]) == (None,) * 5
    sure = Outputs([np.array([[1.0, 0.0], [1.0, 0.0]])], kind="probs", labels=[0, 1])
    assert figures(simulate(Policy.of(sure), sure), sure.truth(), 0)["nll"] == math.inf


def test_regression_prefixes() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(40, 2))
    values = Outputs([truth[None] + 1.0, truth[None] - 3.0], kind="values", labels=truth, costs=[1, 1])
    (_, one), (_, both) = regressed(values)
    assert (one["rmse"], both["rmse"]) == (pytest.approx(1), pytest.approx(1))  # +1, and the mean of +1 and −3
    assert (one["cost_share"], both["macs"], one["nll"]) == (0.5, 2.0, None)
    last = Outputs([truth[None] + 1.0, truth[None] - 3.0], kind="values", combine="last", labels=truth)
    assert regressed(last)[1][1]["rmse"] == pytest.approx(3)
    unit = Outputs([np.concatenate([truth, np.zeros_like(truth)], 1)[None]], kind="gaussian", labels=truth)
    assert regressed(unit)[0][1]["nll"] == pytest.approx(math.log(2 * math.pi))  # two targets, ½ log 2π each


def test_refused() -> None:
    with pytest.raises(ValueError, match="no labels"):
        measured(POLICY, Outputs([FIRST, SECOND], kind="probs", names=["a", "b"]))
    with pytest.raises(ValueError, match="these Outputs hold probs, a classification"):
        regressed(OUTPUTS)
