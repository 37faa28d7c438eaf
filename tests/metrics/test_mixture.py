"""The mixture of members against sampling-free references: SciPy densities, integrals, a published value, one member."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quorate import metrics

pytestmark = pytest.mark.deciding

SHAPES = st.sampled_from([(1, 1), (3, 5), (1, 4, 2), (4, 3, 2)])


def draw(data, shape):
    means = data.draw(arrays(np.float64, shape, elements=st.floats(-20, 20)))
    spreads = data.draw(arrays(np.float64, shape, elements=st.floats(0.05, 5)))
    return means, spreads**2, data.draw(arrays(np.float64, shape[1:], elements=st.floats(-20, 20)))


def integral_crps(means, spreads, y):
    below = lambda x: scipy.stats.norm.cdf(x, means, spreads).mean() ** 2  # noqa: E731
    above = lambda x: scipy.stats.norm.sf(x, means, spreads).mean() ** 2  # noqa: E731
    ends = means.min() - 12 * spreads.max() - abs(y), means.max() + 12 * spreads.max() + abs(y)
    kinks = sorted({y, *means.tolist()})
    grid = [ends[0], *[k for k in kinks if ends[0] < k < ends[1]], ends[1]]
    return sum(
        scipy.integrate.quad(below if b <= y else above, a, b, epsabs=1e-10, limit=200)[0] for a, b in itertools.pairwise(grid)
    )


@settings(deadline=None)
@given(st.data(), SHAPES)
def test_moments_are_those_of_the_mixtures_density(data, shape):
    means, variances, _ = draw(data, shape)
    mean, variance = metrics.mixture_moments(means, variances)
    assert mean.shape == variance.shape == shape[1:]
    second = (variances + means**2).mean(axis=0)  # the paper's form
    np.testing.assert_allclose(mean, means.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(variance, second - mean**2, rtol=1e-6, atol=1e-9)
    assert (variance > 0).all()


def test_moments_do_not_cancel_far_from_zero():
    mean, variance = metrics.mixture_moments([[1e9 - 1], [1e9 + 1]], [[0.25], [0.75]])
    assert (mean.item(), variance.item()) == (1e9, 1.5)


@settings(deadline=None, max_examples=50)
@given(st.data(), SHAPES)
def test_nll_is_the_joint_mixture_density(data, shape):
    means, variances, truth = draw(data, shape)
    columns = math.prod(shape[2:])
    total = 0.0
    for n in range(shape[1]):
        density = [
            scipy.stats.norm.logpdf(truth[n], means[m, n], np.sqrt(variances[m, n])).reshape(columns).sum()
            for m in range(shape[0])
        ]
        peak = max(density)
        total -= peak + math.log(np.mean([math.exp(d - peak) for d in density]))
    said = metrics.mixture_nll(means, variances, truth)
    assert said == pytest.approx(total / shape[1], rel=1e-9, abs=1e-9)
    single = [metrics.gaussian_nll(m, v, truth) for m, v in zip(means, variances, strict=True)]
    assert said <= np.mean(single) + 1e-9 * abs(np.mean(single)) + 1e-12  # Jensen


def test_nll_joins_targets_within_a_member_not_across():
    means, variances = np.array([[[0.0, 0.0]], [[9.0, 9.0]]]), np.ones((2, 1, 2))
    mixed = metrics.mixture_nll(means, variances, [[0.0, 9.0]])  # no member predicts this pair
    assert mixed == pytest.approx(81 / 2 + math.log(2 * math.pi), rel=1e-12)


def test_nll_far_from_all_members_neither_underflows_nor_warns():
    assert metrics.mixture_nll([[0.0], [1.0]], [[1.0], [1.0]], [101.0]) == pytest.approx(
        5000 + 0.5 * math.log(2 * math.pi) + math.log(2), rel=1e-12
    )
    assert metrics.mixture_nll([[0.0], [1.0]], [[1e-300], [1e-300]], [1e200]) == math.inf


def test_crps_of_the_value_that_scoringrules_documents():
    weights = np.repeat([0, 1, 2], [1, 2, 7])  # weights .1, .2, .7 as ten equal members
    means, spreads = np.array([0.1, -0.3, 1.0])[weights], np.array([0.4, 2.1, 0.7])[weights]
    assert metrics.crps_mixture(means[:, None], spreads[:, None] ** 2, [0.0]) == pytest.approx(0.46806866729387275, rel=1e-12)


@pytest.mark.parametrize("y", [-3.0, 0.4, 7.5])
def test_crps_is_the_integral(y):
    means, spreads = np.array([0.0, 1.0, 6.0]), np.array([0.5, 2.0, 0.1])
    expected = integral_crps(means, spreads, y)
    assert metrics.crps_mixture(means[:, None], spreads[:, None] ** 2, [y]) == pytest.approx(expected, rel=1e-7)


@settings(deadline=None)
@given(st.data(), SHAPES)
def test_equal_members_are_one_gaussian_and_order_does_not_count(data, shape):
    means, variances, truth = draw(data, shape)
    tiled = np.repeat(means[:1], 5, axis=0), np.repeat(variances[:1], 5, axis=0)
    one = means[0], variances[0], truth
    assert metrics.crps_mixture(*tiled, truth) == pytest.approx(metrics.crps_gaussian(*one), rel=1e-9, abs=1e-12)
    assert metrics.mixture_nll(*tiled, truth) == pytest.approx(metrics.gaussian_nll(*one), rel=1e-9, abs=1e-9)
    every = metrics.crps_mixture(means, variances, truth)
    assert metrics.crps_mixture(means[::-1], variances[::-1], truth) == pytest.approx(every, rel=1e-9, abs=1e-12)
    single = [metrics.crps_gaussian(m, v, truth) for m, v in zip(means, variances, strict=True)]
    assert every <= np.mean(single) + 1e-9  # convex in the distribution


def test_crps_is_the_mean_over_rows_and_targets():
    rng = np.random.default_rng(1)
    means, spreads, truth = rng.normal(size=(3, 4, 2)), rng.uniform(0.5, 2, (3, 4, 2)), rng.normal(size=(4, 2))
    each = [integral_crps(means[:, n, d], spreads[:, n, d], truth[n, d]) for n in range(4) for d in range(2)]
    assert metrics.crps_mixture(means, spreads**2, truth) == pytest.approx(np.mean(each), rel=1e-7)
    flat = metrics.crps_mixture(means[..., 0], spreads[..., 0] ** 2, truth[:, 0])
    assert flat == pytest.approx(np.mean(each[::2]), rel=1e-7)


GOOD = np.zeros((2, 3)), np.ones((2, 3)), np.zeros(3)
BAD = {
    "one member without its axis": (
        (np.zeros(3), np.ones(3), GOOD[2]),
        "means: expected the member-first shape (M, N) or (M, N, D)",
    ),
    "no members": ((np.zeros((0, 3)), np.ones((0, 3)), GOOD[2]), "with at least one member, row and target, got (0, 3); stack"),
    "variances": ((GOOD[0], np.ones((1, 3)), GOOD[2]), "variances: expected the shape of the means, (2, 3), got (1, 3); pass"),
    "NaN": ((GOOD[0] + [0, math.nan, 0], GOOD[1], GOOD[2]), "means: expected finite numbers, got nan in row 1; find"),
    "zero": ((GOOD[0], GOOD[1] * [1, 1, 0], GOOD[2]), "variances: expected variances above 0, got 0 in row 2; take exp"),
}
BAD_TARGETS = {
    "(N, 1)": (np.zeros((3, 1)), "targets: expected the shape of one member's means, (3,), got (3, 1); pass the same rows"),
    "NaN": (np.array([0, 0, math.nan]), "targets: expected finite numbers, got nan in row 2; find"),
}


def refused(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    said = str(caught.value)
    assert message in said
    assert "\n" not in said
    assert "; " in said


@pytest.mark.parametrize("case", BAD)
def test_bad_members(case):
    given, message = BAD[case]
    refused(lambda: metrics.mixture_moments(*given[:2]), message)
    refused(lambda: metrics.mixture_nll(*given), message)
    refused(lambda: metrics.crps_mixture(*given), message)


@pytest.mark.parametrize("score", [metrics.mixture_nll, metrics.crps_mixture])
@pytest.mark.parametrize("case", BAD_TARGETS)
def test_bad_targets(score, case):
    targets, message = BAD_TARGETS[case]
    refused(lambda: score(*GOOD[:2], targets), message)
