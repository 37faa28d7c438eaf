"""Layer densities: the published example, closed forms, an outside optimiser, exact counts, and each error."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from quorate.tickets import density as d

SHAPES = {"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3), "conv3": (64, 32, 3, 3), "fc": (10, 64)}
MACS = {"conv1": 432 * 1024, "conv2": 4608 * 256, "conv3": 18432 * 64, "fc": 640}


def shapes_of(draw: st.DrawFn) -> dict[str, tuple[int, ...]]:
    shape = st.one_of(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 40)] * 2, st.just(3), st.just(3)))
    return {f"w{i}": s for i, s in enumerate(draw(st.lists(shape, min_size=1, max_size=6)))}


drawn_shapes = st.composite(shapes_of)()
overall = st.floats(0.01, 1)


def spent(densities: dict[str, float], of: dict[str, int] | dict[str, float]) -> float:
    return math.fsum(densities[k] * of[k] for k in densities) / math.fsum(of[k] for k in densities)


@pytest.mark.parametrize(
    ("density", "epsilon", "densities", "live"),
    [
        (0.2, 24.0410, {"conv1": 1, "conv2": 0.281731, "conv3": 0.133040, "fc": 1}, [432, 1298, 2452, 640]),
        (0.1, 9.785635, {"conv1": 0.566298, "conv2": 0.114675, "conv3": 0.054152, "fc": 1}, [245, 528, 998, 640]),
    ],
)
def test_erk_of_the_specification(density: float, epsilon: float, densities: dict[str, float], live: list[int]) -> None:
    found = d.erk(SHAPES, density)
    assert found == pytest.approx(densities, abs=1e-6)
    assert list(d.counts(SHAPES, found).values()) == live
    raw = sum(SHAPES["conv3"]) / math.prod(SHAPES["conv3"])
    assert found["conv3"] / raw == pytest.approx(epsilon, rel=2e-6)


def test_layers_of_equal_raw_are_capped_together_whatever_the_order() -> None:
    shapes = {"a": (4, 4), "large": (100, 100), "b": (4, 4)}
    found = d.erk(shapes, 0.1)
    assert found == {"a": 1.0, "b": 1.0, "large": pytest.approx((0.1 * 10032 - 32) / 10000)}
    assert d.erk(dict(reversed(shapes.items())), 0.1) == found


def capped_by_hand(raw: dict[str, float], of: dict[str, int], density: float) -> dict[str, float]:
    """Bisection on ε of Σ N min(1, ε raw) = d Σ N: another way to the same densities."""
    low, high = 0.0, 2 / min(raw.values())
    for _ in range(200):
        middle = (low + high) / 2
        enough = sum(of[k] * min(1.0, middle * raw[k]) for k in raw) >= density * sum(of.values())
        low, high = (low, middle) if enough else (middle, high)
    return {k: min(1.0, high * raw[k]) for k in raw}


@settings(max_examples=50)
@given(drawn_shapes, overall)
def test_erk_is_water_filling_and_keeps_the_overall_density(shapes: dict[str, tuple[int, ...]], density: float) -> None:
    found, of = d.erk(shapes, density), d.sizes(shapes)
    assert spent(found, of) == pytest.approx(density, rel=1e-12)
    raw = {k: sum(s) / math.prod(s) for k, s in shapes.items()}
    assert found == pytest.approx(capped_by_hand(raw, of, density), rel=1e-9)
    assert all(0 < value <= 1 for value in found.values())


def test_a_density_of_one_is_dense() -> None:
    for found in (d.erk(SHAPES, 1), d.uniform(SHAPES, 1.0), d.mac_aware(SHAPES, 1.0, MACS)):
        assert set(found.values()) == {1.0}
        assert d.counts(SHAPES, found) == d.sizes(SHAPES)


def test_uniform_gives_every_layer_the_same() -> None:
    assert d.uniform(SHAPES, 0.3) == dict.fromkeys(SHAPES, 0.3)


@pytest.mark.parametrize(("density", "share"), [(0.2, None), (0.2, 0.1), (0.2, 0.35), (0.5, 0.6), (0.05, 0.02)])
def test_mac_aware_is_the_constrained_minimum(density: float, share: float | None) -> None:
    """SLSQP over the densities themselves finds nothing closer to ERK's proportions under both sums."""
    found, of = d.mac_aware(SHAPES, density, MACS, share), d.sizes(SHAPES)
    wanted = density if share is None else share
    assert spent(found, of) == pytest.approx(density, rel=1e-12)
    assert spent(found, MACS) == pytest.approx(wanted, rel=1e-11)
    names = list(SHAPES)
    n = np.array([of[k] for k in names], float)
    macs = np.array([MACS[k] for k in names], float)
    raw = np.array([sum(s) / math.prod(s) for s in SHAPES.values()])

    def divergence(x: np.ndarray) -> float:
        return float((n * x * np.log(x / raw)).sum() / n.sum())

    outside = minimize(
        divergence,
        np.full(4, density),
        method="SLSQP",
        bounds=[(1e-9, 1)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda x: (n * x).sum() / n.sum() - density},
            {"type": "eq", "fun": lambda x: (macs * x).sum() / macs.sum() - wanted},
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    ours = np.array([found[k] for k in names])
    assert outside.success
    assert divergence(ours) <= outside.fun + 1e-7
    np.testing.assert_allclose(ours, outside.x, atol=2e-3)


def test_the_share_of_erk_gives_erk_and_a_larger_one_tilts_the_other_way() -> None:
    base = d.erk(SHAPES, 0.1)
    share = spent(base, MACS)
    assert d.mac_aware(SHAPES, 0.1, MACS, share) == base
    dearer = d.mac_aware(SHAPES, 0.1, MACS, share * 1.1)
    cheaper = d.mac_aware(SHAPES, 0.1, MACS, share * 0.9)
    assert dearer["conv1"] > base["conv1"] > cheaper["conv1"]
    assert dearer["conv3"] < base["conv3"] < cheaper["conv3"]


@settings(max_examples=50)
@given(drawn_shapes, overall, st.data())
def test_mac_aware_meets_both_sums_wherever_it_can(
    shapes: dict[str, tuple[int, ...]], density: float, data: st.DataObject
) -> None:
    of = d.sizes(shapes)
    macs = {k: of[k] * data.draw(st.integers(1, 1000)) for k in shapes}
    found = d.mac_aware(shapes, density, macs)
    assert spent(found, of) == pytest.approx(density, rel=1e-9)
    assert spent(found, macs) == pytest.approx(density, rel=1e-9)
    assert all(0 <= value <= 1 for value in found.values())


def test_mac_aware_near_the_ends_of_what_can_be_reached() -> None:
    shapes, macs = {"a": (10, 10), "b": (10, 10)}, {"a": 100, "b": 900}
    for share, dense in ((0.1001, "a"), (0.8999, "b")):
        found = d.mac_aware(shapes, 0.5, macs, share)
        assert spent(found, macs) == pytest.approx(share, rel=1e-10)
        assert found[dense] == pytest.approx(1, abs=2e-4)
    for share in (0.1, 0.9, 0.05, 1.0, math.nan):
        with pytest.raises(
            ValueError, match=r"out of reach at density 0.5: expected above 0.1 and below 0.9, or the 0.5 of ERK$"
        ):
            d.mac_aware(shapes, 0.5, macs, share)


def test_equal_costs_leave_only_erk() -> None:
    shapes = {"a": (10, 10), "b": (20, 10)}
    assert d.mac_aware(shapes, 0.3, {"a": 700, "b": 1400}) == d.erk(shapes, 0.3)
    with pytest.raises(ValueError, match="out of reach"):
        d.mac_aware(shapes, 0.3, {"a": 700, "b": 1400}, 0.2)


@pytest.mark.parametrize("distribute", [d.erk, d.uniform, lambda s, q: d.mac_aware(s, q, MACS)])
@pytest.mark.parametrize("density", [0, -0.1, 1.0001, math.nan])
def test_a_density_out_of_range(distribute: Callable[..., object], density: float) -> None:
    with pytest.raises(ValueError, match=r"density .*: expected a share of live weights in \(0, 1\], such as 0.2$"):
        distribute(SHAPES, density)


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ({}, "no weights were given: expected at least one"),
        ({"w": (3, 0)}, r"weight 'w' has shape \(3, 0\): expected \(out, in, …\)"),
        ({"bias": (3,)}, r"weight 'bias' has shape \(3,\).* leave it dense"),
    ],
)
def test_shapes_that_are_no_weights(shapes: dict[str, tuple[int, ...]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        d.erk(shapes, 0.5)


@pytest.mark.parametrize(
    ("macs", "match"),
    [
        ({"conv1": 1, "fc": 3}, r"macs lack weight 'conv2' \(2 in all\)"),
        (MACS | {"fc": -1}, "macs of weight 'fc' are -1: expected a finite number ≥ 0"),
        (MACS | {"fc": math.nan}, "macs of weight 'fc' are nan"),
        (dict.fromkeys(MACS, 0), "macs are 0 for every weight"),
    ],
)
def test_macs_that_cannot_be(macs: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        d.mac_aware(SHAPES, 0.5, macs)


@settings(max_examples=50)
@given(drawn_shapes, overall)
def test_counts_are_rounded_or_refused_with_a_density_that_does(shapes: dict[str, tuple[int, ...]], density: float) -> None:
    densities, of = d.erk(shapes, density), d.sizes(shapes)
    try:
        live = d.counts(shapes, densities)
    except ValueError as error:
        words = str(error).split("an overall density of ")
        assert len(words) == 2
        enough = float(words[1].split()[0])
        assert enough > density
        live = d.counts(shapes, d.erk(shapes, enough))
    else:
        assert all(abs(live[k] - densities[k] * of[k]) <= 0.5 for k in live)
    assert all(shapes[k][0] <= live[k] <= of[k] for k in live)


def test_a_density_too_low_to_keep_one_weight_per_output() -> None:
    shapes = {"a": (10, 100), "b": (100, 1000)}
    with pytest.raises(ValueError) as caught:
        d.counts(shapes, {"a": 0.005, "b": 0.5})
    assert str(caught.value) == (
        "weight 'a' of shape (10, 100) would keep 5 of 1000 weights, "
        "a density too low to keep one weight per output: expected at least 10, "
        "an overall density of 0.990199 in these proportions, or leave it dense"
    )
    scaled = {"a": 0.01, "b": 1.0}
    assert spent(scaled, d.sizes(shapes)) == pytest.approx(100010 / 101000)
    with pytest.raises(ValueError, match=r"would keep 0 of 1000 weights.*expected at least 10, or leave it dense$"):
        d.counts(shapes, {"a": 0.0, "b": 0.5})


@pytest.mark.parametrize(
    ("densities", "match"),
    [
        ({"a": 0.5}, r"densities and shapes differ in weight 'b' \(1 in all\)"),
        ({"a": 0.5, "b": 0.5, "c": 1}, "differ in weight 'c'"),
        ({"a": 0.5, "b": 1.5}, r"density 1.5 of weight 'b': expected a share in \[0, 1\]"),
        ({"a": math.nan, "b": 1}, "density nan of weight 'a'"),
    ],
)
def test_densities_that_do_not_belong_to_the_shapes(densities: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        d.counts({"a": (4, 4), "b": (4, 4)}, densities)
