"""TPR, FPR and SCOD: least sample sizes, closed forms, and how often the claims are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from quorate import metrics
from quorate.cascade.guarantee import Certificate, certify_fpr, certify_scod

pytestmark = pytest.mark.deciding


def test_the_least_samples_for_a_tpr() -> None:
    assert not certify_fpr(np.arange(58)).feasible
    assert certify_fpr(np.arange(58)).needed == 1
    found = certify_fpr(np.arange(59))
    assert (found.feasible, found.tau, found.coverage, found.errors) == (True, 58.0, 1.0, 0)
    assert found.bound == pytest.approx(0.05 ** (1 / 59))
    assert not certify_fpr(np.arange(71), {"a": [1.0]}).feasible  # half of δ: log .025 / log .95 = 71.9
    assert certify_fpr(np.arange(72), {"a": [1.0]}).feasible


def test_the_threshold_is_the_least_and_lies_between_scores() -> None:
    u = np.random.default_rng(0).permutation(np.arange(1, 1001))
    found = certify_fpr(u, {"near": [100.0, 2000.0], "far": np.full(50, 3000.0)}, tpr=0.9, delta=0.1)
    least = next(k for k in range(1, 1001) if stats.beta.ppf(0.05, k, 1001 - k) >= 0.9)
    assert (found.tau, found.accepted, found.rows) == (least + 0.5, least, 1000)
    assert found.bound == pytest.approx(stats.beta.ppf(0.05, least, 1001 - least))
    near, far = found.outliers
    assert (near.accepted, near.risk, near.bound) == (1, 0.5, pytest.approx(stats.beta.ppf(1 - 0.025, 2, 1)))
    assert (far.accepted, far.bound) == (0, pytest.approx(1 - 0.025 ** (1 / 50)))
    assert Certificate.from_dict(found.to_dict()) == found
    swapped = certify_fpr(u, {"far": np.full(50, 3000.0), "near": [100.0, 2000.0]}, tpr=0.9, delta=0.1)
    assert swapped.outliers == (far, near)


def test_given_thresholds_and_ties() -> None:
    u = np.repeat([1.0, 2.0, 3.0], [10, 300, 5])
    assert certify_fpr(u, thresholds=[2.5, 0.5, 2.0, None]).tau == 2.0
    assert certify_fpr(u).tau == 2.5
    assert certify_fpr(u, thresholds=[None, 1.0]).tau is None
    assert certify_fpr(u, thresholds=[None, 1.0]).feasible
    refused = certify_fpr(u, {"a": [0.0]}, [0.5, 1.5])
    assert (refused.feasible, refused.needed, refused.outliers[0].accepted) == (False, None, 0)
    single = certify_fpr(u, {"a": [0.0]}, [1.5])  # a single threshold keeps its figures
    assert (single.feasible, single.tau, single.accepted, single.outliers[0].accepted) == (False, None, 10, 1)
    almost = certify_fpr(np.repeat([1.0, 2.0], [97, 3]), thresholds=[1.5])
    assert almost.needed is not None
    assert certify_fpr(
        np.repeat([1.0, 2.0], (np.array([97, 3]) * (100 + almost.needed) / 100).astype(int)), thresholds=[1.5]
    ).feasible


def test_tpr_and_fpr_claims_are_wrong_seldom() -> None:
    rng, wrong, fpr_wrong = np.random.default_rng(0), 0, 0
    for _ in range(1500):
        found = certify_fpr(rng.random(200), {"a": rng.random(100) + 0.5}, tpr=0.9, delta=0.1)
        assert found.tau is not None
        wrong += found.tau < 0.9
        fpr_wrong += found.tau - 0.5 > (found.outliers[0].bound or 0)
    noise = 2 * math.sqrt(0.05 * 0.95 / 1500)
    assert 0.01 < wrong / 1500 <= 0.05 + noise
    assert fpr_wrong / 1500 <= 0.05 + noise


def scod_sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u = rng.random(n)
    return u, rng.random(n) < 0.1 * u, 0.3 + 0.7 * rng.random(n)


def test_scod_in_closed_form() -> None:
    u, wrong, ood = np.repeat([1.0, 3.0], [500, 100]), np.arange(600) < 4, np.repeat([0.0, 9.0], [3, 197])
    found = certify_scod(u, wrong, ood, [1.5], 0.06, beta=0.7, alpha=0.8, delta=0.06)
    r, a, q = (
        stats.beta.ppf(0.98, 5, 496), stats.beta.ppf(0.02, 500, 101), stats.beta.ppf(0.98, 4, 197),
    )  # fmt: skip
    weight = 0.2 * q / (0.8 * a + 0.2 * q)
    assert found.bound == pytest.approx((1 - weight) * r + weight * 0.7)
    assert found.observed == pytest.approx(metrics.scod_risk(u, wrong, ood, tau=1.5, beta=0.7, alpha=0.8))
    assert (found.feasible, found.tau, found.accepted, found.errors) == (found.bound <= 0.06, 1.5, 500, 4)
    alone = certify_scod(u, wrong, ood, [1.5], 0.06, alpha=1.0)
    assert alone.bound == pytest.approx(stats.beta.ppf(1 - 0.05 / 3, 5, 496))
    cheap = certify_scod(u, wrong, ood, [1.5], 0.06, beta=0.0, alpha=0.8)  # OOD rows may not dilute the risk
    assert cheap.bound == pytest.approx(alone.bound)
    costly = certify_scod(u, wrong * 2.0, ood, [1.5], 0.06, alpha=0.8, costs_bound=2.0)
    assert costly.observed == pytest.approx(metrics.scod_risk(u, wrong * 2.0, ood, tau=1.5, alpha=0.8))


def test_scod_claims_are_wrong_seldom_and_the_sequence_is_used() -> None:
    rng, taus, wrong, used = np.random.default_rng(0), np.arange(10, 50) / 50, 0, []
    for _ in range(400):
        found = certify_scod(*scod_sample(rng, 1500), taus, 0.08, alpha=0.9, delta=0.1)
        tau = found.tau or 0.0
        share = 0.1 * max(0, (tau - 0.3) / 0.7) / (0.9 * tau + 0.1 * max(0, (tau - 0.3) / 0.7)) if tau else 0
        wrong += (1 - share) * 0.05 * tau + share > 0.08
        used.append(tau)
    assert wrong / 400 <= 0.1
    assert np.mean(used) > 0.35


def test_scod_without_a_certificate() -> None:
    rng = np.random.default_rng(0)
    hopeless = certify_scod(np.zeros(100), np.ones(100, bool), np.zeros(10), [1.0, 2.0], alpha=0.5)
    assert (hopeless.feasible, hopeless.needed, hopeless.coverage) == (False, None, 0.0)
    nothing = certify_scod(np.ones(100), np.zeros(100, bool), np.ones(10), [0.5], alpha=0.5)
    assert (nothing.feasible, nothing.needed, nothing.observed) == (False, None, None)
    u, wrong, ood = scod_sample(rng, 60)
    short = certify_scod(u, wrong & (u > 0.5), ood, [0.3, 0.5], 0.08, alpha=0.9)
    assert not short.feasible
    assert short.needed is not None
    times = math.ceil((60 + short.needed) * 1.05 / 60)
    assert certify_scod(
        np.tile(u, times), np.tile(wrong & (u > 0.5), times), np.tile(ood, times), [0.3], 0.08, alpha=0.9
    ).feasible


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="id_uncertainty of shape"):
        certify_fpr([])
    with pytest.raises(ValueError, match=r"ood\['a'\] of shape"):
        certify_fpr([0.1], {"a": [math.nan]})
    for tpr in (0, 1.1, math.nan):
        with pytest.raises(ValueError, match="tpr="):
            certify_fpr([0.1], tpr=tpr)
    with pytest.raises(ValueError, match="probability of failure"):
        certify_fpr([0.1], delta=0)
    with pytest.raises(ValueError, match="alpha=0"):
        certify_scod([0.1], [True], [0.1], [0.5], alpha=0)
    with pytest.raises(ValueError, match="beta=-1"):
        certify_scod([0.1], [True], [0.1], [0.5], alpha=0.5, beta=-1)
    with pytest.raises(ValueError, match="ood_uncertainty of shape"):
        certify_scod([0.1], [True], [], [0.5], alpha=0.5)
