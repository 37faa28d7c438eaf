"""Every refusal says in one line what was expected, what came and what to do; and what importing and measuring cost."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from quorate import metrics
from quorate.metrics import _checks

pytestmark = pytest.mark.deciding

P, Y = np.full((8, 2), 0.5), np.zeros(8, int)
U, E = np.arange(8.0), np.zeros(8, bool)
M = np.stack([P, P])
NAN = math.nan


def changed(array, where, value):
    copy = np.array(array, float)
    copy[where] = value
    return copy


BY_PROBS = [
    metrics.accuracy,
    metrics.nll,
    metrics.brier,
    metrics.ece,
    metrics.adaptive_ece,
    metrics.reliability,
    metrics.per_class_accuracy,
]
BAD_PROBS = [
    (changed(P, (3, 0), NAN), Y, "probs: expected finite probabilities, got NaN or infinity in row 3; find"),
    (changed(P, ([1, 5], 0), math.inf), Y, "probs: expected finite probabilities, got NaN or infinity in rows 1, 5; find"),
    (changed(P, 6, [math.inf, -math.inf]), Y, "probs: expected finite probabilities, got NaN or infinity in row 6; find"),
    (changed(P, 2, [1.5, -0.5]), Y, "probs: expected probabilities, got -0.5 among negative entries in row 2; apply softmax"),
    (changed(P, ([0, 4], 0), 0.502), Y, "probs: expected rows that sum to 1 within 0.001, got 1.002 in rows 0, 4; apply softmax"),
    (P * 2, Y, "rows 0, 1, 2, 3, 4, …; apply softmax to logits, or divide rows by their sum"),
    (P[:0], Y[:0], "probs: expected shape (N, C) with at least one row and two classes, got (0, 2)"),
    (P[:, :1], Y, "got (8, 1); a binary probability p is the two columns 1 - p and p"),
    (P[:, 0], Y, "got (8,)"),
    (M, Y, "probs: expected shape (N, C), got the member-first shape (2, 8, 2); average the members"),
    (P.astype(complex), Y, "probs: expected real numbers, got dtype complex128; convert"),
    (P > 0, Y, "probs: expected real numbers, got dtype bool; convert"),
    ([[0.5, 0.5], [1.0]], [0, 0], "probs: expected one rectangular array of numbers, got nested parts of different lengths"),
    (P, Y[:7], "labels: expected 8 entries, one per row of the outputs, got 7; pass both for the same rows"),
    (P, changed(Y, [2, 3], -1).astype(int), "labels: expected classes 0 to 1, got -1 in rows 2, 3; drop unlabelled rows"),
    (P, changed(Y, 7, 2).astype(int), "labels: expected classes 0 to 1, got 2 in row 7"),
    (P, np.full(8, 2**64 - 1, np.uint64), "labels: expected classes 0 to 1, got 18446744073709551615 in rows 0, 1, 2, 3, 4, …"),
    (P, Y.astype(float), "labels: expected integers, got dtype float64; convert"),
    (P, Y[:, None], "labels: expected shape (N,) with at least one row, got (8, 1); pass one class number per row"),
]
BY_ERRORS = [
    metrics.risk_coverage,
    metrics.aurc,
    metrics.excess_aurc,
    metrics.augrc,
    lambda u, e: metrics.coverage_at_risk(u, e, 0.1),
    lambda u, e: metrics.risk_at_coverage(u, e, 0.5),
    lambda u, e: metrics.threshold_at_risk(u, e, 0.1),
]
BAD_ERRORS = [
    (U[:0], E[:0], "uncertainty: expected shape (N,) with at least one row, got (0,); pass one uncertainty per row"),
    (U[:, None], E, "uncertainty: expected shape (N,) with at least one row, got (8, 1)"),
    (changed(U, [0, 5], NAN), E, "uncertainty: expected numbers that can be ordered, got NaN in rows 0, 5; find"),
    (U > 0, E, "uncertainty: expected real numbers, got dtype bool"),
    (None, E, "uncertainty: expected real numbers, got dtype object"),
    (U, E[:5], "errors: expected 8 entries, one per uncertainty, got 5; pass both for the same rows"),
    (U, np.stack([E, E]), "errors: expected shape (N,) with at least one row, got (2, 8); pass one error per row"),
    (U, changed(E, 4, -0.5), "errors: expected booleans (true = wrong) or finite costs of at least 0, got -0.5 in row 4"),
    (U, changed(E, [1, 2], NAN), "at least 0, got nan in rows 1, 2; correct these rows"),
    (U, changed(E, 1, math.inf), "at least 0, got inf in row 1; correct these rows"),
    (U, np.array(["no"] * 8), "errors: expected real numbers, got dtype <U2"),
]
SHARE = "expected a share of the rows above 0 and up to 1; write 80 % as 0.8"
ONE_BY_ONE = {
    "nll of nothing": (lambda: metrics.nll(labels=Y), "expected exactly one of probs and log_probs, got neither"),
    "nll of both": (lambda: metrics.nll(P, Y, log_probs=P), "expected exactly one of probs and log_probs, got both"),
    "nll without labels": (lambda: metrics.nll(P), "labels: expected the (N,) true classes, got None; pass them"),
    "log NaN": (
        lambda: metrics.nll(labels=Y, log_probs=changed(np.log(P), (2, 1), NAN)),
        "log_probs: expected log-probabilities (-inf is allowed), got NaN or infinity in row 2",
    ),
    "log +inf": (
        lambda: metrics.nll(labels=Y, log_probs=changed(np.log(P), (2, 1), math.inf)),
        "log_probs: expected log-probabilities (-inf is allowed), got NaN or infinity in row 2",
    ),
    "logits for log": (
        lambda: metrics.nll(labels=Y, log_probs=changed(np.log(P), 6, 1000)),
        "log_probs: expected rows that sum to 1 within 0.001 after exp, got inf in row 6; apply log_softmax",
    ),
    "bins 0": (lambda: metrics.ece(P, Y, 0), "bins=0: expected an integer of at least 1"),
    "bins 2.5": (lambda: metrics.adaptive_ece(P, Y, 2.5), "bins=2.5: expected an integer of at least 1"),
    "scheme": (lambda: metrics.ece(P, Y, scheme="mas"), "scheme='mas': expected one of 'width', 'mass'"),
    "scheme array": (lambda: metrics.reliability(P, Y, 5, P), "scheme=ndarray: expected one of 'width', 'mass'"),
    "form": (lambda: metrics.aurc(U, E, "sum"), "form='sum': expected one of 'mean', 'trapezoid'"),
    "excess form": (lambda: metrics.excess_aurc(U, E, None), "form=None: expected one of 'mean', 'trapezoid'"),
    "rule": (lambda: metrics.coverage_at_risk(U, E, 0.1, "min"), "rule='min': expected one of 'max', 'nearest'"),
    "risk": (lambda: metrics.coverage_at_risk(U, E, -0.1), "risk=-0.1: expected a finite number of at least 0"),
    "risk inf": (lambda: metrics.threshold_at_risk(U, E, math.inf), "risk=inf: expected a finite number of at least 0"),
    "risk text": (lambda: metrics.threshold_at_risk(U, E, "5%"), "risk='5%': expected a finite number of at least 0"),
    "coverage 0": (lambda: metrics.risk_at_coverage(U, E, 0), f"coverage=0: {SHARE}"),
    "coverage 80": (lambda: metrics.threshold_at_coverage(U, 80), f"coverage=80: {SHARE}"),
    "coverage of nothing": (lambda: metrics.threshold_at_coverage([], 0.8), "uncertainty: expected shape (N,) with at least"),
    "tpr": (lambda: metrics.fpr_at_tpr(U, U, NAN), f"tpr=nan: {SHARE}"),
    "tpr threshold": (lambda: metrics.threshold_at_tpr(U, 1.01), f"tpr=1.01: {SHARE}"),
    "tpr NaN": (lambda: metrics.threshold_at_tpr(changed(U, 1, NAN)), "id_uncertainty: expected numbers that can be ordered"),
    "positive": (lambda: metrics.aupr(U, U, "id"), "positive='id': expected one of 'in', 'out'"),
    "both thresholds": (
        lambda: metrics.scod_risk(U, E, U, tau=1, id_coverage=0.5),
        "expected exactly one of tau and id_coverage, got both; choose",
    ),
    "no threshold": (lambda: metrics.scod_risk(U, E, U), "expected exactly one of tau and id_coverage, got neither"),
    "tau": (lambda: metrics.scod_risk(U, E, U, tau=NAN), "tau=nan: expected a number; pass one"),
    "id_coverage": (lambda: metrics.scod_risk(U, E, U, id_coverage=1.5), f"id_coverage=1.5: {SHARE}"),
    "beta": (lambda: metrics.scod_risk(U, E, U, tau=1, beta=-1), "beta=-1: expected a finite number of at least 0"),
    "alpha": (lambda: metrics.scod_risk(U, E, U, tau=1, alpha=1.2), "alpha=1.2: expected a number from 0 to 1"),
    "id_errors": (lambda: metrics.scod_risk(U, E[1:], U, tau=1), "id_errors: expected 8 entries, one per uncertainty, got 7"),
    "one member": (
        lambda: metrics.pairwise_disagreement(M[:1]),
        "probs: expected at least 2 members, got 1: a single member has no pairs; measure",
    ),
    "one member's KL": (lambda: metrics.pairwise_kl(M[:1]), "expected at least 2 members, got 1: a single member has no pairs"),
    "member axis": (
        lambda: metrics.pairwise_disagreement(P),
        "probs: expected the member-first shape (M, N, C) with at least one row and two classes, got (8, 2); stack",
    ),
    "no members": (lambda: metrics.oracle_accuracy(M[:0], Y), "expected the member-first shape (M, N, C)"),
    "member NaN": (
        lambda: metrics.pairwise_disagreement(changed(M, (1, [2, 5], 0), NAN)),
        "probs: expected finite class scores, got NaN or infinity in rows 2, 5; find",
    ),
    "member inf": (
        lambda: metrics.oracle_accuracy(changed(M, (0, 3, 1), math.inf), Y),
        "probs: expected finite class scores, got NaN or infinity in row 3; find",
    ),
    "member logits": (
        lambda: metrics.pairwise_kl(changed(M, (1, 4), [3, -2])),
        "probs: expected probabilities, got -2 among negative entries in row 4; apply softmax",
    ),
    "member sum": (
        lambda: metrics.pairwise_kl(changed(M, (1, 4), 0.6)),
        "probs: expected rows that sum to 1 within 0.001, got 1.2 in row 4; apply softmax",
    ),
    "oracle labels": (lambda: metrics.oracle_accuracy(M, Y + 2), "labels: expected classes 0 to 1, got 2 in rows 0, 1"),
}


def refused(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    said = str(caught.value)
    assert message in said
    assert "\n" not in said
    assert "; " in said  # what to do


@pytest.mark.parametrize("function", BY_PROBS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", range(len(BAD_PROBS)))
def test_bad_probabilities_and_labels(function, case):
    probs, labels, message = BAD_PROBS[case]
    refused(lambda: function(probs, labels), message)


@pytest.mark.parametrize("function", range(len(BY_ERRORS)))
@pytest.mark.parametrize("case", range(len(BAD_ERRORS)))
def test_bad_uncertainties_and_errors(function, case):
    uncertainty, errors, message = BAD_ERRORS[case]
    refused(lambda: BY_ERRORS[function](uncertainty, errors), message)


@pytest.mark.parametrize("function", [metrics.auroc, metrics.aupr, metrics.fpr_at_tpr])
def test_bad_ood_scores(function):
    for place, name in enumerate(("id_uncertainty", "ood_uncertainty")):
        for bad, message in ((U[:0], "expected shape (N,)"), (changed(U, 3, NAN), "got NaN in row 3")):
            given = [U, U]
            given[place] = bad
            refused(lambda given=given: function(*given), message)
            refused(lambda given=given: function(*given), name)


@pytest.mark.parametrize("case", ONE_BY_ONE)
def test_bad_settings(case):
    refused(*ONE_BY_ONE[case])


def test_rows_are_counted_from_the_start_of_the_data_not_of_the_block(monkeypatch):
    monkeypatch.setattr(_checks, "BLOCK", 6)  # 3 rows
    refused(lambda: metrics.accuracy(changed(P, ([4, 7], 0), NAN), Y), "in row 4;")  # the first offending block
    refused(lambda: metrics.pairwise_disagreement(changed(M, (0, 7, 0), NAN)), "in row 7;")


@pytest.mark.parametrize("function", [*BY_PROBS, lambda p, y: metrics.nll(labels=y, log_probs=p)])
def test_memory_stays_below_twice_a_float32_input(function):
    probs = np.random.default_rng(0).dirichlet(np.ones(10), 300_000).astype(np.float32)
    if function not in BY_PROBS:
        np.log(probs, out=probs)
    labels = np.arange(300_000) % 10
    tracemalloc.start()
    function(probs, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * probs.nbytes


@pytest.mark.parametrize(
    "function",
    [metrics.pairwise_disagreement, metrics.pairwise_kl, lambda m: metrics.oracle_accuracy(m, np.arange(m.shape[1]) % 10)],
)
def test_memory_of_members_stays_below_their_float32_input(function):
    members = np.random.default_rng(0).dirichlet(np.ones(10), (4, 60_000)).astype(np.float32)
    tracemalloc.start()
    function(members)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.25 * members.nbytes


def test_importing_loads_numpy_alone():
    heavy = "torch scipy sklearn lightning onnxruntime matplotlib"
    code = f"import sys, quorate.metrics; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_is_documented():
    assert metrics.__all__ == sorted(metrics.__all__)
    for name in metrics.__all__:
        assert getattr(metrics, name).__doc__
