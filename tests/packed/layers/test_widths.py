"""Exact widths: what divides, what the nearest legal widths are, and how far a convolution lowers γ."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.packed.layers.widths import exact, lowered_gamma, whole, widened


@given(width=st.integers(1, 400), p=st.integers(1, 12), q=st.integers(1, 6), groups=st.integers(1, 24))
def test_widened_is_exact_or_names_the_nearest_legal_widths(width: int, p: int, q: int, groups: int) -> None:
    factor = Fraction(p, q)

    def legal(w: int) -> bool:
        return (factor * w).denominator == 1 and factor * w % groups == 0

    if legal(width):
        assert widened("w", width, factor, groups) == factor * width
        return
    with pytest.raises(ValueError, match=f"w: expected a width that times .* got {width}") as caught:
        widened("w", width, factor, groups)
    below = next((w for w in range(width, 0, -1) if legal(w)), None)
    above = next(w for w in range(width, width + q * groups + 1) if legal(w))
    named = [int(n) for n in re.findall(r"\d+", str(caught.value).split("nearest that do:")[1])]
    assert named == [w for w in (below, above) if w is not None]


@pytest.mark.parametrize(
    ("alpha", "fraction"),
    [(2, Fraction(2)), (1.5, Fraction(3, 2)), (4 / 3, Fraction(4, 3)), (1.1, Fraction(11, 10)), (Fraction(5, 4), Fraction(5, 4))],
)
def test_alpha_is_read_as_the_simple_fraction_that_it_prints_as(alpha: float | Fraction, fraction: Fraction) -> None:
    assert exact(alpha) == fraction


def test_an_alpha_without_a_simple_fraction_stays_itself() -> None:
    assert float(exact(2**0.5)) == 2**0.5
    assert exact(2**0.5).denominator > 1000


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf"), True, "2", None])
def test_illegal_alpha(alpha: object) -> None:
    with pytest.raises(ValueError, match="alpha: expected a positive number, got"):
        exact(alpha)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "4", None])
def test_illegal_whole_number(value: object) -> None:
    with pytest.raises(ValueError, match="members: expected a positive int, got"):
        whole("members", value)


@pytest.mark.parametrize(
    ("into", "out", "members", "gamma", "own", "used", "why"),
    [
        (512, 512, 4, 2, 1, 2, ""),  # 64 channels per group: just enough
        (504, 512, 4, 2, 1, 1, "504 channels in 8 groups leave 63 each, under 64"),
        (128, 256, 4, 2, 1, 1, "128 channels in 8 groups leave 16 each, under 64"),
        (1024, 1024, 4, 4, 1, 4, ""),
        (1024, 1024, 4, 5, 1, 4, "1024 → 1024 channels do not divide into 20 groups"),
        (1024, 1028, 4, 2, 1, 1, "1024 → 1028 channels do not divide into 8 groups"),
        (1024, 1024, 4, 3, 2, 2, "1024 → 1024 channels do not divide into 24 groups"),
        (1024, 1024, 2, 8, 2, 4, "1024 channels in 32 groups leave 32 each, under 64"),
        (8, 8, 4, 1, 1, 1, ""),
    ],
)
def test_lowered_gamma(into: int, out: int, members: int, gamma: int, own: int, used: int, why: str) -> None:
    reason = f"gamma {gamma} lowered to {used}: {why}" if why else ""
    assert lowered_gamma(into, out, members, gamma, own) == (used, reason)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 6), st.integers(1, 9), st.integers(1, 4))
def test_lowered_gamma_is_the_largest_that_fits(a: int, b: int, members: int, gamma: int, own: int) -> None:
    into, out = a * 16 * members * own, b * 16 * members * own
    fits = [g for g in range(2, gamma + 1) if into % (members * g * own) == 0 == out % (members * g * own)]
    fits = [g for g in fits if into // (members * g * own) >= 64]
    assert lowered_gamma(into, out, members, gamma, own)[0] == max(fits, default=1)
