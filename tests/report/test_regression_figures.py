"""The figures of a regression, against brute force; the table that shows them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from quorate.outputs import Outputs
from quorate.report.regression import regression_figures
from quorate.report.table import Column, rows

pytestmark = pytest.mark.deciding


def outputs(seed: int, rows: int = 400, targets: int = 2, shift: float = 0.0) -> Outputs:
    draw = np.random.default_rng(seed)
    spread = draw.uniform(-1, 1, (1, rows, targets)) + shift
    truth = draw.normal(size=(rows, targets))
    stages = [
        np.concatenate(
            [truth + np.exp(spread[0] / 2) * draw.normal(size=(2, rows, targets)), spread + 0.2 * k + np.zeros((2, 1, 1))], -1
        )
        for k in range(2)
    ]
    return Outputs(stages, kind="gaussian", labels=truth, costs=[3, 4])


def test_against_brute_force() -> None:
    test, far = outputs(0), outputs(1, 150, shift=2.0)
    found = regression_figures(test, {"far": far})
    values = np.concatenate(test.values).astype(np.float64)
    means, variances = values[..., :2], np.exp(values[..., 2:])
    mean, variance = means.mean(0), variances.mean(0) + means.var(0)
    truth = test.truth()
    sd = np.sqrt(variance)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((truth - mean) ** 2)), rel=1e-12)
    assert found["nll"] == pytest.approx(-stats.norm.logpdf(truth, mean, sd).sum(1).mean(), rel=1e-12)
    reach = stats.norm.ppf(0.95) * sd
    assert found["interval_coverage"] == pytest.approx((np.abs(truth - mean) <= reach).mean(), abs=1e-12)
    assert found["interval_width"] == pytest.approx(2 * reach.mean(), rel=1e-12)
    miss = np.sqrt((((truth - mean) / truth.std(0)) ** 2).mean(1))
    unsure = np.log(variance).sum(1)

    def curve(score: np.ndarray) -> np.ndarray:
        kept = miss[np.argsort(score, kind="stable")]
        return np.sqrt(np.cumsum(kept**2) / np.arange(1, len(kept) + 1)) / np.sqrt((miss**2).mean())

    assert found["ause"] == pytest.approx((curve(unsure) - curve(miss)).mean(), rel=1e-9)
    out = np.concatenate(far.values).astype(np.float64)
    out_unsure = np.log(np.exp(out[..., 2:]).mean(0) + out[..., :2].var(0)).sum(1)
    pairs = (out_unsure[None] > unsure[:, None]).mean()
    assert found["auroc:far"] == pytest.approx(pairs, rel=1e-9)
    assert found["macs"] == 7


def gaussian(mean: np.ndarray, log_variance: float, truth: np.ndarray) -> Outputs:
    return Outputs([np.stack([mean, np.full(len(mean), log_variance)], -1)[None]], kind="gaussian", labels=truth)


def test_no_error_at_all_has_no_sparsification() -> None:
    truth = np.arange(5.0)
    found = regression_figures(gaussian(truth, -2.0, truth), {})
    assert np.isnan(found["ause"])
    assert found["rmse"] == 0
    table = dict(rows([Column("net", found)]))
    assert table["AUSE (share of RMSE)"] == ["–"]


def test_a_variance_of_0_is_refused() -> None:
    truth = np.arange(5.0)
    good, certain = gaussian(truth + 1, 0.0, truth), gaussian(truth, -800.0, truth)
    with pytest.raises(ValueError, match="variance: expected variances above 0, got 0 in rows 0, 1, 2, 3, 4"):
        regression_figures(certain, {})
    with pytest.raises(
        ValueError, match=r"OOD set far: 5 rows are predicted with variance 0, first \[0, 1, 2\]: their log-variances"
    ):
        regression_figures(good, {"far": certain})


def test_units_of_one_target_do_not_decide_ause() -> None:
    test = outputs(3)
    scaled = Outputs(
        [np.concatenate([v[..., :2] * [1, 1000], v[..., 2:] + [0, 2 * np.log(1000)]], -1) for v in test.values],
        kind="gaussian",
        labels=test.truth() * [1, 1000],
    )
    assert regression_figures(scaled, {})["ause"] == pytest.approx(regression_figures(test, {})["ause"], rel=1e-9)
