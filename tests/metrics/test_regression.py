"""Regression metrics against SciPy's normal distribution, numerical integrals of the CRPS, scikit-learn and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quorate import metrics
from quorate.metrics.regression import LEVELS

pytestmark = pytest.mark.deciding

NUMBERS = st.floats(-50, 50, allow_nan=False)
SPREADS = st.floats(1e-3, 20)
SHAPES = st.sampled_from([(1,), (7,), (1, 1), (5, 3)])


def some(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.uniform(0.2, 3, shape), rng.normal(size=shape) * 1.5


def crps_by_integral(distribution, y):
    """∫ (F(x) − 1[x ≥ y])² dx."""
    left = scipy.integrate.quad(lambda x: distribution.cdf(x) ** 2, -np.inf, y, epsabs=1e-11)[0]
    return left + scipy.integrate.quad(lambda x: distribution.sf(x) ** 2, y, np.inf, epsabs=1e-11)[0]


# --- errors of the mean ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data(), SHAPES)
def test_rmse_and_mae_equal_scikit_learns(data, shape):
    mean, truth = (data.draw(arrays(np.float64, shape, elements=NUMBERS)) for _ in range(2))
    flat = truth.ravel(), mean.ravel()
    assert metrics.rmse(mean, truth) == pytest.approx(sklearn.metrics.root_mean_squared_error(*flat), rel=1e-12, abs=1e-150)
    assert metrics.mae(mean, truth) == pytest.approx(sklearn.metrics.mean_absolute_error(*flat), rel=1e-12)


def test_rmse_of_huge_and_tiny_errors_neither_overflows_nor_vanishes():
    assert metrics.rmse([3e200, 4e200], [0, 0]) == pytest.approx(1e200 * math.sqrt(12.5), rel=1e-15)
    assert metrics.rmse([3e-200, 4e-200], [0, 0]) == pytest.approx(1e-200 * math.sqrt(12.5), rel=1e-15)
    assert metrics.rmse([1, 2], [1, 2]) == metrics.mae([1, 2], [1, 2]) == 0.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint16])
def test_any_real_dtype_is_measured_in_float64(dtype):
    mean, truth = np.array([3, 100], dtype), np.array([120, 7], dtype)  # differences wrap in int8 and uint16
    assert metrics.mae(mean, truth) == (117 + 93) / 2
    assert metrics.gaussian_nll(mean, np.array([1, 4], dtype), truth) == pytest.approx(
        -scipy.stats.norm.logpdf([117, 93], scale=[1, 2]).mean(), rel=1e-14
    )


def test_errors_near_the_end_of_float64():
    assert metrics.mae([1.7e308, -1.7e308], [0, 0]) == pytest.approx(1.7e308)
    assert metrics.crps_gaussian([1.7e308, 1.7e308], [1, 1], [0, 0]) == pytest.approx(1.7e308)
    assert metrics.crps_mixture([[1.7e308] * 2], [[1, 1]], [0, 0]) == pytest.approx(1.7e308)
    assert metrics.gaussian_nll([1e308, 1e308], [1e290, 1e290], [0, 0]) == math.inf
    mean, truth, variance = [0, 1.7e308], [0, -1.7e308], [1, 1]
    calls = (
        lambda: metrics.rmse(mean, truth),
        lambda: metrics.mae(mean, truth),
        lambda: metrics.gaussian_nll(mean, variance, truth),
        lambda: metrics.crps_gaussian(mean, variance, truth),
        lambda: metrics.interval_coverage(mean, variance, truth),
        lambda: metrics.interval_calibration(mean, variance, truth),
        lambda: metrics.mixture_nll([mean], [variance], truth),
        lambda: metrics.crps_mixture([mean], [variance], truth),
    )
    for call in calls:
        with pytest.raises(
            ValueError, match=r"targets: expected differences from the mean within float64, .* in row 1; give the"
        ) as e:
            call()
        assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="means: expected differences from the mean within float64"):
        metrics.crps_mixture([[1.7e308], [-1.7e308]], [[1.0], [1.0]], [0.0])


class Unreadable:
    """As a tensor that takes part in a gradient, or lies on a device."""

    def __init__(self, error):
        self.error = error

    def __array__(self, *_, **__):
        raise self.error("Can't call numpy()\non this")


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_what_numpy_cannot_read_is_said(error):
    for call in (
        lambda: metrics.gaussian_nll([1.0], Unreadable(error), [1.0]),
        lambda: metrics.nll(Unreadable(error), [1]),
    ):
        with pytest.raises(
            ValueError, match=r"got a Unreadable that NumPy can't read \(Can't call numpy\(\) on this\); pass its values"
        ):
            call()


# --- scores of the Gaussian ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data(), SHAPES)
def test_nll_is_the_joint_density_of_a_rows_targets(data, shape):
    mean, truth = (data.draw(arrays(np.float64, shape, elements=NUMBERS)) for _ in range(2))
    spread = data.draw(arrays(np.float64, shape, elements=SPREADS))
    rows = [
        scipy.stats.multivariate_normal(np.atleast_1d(m), np.diag(np.atleast_1d(s) ** 2)).logpdf(np.atleast_1d(y))
        for m, s, y in zip(mean, spread, truth, strict=True)
    ]
    assert metrics.gaussian_nll(mean, spread**2, truth) == pytest.approx(-np.mean(rows), rel=1e-10)


def test_nll_is_exact_and_infinite_where_the_density_underflows():
    assert metrics.gaussian_nll([0.0], [1 / (2 * math.pi)], [0.0]) == pytest.approx(0, abs=1e-15)
    assert metrics.gaussian_nll([0.0], [1.0], [60.0]) == pytest.approx(1800 + 0.5 * math.log(2 * math.pi))  # density 0.0
    assert metrics.gaussian_nll([0.0], [1e-300], [1e200]) == math.inf


@pytest.mark.parametrize(("mean", "spread", "y"), [(0, 1, 0), (1.5, 0.3, 1.9), (-2, 4, 3), (0, 0.01, 0.2), (5, 2, -1)])
def test_crps_is_the_integral(mean, spread, y):
    expected = crps_by_integral(scipy.stats.norm(mean, spread), y)
    assert metrics.crps_gaussian([mean], [spread**2], [y]) == pytest.approx(expected, rel=1e-7)


def test_crps_closed_forms_and_mean_over_rows_and_targets():
    assert metrics.crps_gaussian([2.0], [9.0], [2.0]) == pytest.approx(3 * (math.sqrt(2) - 1) / math.sqrt(math.pi), rel=1e-14)
    mean, spread, truth = some((4, 3))
    each = [crps_by_integral(scipy.stats.norm(m, s), y) for m, s, y in zip(mean.flat, spread.flat, truth.flat, strict=True)]
    assert metrics.crps_gaussian(mean, spread**2, truth) == pytest.approx(np.mean(each), rel=1e-7)
    # far out and at vanishing variance it is the absolute error, without overflow
    assert metrics.crps_gaussian([0.0], [1e-300], [1e200]) == 1e200
    assert metrics.crps_gaussian([0.0], [1e-20], [-3.0]) == pytest.approx(3, rel=1e-9)


@settings(deadline=None)
@given(st.data(), SHAPES, st.floats(0.1, 100))
def test_scores_follow_the_unit_of_the_targets(data, shape, unit):
    mean, truth = (data.draw(arrays(np.float64, shape, elements=NUMBERS)) for _ in range(2))
    variance = data.draw(arrays(np.float64, shape, elements=SPREADS)) ** 2
    other = mean * unit, variance * unit**2, truth * unit
    assert metrics.crps_gaussian(*other) == pytest.approx(unit * metrics.crps_gaussian(mean, variance, truth), rel=1e-9)
    per_row = math.log(unit) * math.prod(shape[1:])
    assert metrics.gaussian_nll(*other) == pytest.approx(
        metrics.gaussian_nll(mean, variance, truth) + per_row, rel=1e-9, abs=1e-9
    )


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.01, 0.5, 0.683, 0.9, 0.999])
def test_intervals_are_scipys_central_ones(level):
    mean, spread, truth = some((400, 2))
    low, high = scipy.stats.norm.interval(level, mean, spread)
    inside = (low <= truth) & (truth <= high)
    assert metrics.interval_coverage(mean, spread**2, truth, level) == inside.mean()
    assert metrics.interval_width(spread**2, level) == pytest.approx((high - low).mean(), rel=1e-12)
    assert metrics.interval_calibration(mean, spread**2, truth, [level]).tolist() == [inside.mean()]


def test_defaults_and_the_ends_of_an_interval():
    reach = scipy.stats.norm.ppf(0.95)
    assert metrics.interval_width([4.0]) == pytest.approx(4 * reach)
    within, beyond = reach * (1 - 1e-12), reach * (1 + 1e-12)
    assert metrics.interval_coverage([0, 0, 0, 0], [1, 1, 1, 1], [within, -within, beyond, -beyond]) == 0.5
    assert metrics.interval_width([1.0], 1 - 1e-15) == pytest.approx(2 * scipy.stats.norm.isf((1 - (1 - 1e-15)) / 2), rel=1e-12)


def test_calibration_error_by_hand_and_by_brute_force():
    mean, spread, truth = some((50, 2), 3)
    levels = [0.9, 0.05, 0.5]
    for regions in ("intervals", "quantiles"):
        cdf = scipy.stats.norm.cdf(truth, mean, spread)
        observed = [((np.abs(2 * cdf - 1) if regions == "intervals" else cdf) <= level).mean() for level in levels]
        gap = np.abs(np.array(observed) - levels)
        given = mean, spread**2, truth, levels
        assert metrics.interval_calibration(*given, regions=regions).tolist() == observed
        assert metrics.interval_calibration_error(*given, regions=regions) == pytest.approx(gap.mean(), rel=1e-14)
        squared = metrics.interval_calibration_error(*given, distance="squared", regions=regions)
        assert squared == pytest.approx((gap**2).mean(), rel=1e-14)
        every = metrics.interval_calibration_error(mean, spread**2, truth, np.array(LEVELS), regions=regions)
        assert metrics.interval_calibration_error(mean, spread**2, truth, regions=regions) == every


def test_quantiles_see_a_shifted_mean_that_a_wider_variance_hides_from_intervals():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20_000)
    shifted, wider = np.full(truth.size, 0.5), np.full(truth.size, 1.25)  # mean squared error = variance
    honest = np.zeros(truth.size), np.ones(truth.size), truth
    for regions in ("intervals", "quantiles"):
        assert metrics.interval_calibration_error(*honest, regions=regions) < 0.01
    assert metrics.interval_calibration_error(shifted, wider, truth) < 0.02
    assert metrics.interval_calibration_error(shifted, wider, truth, regions="quantiles") > 0.1


# --- refusals --------------------------------------------------------------------------------------------------------

M, V, Y = np.zeros((4, 2)), np.ones((4, 2)), np.zeros((4, 2))
LEVEL = "expected a share above 0 and below 1; write 90 % as 0.9"


def changed(array, where, value):
    copy = np.array(array, float)
    copy[where] = value
    return copy


BAD = {
    "no rows": ((M[:0], V[:0], Y[:0]), "targets: expected shape (N,) or (N, D) with at least one row and one target, got (0, 2)"),
    "members": ((M, V, Y[None]), "targets: expected shape (N,) or (N, D) with at least one row and one target, got (1, 4, 2)"),
    "(N, 1) beside (N,)": (
        (M[:, :1], V[:, 0], Y[:, 0]),
        "mean: expected the shape of the targets, (4,), got (4, 1); pass the same",
    ),
    "one variance for all": ((M, V[:1], Y), "variance: expected the shape of the targets, (4, 2), got (1, 2); pass the same"),
    "NaN": ((changed(M, ([1, 3], 0), math.nan), V, Y), "mean: expected finite numbers, got nan in rows 1, 3; find the inputs"),
    "endless target": ((M, V, changed(Y, (2, 1), -math.inf)), "targets: expected finite numbers, got -inf in row 2; find"),
    "endless variance": ((M, changed(V, (0, 1), math.inf), Y), "variance: expected finite numbers, got inf in row 0; find"),
    "no variance": (
        (M, changed(V, (3, 1), 0), Y),
        "variance: expected variances above 0, got 0 in row 3; take exp of log-variances",
    ),
    "log-variance": (
        (M, changed(V, (slice(3), 1), -1.5), Y),
        "variance: expected variances above 0, got -1.5 in rows 0, 1, 2; take",
    ),
    "text": ((M, V, Y.astype(str)), "targets: expected real numbers, got dtype <U32; convert the array"),
}
SCORES = [
    metrics.gaussian_nll,
    metrics.crps_gaussian,
    metrics.interval_coverage,
    metrics.interval_calibration,
    metrics.interval_calibration_error,
]


def refused(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    said = str(caught.value)
    assert message in said
    assert "\n" not in said
    assert "; " in said


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("score", SCORES, ids=lambda f: f.__name__)
def test_bad_predictions_and_targets(score, case):
    given, message = BAD[case]
    refused(lambda: score(*given), message)


@pytest.mark.parametrize("case", [case for case in BAD if "variance" not in case])
@pytest.mark.parametrize("error", [metrics.rmse, metrics.mae])
def test_bad_means(error, case):
    (mean, _, truth), message = BAD[case]
    refused(lambda: error(mean, truth), message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[(lambda x=x: metrics.interval_coverage(M, V, Y, x), LEVEL) for x in (0, 1, 1.5, 90, -0.1, math.nan, "0.9", True, None)],
        (lambda: metrics.interval_width(V, 95), f"level=95: {LEVEL}"),
        (lambda: metrics.interval_width(V, [0.9]), f"level=list: {LEVEL}"),
        (lambda: metrics.interval_width(V[None]), "variance: expected shape (N,) or (N, D) with at least one row"),
        (lambda: metrics.interval_width(changed(V, (1, 1), math.nan)), "variance: expected finite numbers, got nan in row 1"),
        (lambda: metrics.interval_width(V * 0), "variance: expected variances above 0, got 0 in rows 0, 1, 2, 3; take"),
        (lambda: metrics.interval_calibration(M, V, Y, []), "levels: expected a sequence of shares, got list; pass at least one"),
        (
            lambda: metrics.interval_calibration(M, V, Y, 0.9),
            "levels: expected a sequence of shares, got float; pass at least one",
        ),
        (
            lambda: metrics.interval_calibration(M, V, Y, "0.9"),
            "levels: expected a sequence of shares, got str; pass at least one",
        ),
        (lambda: metrics.interval_calibration(M, V, Y, [0.5, 1.0]), f"levels=1.0: {LEVEL}"),
        (lambda: metrics.interval_calibration(M, V, Y, [0.5, 0.5]), "levels: expected different shares, got [0.5, 0.5]; pass"),
        (
            lambda: metrics.interval_calibration(M, V, Y, regions="both"),
            "regions='both': expected one of 'intervals', 'quantiles'",
        ),
        (
            lambda: metrics.interval_calibration_error(M, V, Y, distance="l2"),
            "distance='l2': expected one of 'absolute', 'squared'",
        ),
    ],
)
def test_bad_settings(call, message):
    refused(call, message)
