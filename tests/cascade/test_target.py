"""Targets: one spelling, exact levels, one-line refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.cascade.target import Target, parse

pytestmark = pytest.mark.deciding


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("coverage@risk=0.05", Target("coverage", 0.05)),
        ("coverage@risk=0", Target("coverage", 0.0)),
        ("risk@coverage=0.8", Target("risk", 0.8)),
        ("risk@coverage=1", Target("risk", 1.0)),
        ("fpr@tpr=0.95", Target("fpr", 0.95)),
        ("fpr@tpr=1e-05", Target("fpr", 1e-5)),
        ("accuracy", Target("accuracy", None)),
        ("nll", Target("nll", None)),
    ],
)
def test_targets_are_read_and_written_the_same(text: str, target: Target) -> None:
    assert parse(text) == target
    assert str(target) == text


@given(st.sampled_from(["coverage@risk", "risk@coverage", "fpr@tpr"]), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_no_digit_of_a_level_is_lost(form: str, level: float) -> None:
    target = parse(f"{form}={level!r}")
    assert target.level == level
    assert parse(str(target)) == target
    assert "np." not in str(Target("risk", float(np.float64(level))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "target '': expected one of coverage@risk=R, risk@coverage=C, fpr@tpr=T, accuracy, nll"),
        ("coverage", "expected one of coverage@risk=R"),
        ("coverage@risk", "'' is not a number, expected one of"),
        ("coverage@risk=", "'' is not a number"),
        ("coverage@risk=5%", "'5%' is not a number"),
        ("risk@tpr=0.5", "target 'risk@tpr=0.5': expected one of"),
        ("accuracy@risk=0.1", "expected one of"),
        ("Accuracy", "expected one of"),
        ("tpr@fpr=0.5", "expected one of"),
        ("coverage@risk=5", "expected a risk ≥ 0 and < 1, a share and not per cent"),
        ("coverage@risk=1", "expected a risk ≥ 0 and < 1"),
        ("coverage@risk=-0.1", "expected a risk ≥ 0 and < 1"),
        ("coverage@risk=nan", "expected a risk ≥ 0 and < 1"),
        ("risk@coverage=80", "expected a coverage > 0 and ≤ 1, a share and not per cent"),
        ("risk@coverage=0", "expected a coverage > 0 and ≤ 1"),
        ("fpr@tpr=inf", "expected a tpr > 0 and ≤ 1"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
