"""Guarantees: certificates of what a cascade does, from calibration rows that chose nothing. Arrays only."""

from quorate.cascade.guarantee.binomial import clopper_pearson, lower, p_value, samples_needed
from quorate.cascade.guarantee.certificate import Certificate, Part
from quorate.cascade.guarantee.conformal import certify_deviation, crc_threshold, wider_max
from quorate.cascade.guarantee.outliers import certify_fpr, certify_scod
from quorate.cascade.guarantee.policies import certify_deviation_policy, certify_policy, learn_then_test, recertify
from quorate.cascade.guarantee.report import exits_report
from quorate.cascade.guarantee.selective import certify, certify_one
from quorate.cascade.guarantee.start import start
from quorate.cascade.guarantee.testing import bonferroni, fixed_sequence, holm

__all__ = [
    "Certificate",
    "Part",
    "bonferroni",
    "certify",
    "certify_deviation",
    "certify_deviation_policy",
    "certify_fpr",
    "certify_one",
    "certify_policy",
    "certify_scod",
    "clopper_pearson",
    "crc_threshold",
    "exits_report",
    "fixed_sequence",
    "holm",
    "learn_then_test",
    "lower",
    "p_value",
    "recertify",
    "samples_needed",
    "start",
    "wider_max",
]
