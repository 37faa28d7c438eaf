"""OOD and SCOD metrics against the specification's numbers, exact counts and scikit-learn."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate import metrics

pytestmark = pytest.mark.deciding

ID = -np.arange(1.0, 21.0)  # the specification states certainties: uncertainty is their negative
OOD = -np.array([0.5, 1.5, 2, 2.5, 10])
SCOD_ID = -np.array([0.9, 0.8, 0.7, 0.4])
SCOD_ERRORS = np.array([False, True, False, False])
SCOD_OOD = -np.array([0.85, 0.6, 0.3, 0.2])
TIED = st.lists(st.sampled_from([-3.0, -0.5, 0.0, 0.25, 2.0]), min_size=1, max_size=20)
SHARES = st.fractions(min_value=Fraction(1, 30), max_value=1, max_denominator=30)


def test_fpr_and_auroc_worked_by_hand():
    assert metrics.fpr_at_tpr(ID, OOD, 0.95) == pytest.approx(0.60, abs=1e-12)
    assert metrics.fpr_at_tpr(ID, OOD) == metrics.fpr_at_tpr(ID, OOD, 0.95)
    assert metrics.threshold_at_tpr(ID, 0.95) == -2.0
    assert metrics.fpr_at_tpr(ID, OOD, 0.5) == pytest.approx(0.0, abs=1e-12)
    assert metrics.fpr_at_tpr(ID, OOD, 0.55) == pytest.approx(0.2, abs=1e-12)
    assert metrics.threshold_at_tpr(ID, 1e-9) == -20.0
    assert metrics.threshold_at_tpr(ID, 1.0) == -1.0
    assert metrics.auroc(ID, OOD) == pytest.approx(0.86, abs=1e-12)


def test_scod_risk_worked_by_hand():
    def risk(**settings):
        return metrics.scod_risk(SCOD_ID, SCOD_ERRORS, SCOD_OOD, **settings)

    assert risk(id_coverage=0.75) == pytest.approx(0.5, abs=1e-12)
    assert risk(tau=-0.7) == pytest.approx(0.5, abs=1e-12)
    assert risk(id_coverage=0.75, beta=0.5) == pytest.approx(0.375, abs=1e-12)
    assert risk(id_coverage=0.75, beta=2) == pytest.approx(0.75, abs=1e-12)
    assert risk(id_coverage=0.75, alpha=0.8) == pytest.approx(0.25 / 0.65, abs=1e-12)  # .3846
    assert risk(id_coverage=0.75, alpha=0.5) == pytest.approx(0.5, abs=1e-12)  # equal numbers: the sample's own mix
    assert risk(id_coverage=0.75, alpha=1) == pytest.approx(1 / 3, abs=1e-12)  # ID alone
    assert risk(id_coverage=0.75, alpha=0, beta=2) == pytest.approx(2, abs=1e-12)  # OOD alone
    assert risk(tau=math.inf, beta=3) == pytest.approx((1 + 4 * 3) / 8, abs=1e-12)
    assert math.isnan(risk(tau=-math.inf))
    assert math.isnan(risk(tau=-0.87, alpha=0))


def test_own_mix_equals_alpha_of_the_sample_sizes():
    rng = np.random.default_rng(0)
    inside, outside, errors = rng.normal(size=30), rng.normal(1, 1, 50), rng.random(30) < 0.3
    own = metrics.scod_risk(inside, errors, outside, tau=0.4, beta=1.7)
    assert own == pytest.approx(metrics.scod_risk(inside, errors, outside, tau=0.4, beta=1.7, alpha=30 / 80), rel=1e-12)


@settings(deadline=None)
@given(TIED, TIED)
def test_auroc_and_aupr_equal_scikit_learn(inside, outside):
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    certainty = -np.array(inside + outside)
    auroc = sklearn.metrics.roc_auc_score(truth, certainty)
    assert metrics.auroc(inside, outside) == pytest.approx(auroc, abs=1e-12)
    pairs = [Fraction(2 * (i < o) + (i == o), 2) for i in inside for o in outside]
    assert metrics.auroc(inside, outside) == float(sum(pairs) / len(pairs))
    aupr_in = sklearn.metrics.average_precision_score(truth, certainty)
    aupr_out = sklearn.metrics.average_precision_score(1 - truth, -certainty)
    assert metrics.aupr(inside, outside) == pytest.approx(aupr_in, abs=1e-12)
    assert metrics.aupr(inside, outside, positive="out") == pytest.approx(aupr_out, abs=1e-12)


@settings(deadline=None)
@given(TIED, TIED, SHARES)
def test_fpr_at_tpr_equals_the_roc_curve(inside, outside, share):
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    fpr, tpr, _ = sklearn.metrics.roc_curve(truth, -np.array(inside + outside), drop_intermediate=False)
    first = next(i for i, t in enumerate(tpr) if round(t * len(inside)) >= share * len(inside))
    assert metrics.fpr_at_tpr(inside, outside, float(share)) == pytest.approx(fpr[first], abs=1e-12)

    tau = metrics.threshold_at_tpr(inside, float(share))
    reached = [t for t in inside if Fraction(sum(i <= t for i in inside), len(inside)) >= share]
    assert tau == min(reached)
    assert metrics.fpr_at_tpr(inside, outside, float(share)) == np.mean(np.array(outside) <= tau)
    deployed = metrics.threshold_at_coverage(inside, float(share))
    assert np.array_equal(np.array(inside) <= deployed, np.array(inside) <= tau)


@settings(deadline=None)
@given(TIED, TIED, SHARES, st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from([None, 0.0, 0.2, 1.0]), st.data())
def test_scod_risk_equals_a_sum_over_rows(inside, outside, share, beta, alpha, data):
    errors = data.draw(st.lists(st.booleans(), min_size=len(inside), max_size=len(inside)))
    tau = metrics.threshold_at_tpr(inside, float(share))
    mix = Fraction(len(inside), len(inside) + len(outside)) if alpha is None else Fraction(alpha)
    cost = weight = Fraction(0)
    for u, e in zip(inside, errors, strict=True):
        cost += mix / len(inside) * e * (u <= tau)
        weight += mix / len(inside) * (u <= tau)
    for u in outside:
        cost += (1 - mix) / len(outside) * Fraction(beta) * (u <= tau)
        weight += (1 - mix) / len(outside) * (u <= tau)
    by_coverage = metrics.scod_risk(inside, errors, outside, id_coverage=float(share), beta=beta, alpha=alpha)
    by_tau = metrics.scod_risk(inside, errors, outside, tau=tau, beta=beta, alpha=alpha)
    if weight == 0:
        assert math.isnan(by_tau)
        assert math.isnan(by_coverage)
    else:
        assert by_tau == by_coverage == pytest.approx(float(cost / weight), rel=1e-12, abs=1e-12)


@settings(deadline=None)
@given(TIED, TIED, st.randoms(use_true_random=False))
def test_order_of_rows_and_increasing_transforms_change_nothing(inside, outside, random):
    a, b = list(inside), list(outside)
    random.shuffle(a)
    random.shuffle(b)
    stretched = np.expm1(inside), np.expm1(outside)
    for function in (metrics.auroc, metrics.aupr, lambda i, o: metrics.aupr(i, o, "out"), metrics.fpr_at_tpr):
        assert function(inside, outside) == function(a, b) == function(*stretched)


def test_inputs_are_left_alone_and_precisions_mix():
    inside, outside = ID.copy(), OOD.astype(np.float32)
    metrics.auroc(inside, outside), metrics.aupr(inside, outside), metrics.fpr_at_tpr(inside, outside)
    assert np.array_equal(inside, ID)
    assert np.array_equal(outside, OOD)
    # float32(0.1) is above 0.1, so as float64 numbers this OOD row is more uncertain than every ID row
    assert metrics.fpr_at_tpr(np.array([0.1]), np.array([0.1], np.float32), 1.0) == 0.0
    assert metrics.auroc(np.array([0.1]), np.array([0.1], np.float32)) == 1.0
    assert metrics.scod_risk(np.array([0.1]), [1], np.array([0.1], np.float32), tau=0.1) == 1.0


def test_infinite_scores_are_ordered():
    assert metrics.auroc([-math.inf, 0], [0, math.inf]) == 0.875
    assert metrics.fpr_at_tpr([0, math.inf], [1, math.inf], 0.5) == 0.0
    assert metrics.fpr_at_tpr([0, math.inf], [1, math.inf], 1.0) == 1.0
    assert metrics.aupr([0.0], [math.inf]) == metrics.aupr([0.0], [math.inf], "out") == 1.0
